//! Logits to tokens: parameters, Philox, processors, greedy and random draw, stop conditions.
//!
//! It knows no models and no files. A plain-Rust reference is what the fast paths are tested against.

mod error;
mod params;
mod sampler;

pub use error::SamplingError;
pub use params::{RawSamplingParams, SamplingParams};
pub use sampler::{RowState, SampledToken, TokenSampler};
