//! The operations of a layer, as a trait: one implementation per backend.
//!
//! The forward pass (`gpt.rs`) is written once against this trait. Tensors cross it in plain row-major shapes; only
//! packed weights and the KV cache have layouts of the backend's own.

use cpu_kernels::PackedLinear;
use nemo_format::DType;
use tch::{Kind, Tensor};

use crate::attention_context::AttentionContext;
use crate::config::{Activation, ModelConfig, Normalization};
use crate::kv_cache::KvCache;
use crate::layers::rotary::Rotary;
use crate::{ModelError, Precision};

/// A stored tensor of floating-point numbers: row-major, little endian, perhaps unaligned.
#[derive(Clone, Copy)]
pub(crate) struct WeightBytes<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [u64],
}

/// A linear layer as the checkpoint holds it: weight `[out_features, in_features]`, bias `[out_features]`.
#[derive(Clone, Copy)]
pub(crate) struct LinearSource<'a> {
    pub(crate) weight: WeightBytes<'a>,
    pub(crate) bias: Option<WeightBytes<'a>>,
}

/// A linear layer ready to compute, in the layout of the backend that made it.
#[derive(Debug)]
pub(crate) enum Linear {
    /// As libtorch has it: `[out_features, in_features]` and `[out_features]`.
    Tensors { weight: Tensor, bias: Option<Tensor> },
    /// Packed for the CPU kernels.
    Packed(PackedLinear),
}

impl Linear {
    pub(crate) fn out_features(&self) -> usize {
        match self {
            Self::Tensors { weight, .. } => weight.size().first().map_or(0, |&rows| rows as usize),
            Self::Packed(packed) => packed.out_features(),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Tensors { weight, bias } => std::iter::once(weight).chain(bias).map(tensor_bytes).sum(),
            Self::Packed(packed) => packed.size_bytes() as u64,
        }
    }
}

pub(crate) fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// Which linear layer is packed: the first of a gated MLP may be laid out for its activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinearRole {
    /// Outputs in order.
    Plain,
    /// `linear_fc1`, followed by this activation.
    FirstOfMlp(Activation),
}

/// A LayerNorm or RMSNorm ready to compute.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) normalization: Normalization,
    /// float32 `[hidden_size]`, with the 1 of a zero-centred gain already added.
    pub(crate) gain: Tensor,
    /// float32 `[hidden_size]`.
    pub(crate) bias: Option<Tensor>,
    pub(crate) epsilon: f64,
}

impl Norm {
    pub(crate) fn size_bytes(&self) -> u64 {
        std::iter::once(&self.gain).chain(&self.bias).map(tensor_bytes).sum()
    }
}

/// The sizes that give the rows of a fused QKV product their meaning.
///
/// A row is `[num_query_groups, queries_per_group + 2, kv_channels]`: of each group the query heads, then its key,
/// then its value (Megatron-Core).
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    pub(crate) num_attention_heads: usize,
    pub(crate) num_query_groups: usize,
    pub(crate) kv_channels: usize,
}

/// Row numbers of an embedding table.
#[derive(Clone, Copy)]
pub(crate) enum Ids<'a> {
    /// Known to the host, checked against the table.
    Host(&'a [u32]),
    /// int32 `[num_tokens]` on the model's device, where a sampler that knows the table put them.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
    Device(&'a Tensor),
}

impl Ids<'_> {
    /// The ids on the host, for backends that compute there.
    pub(crate) fn on_host(&self, backend: &'static str) -> Result<&[u32], ModelError> {
        match self {
            Self::Host(ids) => Ok(ids),
            Self::Device(_) => {
                Err(ModelError::NoBackend { backend, reason: "the token ids are on another device" })
            }
        }
    }
}

/// What attention needs besides the rows: the same for every layer but for `layer_idx`.
pub(crate) struct AttentionStep<'a> {
    pub(crate) layer_idx: usize,
    pub(crate) heads: HeadLayout,
    pub(crate) rotary: Option<&'a Rotary>,
    pub(crate) context: &'a AttentionContext,
}

/// The operations of a layer. Activations have the backend's precision unless a shape says float32.
///
/// A row's result must not depend on the other rows of the call: that is what makes a sample's text independent of
/// the batch it was generated in.
pub(crate) trait Kernels: Send + Sync {
    /// What this backend computes in.
    fn precision(&self) -> Precision;

    /// Fewest rows whose bits are the same as in a larger step: smaller ones are filled up.
    fn min_rows(&self) -> usize {
        1
    }

    /// Brings what a step's kernels read of the host's plan to the device, once a step.
    fn prepare(&self, _tokens: &[u32], _context: &mut AttentionContext) -> Result<(), ModelError> {
        Ok(())
    }

    /// Room for steps planned on the device; see [`crate::CausalLm::reserve_decode`].
    fn reserve_rows(
        &self,
        _max_rows: usize,
        _max_blocks_per_seq: usize,
        _num_query_groups: usize,
    ) -> Result<(), ModelError> {
        Err(ModelError::NoBackend { backend: "row", reason: "these kernels run on the host's batches" })
    }

    /// Finds out up to how many rows such a step need not be filled up to [`Self::min_rows`], because these linear layers,
    /// some with an activation behind them, have the same bits with so few; 0 for none.
    fn try_few_rows(
        &self,
        _linears: &mut dyn Iterator<Item = (&Linear, Option<Activation>)>,
    ) -> Result<usize, ModelError> {
        Ok(0)
    }

    /// Plans the attention of such a step, once for all its layers.
    fn plan_rows(&self, _context: &AttentionContext, _cache: &KvCache) -> Result<(), ModelError> {
        Err(ModelError::NoBackend { backend: "row", reason: "these kernels run on the host's batches" })
    }

    /// Whether weights are best brought over one after the other, each by all threads.
    fn loads_in_order(&self) -> bool {
        false
    }

    /// A stored tensor on this backend's device, in numbers of `kind`.
    fn tensor(&self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError>;

    /// Brings a linear layer into this backend's layout.
    fn pack_linear(&self, source: LinearSource<'_>, role: LinearRole) -> Result<Linear, ModelError>;

    /// An empty KV cache in this backend's layout.
    fn new_cache(&self, num_blocks: usize, config: &ModelConfig) -> Result<KvCache, ModelError>;

    /// Rows of an embedding table, `[num_tokens, hidden_size]`.
    fn embedding(&self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError>;

    /// The same where the output layer is the embedding table too, and held once.
    fn tied_embedding(&self, ids: Ids<'_>, output: &Linear) -> Result<Tensor, ModelError>;

    /// `[num_tokens, hidden_size]`, float32 inside.
    fn norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError>;

    /// `[num_tokens, in_features]` to `[num_tokens, out_features]`.
    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError>;

    /// `residual += linear(x)`.
    fn linear_add(&self, x: &Tensor, linear: &Linear, residual: &mut Tensor) -> Result<(), ModelError>;

    /// `linear_fc1` and the nonlinearity of the MLP: `[num_tokens, hidden_size]` to `[num_tokens, ffn]`. When gated,
    /// the first half of the outputs goes through the nonlinearity and multiplies the second.
    fn linear_activate(&self, x: &Tensor, fc1: &Linear, activation: Activation)
    -> Result<Tensor, ModelError>;

    /// Rotates queries and keys, writes keys and values to the cache, attends causally: `[num_tokens, (n + 2 g) d]`
    /// to `[num_tokens, n d]`.
    fn attention(
        &self,
        qkv: &Tensor,
        step: &AttentionStep<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError>;

    /// `[num_rows, hidden_size]` to float32 `[num_rows, padded_vocab_size]`.
    fn logits(&self, hidden: &Tensor, output: &Linear) -> Result<Tensor, ModelError>;
}
