//! The kernels of one model on one GPU: embedding, norms, activations, rotary embedding, attention, the GEMM of
//! small batches, FP8 linear layers, and mixtures of experts.

mod fp8_shape;
mod gemm_shape;
mod nonlinearity;
mod programs;

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod fp8;
#[cfg(feature = "cuda")]
mod fp8_rows;
#[cfg(feature = "cuda")]
mod gather;
#[cfg(feature = "cuda")]
mod gemm;
#[cfg(feature = "cuda")]
mod heads;
#[cfg(feature = "cuda")]
mod loaded;
#[cfg(feature = "cuda")]
mod moe;
#[cfg(feature = "cuda")]
mod pointwise;
#[cfg(feature = "cuda")]
mod reduce;
#[cfg(feature = "cuda")]
mod rope;
#[cfg(feature = "cuda")]
mod stage;

pub use gemm_shape::MAX_GEMM_ROWS;
pub use nonlinearity::Gating;
pub use programs::{KernelConfig, ScoreKind, TileRows};
#[cfg(feature = "cuda")]
pub use {
    attention::{DecodeAttention, DecodeAttentionQkv, DecodePlan, PlanDecode, PlanSizes},
    fp8::{E4M3, Fp8Out, GemmFp8},
    fp8_rows::{Fp8RowsOut, NormalizeFp8, QuantizeRows},
    gather::{GatherCache, UNSEEN_SLOT},
    gemm::{Gemm, GemmOut, GemmUse},
    heads::NormHeads,
    loaded::ModelKernels,
    moe::{MoeKernels, MoeWeights, RunMoe, RunMoePieces},
    pointwise::{Activate, Embed, Normalize},
    reduce::{Inbox, MAX_TENSOR_RANKS, NormOfSum, TensorRanks},
    rope::{LayerKv, RopeAndCache, RotaryArrays},
    stage::{StageInbox, StageLink},
};

/// Tokens of a cache block.
pub const BLOCK_SIZE_TOKENS: i64 = 32;

/// `Progress` in exchange.cuh.
#[cfg(feature = "cuda")]
const PROGRESS_BYTES: usize = 3 * size_of::<u32>();
