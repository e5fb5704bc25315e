//! Reads weights by name, checks them, and remembers which, so that none is left out silently.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use nemo_format::{DType, Region, TensorMeta, TensorSource};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::axis::{self, Axis};
use super::{explain, interleaved};
use crate::ModelError;
use crate::config::{ModelConfig, Normalization};
use crate::ops::{LinearRole, LinearSource, Loader, Norm, StepState, WeightBytes};

/// How many unknown tensors an error names.
const MAX_NAMED: usize = 3;

/// The tensors of one checkpoint, under a config, and the loader that they go to.
pub(super) struct Reader<'a, L> {
    config: &'a ModelConfig,
    source: &'a dyn TensorSource,
    loader: L,
    used: BTreeSet<String>,
    /// Tensors that [`Self::read_ahead`] has read.
    ahead: BTreeMap<String, Vec<u8>>,
}

/// One tensor's numbers, as stored.
struct Stored<'a> {
    bytes: Cow<'a, [u8]>,
    dtype: DType,
    shape: Vec<u64>,
}

impl Stored<'_> {
    fn weight(&self) -> WeightBytes<'_> {
        WeightBytes { bytes: &self.bytes, dtype: self.dtype, shape: &self.shape }
    }
}

impl<'a, L: Loader> Reader<'a, L> {
    pub(super) fn new(config: &'a ModelConfig, source: &'a dyn TensorSource, loader: L) -> Self {
        Self { config, source, loader, used: BTreeSet::new(), ahead: BTreeMap::new() }
    }

    /// Reads the weights whose names start with `prefix` on all threads, where they have to be copied out of the
    /// checkpoint: a loader takes one after the other. What cannot be read is left to be reported in its turn.
    pub(super) fn read_ahead(&mut self, prefix: &str) {
        let source = self.source;
        let to_copy: Vec<(&str, &TensorMeta)> = source
            .names()
            .filter(|name| name.starts_with(prefix) && !is_not_a_weight(name))
            .filter(|name| source.mapped_bytes(name).is_none())
            .filter_map(|name| Some((name, source.meta(name)?)))
            .filter(|(_, meta)| is_float(meta.dtype))
            .collect();
        let read = |&(name, meta): &(&str, &TensorMeta)| {
            Some((name.to_owned(), read_whole(source, name, meta).ok()?))
        };
        self.ahead = to_copy.par_iter().filter_map(read).collect();
    }

    /// The backend with all that was loaded for it.
    pub(super) fn finish(self) -> Result<L::State, ModelError> {
        self.loader.finish()
    }

    /// A linear layer of two tensors, the bias being there or not.
    pub(super) fn linear(
        &mut self,
        (weight, bias): (&str, Option<&str>),
        axes: [Axis; 2],
        role: LinearRole,
    ) -> Result<<L::State as StepState>::Linear, ModelError> {
        let mut weight = self.stored(weight, &axes)?;
        let mut bias = bias.map(|name| self.stored(name, &axes[..1])).transpose()?;
        if axes[0] == Axis::Qkv
            && let Some(order) = interleaved::row_order(self.config)
        {
            for stored in std::iter::once(&mut weight).chain(&mut bias) {
                stored.bytes = Cow::Owned(interleaved::reorder(&stored.bytes, &order));
            }
        }
        let source = LinearSource { weight: weight.weight(), bias: bias.as_ref().map(Stored::weight) };
        self.loader.linear(source, role)
    }

    pub(super) fn norm(&mut self, prefix: &str, [weight, bias]: [&str; 2]) -> Result<Norm, ModelError> {
        let stored_gain = self.tensor(&format!("{prefix}{weight}"), &[Axis::Hidden], Kind::Float)?;
        let gain = if self.config.zero_centered_gamma { stored_gain.f_add_scalar(1.0)? } else { stored_gain };
        let bias = match self.config.normalization {
            Normalization::RmsNorm => None,
            Normalization::LayerNorm => {
                Some(self.tensor(&format!("{prefix}{bias}"), &[Axis::Hidden], Kind::Float)?)
            }
        };
        Ok(Norm {
            normalization: self.config.normalization,
            gain,
            bias,
            epsilon: self.config.layernorm_epsilon,
        })
    }

    /// A table of rows as wide as the residual stream.
    pub(super) fn table(&mut self, name: &str, rows: Axis) -> Result<Tensor, ModelError> {
        self.tensor(name, &[rows, Axis::Hidden], self.loader.precision().kind())
    }

    fn tensor(&mut self, name: &str, axes: &[Axis], kind: Kind) -> Result<Tensor, ModelError> {
        let stored = self.stored(name, axes)?;
        self.loader.tensor(stored.weight(), kind)
    }

    fn stored(&mut self, name: &str, axes: &[Axis]) -> Result<Stored<'a>, ModelError> {
        let meta = self.meta(name)?;
        let shape = axis::shape(axes, self.config);
        if meta.shape != shape {
            return Err(ModelError::ShapeMismatch {
                name: name.to_owned(),
                contradicted: axis::contradicted(axes, self.config, &meta.shape),
                expected: shape,
                actual: meta.shape.clone(),
            });
        }
        if !is_float(meta.dtype) {
            return Err(ModelError::NotFloat { name: name.to_owned(), actual: meta.dtype.name() });
        }
        self.used.insert(name.to_owned());
        let bytes = match (self.source.mapped_bytes(name), self.ahead.remove(name)) {
            (Some(mapped), _) => Cow::Borrowed(mapped),
            (None, Some(read)) => Cow::Owned(read),
            (None, None) => Cow::Owned(read_whole(self.source, name, meta)?),
        };
        Ok(Stored { bytes, dtype: meta.dtype, shape })
    }

    fn meta(&self, name: &str) -> Result<&'a TensorMeta, ModelError> {
        self.source.meta(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
            because: explain::needed_because(name, self.config, self.source),
        })
    }

    /// How many rows the checkpoint has of a table.
    pub(super) fn num_rows(&self, name: &str) -> Result<u64, ModelError> {
        Ok(self.meta(name)?.shape.first().copied().unwrap_or(0))
    }

    /// The number of parameters read.
    pub(super) fn check_all_used(&self) -> Result<u64, ModelError> {
        let unknown = self
            .source
            .names()
            .filter(|name| !self.used.contains(*name) && !is_not_a_weight(name))
            .collect::<Vec<_>>();
        if !unknown.is_empty() {
            return Err(ModelError::UnknownTensors {
                count: unknown.len(),
                names: unknown.iter().take(MAX_NAMED).map(|name| format!("`{name}`")).collect(),
                because: explain::unknown_because(&unknown, self.config),
            });
        }
        Ok(self.used.iter().filter_map(|name| self.source.meta(name)?.num_elems()).sum())
    }
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

/// All bytes of a tensor.
fn read_whole(source: &dyn TensorSource, name: &str, meta: &TensorMeta) -> Result<Vec<u8>, ModelError> {
    let num_bytes = meta.size_bytes().and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(num_bytes).map_err(|_| {
        ModelError::OutOfMemory(tch::TchError::Torch(format!("a buffer of {num_bytes} bytes for `{name}`")))
    })?;
    buffer.resize(num_bytes, 0);
    source.read(name, &Region::whole(&meta.shape), &mut buffer)?;
    Ok(buffer)
}

/// Left over by training or recomputed here: FP8 state, stored rotary frequencies, a reward model's head.
fn is_not_a_weight(name: &str) -> bool {
    name.ends_with("_extra_state")
        || name.ends_with("rotary_pos_emb.inv_freq")
        || name.starts_with("model.rm_head.")
}
