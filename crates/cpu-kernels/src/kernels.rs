//! The kernels as functions of tensors, with every shape, type and index checked.

use half::bf16;
use model_spec::{HeadLayout, Nonlinearity};
use tch::{Device, Kind, Tensor};
use torch_ext::{BadTensor, view};

use super::attention::{AttentionCall, HeadShape, PagedSequence, RotaryTable, attention};
use super::buffer::{Arena, SharedPtr};
use super::elem::Elem;
use super::isa::Isa;
use super::kv::{BLOCK_TOKENS, Kv, KvBf16, KvF32, KvShape, MAX_HEAD_DIM, PackedKv};
use super::linear::{LinearCall, Store, linear};
use super::norm::{NormParams, norm, norm_heads};
use super::packed::{Layout, Packed, PackedBf16, PackedF32, PackedLinear, StoredLinear};
use super::pool::Pool;
use super::tile::Tiles;
use crate::CpuKernelError;

/// One attention layer of a step.
#[derive(Clone, Copy, Debug)]
pub struct AttentionStep<'a> {
    /// The layer's heads.
    pub heads: HeadShape,
    /// Positions.
    pub rotary: RotaryTable<'a>,
    /// The new tokens of each sequence, covering all tokens of the step in order.
    pub sequences: &'a [PagedSequence<'a>],
    /// Which layer of the cache.
    pub layer_idx: usize,
    /// A score for each query head that belongs to no key, where the layer has them: they count in the sum that
    /// probabilities are divided by.
    pub sinks: Option<&'a [f32]>,
}

/// The kernels, the threads they run on and the instruction set they were chosen for.
pub struct CpuKernels {
    isa: Isa,
    pool: Pool,
    arena: Arena,
    tiles_f32: Tiles<f32>,
    tiles_bf16: Tiles<bf16>,
    queries_f32: Vec<f32>,
    queries_bf16: Vec<bf16>,
    words: Vec<u32>,
}

impl std::fmt::Debug for CpuKernels {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CpuKernels")
            .field("isa", &self.isa)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

fn bad(what: &'static str, expected: impl Into<String>, actual: impl std::fmt::Display) -> CpuKernelError {
    CpuKernelError::BadTensor(BadTensor { what, expected: expected.into(), actual: actual.to_string() })
}

/// That there are no kernels that compute in `kind`.
pub(crate) fn no_kind(kind: Kind) -> CpuKernelError {
    bad("compute type", "float32 or bfloat16", format_args!("{kind:?}"))
}

/// Rows of a `[num_rows, num_columns]` tensor.
fn num_rows(tensor: &Tensor, what: &'static str, num_columns: usize) -> Result<usize, CpuKernelError> {
    match tensor.size()[..] {
        [rows, columns] if columns == num_columns as i64 => Ok(rows as usize),
        _ => {
            Err(bad(what, format!("of shape [num_rows, {num_columns}]"), format_args!("{:?}", tensor.size())))
        }
    }
}

fn new_rows(num_rows: usize, num_columns: usize, kind: Kind) -> Result<Tensor, CpuKernelError> {
    Ok(Tensor::f_empty([num_rows as i64, num_columns as i64], (kind, Device::Cpu))?)
}

/// Both element types take the same way from a tensor to a kernel.
macro_rules! for_kind {
    ($kind:expr, $what:expr, $elem:ident, $body:block) => {
        match $kind {
            Kind::Float => {
                type $elem = f32;
                $body
            }
            Kind::BFloat16 => {
                type $elem = bf16;
                $body
            }
            other => Err(bad($what, "float32 or bfloat16", format_args!("{other:?}"))),
        }
    };
}

/// The parts of [`CpuKernels`] and of its arguments that exist once for each element type.
trait TypedElem: Elem {
    const KIND: Kind;
    fn tiles(kernels: &CpuKernels) -> &Tiles<Self>;
    fn queries(kernels: &mut CpuKernels) -> &mut Vec<Self>;
    fn packed(linear: &PackedLinear) -> Option<&Packed<Self>>;
    fn kv(cache: &mut PackedKv) -> Option<&mut Kv<Self>>;
    fn slice<'a>(tensor: &'a Tensor, what: &'static str) -> Result<&'a [Self], CpuKernelError>;
    fn slice_mut<'a>(tensor: &'a mut Tensor, what: &'static str) -> Result<&'a mut [Self], CpuKernelError>;
}

macro_rules! typed_elem {
    ($elem:ty, $kind:ident, $tiles:ident, $queries:ident, $variant:ident, $slice:ident, $slice_mut:ident) => {
        impl TypedElem for $elem {
            const KIND: Kind = Kind::$kind;
            fn tiles(kernels: &CpuKernels) -> &Tiles<Self> {
                &kernels.$tiles
            }
            fn queries(kernels: &mut CpuKernels) -> &mut Vec<Self> {
                &mut kernels.$queries
            }
            fn packed(linear: &PackedLinear) -> Option<&Packed<Self>> {
                if let PackedLinear::$variant(packed) = linear { Some(&packed.0) } else { None }
            }
            fn kv(cache: &mut PackedKv) -> Option<&mut Kv<Self>> {
                if let PackedKv::$variant(kv) = cache { Some(&mut kv.0) } else { None }
            }
            fn slice<'a>(tensor: &'a Tensor, what: &'static str) -> Result<&'a [Self], CpuKernelError> {
                Ok(view::$slice(tensor, what)?)
            }
            fn slice_mut<'a>(
                tensor: &'a mut Tensor,
                what: &'static str,
            ) -> Result<&'a mut [Self], CpuKernelError> {
                Ok(view::$slice_mut(tensor, what)?)
            }
        }
    };
}
typed_elem!(f32, Float, tiles_f32, queries_f32, F32, f32_slice, f32_slice_mut);
typed_elem!(bf16, BFloat16, tiles_bf16, queries_bf16, Bf16, bf16_slice, bf16_slice_mut);

impl CpuKernels {
    /// Kernels on `num_threads` threads, for the best instruction set of this machine.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(num_threads: usize) -> Result<Self, CpuKernelError> {
        Self::with_isa(num_threads, Isa::detect())
    }

    /// The same for a lesser instruction set.
    ///
    /// # Errors
    /// When the machine lacks it, or the system starts no more threads.
    pub fn with_isa(num_threads: usize, isa: Isa) -> Result<Self, CpuKernelError> {
        isa.check()?;
        let pool = Pool::new(num_threads).map_err(CpuKernelError::Threads)?;
        Ok(Self {
            isa,
            pool,
            arena: Arena::default(),
            tiles_f32: Tiles::<f32>::for_isa(isa),
            tiles_bf16: Tiles::<bf16>::for_isa(isa),
            queries_f32: Vec::new(),
            queries_bf16: Vec::new(),
            words: Vec::new(),
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use.
    pub fn num_threads(&self) -> usize {
        self.pool.num_threads()
    }

    /// Lays a linear layer out for computing in `kind` (float32 or bfloat16).
    ///
    /// # Errors
    /// When the bytes do not fit the shape, or `kind` is another.
    pub fn pack(
        &mut self,
        stored: &StoredLinear<'_>,
        layout: Layout,
        kind: Kind,
    ) -> Result<PackedLinear, CpuKernelError> {
        match kind {
            Kind::Float => Packed::pack(&mut self.pool, &mut self.arena, stored, layout)
                .map(|packed| PackedLinear::F32(PackedF32(packed))),
            Kind::BFloat16 => Packed::pack(&mut self.pool, &mut self.arena, stored, layout)
                .map(|packed| PackedLinear::Bf16(PackedBf16(packed))),
            other => Err(no_kind(other)),
        }
    }

    /// An empty cache for computing in `kind` (float32 or bfloat16).
    ///
    /// # Errors
    /// When `kind` is another, or the heads are larger than the attention kernel takes.
    pub fn new_kv(&mut self, shape: KvShape, kind: Kind) -> Result<PackedKv, CpuKernelError> {
        if shape.head_dim > MAX_HEAD_DIM || shape.head_dim == 0 {
            return Err(bad("head size", format!("from 1 to {MAX_HEAD_DIM}"), shape.head_dim));
        }
        match kind {
            Kind::Float => Kv::zeroed(&mut self.arena, shape).map(|kv| PackedKv::F32(KvF32(kv))),
            Kind::BFloat16 => Kv::zeroed(&mut self.arena, shape).map(|kv| PackedKv::Bf16(KvBf16(kv))),
            other => Err(bad("cache type", "float32 or bfloat16", format_args!("{other:?}"))),
        }
    }

    fn run_linear<E: TypedElem>(
        &mut self,
        x: &Tensor,
        weight: &PackedLinear,
        num_rows: usize,
        store: Store<E>,
    ) -> Result<(), CpuKernelError> {
        let packed = E::packed(weight)
            .ok_or_else(|| bad("linear weight", format!("{:?}", E::KIND), format_args!("{weight:?}")))?;
        // The tiles are tables of functions; they are taken out by value so that the pool can be borrowed.
        let tiles = *E::tiles(self);
        let call = LinearCall { x: E::slice(x, "x")?, num_rows, packed, store, words: &mut self.words };
        linear(&mut self.pool, self.isa, &tiles, call);
        Ok(())
    }

    /// `x W^T + b`. `x`: `[num_rows, in_features]` in the weights' type; returns `[num_rows, out_features]` in it.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn linear(&mut self, x: &Tensor, weight: &PackedLinear) -> Result<Tensor, CpuKernelError> {
        let rows = num_rows(x, "x", weight.in_features())?;
        for_kind!(x.kind(), "x", E, {
            let mut out = new_rows(rows, weight.out_features(), E::KIND)?;
            let store = Store::Assign(SharedPtr::new(E::slice_mut(&mut out, "out")?.as_mut_ptr()));
            self.run_linear::<E>(x, weight, rows, store)?;
            Ok(out)
        })
    }

    /// The same, kept in float32: for logits.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn linear_f32(&mut self, x: &Tensor, weight: &PackedLinear) -> Result<Tensor, CpuKernelError> {
        let rows = num_rows(x, "x", weight.in_features())?;
        for_kind!(x.kind(), "x", E, {
            let mut out = new_rows(rows, weight.out_features(), Kind::Float)?;
            let store = Store::Float(SharedPtr::new(view::f32_slice_mut(&mut out, "out")?.as_mut_ptr()));
            self.run_linear::<E>(x, weight, rows, store)?;
            Ok(out)
        })
    }

    /// `residual += x W^T + b`, rounded once. `residual`: `[num_rows, out_features]`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn linear_add(
        &mut self,
        x: &Tensor,
        weight: &PackedLinear,
        residual: &mut Tensor,
    ) -> Result<(), CpuKernelError> {
        let rows = num_rows(x, "x", weight.in_features())?;
        if num_rows(residual, "residual", weight.out_features())? != rows {
            return Err(bad("residual", format!("of {rows} rows"), format_args!("{:?}", residual.size())));
        }
        for_kind!(x.kind(), "x", E, {
            let store = Store::Add(SharedPtr::new(E::slice_mut(residual, "residual")?.as_mut_ptr()));
            self.run_linear::<E>(x, weight, rows, store)
        })
    }

    /// The activation of `x W^T + b`; for a gated layout `[num_rows, out_features / 2]`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn linear_activate(
        &mut self,
        x: &Tensor,
        weight: &PackedLinear,
        activation: Nonlinearity,
    ) -> Result<Tensor, CpuKernelError> {
        let rows = num_rows(x, "x", weight.in_features())?;
        let columns =
            if weight.layout() == Layout::Gated { weight.out_features() / 2 } else { weight.out_features() };
        for_kind!(x.kind(), "x", E, {
            let mut out = new_rows(rows, columns, E::KIND)?;
            let store =
                Store::Activate(SharedPtr::new(E::slice_mut(&mut out, "out")?.as_mut_ptr()), activation);
            self.run_linear::<E>(x, weight, rows, store)?;
            Ok(out)
        })
    }

    /// Rows of a table. `table`: `[num_rows, num_columns]`, float32 or bfloat16; returns `[ids.len(), num_columns]` in
    /// its type. On the calling thread: libtorch's threads would go on spinning beside the kernels' own.
    ///
    /// # Errors
    /// When an id is not below the number of rows, or the table has another type.
    pub fn select_rows(
        table: &Tensor,
        ids: impl ExactSizeIterator<Item = usize>,
    ) -> Result<Tensor, CpuKernelError> {
        let &[rows, columns] = &table.size()[..] else {
            return Err(bad("table", "of two dimensions", format_args!("{:?}", table.size())));
        };
        let columns = columns as usize;
        for_kind!(table.kind(), "table", E, {
            let mut out = new_rows(ids.len(), columns, E::KIND)?;
            let from = E::slice(table, "table")?;
            let to = E::slice_mut(&mut out, "out")?.chunks_exact_mut(columns.max(1));
            for (id, to) in ids.zip(to) {
                let row = from.get(id * columns..(id + 1) * columns);
                to.copy_from_slice(row.ok_or_else(|| bad("row", format!("below {rows}"), id))?);
            }
            Ok(out)
        })
    }

    /// Normalises rows. `x`: `[num_rows, hidden_size]`, float32 or bfloat16; returns the same.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn norm(&mut self, x: &Tensor, params: &NormParams<'_>) -> Result<Tensor, CpuKernelError> {
        let hidden_size = params.weight.len();
        let rows = num_rows(x, "x", hidden_size)?;
        if hidden_size == 0 || !(params.bias.is_empty() || params.bias.len() == hidden_size) {
            return Err(bad("norm bias", format!("of {hidden_size} elements"), params.bias.len()));
        }
        for_kind!(x.kind(), "x", E, {
            let mut out = new_rows(rows, hidden_size, E::KIND)?;
            norm(&mut self.pool, self.isa, params, E::slice(x, "x")?, E::slice_mut(&mut out, "out")?);
            Ok(out)
        })
    }

    /// Normalises the query and key heads of `qkv` in place, each over its own dimensions. `qkv`: `[num_tokens,
    /// (num_attention_heads + 2 num_query_groups) * kv_channels]` in Megatron's layout by group, float32 or bfloat16.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub fn norm_heads(
        &mut self,
        qkv: &mut Tensor,
        heads: HeadLayout,
        query: &NormParams<'_>,
        key: &NormParams<'_>,
    ) -> Result<(), CpuKernelError> {
        num_rows(qkv, "qkv", heads.qkv_size())?;
        for (params, num_heads) in [(query, heads.num_attention_heads), (key, heads.num_query_groups)] {
            let fits = |len| len == heads.kv_channels || len == num_heads * heads.kv_channels;
            if heads.kv_channels == 0
                || heads.queries_per_group() == 0
                || !fits(params.weight.len())
                || !(params.bias.is_empty() || fits(params.bias.len()))
            {
                let expected = format!("for heads of {} dimensions", heads.kv_channels);
                return Err(bad("norm of heads", expected, params.weight.len()));
            }
        }
        for_kind!(qkv.kind(), "qkv", E, {
            norm_heads(&mut self.pool, self.isa, heads, [query, key], E::slice_mut(qkv, "qkv")?);
            Ok(())
        })
    }

    /// Rows of a plain layer's weight, for an output layer that is the embedding table too: `[ids.len(), in_features]`
    /// in the weights' type.
    ///
    /// # Errors
    /// When an id is not below the number of outputs, or the layer is gated.
    pub fn select_outputs(
        weight: &PackedLinear,
        ids: impl ExactSizeIterator<Item = usize>,
    ) -> Result<Tensor, CpuKernelError> {
        match weight {
            PackedLinear::F32(packed) => select_outputs(&packed.0, ids),
            PackedLinear::Bf16(packed) => select_outputs(&packed.0, ids),
        }
    }

    /// Rotates, writes the new keys and values into the cache, attends. `qkv`: `[num_tokens, (num_attention_heads +
    /// 2 num_query_groups) * head_dim]` in Megatron's layout by group; returns `[num_tokens, num_attention_heads *
    /// head_dim]` in its type.
    ///
    /// # Errors
    /// When shapes, types, positions or blocks do not fit.
    pub fn attention(
        &mut self,
        qkv: &Tensor,
        step: &AttentionStep<'_>,
        cache: &mut PackedKv,
    ) -> Result<Tensor, CpuKernelError> {
        let HeadShape { num_attention_heads, num_query_groups, head_dim, .. } = step.heads;
        let num_tokens = num_rows(qkv, "qkv", (num_attention_heads + 2 * num_query_groups) * head_dim)?;
        check_attention(step, num_tokens, cache)?;
        for_kind!(qkv.kind(), "qkv", E, {
            let mut out = new_rows(num_tokens, num_attention_heads * head_dim, E::KIND)?;
            let layer = E::kv(cache).and_then(|kv| kv.layer(step.layer_idx)).ok_or_else(|| {
                bad("cache", format!("{:?} with layer {}", E::KIND, step.layer_idx), "another")
            })?;
            let mut queries = std::mem::take(E::queries(self));
            let tiles = *E::tiles(self);
            let call = AttentionCall {
                heads: step.heads,
                rotary: step.rotary,
                sequences: step.sequences,
                qkv: E::slice(qkv, "qkv")?,
                num_tokens,
                queries: &mut queries,
                layer,
                sinks: step.sinks,
                out: E::slice_mut(&mut out, "out")?,
            };
            attention(&mut self.pool, self.isa, &tiles, call);
            *E::queries(self) = queries;
            Ok(out)
        })
    }
}

fn select_outputs<E: TypedElem>(
    packed: &Packed<E>,
    ids: impl ExactSizeIterator<Item = usize>,
) -> Result<Tensor, CpuKernelError> {
    let mut rows = new_rows(ids.len(), packed.in_features, E::KIND)?;
    let out = E::slice_mut(&mut rows, "out")?.chunks_exact_mut(packed.in_features);
    ids.zip(out).try_for_each(|(id, out)| packed.copy_row(id, out))?;
    Ok(rows)
}

/// Everything the attention kernel's raw pointers rely on.
fn check_attention(
    step: &AttentionStep<'_>,
    num_tokens: usize,
    cache: &PackedKv,
) -> Result<(), CpuKernelError> {
    let (heads, shape) = (step.heads, cache.shape());
    if heads.num_query_groups == 0 || !heads.num_attention_heads.is_multiple_of(heads.num_query_groups) {
        return Err(bad(
            "attention heads",
            format!("a multiple of {} groups", heads.num_query_groups),
            heads.num_attention_heads,
        ));
    }
    if (shape.num_query_groups, shape.head_dim) != (heads.num_query_groups, heads.head_dim) {
        return Err(bad(
            "cache",
            format!("of {} heads of {}", heads.num_query_groups, heads.head_dim),
            format_args!("{shape:?}"),
        ));
    }
    if step.sinks.is_some_and(|sinks| sinks.len() != heads.num_attention_heads) {
        let found = step.sinks.map_or(0, <[f32]>::len);
        return Err(bad("sinks", format!("one for each of {} heads", heads.num_attention_heads), found));
    }
    if heads.window == Some(0) {
        return Err(bad("window", "at least 1 token".to_owned(), 0));
    }
    let half = step.rotary.rotary_dim / 2;
    if step.rotary.rotary_dim > heads.head_dim || step.rotary.cos.len() != step.rotary.sin.len() {
        return Err(bad(
            "rotary table",
            format!("of at most {} dimensions", heads.head_dim),
            step.rotary.rotary_dim,
        ));
    }
    let mut covered = 0;
    for sequence in step.sequences {
        let end = sequence.context_len + sequence.query_len;
        if sequence.query_start != covered || end > sequence.block_table.len() * BLOCK_TOKENS {
            return Err(bad(
                "sequence",
                format!("to start at token {covered} and have blocks for {end} tokens"),
                format_args!("start {} with {} blocks", sequence.query_start, sequence.block_table.len()),
            ));
        }
        if end * half > step.rotary.cos.len() {
            return Err(bad("position", format!("below {}", step.rotary.cos.len() / half.max(1)), end - 1));
        }
        if let Some(block) = sequence.block_table.iter().find(|&&block| block as usize >= shape.num_blocks) {
            return Err(bad("block", format!("below {}", shape.num_blocks), block));
        }
        covered += sequence.query_len;
    }
    if covered != num_tokens {
        return Err(bad("sequences", format!("to cover {num_tokens} tokens"), covered));
    }
    Ok(())
}
