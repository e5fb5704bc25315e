//! Linear layers of the plain backend, and the activation behind them.

use model_spec::{Activation, GLU_CLAMP, Nonlinearity};
use tch::{Kind, Tensor};

use super::{PlainState, ROWS_PER_BLOCK, by_row_blocks};
use crate::ModelError;
use crate::fp8::{self, Fp8Rows};
use crate::ids::Ids;
use crate::ops::{Epilogue, LinearOp, StepState, tensor_bytes};

/// Below this many elements libtorch runs an elementwise operation on one thread (`at::internal::GRAIN_SIZE`).
const SERIAL_ELEMS: i64 = 32_768;
/// No vector loop of libtorch takes more elements at once, so whole multiples leave no scalar remainder.
const VECTOR_ELEMS: i64 = 64;

/// A linear layer as libtorch has it.
#[derive(Debug)]
pub(crate) struct PlainLinear {
    /// `[out_features, in_features]`.
    pub(super) weight: PlainWeight,
    /// `[out_features]`, in what is computed in.
    pub(super) bias: Option<Tensor>,
}

/// The weight of one.
#[derive(Debug)]
pub(super) enum PlainWeight {
    /// In what is computed in.
    Float(Tensor),
    /// Multiplied in float32.
    Fp8(Fp8Rows),
}

impl PlainWeight {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        match self {
            Self::Float(weight) => [Some(weight), None],
            Self::Fp8(rows) => [Some(&rows.values), Some(&rows.scales)],
        }
        .into_iter()
        .flatten()
    }
}

impl PlainLinear {
    /// `x W^T + b`, float32 for an FP8 weight.
    fn product(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match &self.weight {
            PlainWeight::Float(weight) => {
                by_row_blocks(x, ROWS_PER_BLOCK, |rows| Ok(rows.f_linear(weight, self.bias.as_ref())?))
            }
            PlainWeight::Fp8(weight) => {
                let rows = Fp8Rows::of(x)?;
                let wide = weight.values.f_to_kind(Kind::Float)?;
                let products = by_row_blocks(&rows.values.f_to_kind(Kind::Float)?, ROWS_PER_BLOCK, |rows| {
                    Ok(rows.f_linear::<&Tensor>(&wide, None)?)
                })?;
                fp8::scaled(&products, &rows.scales, &weight.scales, self.bias.as_ref())
            }
        }
    }
}

impl LinearOp<PlainState> for PlainLinear {
    fn run(&self, x: &Tensor, epilogue: Epilogue, _: &mut PlainState) -> Result<Tensor, ModelError> {
        let y = self.product(x)?;
        if let Epilogue::Float32 = epilogue {
            return Ok(y.f_to_kind(Kind::Float)?);
        }
        let y = y.f_to_kind(x.kind())?;
        match epilogue {
            Epilogue::Store | Epilogue::Float32 => Ok(y),
            Epilogue::AddTo(mut residual) => {
                let _ = residual.f_add_(&y)?;
                Ok(residual)
            }
            Epilogue::Activate(activation) => activate(&y, activation),
        }
    }

    fn embedding(&self, ids: Ids<'_>, at: &mut PlainState) -> Result<Tensor, ModelError> {
        match &self.weight {
            PlainWeight::Float(table) => at.embedding(ids, table),
            PlainWeight::Fp8(_) => Err(fp8::NO_TABLE),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.weight.tensors().chain(&self.bias).map(tensor_bytes).sum()
    }
}

/// The nonlinearity of `[num_tokens, out_features]`, of its first half times the second when gated.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
    let (_, num_columns) = x.size2()?;
    let ffn = if activation.gated { num_columns / 2 } else { num_columns };
    let gate = x.f_narrow(1, 0, ffn)?;
    let activated = by_row_blocks(&gate, rows_per_elementwise_block(ffn), |rows| {
        nonlinearity(rows, activation.nonlinearity)
    })?;
    if !activation.gated {
        return Ok(activated);
    }
    let multiplied = x.f_narrow(1, ffn, ffn)?;
    let multiplied = match activation.nonlinearity {
        Nonlinearity::ClampedQuickGelu => {
            let limit = f64::from(GLU_CLAMP);
            multiplied.f_clamp(-limit, limit)?.f_add_scalar(1.0)?
        }
        _ => multiplied,
    };
    Ok(activated.f_mul(&multiplied)?)
}

/// Rows that an elementwise operation may take at once so that an element's bits do not depend on its row: either
/// every block runs on one thread without a scalar remainder, or a block is a single row.
fn rows_per_elementwise_block(num_columns: i64) -> i64 {
    let rows = (SERIAL_ELEMS / num_columns.max(1)).min(ROWS_PER_BLOCK);
    let rows = if rows >= 1 { 1 << rows.ilog2() } else { 1 };
    if rows * num_columns % VECTOR_ELEMS == 0 { rows } else { 1 }
}

fn nonlinearity(x: &Tensor, nonlinearity: Nonlinearity) -> Result<Tensor, ModelError> {
    Ok(match nonlinearity {
        Nonlinearity::Gelu => x.f_gelu("none")?,
        Nonlinearity::GeluTanh => x.f_gelu("tanh")?,
        Nonlinearity::QuickGelu => x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(x)?,
        Nonlinearity::ClampedQuickGelu => {
            let x = x.f_clamp_max(f64::from(GLU_CLAMP))?;
            x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(&x)?
        }
        Nonlinearity::Silu => x.f_silu()?,
        Nonlinearity::Relu => x.f_relu()?,
        Nonlinearity::SquaredRelu => x.f_relu()?.f_square()?,
    })
}
