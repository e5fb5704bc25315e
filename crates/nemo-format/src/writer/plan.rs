//! Which keys a torch_dist checkpoint has for some canonical tensors, and where their items lie.
//!
//! Layers that are alike are stacked under keys without their number, and so are the experts of a layer, as
//! Megatron-Core does; where only some layers have experts, or layers are of several kinds, all layers keep
//! their numbers.

use std::collections::{BTreeSet, HashMap};

use indexmap::IndexMap;
use model_spec::{EXPERTS, LAYERS, Module};

use super::torch_item::{ALIGNMENT, TorchItem};
use crate::fp8::weight_of_scale;
use crate::{DType, FormatError, TensorSource};

/// What the experts' tensors are called in place of [`EXPERTS`] and a number.
const STACKED_EXPERTS: &str = "mlp.experts.experts.";
/// The norm of layers with experts, whose first linear layer it is no part of.
const NORM_OF_EXPERTS: &str = "pre_mlp_layernorm.";

/// A key of the checkpoint: a tensor, or the tensors of all layers, or of all experts, stacked.
pub(super) struct StackedKey {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    pub(super) pieces: Vec<Piece>,
}

/// A chunk of a key: one canonical tensor.
pub(super) struct Piece {
    /// The canonical name it is read by.
    pub(super) source_name: String,
    pub(super) offsets: Vec<u64>,
    pub(super) sizes: Vec<u64>,
    pub(super) item: TorchItem,
    /// Where the item starts in the data file.
    pub(super) item_at: u64,
}

/// A canonical tensor and its place on the axes in front: its layer, its expert.
type Member<'a> = (Vec<u64>, &'a str);

/// Plans all keys; the second value is the size of the data file.
pub(super) fn plan(
    source: &dyn TensorSource,
    dtype: Option<DType>,
) -> Result<(Vec<StackedKey>, u64), FormatError> {
    let naming = Naming::of(source);
    let mut groups: IndexMap<String, Vec<Member<'_>>> = IndexMap::new();
    for name in source.names() {
        let (key, at) = naming.key(name);
        groups.entry(key).or_default().push((at, name));
    }
    let mut keys = Vec::new();
    let mut at = 0;
    for (name, members) in groups {
        keys.push(stack(source, dtype, name, members, &mut at)?);
    }
    Ok((keys, at))
}

fn stack(
    source: &dyn TensorSource,
    dtype: Option<DType>,
    name: String,
    mut members: Vec<Member<'_>>,
    at: &mut u64,
) -> Result<StackedKey, FormatError> {
    members.sort_unstable();
    let bad = |reason: &str| FormatError::BadTensor { name: name.clone(), reason: reason.to_owned() };
    let meta_of = |member: &str| {
        source.meta(member).ok_or_else(|| FormatError::MissingTensor { name: member.to_owned() })
    };
    let (last, first) = (members.last(), members.first());
    let first = meta_of(first.ok_or_else(|| bad("it has no layers"))?.1)?;
    let counts: Vec<u64> = last.map(|(at, _)| at.iter().map(|idx| idx + 1).collect()).unwrap_or_default();
    // Numbers in FP8 are not rounded, and so are not their scales.
    let dtype = dtype.filter(|_| weight_of_scale(&name).is_none());
    let target = convertible(first.dtype, dtype).map_err(|to| FormatError::UnsupportedConversion {
        name: name.clone(),
        from: first.dtype,
        to,
    })?;
    let mut pieces = Vec::new();
    for (index, (place, member)) in members.iter().enumerate() {
        if meta_of(member)? != first || *place != place_of(index as u64, &counts) {
            return Err(bad("its layers or experts are not the same shape and type, numbered from 0"));
        }
        let sizes = [vec![1; place.len()], first.shape.clone()].concat();
        let offsets = [place.clone(), vec![0; first.shape.len()]].concat();
        let item = TorchItem::tensor(target, &sizes);
        let item_at = *at;
        *at = (item_at + item.len_bytes).next_multiple_of(ALIGNMENT);
        pieces.push(Piece { source_name: (*member).to_owned(), offsets, sizes, item, item_at });
    }
    if pieces.len() as u64 != counts.iter().product::<u64>() {
        return Err(bad("some of its layers or experts are missing"));
    }
    let shape = [counts, first.shape.clone()].concat();
    Ok(StackedKey { name, dtype: target, shape, pieces })
}

/// Where the part of this number lies when parts are counted row by row.
fn place_of(index: u64, counts: &[u64]) -> Vec<u64> {
    let mut rest = index;
    let mut place = vec![0; counts.len()];
    for (axis, &count) in counts.iter().enumerate().skip(1).rev() {
        place[axis] = rest % count.max(1);
        rest /= count.max(1);
    }
    if let Some(first) = place.first_mut() {
        *first = rest;
    }
    place
}

/// How Megatron-Core names the tensors of a model.
struct Naming {
    with_experts: BTreeSet<u64>,
    /// Whether all layers are of one kind.
    is_uniform: bool,
}

impl Naming {
    fn of(source: &dyn TensorSource) -> Self {
        let router = Module::Router.stem();
        let (mut layers, mut with_experts) = (BTreeSet::new(), BTreeSet::new());
        for (layer, rest) in source.names().filter_map(split_layer) {
            layers.insert(layer);
            if rest.starts_with(router) {
                with_experts.insert(layer);
            }
        }
        let has_same_experts = with_experts.is_empty() || with_experts.len() == layers.len();
        Self { with_experts, is_uniform: has_same_experts && !has_several_kinds(source, &layers) }
    }

    /// The key of a tensor, and its place on the axes in front.
    fn key(&self, name: &str) -> (String, Vec<u64>) {
        let Some((layer, rest)) = split_layer(name) else { return (name.to_owned(), Vec::new()) };
        let mut place = Vec::new();
        let prefix = match self.is_uniform {
            true => {
                place.push(layer);
                LAYERS.to_owned()
            }
            false => format!("{LAYERS}{layer}."),
        };
        let of_norm = rest.strip_prefix(Module::MlpNorm.stem());
        let rest = match (split_expert(rest), of_norm) {
            (Some((expert, rest)), _) => {
                place.push(expert);
                format!("{STACKED_EXPERTS}{rest}")
            }
            (None, Some(part)) if self.with_experts.contains(&layer) => format!("{NORM_OF_EXPERTS}{part}"),
            (None, _) => rest.to_owned(),
        };
        (format!("{prefix}{rest}"), place)
    }
}

/// Whether layers differ in the shape of a tensor, lack attention or MLP, or have a linear layer in its place. A tensor that is
/// missing elsewhere is not taken for that.
fn has_several_kinds(source: &dyn TensorSource, layers: &BTreeSet<u64>) -> bool {
    const PARTS: [&str; 2] = ["self_attention.", "mlp."];
    let mut shapes: HashMap<&str, &[u64]> = HashMap::new();
    let mut with_part = [BTreeSet::new(), BTreeSet::new()];
    for name in source.names() {
        let Some((layer, rest)) = split_layer(name) else { continue };
        for (part, with) in PARTS.iter().zip(&mut with_part) {
            let Some(behind) = rest.strip_prefix(part) else { continue };
            with.insert(layer);
            if behind == "weight" {
                return true;
            }
        }
        let shape = source.meta(name).map_or(&[][..], |meta| &meta.shape);
        if *shapes.entry(rest).or_insert(shape) != shape {
            return true;
        }
    }
    with_part.iter().any(|with| !with.is_empty() && with.len() != layers.len())
}

/// The layer of a tensor, and its name in it.
fn split_layer(name: &str) -> Option<(u64, &str)> {
    let (number, rest) = name.strip_prefix(LAYERS)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The expert of a tensor, and its name in it.
fn split_expert(rest: &str) -> Option<(u64, &str)> {
    let (number, rest) = rest.strip_prefix(EXPERTS)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The dtype to write; floating-point tensors alone are converted.
fn convertible(from: DType, to: Option<DType>) -> Result<DType, DType> {
    let is_float = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    match to {
        Some(to) if to != from && is_float(from) => {
            if is_float(to) {
                Ok(to)
            } else {
                Err(to)
            }
        }
        Some(to) if from == DType::F64 => Err(to),
        _ => Ok(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_row_by_row() {
        let places = |counts: &[u64]| {
            let count = counts.iter().product::<u64>();
            (0..count).map(|index| place_of(index, counts)).collect::<Vec<_>>()
        };
        assert_eq!(places(&[]), [vec![0; 0]]);
        assert_eq!(places(&[3]), [[0], [1], [2]]);
        assert_eq!(places(&[2, 3]), [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]);
        // What is beyond the last is no place of another.
        assert_eq!(place_of(6, &[2, 3]), [2, 0]);
    }
}
