//! What other threads, and whoever takes completions, have to do with an engine while it runs: how far it is, and what
//! need not be computed any more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// Responses that nobody wants any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancellation {
    /// Position of the sample in the input file.
    pub sample_idx: u64,
    /// This response and those before it go on.
    pub last_wanted: u32,
}

/// Cancellations on their way to a running engine, which takes them before its next step. What has ended by then is
/// delivered all the same, as is what has no token yet.
#[derive(Debug, Default)]
pub struct Cancellations {
    queue: Mutex<Vec<Cancellation>>,
    /// Spares the lock before most steps.
    has_any: AtomicBool,
}

impl Cancellations {
    /// Has the engine stop computing these.
    pub fn cancel(&self, cancellation: Cancellation) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(cancellation);
        self.has_any.store(true, Ordering::Release);
    }

    pub(crate) fn take(&self) -> Vec<Cancellation> {
        if !self.has_any.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
