//! Reads weights by name, checks them, and remembers which, so that none is left out silently.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use nemo_format::{DType, Region, TensorMeta, TensorSource};
use tch::{Kind, Tensor};

use super::axis::{self, Axis};
use super::{explain, interleaved};
use crate::ModelError;
use crate::config::{ModelConfig, Normalization};
use crate::kernels::{Kernels, Linear, LinearRole, LinearSource, Norm, WeightBytes};

/// How many unknown tensors an error names.
const MAX_NAMED: usize = 3;

/// The tensors of one checkpoint, under a config.
pub(super) struct Reader<'a> {
    config: &'a ModelConfig,
    source: &'a dyn TensorSource,
    kernels: &'a dyn Kernels,
    used: Mutex<BTreeSet<String>>,
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

impl<'a> Reader<'a> {
    pub(super) fn new(
        config: &'a ModelConfig,
        source: &'a dyn TensorSource,
        kernels: &'a dyn Kernels,
    ) -> Self {
        Self { config, source, kernels, used: Mutex::new(BTreeSet::new()) }
    }

    /// A linear layer of two tensors, the bias being there or not.
    pub(super) fn linear(
        &self,
        (weight, bias): (&str, Option<&str>),
        axes: [Axis; 2],
        role: LinearRole,
    ) -> Result<Linear, ModelError> {
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
        self.kernels.pack_linear(source, role)
    }

    pub(super) fn norm(&self, prefix: &str, [weight, bias]: [&str; 2]) -> Result<Norm, ModelError> {
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
    pub(super) fn table(&self, name: &str, rows: Axis) -> Result<Tensor, ModelError> {
        self.tensor(name, &[rows, Axis::Hidden], self.kernels.precision().kind())
    }

    fn tensor(&self, name: &str, axes: &[Axis], kind: Kind) -> Result<Tensor, ModelError> {
        self.kernels.tensor(self.stored(name, axes)?.weight(), kind)
    }

    fn stored(&self, name: &str, axes: &[Axis]) -> Result<Stored<'_>, ModelError> {
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
        if !matches!(meta.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16) {
            return Err(ModelError::NotFloat { name: name.to_owned(), actual: meta.dtype.name() });
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        if let Some(mapped) = self.source.mapped_bytes(name) {
            return Ok(Stored { bytes: Cow::Borrowed(mapped), dtype: meta.dtype, shape });
        }
        let num_bytes = meta.size_bytes().and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(num_bytes).map_err(|_| {
            ModelError::OutOfMemory(tch::TchError::Torch(format!(
                "a buffer of {num_bytes} bytes for `{name}`"
            )))
        })?;
        buffer.resize(num_bytes, 0);
        self.source.read(name, &Region::whole(&shape), &mut buffer)?;
        Ok(Stored { bytes: Cow::Owned(buffer), dtype: meta.dtype, shape })
    }

    fn meta(&self, name: &str) -> Result<&TensorMeta, ModelError> {
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
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = self
            .source
            .names()
            .filter(|name| !used.contains(*name) && !is_not_a_weight(name))
            .collect::<Vec<_>>();
        if !unknown.is_empty() {
            return Err(ModelError::UnknownTensors {
                count: unknown.len(),
                names: unknown.iter().take(MAX_NAMED).map(|name| format!("`{name}`")).collect(),
                because: explain::unknown_because(&unknown, self.config),
            });
        }
        Ok(used.iter().filter_map(|name| self.source.meta(name)?.num_elems()).sum())
    }
}

/// Left over by training or recomputed here: FP8 state, stored rotary frequencies, a reward model's head.
fn is_not_a_weight(name: &str) -> bool {
    name.ends_with("_extra_state")
        || name.ends_with("rotary_pos_emb.inv_freq")
        || name.starts_with("model.rm_head.")
}
