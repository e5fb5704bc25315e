//! Lets this crate's own tests find libtorch; see `docs/ARCHITECTURE.md`, "libtorch".

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo::error=LIBTORCH is not set: run `cargo xtask setup`");
        return;
    };
    match libtorch.join("lib").canonicalize() {
        Ok(lib) => println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display()),
        Err(error) => println!("cargo::error=`{}`: {error}; run `cargo xtask setup`", libtorch.display()),
    }
}
