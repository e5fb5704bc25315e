//! Mixtures of experts: against float64, and every row alone against the same row in a batch, bitwise.

use std::error::Error;

use cuda_kernels::{Gating, KernelConfig, MoeKernels, MoeWeights, RunMoe, RunMoePieces, ScoreKind};
use model_spec::{Nonlinearity, RouterScore};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::gemm::tree;
use crate::support::{Gpu, double, relative_error, same, tolerance};

/// A layer with experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) hidden: i64,
    pub(crate) ffn: i64,
    pub(crate) num_experts: i64,
    pub(crate) topk: i64,
    pub(crate) score: RouterScore,
    pub(crate) has_bias: bool,
    pub(crate) has_shared: bool,
    pub(crate) gating: Gating,
    pub(crate) kind: Kind,
}

const SMALL: Shape = Shape {
    hidden: 72,
    ffn: 40,
    num_experts: 5,
    topk: 2,
    score: RouterScore::SoftmaxOfChosen,
    has_bias: false,
    has_shared: false,
    gating: Gating::Gated,
    kind: Kind::BFloat16,
};

/// Odd sizes, the models that are read, and each rule.
const SHAPES: [Shape; 9] = [
    SMALL,
    Shape { kind: Kind::Float, ..SMALL },
    Shape { kind: Kind::Float, gating: Gating::Plain, has_shared: true, ..SMALL },
    Shape { score: RouterScore::SoftmaxOfAll, gating: Gating::Plain, kind: Kind::Half, ..SMALL },
    Shape {
        score: RouterScore::Sigmoid,
        has_bias: true,
        has_shared: true,
        num_experts: 40,
        topk: 3,
        ..SMALL
    },
    Shape { topk: 1, num_experts: 1, ..SMALL },
    QWEN3_30B,
    Shape { hidden: 4_096, ffn: 14_336, num_experts: 8, topk: 2, ..SMALL },
    Shape {
        hidden: 2_048,
        ffn: 1_408,
        num_experts: 60,
        topk: 4,
        score: RouterScore::SoftmaxOfAll,
        has_shared: true,
        ..SMALL
    },
];

pub(crate) const QWEN3_30B: Shape = Shape { hidden: 2_048, ffn: 768, num_experts: 128, topk: 8, ..SMALL };

const ROW_COUNTS: [i64; 6] = [1, 2, 5, 17, 64, 700];

/// A layer with random weights.
pub(crate) struct Layer {
    pub(crate) weights: MoeWeights,
    fc1: Tensor,
    fc2: Tensor,
}

impl Layer {
    pub(crate) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self, Box<dyn Error>> {
        let Shape { hidden, ffn, num_experts, kind, .. } = *shape;
        let lines = if shape.gating == Gating::Gated { 2 * ffn } else { ffn };
        let scaled = |sizes: &[i64], num_in: i64| -> Result<Tensor, Box<dyn Error>> {
            Ok(gpu.random(sizes, kind)?.f_div_scalar((num_in as f64).sqrt())?.f_to_kind(kind)?)
        };
        let fc1 = scaled(&[num_experts, lines, hidden], hidden)?;
        let fc2 = scaled(&[num_experts, hidden, ffn], ffn)?;
        let weights = MoeWeights {
            router: gpu.random(&[num_experts, hidden], Kind::Float)?,
            bias: shape.has_bias.then(|| gpu.random(&[num_experts], Kind::Float)).transpose()?,
            gate: shape.has_shared.then(|| gpu.random(&[1, hidden], Kind::Float)).transpose()?,
            fc1: addresses(gpu, &fc1)?,
            fc2: addresses(gpu, &fc2)?,
            ffn,
            score: shape.score,
            topk: shape.topk,
            scaling: shape.has_bias.then_some(2.5),
        };
        Ok(Self { weights, fc1, fc2 })
    }

    /// The same layer with a rank's part of every expert's width.
    fn part(&self, gpu: &Gpu, rank: i64, num_ranks: i64) -> Result<Self, Box<dyn Error>> {
        let own = self.weights.ffn / num_ranks;
        let halves = self.fc1.size()[1] / self.weights.ffn;
        let lines = (0..halves)
            .map(|half| self.fc1.f_narrow(1, half * self.weights.ffn + rank * own, own))
            .collect::<Result<Vec<_>, _>>()?;
        let fc1 = Tensor::f_cat(&lines, 1)?;
        let fc2 = self.fc2.f_narrow(2, rank * own, own)?.f_contiguous()?;
        let weights = MoeWeights {
            router: self.weights.router.shallow_clone(),
            bias: self.weights.bias.as_ref().map(Tensor::shallow_clone),
            gate: None,
            fc1: addresses(gpu, &fc1)?,
            fc2: addresses(gpu, &fc2)?,
            ffn: own,
            ..self.weights
        };
        Ok(Self { weights, fc1, fc2 })
    }

    /// float64 `[n, h]`: what is added to the residual stream, expert by expert.
    fn reference(
        &self,
        shape: &Shape,
        x: &Tensor,
        shared: Option<&Tensor>,
    ) -> Result<Tensor, Box<dyn Error>> {
        let weights = &self.weights;
        let wide = double(x)?;
        let logits = wide.f_matmul(&double(&weights.router)?.f_transpose(0, 1)?)?;
        let scores = match shape.score {
            RouterScore::SoftmaxOfChosen => logits,
            RouterScore::SoftmaxOfAll => logits.f_softmax(-1, Kind::Double)?,
            RouterScore::Sigmoid => logits.f_sigmoid()?,
        };
        let ranked = match &weights.bias {
            Some(bias) => scores.f_add(&double(bias)?)?,
            None => scores.shallow_clone(),
        };
        let (_, experts) = ranked.f_topk(shape.topk, -1, true, true)?;
        let chosen = scores.f_gather(1, &experts, false)?;
        let mut factors = match shape.score {
            RouterScore::SoftmaxOfChosen => chosen.f_softmax(-1, Kind::Double)?,
            RouterScore::SoftmaxOfAll => chosen,
            RouterScore::Sigmoid => {
                chosen.f_div(&chosen.f_sum_dim_intlist([-1_i64].as_slice(), true, Kind::Double)?)?
            }
        };
        factors = factors.f_mul_scalar(f64::from(weights.scaling.unwrap_or(1.0)))?;
        let mut sum = wide.f_zeros_like()?;
        for expert in 0..shape.num_experts {
            let inner = wide.f_matmul(&double(&self.fc1.f_get(expert)?)?.f_transpose(0, 1)?)?;
            let activate = |x: &Tensor| match shape.gating {
                Gating::Gated => x.f_silu(),
                Gating::Plain => x.f_gelu("none"),
            };
            let hidden = match shape.gating {
                Gating::Gated => {
                    let halves = inner.f_chunk(2, 1)?;
                    activate(&halves[0])?.f_mul(&halves[1])?
                }
                Gating::Plain => activate(&inner)?,
            };
            let output = hidden.f_matmul(&double(&self.fc2.f_get(expert)?)?.f_transpose(0, 1)?)?;
            let is_mine = experts.f_eq(expert)?.f_to_kind(Kind::Double)?;
            let factor =
                factors.f_mul(&is_mine)?.f_sum_dim_intlist([-1_i64].as_slice(), true, Kind::Double)?;
            sum = sum.f_add(&output.f_mul(&factor)?)?;
        }
        if let Some(shared) = shared {
            let gate = match &weights.gate {
                Some(gate) => wide.f_matmul(&double(gate)?.f_transpose(0, 1)?)?.f_sigmoid()?,
                None => wide.f_narrow(1, 0, 1)?.f_ones_like()?,
            };
            sum = sum.f_add(&double(shared)?.f_mul(&gate)?)?;
        }
        Ok(sum)
    }
}

/// Where each expert's weight lies.
fn addresses(gpu: &Gpu, experts: &Tensor) -> Result<Tensor, Box<dyn Error>> {
    let start = experts.data_ptr() as i64;
    let elem_bytes = experts.kind().elt_size_in_bytes() as i64;
    let bytes = experts.size()[1..].iter().product::<i64>() * elem_bytes;
    let list: Vec<i64> = (0..experts.size()[0]).map(|expert| start + expert * bytes).collect();
    gpu.put(&Tensor::f_from_slice(&list)?)
}

pub(crate) fn kernels(gpu: &Gpu, shape: &Shape) -> Result<MoeKernels, Box<dyn Error>> {
    let config = KernelConfig {
        kind: shape.kind,
        head_dim: 64,
        queries_per_group: 1,
        has_fp8_kv: false,
        scores: ScoreKind::default(),
    };
    let nonlinearity = match shape.gating {
        Gating::Gated => Nonlinearity::Silu,
        Gating::Plain => Nonlinearity::Gelu,
    };
    Ok(MoeKernels::load(&gpu.device, &config, (nonlinearity, shape.gating), Some(gpu.cache_dir()))?)
}

pub(crate) fn experts(gpu: &Gpu) -> Outcome {
    let mut worst: f64 = 0.0;
    for shape in &SHAPES {
        let kernels = kernels(gpu, shape)?;
        let layer = Layer::new(gpu, shape)?;
        let most = ROW_COUNTS[ROW_COUNTS.len() - 1];
        let x = gpu.random(&[most, shape.hidden], shape.kind)?;
        let residual = gpu.random(&[most, shape.hidden], shape.kind)?;
        let shared = shape.has_shared.then(|| gpu.random(&[most, shape.hidden], Kind::Float)).transpose()?;
        let run = |first: i64, num_rows: i64| -> Result<Tensor, Box<dyn Error>> {
            let out = residual.f_narrow(0, first, num_rows)?.f_mul_scalar(1.0)?;
            let shared = shared.as_ref().map(|shared| shared.f_narrow(0, first, num_rows)).transpose()?;
            let x = x.f_narrow(0, first, num_rows)?;
            let run = RunMoe { x: &x, residual: &out, weights: &layer.weights, shared: shared.as_ref() };
            kernels.run(&gpu.stream, &run)?;
            Ok(out)
        };
        let all = run(0, most)?;
        let expect = double(&residual)?.f_add(&layer.reference(shape, &x, shared.as_ref())?)?;
        let error = relative_error(&all, &expect)?;
        worst = worst.max(error);
        ensure(error < 2.0 * tolerance(shape.kind), || format!("{shape:?} is off by {error:.1e}"))?;
        for num_rows in ROW_COUNTS {
            for first in [0, (most - num_rows) / 2, most - num_rows] {
                let part = run(first, num_rows)?;
                ensure(same(&part, &all.f_narrow(0, first, num_rows)?)?, || {
                    format!("{shape:?}: {num_rows} rows from {first} differ from the same rows of {most}")
                })?;
            }
        }
    }
    Ok(format!("worst error {worst:.1e}; a row is bitwise identical in every batch"))
}

/// Widths that pieces divide: a step of 64 inputs and less, several, and one and a half.
const IN_PIECES: [Shape; 5] = [
    Shape { ffn: 64, num_experts: 8, ..SMALL },
    Shape { ffn: 64, num_experts: 8, kind: Kind::Float, ..SMALL },
    Shape { ffn: 192, num_experts: 40, topk: 3, gating: Gating::Plain, kind: Kind::Half, ..SMALL },
    QWEN3_30B,
    Shape { hidden: 4_096, ffn: 14_336, num_experts: 8, topk: 2, ..SMALL },
];

/// Sums in pieces: against float64, alone as in a batch, and every rank's pieces are those of one rank, bitwise.
pub(crate) fn pieces(gpu: &Gpu) -> Outcome {
    const NUM_PIECES: i64 = 8;
    let mut worst: f64 = 0.0;
    for shape in &IN_PIECES {
        let kernels = kernels(gpu, shape)?;
        let layer = Layer::new(gpu, shape)?;
        let most = ROW_COUNTS[ROW_COUNTS.len() - 1];
        let x = gpu.random(&[most, shape.hidden], shape.kind)?;
        let run = |weights: &MoeWeights, num_pieces, first: i64, num_rows: i64| {
            let partials = gpu.unset(&[num_pieces, num_rows, shape.hidden], Kind::Float)?;
            let x = x.f_narrow(0, first, num_rows)?;
            kernels.run_pieces(&gpu.stream, &RunMoePieces { x: &x, weights, partials: &partials })?;
            Ok::<_, Box<dyn Error>>(partials)
        };
        let all = run(&layer.weights, NUM_PIECES, 0, most)?;
        let parts = (0..NUM_PIECES).map(|piece| all.f_get(piece)).collect::<Result<Vec<_>, _>>()?;
        let error = relative_error(&tree(parts)?, &layer.reference(shape, &x, None)?)?;
        worst = worst.max(error);
        ensure(error < 2.0 * tolerance(shape.kind), || format!("{shape:?} is off by {error:.1e}"))?;
        for num_rows in ROW_COUNTS {
            for first in [0, (most - num_rows) / 2, most - num_rows] {
                let part = run(&layer.weights, NUM_PIECES, first, num_rows)?;
                ensure(same(&part, &all.f_narrow(1, first, num_rows)?.f_contiguous()?)?, || {
                    format!("{shape:?}: pieces of {num_rows} rows from {first} differ from those of {most}")
                })?;
            }
        }
        for num_ranks in [2, 4, 8] {
            let own = NUM_PIECES / num_ranks;
            for rank in 0..num_ranks {
                let part = layer.part(gpu, rank, num_ranks)?;
                let pieces = run(&part.weights, own, 0, most)?;
                ensure(same(&pieces, &all.f_narrow(0, rank * own, own)?)?, || {
                    format!("{shape:?}: rank {rank} of {num_ranks} has other pieces than one rank")
                })?;
            }
        }
    }
    Ok(format!("worst error {worst:.1e}; 2, 4 and 8 ranks have the pieces of one"))
}
