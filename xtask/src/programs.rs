//! Programs of the workspace, built by cargo in release mode.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::{Workspace, shell_line};

/// Builds what `args` of `cargo build --release` choose: the executables by the names of their targets.
///
/// # Errors
/// When it does not build.
pub(crate) fn build(workspace: &Workspace, args: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    build_with(workspace, "release", args)
}

/// The same with the profile of this name.
///
/// # Errors
/// When it does not build.
pub(crate) fn build_with(
    workspace: &Workspace,
    profile: &str,
    args: &[&str],
) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = workspace.cargo();
    command
        .args(["build", "--profile", profile])
        .args(args)
        .args(["--message-format", "json-render-diagnostics"]);
    let line = shell_line(&command);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed with {}", output.status);
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// The executables in cargo's JSON messages: where they lie depends on the user's target folder.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        Some((name.to_owned(), PathBuf::from(message.get("executable")?.as_str()?)))
    };
    messages.lines().filter_map(executable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_executables_among_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"engine\"},\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"aligner-gen\"},\"executable\":\"/t/release/aligner-gen\"}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"a\"},\"executable\":\"/t/release/examples/a\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        let expect = [("a", "/t/release/examples/a"), ("aligner-gen", "/t/release/aligner-gen")];
        let expect = expect.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(executables(messages), BTreeMap::from(expect));
        assert!(executables("{\"reason\":\"build-finished\"}").is_empty());
    }
}
