//! Lets this crate's own tests find libtorch; see `docs/ARCHITECTURE.md`, "libtorch".

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo::error=LIBTORCH is not set: run `cargo xtask setup`");
        return;
    };
    match libtorch.join("lib").canonicalize() {
        Ok(lib) => {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
            link_cuda(&lib);
        }
        Err(error) => println!("cargo::error=`{}`: {error}; run `cargo xtask setup`", libtorch.display()),
    }
}

/// With feature `cuda`: libtorch finds its CUDA half only when that is loaded before the first question about GPUs, so it
/// stays linked even where no symbol of it is used directly.
fn link_cuda(lib: &Path) {
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo::rustc-link-search=native={}", lib.display());
        println!("cargo::rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
        println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
    }
}
