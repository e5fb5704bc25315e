//! Logits to tokens: parameters, Philox, processors, greedy and random draw, stop conditions.
//!
//! It knows no models and no files. A plain-Rust reference is what the fast paths are tested against.

mod argmax;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod device_texts;
mod draw;
mod error;
mod forced;
mod params;
mod philox;
mod processors;
mod reference;
mod row_words;
mod rules;
mod sampler;
mod stop;
mod structured;
mod top_tokens;
mod weights;

#[cfg(feature = "cuda")]
pub use device::{
    DeviceSampler, DrawCheck, DrawRecords, DrivenSampler, FirstDraw, OwnRowRules, RECORD_WORDS, SamplerRows,
};
#[cfg(feature = "cuda")]
pub use device_texts::DeviceTexts;
pub use error::SamplingError;
pub use forced::{ForcedSampler, ForcedTexts};
pub use params::{MAX_TOP_LOGPROBS, RawSamplingParams, SamplingParams};
pub use philox::{philox4x32_10, uniform};
pub use reference::ReferenceSampler;
pub use row_words::{MAX_ROW_END_TOKENS, ROW_RULE_WORDS, read_row_rules, row_rule_words};
pub use rules::{RowRules, RowState, SamplingRules};
pub use sampler::{CpuSampler, SampledToken, TokenSampler};
pub use stop::{FinishReason, RawEndStrings, StopConditions, StopState, TokenBytes, first_whole};
pub use structured::{RowMasks, StructuredRow, Structures, TextFollower, Vocabulary, prepare_all};
pub use top_tokens::TopToken;
