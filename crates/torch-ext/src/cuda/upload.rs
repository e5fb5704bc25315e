//! Large amounts of host memory to a GPU: weights from a mapped file.
//!
//! The driver copies ordinary memory through a small page-locked buffer of its own with one thread, at a fraction of the
//! bus. Here several threads fill one of two page-locked buffers while the other is on its way, so that reading the file
//! and the bus work at once.

use rayon::prelude::*;
use tch::Tensor;

use super::{Device, Event, PinnedBuffer, Stream, arg};
use crate::ExtError;

/// Large enough that starting a copy costs nothing beside it, small enough that the last one is soon done.
const STAGING_BYTES: usize = 32 << 20;
/// What one thread copies at a time: the pages of a mapped file are looked up by many threads at once.
const PIECE_BYTES: usize = 1 << 20;

/// Copies host memory to tensors on a GPU.
#[derive(Debug)]
pub struct Uploader {
    staging: [PinnedBuffer<u8>; 2],
    /// Which of the two is filled next.
    next: usize,
    stream: Stream,
    ready: Event,
    copied: Event,
}

impl Uploader {
    /// Takes 64 MiB of page-locked memory.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new(device: &Device) -> Result<Self, ExtError> {
        Ok(Self {
            staging: [PinnedBuffer::new(device, STAGING_BYTES)?, PinnedBuffer::new(device, STAGING_BYTES)?],
            next: 0,
            stream: Stream::new(device)?,
            ready: Event::untimed(device)?,
            copied: Event::untimed(device)?,
        })
    }

    /// Copies `from` to all of `to`, a contiguous tensor of as many bytes on the GPU. `from` may be changed or unmapped when this
    /// returns, though the last part is still on its way: what the calling thread's current stream is given afterwards
    /// waits for it.
    ///
    /// # Errors
    /// When the tensor is another, or earlier work on the GPU failed.
    pub fn upload(&mut self, from: &[u8], to: &Tensor) -> Result<(), ExtError> {
        let device = *self.stream.device();
        let address = arg::address(to, &device, "tensor to fill")?;
        let size_bytes = to.numel() * to.kind().elt_size_in_bytes();
        if size_bytes != from.len() {
            return Err(ExtError::BadTensor {
                what: "tensor to fill",
                expected: format!("{} bytes long", from.len()),
                actual: size_bytes.to_string(),
            });
        }
        // The tensor's memory may still be in use by what the current stream holds.
        let current = Stream::current(&device)?;
        self.ready.record(&current)?;
        self.stream.wait(&self.ready)?;
        let mut at = address;
        for chunk in from.chunks(STAGING_BYTES) {
            let staging = &mut self.staging[self.next];
            self.next ^= 1;
            // Waits until its last content is on the GPU.
            let filled = &mut staging.as_mut_slice()?[..chunk.len()];
            filled
                .par_chunks_mut(PIECE_BYTES)
                .zip(chunk.par_chunks(PIECE_BYTES))
                .for_each(|(to, from)| to.copy_from_slice(from));
            staging.copy_bytes_to(at, chunk.len(), &self.stream)?;
            at += chunk.len() as u64;
        }
        self.copied.record(&self.stream)?;
        current.wait(&self.copied)
    }
}
