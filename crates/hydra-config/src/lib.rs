//! Hydra's overrides and OmegaConf's YAML, interpolation and merging, offered as figment layers.
//!
//! It knows nothing about models, files of checkpoints or the program's own keys.

mod composer;
mod emit;
mod error;
mod interpolation;
mod node;
pub mod overrides;
mod resolved;
mod scalar;
pub mod yaml;

pub use composer::Composer;
pub use error::ConfigError;
pub use node::Node;
pub use resolved::Resolved;
