//! What a model consists of: its layers, each with a shape of its own, the tensors these have, how the tensors are
//! sharded, which configuration key each follows from, and the memory that weights and KV cache take.
//!
//! Descriptions only: no libtorch, no input or output, no values of weights. Which tensors there are is said once, in
//! [`ModelSpec::tensors`]; readers, converters, loaders, dummy models and memory planning all ask there. Names of tensors
//! are Megatron-Core's, names of configuration keys NeMo's.

mod activation;
mod blocks;
mod footprint;
mod kv;
mod layer;
mod model;
mod moe;
mod named;
mod numerics;
mod position;
mod shard;
mod stages;
mod table;
mod tensor;
#[cfg(test)]
mod test_models;

pub use activation::{Activation, BadActivation, GLU_CLAMP, NemoActivation, Nonlinearity};
pub use blocks::{AttentionBlock, Block, FfnBlock};
pub use footprint::Footprint;
pub use kv::{BLOCK_SIZE_TOKENS, KvGroup, KvPlace, KvTables, WINDOW_AHEAD_BLOCKS, blocks_for};
pub use layer::{
    AttentionSpec, AttentionWindow, BlockStyle, FfnSpec, HeadLayout, LayerSpec, MlpSpec, MoeSpec, NormSpec,
    Normalization,
};
pub use model::{AttentionRule, LocalLayers, ModelSpec, Multipliers, OutputSpec, TableRows, UniformSpec};
pub use moe::{ExpertsSpec, MoeLayers, RouterScore, RouterSpec, SharedExpertSpec};
pub use named::{NamedShape, ShapeSpec, UnknownShape};
pub use numerics::{BadPrecision, Float, KvFormat, Numerics, WeightFormat};
pub use position::{
    MAX_ROTARY_PAIRS, PositionEmbedding, RopeScaling, RotaryConfig, RotaryFactors, RotaryPairing,
};
pub use shard::{ExpertSharing, Indivisible, Region, ShardPlace, reduction_pieces};
pub use table::{EXPERTS, LAYERS, layer_of, parse_name, shard_of};
pub use tensor::{Dim, FfnWidth, Key, Module, Part, Shard, TensorId, TensorSpec};
