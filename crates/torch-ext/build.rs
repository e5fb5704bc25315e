//! Lets this crate's own tests find libtorch, and compiles the C++ shim, with feature `cuda` its GPU half, too; see
//! `docs/ARCHITECTURE.md`, "libtorch".

use std::path::Path;
#[cfg(feature = "cuda")]
use std::path::PathBuf;

#[path = "run_path/run_path.rs"]
mod run_path;

fn main() {
    if let Some((libtorch, lib)) = run_path::set() {
        compile_shim(&libtorch, &lib);
    }
}

fn compile_shim(libtorch: &Path, lib: &Path) {
    println!("cargo::rerun-if-changed=csrc");
    let include = libtorch.join("include");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").files(["csrc/guard.cpp", "csrc/mkl.cpp", "csrc/store.cpp"]);
    // As system headers, so that only the shim's own warnings are shown.
    for folder in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(folder);
    }
    println!("cargo::rustc-link-search=native={}", lib.display());
    if !add_gpu_half(&mut build, libtorch) {
        return;
    }
    build.compile("torch_ext_shim");
    for library in ["torch_cpu", "c10"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
}

/// False when it cannot be compiled.
#[cfg(not(feature = "cuda"))]
fn add_gpu_half(_build: &mut cc::Build, _libtorch: &Path) -> bool {
    true
}

#[cfg(feature = "cuda")]
fn add_gpu_half(build: &mut cc::Build, libtorch: &Path) -> bool {
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let Some(cuda_include) = cuda_include(libtorch) else {
        println!(
            "cargo::error=the CUDA headers are missing: run `cargo xtask setup --cuda` or set CUDA_HOME"
        );
        return false;
    };
    build.file("csrc/cuda.cpp").flag("-isystem").flag(&cuda_include);
    for library in ["torch_cuda", "c10_cuda"] {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    // The libraries of CUDA behind libtorch_cuda are found when the program starts; the linker need not see them.
    println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
    true
}

/// The headers beside the libtorch of `cargo xtask setup --cuda`, or those of an installed toolkit.
#[cfg(feature = "cuda")]
fn cuda_include(libtorch: &Path) -> Option<PathBuf> {
    let beside = libtorch.parent().map(|home| home.join("nvidia/cu13/include"));
    let installed = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("include"));
    let usual = Some(PathBuf::from("/usr/local/cuda/include"));
    // The last header that the wheels bring: `cuda_runtime_api.h` alone does not compile.
    [beside, installed, usual].into_iter().flatten().find(|dir| dir.join("crt/host_config.h").is_file())
}
