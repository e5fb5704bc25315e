//! `cargo xtask docs`: the book that mdBook makes of `docs/` and, in its folder `api`, what rustdoc makes of the crates.
//!
//! mdBook is built once, at a pinned version, into `.tools/`. `cargo xtask tidy` checks summary, links and anchors without
//! it, so the suite and CI do not build it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup;
use crate::workspace::{Workspace, probe, run as run_command, say};

const MDBOOK_VERSION: &str = "0.5.4";
const TOOLS: &str = ".tools";

/// `cargo doc` for the project's own crates, to be run with [`API_FLAGS`].
pub(crate) const API_ARGS: [&str; 3] = ["doc", "--workspace", "--no-deps"];
/// The variable and its value that make a warning of rustdoc, such as a broken link, an error.
pub(crate) const API_FLAGS: (&str, &str) = ("RUSTDOCFLAGS", "-D warnings");

/// Builds everything into `target/docs`.
///
/// # Errors
/// When libtorch or mdBook cannot be set up, rustdoc finds a fault, or a folder cannot be written.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::report(workspace, None)?;
    let mdbook = mdbook(workspace)?;
    let target = target_dir(workspace)?;
    run_command(workspace.cargo().args(API_ARGS).env(API_FLAGS.0, API_FLAGS.1))?;
    let book = target.join("docs");
    // mdBook empties the folder first.
    run_command(workspace.command(mdbook).args(["build", "--dest-dir"]).arg(&book))?;
    copy_tree(&target.join("doc"), &book.join("api"))?;
    say(&format!("open {}", book.join("index.html").display()));
    Ok(())
}

/// The pinned mdBook, built where it is not there yet.
fn mdbook(workspace: &Workspace) -> Result<PathBuf> {
    let program = workspace.path(TOOLS).join("bin/mdbook");
    let is_there = |version: &str| version.trim_start_matches("mdbook v") == MDBOOK_VERSION;
    if probe(workspace.command(&program).arg("--version")).is_some_and(|version| is_there(&version)) {
        return Ok(program);
    }
    say(&format!("building mdBook {MDBOOK_VERSION} into {TOOLS}/ (once; one to two minutes)"));
    let mut install = workspace.cargo();
    install.args(["install", "--root", TOOLS, "--locked", "--force", "--version", MDBOOK_VERSION, "mdbook"]);
    // Twenty chapters need neither a server nor an optimised build.
    install.args(["--debug", "--no-default-features", "--features", "search"]);
    run_command(&mut install).context("cannot build mdBook")?;
    Ok(program)
}

/// Where cargo puts what it builds, which the user may have moved.
fn target_dir(workspace: &Workspace) -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(workspace.root()).no_deps().exec();
    Ok(metadata.context("cannot read the workspace through `cargo metadata`")?.target_directory.into())
}

/// Copies a folder with everything below it. Files that are there are replaced.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create `{}`", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("cannot list `{}`", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list `{}`", from.display()))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target).with_context(|| format!("cannot copy `{}`", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_copied_with_what_is_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("book/api"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/c.html"), "new").unwrap();
        fs::create_dir_all(to.join("a/b")).unwrap();
        fs::write(to.join("a/b/c.html"), "old").unwrap();
        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/b/c.html")).unwrap(), "new");
        assert!(copy_tree(&dir.path().join("gone"), &to).unwrap_err().to_string().contains("gone"));
    }
}
