//! The kernels of one model on one GPU: embedding, norms, activations, rotary embedding, attention, and the GEMM of
//! small batches.

mod gemm_shape;
mod nonlinearity;
mod programs;

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod gather;
#[cfg(feature = "cuda")]
mod gemm;
#[cfg(feature = "cuda")]
mod heads;
#[cfg(feature = "cuda")]
mod loaded;
#[cfg(feature = "cuda")]
mod pointwise;
#[cfg(feature = "cuda")]
mod rope;

pub use gemm_shape::MAX_GEMM_ROWS;
pub use nonlinearity::Gating;
pub use programs::KernelConfig;
#[cfg(feature = "cuda")]
pub use {
    attention::{DecodeAttention, DecodeAttentionQkv, DecodePlan, PlanDecode, PlanSizes},
    gather::GatherCache,
    gemm::{Gemm, GemmOut},
    heads::NormHeads,
    loaded::ModelKernels,
    pointwise::{Activate, Embed, Norm},
    rope::{LayerCache, RopeAndCache, Rotary},
};

/// Tokens of a cache block.
pub const BLOCK_SIZE_TOKENS: i64 = 32;
