//! The build script of every other crate whose tests or programs link libtorch.

use std::path::{Path, PathBuf};

mod run_path;

/// Crates with programs that ask libtorch for a GPU.
const ASKS_FOR_GPUS: [&str; 2] = ["aligner-gen", "cuda-kernels"];

/// The crate whose program is packed.
const PACKED: &str = "aligner-gen";
/// The folder that `xtask/src/oldest` made.
const OLD_LIBRARIES: &str = "ALIGNER_GEN_OLD_LIBRARIES";

fn main() {
    if let Some((_, lib)) = run_path::set() {
        link_cuda(&lib);
        link_old_libraries();
    }
}

/// With feature `cuda`: libtorch finds its CUDA half only when that is loaded before the first question about GPUs, so it
/// stays linked even where no symbol of it is used directly.
fn link_cuda(lib: &Path) {
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() && ASKS_FOR_GPUS.contains(&package().as_str()) {
        println!("cargo::rustc-link-search=native={}", lib.display());
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
        println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
    }
}

fn package() -> String {
    std::env::var("CARGO_PKG_NAME").unwrap_or_default()
}

/// For packages: links the program against libraries that are older than this machine's.
fn link_old_libraries() {
    if package() != PACKED {
        return;
    }
    println!("cargo::rerun-if-env-changed={OLD_LIBRARIES}");
    let Some(folder) = std::env::var_os(OLD_LIBRARIES).map(PathBuf::from) else { return };
    println!("cargo::rerun-if-changed={}", folder.join("made-from.txt").display());
    for file in ["glibc.o", "libstdcxx.o"] {
        println!("cargo::rustc-link-arg-bins={}", folder.join(file).display());
    }
    println!("cargo::rustc-link-arg-bins=-L{}", folder.display());
    println!("cargo::rustc-link-arg-bins=-Wl,--wrap=__libc_start_main");
    // Parts of libc since 2.34, and before that libraries which a program has to name.
    println!("cargo::rustc-link-arg-bins=-Wl,--push-state,--no-as-needed,-lpthread,-ldl,-lrt,--pop-state");
    // A libtorch of the user's own may need newer libraries than the program does.
    println!("cargo::rustc-link-arg-bins=-Wl,--allow-shlib-undefined");
}
