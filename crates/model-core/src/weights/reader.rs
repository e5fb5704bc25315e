//! Reads weights by name, checks them, and remembers which, so that none is left out silently.

mod fp8;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use model_spec::{ModelSpec, Module, NormSpec, Part, ShardPlace, TensorId, TensorSpec, parse_name};
use nemo_format::{Region, TensorMeta, TensorSource};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::regions::{read_regions, take_regions};
use super::{explain, interleaved};
use crate::ModelError;
use crate::fp8::Fp8Bytes;
use crate::kinds::{StoredFloat, TensorFormat};
use crate::ops::PiecedLinear;
use crate::ops::{
    Experts, LinearRole, LinearSource, Loader, Norm, StepState, StoredLinearWeight, WeightBytes,
};
use crate::ops::{Router, SharedExpert};

/// How many unknown tensors an error names.
const MAX_NAMED: usize = 3;

/// The tensors of one checkpoint, as those of a model, and the loader that they go to.
pub(super) struct Reader<'a, L> {
    /// The whole model.
    spec: &'a ModelSpec,
    /// What of it is read.
    place: &'a ShardPlace,
    source: &'a dyn TensorSource,
    loader: L,
    /// Tensors that are read, and those that other ranks read.
    used: BTreeSet<String>,
    /// What of tensors [`Self::read_ahead`] has read.
    ahead: BTreeMap<String, Vec<u8>>,
}

/// What a rank reads of one tensor, as stored.
struct Stored<'a> {
    bytes: Cow<'a, [u8]>,
    dtype: StoredFloat,
    shape: Vec<u64>,
}

/// What a rank reads of a weight that is held in FP8 and comes so.
struct StoredFp8<'a> {
    numbers: Cow<'a, [u8]>,
    scales: Vec<f32>,
    shape: Vec<u64>,
}

/// The weight of a linear layer.
enum StoredWeight<'a> {
    Float(Stored<'a>),
    Fp8(StoredFp8<'a>),
}

impl StoredWeight<'_> {
    fn weight(&self) -> StoredLinearWeight<'_> {
        match self {
            Self::Float(stored) => StoredLinearWeight::Float(stored.weight()),
            Self::Fp8(StoredFp8 { numbers, scales, shape }) => {
                StoredLinearWeight::Fp8(Fp8Bytes { numbers, scales, shape })
            }
        }
    }
}

impl Stored<'_> {
    fn weight(&self) -> WeightBytes<'_> {
        WeightBytes { bytes: &self.bytes, dtype: self.dtype, shape: &self.shape }
    }
}

impl<'a, L: Loader> Reader<'a, L> {
    pub(super) fn new(
        spec: &'a ModelSpec,
        place: &'a ShardPlace,
        source: &'a dyn TensorSource,
        loader: L,
    ) -> Self {
        let of_others = spec.tensors().filter(|tensor| !place.holds(spec, tensor.id));
        let used = of_others.map(|tensor| tensor.name).filter(|name| source.meta(name).is_some()).collect();
        Self { spec, place, source, loader, used, ahead: BTreeMap::new() }
    }

    /// How many ranks share its tensors.
    pub(super) fn tp_size(&self) -> usize {
        self.place.tp_size as usize
    }

    /// How many ranks share a tensor that this rank has a part of.
    pub(super) fn num_sharing(&self, id: TensorId) -> usize {
        if id.expert.is_some() && self.place.has_some_experts() { 1 } else { self.tp_size() }
    }

    /// What of the model is read.
    pub(super) fn place(&self) -> &'a ShardPlace {
        self.place
    }

    /// Reads the weights whose names start with `prefix` on all threads, where they have to be copied out of the
    /// checkpoint: a loader takes one after the other. What cannot be read is left to be reported in its turn.
    pub(super) fn read_ahead(&mut self, prefix: &str) {
        let (source, spec, place) = (self.source, self.spec, self.place);
        let to_copy: Vec<(&str, &TensorMeta)> = source
            .names()
            .filter(|name| name.starts_with(prefix) && !is_not_a_weight(name))
            .filter(|name| source.mapped_bytes(name).is_none())
            .filter_map(|name| Some((name, source.meta(name)?)))
            .filter(|(name, meta)| StoredFloat::of(meta.dtype).is_some() && !self.is_kept_in_fp8(name))
            .collect();
        let read = |&(name, meta): &(&str, &TensorMeta)| {
            let id = parse_name(name).filter(|&id| place.holds(spec, id))?;
            let tensor = spec.tensor(id).ok()?;
            if meta.shape != tensor.shape() {
                return None;
            }
            Some((
                name.to_owned(),
                read_regions(name, meta.dtype.size_bytes(), &tensor.regions(place).ok()?, |region, dst| {
                    source.read(name, region, dst)
                })
                .ok()?,
            ))
        };
        self.ahead = to_copy.par_iter().filter_map(read).collect();
    }

    /// The backend with all that was loaded for it.
    pub(super) fn finish(self) -> Result<L::State, ModelError> {
        self.loader.finish()
    }

    /// A linear layer, with its bias where the model has one.
    pub(super) fn linear(
        &mut self,
        weight: TensorId,
        role: LinearRole,
    ) -> Result<<L::State as StepState>::Linear, ModelError> {
        self.linear_of(weight, weight.module, role)
    }

    /// What the backend needs of a layer's experts beside their linear layers.
    pub(super) fn group(
        &mut self,
        router: &Router<L::State>,
        experts: &Experts<<L::State as StepState>::Linear>,
        shared: Option<&SharedExpert<L::State>>,
    ) -> Result<<L::State as StepState>::Experts, ModelError> {
        self.loader.group(router, experts, shared)
    }

    /// A tensor in float32.
    pub(super) fn float32(&mut self, id: TensorId) -> Result<Tensor, ModelError> {
        self.tensor(&self.needed(id)?, Kind::Float)
    }

    /// The output layer, whose weight may be the embedding table.
    pub(super) fn output(&mut self) -> Result<<L::State as StepState>::Linear, ModelError> {
        let table = if self.spec.output.tied { Module::WordEmbeddings } else { Module::Output };
        self.linear_of(TensorId::outside(table, Part::Weight), Module::Output, LinearRole::Output)
    }

    /// A linear layer whose inputs are summed in `num_pieces`, those of all ranks counted.
    pub(super) fn pieces(
        &mut self,
        weight: TensorId,
        num_pieces: usize,
    ) -> Result<PiecedLinear<<L::State as StepState>::Linear>, ModelError> {
        let num_sharing = self.num_sharing(weight);
        let bias = self.spec.tensor(weight.with_part(Part::Bias)).ok();
        let is_of_expert = weight.expert.is_some();
        let weight = match LinearRole::Plain.is_fp8(self.loader.numerics()) {
            true => StoredWeight::Fp8(self.fp8_part(&self.needed(weight)?)?),
            false => StoredWeight::Float(self.stored(&self.needed(weight)?)?),
        };
        // An expert's counts as often as its output: it is part of the first piece, on the rank that has that.
        let (bias, of_first) = match bias {
            Some(bias) if is_of_expert => {
                let stored = self.stored(&bias)?;
                (None, (num_sharing == 1 || self.place.tp_rank == 0).then_some(stored))
            }
            bias => (bias, None),
        };
        let bias = bias.map(|bias| self.tensor(&bias, Kind::Float)).transpose()?;
        let num_pieces = (num_pieces / num_sharing.max(1)).max(1);
        let source = LinearSource { weight: weight.weight(), bias: of_first.as_ref().map(Stored::weight) };
        let parts = self.loader.pieces(source, num_pieces)?;
        Ok(PiecedLinear { parts, num_pieces, bias, hidden_size: self.spec.hidden_size as i64 })
    }

    fn linear_of(
        &mut self,
        weight: TensorId,
        module: Module,
        role: LinearRole,
    ) -> Result<<L::State as StepState>::Linear, ModelError> {
        let layer = weight.layer;
        let bias = self.spec.tensor(TensorId { module, part: Part::Bias, ..weight }).ok();
        let weight = self.needed(weight)?;
        let weight = match role.is_fp8(self.loader.numerics()) && self.is_kept_in_fp8(&weight.name) {
            true => {
                let mut stored = self.fp8_part(&weight)?;
                if let Some(order) = self.order(layer, module, &stored.shape) {
                    stored.numbers = Cow::Owned(interleaved::reorder(&stored.numbers, &order));
                    stored.scales = interleaved::reorder(&stored.scales, &order);
                }
                StoredWeight::Fp8(stored)
            }
            false => {
                let mut stored = self.stored(&weight)?;
                self.put_in_order(layer, module, &mut stored);
                StoredWeight::Float(stored)
            }
        };
        let mut bias = bias.map(|bias| self.stored(&bias)).transpose()?;
        if let Some(bias) = &mut bias {
            self.put_in_order(layer, module, bias);
        }
        let source = LinearSource { weight: weight.weight(), bias: bias.as_ref().map(Stored::weight) };
        self.loader.linear(source, role)
    }

    /// A norm, with its bias where the model has one.
    pub(super) fn norm(
        &mut self,
        layer: Option<usize>,
        module: Module,
        norm: &NormSpec,
    ) -> Result<Norm, ModelError> {
        let gain = TensorId { layer, expert: None, module, part: Part::Weight };
        let bias = self.spec.tensor(gain.with_part(Part::Bias)).ok();
        let gain = self.needed(gain)?;
        let stored_gain = self.tensor(&gain, Kind::Float)?;
        let gain = if norm.zero_centered_gamma { stored_gain.f_add_scalar(1.0)? } else { stored_gain };
        let bias = bias.map(|bias| self.tensor(&bias, Kind::Float)).transpose()?;
        Ok(Norm { normalization: norm.normalization, gain, bias, epsilon: norm.epsilon })
    }

    /// Puts what is interleaved for the rotation into the order of the layers.
    fn put_in_order(&self, layer: Option<usize>, module: Module, stored: &mut Stored<'_>) {
        if let Some(order) = self.order(layer, module, &stored.shape) {
            stored.bytes = Cow::Owned(interleaved::reorder(&stored.bytes, &order));
        }
    }

    /// The order of rows of a tensor that is interleaved for the rotation.
    fn order(&self, layer: Option<usize>, module: Module, shape: &[u64]) -> Option<Vec<usize>> {
        let attention =
            layer.and_then(|idx| self.spec.layers.get(idx)?.attention.clone()).map(|mut attention| {
                attention.heads = attention.heads.of_rank(self.place.tp_size as usize);
                attention
            });
        let attention = attention.as_ref();
        match module {
            Module::Qkv => attention.and_then(interleaved::row_order),
            Module::QNorm | Module::KNorm => attention.and_then(|attention| {
                let order = interleaved::head_order(attention)?;
                // Each head's gains, one after the other, where every head has its own.
                let num_heads = if attention.norm_per_head { shape.first().copied()? } else { 1 };
                Some(interleaved::repeated(&order, num_heads as usize))
            }),
            _ => None,
        }
    }

    /// A table of rows as wide as the residual stream.
    pub(super) fn table(&mut self, id: TensorId) -> Result<Tensor, ModelError> {
        self.tensor(&self.needed(id)?, self.loader.numerics().plain_weights().kind())
    }

    fn tensor(&mut self, tensor: &TensorSpec, kind: Kind) -> Result<Tensor, ModelError> {
        let mut stored = self.stored(tensor)?;
        self.put_in_order(tensor.id.layer, tensor.id.module, &mut stored);
        self.loader.tensor(stored.weight(), kind)
    }

    fn stored(&mut self, tensor: &TensorSpec) -> Result<Stored<'a>, ModelError> {
        let (dtype, elem_bytes) = self.checked(tensor)?;
        let name = &tensor.name;
        let regions = tensor.regions(self.place)?;
        let bytes = match (self.source.mapped_bytes(name), self.ahead.remove(name)) {
            (Some(mapped), _) => take_regions(mapped, &tensor.shape(), elem_bytes, &regions),
            (None, Some(read)) => Cow::Owned(read),
            (None, None) => {
                let read = |region: &Region, dst: &mut [u8]| self.source.read(name, region, dst);
                Cow::Owned(read_regions(name, elem_bytes, &regions, read)?)
            }
        };
        Ok(Stored { bytes, dtype, shape: shape_of(&regions) })
    }

    /// The type of a tensor's numbers and the bytes of one. It is read from now on.
    fn checked(&mut self, tensor: &TensorSpec) -> Result<(StoredFloat, usize), ModelError> {
        let meta = self.meta(tensor)?;
        let (name, shape) = (&tensor.name, tensor.shape());
        if meta.shape != shape {
            return Err(ModelError::ShapeMismatch {
                name: name.clone(),
                contradicted: tensor.contradicted(&meta.shape),
                expected: shape,
                actual: meta.shape.clone(),
            });
        }
        let dtype = StoredFloat::of(meta.dtype)
            .ok_or_else(|| ModelError::NotFloat { name: name.clone(), actual: meta.dtype.name() })?;
        self.used.insert(name.clone());
        Ok((dtype, meta.dtype.size_bytes()))
    }

    /// A tensor that the model has.
    fn needed(&self, id: TensorId) -> Result<TensorSpec, ModelError> {
        self.spec.tensor(id).map_err(|key| ModelError::MissingTensor {
            name: id.name(),
            because: format!("a model with {} has it", key.setting()),
        })
    }

    /// Reports a tensor that the checkpoint lacks.
    pub(super) fn check_stored(&self, id: TensorId) -> Result<(), ModelError> {
        self.meta(&self.needed(id)?).map(|_| ())
    }

    fn meta(&self, tensor: &TensorSpec) -> Result<&'a TensorMeta, ModelError> {
        self.source.meta(&tensor.name).ok_or_else(|| ModelError::MissingTensor {
            name: tensor.name.clone(),
            because: explain::needed_because(tensor, self.spec, self.source),
        })
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
                because: explain::unknown_because(&unknown, self.spec),
            });
        }
        Ok(self.used.iter().filter_map(|name| self.source.meta(name)?.num_elems()).sum())
    }
}

/// Of regions one under the other.
fn shape_of(regions: &[Region]) -> Vec<u64> {
    let mut shape = regions.first().map(Region::shape).unwrap_or_default();
    if let Some(num_rows) = shape.first_mut() {
        *num_rows = regions.iter().filter_map(|region| region.shape().first().copied()).sum();
    }
    shape
}

/// Left over by training or recomputed here: FP8 state, stored rotary frequencies, a reward model's head.
fn is_not_a_weight(name: &str) -> bool {
    name.ends_with("_extra_state")
        || name.ends_with("rotary_pos_emb.inv_freq")
        || name.starts_with("model.rm_head.")
}
