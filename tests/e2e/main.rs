//! End-to-end tests of the real binary: what a user types, and what is on disk and on the screen afterwards.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows test functions, not the helpers beside them; a test fails by panicking"
)]

mod adapters;
mod checks;
mod commands;
mod complete;
mod config;
mod contradictions;
mod data;
mod errors;
mod exp_manager;
mod families;
mod faults;
mod fp8;
mod hints;
mod hostile;
mod interruption;
mod logprobs;
mod order;
mod pages;
mod parallel;
mod quality;
mod rank_faults;
mod ranks;
mod records;
mod rows;
mod sameness;
mod score;
mod structured;
mod support;
mod windows;
