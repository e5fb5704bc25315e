//! Launchers of embedding, norms and activations.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Launch, Stream};
use model_spec::{Nonlinearity, Normalization};
use tch::{Kind, Tensor};

use super::ModelKernels;
use super::nonlinearity::{Gating, number_of};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// Elements that a thread takes at once.
const WIDTH: i64 = 8;
/// A norm holds its row in registers: 2 times 8 elements in each of 1,024 threads.
pub(super) const MAX_NORM_WIDTH: i64 = 16_384;

/// `out = table[token]`.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// `int32[n]`. A token outside the table makes its row NaN, which the sampler reports.
    pub tokens: &'a Tensor,
    /// `T[num_tokens, h]`.
    pub table: &'a Tensor,
    /// `T[n, h]`; h a multiple of 8.
    pub out: &'a Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedArgs {
    tokens: Address,
    table: Address,
    out: Address,
    width: i32,
    num_tokens: i32,
}

/// `out = norm(x)`, computed in float32.
#[derive(Clone, Copy, Debug)]
pub struct Normalize<'a> {
    /// Which one.
    pub normalization: Normalization,
    /// `T[n, h]`; h a multiple of 8 up to 16,384.
    pub x: &'a Tensor,
    /// `float32[h]`.
    pub gain: &'a Tensor,
    /// `float32[h]`.
    pub bias: Option<&'a Tensor>,
    /// Added to the mean square.
    pub eps: f32,
    /// `T[n, h]`; may be `x`.
    pub out: &'a Tensor,
}

/// `Norm` of `kernels/normed.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct NormWith {
    gain: Address,
    bias: Address,
    width: i32,
    eps: f32,
}

impl NormWith {
    /// Of rows of `width`.
    pub(super) fn of(
        tensors: &Tensors<'_>,
        width: i64,
        (gain, bias): (&Tensor, Option<&Tensor>),
        eps: f32,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            gain: tensors.address(gain, "gain", Kind::Float, &[width])?,
            bias: tensors.optional(bias, "bias", Kind::Float, &[width])?,
            width: whole_vectors(width, MAX_NORM_WIDTH)?,
            eps,
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormArgs {
    x: Address,
    norm: NormWith,
    out: Address,
    rows: i32,
    reserved: i32,
}

/// The nonlinearity of the feed-forward part, in float32, rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Activate<'a> {
    /// Which one.
    pub activation: Nonlinearity,
    /// Whether `x` is twice as wide as `out`.
    pub gating: Gating,
    /// `T[n, ffn]` or `T[n, 2 * ffn]`.
    pub x: &'a Tensor,
    /// `T[n, ffn]`.
    pub out: &'a Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ActivateArgs {
    x: Address,
    out: Address,
    width: i32,
    activation: i32,
    is_gated: i32,
    reserved: i32,
}

impl ModelKernels {
    /// Enqueues an embedding.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn embed(&self, stream: &Stream, embed: &Embed<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let [num_rows, width] = shape_of(embed.out, "out")?;
        let [num_tokens, _] = shape_of(embed.table, "table")?;
        let args = EmbedArgs {
            tokens: tensors.address(embed.tokens, "tokens", Kind::Int, &[num_rows])?,
            table: tensors.address(embed.table, "table", kind, &[num_tokens, width])?,
            out: tensors.address(embed.out, "out", kind, &[num_rows, width])?,
            width: whole_vectors(width, i64::from(i32::MAX))?,
            num_tokens: int(num_tokens, "rows of `table`")?,
        };
        let num_threads = threads_for(width).min(256);
        Ok(self.embed.launch(
            &Launch::linear(count(num_rows, "rows")?, num_threads),
            stream,
            &[Arg::value(&args)],
        )?)
    }

    /// Enqueues a norm.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn norm(&self, stream: &Stream, norm: &Normalize<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let kind = self.config.kind;
        let shape @ [num_rows, width] = shape_of(norm.x, "x")?;
        let args = NormArgs {
            x: tensors.address(norm.x, "x", kind, &shape)?,
            norm: NormWith::of(&tensors, width, (norm.gain, norm.bias), norm.eps)?,
            out: tensors.address(norm.out, "out", kind, &shape)?,
            rows: int(num_rows, "rows")?,
            reserved: 0,
        };
        let kernel = match norm.normalization {
            Normalization::RmsNorm => &self.rms_norm,
            Normalization::LayerNorm => &self.layer_norm,
        };
        let launch = Launch {
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(count(self.norm_blocks(num_rows, width), "rows")?, threads_for(width))
        };
        Ok(kernel.launch(&launch, stream, &[Arg::value(&args)])?)
    }

    /// Blocks of a norm: of more rows than run at once a block has several, so that it reads the gains once.
    pub(super) fn norm_blocks(&self, num_rows: i64, width: i64) -> i64 {
        let at_once = u64::from(self.num_sms) * u64::from(THREADS_OF_NORMS / threads_for(width)).max(1);
        num_rows.min(at_once as i64)
    }

    /// Enqueues an activation.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn activate(&self, stream: &Stream, activate: &Activate<'_>) -> Result<(), KernelError> {
        const NUM_THREADS: i64 = 256;
        let tensors = Tensors::on(stream);
        let [num_rows, width] = shape_of(activate.out, "out")?;
        let halves = activate.gating.halves();
        let args = ActivateArgs {
            x: tensors.address(activate.x, "x", self.config.kind, &[num_rows, halves * width])?,
            out: tensors.address(activate.out, "out", self.config.kind, &[num_rows, width])?,
            width: int(width, "width")?,
            activation: number_of(activate.activation),
            is_gated: i32::from(activate.gating == Gating::Gated),
            reserved: 0,
        };
        let elems_per_block = NUM_THREADS * if width % WIDTH == 0 { WIDTH } else { 1 };
        let parts = count((width as u64).div_ceil(elems_per_block as u64) as i64, "parts of a row")?;
        let launch = Launch {
            grid: [count(num_rows, "rows")?, parts, 1],
            overlaps: self.overlaps(num_rows),
            ..Launch::linear(1, NUM_THREADS as u32)
        };
        Ok(self.activate.launch(&launch, stream, &[Arg::value(&args)])?)
    }
}

/// Threads of norms that a multiprocessor has the registers for.
const THREADS_OF_NORMS: u32 = 1024;

pub(super) fn whole_vectors(width: i64, limit: i64) -> Result<i32, KernelError> {
    if width <= 0 || width % WIDTH != 0 || width > limit {
        return Err(bad("width of a row", &format!("a multiple of 8 up to {limit}"), width));
    }
    int(width, "width of a row")
}

/// Whole warps, 8 elements a thread, at most 1,024 threads.
pub(super) fn threads_for(width: i64) -> u32 {
    let num_threads = (width.max(1) as u64).div_ceil(WIDTH as u64).next_multiple_of(32);
    num_threads.min(1024) as u32
}
