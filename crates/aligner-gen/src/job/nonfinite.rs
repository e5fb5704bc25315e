//! Why logits are no numbers: looks for the weights that are none. Done after a failure only, so a run pays nothing.

use engine::EngineError;
use model_spec::Numerics;
use nemo_format::{DType, Region, TensorSource};
use sampling::SamplingError;

use crate::exit::Failure;

/// Adds to a failure about logits what is wrong with the weights, layer by layer.
pub(crate) fn explain(failure: Failure, weights: &dyn TensorSource, numerics: Numerics) -> Failure {
    let is_about_logits = matches!(
        failure.error.downcast_ref::<EngineError>(),
        Some(EngineError::Sampling(SamplingError::BadLogits { .. }))
    );
    if !is_about_logits {
        return failure;
    }
    let Failure { status, error } = failure;
    Failure { status, error: anyhow::anyhow!("{error}: {}", reason(weights, numerics)) }
}

fn reason(weights: &dyn TensorSource, numerics: Numerics) -> String {
    let mut found = weights.names().filter_map(|name| Some((name, first_bad(weights, name)?)));
    let Some((name, bad)) = found.next() else {
        return format!("no weight is NaN or infinite, so a sum left the range of {:?}", numerics.compute);
    };
    let num_more = found.count();
    let more =
        if num_more > 0 { format!("; {num_more} more tensors hold such values") } else { String::new() };
    let Bad { value, num_bad, elem_idx } = bad;
    let of_layer = layer(name).map_or_else(String::new, |layer| format!(" of layer {layer}"));
    format!(
        "tensor `{name}`{of_layer} holds {num_bad} values that are no finite numbers, the first, {value}, at element \
         {elem_idx}{more}; use a checkpoint without them"
    )
}

/// A tensor's values that are NaN or infinite.
struct Bad {
    value: f64,
    num_bad: usize,
    elem_idx: usize,
}

fn first_bad(weights: &dyn TensorSource, name: &str) -> Option<Bad> {
    let meta = weights.meta(name)?;
    let mut buffer = vec![0; usize::try_from(meta.size_bytes()?).ok()?];
    // What cannot be read now was read before: the failure is about something else.
    weights.read(name, &Region::whole(&meta.shape), &mut buffer).ok()?;
    let size_bytes = meta.dtype.size_bytes();
    let values = buffer.chunks_exact(size_bytes).map(|bytes| value(meta.dtype, bytes));
    let mut bad = values.enumerate().filter(|(_, value)| !value.is_finite());
    let (elem_idx, value) = bad.next()?;
    Some(Bad { value, elem_idx, num_bad: 1 + bad.count() })
}

fn value(dtype: DType, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (DType::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (DType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).into(),
        (DType::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).into(),
        // Whole numbers are always numbers.
        _ => 0.0,
    }
}

fn layer(name: &str) -> Option<&str> {
    let (_, rest) = name.split_once(".layers.")?;
    rest.split('.').next()
}
