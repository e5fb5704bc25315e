//! Everything that can be wrong with a checkpoint.

use std::path::PathBuf;

/// An error in a checkpoint: what was being read, what was found, what was expected.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was attempted: `open`, `read`, `map`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },
    /// The checkpoint has no tensor of this name.
    #[error("the checkpoint has no tensor `{name}`")]
    MissingTensor {
        /// The tensor's canonical name.
        name: String,
    },
}
