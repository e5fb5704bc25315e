//! Everything that can be wrong with a model.

/// An error of the model: its config, its weights or its arithmetic.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor whose shape contradicts the config.
    #[error("tensor `{name}` has shape {actual:?}, the model needs {expected:?}")]
    ShapeMismatch {
        /// The tensor.
        name: String,
        /// What the config implies.
        expected: Vec<u64>,
        /// What the file holds.
        actual: Vec<u64>,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Format(#[from] nemo_format::FormatError),
    /// A kernel refused.
    #[error(transparent)]
    Ext(#[from] torch_ext::ExtError),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
