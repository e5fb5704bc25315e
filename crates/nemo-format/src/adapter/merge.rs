//! A [`TensorSource`] that adds the products of low-rank factors to the weights of another as these are read.
//!
//! `W + scale * (B A)` in float32, rounded once to the type that is presented. A sum has one order, whatever region is
//! read: over the rank, then over the adapters.

use std::ops::Range;

use indexmap::IndexMap;
use rayon::prelude::*;

use super::base_model::BaseModel;
use super::{Adapter, Matrix, Pair, floats};
use crate::adapter_names::Rows;
use crate::convert_dtype::{convert_into, is_float};
use crate::{DType, FormatError, Fp8Weights, Region, TensorMeta, TensorSource};

/// The type in which merged weights are presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// float32, for a reader that rounds them itself.
    Float32,
    /// The type in which the weight is stored.
    Stored,
    /// This one.
    As(DType),
}

/// Weights of which some have an update.
#[derive(Debug)]
pub(crate) struct AdaptedSource<S> {
    base: S,
    precision: Precision,
    merged: IndexMap<String, Merged>,
}

/// A weight with what is added to it.
#[derive(Debug)]
struct Merged {
    meta: TensorMeta,
    updates: Vec<Update>,
}

/// Factors and the rows that they are for.
#[derive(Debug)]
struct Update {
    rows: Rows,
    /// Runs of rows of the weight, in the order of the rows of `up`.
    runs: Vec<Range<u64>>,
    scale: f32,
    down: Matrix,
    up: Matrix,
}

impl<S: TensorSource> AdaptedSource<S> {
    /// The weights without what is added to them.
    pub(crate) fn base(&self) -> &S {
        &self.base
    }

    /// The weights as they are, until adapters are put on top.
    pub(crate) fn new(base: S, precision: Precision) -> Self {
        Self { base, precision, merged: IndexMap::new() }
    }

    /// The weights that are added to.
    pub(crate) fn merged_names(&self) -> Vec<String> {
        self.merged.keys().cloned().collect()
    }

    /// What is added to. Names and shapes must stay.
    pub(crate) fn base_mut(&mut self) -> &mut S {
        &mut self.base
    }

    /// Puts an adapter on top of those before it.
    pub(super) fn add(&mut self, adapter: Adapter, model: &BaseModel) -> Result<(), FormatError> {
        // Two adapters may add to the same rows, one adapter only once.
        let mut added: Vec<(String, Update)> = Vec::new();
        for pair in adapter.pairs {
            let name = pair.target.weight();
            let is_output = pair.target.rows == Rows::Output;
            let Some(stored) = self.base.meta(&name).filter(|_| !is_output || !model.is_tied) else {
                return Err(FormatError::OtherBase {
                    adapter: adapter.path,
                    tensor: pair.name,
                    found: format!("is for `{name}`"),
                    needed: format!("has {} layers and no such tensor", model.num_layers),
                    base: model.name.clone(),
                });
            };
            let update = fitting(pair, &name, stored, &adapter.path, model)?;
            if let Some((_, other)) =
                added.iter().find(|(other, with)| *other == name && with.overlaps(&update))
            {
                let (one, two) = (other.rows.name(), update.rows.name());
                let reason =
                    format!("`{}` has an update of {one} and one of {two}, which overlap", adapter.path);
                return Err(FormatError::bad_tensor(&name, reason));
            }
            added.push((name, update));
        }
        for (name, update) in added {
            let Some(stored) = self.base.meta(&name) else { continue };
            let dtype = match self.precision {
                Precision::Float32 => DType::F32,
                Precision::Stored => stored.dtype,
                Precision::As(dtype) => dtype,
            };
            let meta = TensorMeta { dtype, shape: stored.shape.clone() };
            let merged = self.merged.entry(name).or_insert_with(|| Merged { meta, updates: Vec::new() });
            merged.updates.push(update);
        }
        Ok(())
    }
}

/// The update, if its shapes are those of the weight.
fn fitting(
    pair: Pair,
    name: &str,
    stored: &TensorMeta,
    adapter: &str,
    model: &BaseModel,
) -> Result<Update, FormatError> {
    let Pair { target, name: module, down, up, scale, .. } = pair;
    let &[num_rows, num_columns] = stored.shape.as_slice() else {
        return Err(FormatError::bad_tensor(
            name,
            format!("it has shape {:?}, expected a matrix", stored.shape),
        ));
    };
    if !is_float(stored.dtype) {
        let reason = format!("its dtype is {}, to which nothing can be added", stored.dtype.name());
        return Err(FormatError::bad_tensor(name, reason));
    }
    let runs = model.runs(target.rows, num_rows);
    let outputs: u64 = runs.iter().map(|run| run.end - run.start).sum();
    let is_inside = runs.iter().all(|run| run.end <= num_rows);
    if down.rows != up.columns {
        let reason = format!("its factors in `{adapter}` have the ranks {} and {}", down.rows, up.columns);
        return Err(FormatError::bad_tensor(&module, reason));
    }
    if !is_inside || down.columns != num_columns || up.rows != outputs {
        return Err(FormatError::OtherBase {
            adapter: adapter.to_owned(),
            tensor: module,
            found: format!("is for {} outputs of {} inputs", up.rows, down.columns),
            needed: format!("has {outputs} of {num_columns} there (`{name}`)"),
            base: model.name.clone(),
        });
    }
    Ok(Update { rows: target.rows, runs, scale, down, up })
}

impl Update {
    fn overlaps(&self, other: &Self) -> bool {
        let touches =
            |run: &Range<u64>| other.runs.iter().any(|two| run.start < two.end && two.start < run.end);
        self.runs.iter().any(touches)
    }

    /// The row of `up` for a row of the weight.
    fn factors_of(&self, row: u64) -> Option<&[f32]> {
        let mut before = 0;
        for run in &self.runs {
            if run.contains(&row) {
                let rank = self.up.columns as usize;
                let start = (before + row - run.start) as usize * rank;
                return self.up.values.get(start..start + rank);
            }
            before += run.end - run.start;
        }
        None
    }

    /// Adds to the columns `columns` of a row of the weight; `product` is memory for as many.
    fn add_to(&self, row: u64, columns: &Range<u64>, weights: &mut [f32], product: &mut [f32]) {
        let Some(factors) = self.factors_of(row) else { return };
        product.fill(0.0);
        for (&factor, down) in factors.iter().zip(self.down.values.chunks_exact(self.down.columns as usize)) {
            let down = &down[columns.start as usize..columns.end as usize];
            for (product, down) in product.iter_mut().zip(down) {
                *product += factor * down;
            }
        }
        for (weight, product) in weights.iter_mut().zip(product) {
            *weight += self.scale * *product;
        }
    }
}

impl Merged {
    /// The region's elements with the updates added.
    fn read(&self, stored: &[u8], dtype: DType, region: &Region, dst: &mut [u8]) {
        let [rows, columns] = region.ranges.as_slice() else { return };
        let num_columns = (columns.end - columns.start) as usize;
        let mut values = floats(stored, dtype);
        let with_scratch = |product: &mut Vec<f32>, (at, weights): (usize, &mut [f32])| {
            product.resize(num_columns, 0.0);
            for update in &self.updates {
                update.add_to(rows.start + at as u64, columns, weights, product);
            }
        };
        values.par_chunks_mut(num_columns.max(1)).enumerate().for_each_init(Vec::new, with_scratch);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        convert_into(&bytes, DType::F32, dst, self.meta.dtype, 0.0);
    }
}

impl<S: TensorSource> TensorSource for AdaptedSource<S> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.base.names()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        match self.merged.get(name) {
            Some(merged) => Some(&merged.meta),
            None => self.base.meta(name),
        }
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let Some(merged) = self.merged.get(name) else { return self.base.read(name, region, dst) };
        merged.meta.check_region(name, region, dst.len())?;
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let dtype = self.base.meta(name).ok_or_else(missing)?.dtype;
        let num_elems = dst.len() / merged.meta.dtype.size_bytes();
        let mut stored = vec![0; num_elems * dtype.size_bytes()];
        self.base.read(name, region, &mut stored)?;
        merged.read(&stored, dtype, region, dst);
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        match self.merged.contains_key(name) {
            true => None,
            false => self.base.mapped_bytes(name),
        }
    }

    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        self.base.fp8().map(|_| self as &dyn Fp8Weights)
    }
}

/// A sum is no longer as its weight is stored.
impl<S: TensorSource> Fp8Weights for AdaptedSource<S> {
    fn row_scales(&self, name: &str) -> Option<Vec<f32>> {
        self.base.fp8().filter(|_| !self.merged.contains_key(name))?.row_scales(name)
    }

    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let stored = self.base.fp8().filter(|_| !self.merged.contains_key(name));
        let stored = stored.ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        stored.read_numbers(name, region, dst)
    }

    fn mapped_numbers(&self, name: &str) -> Option<&[u8]> {
        self.base.fp8().filter(|_| !self.merged.contains_key(name))?.mapped_numbers(name)
    }
}
