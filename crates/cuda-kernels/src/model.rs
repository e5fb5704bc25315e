//! The kernels of one model on one GPU: embedding, norms, activations, rotary embedding, attention, and the GEMM of
//! small batches.

mod nonlinearity;
mod product_shape;
mod programs;

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod loaded;
#[cfg(feature = "cuda")]
mod pointwise;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod rope;

pub use nonlinearity::{Gating, Nonlinearity};
pub use product_shape::MAX_PRODUCT_ROWS;
pub use programs::KernelConfig;
#[cfg(feature = "cuda")]
pub use {
    attention::{DecodeAttention, DecodeAttentionQkv, DecodePlan, PlanDecode},
    loaded::ModelKernels,
    pointwise::{Activate, Embed, Norm, NormKind},
    product::{Product, ProductOut},
    rope::{LayerCache, RopeAndCache, Rotary},
};

/// Tokens of a cache block.
pub const BLOCK_SIZE_TOKENS: i64 = 32;
