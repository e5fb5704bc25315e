//! The tokens of one response, followed through its structure.

use crate::{StructureError, error::first_line};

/// Where a response stands in its structure. It shares nothing with others, so what it allows depends on its tokens alone.
pub struct Matcher {
    inner: llguidance::Matcher,
    num_tokens: usize,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("num_tokens", &self.num_tokens).finish_non_exhaustive()
    }
}

impl Matcher {
    pub(crate) fn new(inner: llguidance::Matcher, num_tokens: usize) -> Self {
        Self { inner, num_tokens }
    }

    /// Another that stands where this one does.
    pub(crate) fn fork(&self) -> Self {
        Self { inner: self.inner.deep_clone(), num_tokens: self.num_tokens }
    }

    /// Sets the bits of the tokens that may be next, and of no others, in `bits`, `[ceil(num_tokens / 32)]`. Says whether
    /// the text may end here.
    ///
    /// # Errors
    /// When the structure takes more than the limits to follow.
    pub fn allowed(&mut self, bits: &mut [u32]) -> Result<bool, StructureError> {
        let mask = self.inner.compute_mask_or_eos().map_err(follow)?;
        let may_end = mask.get(self.num_tokens);
        bits.fill(0);
        for (to, &from) in bits.iter_mut().zip(mask.as_slice()) {
            *to = from;
        }
        // The text's end stands behind the last token.
        if let Some(last) = bits.get_mut(self.num_tokens / 32) {
            *last &= (1_u32 << (self.num_tokens % 32)) - 1;
        }
        Ok(may_end)
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// When it was not allowed.
    pub fn push(&mut self, token: u32) -> Result<(), StructureError> {
        self.inner.consume_token(token).map_err(follow)
    }
}

fn follow<E: std::fmt::Display>(error: E) -> StructureError {
    StructureError::Follow { reason: first_line(&error.to_string()) }
}
