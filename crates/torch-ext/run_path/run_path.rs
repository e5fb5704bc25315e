//! Lets programs and tests of a crate find libtorch; see `docs/ARCHITECTURE.md`, "libtorch".

use std::path::PathBuf;

/// Where a packaged program finds libtorch: beside its own package, as Python's packages lie. `cargo xtask dist` cuts off
/// what stands behind it (`xtask/src/dist/program.rs`).
const PACKAGED: &str = "$ORIGIN/../../torch/lib";

/// Sets the run path. Returns the folder of libtorch, and that of its libraries; an error is reported to cargo.
pub(crate) fn set() -> Option<(PathBuf, PathBuf)> {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo::error=LIBTORCH is not set: run `cargo xtask setup`");
        return None;
    };
    match libtorch.join("lib").canonicalize() {
        Ok(lib) => {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{PACKAGED}:{}", lib.display());
            Some((libtorch, lib))
        }
        Err(error) => {
            println!("cargo::error=`{}`: {error}; run `cargo xtask setup`", libtorch.display());
            None
        }
    }
}
