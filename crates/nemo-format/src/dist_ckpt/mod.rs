//! Megatron distributed checkpoints: the folder `model_weights/` of a `.nemo`.
//!
//! The torch_dist backend is read here. Tensors come out under canonical names, one a layer, whatever way the file
//! stacks layers or cuts them for tensor parallelism.

mod metadata;
mod torch_dist;

pub(crate) use torch_dist::TorchDist;

/// The folder inside the checkpoint.
pub(crate) const FOLDER: &str = "model_weights";
/// What the keys of a homogeneous decoder's layers begin with.
pub(crate) const LAYERS: &str = "model.decoder.layers.";
