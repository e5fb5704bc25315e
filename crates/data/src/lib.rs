//! SFT records, prompts, tokenizers and the plan of steps. No libtorch.

mod error;
pub mod tokenizer;

pub use error::DataError;
pub use tokenizer::{SpecialTokens, StreamDecoder, Tokenizer, TokenizerSpec, open_tokenizer};
