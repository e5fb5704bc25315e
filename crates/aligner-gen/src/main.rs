//! `aligner-gen`: bulk generation from NeMo checkpoints.
mod cli;
mod config;
mod env;
mod exit;
mod logging;
mod output;
mod signals;
fn main() {}
