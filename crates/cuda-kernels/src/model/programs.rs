//! The programs of a model's kernels: their sources and what they are compiled for. Needs no GPU.

use cuda_runtime::{Arch, Program};
use model_spec::Nonlinearity;
use tch::Kind;

use super::fp8_shape::Fp8Shape;
use super::gemm_shape::tiles_of_stage;
use super::nonlinearity::{Gating, number_of};
use crate::KernelError;
use crate::source::{headers, source};

/// What a model's kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// The type T of activations, weights and the cache: bfloat16, float16 or float32.
    pub kind: Kind,
    /// Elements of a head: a multiple of 16 up to 256.
    pub head_dim: u32,
    /// Query heads that share a key and value head.
    pub queries_per_group: u32,
    /// Whether the cache is in FP8: e4m3 with the exponent of a scale for each token and head (`kernels/cached.cuh`).
    pub has_fp8_kv: bool,
    /// What decode attention does with scores.
    pub scores: ScoreKind,
}

/// What becomes of scores before the softmax; most models have neither. The numbers are the launches'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScoreKind {
    /// They are capped: `softcap * tanh(score / softcap)`.
    pub is_capped: bool,
    /// A row sees a window of keys, its own the last.
    pub is_local: bool,
}

impl KernelConfig {
    /// # Errors
    /// When there are no kernels for it on such a GPU.
    pub fn check(&self, arch: Arch) -> Result<(), KernelError> {
        let bad = |what, expected: &str, actual: String| KernelError::BadKernelConfig {
            what,
            expected: expected.to_owned(),
            actual,
        };
        if self.elem().is_none() {
            return Err(bad("the type", "bfloat16, float16 or float32", format!("{:?}", self.kind)));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(16) || self.head_dim > 256 {
            return Err(bad("`head_dim`", "a multiple of 16 up to 256", self.head_dim.to_string()));
        }
        if self.queries_per_group == 0 || self.queries_per_group > 1024 {
            return Err(bad("`queries_per_group`", "from 1 to 1024", self.queries_per_group.to_string()));
        }
        if self.has_fp8_kv && (arch.major, arch.minor) < (8, 9) {
            return Err(bad(
                "the compute capability of the GPU for an FP8 KV cache",
                "8.9 or later",
                format!("{}.{}", arch.major, arch.minor),
            ));
        }
        Ok(())
    }

    /// The number that the kernels know the type by.
    fn elem(&self) -> Option<u32> {
        match self.kind {
            Kind::Float => Some(0),
            Kind::BFloat16 => Some(1),
            Kind::Half => Some(2),
            _ => None,
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn elem_bytes(&self) -> u32 {
        if self.kind == Kind::Float { 4 } else { 2 }
    }

    fn defines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ELEM", self.elem().unwrap_or_default().to_string()),
            ("HEAD_DIM", self.head_dim.to_string()),
            ("QUERIES_PER_GROUP", self.queries_per_group.to_string()),
            ("KV_FP8", u32::from(self.has_fp8_kv).to_string()),
        ]
    }

    /// Embedding, norms, also those of heads, activations, rotary embedding with the cache write, and reading the cache back.
    pub fn pointwise(&self) -> Program {
        Program {
            name: "pointwise",
            source: source!("pointwise.cu"),
            headers: headers!(
                "common.cuh",
                "embed.cuh",
                "normed.cuh",
                "norm.cuh",
                "heads.cuh",
                "nonlinearity.cuh",
                "activate.cuh",
                "rotary.cuh",
                "e4m3.cuh",
                "cached.cuh",
                "rope.cuh",
                "gather.cuh"
            ),
            defines: self.defines(),
            options: &[],
            is_specific: false,
        }
    }

    /// What tensor-parallel ranks exchange.
    pub fn reduce(&self) -> Program {
        Program {
            name: "reduce",
            source: source!("reduce.cu"),
            headers: headers!("common.cuh", "exchange.cuh", "normed.cuh", "reduce_few.cuh"),
            defines: self.defines(),
            options: &[],
            is_specific: false,
        }
    }

    /// What pipeline stages hand on.
    pub fn stage(&self) -> Program {
        Program {
            name: "stage",
            source: source!("stage.cu"),
            headers: headers!("common.cuh", "exchange.cuh"),
            defines: self.defines(),
            options: &[],
            is_specific: false,
        }
    }

    /// The GEMM of batches of up to 64 rows, with `weight_rows` rows of the weight a block, in eights, over so many pieces of
    /// the inputs; there is none in float32, and none where there is no `wgmma`.
    pub fn gemm(
        &self,
        arch: Arch,
        weight_rows: u32,
        activated: Option<(Nonlinearity, Gating)>,
        num_pieces: i64,
    ) -> Option<Program> {
        let is_there = self.kind != Kind::Float && arch == Arch { major: 9, minor: 0 };
        is_there.then(|| Program {
            name: "gemm",
            source: source!("gemm.cu"),
            headers: headers!("common.cuh", "nonlinearity.cuh", "tiles.cuh", "ring.cuh", "store.cuh"),
            defines: [
                self.defines(),
                activated_defines(activated),
                multiply_defines(self.kind, weight_rows),
                vec![("NUM_PIECES", num_pieces.to_string())],
            ]
            .concat(),
            options: &[],
            is_specific: true,
        })
    }

    /// A mixture of experts with this activation, in tiles of so many rows.
    pub fn moe(&self, activation: (Nonlinearity, Gating), rows: TileRows) -> Program {
        Program {
            name: "moe",
            source: source!("moe.cu"),
            headers: headers!(
                "common.cuh",
                "mma.cuh",
                "nonlinearity.cuh",
                "moe_route.cuh",
                "moe_group.cuh",
                "moe_tile.cuh",
                "moe_multiply.cuh",
                "moe_multiply_f32.cuh",
                "moe_join.cuh"
            ),
            defines: [
                self.defines(),
                activated_defines(Some(activation)),
                vec![("TILE_ROWS", rows.count().to_string())],
            ]
            .concat(),
            options: &[],
            is_specific: false,
        }
    }

    /// Rows to FP8, as they are, behind a norm, and behind an activation.
    ///
    /// # Errors
    /// Where there are no FP8 linear layers.
    pub fn quantize(&self, arch: Arch) -> Result<Program, KernelError> {
        self.check_fp8(arch)?;
        Ok(Program {
            name: "quantize",
            source: source!("quantize.cu"),
            headers: headers!("common.cuh", "e4m3.cuh", "normed.cuh"),
            defines: self.defines(),
            options: &[],
            is_specific: true,
        })
    }

    /// The FP8 GEMM with one shape of tile.
    ///
    /// # Errors
    /// Where there are no FP8 linear layers.
    pub fn gemm_fp8(&self, arch: Arch, shape: &Fp8Shape) -> Result<Program, KernelError> {
        self.check_fp8(arch)?;
        Ok(Program {
            name: "gemm_fp8",
            source: source!("gemm_fp8.cu"),
            headers: headers!("common.cuh", "tiles.cuh", "store_fp8.cuh"),
            defines: [self.defines(), fp8_defines(shape)].concat(),
            options: &[],
            is_specific: true,
        })
    }

    /// # Errors
    /// Where the GPU has no `wgmma`, or results are not in a type of two bytes.
    fn check_fp8(&self, arch: Arch) -> Result<(), KernelError> {
        if arch != (Arch { major: 9, minor: 0 }) {
            return Err(KernelError::BadKernelConfig {
                what: "the compute capability of the GPU for FP8 linear layers",
                expected: "9.0".to_owned(),
                actual: format!("{}.{}", arch.major, arch.minor),
            });
        }
        if self.kind == Kind::Float {
            return Err(KernelError::BadKernelConfig {
                what: "the type beside FP8 linear layers",
                expected: "bfloat16 or float16".to_owned(),
                actual: format!("{:?}", self.kind),
            });
        }
        Ok(())
    }

    /// The plan of a decode step and decode attention.
    pub fn attention(&self) -> Program {
        let tiling = Tiling::of(self);
        let mut defines = self.defines();
        defines.extend([
            ("QUERY_COLUMNS", tiling.query_columns.to_string()),
            ("SPLIT_KEYS", tiling.split_keys.to_string()),
            ("NUM_WARPS", tiling.num_warps.to_string()),
            ("BLOCKS_PER_SM", tiling.blocks_per_sm.to_string()),
            ("IS_CAPPED", u32::from(self.scores.is_capped).to_string()),
            ("IS_LOCAL", u32::from(self.scores.is_local).to_string()),
        ]);
        Program {
            name: "attention",
            source: source!("attention.cu"),
            headers: headers!(
                "common.cuh",
                "rotary.cuh",
                "tiling.cuh",
                "plan.cuh",
                "e4m3.cuh",
                "cached.cuh",
                "item.cuh",
                "mma.cuh",
                "running.cuh",
                "attend_mma.cuh",
                "attend_fp8.cuh",
                "attend_f32.cuh",
                "join.cuh"
            ),
            defines,
            options: &[],
            is_specific: false,
        }
    }
}

/// Rows of an expert that a block multiplies at once. No result depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileRows {
    /// For few rows an expert, which are as fast as the weights are read.
    Short,
    /// For some, which one tile still holds.
    Medium,
    /// For many, so that weights are read less often.
    Tall,
}

impl TileRows {
    pub(super) fn count(self) -> i64 {
        match self {
            Self::Short => 16,
            Self::Medium => 32,
            Self::Tall => 64,
        }
    }
}

fn activated_defines(activated: Option<(Nonlinearity, Gating)>) -> Vec<(&'static str, String)> {
    let number = activated.map_or(-1, |(activation, _)| number_of(activation));
    let is_gated = matches!(activated, Some((_, Gating::Gated)));
    vec![("ACTIVATION", number.to_string()), ("IS_GATED", u32::from(is_gated).to_string())]
}

/// The instruction, whose name has the number of outputs, and the registers of its sums.
fn multiply_defines(kind: Kind, weight_rows: u32) -> Vec<(&'static str, String)> {
    let num_sums = weight_rows / 2;
    let list = |item: &dyn Fn(u32) -> String| (0..num_sums).map(item).collect::<Vec<_>>().join(", ");
    let elem = if kind == Kind::Half { "f16" } else { "bf16" };
    let registers = list(&|i| format!("%{i}"));
    let (x, weight) = (num_sums, num_sums + 1);
    vec![
        ("WEIGHT_ROWS", weight_rows.to_string()),
        ("TILES", tiles_of_stage(u64::from(weight_rows)).to_string()),
        (
            "MULTIPLY",
            format!(
                "\"wgmma.mma_async.sync.aligned.m64n{weight_rows}k16.f32.{elem}.{elem} {{{registers}}}, %{x}, %{weight}, 1, 1, 1, 0, 0;\""
            ),
        ),
        ("MULTIPLY_SUMS", list(&|i| format!("\"+f\"(sums[{i}])"))),
    ]
}

/// The tile, and the instructions that begin a chain of products and add to it.
fn fp8_defines(shape: &Fp8Shape) -> Vec<(&'static str, String)> {
    let columns = shape.group_columns();
    let num_sums = columns / 2;
    let list = |item: &dyn Fn(u32) -> String| (0..num_sums).map(item).collect::<Vec<_>>().join(", ");
    let registers = list(&|i| format!("%{i}"));
    let (x, weight) = (num_sums, num_sums + 1);
    let multiply = |adds: u32| {
        format!(
            "\"wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3 {{{registers}}}, %{x}, %{weight}, {adds}, 1, 1;\""
        )
    };
    vec![
        ("ROW_GROUPS", shape.row_groups.to_string()),
        ("COLUMN_GROUPS", shape.column_groups.to_string()),
        ("TILE_COLUMNS", shape.columns.to_string()),
        ("NUM_PARTS", shape.num_parts().to_string()),
        ("TILES", shape.tiles().to_string()),
        ("MULTIPLY_FIRST", multiply(0)),
        ("MULTIPLY", multiply(1)),
        ("MULTIPLY_SUMS", list(&|i| format!("\"+f\"(sums[{i}])"))),
    ]
}

/// How decode attention is cut. It decides the order of sums, so it depends on the model alone, never on the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Query columns of an MMA, in multiples of 8.
    pub(super) query_columns: u32,
    /// Keys of a split.
    pub(super) split_keys: u32,
    /// Warps that share a split.
    pub(super) num_warps: u32,
    /// Blocks that a multiprocessor holds at once.
    pub(super) blocks_per_sm: u32,
}

impl Tiling {
    pub(super) fn of(config: &KernelConfig) -> Self {
        let query_columns = if config.queries_per_group <= 8 { 1 } else { 2 };
        // As many as the registers are enough for: a tile of e4m3 has as many keys again, but what a block does between
        // tiles takes as long.
        let is_light = config.has_fp8_kv && query_columns == 1 && config.head_dim <= 128;
        let blocks_per_sm = if is_light && config.kind != Kind::Float { 3 } else { 2 };
        Self { query_columns, split_keys: 512, num_warps: 4, blocks_per_sm }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn query_tile(&self) -> u32 {
        8 * self.query_columns
    }

    /// Shared memory of a block: the queries, what each warp adds to a split, and what the splits before added up to,
    /// with maximum and sum for each four elements; and the scales of queries.
    #[cfg(feature = "cuda")]
    pub(super) fn shared_bytes(&self, config: &KernelConfig) -> u32 {
        let elems = self.query_tile() * config.head_dim;
        elems * config.elem_bytes()
            + self.num_warps * (elems * 4 + self.query_tile() * 8)
            + elems * 4
            + elems / 4 * 8
            + self.query_tile() * 4
    }
}

#[cfg(test)]
mod tests;
