//! How far an engine is, for other threads to read while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of an engine's life. Nothing is decided by them.
#[derive(Debug, Default)]
pub struct LiveCounts {
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    ended_tokens: AtomicU64,
}

impl LiveCounts {
    /// Prompt tokens that were computed.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens.load(Ordering::Relaxed)
    }

    /// Tokens of responses that have not ended yet.
    pub fn open_tokens(&self) -> u64 {
        // Read first, so that no response ends between the two and makes the difference negative.
        let ended = self.ended_tokens.load(Ordering::Acquire);
        self.generated_tokens.load(Ordering::Relaxed).saturating_sub(ended)
    }

    pub(crate) fn prompt(&self, num_tokens: u64) {
        self.prompt_tokens.fetch_add(num_tokens, Ordering::Relaxed);
    }

    pub(crate) fn generated(&self, num_tokens: u64) {
        self.generated_tokens.fetch_add(num_tokens, Ordering::Relaxed);
    }

    /// A response of so many tokens has ended.
    pub(crate) fn ended(&self, num_tokens: u64) {
        self.ended_tokens.fetch_add(num_tokens, Ordering::Release);
    }
}
