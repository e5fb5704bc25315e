//! The build script of every other crate whose tests or programs link libtorch.

use std::path::Path;

mod run_path;

/// Crates with programs that ask libtorch for a GPU.
const ASKS_FOR_GPUS: [&str; 2] = ["aligner-gen", "cuda-kernels"];

fn main() {
    if let Some((_, lib)) = run_path::set() {
        link_cuda(&lib);
    }
}

/// With feature `cuda`: libtorch finds its CUDA half only when that is loaded before the first question about GPUs, so it
/// stays linked even where no symbol of it is used directly.
fn link_cuda(lib: &Path) {
    let name = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() && ASKS_FOR_GPUS.contains(&name.as_str()) {
        println!("cargo::rustc-link-search=native={}", lib.display());
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
        println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
    }
}
