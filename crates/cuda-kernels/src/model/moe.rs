//! Launchers of a mixture of experts.

use std::path::Path;

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Kernel, Launch, Module, Stream};
use model_spec::{Nonlinearity, RouterScore};
use tch::{Kind, Tensor};

use super::KernelConfig;
use super::nonlinearity::Gating;
use super::programs::TileRows;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// Rows of a block of `route`, and its threads.
const ROUTE_ROWS: i64 = 4;
const ROUTE_THREADS: u32 = 256;
const ROUTE_WARPS: i64 = 8;
/// Enough blocks of `route` to keep a GPU busy; each then has more experts.
const ROUTE_BLOCKS: i64 = 512;
/// Rows of a block of `choose`, a warp each.
const CHOOSE_ROWS: i64 = 4;
/// The threads of `group`, each of which has an expert.
const GROUP_THREADS: u32 = 1024;
const MULTIPLY_THREADS: u32 = 128;
/// Lines of a weight that a block takes.
const WEIGHT_LINES: i64 = 128;
const STAGES: u32 = 4;
const JOIN_THREADS: i64 = 128;
/// A lane keeps a slot.
const MAX_TOPK: i64 = 32;
/// As many as ranks can share.
const MAX_PIECES: i64 = 8;
/// Up to so many rows an expert on average, the tile in which most experts' rows are together (H200, Qwen3-30B-A3B).
const MAX_ROWS_OF_SHORT: i64 = 6;
const MAX_ROWS_OF_MEDIUM: i64 = 24;

/// What is given to [`MoeKernels::run`].
#[derive(Clone, Copy, Debug)]
pub struct RunMoe<'a> {
    /// `T[n, h]`, normalised; h a multiple of 8.
    pub x: &'a Tensor,
    /// `T[n, h]`; what the experts make is added to it and rounded once.
    pub residual: &'a Tensor,
    /// The router and where experts' weights lie.
    pub weights: &'a MoeWeights,
    /// `float32[n, h]`: what the shared expert makes of `x`, without its gate.
    pub shared: Option<&'a Tensor>,
}

/// What is given to [`MoeKernels::run_pieces`].
#[derive(Clone, Copy, Debug)]
pub struct RunMoePieces<'a> {
    /// `T[n, h]`, normalised; h a multiple of 8.
    pub x: &'a Tensor,
    /// The router and where experts' weights lie.
    pub weights: &'a MoeWeights,
    /// `float32[num_pieces, n, h]`: the pieces of the inputs of `fc2`, each a multiple of 8 wide, are summed apart.
    pub partials: &'a Tensor,
}

/// What all kernels of a layer read.
#[derive(Clone, Copy, Debug)]
struct Inputs<'a> {
    x: &'a Tensor,
    weights: &'a MoeWeights,
    num_pieces: i64,
}

/// The weights of a layer with experts. `fc1` and `fc2` hold addresses: whoever makes them keeps the weights.
#[derive(Debug)]
pub struct MoeWeights {
    /// `float32[num_experts, h]`.
    pub router: Tensor,
    /// `float32[num_experts]`, added to the scores that experts are chosen by.
    pub bias: Option<Tensor>,
    /// `float32[1, h]`: the gate of the shared expert.
    pub gate: Option<Tensor>,
    /// `int64[num_experts]`: where each `T[ffn, h]` lies, `T[2 ffn, h]` when gated.
    pub fc1: Tensor,
    /// `int64[num_experts]`: where each `T[h, ffn]` lies.
    pub fc2: Tensor,
    /// The width of an expert, a multiple of 8.
    pub ffn: i64,
    /// How experts are chosen.
    pub score: RouterScore,
    /// Experts of a row.
    pub topk: i64,
    /// What weights are multiplied by, if anything.
    pub scaling: Option<f32>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RouteArgs {
    x: Address,
    router: Address,
    bias: Address,
    gate: Address,
    logits: Address,
    experts: Address,
    weights: Address,
    gates: Address,
    rows: i32,
    width: i32,
    num_experts: i32,
    topk: i32,
    score: i32,
    scaling: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GroupArgs {
    experts: Address,
    places: Address,
    places_of_slots: Address,
    tiles: Address,
    num_tiles: Address,
    num_places: i32,
    num_experts: i32,
    tile_rows: i32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MultiplyArgs {
    x: Address,
    weights: Address,
    out: Address,
    places: Address,
    tiles: Address,
    num_tiles: Address,
    num_in: i32,
    num_out: i32,
    topk: i32,
    num_pieces: i32,
    piece_stride: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct JoinArgs {
    outputs: Address,
    weights: Address,
    places_of_slots: Address,
    shared: Address,
    gates: Address,
    residual: Address,
    width: i32,
    topk: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct JoinPiecesArgs {
    outputs: Address,
    weights: Address,
    places_of_slots: Address,
    partials: Address,
    width: i32,
    topk: i32,
}

/// The kernels with one height of tiles.
#[derive(Debug)]
struct Multiply {
    rows: TileRows,
    experts_in: Kernel,
    experts_out: Kernel,
}

/// The kernels of experts with one activation.
#[derive(Debug)]
pub struct MoeKernels {
    kind: Kind,
    gating: Gating,
    route: Kernel,
    choose: Kernel,
    group: Kernel,
    join: Kernel,
    join_pieces: Kernel,
    short: Multiply,
    medium: Multiply,
    tall: Multiply,
    can_overlap: bool,
    max_shared_bytes: u32,
}

/// What a step needs besides its tensors, all of it on the GPU.
struct Grouped {
    logits: Tensor,
    experts: Tensor,
    weights: Tensor,
    gates: Option<Tensor>,
    places: Tensor,
    places_of_slots: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
}

impl MoeKernels {
    /// Compiles and loads them, or takes them from the cache.
    ///
    /// # Errors
    /// When they cannot be compiled or loaded.
    pub fn load(
        device: &Device,
        config: &KernelConfig,
        activation: (Nonlinearity, Gating),
        cache_dir: Option<&Path>,
    ) -> Result<Self, KernelError> {
        let load =
            |rows| Module::load(device, &config.moe(activation, rows), cache_dir).map_err(KernelError::from);
        let short = load(TileRows::Short)?;
        let medium = load(TileRows::Medium)?;
        let tall = load(TileRows::Tall)?;
        let multiply = |module: &Module, rows| -> Result<Multiply, KernelError> {
            Ok(Multiply {
                rows,
                experts_in: module.kernel("experts_in")?,
                experts_out: module.kernel("experts_out")?,
            })
        };
        Ok(Self {
            kind: config.kind,
            gating: activation.1,
            route: short.kernel("route")?,
            choose: short.kernel("choose")?,
            group: short.kernel("group")?,
            join: short.kernel("join")?,
            join_pieces: short.kernel("join_pieces")?,
            short: multiply(&short, TileRows::Short)?,
            medium: multiply(&medium, TileRows::Medium)?,
            tall: multiply(&tall, TileRows::Tall)?,
            can_overlap: device.compute_capability()?.0 >= 9,
            max_shared_bytes: device.max_shared_bytes()?,
        })
    }

    /// Enqueues `residual += moe(x)`: router, experts, shared expert's gate, sums over slots in their order in float32. Nothing
    /// of it depends on what the rows choose but where they lie, so that a recorded graph can repeat it.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn run(&self, stream: &Stream, run: &RunMoe<'_>) -> Result<(), KernelError> {
        let (grouped, outputs) =
            self.outputs(stream, Inputs { x: run.x, weights: run.weights, num_pieces: 1 })?;
        self.enqueue_join(stream, run, &grouped, &outputs)
    }

    /// Enqueues what experts make of rows, for each piece of the inputs of their second layers: a sum over slots in their
    /// order. Added in a tree, the pieces of all ranks that share the experts' widths are [`Self::run`]'s, but for rounding;
    /// they are the same numbers whatever the number of ranks. A shared expert and its gate are not part of them.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn run_pieces(&self, stream: &Stream, run: &RunMoePieces<'_>) -> Result<(), KernelError> {
        let [num_pieces, _, _] = shape_of(run.partials, "partials")?;
        let (grouped, outputs) =
            self.outputs(stream, Inputs { x: run.x, weights: run.weights, num_pieces })?;
        self.enqueue_join_pieces(stream, run, &grouped, &outputs)
    }

    /// float32 `[num_pieces, num_places, h]`: what the experts make of the rows that chose them, and where it lies.
    fn outputs(&self, stream: &Stream, run: Inputs<'_>) -> Result<(Grouped, Tensor), KernelError> {
        let weights = run.weights;
        let [num_rows, width] = shape_of(run.x, "x")?;
        let [num_experts, _] = shape_of(&weights.router, "router")?;
        self.check(weights, num_experts, (width, run.num_pieces))?;
        let num_places = num_rows * weights.topk;
        let rows_of_expert = num_places.unsigned_abs().div_ceil(num_experts.unsigned_abs().max(1)) as i64;
        let multiply = if rows_of_expert <= MAX_ROWS_OF_SHORT {
            &self.short
        } else if rows_of_expert <= MAX_ROWS_OF_MEDIUM {
            &self.medium
        } else {
            &self.tall
        };
        let max_tiles = num_places.min(num_experts) + num_places / multiply.rows.count();
        let grouped = Grouped::empty(run, num_rows, max_tiles)?;
        self.enqueue_route(stream, run, &grouped)?;
        self.enqueue_group(stream, weights, &grouped, num_experts, multiply.rows)?;
        let device = run.x.device();
        let hidden = Tensor::f_empty([num_places, weights.ffn], (self.kind, device))?;
        let outputs = Tensor::f_empty([run.num_pieces, num_places, width], (Kind::Float, device))?;
        self.enqueue_multiply(stream, multiply, run, &grouped, (&hidden, &outputs))?;
        Ok((grouped, outputs))
    }

    fn check(
        &self,
        weights: &MoeWeights,
        num_experts: i64,
        (width, num_pieces): (i64, i64),
    ) -> Result<(), KernelError> {
        if width <= 0 || width % 8 != 0 {
            return Err(bad("width of a row", "a multiple of 8", width));
        }
        if weights.ffn <= 0 || weights.ffn % 8 != 0 {
            return Err(bad("width of an expert", "a multiple of 8", weights.ffn));
        }
        if !(1..=MAX_PIECES).contains(&num_pieces) || weights.ffn % (8 * num_pieces) != 0 {
            let expected = format!("from 1 to {MAX_PIECES} of multiples of 8 of an expert's width");
            return Err(bad("pieces of an expert", &expected, num_pieces));
        }
        if num_experts > i64::from(GROUP_THREADS) {
            return Err(bad("number of experts", "at most 1024", num_experts));
        }
        if !(1..=MAX_TOPK.min(num_experts)).contains(&weights.topk) {
            return Err(bad("experts of a row", "from 1 to 32, and no more than there are", weights.topk));
        }
        Ok(())
    }

    fn enqueue_route(&self, stream: &Stream, run: Inputs<'_>, grouped: &Grouped) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let weights = run.weights;
        let [num_rows, width] = shape_of(run.x, "x")?;
        let [num_experts, _] = shape_of(&weights.router, "router")?;
        let slots = [num_rows, weights.topk];
        let args = RouteArgs {
            x: tensors.address(run.x, "x", self.kind, &[num_rows, width])?,
            router: tensors.address(&weights.router, "router", Kind::Float, &[num_experts, width])?,
            bias: tensors.optional(weights.bias.as_ref(), "bias", Kind::Float, &[num_experts])?,
            gate: tensors.optional(weights.gate.as_ref(), "gate", Kind::Float, &[1, width])?,
            logits: tensors.address(&grouped.logits, "logits", Kind::Float, &[num_rows, num_experts])?,
            experts: tensors.address(&grouped.experts, "experts", Kind::Int, &slots)?,
            weights: tensors.address(&grouped.weights, "weights", Kind::Float, &slots)?,
            gates: tensors.optional(grouped.gates.as_ref(), "gates", Kind::Float, &[num_rows])?,
            rows: int(num_rows, "rows")?,
            width: int(width, "width")?,
            num_experts: int(num_experts, "experts")?,
            topk: int(weights.topk, "topk")?,
            score: match weights.score {
                RouterScore::SoftmaxOfChosen => 0,
                RouterScore::SoftmaxOfAll => 1,
                RouterScore::Sigmoid => 2,
            },
            scaling: weights.scaling.unwrap_or(1.0),
        };
        let blocks = |rows: i64| num_rows.unsigned_abs().div_ceil(rows.unsigned_abs()) as i64;
        let row_blocks = blocks(ROUTE_ROWS);
        let most_parts = (num_experts + 1).unsigned_abs().div_ceil(ROUTE_WARPS.unsigned_abs()) as i64;
        let parts = (ROUTE_BLOCKS / row_blocks.max(1)).clamp(1, most_parts);
        let route = Launch {
            grid: [count(row_blocks, "blocks")?, count(parts, "parts of the experts")?, 1],
            shared_bytes: self.shared(ROUTE_ROWS * width * elem_bytes(self.kind))?,
            overlaps: self.can_overlap,
            ..Launch::linear(1, ROUTE_THREADS)
        };
        self.route.launch(&route, stream, &[Arg::value(&args)])?;
        let choose = Launch {
            shared_bytes: self.shared(CHOOSE_ROWS * num_experts * 4)?,
            overlaps: self.can_overlap,
            ..Launch::linear(count(blocks(CHOOSE_ROWS), "blocks")?, CHOOSE_ROWS as u32 * 32)
        };
        Ok(self.choose.launch(&choose, stream, &[Arg::value(&args)])?)
    }

    fn enqueue_group(
        &self,
        stream: &Stream,
        weights: &MoeWeights,
        grouped: &Grouped,
        num_experts: i64,
        rows: TileRows,
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let [num_rows, _] = shape_of(&grouped.experts, "experts")?;
        let num_places = num_rows * weights.topk;
        let [max_tiles, _] = shape_of(&grouped.tiles, "tiles")?;
        let args = GroupArgs {
            experts: tensors.address(&grouped.experts, "experts", Kind::Int, &[num_rows, weights.topk])?,
            places: tensors.address(&grouped.places, "places", Kind::Int, &[num_places])?,
            places_of_slots: tensors.address(
                &grouped.places_of_slots,
                "places of slots",
                Kind::Int,
                &[num_places],
            )?,
            tiles: tensors.address(&grouped.tiles, "tiles", Kind::Int, &[max_tiles, 4])?,
            num_tiles: tensors.address(&grouped.num_tiles, "number of tiles", Kind::Int, &[1])?,
            num_places: int(num_places, "places")?,
            num_experts: int(num_experts, "experts")?,
            tile_rows: int(rows.count(), "rows of a tile")?,
            reserved: 0,
        };
        let launch = Launch { overlaps: self.can_overlap, ..Launch::linear(1, GROUP_THREADS) };
        Ok(self.group.launch(&launch, stream, &[Arg::value(&args)])?)
    }

    fn enqueue_multiply(
        &self,
        stream: &Stream,
        multiply: &Multiply,
        run: Inputs<'_>,
        grouped: &Grouped,
        (hidden, outputs): (&Tensor, &Tensor),
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let weights = run.weights;
        let [num_rows, width] = shape_of(run.x, "x")?;
        let [num_experts, _] = shape_of(&weights.router, "router")?;
        let num_places = num_rows * weights.topk;
        let [max_tiles, _] = shape_of(&grouped.tiles, "tiles")?;
        let places = tensors.address(&grouped.places, "places", Kind::Int, &[num_places])?;
        let tiles = tensors.address(&grouped.tiles, "tiles", Kind::Int, &[max_tiles, 4])?;
        let num_tiles = tensors.address(&grouped.num_tiles, "number of tiles", Kind::Int, &[1])?;
        let hidden = tensors.address(hidden, "hidden", self.kind, &[num_places, weights.ffn])?;
        let topk = int(weights.topk, "topk")?;
        let inner = MultiplyArgs {
            x: tensors.address(run.x, "x", self.kind, &[num_rows, width])?,
            weights: tensors.address(&weights.fc1, "fc1", Kind::Int64, &[num_experts])?,
            out: hidden,
            places,
            tiles,
            num_tiles,
            num_in: int(width, "width")?,
            num_out: int(weights.ffn, "width of an expert")?,
            topk,
            num_pieces: 1,
            piece_stride: 0,
        };
        let outer = MultiplyArgs {
            x: hidden,
            weights: tensors.address(&weights.fc2, "fc2", Kind::Int64, &[num_experts])?,
            out: tensors.address(outputs, "outputs", Kind::Float, &[run.num_pieces, num_places, width])?,
            num_in: inner.num_out,
            num_out: inner.num_in,
            num_pieces: int(run.num_pieces, "pieces")?,
            piece_stride: num_places * width,
            ..inner
        };
        let shared = (multiply.rows.count() + WEIGHT_LINES) * 128 * i64::from(STAGES) + 128;
        let launch = |outputs: i64, outputs_of_block: i64, num_pieces| -> Result<Launch, KernelError> {
            let parts = outputs.unsigned_abs().div_ceil(outputs_of_block.unsigned_abs()) as i64;
            Ok(Launch {
                grid: [
                    count(parts, "parts of the outputs")?,
                    count(max_tiles, "tiles")?,
                    count(num_pieces, "pieces")?,
                ],
                shared_bytes: self.shared(shared)?,
                overlaps: self.can_overlap,
                ..Launch::linear(1, MULTIPLY_THREADS)
            })
        };
        let first = launch(weights.ffn, WEIGHT_LINES / self.gating.halves(), 1)?;
        multiply.experts_in.launch(&first, stream, &[Arg::value(&inner)])?;
        let second = launch(width, WEIGHT_LINES, run.num_pieces)?;
        Ok(multiply.experts_out.launch(&second, stream, &[Arg::value(&outer)])?)
    }

    fn enqueue_join(
        &self,
        stream: &Stream,
        run: &RunMoe<'_>,
        grouped: &Grouped,
        outputs: &Tensor,
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let topk = run.weights.topk;
        let shape @ [num_rows, width] = shape_of(run.x, "x")?;
        let args = JoinArgs {
            outputs: tensors.address(outputs, "outputs", Kind::Float, &[1, num_rows * topk, width])?,
            weights: tensors.address(&grouped.weights, "weights", Kind::Float, &[num_rows, topk])?,
            places_of_slots: tensors.address(
                &grouped.places_of_slots,
                "places of slots",
                Kind::Int,
                &[num_rows * topk],
            )?,
            shared: tensors.optional(run.shared, "shared", Kind::Float, &shape)?,
            gates: tensors.optional(grouped.gates.as_ref(), "gates", Kind::Float, &[num_rows])?,
            residual: tensors.address(run.residual, "residual", self.kind, &shape)?,
            width: int(width, "width")?,
            topk: int(topk, "topk")?,
        };
        Ok(self.join.launch(&self.join_grid([num_rows, width], 1)?, stream, &[Arg::value(&args)])?)
    }

    fn enqueue_join_pieces(
        &self,
        stream: &Stream,
        run: &RunMoePieces<'_>,
        grouped: &Grouped,
        outputs: &Tensor,
    ) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let topk = run.weights.topk;
        let shape @ [num_rows, width] = shape_of(run.x, "x")?;
        let [num_pieces, _, _] = shape_of(outputs, "outputs")?;
        let num_places = num_rows * topk;
        let all = [num_pieces, num_rows, width];
        let args = JoinPiecesArgs {
            outputs: tensors.address(outputs, "outputs", Kind::Float, &[num_pieces, num_places, width])?,
            weights: tensors.address(&grouped.weights, "weights", Kind::Float, &[num_rows, topk])?,
            places_of_slots: tensors.address(
                &grouped.places_of_slots,
                "places of slots",
                Kind::Int,
                &[num_places],
            )?,
            partials: tensors.address(run.partials, "partials", Kind::Float, &all)?,
            width: int(width, "width")?,
            topk: int(topk, "topk")?,
        };
        let launch = self.join_grid(shape, num_pieces)?;
        Ok(self.join_pieces.launch(&launch, stream, &[Arg::value(&args)])?)
    }

    fn join_grid(&self, [num_rows, width]: [i64; 2], num_pieces: i64) -> Result<Launch, KernelError> {
        let parts = (width / 8).unsigned_abs().div_ceil(JOIN_THREADS.unsigned_abs()) as i64;
        Ok(Launch {
            grid: [count(num_rows, "rows")?, count(parts, "parts of a row")?, count(num_pieces, "pieces")?],
            overlaps: self.can_overlap,
            ..Launch::linear(1, JOIN_THREADS as u32)
        })
    }

    fn shared(&self, bytes: i64) -> Result<u32, KernelError> {
        match u32::try_from(bytes) {
            Ok(bytes) if bytes <= self.max_shared_bytes => Ok(bytes),
            _ => Err(bad("shared memory of a block", &format!("at most {}", self.max_shared_bytes), bytes)),
        }
    }
}

impl Grouped {
    fn empty(run: Inputs<'_>, num_rows: i64, max_tiles: i64) -> Result<Self, KernelError> {
        let topk = run.weights.topk;
        let [num_experts, _] = shape_of(&run.weights.router, "router")?;
        let empty = |shape: &[i64], kind| Tensor::f_empty(shape, (kind, run.x.device()));
        Ok(Self {
            logits: empty(&[num_rows, num_experts], Kind::Float)?,
            experts: empty(&[num_rows, topk], Kind::Int)?,
            weights: empty(&[num_rows, topk], Kind::Float)?,
            gates: run.weights.gate.as_ref().map(|_| empty(&[num_rows], Kind::Float)).transpose()?,
            places: empty(&[num_rows * topk], Kind::Int)?,
            places_of_slots: empty(&[num_rows * topk], Kind::Int)?,
            tiles: empty(&[max_tiles, 4], Kind::Int)?,
            num_tiles: empty(&[1], Kind::Int)?,
        })
    }
}

fn elem_bytes(kind: Kind) -> i64 {
    if kind == Kind::Float { 4 } else { 2 }
}
