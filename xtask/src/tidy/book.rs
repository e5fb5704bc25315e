//! Rules for the book that mdBook makes of `docs/`: its summary lists every chapter, and every link and anchor leads somewhere.
//!
//! `cargo xtask test` does not build the book, which needs mdBook; this shows that it could.

use std::collections::{BTreeMap, BTreeSet};

use super::markdown::{Kind, lines};
use super::{Finding, SourceFile};

const SUMMARY: &str = "docs/SUMMARY.md";
/// Where `cargo xtask docs` puts the documentation of the crates, seen from `docs/`.
const API: &str = "docs/api/";

/// Checks summary, links and anchors of the documents among `files`. `exists` answers for paths from the root.
pub(super) fn check(files: &[SourceFile], exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let documents: Vec<&SourceFile> = files.iter().filter(|file| is_document(&file.path)).collect();
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        documents.iter().map(|file| (file.path.as_str(), anchors(&file.text))).collect();
    let mut findings = check_summary(&documents);
    for file in &documents {
        for link in links(file) {
            if let Some(what) = fault(&link, &file.path, &anchors, exists) {
                findings.push(format!("{}:{}: {what}", file.path, link.line_number));
            }
        }
    }
    findings
}

/// Chapters of the book, and the documents at the root.
fn is_document(path: &str) -> bool {
    path.ends_with(".md") && (path.starts_with("docs/") || !path.contains('/'))
}

/// Every chapter is listed once.
fn check_summary(documents: &[&SourceFile]) -> Vec<Finding> {
    let Some(summary) = documents.iter().find(|file| file.path == SUMMARY) else {
        return vec![format!("{SUMMARY}: does not exist")];
    };
    let mut listed: BTreeMap<String, usize> = BTreeMap::new();
    for link in links(summary) {
        *listed.entry(link.path).or_default() += 1;
    }
    let chapters = documents.iter().filter(|file| file.path.starts_with("docs/") && file.path != SUMMARY);
    let missing = chapters
        .filter(|file| !listed.contains_key(&file.path))
        .map(|file| format!("{}:1: {SUMMARY} does not list this chapter", file.path));
    let twice = listed
        .iter()
        .filter(|&(_, &count)| count > 1)
        .map(|(path, _)| format!("{SUMMARY}: `{path}` is listed twice"));
    missing.chain(twice).collect()
}

struct Link {
    line_number: usize,
    /// From the root; the document itself where only an anchor is given.
    path: String,
    anchor: Option<String>,
}

/// Links to files of the repository.
fn links(file: &SourceFile) -> Vec<Link> {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    // `lines` skips code blocks and masks inline code, so only real links are left.
    for line in lines(&file.text) {
        for rest in line.text.split("](").skip(1) {
            let Some(target) = rest.split(')').next().filter(|target| !target.contains(':')) else {
                continue;
            };
            let (path, anchor) = match target.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor.to_owned())),
                None => (target, None),
            };
            let path = if path.is_empty() { file.path.clone() } else { join(folder, path) };
            found.push(Link { line_number: line.number, path, anchor });
        }
    }
    found
}

/// What is wrong with a link in the document `from`.
fn fault(
    link: &Link,
    from: &str,
    anchors: &BTreeMap<&str, BTreeSet<String>>,
    exists: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let Link { path, anchor, .. } = link;
    if let Some(page) = path.strip_prefix(API) {
        let package = page.split('/').next().unwrap_or_default().replace('_', "-");
        let is_ours = [format!("crates/{package}/Cargo.toml"), format!("{package}/Cargo.toml")];
        return (!is_ours.iter().any(|manifest| exists(manifest)))
            .then(|| format!("`{path}`: no crate of this name is documented"));
    }
    if !exists(path) {
        return Some(format!("`{path}` does not exist"));
    }
    if from.starts_with("docs/") && !path.starts_with("docs/") {
        return Some(format!("a link to `{path}` leaves the book; write the path in backticks"));
    }
    let anchor = anchor.as_ref()?;
    match anchors.get(path.as_str()) {
        Some(known) if known.contains(anchor) => None,
        Some(_) => Some(format!("`{path}` has no heading `#{anchor}`")),
        None => Some(format!("`{path}#{anchor}`: only headings of documents can be linked to")),
    }
}

/// The anchors that mdBook and GitHub give to the headings.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in lines(document).into_iter().filter(|line| line.kind == Kind::Heading) {
        let slug: String = line
            .raw
            .to_lowercase()
            .chars()
            .filter_map(|c| match c {
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                c if c.is_whitespace() => Some('-'),
                _ => None,
            })
            .collect();
        let anchor = (1..).map(|n| format!("{slug}-{n}"));
        let anchor = std::iter::once(slug.clone()).chain(anchor).find(|anchor| !found.contains(anchor));
        found.extend(anchor);
    }
    found
}

fn join(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY_TEXT: &str = "# Summary\n\n* [A](a.md)\n  * [B](sub/b.md)\n";

    fn findings(documents: &[(&str, &str)]) -> Vec<Finding> {
        let mut files: Vec<SourceFile> = documents
            .iter()
            .map(|&(path, text)| SourceFile { path: path.to_owned(), text: text.to_owned() })
            .collect();
        for (path, text) in [(SUMMARY, SUMMARY_TEXT), ("docs/a.md", "# A\n"), ("docs/sub/b.md", "# B\n")] {
            if !files.iter().any(|file| file.path == path) {
                files.push(SourceFile { path: path.to_owned(), text: text.to_owned() });
            }
        }
        let known = ["LICENSE", "docs/guide.rst", "crates/model-core/Cargo.toml", "xtask/Cargo.toml"];
        check(&files, &|path| known.contains(&path) || files.iter().any(|file| file.path == path))
    }

    #[test]
    fn a_whole_book_passes() {
        let a = "# A\n\n## Its `part`, twice\n\n## Its part twice\n\n[b](sub/b.md#b) [web](https://example.org/x#y)\n\
                 [here](#its-part-twice) [2](#its-part-twice-1) [api](api/model_core/index.html) [rst](guide.rst)\n\
                 `[code](gone.md)`\n\n```\n[code](gone.md)\n```\n";
        let b = "# B\n\n[up](../a.md) [x](../api/xtask/index.html)\n";
        let readme = "[a](docs/a.md#a) [l](LICENSE)\n";
        assert!(findings(&[("docs/a.md", a), ("docs/sub/b.md", b), ("README.md", readme)]).is_empty());
    }

    #[test]
    fn every_chapter_is_listed_once() {
        assert_eq!(
            findings(&[("docs/c.md", "# C\n")]),
            ["docs/c.md:1: docs/SUMMARY.md does not list this chapter"]
        );
        assert!(findings(&[("crates/data/notes.md", "# C\n")]).is_empty());
        let twice = format!("{SUMMARY_TEXT}* [A](a.md)\n");
        assert_eq!(findings(&[(SUMMARY, &twice)]), ["docs/SUMMARY.md: `docs/a.md` is listed twice"]);
        assert_eq!(check(&[], &|_| true), ["docs/SUMMARY.md: does not exist"]);
    }

    #[test]
    fn links_lead_somewhere() {
        let check = |path: &str, text: &str, expect: &str| {
            assert_eq!(findings(&[(path, text)]), [format!("{path}:{expect}")], "{text}");
        };
        check("docs/a.md", "# A\n\n[g](gone.md)\n", "3: `docs/gone.md` does not exist");
        check("docs/sub/b.md", "[a](a.md)\n", "1: `docs/sub/a.md` does not exist");
        check("README.md", "[a](docs/a.md#b)\n", "1: `docs/a.md` has no heading `#b`");
        check("docs/a.md", "# A\n[b](#b)\n", "2: `docs/a.md` has no heading `#b`");
        check(
            "docs/a.md",
            "[x](api/gone/index.html)\n",
            "1: `docs/api/gone/index.html`: no crate of this name is documented",
        );
        check(
            "docs/a.md",
            "[l](../LICENSE)\n",
            "1: a link to `LICENSE` leaves the book; write the path in backticks",
        );
    }
}
