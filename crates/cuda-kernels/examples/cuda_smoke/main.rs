//! Tries every entry of `cuda_runtime` and of `torch_ext::cuda` on the first GPU: one line a case, exit code 1 when one fails.
//!
//! `cargo build --release -p cuda-kernels --features cuda --example cuda_smoke`; the program can be carried to a machine
//! with a GPU, where `LD_LIBRARY_PATH` must name libtorch's folder.

#[path = "../common/cases.rs"]
mod cases;
mod device;
mod flash_attention;
mod graph;
mod kernel;
mod linear;
mod memory;

use std::process::ExitCode;

use cuda_runtime::Device;

use cases::{Case, say};

const CASES: [Case<Device>; 11] = [
    ("device", device::facts),
    ("stream and events", device::copy_speed),
    ("kernels and their cache", kernel::all),
    ("wrong arguments are refused", kernel::wrong_arguments),
    ("graph", graph::replays),
    ("graph that fails, and one beside another thread", graph::trouble),
    ("linear layers", linear::all),
    ("varlen flash attention", flash_attention::all),
    ("pinned memory", memory::pinned),
    ("weights from a mapped file", memory::upload),
    ("out of memory", memory::out_of_memory),
];

fn main() -> ExitCode {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            say(&format!("cannot open the GPU: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let all_passed = cases::run(&device, &CASES);
    if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
