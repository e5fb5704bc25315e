//! Hydra's overrides and OmegaConf's YAML, interpolation and merging, offered as figment layers.
//!
//! It knows nothing about models, files of checkpoints or the program's own keys.

mod node;

pub use node::Node;
