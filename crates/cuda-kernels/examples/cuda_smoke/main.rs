//! Tries every entry of `cuda_runtime` and of `torch_ext::cuda` on the first GPU, or those cases that the command line names.
//!
//! A part of `cargo xtask gpu-test`, which also carries it to a machine with a GPU.

#[path = "../common/cases.rs"]
mod cases;
mod device;
mod flash_attention;
mod graph;
mod kernel;
mod linear;
mod memory;

use std::process::ExitCode;

use cases::Case;
use cuda_runtime::Device;

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
    cases::run(Device::open(0), &CASES)
}
