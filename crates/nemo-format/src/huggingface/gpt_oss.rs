//! The experts of GPT-OSS, stacked in one tensor a layer and perhaps in MXFP4, presented one by one under the names that other
//! families have, `mlp.experts.{e}.{gate,up,down}_proj`.
//!
//! Rows of `gate_up_proj` are gates and what they multiply in turns. As numbers a layer's tensors are `[E, in, out]`; in MXFP4,
//! `*_blocks` are `[E, out, in / 32, 16]`, two numbers of e2m1 a byte, the lower half first, and `*_scales` the exponent of a
//! power of two for each block of 32. A number times such a power is a bf16.

mod mxfp4;

use std::ops::Range;

use indexmap::IndexMap;
use serde_json::Value;

use self::mxfp4::{BLOCK, BLOCK_BYTES};
use super::HfConfig;
use crate::{DType, FormatError, Region, SourceNote, TensorMeta, TensorSource};

const MODEL_TYPE: &str = "gpt_oss";
const EXPERTS: &str = "mlp.experts.";
const SINKS: &str = "self_attn.sinks";
const QUANTIZATION: &str = "quantization_config";
/// What the experts' numbers become that are stored in MXFP4.
const UNPACKED: DType = DType::BF16;

/// Whether a folder's weights are in MXFP4.
pub(super) fn is_mxfp4(config: &HfConfig) -> Result<bool, FormatError> {
    let method = config.value(QUANTIZATION).and_then(|said| said.get("quant_method"));
    Ok(method.and_then(Value::as_str) == Some("mxfp4") && config.text(&["model_type"])? == Some(MODEL_TYPE))
}

/// The weights of a GPT-OSS under names like others'; those of other models as they are.
///
/// # Errors
/// When a stacked tensor has another shape than experts have, or is packed without a word of it.
pub(crate) fn unstacked(
    config: &HfConfig,
    source: Box<dyn TensorSource>,
) -> Result<(Box<dyn TensorSource>, Option<SourceNote>), FormatError> {
    if config.text(&["model_type"])? != Some(MODEL_TYPE) {
        return Ok((source, None));
    }
    let mut tensors = IndexMap::new();
    let mut num_packed = 0;
    for name in source.names() {
        let Some(meta) = source.meta(name) else { continue };
        match name.split_once(EXPERTS) {
            Some((layer, stem)) => {
                num_packed += usize::from(stem.ends_with(BLOCKS));
                for (name, tensor) in experts_of(&*source, (layer, stem), meta)? {
                    tensors.insert(name, tensor);
                }
            }
            None => {
                let shown = if name.ends_with(SINKS) { format!("{name}.offset") } else { name.to_owned() };
                let from = From::Whole;
                tensors.insert(shown, Tensor { stored: name.to_owned(), meta: meta.clone(), from });
            }
        }
    }
    let note = match (num_packed, is_mxfp4(config)?) {
        (0, _) => None,
        (_, true) => {
            Some(SourceNote::UnpackedMxfp4 { num_tensors: num_packed, dtype: UNPACKED.name().to_owned() })
        }
        (_, false) => {
            return Err(FormatError::BadConfig {
                file: config.file().to_owned(),
                reason: format!(
                    "the experts are in MXFP4, and `{QUANTIZATION}` does not say `quant_method: mxfp4`, so that transformers does \
                     not find them"
                ),
            });
        }
    };
    Ok((Box::new(Unstacked { inner: source, tensors }), note))
}

const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";
const BIAS: &str = "_bias";
/// The two layers of an expert, and what each consists of.
const LAYERS: [(&str, &[&str]); 2] =
    [("gate_up_proj", &["gate_proj", "up_proj"]), ("down_proj", &["down_proj"])];

/// A tensor as it is presented.
struct Tensor {
    stored: String,
    meta: TensorMeta,
    from: From,
}

/// Where a tensor's elements lie.
enum From {
    /// All of a tensor.
    Whole,
    /// Some rows of an expert in MXFP4, with the tensor of its scales.
    Packed { rows: Rows, scales: String },
    /// Some columns of an expert, which are rows.
    Columns(Rows),
    /// Some numbers of an expert's bias.
    Bias(Rows),
}

/// Every so many rows of an expert.
#[derive(Clone, Copy)]
struct Rows {
    expert: u64,
    first: u64,
    step: u64,
}

impl Rows {
    /// Those that hold some of them, the first and the last included.
    fn around(self, rows: &Range<u64>) -> Range<u64> {
        let last = rows.end.saturating_sub(1).max(rows.start);
        self.first + rows.start * self.step..self.first + last * self.step + 1
    }
}

/// The tensors that a stacked one is made into; none of scales, which belong to blocks.
fn experts_of(
    source: &dyn TensorSource,
    (layer, stem): (&str, &str),
    meta: &TensorMeta,
) -> Result<Vec<(String, Tensor)>, FormatError> {
    let stored = format!("{layer}{EXPERTS}{stem}");
    let bad = |reason: String| FormatError::bad_tensor(&stored, reason);
    let known = LAYERS.iter().find_map(|(name, parts)| Some((parts, stem.strip_prefix(name)?)));
    let Some((parts, kind)) = known.filter(|(_, kind)| ["", BLOCKS, SCALES, BIAS].contains(kind)) else {
        return Err(bad("experts of GPT-OSS have no such tensor".to_owned()));
    };
    let step = parts.len() as u64;
    let unlike = |expected: &str| bad(format!("its shape is {:?}, expected {expected}", meta.shape));
    let (num_experts, num_rows, num_columns, scales) = match (kind, meta.shape.as_slice()) {
        (SCALES, _) => {
            let blocks = stored.replace(SCALES, BLOCKS);
            return match source.meta(&blocks) {
                Some(_) => Ok(Vec::new()),
                None => Err(bad(format!("the weights do not have `{blocks}`, which it is of"))),
            };
        }
        (BIAS, &[experts, rows]) => (experts, rows, None, None),
        ("", &[experts, columns, rows]) => (experts, rows, Some(columns), None),
        (BLOCKS, &[experts, rows, blocks, BLOCK_BYTES]) => {
            let scales = scales_of(source, &stored, &[experts, rows, blocks])?;
            if meta.dtype != DType::U8 {
                return Err(bad(format!("it is {}, expected bytes", meta.dtype.name())));
            }
            (experts, rows, blocks.checked_mul(BLOCK), Some(scales))
        }
        (BIAS, _) => return Err(unlike("`[experts, out]`")),
        (BLOCKS, _) => return Err(unlike("`[experts, out, in / 32, 16]`")),
        _ => return Err(unlike("`[experts, in, out]`")),
    };
    if !num_rows.is_multiple_of(step) {
        return Err(bad(format!("it has {num_rows} outputs, an even number is expected")));
    }
    let mut tensors = Vec::new();
    for expert in 0..num_experts {
        for (first, part) in (0..).zip(*parts) {
            let rows = Rows { expert, first, step };
            let (suffix, from, dtype) = match (kind, &scales) {
                (BIAS, _) => ("bias", From::Bias(rows), meta.dtype),
                (_, Some(scales)) => ("weight", From::Packed { rows, scales: scales.clone() }, UNPACKED),
                (_, None) => ("weight", From::Columns(rows), meta.dtype),
            };
            let shape = std::iter::once(num_rows / step).chain(num_columns).collect();
            let name = format!("{layer}{EXPERTS}{expert}.{part}.{suffix}");
            let meta = TensorMeta { dtype, shape };
            tensors.push((name, Tensor { stored: stored.clone(), meta, from }));
        }
    }
    Ok(tensors)
}

/// The name of the scales of blocks, which have this shape.
fn scales_of(source: &dyn TensorSource, blocks: &str, shape: &[u64]) -> Result<String, FormatError> {
    let scales = blocks.replace(BLOCKS, SCALES);
    match source.meta(&scales) {
        None => Err(FormatError::bad_tensor(blocks, format!("its scales `{scales}` are missing"))),
        Some(meta) if meta.shape != shape || meta.dtype != DType::U8 => Err(FormatError::bad_tensor(
            &scales,
            format!(
                "it is {} of shape {:?}, expected bytes of shape {shape:?}",
                meta.dtype.name(),
                meta.shape
            ),
        )),
        Some(_) => Ok(scales),
    }
}

/// Experts one by one.
struct Unstacked {
    inner: Box<dyn TensorSource>,
    tensors: IndexMap<String, Tensor>,
}

impl Unstacked {
    /// Every so many columns of an expert, turned around.
    fn read_columns(
        &self,
        tensor: &Tensor,
        rows: Rows,
        region: &Region,
        dst: &mut [u8],
    ) -> Result<(), FormatError> {
        let [wanted, across] = region.ranges.as_slice() else { return Ok(()) };
        let around = rows.around(wanted);
        let width = (around.end - around.start) as usize;
        let height = (across.end - across.start) as usize;
        let elem_bytes = tensor.meta.dtype.size_bytes();
        let mut stored = vec![0; width * height * elem_bytes];
        let ranges = vec![rows.expert..rows.expert + 1, across.clone(), around];
        self.inner.read(&tensor.stored, &Region { ranges }, &mut stored)?;
        for (row, dst) in dst.chunks_exact_mut((height * elem_bytes).max(1)).enumerate() {
            let column = row * rows.step as usize;
            for (idx, dst) in dst.chunks_exact_mut(elem_bytes).enumerate() {
                let at = (idx * width + column) * elem_bytes;
                dst.copy_from_slice(&stored[at..at + elem_bytes]);
            }
        }
        Ok(())
    }

    fn read_bias(
        &self,
        tensor: &Tensor,
        rows: Rows,
        region: &Region,
        dst: &mut [u8],
    ) -> Result<(), FormatError> {
        let [wanted] = region.ranges.as_slice() else { return Ok(()) };
        let around = rows.around(wanted);
        let elem_bytes = tensor.meta.dtype.size_bytes();
        let mut stored = vec![0; (around.end - around.start) as usize * elem_bytes];
        let ranges = vec![rows.expert..rows.expert + 1, around];
        self.inner.read(&tensor.stored, &Region { ranges }, &mut stored)?;
        let step_bytes = rows.step as usize * elem_bytes;
        for (dst, stored) in dst.chunks_exact_mut(elem_bytes).zip(stored.chunks(step_bytes)) {
            dst.copy_from_slice(&stored[..elem_bytes]);
        }
        Ok(())
    }

    fn read_packed(
        &self,
        tensor: &Tensor,
        (rows, scales): (Rows, &str),
        region: &Region,
        dst: &mut [u8],
    ) -> Result<(), FormatError> {
        let [wanted, across] = region.ranges.as_slice() else { return Ok(()) };
        let around = rows.around(wanted);
        let blocks = across.start / BLOCK..across.end.div_ceil(BLOCK);
        let num_blocks = (blocks.end - blocks.start) as usize;
        let num_stored = (around.end - around.start) as usize * num_blocks;
        let mut exponents = vec![0; num_stored];
        let mut ranges = vec![rows.expert..rows.expert + 1, around, blocks.clone()];
        self.inner.read(scales, &Region { ranges: ranges.clone() }, &mut exponents)?;
        ranges.push(0..BLOCK_BYTES);
        let mut packed = vec![0; num_stored * BLOCK_BYTES as usize];
        self.inner.read(&tensor.stored, &Region { ranges }, &mut packed)?;
        let skipped = (across.start - blocks.start * BLOCK) as usize;
        let row_bytes = (across.end - across.start) as usize * UNPACKED.size_bytes();
        let mut numbers = Vec::with_capacity(num_blocks * BLOCK as usize);
        for (row, dst) in dst.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            let at = row * rows.step as usize * num_blocks;
            numbers.clear();
            let of_row = packed[at * BLOCK_BYTES as usize..].chunks_exact(BLOCK_BYTES as usize);
            for (block, &exponent) in of_row.zip(&exponents[at..at + num_blocks]) {
                let unpacked = mxfp4::unpack(block, exponent)
                    .map_err(|reason| FormatError::bad_tensor(scales, reason))?;
                numbers.extend(unpacked);
            }
            for (dst, number) in dst.chunks_exact_mut(2).zip(&numbers[skipped..]) {
                dst.copy_from_slice(&number.to_le_bytes());
            }
        }
        Ok(())
    }
}

impl TensorSource for Unstacked {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors.get(name).map(|tensor| &tensor.meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        tensor.meta.check_region(name, region, dst.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        match &tensor.from {
            From::Whole => self.inner.read(&tensor.stored, region, dst),
            From::Columns(rows) => self.read_columns(tensor, *rows, region, dst),
            From::Bias(rows) => self.read_bias(tensor, *rows, region, dst),
            From::Packed { rows, scales } => self.read_packed(tensor, (*rows, scales), region, dst),
        }
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let tensor = self.tensors.get(name)?;
        matches!(tensor.from, From::Whole).then(|| self.inner.mapped_bytes(&tensor.stored))?
    }
}
