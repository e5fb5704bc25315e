//! Everything that can be wrong with a checkpoint.

use std::path::PathBuf;

use crate::DType;

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
    /// A required file of the checkpoint is missing.
    #[error("`{}` has no member `{member}`", path.display())]
    MissingMember {
        /// The checkpoint.
        path: PathBuf,
        /// The member looked for.
        member: String,
    },
    /// The checkpoint has a configuration and nothing else.
    #[error(
        "`{}` holds no weights: it needs `model_weights/metadata.json`, `model_weights.ckpt` or a `model_weights.ckpt` per rank; export or copy it again",
        path.display()
    )]
    NoWeights {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The bytes do not follow their own format.
    #[error("`{file}` is damaged at byte {offset_bytes}: {reason}")]
    Damaged {
        /// The file or member.
        file: String,
        /// Where in it.
        offset_bytes: u64,
        /// What is wrong there.
        reason: String,
    },
    /// An archive member that could write or read outside the checkpoint.
    #[error("member `{member}` of `{file}`, at byte {offset_bytes}, is refused: {reason}")]
    RefusedMember {
        /// The archive or folder.
        file: String,
        /// The member's name in the archive.
        member: String,
        /// Where its header starts.
        offset_bytes: u64,
        /// Why.
        reason: &'static str,
    },
    /// The archive ends inside a member.
    #[error(
        "member `{member}` of `{file}`, at byte {offset_bytes}, is cut off: it needs {expected_bytes} bytes, {actual_bytes} are left; copy the file again"
    )]
    Truncated {
        /// The archive.
        file: String,
        /// The member's name.
        member: String,
        /// Where its content starts.
        offset_bytes: u64,
        /// The size its header states.
        expected_bytes: u64,
        /// What the archive still holds.
        actual_bytes: u64,
    },
    /// A pickle names a Python object that is not on the allow list.
    #[error(
        "`{file}` wants to load `{module}.{name}` at byte {offset_bytes}, which is not among the allowed names"
    )]
    ForbiddenGlobal {
        /// The pickle.
        file: String,
        /// Where in it.
        offset_bytes: u64,
        /// Python module.
        module: String,
        /// Python name.
        name: String,
    },
    /// A file exceeds what a real checkpoint can need.
    #[error("`{file}` has {value} {what}, the limit is {limit}")]
    Limit {
        /// The file or member.
        file: String,
        /// What is counted.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// A clone without Git LFS has a pointer in place of the file.
    #[error("`{file}` is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")]
    LfsPointer {
        /// The file or member.
        file: String,
    },
    /// A file of a tokenizer that does not follow its format.
    #[error("the tokenizer file `{file}` cannot be used: {reason}")]
    BadTokenizer {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A known format that this version does not read.
    #[error("{what} cannot be read: {hint}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A model that the format asked for cannot hold.
    #[error("a model with {what} cannot be written with `--to hf`: {hint}")]
    NotExported {
        /// What about the model.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A tensor's pieces do not make up the tensor.
    #[error("tensor `{name}` is inconsistent: {reason}")]
    BadTensor {
        /// The tensor's name in the file.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// An adapter that was trained on another model.
    #[error("`{adapter}` is an adapter of another model: its `{tensor}` {found}, and `{base}` {needed}")]
    OtherBase {
        /// The adapter.
        adapter: String,
        /// What the adapter calls the factors.
        tensor: String,
        /// What they are for.
        found: String,
        /// What the model has instead.
        needed: String,
        /// The model.
        base: String,
    },
    /// A read outside the tensor.
    #[error("region {region:?} leaves tensor `{name}` of shape {shape:?}")]
    RegionOutside {
        /// The tensor.
        name: String,
        /// The half-open ranges asked for.
        region: Vec<std::ops::Range<u64>>,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// The caller's buffer does not fit the region.
    #[error("the buffer for tensor `{name}` has {actual_bytes} bytes, the region needs {expected_bytes}")]
    BufferSize {
        /// The tensor.
        name: String,
        /// What the region needs.
        expected_bytes: u64,
        /// What the caller passed.
        actual_bytes: u64,
    },
    /// The model configuration cannot be used.
    #[error("`{file}` is not a model configuration: {reason}")]
    BadConfig {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The target exists and may not be replaced.
    #[error("`{}` exists already", path.display())]
    OutputExists {
        /// The target.
        path: PathBuf,
    },
    /// Another process is at work on the target.
    #[error(
        "`{}` is being written by another process; wait for it, stop it, or name another output",
        path.display()
    )]
    OutputInUse {
        /// The target.
        path: PathBuf,
    },
    /// A conversion that would not keep the meaning of the numbers.
    #[error("tensor `{name}` of dtype {} cannot be converted to {}", from.name(), to.name())]
    UnsupportedConversion {
        /// The tensor.
        name: String,
        /// Its dtype.
        from: DType,
        /// The dtype asked for.
        to: DType,
    },
}

impl FormatError {
    /// Wraps an operating-system error with the action and the path.
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    /// A damaged file, with the place.
    pub(crate) fn damaged(file: &str, offset_bytes: usize, reason: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), offset_bytes: offset_bytes as u64, reason: reason.into() }
    }

    /// An inconsistent tensor.
    pub(crate) fn bad_tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::BadTensor { name: name.to_owned(), reason: reason.into() }
    }
}
