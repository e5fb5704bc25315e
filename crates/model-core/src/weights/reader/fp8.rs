//! Weights that come in FP8: as they are stored, or quantized here where a rank reads a part of their columns.

use std::borrow::Cow;

use model_spec::{Float, TensorSpec, WeightFormat};
use nemo_format::{DType, Fp8Rows, Fp8Weights, Region};

use super::super::regions::{read_regions, take_regions, take_rows};
use super::{Reader, StoredFp8, shape_of};
use crate::ModelError;
use crate::ops::Loader;

impl<'a, L: Loader> Reader<'a, L> {
    /// Whether a weight is stored in FP8 and held as it is stored, if its layer is held in FP8.
    pub(super) fn is_kept_in_fp8(&self, name: &str) -> bool {
        self.loader.numerics().weights == WeightFormat::Fp8
            && self.source.fp8().is_some_and(|stored| stored.row_scales(name).is_some())
    }

    /// What this rank has of a weight: numbers of its region, and the scales of whole rows of the weight, which no layout of
    /// ranks changes.
    pub(super) fn fp8_part(&mut self, tensor: &TensorSpec) -> Result<StoredFp8<'a>, ModelError> {
        self.checked(tensor)?;
        let regions = tensor.regions(self.place)?;
        let stored = self.source.fp8().and_then(|stored| Some((stored, stored.row_scales(&tensor.name)?)));
        let (numbers, scales) = match stored {
            Some((stored, scales)) => (stored_numbers(stored, tensor, &regions)?, scales),
            None => {
                let Fp8Rows { numbers, scales } = self.quantized(tensor)?;
                let part = take_regions(&numbers, &tensor.shape(), 1, &regions).into_owned();
                (Cow::Owned(part), scales)
            }
        };
        Ok(StoredFp8 { numbers, scales: take_rows(&scales, &regions), shape: shape_of(&regions) })
    }

    /// All rows of a weight of numbers, as a backend quantizes them.
    fn quantized(&self, tensor: &TensorSpec) -> Result<Fp8Rows, ModelError> {
        let name = &tensor.name;
        let meta = self.meta(tensor)?;
        let whole = match self.source.mapped_bytes(name) {
            Some(mapped) => Cow::Borrowed(mapped),
            None => Cow::Owned(self.source.read_whole(name)?),
        };
        let through = match self.loader.numerics().compute {
            Float::Fp32 => DType::F32,
            Float::Bf16 => DType::BF16,
        };
        let width = meta.shape.get(1).map_or(0, |&width| width as usize);
        nemo_format::quantize_rows(&whole, meta.dtype, through, width)
            .ok_or_else(|| ModelError::NotFloat { name: name.clone(), actual: meta.dtype.name() })
    }
}

/// Numbers of regions one under the other, not copied where they follow each other in a mapped file.
fn stored_numbers<'a>(
    stored: &'a dyn Fp8Weights,
    tensor: &TensorSpec,
    regions: &[Region],
) -> Result<Cow<'a, [u8]>, ModelError> {
    Ok(match stored.mapped_numbers(&tensor.name) {
        Some(mapped) => take_regions(mapped, &tensor.shape(), 1, regions),
        None => Cow::Owned(read_regions(&tensor.name, 1, regions, |region, dst| {
            stored.read_numbers(&tensor.name, region, dst)
        })?),
    })
}
