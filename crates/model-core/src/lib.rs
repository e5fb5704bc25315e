//! The GPT and Llama forward pass, one implementation steered by the config.
//!
//! It knows nothing of JSONL, config files, sampling or scheduling.

mod batch;
mod causal_lm;
mod config;
mod error;
mod kv_cache;

pub use batch::{DecodeBatch, LogitsRows, PrefillBatch};
pub use causal_lm::CausalLm;
pub use config::ModelConfig;
pub use error::ModelError;
pub use kv_cache::{BlockId, KvCache};
