//! A tokenizer for tests: one id a byte, BOS 256.

use crate::DataError;
use crate::tokenizer::{SpecialTokens, Tokenizer};

pub(crate) struct ByteTokenizer(pub(crate) SpecialTokens);

impl Default for ByteTokenizer {
    fn default() -> Self {
        Self(SpecialTokens { bos: Some(256), ..SpecialTokens::default() })
    }
}

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        Ok(String::from_utf8_lossy(&ids.iter().map(|&id| id as u8).collect::<Vec<_>>()).into_owned())
    }

    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        Ok(vec![id as u8])
    }

    fn vocab_size(&self) -> usize {
        257
    }

    fn special(&self) -> &SpecialTokens {
        &self.0
    }
}
