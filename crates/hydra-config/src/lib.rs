//! Hydra's overrides and OmegaConf's YAML, interpolation and merging, offered as figment layers.
//!
//! It knows nothing about models, files of checkpoints or the program's own keys.

mod composer;
mod defaults;
mod emit;
mod error;
mod float_repr;
mod grammar;
mod interpolation;
mod nearest;
mod node;
mod origin;
pub mod overrides;
mod python;
mod resolved;
mod scalar;
mod shell;
pub mod yaml;

pub use composer::Composer;
pub use defaults::ConfigFiles;
pub use error::ConfigError;
pub use node::Node;
pub use origin::Origin;
pub use resolved::Resolved;
pub use shell::shell_word;
