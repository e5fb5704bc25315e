//! The launchers of what tensor-parallel ranks exchange.

use std::path::Path;

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Kernel, Launch, Module, OwnMemory, PeerMemory, Stream, Watched};
use tch::{Kind, Tensor};

use super::KernelConfig;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, int, shape_of};

/// Most tensor-parallel ranks.
pub const MAX_TENSOR_RANKS: usize = 8;
/// As `MAX_BLOCKS` in reduce.cu. All of them must run at once, and do on every GPU.
const MAX_BLOCKS: u32 = 128;
const NUM_THREADS: u32 = 512;
const PIECES: i64 = 8;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GroupArgs {
    inbox: [Address; MAX_TENSOR_RANKS],
    marks: [Address; MAX_TENSOR_RANKS],
    state: Address,
    lost: Address,
    slot_elems: i64,
    num_ranks: i32,
    rank: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReduceArgs {
    group: GroupArgs,
    partials: Address,
    residual: Address,
    bias: Address,
    num_elems: i64,
    partial_stride: i64,
    num_partials: i32,
    width: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatherColumnsArgs {
    group: GroupArgs,
    mine: Address,
    out: Address,
    num_rows: i64,
    starts: [i64; MAX_TENSOR_RANKS + 1],
}

/// This rank's memory that the others write into, before it knows theirs.
#[derive(Debug)]
pub struct Inbox {
    memory: OwnMemory,
    num_ranks: usize,
    slot_elems: i64,
}

impl Inbox {
    /// For messages of up to `slot_elems` numbers.
    ///
    /// # Errors
    /// When the GPU has no memory left, or there are too many ranks.
    pub fn new(device: &Device, num_ranks: usize, slot_elems: i64) -> Result<Self, KernelError> {
        if num_ranks == 0 || num_ranks > MAX_TENSOR_RANKS {
            return Err(bad("tensor-parallel ranks", "from 1 to 8", num_ranks as i64));
        }
        let bytes = inbox_bytes(num_ranks, slot_elems) + marks_bytes(num_ranks) + size_of::<[u32; 2]>();
        Ok(Self { memory: OwnMemory::new(device, bytes)?, num_ranks, slot_elems })
    }

    /// What the others need to write into it.
    ///
    /// # Errors
    /// When the driver cannot share memory.
    pub fn handle(&self) -> Result<Vec<u8>, KernelError> {
        Ok(self.memory.handle()?)
    }
}

fn inbox_bytes(num_ranks: usize, slot_elems: i64) -> usize {
    2 * num_ranks * slot_elems as usize * size_of::<f32>()
}

fn marks_bytes(num_ranks: usize) -> usize {
    num_ranks * MAX_BLOCKS as usize * size_of::<u32>()
}

/// The tensor-parallel ranks of a model, as one of them reaches the others.
#[derive(Debug)]
pub struct TensorRanks {
    args: GroupArgs,
    reduce_add: Kernel,
    gather_columns: Kernel,
    lost: Watched,
    // What the addresses are of.
    _inbox: Inbox,
    _others: Vec<PeerMemory>,
}

impl TensorRanks {
    /// `handles`: [`Inbox::handle`] of every rank, in order; `rank` is this one.
    ///
    /// # Errors
    /// When another rank's memory cannot be reached, or the kernels do not load.
    pub fn new(
        device: &Device,
        config: &KernelConfig,
        cache_dir: Option<&Path>,
        inbox: Inbox,
        (handles, rank): (&[Vec<u8>], usize),
    ) -> Result<Self, KernelError> {
        let num_ranks = inbox.num_ranks;
        if handles.len() != num_ranks || rank >= num_ranks {
            return Err(bad("handles of ranks", "one for each rank", handles.len() as i64));
        }
        let module = Module::load(device, &config.reduce(), cache_dir)?;
        let mut others = Vec::new();
        let mut args = GroupArgs {
            slot_elems: inbox.slot_elems,
            num_ranks: num_ranks as i32,
            rank: rank as i32,
            ..GroupArgs::zeroed()
        };
        for (idx, handle) in handles.iter().enumerate() {
            let start = if idx == rank {
                inbox.memory.address()
            } else {
                let other = PeerMemory::open(device, handle)?;
                let address = other.address();
                others.push(other);
                address
            };
            args.inbox[idx] = start;
            args.marks[idx] = start + inbox_bytes(num_ranks, inbox.slot_elems) as u64;
        }
        args.state = args.marks[rank] + marks_bytes(num_ranks) as u64;
        let lost = Watched::new(device)?;
        args.lost = lost.address();
        Ok(Self {
            args,
            reduce_add: module.kernel("reduce_add")?,
            gather_columns: module.kernel("gather_columns")?,
            lost,
            _inbox: inbox,
            _others: others,
        })
    }

    /// The rank that did not come to a launch, if there was one. What was computed since is nothing.
    pub fn lost(&self) -> Option<usize> {
        (self.lost.read() as usize).checked_sub(1)
    }

    /// Most numbers of a message.
    pub fn slot_elems(&self) -> i64 {
        self.args.slot_elems
    }

    /// Enqueues `residual += (the partial sums of all ranks, added in a tree) + bias`, rounded once.
    ///
    /// `partials`: float32 `[num_partials, num_rows, width]`, a power of two up to 8 of them; `residual`: T
    /// `[num_rows, width]`, width a multiple of 4; `bias`: float32 `[width]`.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn reduce_add(
        &self,
        stream: &Stream,
        kind: Kind,
        (partials, residual): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let [num_partials, num_rows, width] = shape_of(partials, "partials")?;
        if width % 4 != 0 || !(1..=PIECES).contains(&num_partials) || num_partials.count_ones() != 1 {
            return Err(bad("partial sums", "1, 2, 4 or 8 of rows of a multiple of 4", num_partials));
        }
        let rows_at_once = (self.args.slot_elems / width.max(1)).max(1);
        let address = tensors.address(partials, "partials", Kind::Float, &[num_partials, num_rows, width])?;
        let into = tensors.address(residual, "residual", kind, &[num_rows, width])?;
        let bias = tensors.optional(bias, "bias", Kind::Float, &[width])?;
        let mut start = 0;
        while start < num_rows {
            let rows = rows_at_once.min(num_rows - start);
            let args = ReduceArgs {
                group: self.args,
                partials: address + (start * width) as u64 * size_of::<f32>() as u64,
                residual: into + (start * width) as u64 * kind.elt_size_in_bytes() as u64,
                bias,
                num_elems: rows * width,
                partial_stride: num_rows * width,
                num_partials: int(num_partials, "partial sums")?,
                width: int(width, "width")?,
            };
            self.reduce_add.launch(&launch(rows * width / 4), stream, &[Arg::value(&args)])?;
            start += rows;
        }
        Ok(())
    }

    /// Enqueues the columns of all ranks side by side. `mine`: float32 `[num_rows, columns of this rank]`, `out`: float32
    /// `[num_rows, all columns]`; `starts`: where each rank's begin, and their number.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn gather_columns(
        &self,
        stream: &Stream,
        mine: &Tensor,
        out: &Tensor,
        starts: &[i64],
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let [num_rows, all_columns] = shape_of(out, "out")?;
        let mut args = GatherColumnsArgs { group: self.args, ..GatherColumnsArgs::zeroed() };
        let rank = self.args.rank as usize;
        if starts.len() != self.args.num_ranks as usize + 1 || starts.last() != Some(&all_columns) {
            return Err(bad("columns of ranks", "as many as all have", all_columns));
        }
        args.starts[..starts.len()].copy_from_slice(starts);
        let columns = starts[rank + 1] - starts[rank];
        let widest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(1).max(1);
        let address = tensors.address(mine, "mine", Kind::Float, &[num_rows, columns])?;
        let into = tensors.address(out, "out", Kind::Float, &[num_rows, all_columns])?;
        let rows_at_once = self.args.slot_elems / widest;
        if rows_at_once == 0 {
            return Err(bad("columns of a rank", &format!("at most {}", self.args.slot_elems), widest));
        }
        let mut start = 0;
        while start < num_rows {
            let rows = rows_at_once.min(num_rows - start);
            args.mine = address + (start * columns) as u64 * 4;
            args.out = into + (start * all_columns) as u64 * 4;
            args.num_rows = rows;
            self.gather_columns.launch(&launch(rows * widest), stream, &[Arg::value(&args)])?;
            start += rows;
        }
        Ok(())
    }
}

/// The same on every rank.
fn launch(num_items: i64) -> Launch {
    let blocks = (num_items.max(1) as u64).div_ceil(u64::from(NUM_THREADS)).min(u64::from(MAX_BLOCKS));
    Launch::linear(blocks as u32, NUM_THREADS)
}
