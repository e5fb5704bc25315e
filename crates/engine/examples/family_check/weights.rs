//! Made-up weights in memory.

use std::collections::BTreeMap;

use model_spec::{Part, TensorSpec};
use nemo_format::{DType, FormatError, Region, TensorMeta, TensorSource};

/// Weights of every tensor of a model, the same for the same names and shapes.
pub(crate) struct MadeUp(BTreeMap<String, (TensorMeta, Vec<u8>)>);

impl MadeUp {
    /// Gains around what makes them neutral; matrices whose outputs are as large as their inputs.
    pub(crate) fn new(tensors: impl IntoIterator<Item = TensorSpec>, is_centred: bool) -> Self {
        let mut all = BTreeMap::new();
        let mut state = 12_345_u64;
        for tensor in tensors {
            let shape = tensor.shape();
            let is_gain = tensor.id.module.is_norm() && tensor.id.part == Part::Weight;
            let (centre, width) = match shape.as_slice() {
                _ if is_gain => (if is_centred { 0.0 } else { 1.0 }, 0.4),
                &[_, num_in] => (0.0, 4.0 / (num_in as f32).sqrt()),
                _ => (0.0, 0.4),
            };
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                centre + ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * width
            };
            let num_elems = shape.iter().product::<u64>();
            let bytes = (0..num_elems).flat_map(|_| number().to_le_bytes()).collect();
            all.insert(tensor.name.clone(), (TensorMeta { dtype: DType::F32, shape }, bytes));
        }
        Self(all)
    }
}

impl TensorSource for MadeUp {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        Some(&self.0.get(name)?.0)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let (meta, bytes) = self.0.get(name).ok_or_else(missing)?;
        meta.check_region(name, region, dst.len())?;
        let elem_bytes = meta.dtype.size_bytes();
        let num_columns = meta.shape.get(1).map_or(1, |&dim| dim as usize);
        let across = region.ranges.get(1).map_or(0..1, |range| range.start as usize..range.end as usize);
        let rows = region.ranges.first().map_or(0..1, |range| range.start as usize..range.end as usize);
        let row_bytes = across.len() * elem_bytes;
        for (row, to) in rows.zip(dst.chunks_mut(row_bytes.max(1))) {
            let start = (row * num_columns + across.start) * elem_bytes;
            to.copy_from_slice(bytes.get(start..start + row_bytes).ok_or_else(missing)?);
        }
        Ok(())
    }
}
