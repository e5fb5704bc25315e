//! The launchers of what tensor-parallel ranks exchange.

use std::path::Path;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{
    Arg, Device, Kernel, Launch, Module, OpenedMemory, OwnMemory, SharedIn, SharedMemory, Stream, Watched,
};
use model_spec::Normalization;
use tch::{Kind, Tensor};

use super::gemm_shape::MAX_GEMM_ROWS;
use super::pointwise::{MAX_NORM_WIDTH, threads_for, whole_vectors};
use super::{KernelConfig, PROGRESS_BYTES};
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, int, shape_of};

/// Most tensor-parallel ranks.
pub const MAX_TENSOR_RANKS: usize = 8;
/// As `MAX_BLOCKS` in reduce.cu.
const MAX_BLOCKS: u32 = 128;
const NUM_THREADS: u32 = 512;
const PIECES: i64 = 8;
/// Sums are large whose numbers for all other ranks are more than this: then each rank adds some rows. Below, a second
/// meeting takes longer than what is saved.
const LARGE_ELEMS: i64 = 1 << 20;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GroupArgs {
    inbox: [Address; MAX_TENSOR_RANKS],
    few: [Address; MAX_TENSOR_RANKS],
    marks: [Address; MAX_TENSOR_RANKS],
    progress: Address,
    lost: Address,
    slot_elems: i64,
    few_elems: i64,
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
    normed: Address,
    gain: Address,
    shift: Address,
    partial_stride: i64,
    num_partials: i32,
    num_rows: i32,
    width: i32,
    is_large: i32,
    eps: f32,
    reserved: i32,
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

/// A norm of the rows that a sum makes.
#[derive(Clone, Copy, Debug)]
pub struct NormOfSum<'a> {
    /// Which one.
    pub normalization: Normalization,
    /// `float32[width]`.
    pub gain: &'a Tensor,
    /// `float32[width]`.
    pub bias: Option<&'a Tensor>,
    /// Added to the mean square.
    pub eps: f32,
    /// `T[num_rows, width]`.
    pub out: &'a Tensor,
}

/// This rank's memory that the others write into, before it knows theirs.
#[derive(Debug)]
pub struct Inbox {
    memory: SharedMemory,
    num_ranks: usize,
    slot_elems: i64,
    /// Most numbers of a sum of few rows; none in the host's memory, where too many would wait at once.
    few_elems: i64,
    num_sms: u32,
}

impl Inbox {
    /// For messages of up to `slot_elems` numbers.
    ///
    /// # Errors
    /// When there is no memory left, or there are too many ranks.
    pub fn new(
        device: &Device,
        num_ranks: usize,
        slot_elems: i64,
        place: SharedIn,
    ) -> Result<Self, KernelError> {
        if num_ranks == 0 || num_ranks > MAX_TENSOR_RANKS {
            return Err(bad("tensor-parallel ranks", "from 1 to 8", num_ranks as i64));
        }
        let few_elems = match place {
            // Whole vectors.
            SharedIn::Gpu => slot_elems.min(LARGE_ELEMS / (num_ranks as i64 - 1).max(1)) / 8 * 8,
            SharedIn::Host => 0,
        };
        let parts = [slot_elems, few_elems].map(|elems| inbox_bytes(num_ranks, elems));
        let bytes = parts.iter().sum::<usize>() + marks_bytes(num_ranks);
        let memory = SharedMemory::new(device, bytes, place)?;
        Ok(Self { memory, num_ranks, slot_elems, few_elems, num_sms: device.num_sms()? })
    }

    /// What the others need to write into it, and to launch what this rank launches.
    ///
    /// # Errors
    /// When the driver cannot share memory.
    pub fn handle(&self) -> Result<Vec<u8>, KernelError> {
        Ok([self.num_sms.to_le_bytes().as_slice(), &self.memory.handle()?].concat())
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
    sums: SumKernels,
    /// For sums that every rank adds, whose numbers say themselves that they have come.
    few_sums: SumKernels,
    gather_columns: Kernel,
    /// Blocks of a launch: all of them must run at once, on every GPU.
    max_blocks: u32,
    /// Whether a kernel can start before the one before it has ended.
    can_overlap: bool,
    lost: Arc<Watched>,
    // What the addresses are of.
    _progress: OwnMemory,
    _inbox: Inbox,
    _others: Vec<OpenedMemory>,
}

#[derive(Debug)]
struct SumKernels {
    rms_norm: Kernel,
    layer_norm: Kernel,
    wide_rms_norm: Kernel,
    wide_layer_norm: Kernel,
}

impl SumKernels {
    fn of(module: &Module, name: &str) -> Result<Self, KernelError> {
        let kernel = |norm: &str| module.kernel(&format!("{name}_{norm}"));
        Ok(Self {
            rms_norm: kernel("rms_norm")?,
            layer_norm: kernel("layer_norm")?,
            wide_rms_norm: kernel("rms_norm_wide")?,
            wide_layer_norm: kernel("layer_norm_wide")?,
        })
    }

    /// For rows of this width; without a norm any of them.
    fn get(&self, norm: Option<Normalization>, width: i64) -> &Kernel {
        let is_wide = width > 8 * i64::from(threads_for(width));
        match (norm, is_wide) {
            (Some(Normalization::LayerNorm), false) => &self.layer_norm,
            (Some(Normalization::LayerNorm), true) => &self.wide_layer_norm,
            (Some(Normalization::RmsNorm) | None, false) => &self.rms_norm,
            (Some(Normalization::RmsNorm) | None, true) => &self.wide_rms_norm,
        }
    }
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
            few_elems: inbox.few_elems,
            num_ranks: num_ranks as i32,
            rank: rank as i32,
            ..GroupArgs::zeroed()
        };
        let mut max_blocks = MAX_BLOCKS.min(inbox.num_sms);
        for (idx, handle) in handles.iter().enumerate() {
            let start = if idx == rank {
                inbox.memory.address()
            } else {
                let Some((num_sms, handle)) = handle.split_first_chunk::<4>() else {
                    return Err(bad("the bytes of a rank's handle", "more than 4", handle.len() as i64));
                };
                max_blocks = max_blocks.min(u32::from_le_bytes(*num_sms));
                let other = OpenedMemory::open(device, handle)?;
                let address = other.address();
                others.push(other);
                address
            };
            args.inbox[idx] = start;
            args.few[idx] = start + inbox_bytes(num_ranks, inbox.slot_elems) as u64;
            args.marks[idx] = args.few[idx] + inbox_bytes(num_ranks, inbox.few_elems) as u64;
        }
        let progress = OwnMemory::new(device, PROGRESS_BYTES)?;
        args.progress = progress.address();
        let lost = Arc::new(Watched::new(device)?);
        args.lost = lost.address();
        Ok(Self {
            args,
            sums: SumKernels::of(&module, "reduce")?,
            few_sums: SumKernels::of(&module, "reduce_few")?,
            gather_columns: module.kernel("gather_columns")?,
            max_blocks: max_blocks.max(1),
            can_overlap: device.compute_capability()?.0 >= 9,
            lost,
            _progress: progress,
            _inbox: inbox,
            _others: others,
        })
    }

    /// The rank that did not come to a launch, if there was one: 1 more than its number, or 0. What was computed since is
    /// nothing.
    pub fn lost(&self) -> Arc<Watched> {
        Arc::clone(&self.lost)
    }

    /// Most numbers of a message.
    pub fn slot_elems(&self) -> i64 {
        self.args.slot_elems
    }

    /// Enqueues `residual += (the partial sums of all ranks, added in a tree) + bias`, rounded once, and the norm of that.
    ///
    /// `partials`: float32 `[num_partials, num_rows, width]`, a power of two up to 8 of them; `residual`: T
    /// `[num_rows, width]`, width a multiple of 8 up to 16,384; `bias`: float32 `[width]`.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn reduce_add(
        &self,
        stream: &Stream,
        kind: Kind,
        (partials, residual): (&Tensor, &Tensor),
        (bias, norm): (Option<&Tensor>, Option<&NormOfSum<'_>>),
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let [num_partials, num_rows, width] = shape_of(partials, "partials")?;
        if !(1..=PIECES).contains(&num_partials) || num_partials.count_ones() != 1 {
            return Err(bad("partial sums", "1, 2, 4 or 8", num_partials));
        }
        let row_width = whole_vectors(width, MAX_NORM_WIDTH)?;
        let shape = [num_rows, width];
        let address = tensors.address(partials, "partials", Kind::Float, &[num_partials, num_rows, width])?;
        let into = tensors.address(residual, "residual", kind, &shape)?;
        let mut args = ReduceArgs {
            group: self.args,
            bias: tensors.optional(bias, "bias", Kind::Float, &[width])?,
            normed: tensors.optional(norm.map(|norm| norm.out), "normed", kind, &shape)?,
            gain: tensors.optional(norm.map(|norm| norm.gain), "gain", Kind::Float, &[width])?,
            shift: tensors.optional(norm.and_then(|norm| norm.bias), "norm's bias", Kind::Float, &[width])?,
            partial_stride: num_rows * width,
            num_partials: int(num_partials, "partial sums")?,
            width: row_width,
            eps: norm.map_or(0.0, |norm| norm.eps),
            ..ReduceArgs::zeroed()
        };
        let rows_at_once = (self.args.slot_elems / width).max(1);
        let elem_bytes = kind.elt_size_in_bytes() as u64;
        let mut start = 0;
        while start < num_rows {
            let rows = rows_at_once.min(num_rows - start);
            let before = (start * width) as u64;
            let is_large = (i64::from(self.args.num_ranks) - 1) * rows * width > LARGE_ELEMS;
            let is_few = self.args.num_ranks > 1 && !is_large && rows * width <= self.args.few_elems;
            let kernels = if is_few { &self.few_sums } else { &self.sums };
            let of_rows = |address: Address| if address == 0 { 0 } else { address + before * elem_bytes };
            args.partials = address + before * size_of::<f32>() as u64;
            args.residual = of_rows(into);
            args.num_rows = int(rows, "rows")?;
            args.is_large = i32::from(is_large);
            let part = ReduceArgs { normed: of_rows(args.normed), ..args };
            let launch = Launch {
                overlaps: self.can_overlap && num_rows <= MAX_GEMM_ROWS,
                ..Launch::linear((rows as u32).min(self.max_blocks), threads_for(width))
            };
            let kernel = kernels.get(norm.map(|norm| norm.normalization), width);
            kernel.launch(&launch, stream, &[Arg::value(&part)])?;
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
            self.gather_columns.launch(&self.launch(rows * widest), stream, &[Arg::value(&args)])?;
            start += rows;
        }
        Ok(())
    }

    /// The same on every rank.
    fn launch(&self, num_items: i64) -> Launch {
        let blocks = (num_items.max(1) as u64).div_ceil(u64::from(NUM_THREADS));
        Launch::linear(blocks.min(u64::from(self.max_blocks)) as u32, NUM_THREADS)
    }
}
