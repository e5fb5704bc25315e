//! Errors of sampling.

/// What can be wrong with sampling parameters or logits.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// A parameter outside its range.
    #[error("`{key}` must be {expected}, got {actual}")]
    BadParam {
        /// The user's key.
        key: &'static str,
        /// The allowed range.
        expected: &'static str,
        /// The value given.
        actual: String,
    },
    /// A kernel or libtorch refused.
    #[error(transparent)]
    Ext(#[from] torch_ext::ExtError),
}
