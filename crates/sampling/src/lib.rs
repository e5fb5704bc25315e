//! Logits to tokens: parameters, Philox, processors, greedy and random draw, stop conditions.
//!
//! It knows no models and no files. A plain-Rust reference is what the fast paths are tested against.

mod argmax;
#[cfg(feature = "cuda")]
mod device;
mod draw;
mod error;
mod params;
mod philox;
mod processors;
mod reference;
mod row_state;
mod rules;
mod sampler;
mod stop;
mod weights;

#[cfg(feature = "cuda")]
pub use device::{DeviceSampler, FirstDraw, RECORD_WORDS, SamplerRows};
pub use error::SamplingError;
pub use params::{RawSamplingParams, SamplingParams};
pub use philox::{philox4x32_10, uniform};
pub use reference::ReferenceSampler;
pub use row_state::RowState;
pub use rules::SamplingRules;
pub use sampler::{CpuSampler, SampledToken, TokenSampler};
pub use stop::{FinishReason, RawEndStrings, StopConditions, StopState, TokenBytes};
