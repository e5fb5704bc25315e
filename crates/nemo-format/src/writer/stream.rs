//! Tensors read ahead of the writer, in chunks: while one chunk is written, the next ones are put together.
//!
//! What is in memory is a few chunks, however large a tensor is.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use crate::convert_dtype::convert_into;
use crate::{DType, FormatError, Region, TensorMeta, TensorSource};

/// Large enough that a write costs more than handing it over.
const CHUNK_BYTES: usize = 8 << 20;
/// Chunks that wait for the writer.
const MAX_WAITING_CHUNKS: usize = 3;
/// Mapped pages are brought in by reading a byte of each.
const PAGE_BYTES: usize = 4096;

/// A tensor to write.
pub(super) struct Job<'a> {
    /// By which the source knows it.
    pub(super) name: &'a str,
    /// The type to write.
    pub(super) dtype: DType,
}

/// Whether the checksum of each tensor is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    Crc32,
}

/// What the writer gets, tensor after tensor.
pub(super) enum Event<'a> {
    /// The job with this index begins.
    Begin(usize),
    /// Its next bytes.
    Bytes(&'a [u8]),
    /// It has ended; its checksum, or 0.
    End(usize, u32),
}

enum Chunk<'a> {
    Begin(usize),
    Mapped(&'a [u8]),
    Owned(Vec<u8>),
    End(usize, u32),
}

/// Calls `write` with the tensors of `jobs` in order.
pub(super) fn stream(
    source: &dyn TensorSource,
    jobs: &[Job<'_>],
    checksums: Checksums,
    write: &mut dyn FnMut(Event<'_>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    std::thread::scope(|scope| {
        let (chunks, waiting) = sync_channel(MAX_WAITING_CHUNKS);
        let (used, recycled) = channel();
        scope.spawn(move || {
            let mut reader = Reader { source, recycled, checksums };
            let mut send = |chunk| chunks.send(chunk).is_ok();
            for (index, job) in jobs.iter().enumerate() {
                match reader.read(index, job, &mut send) {
                    Ok(true) => {}
                    // The writer has failed and says so itself.
                    Ok(false) => return,
                    Err(error) => {
                        send(Err(error));
                        return;
                    }
                }
            }
        });
        receive(&waiting, &used, write)
    })
}

fn receive(
    waiting: &Receiver<Result<Chunk<'_>, FormatError>>,
    used: &Sender<Vec<u8>>,
    write: &mut dyn FnMut(Event<'_>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    for chunk in waiting {
        match chunk? {
            Chunk::Begin(index) => write(Event::Begin(index))?,
            Chunk::Mapped(bytes) => write(Event::Bytes(bytes))?,
            Chunk::Owned(bytes) => {
                write(Event::Bytes(&bytes))?;
                // The reader is done when it no longer takes buffers back.
                drop(used.send(bytes));
            }
            Chunk::End(index, checksum) => write(Event::End(index, checksum))?,
        }
    }
    Ok(())
}

/// Sends a chunk; false when the receiver is gone.
type Send<'s, 'a> = dyn FnMut(Result<Chunk<'a>, FormatError>) -> bool + 's;

struct Reader<'a> {
    source: &'a dyn TensorSource,
    recycled: Receiver<Vec<u8>>,
    checksums: Checksums,
}

impl<'a> Reader<'a> {
    fn read(&mut self, index: usize, job: &Job<'_>, send: &mut Send<'_, 'a>) -> Result<bool, FormatError> {
        let missing = || FormatError::MissingTensor { name: job.name.to_owned() };
        let source = self.source;
        let meta = source.meta(job.name).ok_or_else(missing)?;
        let mapped = source.mapped_bytes(job.name).filter(|_| meta.dtype == job.dtype);
        let mut checksum = crc32fast::Hasher::new();
        if !send(Ok(Chunk::Begin(index))) {
            return Ok(false);
        }
        for rows in chunks(meta, job.dtype) {
            let chunk = match mapped {
                Some(bytes) => {
                    let num_rows = meta.shape.first().copied().unwrap_or(1).max(1);
                    let row_bytes = bytes.len() / num_rows as usize;
                    let part = bytes
                        .get(rows.start as usize * row_bytes..rows.end as usize * row_bytes)
                        .ok_or_else(missing)?;
                    Chunk::Mapped(part)
                }
                None => Chunk::Owned(self.assemble(meta, job, rows)?),
            };
            let bytes = match &chunk {
                Chunk::Mapped(bytes) => *bytes,
                Chunk::Owned(bytes) => bytes,
                Chunk::Begin(_) | Chunk::End(..) => &[],
            };
            match self.checksums {
                Checksums::Crc32 => checksum.update(bytes),
                Checksums::None => touch(bytes),
            }
            if !send(Ok(chunk)) {
                return Ok(false);
            }
        }
        Ok(send(Ok(Chunk::End(index, checksum.finalize()))))
    }

    /// Rows of a tensor in the type to write, in a buffer that the writer has returned, if there is one.
    fn assemble(
        &mut self,
        meta: &TensorMeta,
        job: &Job<'_>,
        rows: Range<u64>,
    ) -> Result<Vec<u8>, FormatError> {
        let mut region = Region::whole(&meta.shape);
        if let Some(first) = region.ranges.first_mut() {
            *first = rows;
        }
        let num_elems = region.shape().iter().product::<u64>() as usize;
        let mut bytes = self.recycled.try_recv().unwrap_or_default();
        bytes.resize(num_elems * job.dtype.size_bytes(), 0);
        if meta.dtype == job.dtype {
            self.source.read(job.name, &region, &mut bytes)?;
        } else {
            let mut stored = vec![0; num_elems * meta.dtype.size_bytes()];
            self.source.read(job.name, &region, &mut stored)?;
            convert_into(&stored, meta.dtype, &mut bytes, job.dtype, 0.0);
        }
        Ok(bytes)
    }
}

/// Row ranges of at most [`CHUNK_BYTES`], one row at least. A tensor without axes is one row.
fn chunks(meta: &TensorMeta, dtype: DType) -> impl Iterator<Item = Range<u64>> + use<> {
    let num_rows = meta.shape.first().copied().unwrap_or(1);
    let row_elems: u64 = meta.shape.iter().skip(1).product();
    let row_bytes = row_elems.saturating_mul(dtype.size_bytes().max(meta.dtype.size_bytes()) as u64);
    let step = (CHUNK_BYTES as u64 / row_bytes.max(1)).max(1);
    (0..num_rows)
        .step_by(usize::try_from(step).unwrap_or(usize::MAX))
        .map(move |start| start..start.saturating_add(step).min(num_rows))
}

fn touch(bytes: &[u8]) {
    let sum = bytes.iter().step_by(PAGE_BYTES).fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    std::hint::black_box(sum);
}
