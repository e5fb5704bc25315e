//! Where the repository lies, and how other programs are run in it.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Names the folder to the build script of the program, `crates/torch-ext/run_path/build.rs`.
const OLD_LIBRARIES: &str = "ALIGNER_GEN_OLD_LIBRARIES";

/// The checked-out repository.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    /// What the program is linked against, where it is not this machine's libraries.
    old_libraries: Option<PathBuf>,
}

impl Workspace {
    /// The repository this program was built from.
    pub(crate) fn locate() -> Result<Self> {
        let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir.parent().context("xtask has no folder above it")?.to_path_buf();
        if !root.join("Cargo.toml").is_file() {
            bail!("`{}` is not the project's folder: run this as `cargo xtask`", root.display());
        }
        Ok(Self { root, old_libraries: None })
    }

    /// The same, whose cargo links the program against the libraries of a folder that `crate::oldest` made.
    pub(crate) fn with_old_libraries(&self, folder: PathBuf) -> Self {
        Self { old_libraries: Some(folder), ..self.clone() }
    }

    /// A path below the repository's root.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The repository's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A command that starts in the repository's root.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// The cargo that started this program, so that a toolchain chosen with `+name` stays chosen.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = self.command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Set for this package by the outer cargo; build scripts of the inner one must not see them.
        for variable in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
            command.env_remove(variable);
        }
        match &self.old_libraries {
            Some(folder) => command.env(OLD_LIBRARIES, folder),
            None => command.env_remove(OLD_LIBRARIES),
        };
        command
    }
}

/// Tells the user something, on standard error.
pub(crate) fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started or does not end with 0; the text has the command as one can paste it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shell_line(command)))?;
    if !status.success() {
        bail!("`{}` failed with {status}", shell_line(command));
    }
    Ok(())
}

/// The command's standard output, or `None` when it cannot be started or fails.
pub(crate) fn probe(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as a line for a shell.
pub(crate) fn shell_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| shell_word(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as a shell reads it back.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("aligner-gen");
        command.args(["a.b=1", "end_strings=[\"<|im_end|>\"]", "", "it's"]);
        assert_eq!(shell_line(&command), r#"aligner-gen a.b=1 'end_strings=["<|im_end|>"]' '' 'it'\''s'"#);
    }

    #[test]
    fn a_failing_command_is_named() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err().to_string();
        assert_eq!(error, "`sh -c 'exit 3'` failed with exit status: 3");
    }
}
