//! The texts of a run where its samplers find them, and drafts of them.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use engine::{Draftable, Goal, Proposer, SeqId, StepTime};
use sampling::ForcedTexts;

use crate::exit::Failure;

/// Most tokens of a response in one step: as many as the kernels of a GPU are checked with (`gpu_check`).
const MAX_TOKENS_PER_STEP: usize = 64;

/// The responses of a run, by the number of their request. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Texts {
    pub(super) on_host: ForcedTexts,
    #[cfg(feature = "cuda")]
    pub(super) on_device: Option<Arc<std::sync::Mutex<sampling::DeviceTexts>>>,
}

impl Texts {
    /// Puts those of the next run in place of those before.
    pub(super) fn put(&self, texts: Vec<Vec<u32>>) -> Result<(), Failure> {
        #[cfg(feature = "cuda")]
        if let Some(on_device) = &self.on_device {
            on_device.lock().unwrap_or_else(PoisonError::into_inner).put(&texts)?;
        }
        *self.on_host.lock().unwrap_or_else(PoisonError::into_inner) = texts;
        Ok(())
    }
}

/// Drafts what is known to follow.
pub(super) struct Known {
    texts: ForcedTexts,
    /// Tokens that each response has, by its request's number.
    num_drawn: Vec<usize>,
}

impl Known {
    pub(super) fn new(texts: &Texts) -> Self {
        Self { texts: Arc::clone(&texts.on_host), num_drawn: Vec::new() }
    }
}

impl Proposer<SeqId> for Known {
    fn reset(&mut self) {
        self.num_drawn.clear();
    }

    fn prompt(&mut self, _tokens: &[u32], _responses: &[SeqId]) {}

    fn append(&mut self, id: SeqId, tokens: &[u32]) {
        let idx = id.group_idx as usize;
        if self.num_drawn.len() <= idx {
            self.num_drawn.resize(idx + 1, 0);
        }
        self.num_drawn[idx] += tokens.len();
    }

    fn end(&mut self, _id: SeqId) {}

    fn wants_drafts(&mut self, _num_in_flight: usize, _goal: Goal) -> bool {
        true
    }

    /// Requests are numbered as their texts are: each has one response that is not empty.
    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let drafts = responses.iter().map(|response| {
            let idx = response.id.group_idx as usize;
            let start = self.num_drawn.get(idx).copied().unwrap_or(0);
            let text = texts.get(idx).and_then(|text| text.get(start..)).unwrap_or_default();
            text.iter().copied().take(response.max_drafts.min(MAX_TOKENS_PER_STEP - 1)).collect()
        });
        drafts.collect()
    }

    fn measured(&mut self, _step: StepTime) {}

    fn not_comparable(&mut self, _time: Duration) {}
}
