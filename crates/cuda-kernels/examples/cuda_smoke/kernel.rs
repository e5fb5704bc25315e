//! Kernels compiled here, their cache, and launches that are refused.

use std::path::Path;
use std::time::Instant;

use cuda_runtime::{Arg, CudaError, Device, Kernel, Launch, Module, Program, Stream};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};

const SOURCE: &str = r#"
#include "wait.cuh"
extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  wait_for_the_kernel_before();
  if (i < n) y[i] += FACTOR * a * x[i];
}
struct Range { long long first, last; int step, shift; float factor; };
extern "C" __global__ void fill(float* y, Range range) {
  for (long long i = range.first; i < range.last; i += range.step) y[i] = range.shift + range.factor * i;
}
extern "C" __global__ void through_shared(float* y, const float* x, int n) {
  extern __shared__ float values[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) values[n - 1 - i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = values[i];
}
"#;

const WAIT: &str = r#"
__device__ inline void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
"#;

fn program() -> Program {
    Program {
        name: "smoke",
        source: SOURCE,
        headers: &[("wait.cuh", WAIT)],
        defines: vec![("FACTOR", "2.0f".to_owned())],
        options: &["--fmad=false"],
        is_specific: false,
    }
}

/// `struct Range` of the source.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Range {
    first: i64,
    last: i64,
    step: i32,
    shift: i32,
    factor: f32,
    padding: u32,
}

pub(crate) fn kernel(device: &Device, name: &str) -> Result<Kernel, CudaError> {
    Module::load(device, &program(), None)?.kernel(name)
}

pub(crate) fn axpy(
    kernel: &Kernel,
    stream: &Stream,
    y: &Tensor,
    x: &Tensor,
    a: f32,
) -> Result<(), CudaError> {
    let num = i32::try_from(y.numel()).unwrap_or(i32::MAX);
    let launch = Launch { overlaps: true, ..Launch::linear(num.unsigned_abs().div_ceil(256), 256) };
    let args = [Arg::tensor(y, Kind::Float, "y")?, Arg::tensor(x, Kind::Float, "x")?, a.into(), num.into()];
    kernel.launch(&launch, stream, &args)
}

pub(crate) fn all(device: &Device) -> Outcome {
    let dir = std::env::temp_dir().join(format!("cuda-smoke-{}", std::process::id()));
    let outcome = all_in(device, &dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn all_in(device: &Device, cache_dir: &Path) -> Outcome {
    let mut times_ms = [0.0; 2];
    for time_ms in &mut times_ms {
        let start = Instant::now();
        Module::load(device, &program(), Some(cache_dir))?;
        *time_ms = start.elapsed().as_secs_f64() * 1e3;
    }
    let module = Module::load(device, &program(), Some(cache_dir))?;
    let stream = Stream::current(device)?;

    let x = Tensor::f_arange(1000, (Kind::Float, device.tch()))?;
    let y = x.f_ones_like()?;
    let kernel = module.kernel("axpy")?;
    axpy(&kernel, &stream, &y, &x, 0.5)?;
    axpy(&kernel, &stream, &y, &x, 0.5)?;
    let expect = x.f_mul_scalar(2.0)?.f_add_scalar(1.0)?;
    ensure(y.f_equal(&expect)?, || "axpy differs".to_owned())?;

    let range = Range { first: 3, last: 1000, step: 2, shift: 7, factor: 0.5, padding: 0 };
    let y = x.f_zeros_like()?;
    let args = [Arg::tensor(&y, Kind::Float, "y")?, Arg::value(&range)];
    module.kernel("fill")?.launch(&Launch::linear(1, 1), &stream, &args)?;
    let sum: f64 = (3..1000).step_by(2).map(|i| 7.0 + 0.5 * f64::from(i)).sum();
    ensure(y.f_sum(Kind::Double)?.f_double_value(&[])? == sum, || "a structure by value".to_owned())?;

    let num = 24_000;
    let x = Tensor::f_arange(num, (Kind::Float, device.tch()))?;
    let y = x.f_zeros_like()?;
    let kernel = module.kernel("through_shared")?;
    let launch = Launch { shared_bytes: 4 * 24_000, ..Launch::linear(1, 128) };
    kernel.launch(
        &launch,
        &stream,
        &[Arg::tensor(&y, Kind::Float, "y")?, Arg::tensor(&x, Kind::Float, "x")?, 24_000.into()],
    )?;
    ensure(y.f_equal(&x.f_flip([0])?)?, || "96 kB of shared memory".to_owned())?;
    Ok(format!(
        "compiled in {:.0} ms, from the cache in {:.1} ms; {:?}, {} blocks a multiprocessor",
        times_ms[0],
        times_ms[1],
        kernel.usage()?,
        kernel.max_blocks_per_sm(&launch)?
    ))
}

pub(crate) fn wrong_arguments(device: &Device) -> Outcome {
    let kernel = kernel(device, "axpy")?;
    let stream = Stream::current(device)?;
    let y = Tensor::f_zeros([8], (Kind::Float, device.tch()))?;
    let on_cpu = Tensor::f_zeros([8], (Kind::Float, tch::Device::Cpu))?;
    let launch = Launch::linear(1, 32);
    let good = || Arg::tensor(&y, Kind::Float, "y");
    let attempts = [
        kernel.launch(&launch, &stream, &[good()?, good()?, 1.0_f32.into()]),
        kernel.launch(&launch, &stream, &[good()?, good()?, 1.0_f32.into(), 8_i64.into()]),
        kernel.launch(
            &launch,
            &stream,
            &[Arg::tensor(&on_cpu, Kind::Float, "y")?, good()?, 1.0_f32.into(), 8.into()],
        ),
        Arg::tensor(&y, Kind::BFloat16, "y").map(drop),
        kernel.launch(&Launch::linear(1, 2048), &stream, &[good()?, good()?, 1.0_f32.into(), 8.into()]),
        kernel.launch(
            &Launch { shared_bytes: 1 << 20, ..launch },
            &stream,
            &[good()?, good()?, 1.0_f32.into(), 8.into()],
        ),
        missing(device),
    ];
    let num_attempts = attempts.len();
    let errors: Vec<String> =
        attempts.into_iter().filter_map(|attempt| attempt.err().map(|error| error.to_string())).collect();
    ensure(errors.len() == num_attempts, || format!("only {} refused: {errors:#?}", errors.len()))?;
    // The GPU is still well.
    stream.synchronize()?;
    Ok(errors.join(" | "))
}

fn missing(device: &Device) -> Result<(), CudaError> {
    kernel(device, "absent").map(drop)
}
