//! The forward pass of the GPT, Llama, Gemma, Falcon, GPT-J, GPT-NeoX and Nemotron families: one implementation,
//! steered by the config.
//!
//! It knows nothing of JSONL, config files, sampling or scheduling.

mod attention_algorithm;
mod attention_context;
mod backend;
mod batch;
mod causal_lm;
mod columns;
mod config;
mod error;
mod fp8;
mod gpt;
mod ids;
mod kinds;
mod kv_cache;
mod layers;
mod load;
mod model_ranks;
mod ops;
mod parallel;
mod routing;
mod upload;
mod weights;

pub use attention_algorithm::{AttentionAlgorithm, AttentionSwitches};
pub use batch::{Batch, DeviceDecode, Span};
pub use causal_lm::CausalLm;
pub use config::{ModelConfig, RawModelConfig};
pub use cpu_kernels::Isa;
pub use error::ModelError;
pub use kv_cache::{BLOCK_SIZE_TOKENS, BlockId, BlockMove, HostBlockId, KvCache};
pub use load::{Backend, LoadOptions, cuts_prompts, footprint, footprint_in, load_model, load_part};
pub use model_ranks::{Exchange, LostRank, ModelRanks, RankCheck, Reduction};
pub use ops::RECEIVED_EXPERT_BYTES;
pub use parallel::{ExchangeParts, ModelPart, exchange_bytes};
