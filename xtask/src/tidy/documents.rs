//! Rules for text files: no trailing whitespace, and every path the documentation names is there.

use super::{Finding, SourceFile};

/// What a path in the documentation starts with when it means a file of the repository.
const TOP_LEVEL: [&str; 8] =
    ["crates/", "configs/", "docs/", "tests/", "tools/", "xtask/", ".cargo/", ".ci/"];

pub(super) fn check_whitespace(file: &SourceFile) -> Vec<Finding> {
    // The user guide is kept as it was written.
    if file.path == "docs/guide.rst" {
        return Vec::new();
    }
    let trailing = file.text.lines().enumerate().filter(|(_, line)| line.ends_with([' ', '\t', '\r']));
    trailing
        .map(|(line_idx, _)| format!("{}:{}: whitespace at the end of the line", file.path, line_idx + 1))
        .collect()
}

/// Finds paths in backticks that `exists` does not know.
pub(super) fn check_paths(file: &SourceFile, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let is_document =
        file.path.ends_with(".md") && (file.path.starts_with("docs/") || !file.path.contains('/'));
    if !is_document {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (line_idx, line) in file.text.lines().enumerate() {
        let named = line.split('`').skip(1).step_by(2).filter(|word| is_path(word));
        for path in named.filter(|path| !exists(path)) {
            findings.push(format!("{}:{}: `{path}` does not exist", file.path, line_idx + 1));
        }
    }
    findings
}

fn is_path(word: &str) -> bool {
    let placeholder = |c: char| c.is_whitespace() || "*<>{}$…".contains(c);
    TOP_LEVEL.iter().any(|top| word.starts_with(top)) && !word.contains(placeholder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.to_owned(), text: text.to_owned() }
    }

    fn missing(path: &str, text: &str) -> Vec<Finding> {
        check_paths(&file(path, text), &|path| ["crates/data/src/lib.rs", "docs/STYLE.md"].contains(&path))
    }

    #[test]
    fn trailing_whitespace_is_found() {
        let found = check_whitespace(&file("a.md", "a\nb \nc\t\n"));
        let expect =
            ["a.md:2: whitespace at the end of the line", "a.md:3: whitespace at the end of the line"];
        assert_eq!(found, expect);
        assert!(check_whitespace(&file("docs/guide.rst", "a \n")).is_empty());
    }

    #[test]
    fn paths_in_backticks_must_exist() {
        let text = "see `crates/data/src/lib.rs`\nand `crates/data/src/gone.rs` or `crates/*/src` or `a/b`";
        assert_eq!(missing("docs/A.md", text), ["docs/A.md:2: `crates/data/src/gone.rs` does not exist"]);
        assert!(missing("crates/data/NOTES.md", "`docs/gone.md`").is_empty());
    }
}
