//! An engine from a model and the rules of sampling: on the host, or on a GPU with the fast kernels.

use std::sync::Arc;

use engine::{Engine, EngineLimits, Executor, ReceivingSampler, SendingSampler, Stage, host_executor};
use model_core::{CausalLm, LoadOptions};
use sampling::{CpuSampler, SamplingRules, StopConditions, TokenSampler, Vocabulary};

use super::checkpoint::TokenTable;
use crate::cluster::model_group::ModelGroup;
use crate::config::plan::RowParamsMode;
use crate::exit::Failure;

/// What decides the tokens beside the model.
pub(crate) struct SamplingSetup {
    pub(crate) rules: SamplingRules,
    pub(crate) stop: StopConditions,
    pub(crate) row_params: RowParamsMode,
    /// What structures are followed with, where responses may have any.
    pub(crate) vocabulary: Option<Arc<Vocabulary>>,
}

/// How large the engine is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineSize {
    pub(crate) limits: EngineLimits,
    /// Most tokens of one sequence, prompt and response.
    pub(crate) longest_sequence_tokens: usize,
}

/// What carries out the steps of a rank's part of a model, which was loaded with `options`.
pub(crate) fn open_executor(
    model: Box<dyn CausalLm>,
    options: LoadOptions,
    setup: SamplingSetup,
    size: EngineSize,
    group: &ModelGroup,
) -> Result<Box<dyn Executor>, Failure> {
    let SamplingSetup { rules, row_params, vocabulary, stop: _ } = setup;
    let with_vocabulary = |mut executor: Box<dyn Executor>| {
        vocabulary.into_iter().for_each(|vocabulary| executor.set_vocabulary(vocabulary));
        executor
    };
    #[cfg(feature = "cuda")]
    if let (true, tch::Device::Cuda(device_idx)) = (options.has_rows(), options.device) {
        let sizes = engine::DeviceSizes { device_idx, max_seq_len_tokens: size.longest_sequence_tokens };
        let own = own_row_rules(row_params);
        let sampler = sampling::DeviceSampler::new(rules, own, Engine::device_rows(size.limits), device_idx)?;
        return Ok(with_vocabulary(engine::device_executor(model, sampler, size.limits, sizes)?));
    }
    tracing::debug!("{options:?}, rows' own parameters {row_params:?}: a part of the model");
    let is_greedy = rules.row.params.use_greedy;
    let own = || -> Result<Box<dyn TokenSampler>, Failure> { Ok(Box::new(CpuSampler::new(rules)?)) };
    let sampler = staged(own, is_greedy, Some(group))?;
    Ok(with_vocabulary(host_executor(model, sampler, size.limits, stage_of(Some(group)))?))
}

/// The sampler of a rank of the host: its own where it has the logits, and otherwise one that is told the tokens.
pub(crate) fn staged(
    own: impl FnOnce() -> Result<Box<dyn TokenSampler>, Failure>,
    is_greedy: bool,
    group: Option<&ModelGroup>,
) -> Result<Box<dyn TokenSampler>, Failure> {
    Ok(match group.filter(|group| group.num_stages() > 1) {
        None => own()?,
        Some(group) if group.is_in_last_stage() => {
            Box::new(SendingSampler { own: own()?, path: Box::new(group.clone()) })
        }
        Some(group) => Box::new(ReceivingSampler { path: Box::new(group.clone()), is_greedy }),
    })
}

/// Which pipeline stage a rank is.
pub(crate) fn stage_of(group: Option<&ModelGroup>) -> Stage {
    match group {
        Some(group) => Stage { num_stages: group.num_stages(), is_last: group.is_in_last_stage() },
        None => Stage { num_stages: 1, is_last: true },
    }
}

#[cfg(feature = "cuda")]
fn own_row_rules(row_params: RowParamsMode) -> sampling::OwnRowRules {
    match row_params {
        RowParamsMode::Read => sampling::OwnRowRules::Allowed,
        RowParamsMode::Ignore => sampling::OwnRowRules::None,
    }
}

/// Makes the engine that belongs to `options`, with which `model` was loaded.
pub(crate) fn open_engine(
    model: Box<dyn CausalLm>,
    options: LoadOptions,
    setup: SamplingSetup,
    tokens: Arc<TokenTable>,
    size: EngineSize,
) -> Result<Engine, Failure> {
    let SamplingSetup { rules, stop, row_params, vocabulary } = setup;
    let with_structures = |engine: Engine| match vocabulary {
        Some(vocabulary) => engine.with_structures(vocabulary),
        None => engine,
    };
    #[cfg(feature = "cuda")]
    if let (true, tch::Device::Cuda(device_idx)) = (options.has_rows(), options.device) {
        let sizes = engine::DeviceSizes { device_idx, max_seq_len_tokens: size.longest_sequence_tokens };
        let max_rows = Engine::device_rows(size.limits);
        let sampler = sampling::DeviceSampler::new(rules, own_row_rules(row_params), max_rows, device_idx)?;
        let engine = Engine::on_device(model, sampler, stop, tokens, size.limits, sizes)?;
        let min_rows = engine.min_rows();
        if min_rows > 1 {
            tracing::info!(
                "steps of fewer than {min_rows} sequences take as long as {min_rows}: the in-house GEMM of \
                 small batches does not serve this model, precision and GPU"
            );
        }
        return Ok(with_structures(engine));
    }
    tracing::debug!(
        "{options:?}, rows' own parameters {row_params:?}: sequences of up to {} tokens",
        size.longest_sequence_tokens
    );
    let sampler = CpuSampler::new(rules)?;
    Ok(with_structures(Engine::new(model, Box::new(sampler), stop, tokens, size.limits)?))
}
