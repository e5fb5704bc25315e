//! Everything that can be wrong with the output folder.

use std::path::PathBuf;

use super::identity::VERSION;
use crate::exit::{ExitStatus, Failure};

/// An error of the output folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A step could not be written; the file was cut back to what was committed before.
    #[error("cannot write step {step} to `{}`; the {committed_samples} samples before it are saved", path.display())]
    Write {
        step: u64,
        committed_samples: u64,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A value that JSON cannot hold.
    #[error("step {step} cannot be written as JSON")]
    Json {
        step: u64,
        #[source]
        source: serde_json::Error,
    },
    /// A line of the results does not say what the totals are made of.
    #[error("`{}` line {line} cannot be counted for `model.generation.pass_at_k`: {reason}", path.display())]
    NoPassAtK { path: PathBuf, line: u64, reason: String },
    /// Another run holds the folder.
    #[error("`{}` is in use by another run ({holder}); wait for it, stop it, or set another `exp_manager.explicit_log_dir`", folder.display())]
    InUse { folder: PathBuf, holder: String },
    /// The folder belongs to a run with other inputs or settings.
    #[error(
        "`{}` was written with other settings, so it cannot be continued; changed: {}; set them back, use another \
         `exp_manager.explicit_log_dir`, or start afresh with `++exp_manager.resume_if_exists=false`",
        folder.display(),
        changes.join(", ")
    )]
    Changed { folder: PathBuf, changes: Vec<String> },
    /// The folder belongs to a run of another version of the program, which recorded other things.
    #[error(
        "`{}` was begun by another version of this program ({program_version}, identity version {found}), which recorded what \
         decides the texts in another way than this one (identity version {VERSION}), so it cannot be continued: finish it \
         with that version, use another `exp_manager.explicit_log_dir`, or start afresh with \
         `++exp_manager.resume_if_exists=false`",
        folder.display()
    )]
    OtherVersion { folder: PathBuf, program_version: String, found: u64 },
    /// Committed lines are gone.
    #[error(
        "`{}` has {actual_bytes} bytes, but {committed_bytes} were committed: it was changed by something else; \
         start afresh with `++exp_manager.resume_if_exists=false`",
        path.display()
    )]
    TooShort { path: PathBuf, actual_bytes: u64, committed_bytes: u64 },
    /// What is committed does not end with a line of the step that the manifest names.
    #[error(
        "`{}` has no line of step {step} or before that ends at byte {committed_bytes}, where `manifest.json` says its \
         committed part ends: one of them was changed by something else; start afresh with \
         `++exp_manager.resume_if_exists=false`",
        path.display()
    )]
    Disagrees { path: PathBuf, committed_bytes: u64, step: u64 },
    /// The manifest is not one of ours.
    #[error(
        "`{}` is damaged or not a manifest of this program ({reason}); remove it to continue after the last whole step of \
         `generations.jsonl` without a check of the settings, or start afresh with `++exp_manager.resume_if_exists=false`",
        path.display()
    )]
    BadManifest { path: PathBuf, reason: String },
    /// A file without a manifest holds a line that this program or its predecessor never writes.
    #[error("line {line} of `{}` is not a record with `step` and `consumed_samples`: {reason}", path.display())]
    BadLegacyLine { path: PathBuf, line: u64, reason: String },
    /// A file without a manifest whose steps do not follow each other.
    #[error(
        "line {line} of `{}` does not go on from the line before: `step` and `consumed_samples` must grow together, and \
         there is no `manifest.json` to say what is right; start afresh with `++exp_manager.resume_if_exists=false`",
        path.display()
    )]
    UnorderedLegacyLine { path: PathBuf, line: u64 },
}

impl OutputError {
    /// For `map_err`: the action and the path of a failed system call.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        let status = match error {
            OutputError::Changed { .. } | OutputError::OtherVersion { .. } => ExitStatus::Usage,
            _ => ExitStatus::Failed,
        };
        Self { status, error: error.into() }
    }
}
