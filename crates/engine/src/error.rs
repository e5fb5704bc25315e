//! Errors of the engine.

/// What can go wrong between a request and its completions.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A limit that nothing could run under.
    #[error("`{limit}` must be {expected}, got {actual}")]
    BadLimit {
        /// The field of [`crate::EngineLimits`].
        limit: &'static str,
        /// The allowed range.
        expected: String,
        /// The value given.
        actual: usize,
    },
    /// A request without prompt tokens: there is nothing to predict from.
    #[error("sample {sample_idx} has an empty prompt")]
    EmptyPrompt {
        /// Position of the sample in the input file.
        sample_idx: u64,
    },
    /// A request that the KV cache could not hold even alone.
    #[error(
        "sample {sample_idx} needs {needed_blocks} KV blocks of {block_size_tokens} tokens ({prompt_tokens} prompt and \
         up to {max_new_tokens} new tokens), the cache has {num_blocks}"
    )]
    RequestTooLarge {
        /// Position of the sample in the input file.
        sample_idx: u64,
        /// Length of its prompt.
        prompt_tokens: usize,
        /// Its budget of new tokens.
        max_new_tokens: u32,
        /// Blocks that one of its responses needs at the least.
        needed_blocks: usize,
        /// Blocks in the cache.
        num_blocks: usize,
        /// Tokens in a block.
        block_size_tokens: usize,
    },
    /// A step that speaks of a sequence the engine does not hold: a fault in the engine itself.
    #[error("no sequence for response {response_idx} of request {group_idx}")]
    UnknownSequence {
        /// The request, counted from the start of the run.
        group_idx: u64,
        /// Which response.
        response_idx: u32,
    },
    /// A step that this executor does not compute.
    #[error("the {executor} executor does not compute {what}")]
    UnsupportedStep {
        /// Which executor.
        executor: &'static str,
        /// What the step has.
        what: &'static str,
    },
    /// An answer that does not fit its step: a fault in an executor.
    #[error("an executor gave {actual} tokens for row {row} of a step, which draws {draws}")]
    BadOutput {
        /// Which row.
        row: usize,
        /// Tokens it may have.
        draws: u32,
        /// Tokens it got.
        actual: usize,
    },
    /// A step that the tables of a GPU have no room for.
    #[error("the GPU's tables hold {limit} {what}, not {actual}")]
    TablesTooSmall {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        actual: usize,
        /// What was reserved.
        limit: usize,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] model_core::ModelError),
    /// The sampler failed.
    #[error(transparent)]
    Sampling(#[from] sampling::SamplingError),
    /// The GPU refused.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] cuda_runtime::CudaError),
    /// What wraps libtorch refused.
    #[error(transparent)]
    Ext(#[from] torch_ext::ExtError),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
