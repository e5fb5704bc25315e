//! Uploads of large amounts of host memory: weights from a mapped file.
//!
//! The driver copies ordinary memory through a small page-locked buffer of its own with one thread, at a fraction of the
//! bus (4 GB/s of 55 on an H100). Here every thread has two page-locked
//! buffers: it fills one while the other is in flight, and takes the next piece when it is done, so that no thread waits
//! for another and reading the file overlaps with the uploads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use tch::Tensor;
use torch_ext::BadTensor;

use super::copy::copy_past_caches;
use super::{Device, Event, PinnedBuffer, Stream, arg};
use crate::CudaError;

/// Large enough that starting a copy costs nothing beside it, small enough that the last one is soon done.
const PIECE_BYTES: usize = 2 << 20;
/// More threads than this find the memory busy.
const MAX_THREADS: usize = 16;

/// Copies host memory to tensors on a GPU.
#[derive(Debug)]
pub struct Uploader {
    lanes: Vec<Lane>,
    /// The lane of the next tensor that is no longer than a piece.
    next_lane: usize,
    stream: Stream,
    ready: Event,
    copied: Event,
}

/// The buffers of one thread at a time.
#[derive(Debug)]
struct Lane {
    buffers: [PinnedBuffer<u8>; 2],
    next: usize,
}

impl Uploader {
    /// Takes 4 MiB of page-locked memory for each thread of rayon's pool, up to 64 MiB.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let buffer = || PinnedBuffer::new(device, PIECE_BYTES);
        let lane = || Ok::<_, CudaError>(Lane { buffers: [buffer()?, buffer()?], next: 0 });
        Ok(Self {
            lanes: (0..rayon::current_num_threads().min(MAX_THREADS))
                .map(|_| lane())
                .collect::<Result<_, _>>()?,
            next_lane: 0,
            stream: Stream::new(device)?,
            ready: Event::untimed(device)?,
            copied: Event::untimed(device)?,
        })
    }

    /// Copies `from` to all of `to`, a contiguous tensor of as many bytes on the GPU, with the threads of rayon's pool: a
    /// lock that others of its tasks take must not be held meanwhile. `from` may be changed or unmapped when this returns,
    /// though the last part is still in flight: what the calling thread's current stream is given afterwards waits for it.
    ///
    /// # Errors
    /// When the tensor is another, or earlier work on the GPU failed.
    pub fn upload(&mut self, from: &[u8], to: &Tensor) -> Result<(), CudaError> {
        let device = *self.stream.device();
        let address = arg::address(to, &device, "tensor to fill")?;
        let size_bytes = to.numel() * to.kind().elt_size_in_bytes();
        if size_bytes != from.len() {
            return Err(CudaError::BadTensor(BadTensor {
                what: "tensor to fill",
                expected: format!("{} bytes long", from.len()),
                actual: size_bytes.to_string(),
            }));
        }
        if from.is_empty() {
            return Ok(());
        }
        // The tensor's memory may still be in use by what the current stream holds.
        let current = Stream::current(&device)?;
        self.ready.record(&current)?;
        self.stream.wait(&self.ready)?;
        let sent = self.send(from, address);
        // Also after an error: the tensor's memory must not be given to others before the pieces in flight have arrived.
        self.copied.record(&self.stream)?;
        current.wait(&self.copied)?;
        sent
    }

    fn send(&mut self, from: &[u8], address: u64) -> Result<(), CudaError> {
        let stream = self.stream;
        if from.len() <= PIECE_BYTES {
            self.next_lane = (self.next_lane + 1) % self.lanes.len();
            return self.lanes[self.next_lane].send(from, address, &stream);
        }
        let num_taken = AtomicUsize::new(0);
        self.lanes.par_iter_mut().try_for_each(|lane| {
            loop {
                let at = num_taken.fetch_add(1, Ordering::Relaxed) * PIECE_BYTES;
                let Some(rest) = from.get(at..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
                lane.send(&rest[..rest.len().min(PIECE_BYTES)], address + at as u64, &stream)?;
            }
        })
    }
}

impl Lane {
    /// Sends a piece that fits into a buffer.
    fn send(&mut self, piece: &[u8], address: u64, stream: &Stream) -> Result<(), CudaError> {
        let buffer = &mut self.buffers[self.next];
        self.next ^= 1;
        // Waits until its last content is on the GPU.
        copy_past_caches(piece, &mut buffer.as_mut_slice()?[..piece.len()]);
        buffer.copy_bytes_to(address, piece.len(), stream)
    }
}
