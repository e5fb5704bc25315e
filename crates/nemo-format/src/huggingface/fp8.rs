//! Weights of a Hugging Face folder that are stored in FP8 (e4m3) with scales beside them, presented as numbers of the type
//! that the rest of the model is stored in.
//!
//! The recipes that are read: `compressed-tensors` (llm-compressor), `modelopt` (NVIDIA's `*-FP8` models), `fbgemm_fp8`
//! (Meta's) and `fp8` (DeepSeek's and Qwen's blocks; AutoFP8). A weight is its number times the scale of its tensor, row or
//! block. Scales of activations and of cached keys and values are not used: activations are not quantised by a table here.
//! What else a recipe says is refused by name.

mod recipe;

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};

use self::recipe::Recipe;
use super::HfConfig;
use crate::fp8::{Dequantized, Factors, Weight, plain_dtype};
use crate::{DType, FormatError, SourceNote, TensorMeta, TensorSource};

/// Endings of tensors that a recipe stores beside weights and that are not used here.
const UNUSED: [&str; 7] = [
    ".input_scale",
    ".activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".input_scale_ub",
    ".kv_scale",
];
const WEIGHT: &str = ".weight";

/// The weights with those in FP8 dequantised; as they are where the folder names no recipe.
///
/// # Errors
/// When the recipe is not read, or a weight has no scale that fits.
pub(crate) fn dequantized(
    config: &HfConfig,
    folder: &Path,
    source: Box<dyn TensorSource>,
) -> Result<(Box<dyn TensorSource>, Option<SourceNote>), FormatError> {
    let recipe = Recipe::find(config, folder)?;
    let stored: Vec<String> = source
        .names()
        .filter(|name| source.meta(name).is_some_and(|meta| meta.dtype == DType::F8E4M3))
        .map(str::to_owned)
        .collect();
    let Some(recipe) = recipe else {
        return match stored.first() {
            None => Ok((source, None)),
            Some(name) => Err(FormatError::bad_tensor(
                name,
                "it is stored in FP8, and neither `config.json` nor `hf_quant_config.json` says how it is scaled",
            )),
        };
    };
    let dtype = plain_dtype(&*source);
    let mut weights = BTreeMap::new();
    for name in stored {
        let factors = factors_of(&*source, &name, &recipe)?;
        let shape = source.meta(&name).map(|meta| meta.shape.clone()).unwrap_or_default();
        weights.insert(name, Weight { meta: TensorMeta { dtype, shape }, factors });
    }
    let note = SourceNote::Dequantized {
        num_tensors: weights.len(),
        recipe: recipe.name.to_owned(),
        dtype: dtype.name().to_owned(),
    };
    // Scales of keys and values lie with attention or with a projection.
    let is_hidden = |name: &&str| {
        let of_weight = |suffix: &str| {
            name.strip_suffix(suffix).is_some_and(|stem| weights.contains_key(&format!("{stem}{WEIGHT}")))
        };
        of_weight(".weight_scale")
            || of_weight(".weight_scale_inv")
            || UNUSED.iter().any(|end| name.ends_with(end))
    };
    let hidden = source.names().filter(is_hidden).map(str::to_owned).collect();
    Ok((Box::new(Dequantized::new(source, weights, hidden)), Some(note)))
}

/// The factors of a weight.
fn factors_of(source: &dyn TensorSource, weight: &str, recipe: &Recipe) -> Result<Factors, FormatError> {
    let bad = |reason: String| FormatError::bad_tensor(weight, reason);
    let shape = source.meta(weight).map(|meta| meta.shape.clone()).unwrap_or_default();
    let &[rows, columns] = shape.as_slice() else {
        return Err(bad(format!("it is stored in FP8 with shape {shape:?}, a matrix is expected")));
    };
    let Some(stem) = weight.strip_suffix(WEIGHT) else {
        return Err(bad(format!("it is stored in FP8, and only tensors named `*{WEIGHT}` have a scale")));
    };
    let name = format!("{stem}{}", recipe.scale_suffix());
    let Some(meta) = source.meta(&name) else {
        return Err(bad(format!("it is stored in FP8, and its scale `{name}` is missing")));
    };
    let [block, blocks] = match (recipe.block, meta.shape.as_slice()) {
        (_, [] | [1] | [1, 1]) if recipe.block.is_none() => [[rows, columns], [1, 1]],
        (None, &[len]) if len == rows => [[1, columns], [rows, 1]],
        (None, &[len, 1]) if len == rows => [[1, columns], [rows, 1]],
        (Some(block @ [height, width]), &[down, across])
            if down == rows.div_ceil(height) && across == columns.div_ceil(width) =>
        {
            [block, [down, across]]
        }
        (_, found) => {
            let expected = match recipe.block {
                Some([height, width]) => {
                    format!("[{}, {}]", rows.div_ceil(height), columns.div_ceil(width))
                }
                None => format!("[], [{rows}] or [{rows}, 1]"),
            };
            return Err(bad(format!(
                "its scale `{name}` has shape {found:?}, {expected} is expected for a weight of shape {shape:?}"
            )));
        }
    };
    let bytes = source.read_whole(&name)?;
    let values: Option<Vec<f32>> = match meta.dtype {
        DType::F32 => Some(bytes.as_chunks().0.iter().map(|elem| f32::from_le_bytes(*elem)).collect()),
        DType::BF16 => {
            Some(bytes.as_chunks().0.iter().map(|elem| bf16::from_le_bytes(*elem).to_f32()).collect())
        }
        DType::F16 => {
            Some(bytes.as_chunks().0.iter().map(|elem| f16::from_le_bytes(*elem).to_f32()).collect())
        }
        _ => None,
    };
    let values = values.ok_or_else(|| bad(format!("its scale `{name}` is {}", meta.dtype.name())))?;
    if let Some(factor) = values.iter().find(|factor| !factor.is_finite()) {
        return Err(bad(format!("its scale `{name}` has the value {factor}")));
    }
    Ok(Factors { values, block, blocks_per_row: blocks[1] as usize })
}

#[cfg(test)]
mod tests;
