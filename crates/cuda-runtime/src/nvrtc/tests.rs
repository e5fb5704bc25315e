use super::*;

const SOURCE: &str = r#"
#include "scale.cuh"
extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += SCALE * scaled(x[i], a);
}
"#;

fn program(scale: &str) -> Program {
    Program {
        name: "axpy",
        source: SOURCE,
        headers: &[("scale.cuh", "__device__ inline float scaled(float x, float a) { return a * x; }")],
        defines: vec![("SCALE", scale.to_owned())],
        options: &["--fmad=false"],
        is_specific: false,
    }
}

const SM_80: Arch = Arch { major: 8, minor: 0 };
const SM_90: Arch = Arch { major: 9, minor: 0 };

#[test]
fn compiles_for_both_architectures_without_a_gpu() {
    for arch in [SM_80, SM_90] {
        let cubin = compile(&program("2.0f"), arch).unwrap();
        assert!(cubin.bytes.starts_with(b"\x7fELF"), "{arch}");
        assert_eq!(cubin.warnings, "");
    }
}

#[test]
fn refused_source_gives_the_log_of_the_compiler() {
    let error = compile(&program("nothing"), SM_90).unwrap_err().to_string();
    assert!(error.starts_with("kernels `axpy` do not compile for sm_90:\n"), "{error}");
    assert!(error.contains("axpy.cu(5): error: identifier \"nothing\" is undefined"), "{error}");
    let error = compile(&program("1"), Arch { major: 1, minor: 3 }).unwrap_err().to_string();
    assert!(error.contains("--gpu-architecture"), "{error}");
}

#[test]
fn the_cache_keeps_what_was_compiled_and_makes_damaged_files_anew() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("kernels");
    let first = compile_cached(&program("2.0f"), SM_90, &home).unwrap();
    let files = || std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let [path] = files().try_into().unwrap();
    assert_eq!(compile_cached(&program("2.0f"), SM_90, &home).unwrap().bytes, first.bytes);

    let good = std::fs::read(&path).unwrap();
    let mut damaged = good.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    for bad in [damaged.as_slice(), &good[..good.len() / 2], b""] {
        std::fs::write(&path, bad).unwrap();
        assert_eq!(compile_cached(&program("2.0f"), SM_90, &home).unwrap().bytes, first.bytes);
        assert_eq!(std::fs::read(&path).unwrap(), good, "the damaged file is still there");
    }

    compile_cached(&program("3.0f"), SM_90, &home).unwrap();
    compile_cached(&program("3.0f"), SM_80, &home).unwrap();
    assert_eq!(files().len(), 3);
}

#[test]
fn the_key_tells_apart_whatever_changes_the_code() {
    let key = |program: &Program, minor| program.key(SM_90, Version { major: 13, minor });
    let base = key(&program("2"), 0);
    assert_eq!(key(&program("2"), 0), base);
    assert_ne!(key(&program("2"), 1), base);
    assert_ne!(key(&program("3"), 0), base);
    assert_ne!(program("2").key(SM_80, Version { major: 13, minor: 0 }), base);
    assert_ne!(key(&Program { options: &[], ..program("2") }, 0), base);
    assert_ne!(key(&Program { source: "", ..program("2") }, 0), base);
    assert_ne!(key(&Program { headers: &[("scale.cuh", "")], ..program("2") }, 0), base);
}
