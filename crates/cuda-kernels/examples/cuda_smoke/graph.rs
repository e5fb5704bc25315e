//! Graphs: replays beside the eager step, and captures that fail.

use cuda_runtime::{CudaError, Device, Event, Graph, GraphPool, Kernel, PinnedBuffer, Stream};
use tch::{Kind, Tensor};
use torch_ext::cuda::blas;

use crate::cases::{Outcome, ensure};
use crate::kernel::{axpy, kernel};

/// What is captured: a linear layer, a conversion and a kernel of our own.
struct Step {
    x: Tensor,
    weight: Tensor,
    hidden: Tensor,
    y: Tensor,
    kernel: Kernel,
}

impl Step {
    fn new(device: &Device) -> Result<Self, CudaError> {
        let bf16 = (Kind::BFloat16, device.tch());
        Ok(Self {
            x: Tensor::f_randn([64, 512], bf16)?,
            weight: Tensor::f_randn([256, 512], bf16)?,
            hidden: Tensor::f_zeros([64, 256], bf16)?,
            y: Tensor::f_zeros([64, 256], (Kind::Float, device.tch()))?,
            kernel: kernel(device, "axpy")?,
        })
    }

    fn run(&self, stream: &Stream) -> Result<(), CudaError> {
        blas::linear_out(&mut self.hidden.shallow_clone(), &self.x, &self.weight, None)?;
        axpy(&self.kernel, stream, &self.y, &self.hidden.f_to_kind(Kind::Float)?, 0.25)
    }
}

pub(crate) fn replays(device: &Device) -> Outcome {
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

fn mark(stream: &Stream) -> Result<Event, CudaError> {
    let event = Event::untimed(stream.device())?;
    event.record(stream)?;
    Ok(event)
}

pub(crate) fn trouble(device: &Device) -> Outcome {
    let step = Step::new(device)?;
    let stream = Stream::new(device)?;
    device.synchronize()?;
    let own = Graph::capture(&stream, || {
        step.run(&stream)?;
        Err(CudaError::NoDevice { index: 7, count: 0 })
    });
    ensure(matches!(own, Err(CudaError::NoDevice { index: 7, .. })), || format!("own error: {own:?}"))?;
    let waits = Graph::capture(&stream, || stream.synchronize());
    ensure(matches!(waits, Err(CudaError::Call { .. })), || format!("waiting in a capture: {waits:?}"))?;
    let mut buffer = PinnedBuffer::<f32>::new(device, 64 * 256)?;
    let copies = Graph::capture(&stream, || buffer.copy_from(&step.y, &stream));
    ensure(copies.is_err(), || "a copy of a pinned buffer was captured".to_owned())?;
    ensure(!stream.is_capturing()?, || "the stream is still captured".to_owned())?;

    // Another thread works, allocates and waits meanwhile; a capture of the whole process would fail.
    let graph = Graph::capture(&stream, || {
        let device = *device;
        let other = std::thread::spawn(move || -> Result<f64, CudaError> {
            let _current = Stream::new(&device)?.as_current()?;
            let x = Tensor::f_ones([1 << 20], (Kind::Float, device.tch()))?;
            Ok(x.f_sum(Kind::Double)?.f_double_value(&[])?)
        });
        step.run(&stream)?;
        let sum = other.join().map_err(|_| CudaError::NoDevice { index: 1, count: 0 })??;
        if sum == f64::from(1 << 20) { Ok(()) } else { Err(CudaError::NoDevice { index: 2, count: 0 }) }
    })?;
    graph.replay(&stream)?;
    stream.synchronize()?;
    Ok("errors come out, the stream stays usable".to_owned())
}
