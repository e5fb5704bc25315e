//! An engine from a model and the rules of sampling: on the host, or on a GPU with the fast kernels.

use std::sync::Arc;

use engine::{Engine, EngineLimits};
use model_core::{CausalLm, LoadOptions};
use sampling::{CpuSampler, SamplingRules, StopConditions};

use super::checkpoint::TokenTable;
use crate::config::plan::RowParamsMode;
use crate::exit::Failure;

/// What decides the tokens beside the model.
pub(crate) struct SamplingSetup {
    pub(crate) rules: SamplingRules,
    pub(crate) stop: StopConditions,
    pub(crate) row_params: RowParamsMode,
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
    let SamplingSetup { rules, stop, row_params } = setup;
    #[cfg(feature = "cuda")]
    if let (true, tch::Device::Cuda(device_idx)) = (options.has_rows(), options.device) {
        let sizes = engine::DeviceSizes { device_idx, max_seq_len_tokens: size.longest_sequence_tokens };
        let max_rows = Engine::device_rows(size.limits);
        let own = match row_params {
            RowParamsMode::Read => sampling::OwnRowRules::Allowed,
            RowParamsMode::Ignore => sampling::OwnRowRules::None,
        };
        let sampler = sampling::DeviceSampler::new(rules, own, max_rows, device_idx)?;
        let engine = Engine::on_device(model, sampler, stop, tokens, size.limits, sizes)?;
        let min_rows = engine.min_rows();
        if min_rows > 1 {
            tracing::info!(
                "steps of fewer than {min_rows} sequences take as long as {min_rows}: the in-house GEMM of \
                 small batches does not serve this model, precision and GPU"
            );
        }
        return Ok(engine);
    }
    tracing::debug!(
        "{options:?}, rows' own parameters {row_params:?}: sequences of up to {} tokens",
        size.longest_sequence_tokens
    );
    let sampler = CpuSampler::new(rules)?;
    Ok(Engine::new(model, Box::new(sampler), stop, tokens, size.limits)?)
}
