//! Everything that can be wrong with input data or a tokenizer.

/// An error in input data or a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A token id that the tokenizer does not have.
    #[error("token id {id} is not in the tokenizer's vocabulary of {vocab_size}")]
    UnknownTokenId {
        /// The id.
        id: u32,
        /// How many ids there are.
        vocab_size: usize,
    },
}
