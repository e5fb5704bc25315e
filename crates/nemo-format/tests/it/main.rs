//! The crate against checkpoints written by the original software.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adapters;
mod bridge;
mod damaged;
mod fixtures;
mod formats;
mod fp8;
mod megatron_lm;
mod writing;
