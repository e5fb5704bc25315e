//! The sampler's kernels on one GPU: logits to tokens, and the sets of tokens that sequences hold. They are the same for
//! every model.

mod programs;

#[cfg(feature = "cuda")]
mod forced;
#[cfg(feature = "cuda")]
mod loaded;
#[cfg(feature = "cuda")]
mod sample;
#[cfg(feature = "cuda")]
mod seen;
#[cfg(feature = "cuda")]
mod top;

pub use programs::{SamplerTiling, seen_program, top_program};
#[cfg(feature = "cuda")]
pub use {
    forced::ForcedTokens,
    loaded::SamplerKernels,
    sample::{
        Admission, Sample, SampleMasks, SampleRules, SampleStatus, Sampled, SamplerScratch, SamplerState,
    },
    seen::MarkSeen,
    top::{MAX_TOP, TopTokens},
};
