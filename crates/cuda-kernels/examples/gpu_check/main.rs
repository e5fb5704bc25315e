//! Holds every CUDA kernel against a slow twin on odd shapes, then times them: one line a case, exit code 1 when one
//! is wrong.
//!
//! `cargo build --release -p cuda-kernels --features cuda --example gpu_check`; the program can be carried to a machine
//! with a GPU, where `LD_LIBRARY_PATH` must name libtorch's folder.

mod attention;
#[path = "../common/cases.rs"]
mod cases;
mod cublas;
mod pointwise;
mod product;
mod sampling_check;
mod support;
mod timing;

use std::process::ExitCode;

use cases::{Case, say};
use support::Gpu;

const CASES: [Case<Gpu>; 14] = [
    ("embedding", pointwise::embedding),
    ("norms", pointwise::norms),
    ("activations", pointwise::activations),
    ("rotary embedding and cache", pointwise::rope),
    ("copied blocks and seen tokens", pointwise::blocks),
    ("decode attention", attention::all_heads),
    ("wrong shapes are refused", attention::wrong_shapes),
    ("row counts of cuBLAS", cublas::row_counts),
    ("products of a few rows", product::odd_shapes),
    ("products of a few rows with activations", product::activated),
    ("products of a few rows against cuBLAS", product::against_cublas),
    ("sampling as the reference does", sampling_check::against_reference),
    ("sampling of many rows", sampling_check::many_rows),
    ("first tokens of responses", sampling_check::admissions),
];

fn main() -> ExitCode {
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(error) => {
            say(&format!("cannot open the GPU: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let all_passed = cases::run(&gpu, &CASES);
    if let Err(error) = timing::table(&gpu) {
        say(&format!("FAILED  timing: {error}"));
        return ExitCode::FAILURE;
    }
    if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
