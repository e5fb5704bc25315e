//! Compares every CUDA kernel with a slow reference on odd shapes, in all cases or in those that the command line names.
//!
//! A part of `cargo xtask gpu-test`, which also carries it to a machine with a GPU. With `--times` first it prints instead
//! how long the kernels take, in all tables or in those that are named.

mod attention;
mod cached;
#[path = "../common/cases.rs"]
mod cases;
mod cublas;
mod drafts;
mod forced_check;
mod fp8;
mod gather;
mod gemm;
mod moe;
mod own_rules_check;
mod pointwise;
mod ranks;
mod sampling_check;
mod support;
mod timing;

use std::process::ExitCode;

use cases::{Case, say};
use support::Gpu;

const CASES: &[Case<Gpu>] = &[
    ("embedding", pointwise::embedding),
    ("norms", pointwise::norms),
    ("norms of heads", pointwise::norms_of_heads),
    ("activations", pointwise::activations),
    ("rotary embedding and cache", pointwise::rope),
    ("keys and values from the cache", gather::all_kinds),
    ("decode attention", attention::all_heads),
    ("decode attention over an FP8 cache", attention::fp8_cache),
    ("decode attention with windows and capped scores", attention::windows_and_caps),
    ("drafted tokens of a sequence", drafts::all_heads),
    ("wrong shapes are refused", attention::wrong_shapes),
    ("row counts of cuBLAS", cublas::row_counts),
    ("small-batch GEMM", gemm::odd_shapes),
    ("small-batch GEMM with activations", gemm::activated),
    ("small-batch GEMM against cuBLAS", gemm::against_cublas),
    ("small-batch GEMM over pieces", gemm::pieces),
    ("sums of two ranks", ranks::through_gpus),
    ("sums of two ranks through the host", ranks::through_host),
    ("rows to FP8", fp8::conversion),
    ("rows to FP8 behind norms", fp8::fused),
    ("FP8 GEMM", fp8::gemms),
    ("mixtures of experts", moe::experts),
    ("experts in pieces", moe::pieces),
    ("sampling as the reference does", sampling_check::against_reference),
    ("sampling of many rows", sampling_check::many_rows),
    ("rules of rows' own and most likely tokens", own_rules_check::own_rules),
    ("tokens of known texts", forced_check::forced),
    ("seen tokens", sampling_check::seen_tokens),
    ("first tokens of responses", sampling_check::admissions),
];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(ranks::AS_RANK) {
        return ranks::second_side();
    }
    let gpu = Gpu::open();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((_, tables)) = arguments.split_first().filter(|(first, _)| *first == "--times") else {
        return cases::run(gpu, CASES);
    };
    match gpu.and_then(|gpu| timing::tables(&gpu, tables)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("cannot time the kernels: {error}"));
            ExitCode::FAILURE
        }
    }
}
