//! The launchers of what a pipeline stage hands to the next one.

use std::path::Path;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{
    Arg, Device, Kernel, Launch, Module, OpenedMemory, OwnMemory, SharedIn, SharedMemory, Stream, Watched,
};
use tch::{Kind, Tensor};

use super::{KernelConfig, PROGRESS_BYTES};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad};

/// As `NUM_SLOTS` in stage.cu.
const NUM_SLOTS: i64 = 4;
/// Bytes of a slot; longer messages take several.
const SLOT_BYTES: i64 = 8 << 20;
/// Of every launch, on both sides: all of them run at once on every GPU.
const NUM_BLOCKS: u32 = 32;
const NUM_THREADS: u32 = 512;
const VECTOR_BYTES: i64 = 16;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct StageArgs {
    data: Address,
    slots: Address,
    came: Address,
    taken: Address,
    progress: Address,
    lost: Address,
    num_vectors: i64,
    slot_vectors: i64,
    other: u32,
    reserved: u32,
}

/// Memory of a stage into which the one before it writes.
#[derive(Debug)]
pub struct StageInbox(SharedMemory);

impl StageInbox {
    /// What one takes.
    pub const BYTES: u64 = (NUM_SLOTS * SLOT_BYTES) as u64 + 2 * 4 * NUM_BLOCKS as u64;

    /// Empty.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn new(device: &Device, place: SharedIn) -> Result<Self, KernelError> {
        Ok(Self(SharedMemory::new(device, Self::BYTES as usize, place)?))
    }

    /// What the stage before needs to write into it.
    ///
    /// # Errors
    /// When the driver cannot share memory.
    pub fn handle(&self) -> Result<Vec<u8>, KernelError> {
        Ok(self.0.handle()?)
    }
}

/// The way of the residual stream between two stages, at one of its ends.
#[derive(Debug)]
pub struct StageLink {
    args: StageArgs,
    kernel: Kernel,
    lost: Arc<Watched>,
    // What the addresses are of.
    _progress: OwnMemory,
    _inbox: Inbox,
}

#[derive(Debug)]
enum Inbox {
    Own { _memory: StageInbox },
    Others { _memory: OpenedMemory },
}

impl StageLink {
    /// The end that receives, from stage `other`.
    ///
    /// # Errors
    /// When there is no memory left, or the kernel does not load.
    pub fn receiving(
        device: &Device,
        config: &KernelConfig,
        cache_dir: Option<&Path>,
        inbox: StageInbox,
        other: u32,
    ) -> Result<Self, KernelError> {
        let kernel = Module::load(device, &config.stage(), cache_dir)?.kernel("receive_stage")?;
        let start = inbox.0.address();
        Self::new(device, kernel, (Inbox::Own { _memory: inbox }, start), other)
    }

    /// The end that sends, to stage `other`, whose [`StageInbox::handle`] it is.
    ///
    /// # Errors
    /// When that memory cannot be reached, or the kernel does not load.
    pub fn sending(
        device: &Device,
        config: &KernelConfig,
        cache_dir: Option<&Path>,
        handle: &[u8],
        other: u32,
    ) -> Result<Self, KernelError> {
        let memory = OpenedMemory::open(device, handle)?;
        let kernel = Module::load(device, &config.stage(), cache_dir)?.kernel("send_stage")?;
        let start = memory.address();
        Self::new(device, kernel, (Inbox::Others { _memory: memory }, start), other)
    }

    fn new(
        device: &Device,
        kernel: Kernel,
        (inbox, start): (Inbox, Address),
        other: u32,
    ) -> Result<Self, KernelError> {
        let progress = OwnMemory::new(device, PROGRESS_BYTES)?;
        let lost = Arc::new(Watched::new(device)?);
        let came = start + (NUM_SLOTS * SLOT_BYTES) as u64;
        let args = StageArgs {
            data: 0,
            slots: start,
            came,
            taken: came + 4 * u64::from(NUM_BLOCKS),
            progress: progress.address(),
            lost: lost.address(),
            num_vectors: 0,
            slot_vectors: SLOT_BYTES / VECTOR_BYTES,
            other,
            reserved: 0,
        };
        Ok(Self { args, kernel, lost, _progress: progress, _inbox: inbox })
    }

    /// 1 more than the stage that did not come, or 0. What was computed since is nothing.
    pub fn lost(&self) -> Arc<Watched> {
        Arc::clone(&self.lost)
    }

    /// Enqueues the way of a message: what `data` holds at one end, `T[n, h]` of whole 16 bytes, comes into `data` at the
    /// other, which must be of the same size.
    ///
    /// # Errors
    /// When the tensor does not fit.
    pub fn pass(&self, stream: &Stream, kind: Kind, data: &Tensor) -> Result<(), KernelError> {
        let address = Tensors::on(stream).address(data, "the residual stream", kind, &data.size())?;
        let num_bytes = data.numel() as i64 * kind.elt_size_in_bytes() as i64;
        if num_bytes % VECTOR_BYTES != 0 || address % VECTOR_BYTES as u64 != 0 {
            return Err(bad("bytes of the residual stream", "a multiple of 16", num_bytes));
        }
        let mut start = 0;
        while start < num_bytes {
            let bytes = SLOT_BYTES.min(num_bytes - start);
            let args =
                StageArgs { data: address + start as u64, num_vectors: bytes / VECTOR_BYTES, ..self.args };
            self.kernel.launch(&Launch::linear(NUM_BLOCKS, NUM_THREADS), stream, &[Arg::value(&args)])?;
            start += bytes;
        }
        Ok(())
    }
}
