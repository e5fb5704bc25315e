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
use rayon::prelude::*;

use self::recipe::Recipe;
use super::HfConfig;
use crate::convert_dtype::convert_into;
use crate::{DType, FormatError, Region, SourceNote, TensorMeta, TensorSource};

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
        let scale = Scale::read(&*source, &name, &recipe)?;
        let shape = source.meta(&name).map(|meta| meta.shape.clone()).unwrap_or_default();
        weights.insert(name, Weight { meta: TensorMeta { dtype, shape }, scale });
    }
    let note = SourceNote::Dequantized {
        num_tensors: weights.len(),
        recipe: recipe.name.to_owned(),
        dtype: dtype.name().to_owned(),
    };
    Ok((Box::new(Fp8Source { source, weights }), Some(note)))
}

/// The type of what is not quantised: that of the largest such tensor.
fn plain_dtype(source: &dyn TensorSource) -> DType {
    let plain = source.names().filter_map(|name| Some((name, source.meta(name)?))).filter(|(name, meta)| {
        matches!(meta.dtype, DType::BF16 | DType::F16 | DType::F32) && !name.contains("_scale")
    });
    let largest = plain.max_by_key(|(_, meta)| meta.num_elems());
    largest.map_or(DType::BF16, |(_, meta)| meta.dtype)
}

/// A weight in FP8 and what its numbers are multiplied by.
struct Weight {
    /// As it is presented.
    meta: TensorMeta,
    scale: Scale,
}

/// Factors of blocks of `block[0]` rows and `block[1]` columns, row by row of blocks.
struct Scale {
    factors: Vec<f32>,
    block: [u64; 2],
    blocks_per_row: usize,
}

impl Scale {
    fn read(source: &dyn TensorSource, weight: &str, recipe: &Recipe) -> Result<Self, FormatError> {
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
        let factors: Option<Vec<f32>> = match meta.dtype {
            DType::F32 => Some(bytes.as_chunks().0.iter().map(|elem| f32::from_le_bytes(*elem)).collect()),
            DType::BF16 => {
                Some(bytes.as_chunks().0.iter().map(|elem| bf16::from_le_bytes(*elem).to_f32()).collect())
            }
            DType::F16 => {
                Some(bytes.as_chunks().0.iter().map(|elem| f16::from_le_bytes(*elem).to_f32()).collect())
            }
            _ => None,
        };
        let factors = factors.ok_or_else(|| bad(format!("its scale `{name}` is {}", meta.dtype.name())))?;
        if let Some(factor) = factors.iter().find(|factor| !factor.is_finite()) {
            return Err(bad(format!("its scale `{name}` has the value {factor}")));
        }
        Ok(Self { factors, block, blocks_per_row: blocks[1] as usize })
    }

    fn factor(&self, row: u64, column: u64) -> f32 {
        let [height, width] = self.block;
        let at = (row / height.max(1)) as usize * self.blocks_per_row + (column / width.max(1)) as usize;
        // Its length was checked against the shape.
        self.factors.get(at).copied().unwrap_or(f32::NAN)
    }
}

/// A source whose FP8 weights are numbers.
struct Fp8Source {
    source: Box<dyn TensorSource>,
    weights: BTreeMap<String, Weight>,
}

impl Fp8Source {
    /// Whether a tensor belongs to a weight in FP8.
    fn is_hidden(&self, name: &str) -> bool {
        let of_weight = |suffix: &str| {
            name.strip_suffix(suffix)
                .is_some_and(|stem| self.weights.contains_key(&format!("{stem}{WEIGHT}")))
        };
        // Scales of keys and values lie with attention or with a projection.
        of_weight(".weight_scale")
            || of_weight(".weight_scale_inv")
            || UNUSED.iter().any(|end| name.ends_with(end))
    }
}

impl TensorSource for Fp8Source {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.source.names().filter(|name| !self.is_hidden(name)))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        match self.weights.get(name) {
            Some(weight) => Some(&weight.meta),
            None => self.source.meta(name).filter(|_| !self.is_hidden(name)),
        }
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let Some(weight) = self.weights.get(name) else { return self.source.read(name, region, dst) };
        weight.meta.check_region(name, region, dst.len())?;
        let [rows, columns] = region.ranges.as_slice() else {
            return Err(FormatError::MissingTensor { name: name.to_owned() });
        };
        let width = (columns.end - columns.start) as usize;
        let mut numbers = vec![0; (rows.end - rows.start) as usize * width];
        self.source.read(name, region, &mut numbers)?;
        if width == 0 {
            return Ok(());
        }
        let elem_bytes = weight.meta.dtype.size_bytes();
        let lines = dst.par_chunks_mut(width * elem_bytes).zip(numbers.par_chunks(width)).enumerate();
        lines.for_each(|(line, (out, numbers))| {
            let row = rows.start + line as u64;
            let values: Vec<u8> = numbers
                .iter()
                .zip(columns.clone())
                .flat_map(|(&number, column)| {
                    (value_of(number) * weight.scale.factor(row, column)).to_le_bytes()
                })
                .collect();
            convert_into(&values, DType::F32, out, weight.meta.dtype, 0.0);
        });
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        if self.weights.contains_key(name) { None } else { self.source.mapped_bytes(name) }
    }
}

/// A number of e4m3: a bit of sign, four of exponent, three of mantissa, no infinity.
fn value_of(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), bits & 7);
    let size = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        (0, _) => f32::from(mantissa) / 512.0,
        // The exponents of e4m3 are biased by 7, those of float32 by 127.
        _ => f32::from_bits((exponent + 120) << 23 | u32::from(mantissa) << 20),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests;
