//! Tries every entry of `torch_ext::cuda` on the first GPU: one line a case, exit code 1 when one fails.
//!
//! `cargo build --release -p torch-ext --features cuda --example cuda_smoke`; the program can be carried to a machine
//! with a GPU, where `LD_LIBRARY_PATH` must name libtorch's folder.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use nemo_format::{SafetensorsSource, TensorSource};
use tch::{Kind, Tensor};
use torch_ext::ExtError;
use torch_ext::cuda::{
    Arg, Device, Event, Graph, GraphPool, Kernel, Launch, Module, PinnedBuffer, Program, Stream, Uploader,
    blas, device_count, flash,
};

type Outcome = Result<String, Box<dyn Error>>;
type Case = (&'static str, fn(&Device) -> Outcome);

const CASES: [Case; 11] = [
    ("device", device_facts),
    ("stream and events", copy_speed),
    ("kernels and their cache", kernels),
    ("wrong arguments are refused", wrong_arguments),
    ("graph", graph),
    ("graph that fails, and one beside another thread", graph_trouble),
    ("linear layers", linears),
    ("varlen flash attention", flash_attention),
    ("pinned memory", pinned),
    ("weights from a mapped file", upload),
    ("out of memory", out_of_memory),
];

fn main() -> ExitCode {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            say(&format!("cannot open the GPU: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut num_failed = 0;
    for (name, case) in CASES {
        match case(&device) {
            Ok(facts) => say(&format!("ok      {name}: {facts}")),
            Err(error) => {
                num_failed += 1;
                say(&format!("FAILED  {name}: {error}"));
            }
        }
    }
    say(&format!("{} passed, {num_failed} failed", CASES.len() - num_failed));
    if num_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(line: &str) {
    // Nobody reads a closed stdout.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(what().into()) }
}

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

fn kernel(device: &Device, name: &str) -> Result<Kernel, ExtError> {
    Module::load(device, &program(), None)?.kernel(name)
}

fn axpy(kernel: &Kernel, stream: &Stream, y: &Tensor, x: &Tensor, a: f32) -> Result<(), ExtError> {
    let num = i32::try_from(y.numel()).unwrap_or(i32::MAX);
    let launch = Launch { overlaps: true, ..Launch::linear(num.unsigned_abs().div_ceil(256), 256) };
    let args = [Arg::tensor(y, Kind::Float, "y")?, Arg::tensor(x, Kind::Float, "x")?, a.into(), num.into()];
    kernel.launch(&launch, stream, &args)
}

fn device_facts(device: &Device) -> Outcome {
    let (major, minor) = device.compute_capability()?;
    let memory = device.mem_get_info()?;
    ensure(memory.free_bytes <= memory.total_bytes && memory.free_bytes > 0, || format!("{memory:?}"))?;
    let num_devices = device_count()?;
    let missing = Device::open(num_devices).err().map(|error| error.to_string()).unwrap_or_default();
    ensure(missing.contains("there is no GPU"), || format!("a GPU too many: `{missing}`"))?;
    Ok(format!(
        "1 of {num_devices}, {}, capability {major}.{minor}, {} multiprocessors, {} bytes of shared memory a block, {} of {} MiB free",
        device.name()?,
        device.num_sms()?,
        device.max_shared_bytes()?,
        memory.free_bytes >> 20,
        memory.total_bytes >> 20
    ))
}

fn copy_speed(device: &Device) -> Outcome {
    const SIZE_BYTES: i64 = 1 << 30;
    let from = Tensor::f_ones([SIZE_BYTES], (Kind::Uint8, device.tch()))?;
    let mut to = Tensor::f_zeros([SIZE_BYTES], (Kind::Uint8, device.tch()))?;
    let (main, side) = (Stream::current(device)?, Stream::new(device)?);
    ensure(main != side, || "a new stream is the current one".to_owned())?;
    let filled = Event::untimed(device)?;
    filled.record(&main)?;
    side.wait(&filled)?;
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    {
        let _current = side.as_current()?;
        ensure(Stream::current(device)? == side, || "the stream is not current".to_owned())?;
        to.f_copy_(&from)?;
        start.record(&side)?;
        for _ in 0..10 {
            to.f_copy_(&from)?;
        }
        end.record(&side)?;
    }
    ensure(Stream::current(device)? == main, || "the stream before is not back".to_owned())?;
    let waited = !end.query()?;
    end.synchronize()?;
    ensure(end.query()?, || "the event is not reached".to_owned())?;
    side.synchronize()?;
    ensure(to.f_equal(&from)?, || "the copy differs".to_owned())?;
    let copied_gb = 20.0 * SIZE_BYTES as f64 / 1e9;
    Ok(format!(
        "a device copy moves {:.0} GB/s; still running after the launch: {waited}",
        copied_gb / f64::from(start.elapsed_ms(&end)?) * 1e3
    ))
}

fn kernels(device: &Device) -> Outcome {
    let dir = std::env::temp_dir().join(format!("cuda-smoke-{}", std::process::id()));
    let outcome = kernels_in(device, &dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn kernels_in(device: &Device, cache_dir: &Path) -> Outcome {
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

fn wrong_arguments(device: &Device) -> Outcome {
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
        kernel_missing(device),
    ];
    let num_attempts = attempts.len();
    let errors: Vec<String> =
        attempts.into_iter().filter_map(|attempt| attempt.err().map(|error| error.to_string())).collect();
    ensure(errors.len() == num_attempts, || format!("only {} refused: {errors:#?}", errors.len()))?;
    // The GPU is still well.
    stream.synchronize()?;
    Ok(errors.join(" | "))
}

fn kernel_missing(device: &Device) -> Result<(), ExtError> {
    kernel(device, "absent").map(drop)
}

/// What is captured: a linear layer, a conversion and a kernel of our own.
struct Step {
    x: Tensor,
    weight: Tensor,
    hidden: Tensor,
    y: Tensor,
    kernel: Kernel,
}

impl Step {
    fn new(device: &Device) -> Result<Self, ExtError> {
        let bf16 = (Kind::BFloat16, device.tch());
        Ok(Self {
            x: Tensor::f_randn([64, 512], bf16)?,
            weight: Tensor::f_randn([256, 512], bf16)?,
            hidden: Tensor::f_zeros([64, 256], bf16)?,
            y: Tensor::f_zeros([64, 256], (Kind::Float, device.tch()))?,
            kernel: kernel(device, "axpy")?,
        })
    }

    fn run(&self, stream: &Stream) -> Result<(), ExtError> {
        blas::linear_out(&mut self.hidden.shallow_clone(), &self.x, &self.weight, None)?;
        axpy(&self.kernel, stream, &self.y, &self.hidden.f_to_kind(Kind::Float)?, 0.25)
    }
}

fn graph(device: &Device) -> Outcome {
    let step = Step::new(device)?;
    let stream = Stream::new(device)?;
    stream.wait(&mark(&Stream::current(device)?)?)?;
    let pool = GraphPool::new()?;
    let before = device.mem_get_info()?;
    let graphs = [
        Graph::capture_in(pool, &stream, || step.run(&stream))?,
        Graph::capture_in(pool, &stream, || step.run(&stream))?,
        Graph::capture(&stream, || step.run(&stream))?,
    ];
    let mut num_replays = 0;
    let _current = stream.as_current()?;
    for graph in &graphs {
        for _ in 0..3 {
            step.x.shallow_clone().f_copy_(&step.x.f_randn_like()?)?;
            drop(step.y.shallow_clone().f_zero_()?);
            graph.replay(&stream)?;
            let replayed = step.y.f_detach_copy()?;
            drop(step.y.shallow_clone().f_zero_()?);
            step.run(&stream)?;
            ensure(replayed.f_equal(&step.y)?, || "a replay differs from the eager step".to_owned())?;
            ensure(replayed.f_abs()?.f_sum(Kind::Double)?.f_double_value(&[])? > 0.0, || {
                "nothing was run".to_owned()
            })?;
            num_replays += 1;
        }
    }
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    start.record(&stream)?;
    for _ in 0..1000 {
        graphs[0].replay(&stream)?;
    }
    end.record(&stream)?;
    end.synchronize()?;
    let taken = before.free_bytes.saturating_sub(device.mem_get_info()?.free_bytes);
    Ok(format!(
        "{num_replays} replays equal to the eager step; {:.1} us each; three graphs took {} MiB",
        start.elapsed_ms(&end)?,
        taken >> 20
    ))
}

fn mark(stream: &Stream) -> Result<Event, ExtError> {
    let event = Event::untimed(stream.device())?;
    event.record(stream)?;
    Ok(event)
}

fn graph_trouble(device: &Device) -> Outcome {
    let step = Step::new(device)?;
    let stream = Stream::new(device)?;
    device.synchronize()?;
    let own = Graph::capture(&stream, || {
        step.run(&stream)?;
        Err(ExtError::NoDevice { index: 7, count: 0 })
    });
    ensure(matches!(own, Err(ExtError::NoDevice { index: 7, .. })), || format!("own error: {own:?}"))?;
    let waits = Graph::capture(&stream, || stream.synchronize());
    ensure(matches!(waits, Err(ExtError::Cuda { .. })), || format!("waiting in a capture: {waits:?}"))?;
    let mut buffer = PinnedBuffer::<f32>::new(device, 64 * 256)?;
    let copies = Graph::capture(&stream, || buffer.copy_from(&step.y, &stream));
    ensure(copies.is_err(), || "a copy of a pinned buffer was captured".to_owned())?;
    ensure(!stream.is_capturing()?, || "the stream is still captured".to_owned())?;

    // Another thread works, allocates and waits meanwhile; a capture of the whole process would fail.
    let graph = Graph::capture(&stream, || {
        let device = *device;
        let other = std::thread::spawn(move || -> Result<f64, ExtError> {
            let _current = Stream::new(&device)?.as_current()?;
            let x = Tensor::f_ones([1 << 20], (Kind::Float, device.tch()))?;
            Ok(x.f_sum(Kind::Double)?.f_double_value(&[])?)
        });
        step.run(&stream)?;
        let sum = other.join().map_err(|_| ExtError::NoDevice { index: 1, count: 0 })??;
        if sum == f64::from(1 << 20) { Ok(()) } else { Err(ExtError::NoDevice { index: 2, count: 0 }) }
    })?;
    graph.replay(&stream)?;
    stream.synchronize()?;
    Ok("errors come out, the stream stays usable".to_owned())
}

fn linears(device: &Device) -> Outcome {
    let bf16 = (Kind::BFloat16, device.tch());
    let (x, weight) = (Tensor::f_randn([256, 1024], bf16)?, Tensor::f_randn([640, 1024], bf16)?);
    let bias = Tensor::f_randn([640], bf16)?;
    let exact = x.f_to_kind(Kind::Double)?.f_matmul(&weight.f_to_kind(Kind::Double)?.f_transpose(0, 1)?)?;
    let error_of = |out: &Tensor, exact: &Tensor| -> Result<f64, ExtError> {
        let error = out.f_to_kind(Kind::Double)?.f_sub(exact)?;
        Ok(error.f_norm()?.f_double_value(&[])? / exact.f_norm()?.f_double_value(&[])?)
    };
    let mut facts = Vec::new();
    for (name, switch) in
        [("invariant", blas::prefer_invariant as fn() -> _), ("unconstrained", blas::unconstrained)]
    {
        switch()?;
        let mut out = Tensor::f_zeros([256, 640], bf16)?;
        blas::linear_out(&mut out, &x, &weight, None)?;
        let plain = error_of(&out, &exact)?;
        let mut biased = out.f_zeros_like()?;
        blas::linear_out(&mut biased, &x, &weight, Some(&bias))?;
        let biased = error_of(&biased, &exact.f_add(&bias)?)?;
        let mut sum = out.f_ones_like()?;
        blas::linear_add_out(&mut sum, &x, &weight)?;
        let sum = error_of(&sum, &exact.f_add_scalar(1.0)?)?;
        let mut logits = Tensor::f_zeros([256, 640], (Kind::Float, device.tch()))?;
        blas::linear_f32_out(&mut logits, &x, &weight)?;
        let logits = error_of(&logits, &exact)?;
        ensure(plain.max(biased).max(sum) < 4e-3 && logits < 1e-5, || {
            format!("errors {plain} {biased} {sum} {logits}")
        })?;
        let mut num_different = 0;
        for num_rows in [32, 64, 96, 128, 192] {
            let mut part = Tensor::f_zeros([num_rows, 640], bf16)?;
            blas::linear_out(&mut part, &x.f_narrow(0, 0, num_rows)?, &weight, None)?;
            num_different += i32::from(!part.f_equal(&out.f_narrow(0, 0, num_rows)?)?);
        }
        ensure(name != "invariant" || num_different == 0, || {
            format!("{num_different} row counts give other bits")
        })?;
        facts.push(format!("{name}: relative error {plain:.1e}, float32 logits {logits:.1e}, {num_different} of 5 row counts with other bits"));
    }
    let refused = blas::linear_out(&mut Tensor::f_zeros([4, 4], bf16)?, &x, &weight, None);
    ensure(matches!(refused, Err(ExtError::BadTensor { .. })), || format!("a wrong shape: {refused:?}"))?;
    Ok(facts.join("; "))
}

/// Attention of one sequence written out, in float32.
fn plain_attention(qkv: [&Tensor; 3], scale: f64, is_causal: bool) -> Result<Tensor, ExtError> {
    let [q, k, v] =
        qkv.map(|tensor| tensor.f_to_kind(Kind::Float).and_then(|tensor| tensor.f_transpose(0, 1)));
    let (q, k, v) = (q?, k?, v?);
    // [heads, tokens, d]
    let repeats = q.size()[0] / k.size()[0];
    let (k, v) = (
        k.f_repeat_interleave_self_int(repeats, 0, None)?,
        v.f_repeat_interleave_self_int(repeats, 0, None)?,
    );
    let mut scores = q.f_matmul(&k.f_transpose(1, 2)?)?.f_mul_scalar(scale)?;
    if is_causal {
        let later = scores.f_ones_like()?.f_triu(1 + k.size()[1] - q.size()[1])?;
        scores = scores.f_masked_fill(&later.f_to_kind(Kind::Bool)?, f64::NEG_INFINITY)?;
    }
    Ok(scores.f_softmax(-1, Kind::Float)?.f_matmul(&v)?.f_transpose(0, 1)?)
}

fn flash_attention(device: &Device) -> Outcome {
    let lens = [1_i64, 77, 128, 300];
    let starts: Vec<i32> = lens
        .iter()
        .scan(0, |at, len| {
            *at += *len as i32;
            Some(*at)
        })
        .collect();
    let starts = [&[0], starts.as_slice()].concat();
    let total: i64 = lens.iter().sum();
    let cu_seqlens = Tensor::f_from_slice(&starts)?.f_to_device(device.tch())?;
    let mut worst = 0.0_f64;
    for (kind, heads, groups, d) in [
        (Kind::BFloat16, 8, 8, 128),
        (Kind::BFloat16, 8, 2, 64),
        (Kind::Half, 4, 1, 96),
        (Kind::BFloat16, 2, 2, 256),
    ] {
        let make = |num: i64| Tensor::f_randn([total, num, d], (kind, device.tch()));
        let (q, k, v) = (make(heads)?, make(groups)?, make(groups)?);
        let scale = 1.0 / (d as f64).sqrt();
        let out = flash::varlen([&q, &k, &v], &cu_seqlens, 300, scale)?;
        ensure(out.size() == [total, heads, d] && out.kind() == kind, || format!("{out:?}"))?;
        for (seq_idx, len) in lens.iter().enumerate() {
            let part = |tensor: &Tensor| tensor.f_narrow(0, i64::from(starts[seq_idx]), *len);
            let exact = plain_attention([&part(&q)?, &part(&k)?, &part(&v)?], scale, true)?;
            let difference =
                part(&out)?.f_to_kind(Kind::Float)?.f_sub(&exact)?.f_abs()?.f_max()?.f_double_value(&[])?;
            worst = worst.max(difference);
        }
    }
    ensure(worst < 2e-2, || format!("differs by {worst}"))?;
    let used = used_keys(device)?;
    ensure(used < 2e-2, || format!("with used lengths of keys it differs by {used}"))?;
    let bad = flash::varlen([&cu_seqlens, &cu_seqlens, &cu_seqlens], &cu_seqlens, 300, 1.0);
    ensure(matches!(bad, Err(ExtError::BadTensor { .. })), || format!("a wrong type: {bad:?}"))?;
    Ok(format!("largest difference from plain float32 attention {worst:.1e}, with used lengths {used:.1e}"))
}

/// One query a sequence against slots of 64 keys of which some are used, as decoding does.
fn used_keys(device: &Device) -> Result<f64, Box<dyn Error>> {
    let used = [3_i32, 64, 17];
    let bf16 = (Kind::BFloat16, device.tch());
    let (q, k, v) = (
        Tensor::f_randn([3, 4, 64], bf16)?,
        Tensor::f_randn([192, 4, 64], bf16)?,
        Tensor::f_randn([192, 4, 64], bf16)?,
    );
    let on_device = |values: &[i32]| Tensor::f_from_slice(values)?.f_to_device(device.tch());
    let keys = flash::Keys {
        cu_seqlens: &on_device(&[0, 64, 128, 192])?,
        max_len: 64,
        used: Some(&on_device(&used)?),
    };
    let out =
        flash::varlen_with([&q, &k, &v], (&on_device(&[0, 1, 2, 3])?, 1), &keys, 0.125, flash::Mask::Full)?;
    let mut worst = 0.0_f64;
    for (seq_idx, len) in (0..).zip(used) {
        let part = |tensor: &Tensor| tensor.f_narrow(0, 64 * seq_idx, i64::from(len));
        let exact = plain_attention([&q.f_narrow(0, seq_idx, 1)?, &part(&k)?, &part(&v)?], 0.125, false)?;
        let ours = out.f_narrow(0, seq_idx, 1)?.f_to_kind(Kind::Float)?;
        worst = worst.max(ours.f_sub(&exact)?.f_abs()?.f_max()?.f_double_value(&[])?);
    }
    Ok(worst)
}

fn pinned(device: &Device) -> Outcome {
    let stream = Stream::new(device)?;
    let mut buffer = PinnedBuffer::<[u32; 4]>::new(device, 1 << 20)?;
    ensure(buffer.as_slice()?.iter().all(|record| *record == [0; 4]), || "not zero at first".to_owned())?;
    for (record, idx) in buffer.as_mut_slice()?.iter_mut().zip(0..) {
        *record = [idx, 1, 2, 3];
    }
    let on_gpu = Tensor::f_zeros([1 << 20, 4], (Kind::Int, device.tch()))?;
    device.synchronize()?;
    buffer.copy_to(&on_gpu, &stream)?;
    let mut back = PinnedBuffer::<[u32; 4]>::new(device, 1 << 20)?;
    back.copy_from(&on_gpu, &stream)?;
    ensure(back.as_slice()? == buffer.as_slice()?, || "what came back differs".to_owned())?;
    ensure(back.is_ready()?, || "a copy is still under way".to_owned())?;
    let small = PinnedBuffer::<f32>::new(device, 3)?;
    let refused = small.copy_to(&on_gpu, &stream);
    ensure(matches!(refused, Err(ExtError::BadTensor { .. })), || {
        format!("too large a tensor: {refused:?}")
    })?;
    let (start, end) = (Event::new(device)?, Event::new(device)?);
    start.record(&stream)?;
    for _ in 0..16 {
        buffer.copy_to(&on_gpu, &stream)?;
    }
    end.record(&stream)?;
    end.synchronize()?;
    Ok(format!("to the GPU at {:.1} GB/s", f64::from(1 << 28) / 1e6 / f64::from(start.elapsed_ms(&end)?)))
}

fn upload(device: &Device) -> Outcome {
    let path = std::env::temp_dir().join(format!("cuda-smoke-{}.safetensors", std::process::id()));
    let outcome = upload_from(device, &path);
    std::fs::remove_file(&path)?;
    outcome
}

/// Loads large and small tensors of a file in the page cache, against one plain copy of as many page-locked bytes.
fn upload_from(device: &Device, path: &Path) -> Outcome {
    const LARGE_ELEMS: usize = (256 << 20) + 5;
    let sizes: Vec<usize> = [vec![LARGE_ELEMS; 8], vec![4099; 64]].concat();
    write_safetensors(path, &sizes)?;
    let source = SafetensorsSource::open_file(path)?;
    let tensors = sizes
        .iter()
        .map(|size| Tensor::f_empty([*size as i64], (Kind::Uint8, device.tch())))
        .collect::<Result<Vec<_>, _>>()?;
    let mut uploader = Uploader::new(device)?;
    device.synchronize()?;
    let mut load = || -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        for (idx, tensor) in tensors.iter().enumerate() {
            let bytes = source.mapped_bytes(&format!("t{idx}")).ok_or("the tensor is not mapped")?;
            uploader.upload(bytes, tensor)?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The file's pages are in memory, but first not yet in this process's map.
    let (first, again) = (load()?, load()?);
    for (idx, tensor) in tensors.iter().enumerate() {
        let bytes = source.mapped_bytes(&format!("t{idx}")).ok_or("the tensor is not mapped")?;
        ensure(Tensor::f_from_slice(bytes)?.f_equal(&tensor.f_to_device(tch::Device::Cpu)?)?, || {
            format!("tensor {idx} differs")
        })?;
    }
    let wrong = uploader.upload(&[0; 3], &tensors[0]);
    ensure(matches!(wrong, Err(ExtError::BadTensor { .. })), || format!("a wrong size: {wrong:?}"))?;

    let pinned = PinnedBuffer::<u8>::new(device, LARGE_ELEMS)?;
    let stream = Stream::current(device)?;
    let start = Instant::now();
    for tensor in &tensors[..8] {
        pinned.copy_to(tensor, &stream)?;
    }
    stream.synchronize()?;
    let plain = start.elapsed().as_secs_f64();
    let start = Instant::now();
    tensors[0].shallow_clone().f_copy_(&Tensor::f_from_slice(pinned.as_slice()?)?)?;
    device.synchronize()?;
    let unpinned = start.elapsed().as_secs_f64();
    let speed = |seconds: f64| 8.0 * LARGE_ELEMS as f64 / seconds / 1e9;
    Ok(format!(
        "{:.1} GB/s at first, {:.1} again; a plain pinned copy {:.1}: {:.0} % and {:.0} %; a plain copy of ordinary memory {:.1} GB/s; {} threads",
        speed(first),
        speed(again),
        speed(plain),
        100.0 * plain / first,
        100.0 * plain / again,
        speed(unpinned) / 8.0,
        rayon::current_num_threads()
    ))
}

fn write_safetensors(path: &Path, sizes: &[usize]) -> Result<(), Box<dyn Error>> {
    let mut at = 0;
    let entries: Vec<String> = sizes
        .iter()
        .enumerate()
        .map(|(idx, size)| {
            let start = at;
            at += size;
            format!(r#""t{idx}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{at}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // 65,521 is a prime, so that no piece of the file equals another at a round distance.
    let pattern: Vec<u8> =
        (0..65_521_u32).map(|value| (value.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut left = at;
    while left > 0 {
        let part = left.min(pattern.len());
        file.write_all(&pattern[..part])?;
        left -= part;
    }
    file.flush()?;
    Ok(())
}

fn out_of_memory(device: &Device) -> Outcome {
    let total_bytes = device.mem_get_info()?.total_bytes;
    let huge = Tensor::f_empty([2 * total_bytes as i64], (Kind::Uint8, device.tch())).map_err(ExtError::from);
    let Err(error) = huge else { return Err("twice the memory of the GPU was given".into()) };
    ensure(error.is_device_out_of_memory(), || error.to_string())?;
    // It is no lasting harm.
    let small = Tensor::f_ones([16], (Kind::Float, device.tch()))?;
    ensure(small.f_sum(Kind::Float)?.f_double_value(&[])? == 16.0, || {
        "the GPU does not work any more".to_owned()
    })?;
    device.empty_cache()?;
    Ok(error.to_string())
}
