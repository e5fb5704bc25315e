//! An engine from a model and the rules of sampling: on the host, or on a GPU with the fast kernels.

use std::sync::Arc;

use engine::{Engine, EngineLimits};
use model_core::{CausalLm, LoadOptions};
use sampling::{CpuSampler, SamplingParams, StopConditions};

use super::checkpoint::TokenTable;
use crate::exit::Failure;

/// What decides the tokens beside the model.
pub(crate) struct SamplingSetup {
    pub(crate) params: SamplingParams,
    pub(crate) vocab_size: usize,
    pub(crate) seed: u64,
    pub(crate) min_length: u32,
    pub(crate) stop: StopConditions,
}

/// How large the engine is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineSize {
    pub(crate) limits: EngineLimits,
    /// Most tokens of one sequence, prompt and response.
    pub(crate) longest_sequence_tokens: usize,
}

/// Makes the engine that belongs to `options`, with which `model` was loaded.
pub(crate) fn open_engine(
    model: Box<dyn CausalLm>,
    options: LoadOptions,
    setup: SamplingSetup,
    tokens: Arc<TokenTable>,
    size: EngineSize,
) -> Result<Engine, Failure> {
    let SamplingSetup { params, vocab_size, seed, min_length, stop } = setup;
    let end_token_ids = stop.end_token_ids().to_vec();
    #[cfg(feature = "cuda")]
    if let (true, tch::Device::Cuda(device_idx)) = (options.has_rows(), options.device) {
        let sizes = engine::DeviceSizes { device_idx, max_seq_len_tokens: size.longest_sequence_tokens };
        let max_rows = Engine::device_rows(size.limits);
        let vocab_and_rows = (vocab_size, max_rows);
        let sampler = sampling::DeviceSampler::new(
            params,
            vocab_and_rows,
            seed,
            end_token_ids,
            min_length,
            device_idx,
        )?;
        let engine = Engine::on_device(model, sampler, stop, tokens, size.limits, sizes)?;
        let min_rows = engine.min_rows();
        if min_rows > 1 {
            tracing::info!(
                "steps of fewer than {min_rows} sequences take as long as {min_rows}: there are no products of few rows \
                 for this model, precision and GPU"
            );
        }
        return Ok(engine);
    }
    tracing::debug!("{options:?}: sequences of up to {} tokens", size.longest_sequence_tokens);
    let sampler = CpuSampler::new(params, vocab_size, seed, end_token_ids, min_length)?;
    Ok(Engine::new(model, Box::new(sampler), stop, tokens, size.limits)?)
}
