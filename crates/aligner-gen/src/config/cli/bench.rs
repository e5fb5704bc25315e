//! The arguments of the benchmarks.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use model_spec::NamedShape;

use super::{BackendArg, DeviceArg, NumberArgs};

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    /// A checkpoint to measure
    #[arg(long, required_unless_present = "shape")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Dummy weights of a known shape instead; `--measures` is then any of decode:ROWS:CONTEXT, fixed:IN:OUT:N,
    /// prefixed:N:PREFIX:OWN:OUT, copied:ROWS, single, bulk, ragged, order, prefill, shared, copies, cuts, structured:ROWS,
    /// own:ROWS, scored:ROWS
    #[arg(long, value_parser = shape_parser(), conflicts_with = "checkpoint", requires = "measures")]
    pub(crate) shape: Option<NamedShape>,
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    pub(crate) device: DeviceArg,
    /// Most sequences in one step, with a shape
    #[arg(long, default_value_t = 256)]
    pub(crate) max_num_seqs: usize,
    /// Compute every prompt whole, with a shape
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,
    /// Tensor-parallel ranks, with a shape: processes on this machine, on a GPU of their own each as far as there are so
    /// many
    #[arg(long, default_value_t = 1, value_name = "RANKS")]
    pub(crate) tensor: u32,
    /// Pipeline stages, with a shape
    #[arg(long, default_value_t = 1, value_name = "STAGES")]
    pub(crate) pipeline: u32,
    /// Take sums in the tree that gives any number of tensor-parallel ranks the same results, with one rank too
    #[arg(long)]
    pub(crate) tree: bool,
    /// Blocks of the KV cache, with a shape; without it those that are needed or fit
    #[arg(long)]
    pub(crate) num_blocks: Option<usize>,
    /// Blocks that may be swapped out to the host, with a shape
    #[arg(long, default_value_t = 0)]
    pub(crate) num_host_blocks: usize,
    /// Let cuBLAS choose kernels whose sums depend on the number of rows, to see what the invariant ones cost
    #[arg(long)]
    pub(crate) unconstrained: bool,
    /// What memory can do, for the floor of a step
    #[arg(long, default_value_t = 3000.0)]
    pub(crate) bandwidth_gbps: f64,
    /// Draft tokens and check several in one step, where the device can
    #[arg(long)]
    pub(crate) speculation: bool,
    #[command(flatten)]
    pub(crate) numbers: NumberArgs,
    #[arg(long, value_enum, default_value_t = BackendArg::Fused)]
    pub(crate) backend: BackendArg,
    /// Only these: load, decode, bulk, prefill
    #[arg(long, value_delimiter = ',')]
    pub(crate) measures: Vec<String>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

fn shape_parser() -> impl TypedValueParser<Value = NamedShape> {
    let names = NamedShape::ALL.map(NamedShape::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<NamedShape>())
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchQueueArgs {
    /// Samples through the real store
    #[arg(long, default_value_t = 100_000)]
    pub(crate) samples: usize,
    /// Ranks on the real store, one run for each number
    #[arg(long, value_delimiter = ',', default_value = "1,4,32")]
    pub(crate) ranks: Vec<u32>,
}
