//! FP8 weights presented as numbers of another type.

use std::collections::{BTreeMap, BTreeSet};

use model_spec::Region;
use rayon::prelude::*;

use super::{Fp8Weights, scale_name, value_of, weight_of_scale};
use crate::convert_dtype::convert_into;
use crate::{DType, FormatError, TensorMeta, TensorSource};

/// A weight in FP8 and what its numbers are multiplied by.
#[derive(Debug)]
pub(crate) struct Weight {
    /// As it is presented.
    pub(crate) meta: TensorMeta,
    pub(crate) factors: Factors,
}

/// Factors of blocks of `block[0]` rows and `block[1]` columns, row by row of blocks.
#[derive(Debug)]
pub(crate) struct Factors {
    pub(crate) values: Vec<f32>,
    pub(crate) block: [u64; 2],
    pub(crate) blocks_per_row: usize,
}

impl Factors {
    fn of(&self, row: u64, column: u64) -> f32 {
        let [height, width] = self.block;
        let at = (row / height.max(1)) as usize * self.blocks_per_row + (column / width.max(1)) as usize;
        // Its length was checked against the shape.
        self.values.get(at).copied().unwrap_or(f32::NAN)
    }

    /// Whether a row has one factor.
    pub(crate) fn are_of_rows(&self) -> bool {
        self.blocks_per_row == 1
    }
}

/// A source whose FP8 weights are numbers.
#[derive(Debug)]
pub(crate) struct Dequantized<S> {
    base: S,
    weights: BTreeMap<String, Weight>,
    /// Tensors that belong to these.
    hidden: BTreeSet<String>,
}

impl<S: TensorSource> Dequantized<S> {
    pub(crate) fn new(base: S, weights: BTreeMap<String, Weight>, hidden: BTreeSet<String>) -> Self {
        Self { base, weights, hidden }
    }

    /// With the weights in FP8 that have their scales under [`scale_name`], as a converted checkpoint has them.
    ///
    /// # Errors
    /// When a weight is stored in FP8 and has no scales that fit, or scales have no weight in FP8.
    pub(crate) fn of_converted(base: S) -> Result<Self, FormatError> {
        let is_fp8 = |name: &str| base.meta(name).is_some_and(|meta| meta.dtype == DType::F8E4M3);
        let stored: Vec<String> = base.names().filter(|name| is_fp8(name)).map(str::to_owned).collect();
        let dtype = plain_dtype(&base);
        let (mut weights, mut hidden) = (BTreeMap::new(), BTreeSet::new());
        for name in stored {
            let factors = read_scales(&base, &name)?;
            let shape = base.meta(&name).map(|meta| meta.shape.clone()).unwrap_or_default();
            hidden.insert(scale_name(&name));
            weights.insert(name, Weight { meta: TensorMeta { dtype, shape }, factors });
        }
        for name in base.names().filter(|name| !hidden.contains(*name)) {
            if let Some(weight) = weight_of_scale(name) {
                let reason = format!("they are scales, and `{weight}` is not stored as float8_e4m3fn");
                return Err(FormatError::bad_tensor(name, reason));
            }
        }
        Ok(Self { base, weights, hidden })
    }

    pub(crate) fn base(&self) -> &S {
        &self.base
    }

    /// How many weights are stored in FP8.
    pub(crate) fn num_weights(&self) -> usize {
        self.weights.len()
    }
}

/// The type of what is not quantised: that of the largest such tensor.
pub(crate) fn plain_dtype(source: &dyn TensorSource) -> DType {
    let plain = source.names().filter_map(|name| Some((name, source.meta(name)?))).filter(|(name, meta)| {
        matches!(meta.dtype, DType::BF16 | DType::F16 | DType::F32) && !name.contains("_scale")
    });
    let largest = plain.max_by_key(|(_, meta)| meta.num_elems());
    largest.map_or(DType::BF16, |(_, meta)| meta.dtype)
}

/// The scales of a weight, one for each row.
fn read_scales(source: &dyn TensorSource, weight: &str) -> Result<Factors, FormatError> {
    let bad = |reason: String| FormatError::bad_tensor(weight, reason);
    let shape = source.meta(weight).map(|meta| meta.shape.clone()).unwrap_or_default();
    let &[num_rows, width] = shape.as_slice() else {
        return Err(bad(format!("it is stored in FP8 with shape {shape:?}, a matrix is expected")));
    };
    let name = scale_name(weight);
    let Some(meta) = source.meta(&name) else {
        return Err(bad(format!("it is stored in FP8, and its scales `{name}` are missing")));
    };
    if meta.dtype != DType::F32 || meta.shape != [num_rows] {
        return Err(bad(format!(
            "its scales `{name}` are {} of shape {:?}, float32 of shape [{num_rows}] is expected for a weight of shape {shape:?}",
            meta.dtype.name(),
            meta.shape
        )));
    }
    let bytes = source.read_whole(&name)?;
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|elem| f32::from_le_bytes(*elem)).collect();
    // No row is scaled by nothing, not even one of zeros.
    let is_scale = |value: f32| value.is_finite() && value > 0.0;
    if let Some((row, value)) = values.iter().enumerate().find(|(_, value)| !is_scale(**value)) {
        return Err(bad(format!("its scale of row {row} in `{name}` is {value}, expected a number above 0")));
    }
    Ok(Factors { values, block: [1, width], blocks_per_row: 1 })
}

impl<S: TensorSource> TensorSource for Dequantized<S> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.base.names().filter(|name| !self.hidden.contains(*name)))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        match self.weights.get(name) {
            Some(weight) => Some(&weight.meta),
            None => self.base.meta(name).filter(|_| !self.hidden.contains(name)),
        }
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let Some(weight) = self.weights.get(name) else { return self.base.read(name, region, dst) };
        weight.meta.check_region(name, region, dst.len())?;
        let [rows, columns] = region.ranges.as_slice() else {
            return Err(FormatError::MissingTensor { name: name.to_owned() });
        };
        let width = (columns.end - columns.start) as usize;
        let mut numbers = vec![0; (rows.end - rows.start) as usize * width];
        self.base.read(name, region, &mut numbers)?;
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
                    (value_of(number) * weight.factors.of(row, column)).to_le_bytes()
                })
                .collect();
            convert_into(&values, DType::F32, out, weight.meta.dtype, 0.0);
        });
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        match self.weights.contains_key(name) || self.hidden.contains(name) {
            true => None,
            false => self.base.mapped_bytes(name),
        }
    }

    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        (!self.weights.is_empty()).then_some(self)
    }
}

impl<S: TensorSource> Fp8Weights for Dequantized<S> {
    fn row_scales(&self, name: &str) -> Option<Vec<f32>> {
        let Weight { meta, factors } = self.weights.get(name)?;
        let &[num_rows, _] = meta.shape.as_slice() else { return None };
        // One factor of a whole tensor is that of each row; blocks within a row have several.
        factors.are_of_rows().then(|| (0..num_rows).map(|row| factors.of(row, 0)).collect())
    }

    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        match self.weights.contains_key(name) {
            true => self.base.read(name, region, dst),
            false => Err(FormatError::MissingTensor { name: name.to_owned() }),
        }
    }

    fn mapped_numbers(&self, name: &str) -> Option<&[u8]> {
        self.weights.contains_key(name).then(|| self.base.mapped_bytes(name))?
    }
}
