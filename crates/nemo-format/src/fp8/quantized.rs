//! A source whose linear layers are FP8, made of numbers as they are read; to be written.

use std::collections::HashMap;
use std::sync::Mutex;

use indexmap::IndexMap;
use model_spec::Region;

use super::{Fp8Rows, quantize_rows, scale_name};
use crate::{DType, FormatError, TensorMeta, TensorSource};

/// Bytes of a weight that are made FP8 at once.
const CHUNK_BYTES: u64 = 32 << 20;

/// The shape that scales have in a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleShape {
    /// `[rows]`.
    Rows,
    /// `[rows, 1]`.
    Column,
}

/// What a tensor that is written is made of.
enum Made {
    /// The tensor of the same name.
    Kept,
    /// Numbers of e4m3 of the tensor of the same name.
    Numbers,
    /// The scales of this weight.
    Scales(String),
}

/// The tensors of a source, some of them in FP8.
pub(crate) struct Quantized {
    base: Box<dyn TensorSource>,
    /// What weights are rounded to before, as all that is not in FP8 is.
    dtype: DType,
    tensors: IndexMap<String, (Made, TensorMeta)>,
    /// Scales that were found while numbers were read.
    scales: Mutex<HashMap<String, Vec<f32>>>,
}

impl Quantized {
    /// With the weights in FP8 for which `is_linear`.
    ///
    /// # Errors
    /// When such a weight is no matrix of numbers.
    pub(crate) fn new(
        base: Box<dyn TensorSource>,
        dtype: DType,
        shape: ScaleShape,
        is_linear: impl Fn(&str) -> bool,
    ) -> Result<Self, FormatError> {
        let mut tensors = IndexMap::new();
        for name in base.names() {
            let Some(meta) = base.meta(name) else { continue };
            if !is_linear(name) {
                tensors.insert(name.to_owned(), (Made::Kept, meta.clone()));
                continue;
            }
            let &[num_rows, _] = meta.shape.as_slice() else {
                let reason = format!("it has shape {:?}, a matrix is expected", meta.shape);
                return Err(FormatError::bad_tensor(name, reason));
            };
            let numbers = TensorMeta { dtype: DType::F8E4M3, shape: meta.shape.clone() };
            tensors.insert(name.to_owned(), (Made::Numbers, numbers));
            let shape = match shape {
                ScaleShape::Rows => vec![num_rows],
                ScaleShape::Column => vec![num_rows, 1],
            };
            let scales = TensorMeta { dtype: DType::F32, shape };
            tensors.insert(scale_name(name), (Made::Scales(name.to_owned()), scales));
        }
        Ok(Self { base, dtype, tensors, scales: Mutex::default() })
    }

    /// How many weights are FP8 in the source already and stay as they are, and how many are made it.
    pub(crate) fn num_kept_and_made(&self) -> [usize; 2] {
        let weights = self.tensors.iter().filter(|(_, (made, _))| matches!(made, Made::Numbers));
        let (kept, made): (Vec<_>, Vec<_>) =
            weights.partition(|(name, _)| self.stored_scales(name).is_some());
        [kept.len(), made.len()]
    }

    fn stored_scales(&self, name: &str) -> Option<Vec<f32>> {
        self.base.fp8()?.row_scales(name)
    }

    /// Whole rows of a weight, made FP8.
    fn rows(&self, name: &str, region: &Region) -> Result<Fp8Rows, FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let [rows, columns] = region.ranges.as_slice() else { return Err(missing()) };
        let meta = self.base.meta(name).ok_or_else(missing)?;
        let mut bytes = vec![0; region.num_elems() as usize * meta.dtype.size_bytes()];
        self.base.read(name, region, &mut bytes)?;
        let width = (columns.end - columns.start) as usize;
        let made = quantize_rows(&bytes, meta.dtype, self.dtype, width).ok_or_else(|| {
            FormatError::bad_tensor(name, format!("its dtype {} cannot be made FP8", meta.dtype.name()))
        })?;
        if let Some(at) = made.scales.iter().position(|scale| !scale.is_finite()) {
            let row = rows.start + at as u64;
            return Err(FormatError::bad_tensor(
                name,
                format!("its row {row} has values that are not finite"),
            ));
        }
        Ok(made)
    }

    /// Numbers of a region.
    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        if let Some(stored) = self.base.fp8().filter(|stored| stored.row_scales(name).is_some()) {
            return stored.read_numbers(name, region, dst);
        }
        let width = self.base.meta(name).and_then(|meta| meta.shape.get(1)).copied().unwrap_or(0);
        let [rows, columns] = region.ranges.as_slice() else { return Ok(()) };
        // A scale follows from the whole row.
        let whole = Region { ranges: vec![rows.clone(), 0..width] };
        let made = self.rows(name, &whole)?;
        let (first, last) = (columns.start as usize, columns.end as usize);
        let lines =
            dst.chunks_exact_mut((last - first).max(1)).zip(made.numbers.chunks_exact(width.max(1) as usize));
        lines.for_each(|(to, from)| to.copy_from_slice(from.get(first..last).unwrap_or_default()));
        self.remember(name, rows.start, &made.scales);
        Ok(())
    }

    /// Keeps the scales of rows until they are asked for. Rows are read in order.
    fn remember(&self, name: &str, first: u64, scales: &[f32]) {
        let Ok(mut found) = self.scales.lock() else { return };
        let known = found.entry(name.to_owned()).or_default();
        if known.len() as u64 == first {
            known.extend_from_slice(scales);
        }
    }

    /// All scales of a weight.
    fn scales_of(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        if let Some(stored) = self.stored_scales(name) {
            return Ok(stored);
        }
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let &[num_rows, width] =
            self.base.meta(name).map(|meta| meta.shape.as_slice()).ok_or_else(missing)?
        else {
            return Err(missing());
        };
        let found = self.scales.lock().ok().and_then(|mut found| found.remove(name));
        if let Some(found) = found.filter(|found| found.len() as u64 == num_rows) {
            return Ok(found);
        }
        let step = (CHUNK_BYTES / width.max(1)).max(1);
        let mut scales = Vec::new();
        let mut start = 0;
        while start < num_rows {
            let end = start.saturating_add(step).min(num_rows);
            scales.extend(self.rows(name, &Region { ranges: vec![start..end, 0..width] })?.scales);
            start = end;
        }
        Ok(scales)
    }
}

impl TensorSource for Quantized {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors.get(name).map(|(_, meta)| meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let (made, meta) =
            self.tensors.get(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        meta.check_region(name, region, dst.len())?;
        match made {
            Made::Kept => self.base.read(name, region, dst),
            Made::Numbers => self.read_numbers(name, region, dst),
            Made::Scales(weight) => {
                let scales = self.scales_of(weight)?;
                let rows = region.ranges.first().map_or(0..0, |rows| rows.start as usize..rows.end as usize);
                let wanted = scales.get(rows).unwrap_or_default();
                for (to, scale) in dst.as_chunks_mut().0.iter_mut().zip(wanted) {
                    *to = scale.to_le_bytes();
                }
                Ok(())
            }
        }
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        match self.tensors.get(name)?.0 {
            Made::Kept => self.base.mapped_bytes(name),
            Made::Numbers => {
                self.base.fp8().filter(|stored| stored.row_scales(name).is_some())?.mapped_numbers(name)
            }
            Made::Scales(_) => None,
        }
    }
}
