//! Everything that can be wrong with a model.

use model_spec::{Float, Numerics};

/// An error of the model: its config, its weights or its arithmetic.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A key that the model cannot be built without.
    #[error(
        "the model config has no `{key}`, which gives a weight its shape: use the whole model config of the checkpoint"
    )]
    MissingKey {
        /// The key in `model_config.yaml`.
        key: &'static str,
    },
    /// A config value outside what its key allows.
    #[error("model config key `{key}` must be {expected}, not `{actual}`")]
    BadValue {
        /// The key in `model_config.yaml`.
        key: &'static str,
        /// What is allowed.
        expected: String,
        /// The value found.
        actual: String,
    },
    /// A valid config that asks for what this model does not compute.
    #[error("model config key `{key}` is `{value}`, {feature}, which is not supported; use {needs}")]
    Unsupported {
        /// The key in `model_config.yaml`.
        key: &'static str,
        /// The value found.
        value: String,
        /// What it stands for.
        feature: &'static str,
        /// What would work.
        needs: &'static str,
    },
    /// Sequences may become longer than attention reaches back.
    #[error(
        "`model.encoder_seq_length` is {encoder_seq_length}, and attention of this model reaches back {tokens} tokens \
         (`{key}`), beyond which nothing is computed: pass `++model.encoder_seq_length={tokens}`"
    )]
    BeyondWindow {
        /// How long they may become.
        encoder_seq_length: usize,
        /// The window.
        tokens: usize,
        /// The key in `model_config.yaml` that states it.
        key: &'static str,
    },
    /// A sequence beyond what the configuration allows.
    #[error("a sequence of {num_tokens} tokens is longer than the model computes: `{key}` is {limit}")]
    SequenceTooLong {
        /// Its length.
        num_tokens: usize,
        /// The most that there may be.
        limit: usize,
        /// The key in `model_config.yaml` that says so.
        key: &'static str,
    },
    /// Number formats that no backend combines.
    #[error(
        "computing in {numerics} is not supported: the KV cache must have the format that is computed in, weights the same or fp8"
    )]
    MixedNumerics {
        /// What was asked for.
        numerics: Numerics,
    },
    /// A kernel set that was not built.
    #[error("the {backend} backend is not available: {reason}")]
    NoBackend {
        /// Its name.
        backend: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// Every attention backend is switched off or does not take the model.
    #[error(
        "no attention backend is left: NVTE_FLASH_ATTN={}, NVTE_FUSED_ATTN={} and NVTE_UNFUSED_ATTN=0, and the first \
         two do not take {compute:?} with heads of {head_dim}: unset NVTE_UNFUSED_ATTN",
        u8::from(*flash),
        u8::from(*fused)
    )]
    NoAttention {
        /// Whether flash attention is allowed.
        flash: bool,
        /// Whether the fused one is.
        fused: bool,
        /// What the model computes in.
        compute: Float,
        /// Dimensions of a head.
        head_dim: usize,
    },
    /// A tensor whose shape contradicts the config.
    #[error(
        "tensor `{name}` has shape {actual:?}, the model needs {expected:?} because of {contradicted}: \
         correct the model config, or use the one that belongs to this checkpoint"
    )]
    ShapeMismatch {
        /// The tensor.
        name: String,
        /// What the sizes that do not fit follow from.
        contradicted: String,
        /// What the config implies.
        expected: Vec<u64>,
        /// What the file holds.
        actual: Vec<u64>,
    },
    /// A tensor that the config implies and the checkpoint lacks.
    #[error(
        "the checkpoint has no tensor `{name}`; {because}: correct the model config, or use a complete checkpoint"
    )]
    MissingTensor {
        /// The tensor.
        name: String,
        /// What makes it necessary.
        because: String,
    },
    /// A weight that is not stored as floating-point numbers.
    #[error(
        "tensor `{name}` holds {actual}, the model needs floating-point numbers: use a checkpoint that is not quantised"
    )]
    NotFloat {
        /// The tensor.
        name: String,
        /// The stored element type.
        actual: &'static str,
    },
    /// Weights that the model would silently leave out.
    #[error(
        "the config does not account for {count} of the checkpoint's tensors, first {}; {because}",
        names.join(", ")
    )]
    UnknownTensors {
        /// How many there are.
        count: usize,
        /// The first few of them, in backquotes.
        names: Vec<String>,
        /// What the first of them means, and what to do.
        because: String,
    },
    /// A batch whose parts contradict each other.
    #[error("batch: {what} is {actual}, must be {expected}")]
    BadBatch {
        /// Which part.
        what: &'static str,
        /// What the rest of the batch implies.
        expected: String,
        /// What it holds.
        actual: String,
    },
    /// A token id without a row in the embedding table.
    #[error(
        "token id {token} is outside the {padded_vocab_size} rows of the embedding table: \
         use the tokenizer that belongs to the checkpoint"
    )]
    BadToken {
        /// The id.
        token: u32,
        /// Rows of the embedding table.
        padded_vocab_size: usize,
    },
    /// A block that the cache does not have.
    #[error("KV block {block} is outside the cache of {num_blocks} blocks")]
    BadBlock {
        /// The block.
        block: u32,
        /// Blocks of the cache.
        num_blocks: usize,
    },
    /// Block tables that were not made for the model.
    #[error("layer {layer} keeps keys and values for all tokens, and the KV cache has no table that does")]
    NoKvTable {
        /// The layer.
        layer: usize,
    },
    /// A block that was not swapped out, or has no place there.
    #[error(
        "KV block {block} is none of the {num_host_blocks} that the host may hold, or it holds nothing there"
    )]
    BadHostBlock {
        /// The block.
        block: u32,
        /// Blocks that the host may hold.
        num_host_blocks: usize,
    },
    /// A sequence longer than the model has positions for.
    #[error(
        "a sequence of {actual} tokens exceeds the model's {limit} learned positions: \
         lower `encoder_seq_length` or shorten the prompt"
    )]
    TooLong {
        /// Its length.
        actual: usize,
        /// Rows of the position table.
        limit: usize,
    },
    /// The device or the host has no memory left.
    #[error("out of memory")]
    OutOfMemory(#[source] tch::TchError),
    /// A tensor that ranks cannot share.
    #[error(transparent)]
    Indivisible(#[from] model_spec::Indivisible),
    /// Another rank of the model is lost.
    #[error(transparent)]
    LostRank(#[from] crate::model_ranks::LostRank),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Format(#[from] nemo_format::FormatError),
    /// A CPU kernel refused.
    #[error(transparent)]
    CpuKernel(#[from] cpu_kernels::CpuKernelError),
    /// A CUDA kernel refused.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Kernel(#[from] cuda_kernels::KernelError),
    /// The GPU refused.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] cuda_runtime::CudaError),
    /// What wraps libtorch refused.
    #[error(transparent)]
    Ext(#[from] torch_ext::ExtError),
    /// libtorch refused.
    #[error(transparent)]
    Torch(tch::TchError),
}

impl From<tch::TchError> for ModelError {
    fn from(error: tch::TchError) -> Self {
        // libtorch has no error code for it: the CUDA allocator says the first, the CPU allocator the second.
        let text = error.to_string();
        if text.contains("out of memory") || text.contains("t allocate memory") {
            Self::OutOfMemory(error)
        } else {
            Self::Torch(error)
        }
    }
}
