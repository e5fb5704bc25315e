//! The project's own CUDA kernels and their launchers.
//!
//! The sources stand in `crates/cuda-kernels/kernels`. A launcher checks type, shape, device and contiguity of what it is
//! given and enqueues one kernel; it allocates nothing, so all of them may be captured into a graph. Sizes are those of
//! the tensors; lengths, positions and slots are read on the GPU, and ones out of range never lead outside a tensor. A
//! row's result depends on that row alone, bit for bit.
//!
//! Shapes below: n rows (tokens), h hidden size, H query heads in G groups of q, d elements a head, blocks of 32 tokens;
//! T is the type of [`KernelConfig`]. All tensors are contiguous and on the stream's GPU.

#[cfg(feature = "nvrtc")]
mod activation;
#[cfg(feature = "nvrtc")]
mod product_shape;
#[cfg(feature = "nvrtc")]
mod programs;
#[cfg(feature = "nvrtc")]
pub use {
    activation::{Activation, Gating},
    product_shape::MAX_PRODUCT_ROWS,
    programs::{KernelConfig, SamplerTiling},
};

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod blocks;
#[cfg(feature = "cuda")]
mod loaded;
#[cfg(feature = "cuda")]
mod pointwise;
#[cfg(feature = "cuda")]
mod product;
#[cfg(feature = "cuda")]
mod rope;
#[cfg(feature = "cuda")]
mod sample;
#[cfg(feature = "cuda")]
mod tensors;

#[cfg(feature = "cuda")]
pub use {
    attention::{DecodeAttention, DecodeAttentionQkv, DecodePlan, PlanDecode},
    blocks::{CopyBlocks, MarkSeen},
    loaded::Kernels,
    pointwise::{Activate, Embed, Norm, NormKind, ResidualAdd},
    product::{Product, ProductOut},
    rope::{LayerCache, RopeAndCache, Rotary},
    sample::{Admission, Sample, SampleRules, SampleStatus, Sampled, SamplerScratch, SamplerState},
};

/// Tokens of a cache block.
pub const BLOCK_SIZE_TOKENS: i64 = 32;
