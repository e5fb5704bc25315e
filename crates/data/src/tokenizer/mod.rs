//! Text to token ids and back, exactly as the original software does it.
//!
//! [`open_tokenizer`] picks the implementation from the checkpoint's `tokenizer:` section. Files are read through a
//! closure, so nothing here knows what an archive is. Nothing here downloads.

#[cfg(test)]
mod golden;
mod hash;
pub mod huggingface;
mod merge;
pub mod sentencepiece;
mod slow_llama;
mod spec;
mod special_text;
mod stream;
pub mod tiktoken;
mod trie;
mod turn_end;

pub use spec::{ReadArtifact, SpecialTokensSpec, TokenizerSpec, check_tokenizer, open_tokenizer};
pub use stream::StreamDecoder;
pub use turn_end::turn_end_token;

use crate::DataError;

/// The ids that mean something to generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence: always ends a response.
    pub eos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
}

/// A tokenizer: text to ids and back. Shared by threads.
pub trait Tokenizer: Send + Sync {
    /// Text to ids, special tokens in the text recognised as the original does; no BOS or EOS is added.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError>;

    /// The text of a rendered chat template to ids: special tokens that it spells out become their ids, whatever
    /// [`Tokenizer::encode`] makes of them.
    ///
    /// NeMo's own wrappers of SentencePiece and tiktoken find no control tokens in a text; a chat template is written
    /// for `apply_chat_template`, which finds them all.
    ///
    /// # Errors
    /// When the text cannot be encoded.
    fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode(text)
    }

    /// Ids to text, as the original library decodes without skipping special tokens.
    ///
    /// A SentencePiece model drops its control symbols here and one leading space, because its library does. Raw
    /// responses are built from [`Tokenizer::token_bytes`] instead, where control symbols keep their text.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    fn decode(&self, ids: &[u32]) -> Result<String, DataError>;

    /// The bytes that one token adds to a text in the middle of it; their concatenation is the raw response.
    ///
    /// # Errors
    /// When the id is not in the vocabulary.
    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError>;

    /// Number of ids, added tokens included. Logits at or past it are vocabulary padding.
    fn vocab_size(&self) -> usize;

    /// Whether the token is a control symbol or an added token, which stands for more than its text.
    fn is_special(&self, id: u32) -> bool {
        let special = self.special();
        [special.bos, special.eos, special.pad].contains(&Some(id))
    }

    /// Whether a text without special tokens leaves it out. Tokens that were added only to stay whole belong to the text.
    fn is_left_out(&self, id: u32) -> bool {
        self.is_special(id)
    }

    /// The special ids.
    fn special(&self) -> &SpecialTokens;
}
