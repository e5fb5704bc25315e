//! Linear layers of the plain backend, and the activation behind them.

use model_spec::{Activation, Nonlinearity};
use tch::{Kind, Tensor};

use super::{PlainState, ROWS_PER_BLOCK, by_row_blocks};
use crate::ModelError;
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
    pub(super) weight: Tensor,
    /// `[out_features]`.
    pub(super) bias: Option<Tensor>,
}

impl LinearOp<PlainState> for PlainLinear {
    fn run(&self, x: &Tensor, epilogue: Epilogue, _: &mut PlainState) -> Result<Tensor, ModelError> {
        let y =
            by_row_blocks(x, ROWS_PER_BLOCK, |rows| Ok(rows.f_linear(&self.weight, self.bias.as_ref())?))?;
        match epilogue {
            Epilogue::Store => Ok(y),
            Epilogue::AddTo(mut residual) => {
                let _ = residual.f_add_(&y)?;
                Ok(residual)
            }
            Epilogue::Activate(activation) => activate(&y, activation),
            Epilogue::Logits => Ok(y.f_to_kind(Kind::Float)?),
        }
    }

    fn embedding(&self, ids: Ids<'_>, at: &mut PlainState) -> Result<Tensor, ModelError> {
        at.embedding(ids, &self.weight)
    }

    fn out_features(&self) -> usize {
        self.weight.size().first().map_or(0, |&rows| rows as usize)
    }

    fn size_bytes(&self) -> u64 {
        std::iter::once(&self.weight).chain(&self.bias).map(tensor_bytes).sum()
    }
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor, ModelError> {
    let (_, num_columns) = x.size2()?;
    let ffn = if activation.gated { num_columns / 2 } else { num_columns };
    let gate = x.f_narrow(1, 0, ffn)?;
    let activated = by_row_blocks(&gate, rows_per_elementwise_block(ffn), |rows| {
        nonlinearity(rows, activation.nonlinearity)
    })?;
    if activation.gated { Ok(activated.f_mul(&x.f_narrow(1, ffn, ffn)?)?) } else { Ok(activated) }
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
        Nonlinearity::Silu => x.f_silu()?,
        Nonlinearity::Relu => x.f_relu()?,
        Nonlinearity::SquaredRelu => x.f_relu()?.f_square()?,
    })
}
