//! Texts that are known before they are computed: where the samplers of a run find them, what carries out its steps, and
//! drafts of them.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use engine::{Draftable, EngineLimits, Executor, Goal, Proposer, SeqId, StepTime, host_executor};
use model_core::{CausalLm, LoadOptions};
use sampling::{ForcedSampler, ForcedTexts, TokenSampler};

use super::open_engine::{stage_of, staged};
use crate::cluster::model_group::ModelGroup;
use crate::exit::Failure;

/// Most tokens of a response in one step: as many as the kernels of a GPU are checked with (`gpu_check`).
const MAX_TOKENS_PER_STEP: usize = 64;

/// The responses of a run, by the number of their request. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Texts {
    pub(crate) on_host: ForcedTexts,
    #[cfg(feature = "cuda")]
    pub(crate) on_device: Option<Arc<std::sync::Mutex<sampling::DeviceTexts>>>,
}

impl Texts {
    /// Puts those of the next run in place of those before.
    pub(crate) fn put(&self, texts: Vec<Vec<u32>>) -> Result<(), Failure> {
        #[cfg(feature = "cuda")]
        if let Some(on_device) = &self.on_device {
            on_device.lock().unwrap_or_else(PoisonError::into_inner).put(&texts)?;
        }
        *self.on_host.lock().unwrap_or_else(PoisonError::into_inner) = texts;
        Ok(())
    }
}

/// Room for the texts of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TextSizes {
    pub(crate) most_texts: usize,
    pub(crate) most_tokens: usize,
}

/// A loaded model, or a part of it, whose samplers draw the tokens of known texts.
pub(crate) struct KnowingModel {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) options: LoadOptions,
    pub(crate) limits: EngineLimits,
    /// Of the tokenizer, as far as the model has so many.
    pub(crate) vocab_size: usize,
    /// Most likely tokens that are given at each place.
    pub(crate) num_top: u32,
    /// Of prompt and response.
    pub(crate) longest_tokens: usize,
}

impl KnowingModel {
    /// What carries out the steps, and where its texts are put.
    pub(crate) fn executor(
        self,
        sizes: TextSizes,
        group: Option<&ModelGroup>,
    ) -> Result<(Box<dyn Executor>, Texts), Failure> {
        let Self { model, options, limits, vocab_size, num_top, longest_tokens } = self;
        #[cfg(feature = "cuda")]
        if let (true, tch::Device::Cuda(device_idx)) = (options.has_rows(), options.device) {
            let TextSizes { most_texts, most_tokens } = sizes;
            let texts = sampling::DeviceTexts::new(device_idx, vocab_size, most_texts, most_tokens)?;
            let sampler =
                sampling::DeviceSampler::forced(&texts, num_top, engine::Engine::device_rows(limits))?;
            let device = engine::DeviceSizes { device_idx, max_seq_len_tokens: longest_tokens.max(1) };
            let executor = engine::device_executor(model, sampler, limits, device)?;
            let on_device = Some(Arc::new(std::sync::Mutex::new(texts)));
            return Ok((executor, Texts { on_device, ..Texts::default() }));
        }
        tracing::debug!("{options:?}: {sizes:?}, sequences of up to {longest_tokens} tokens");
        let texts = Texts::default();
        let own = || -> Result<Box<dyn TokenSampler>, Failure> {
            Ok(Box::new(ForcedSampler::new(Arc::clone(&texts.on_host), vocab_size, num_top)?))
        };
        let sampler = staged(own, false, group)?;
        Ok((host_executor(model, sampler, limits, stage_of(group))?, texts))
    }
}

/// Drafts what is known to follow.
pub(crate) struct Known {
    texts: ForcedTexts,
    /// Tokens that each response has, by its request's number.
    num_drawn: Vec<usize>,
}

impl Known {
    pub(crate) fn new(texts: &Texts) -> Self {
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
