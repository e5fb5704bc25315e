//! How tensor-parallel ranks share tensors, and which regions of a whole tensor a rank holds.

use std::ops::Range;

use crate::{Dim, ModelSpec, Module, Shard, TensorId, TensorSpec};

/// Which part of a model a rank has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// Its number among the ranks that share each tensor.
    pub tp_rank: u32,
    /// How many these are.
    pub tp_size: u32,
    /// The layers of its pipeline stage.
    pub layers: Range<usize>,
}

impl ShardPlace {
    /// The place of a rank that has the whole model.
    pub fn whole(model: &ModelSpec) -> Self {
        Self { tp_rank: 0, tp_size: 1, layers: 0..model.layers.len() }
    }

    /// Whether the pipeline stage has a tensor of the model.
    pub fn holds(&self, model: &ModelSpec, id: TensorId) -> bool {
        let is_first = self.layers.start == 0;
        let is_last = self.layers.end == model.layers.len();
        match (id.layer, id.module) {
            (Some(layer), _) => self.layers.contains(&layer),
            (None, Module::WordEmbeddings) => is_first || (is_last && model.output.tied),
            (None, Module::PositionEmbeddings) => is_first,
            (None, _) => is_last,
        }
    }
}

/// A half-open box of a tensor: one range per axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// One half-open range per axis, outermost first.
    pub ranges: Vec<Range<u64>>,
}

impl Region {
    /// The whole of a tensor of this shape.
    pub fn whole(shape: &[u64]) -> Self {
        Self { ranges: shape.iter().map(|&dim| 0..dim).collect() }
    }

    /// The extent along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.ranges.iter().map(|range| range.end.saturating_sub(range.start)).collect()
    }

    /// Number of elements; the greatest number when it overflows.
    pub fn num_elems(&self) -> u64 {
        self.shape().iter().fold(1, |product: u64, &size| product.saturating_mul(size))
    }
}

/// A tensor that ranks cannot share evenly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tp_size} ranks cannot share `{name}` evenly, whose {num_units} parts follow from {origin}")]
pub struct Indivisible {
    /// The tensor.
    pub name: String,
    /// How many ranks are to share it.
    pub tp_size: u32,
    /// The parts of it that are never cut.
    pub num_units: u64,
    /// What their number follows from.
    pub origin: String,
}

impl TensorSpec {
    /// The regions of the whole tensor that a rank holds: one under the other along the first axis, they are its tensor.
    ///
    /// # Errors
    /// When the ranks cannot share it evenly.
    pub fn regions(&self, at: &ShardPlace) -> Result<Vec<Region>, Indivisible> {
        let whole = Region::whole(&self.shape());
        let (axis, num_parts) = match self.shard {
            Shard::Replicated => return Ok(vec![whole]),
            Shard::Rows => (0, 1),
            Shard::RowsOfHalves => (0, 2),
            Shard::Columns => (1, 1),
        };
        let Some(&dim) = self.dims.get(axis) else { return Ok(vec![whole]) };
        let part_size = dim.size() / num_parts;
        let rank_size = self.rank_size(dim, part_size, at)?;
        let region = |part: u64| {
            let start = part * part_size + u64::from(at.tp_rank) * rank_size;
            let mut region = whole.clone();
            region.ranges[axis] = start..start + rank_size;
            region
        };
        Ok((0..num_parts).map(region).collect())
    }

    /// A rank's share of `part_size` elements along an axis.
    fn rank_size(&self, dim: Dim, part_size: u64, at: &ShardPlace) -> Result<u64, Indivisible> {
        let unit = dim.unit().max(1);
        let num_units = part_size / unit;
        let tp_size = u64::from(at.tp_size);
        if tp_size == 0 || at.tp_rank >= at.tp_size || !num_units.is_multiple_of(tp_size) {
            let (name, origin) = (self.name.clone(), dim.to_string());
            return Err(Indivisible { name, tp_size: at.tp_size, num_units, origin });
        }
        Ok(num_units / tp_size * unit)
    }
}

#[cfg(test)]
mod tests;
