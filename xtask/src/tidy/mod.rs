//! `cargo xtask tidy`: what the compiler and clippy do not check. Edges between crates, module docs, sizes, forbidden
//! constructs, one sentence a line in Markdown, and that every path and link in the documentation leads somewhere. The
//! rules are those of `docs/STYLE.md`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::{Workspace, say};

mod book;
mod code;
mod documents;
mod edges;
mod markdown;
mod modules;
mod source;

/// One file of the repository: its path from the root with `/`, and its text.
#[derive(Clone, Debug)]
struct SourceFile {
    path: String,
    text: String,
}

/// Something that breaks a rule, as `path:line: what`.
type Finding = String;

/// Folders that hold no sources of the project.
const NOT_OURS: [&str; 8] =
    [".git", "target", ".libtorch", ".demo", ".bench", ".venv", ".chat-templates", ".tools"];
/// The one document among the golden files, which are data.
const FIXTURES_README: &str = "tests/fixtures/README.md";

/// Text files small enough to read whole; the rest are data.
const TEXT_EXTENSIONS: [&str; 10] = ["rs", "toml", "md", "rst", "yaml", "yml", "txt", "py", "sh", "cpp"];

/// Checks the whole repository.
///
/// # Errors
/// When a rule is broken; every finding is printed first.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(workspace.root())
        .no_deps()
        .exec()
        .context("cannot read the workspace through `cargo metadata`")?;
    let mut files = Vec::new();
    read_tree(workspace.root(), "", &mut files)?;
    let text = fs::read_to_string(workspace.path(FIXTURES_README))
        .with_context(|| format!("cannot read `{FIXTURES_README}`"))?;
    files.push(SourceFile { path: FIXTURES_README.to_owned(), text });
    files.sort_by(|a, b| a.path.cmp(&b.path));

    let mut findings = edges::check(&edges::Graph::from_metadata(&metadata), &files);
    findings.extend(book::check(&files, &|path| workspace.path(path).exists()));
    findings.extend(modules::check(&files));
    for file in &files {
        findings.extend(markdown::check_sentences(file));
        findings.extend(source::check(file));
        findings.extend(documents::check_whitespace(file));
        findings.extend(documents::check_paths(file, &|path| workspace.path(path).exists()));
    }
    for note in files.iter().filter_map(source::size_note) {
        say(&format!("note: {note}"));
    }
    for finding in &findings {
        say(finding);
    }
    match findings.len() {
        0 => {
            say(&format!("tidy: {} files, nothing to say", files.len()));
            Ok(())
        }
        count => bail!("tidy found {count} problems"),
    }
}

fn read_tree(dir: &Path, prefix: &str, files: &mut Vec<SourceFile>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list `{}`", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list `{}`", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().with_context(|| format!("cannot examine `{path}`"))?;
        if kind.is_dir() && !NOT_OURS.contains(&name.as_str()) && path != "tests/fixtures" {
            read_tree(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file()
            && name.rsplit_once('.').is_some_and(|(_, ext)| TEXT_EXTENSIONS.contains(&ext))
        {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("cannot read `{path}` as UTF-8 text"))?;
            files.push(SourceFile { path, text });
        }
    }
    Ok(())
}
