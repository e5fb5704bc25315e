//! The operations of a layer, as traits that each backend implements for types of its own.
//!
//! A backend is its [`StepState`]: the one owner of what its steps share, passed `&mut` through the forward pass
//! (`gpt.rs`), which is written once for all of them. The linear layers and the attention that a backend's
//! [`Loader`] makes have types of that backend, so a layout never meets another backend's kernels. Tensors cross
//! these traits in plain row-major shapes and have the backend's compute type unless a shape says float32.

mod experts;
mod hidden;
mod moe;
mod rows;

use model_spec::{
    Activation, AttentionSpec, HeadLayout, KvGroup, MoeSpec, Normalization, Numerics, WeightFormat,
};
use tch::{Kind, Tensor};

pub use self::experts::RECEIVED_EXPERT_BYTES;
pub(crate) use self::experts::{Expert, Experts, Owners};
pub(crate) use self::hidden::Hidden;
pub(crate) use self::moe::{Moe, Router, SharedExpert};
#[cfg_attr(
    not(feature = "cuda"),
    cfg_attr(not(test), expect(unused_imports, reason = "only a GPU's loader asks"))
)]
pub(crate) use self::moe::{SharedExperts, refuse_experts_on_gpu};
pub(crate) use self::rows::Rows;
use crate::ModelError;
use crate::attention_context::AttentionContext;
use crate::columns::columns;
use crate::fp8::Fp8Bytes;
use crate::ids::Ids;
use crate::kinds::{StoredFloat, TensorFormat};
use crate::kv_cache::{KvCache, KvPool};
use crate::model_ranks::RankCheck;
use crate::parallel::{HostRanks, SharedTable, tree_sum};
use crate::routing::Routing;

/// A stored tensor of floating-point numbers: row-major, little endian, perhaps unaligned.
#[derive(Clone, Copy)]
pub(crate) struct WeightBytes<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) dtype: StoredFloat,
    pub(crate) shape: &'a [u64],
}

/// The weight of a linear layer as it was read.
#[derive(Clone, Copy)]
pub(crate) enum StoredLinearWeight<'a> {
    /// Numbers, to be brought into the format that the layer is held in.
    Float(WeightBytes<'a>),
    /// For a layer that is held in FP8 ([`LinearRole::is_fp8`]) alone.
    Fp8(Fp8Bytes<'a>),
}

/// A linear layer as it was read: weight `[out_features, in_features]`, bias `[out_features]`.
#[derive(Clone, Copy)]
pub(crate) struct LinearSource<'a> {
    pub(crate) weight: StoredLinearWeight<'a>,
    pub(crate) bias: Option<WeightBytes<'a>>,
}

/// What a linear layer is for, which its layout may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinearRole {
    /// Outputs in order.
    Plain,
    /// The output layer, which is never quantized.
    Output,
    /// A router or a gate: weights and inputs are float32, and it is run with [`Epilogue::Float32`] and nothing else.
    Float32,
    /// `linear_fc1`, run with [`Epilogue::Activate`] of this activation and nothing else.
    FirstOfMlp(Activation),
}

impl LinearRole {
    /// Whether the weight of a layer for this is held in FP8.
    pub(crate) fn is_fp8(self, numerics: Numerics) -> bool {
        numerics.weights == WeightFormat::Fp8 && !matches!(self, Self::Output | Self::Float32)
    }

    /// What the weight of a layer for this is held in where it is not held in FP8.
    pub(crate) fn kind(self, numerics: Numerics) -> Kind {
        match self {
            Self::Float32 => Kind::Float,
            _ => numerics.plain_weights().kind(),
        }
    }
}

/// What follows a linear layer's product `y = x W^T + b`, `[num_tokens, out_features]`, and what the call returns.
///
/// The residual is apart from the product: a layer whose inputs are shared by ranks runs with [`Epilogue::Float32`], and
/// [`StepState::add_pieces`] adds what all ranks have.
#[derive(Debug)]
pub(crate) enum Epilogue {
    /// `y`.
    Store,
    /// This residual stream, `[num_tokens, out_features]`, with `y` added in place.
    AddTo(Tensor),
    /// `[num_tokens, ffn]`: the nonlinearity of `y`. When gated, the first half of the outputs goes through it and
    /// multiplies the second.
    Activate(Activation),
    /// `y` in float32: logits, or a partial sum.
    Float32,
}

/// A linear layer in the layout of the backend with state `S`.
pub(crate) trait LinearOp<S>: Send {
    /// The product of `x`, `[num_tokens, in_features]`, and its epilogue. A row's result depends on that row alone.
    fn run(&self, x: &Tensor, epilogue: Epilogue, at: &mut S) -> Result<Tensor, ModelError>;

    /// Rows of the weight, `[num_tokens, in_features]`: for an output layer that is the embedding table too.
    fn embedding(&self, ids: Ids<'_>, at: &mut S) -> Result<Tensor, ModelError>;

    /// Memory that weight and bias take.
    fn size_bytes(&self) -> u64;
}

/// A linear layer whose inputs are summed in pieces, as far as this rank has them.
pub(crate) struct PiecedLinear<L> {
    /// Linear layers without a bias: one for each piece, in order, or one for all where the backend cuts its sums itself.
    pub(crate) parts: Vec<L>,
    /// A power of two of equally wide ones.
    pub(crate) num_pieces: usize,
    /// float32 `[hidden_size]`.
    pub(crate) bias: Option<Tensor>,
    /// Its outputs.
    pub(crate) hidden_size: i64,
}

impl<L> PiecedLinear<L> {
    /// float32 `[num_tokens, hidden_size]`: what this rank's pieces, each a linear layer, add up to.
    pub(crate) fn own_sum<S: StepState<Linear = L>>(
        &self,
        x: &Tensor,
        at: &mut S,
    ) -> Result<Tensor, ModelError>
    where
        L: LinearOp<S>,
    {
        let width = x.size2()?.1 / self.parts.len().max(1) as i64;
        let mut sums = Vec::with_capacity(self.parts.len());
        for (part, start) in self.parts.iter().zip((0..).step_by(width.max(1) as usize)) {
            let inputs = x.f_narrow(1, start, width)?.f_contiguous()?;
            sums.push(part.run(&inputs, Epilogue::Float32, at)?);
        }
        tree_sum(sums)
    }
}

/// That a backend has no attention with scores that belong to no key.
pub(crate) fn no_sinks() -> ModelError {
    ModelError::Unsupported {
        key: "softmax_type",
        value: "learnable".to_owned(),
        feature: "attention with sinks on a GPU with the fast engine",
        needs: "the plain backend (`trt_llm.enable: false`), or a CPU",
    }
}

/// The attention of one layer on the backend with state `S`.
pub(crate) trait AttentionOp<S>: Send {
    /// Rotates queries and keys, writes keys and values to the layer's part of the cache, attends causally:
    /// `[num_tokens, (n + 2 g) d]`, of each group its queries, key and value, to `[num_tokens, n d]`. The step must
    /// have been planned ([`StepState::plan`]). A row's result depends on that row and its context alone.
    fn run(
        &self,
        qkv: &Tensor,
        step: &AttentionContext,
        cache: &mut KvCache,
        at: &mut S,
    ) -> Result<Tensor, ModelError>;

    /// Takes the scores that belong to no key, float32 `[num_attention_heads]` of this rank. Only for layers whose spec has
    /// them.
    ///
    /// # Errors
    /// When the backend does not compute them.
    fn set_sinks(&mut self, _sinks: Tensor) -> Result<(), ModelError> {
        Err(no_sinks())
    }

    /// Memory that what it holds takes.
    fn size_bytes(&self) -> u64 {
        0
    }

    /// At multiples of how many tokens a prompt may be cut, so that every row has the bits that it has in the whole;
    /// None when it may not be cut.
    fn prompt_cut_tokens(&self, at: &S) -> Option<usize>;
}

/// A LayerNorm or RMSNorm ready to compute.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) normalization: Normalization,
    /// float32 `[width]`, with the 1 of a zero-centred gain already added. The width is that of the residual stream or
    /// of a head.
    pub(crate) gain: Tensor,
    /// float32 `[width]`.
    pub(crate) bias: Option<Tensor>,
    pub(crate) epsilon: f64,
}

impl Norm {
    pub(crate) fn size_bytes(&self) -> u64 {
        std::iter::once(&self.gain).chain(&self.bias).map(tensor_bytes).sum()
    }
}

/// The norms of query and key heads.
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) query: Norm,
    pub(crate) key: Norm,
    pub(crate) over: NormsOver,
}

/// What norms of heads are over, and whose their gains are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormsOver {
    /// The dimensions of a head, with the same gains for all.
    AnyHead,
    /// The dimensions of a head, with gains of its own: `[heads, channels]`.
    EachHead,
    /// All query heads together, and all key heads together.
    AllHeads,
}

impl NormsOver {
    pub(crate) fn of(spec: &AttentionSpec) -> Self {
        match (spec.norm_across_heads, spec.norm_per_head) {
            (true, _) => Self::AllHeads,
            (false, true) => Self::EachHead,
            (false, false) => Self::AnyHead,
        }
    }
}

pub(crate) fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// Decode steps that are planned on the device ([`crate::CausalLm::decode_on_device`]); only a backend there has them.
pub(crate) const NO_DEVICE_DECODE: ModelError =
    ModelError::NoBackend { backend: "row", reason: "these kernels run on the host's batches" };

/// A linear layer and how it is run.
pub(crate) struct TrialLinear<'a, L> {
    pub(crate) linear: &'a L,
    /// What follows it, if anything does.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU tries them"))]
    pub(crate) activation: Option<Activation>,
    /// Pieces of its inputs that are summed apart: 1 for a chain.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU tries them"))]
    pub(crate) num_pieces: usize,
}

impl<'a, L> TrialLinear<'a, L> {
    /// With sums in one chain.
    pub(crate) fn of(linear: &'a L, activation: Option<Activation>) -> Self {
        Self { linear, activation, num_pieces: 1 }
    }
}

/// A backend: what its steps share (threads, scratch memory, tables, plans), and the operations that need nothing
/// else. One step runs at a time.
pub(crate) trait StepState: Send + Sized {
    /// Its linear layers.
    type Linear: LinearOp<Self>;
    /// Its attention.
    type Attention: AttentionOp<Self>;
    /// What it needs of a layer's experts beside their linear layers.
    type Experts: Send;

    /// What this backend computes in, and what it holds weights and cache in.
    fn numerics(&self) -> Numerics;

    /// Fewest rows from which on a row's result is bitwise identical in every batch; smaller ones are padded.
    fn min_rows(&self) -> usize {
        1
    }

    /// Whether the rows of one sequence in a step have the bits of steps of one row.
    fn verifies_drafts(&self) -> bool {
        false
    }

    /// Makes ready for steps with this cache, whose tables they have.
    fn serve(&mut self, _cache: &KvCache) -> Result<(), ModelError> {
        Ok(())
    }

    /// An empty KV cache for the layers of a group, in this backend's layout.
    fn new_pool(&mut self, group: &KvGroup, num_blocks: usize) -> Result<KvPool, ModelError>;

    /// Plans a step for all layers, once and before the first of them: grows the tables that its positions need and
    /// brings to the device what kernels read there.
    fn plan(
        &mut self,
        tokens: &[u32],
        step: &mut AttentionContext,
        cache: &KvCache,
    ) -> Result<(), ModelError>;

    /// Rows of an embedding table, `[num_tokens, hidden_size]`.
    fn embedding(&mut self, ids: Ids<'_>, table: &Tensor) -> Result<Tensor, ModelError>;

    /// `[num_tokens, hidden_size]`, float32 inside.
    fn norm(&mut self, x: &Tensor, norm: &Norm) -> Result<Tensor, ModelError>;

    /// The same for linear layers of attention and MLP to read.
    fn norm_rows(&mut self, x: &Tensor, norm: &Norm) -> Result<Rows, ModelError> {
        Ok(Rows::Plain(self.norm(x, norm)?))
    }

    /// What a linear layer makes of rows, as [`LinearOp::run`].
    fn run_rows(
        &mut self,
        linear: &Self::Linear,
        x: &Rows,
        epilogue: Epilogue,
    ) -> Result<Tensor, ModelError> {
        linear.run(x.plain()?, epilogue, self)
    }

    /// Normalises every query and key head of `qkv`, `[num_tokens, (n + 2 g) d]`, in place, and leaves the values alone, with
    /// the same gains for all heads or with those of each.
    /// Rounded to the compute type behind the norm, as in the originals; rotation follows.
    fn norm_heads(
        &mut self,
        qkv: &mut Tensor,
        heads: HeadLayout,
        norms: &HeadNorms,
    ) -> Result<(), ModelError>;

    /// The other ranks of the model.
    fn ranks(&mut self) -> &mut HostRanks;

    /// `residual + (the sums of all pieces of all tensor-parallel ranks, added in a tree, + bias)`, rounded once; and, where
    /// that is no work of its own, what the norm `next` makes of it.
    fn add_pieces(
        &mut self,
        layer: &PiecedLinear<Self::Linear>,
        x: &Tensor,
        residual: Tensor,
        _next: Option<&Norm>,
    ) -> Result<Hidden, ModelError> {
        let sum = layer.own_sum(x, self)?;
        Ok(Hidden::of(self.ranks().reduce_add(&residual, sum, layer.bias.as_ref())?))
    }

    /// `residual += moe(x)`, rounded once.
    fn add_experts(&mut self, moe: &Moe<Self>, residual: Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        moe.add_by_host(&residual, x, self)
    }

    /// float32 `[num_tokens, hidden_size]`: of each row of `x` the weighted outputs of its experts, added in their order; a
    /// rank's part where ranks share the experts' widths, and the whole where they share experts by their numbers. A row's result depends on that row alone.
    fn run_experts(
        &mut self,
        experts: &Experts<Self::Linear>,
        x: &Tensor,
        routing: &Routing,
    ) -> Result<Tensor, ModelError> {
        experts.run_one_by_one(x, routing, self)
    }

    /// float32 `[num_rows, columns of this rank]` to the columns of all tensor-parallel ranks side by side; they share them
    /// as they share the rows of `table`.
    fn gather_columns(&mut self, mine: Tensor, _table: &SharedTable) -> Result<Tensor, ModelError> {
        self.ranks().gather_columns(mine)
    }

    /// Rows of a table that tensor-parallel ranks share; `lookup` gives rows of this rank's part.
    fn shared_embedding(
        &mut self,
        ids: Ids<'_>,
        table: &SharedTable,
        lookup: &mut dyn FnMut(Ids<'_>, &mut Self) -> Result<Tensor, ModelError>,
    ) -> Result<Tensor, ModelError> {
        let ids = ids.on_host("tensor-parallel")?;
        let mine = lookup(Ids::Host(&table.local(ids)), self)?;
        self.ranks().select_owned(&mine, ids, table)
    }

    /// What tells whether the other ranks came to all that was enqueued so far.
    fn rank_check(&self) -> RankCheck {
        Box::new(|| Ok(()))
    }

    /// Hands the residual stream of a step, `[num_tokens, hidden_size]`, to the next pipeline stage.
    fn send_residual(&mut self, residual: &Tensor, _step: &AttentionContext) -> Result<(), ModelError> {
        self.ranks().send_residual(residual)
    }

    /// The residual stream of a step from the previous stage.
    fn receive_residual(&mut self, shape: [i64; 2], _step: &AttentionContext) -> Result<Tensor, ModelError> {
        let kind = self.numerics().compute.kind();
        self.ranks().receive_residual(shape, kind)
    }

    /// [`crate::CausalLm::begin_decode`].
    fn begin_decode(&mut self, _num_rows: usize) -> Result<(), ModelError> {
        Err(NO_DEVICE_DECODE)
    }

    /// [`crate::CausalLm::end_decode`].
    fn end_decode(&mut self, _num_rows: usize) -> Result<(), ModelError> {
        Err(NO_DEVICE_DECODE)
    }

    /// [`crate::CausalLm::detours`].
    fn detours(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Allocates for decode steps that are planned on the device, of up to `max_rows` rows of `max_blocks_per_seq`
    /// blocks each.
    fn reserve_decode(&mut self, _max_rows: usize, _max_blocks_per_seq: usize) -> Result<(), ModelError> {
        Err(NO_DEVICE_DECODE)
    }

    /// The largest small batch: one that need not be padded to [`Self::min_rows`], because all these linear layers
    /// give bitwise identical results for it; 0 for none.
    fn find_small_batch<'a>(
        &mut self,
        _linears: impl Iterator<Item = TrialLinear<'a, Self::Linear>>,
    ) -> Result<usize, ModelError>
    where
        Self::Linear: 'a,
    {
        Ok(0)
    }
}

/// The factor of attention scores in the precision that the kernels take. The usual one is computed in it, not rounded
/// to it, which can differ in the last bit.
pub(crate) fn scale_f32(spec: &AttentionSpec) -> f32 {
    if spec.scale == spec.heads.default_scale() {
        1.0 / (spec.heads.kv_channels as f32).sqrt()
    } else {
        spec.scale as f32
    }
}

/// Makes the parts of a model for a backend from stored weights; lives while a model is loaded.
pub(crate) trait Loader: Sized {
    /// The backend.
    type State: StepState;

    /// What the backend computes in, and what it holds weights and cache in.
    fn numerics(&self) -> Numerics;

    /// A stored tensor on the backend's device, in numbers of `kind`.
    fn tensor(&mut self, source: WeightBytes<'_>, kind: Kind) -> Result<Tensor, ModelError>;

    /// Brings a linear layer into the backend's layout.
    fn linear(
        &mut self,
        source: LinearSource<'_>,
        role: LinearRole,
    ) -> Result<<Self::State as StepState>::Linear, ModelError>;

    /// The linear layers that a [`PiecedLinear`] of so many pieces consists of. A bias of `source` is that of the first
    /// piece, and its weight is FP8 where it is held so: a scale is that of a whole output, of which a piece has a part.
    fn pieces(
        &mut self,
        source: LinearSource<'_>,
        num_pieces: usize,
    ) -> Result<Vec<<Self::State as StepState>::Linear>, ModelError> {
        split_pieces(self, source, num_pieces)
    }

    /// The attention of a layer.
    ///
    /// # Errors
    /// When the backend does not compute what it asks for.
    fn attention(
        &mut self,
        layer_idx: usize,
        spec: &AttentionSpec,
    ) -> Result<<Self::State as StepState>::Attention, ModelError>;

    /// Asked before the weights of a layer with experts are read.
    ///
    /// # Errors
    /// When the backend computes none.
    fn check_experts(&self, _spec: &MoeSpec, _hidden_size: usize) -> Result<(), ModelError> {
        Ok(())
    }

    /// Called when the weights of a layer with experts are there.
    fn group(
        &mut self,
        router: &Router<Self::State>,
        experts: &Experts<<Self::State as StepState>::Linear>,
        shared: Option<&SharedExpert<Self::State>>,
    ) -> Result<<Self::State as StepState>::Experts, ModelError>;

    /// The backend, when all weights are there.
    fn finish(self) -> Result<Self::State, ModelError>;
}

/// A linear layer for each piece of the inputs.
pub(crate) fn split_pieces<L: Loader>(
    loader: &mut L,
    source: LinearSource<'_>,
    num_pieces: usize,
) -> Result<Vec<<L::State as StepState>::Linear>, ModelError> {
    let (bytes, shape, elem_bytes) = match source.weight {
        StoredLinearWeight::Float(weight) => {
            (weight.bytes, weight.shape, weight.dtype.kind().elt_size_in_bytes())
        }
        StoredLinearWeight::Fp8(weight) => (weight.numbers, weight.shape, 1),
    };
    let &[num_rows, num_columns] = shape else { return Ok(Vec::new()) };
    let width = num_columns / num_pieces.max(1) as u64;
    let shape = [num_rows, width];
    let piece = |idx: u64| {
        let start = (idx * width) as usize * elem_bytes;
        let across = start..start + width as usize * elem_bytes;
        let bytes = &columns(bytes, num_columns as usize * elem_bytes, across);
        let weight = match source.weight {
            StoredLinearWeight::Float(weight) => {
                StoredLinearWeight::Float(WeightBytes { bytes, shape: &shape, ..weight })
            }
            StoredLinearWeight::Fp8(weight) => {
                StoredLinearWeight::Fp8(Fp8Bytes { numbers: bytes, shape: &shape, ..weight })
            }
        };
        let bias = source.bias.filter(|_| idx == 0);
        loader.linear(LinearSource { weight, bias }, LinearRole::Plain)
    };
    (0..num_pieces as u64).map(piece).collect()
}
