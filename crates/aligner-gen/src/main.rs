//! `aligner-gen`: bulk generation from NeMo checkpoints.

fn main() {}
