//! Errors of sampling.

/// What can be wrong with sampling parameters, end strings or logits.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// A parameter outside its range.
    #[error("`{key}` must be {expected}, got {actual}")]
    BadParam {
        /// The user's key.
        key: &'static str,
        /// The allowed range.
        expected: &'static str,
        /// The value given.
        actual: String,
    },
    /// A vocabulary that the sampler cannot serve.
    #[error("the vocabulary has {actual} tokens, the sampler takes 1 to {limit}")]
    BadVocabSize {
        /// The tokenizer's vocabulary size.
        actual: usize,
        /// The largest vocabulary whose probabilities still add up exactly.
        limit: usize,
    },
    /// A bias for a token that there is not.
    #[error("a bias is given for token {token}, the vocabulary has {vocab_size}")]
    BadBias {
        /// The token.
        token: u32,
        /// The tokenizer's vocabulary size.
        vocab_size: usize,
    },
    /// More end tokens than a row's own rules have room for.
    #[error("{actual} tokens would end a response of a row with rules of its own, there is room for {limit}")]
    TooManyEndTokens {
        /// How many there are.
        actual: usize,
        /// How many have room.
        limit: usize,
    },
    /// Logits whose shape does not fit the rows or the vocabulary.
    #[error("logits have shape {actual:?}, need [{num_rows}, at least {vocab_size}]")]
    BadShape {
        /// The shape given.
        actual: Vec<i64>,
        /// Number of rows to sample.
        num_rows: usize,
        /// The tokenizer's vocabulary size.
        vocab_size: usize,
    },
    /// A row of logits that no token can be chosen from.
    #[error(
        "logits of sample {sample_idx}, response {response_idx}, generated token {token_idx} hold {problem}"
    )]
    BadLogits {
        /// Position of the sample in the input file.
        sample_idx: u64,
        /// Which response of the sample.
        response_idx: u32,
        /// Which generated token, from 0.
        token_idx: u32,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// More known texts than there is room for on a GPU.
    #[error("{num_texts} texts of {num_tokens} tokens, there is room for {most_texts} of {most_tokens}")]
    TooManyTexts {
        /// Texts of the run.
        num_texts: usize,
        /// Tokens of all of them.
        num_tokens: usize,
        /// The most texts.
        most_texts: usize,
        /// The most tokens.
        most_tokens: usize,
    },
    /// Tokens are drawn on another rank, which has none or is lost: its sentence.
    #[error("{0}")]
    OtherRank(String),
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
    Torch(#[from] tch::TchError),
}
