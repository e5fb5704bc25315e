//! Which keys a torch_dist checkpoint has for some canonical tensors, and where their items lie.

use indexmap::IndexMap;
use model_spec::LAYERS;

use super::torch_item::{ALIGNMENT, TorchItem};
use crate::{DType, FormatError, TensorSource};

/// A key of the checkpoint: a tensor, or the tensors of all layers stacked.
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

/// Plans all keys; the second value is the size of the data file.
pub(super) fn plan(
    source: &dyn TensorSource,
    dtype: Option<DType>,
) -> Result<(Vec<StackedKey>, u64), FormatError> {
    let mut groups: IndexMap<String, Vec<(Option<u64>, &str)>> = IndexMap::new();
    for name in source.names() {
        let layer = name.strip_prefix(LAYERS).and_then(|rest| rest.split_once('.'));
        let (key, layer) = match layer.and_then(|(number, rest)| Some((number.parse::<u64>().ok()?, rest))) {
            Some((number, rest)) => (format!("{LAYERS}{rest}"), Some(number)),
            None => (name.to_owned(), None),
        };
        groups.entry(key).or_default().push((layer, name));
    }
    let mut keys = Vec::new();
    let mut at = 0;
    for (name, mut members) in groups {
        members.sort_unstable_by_key(|&(layer, _)| layer);
        let bad = |reason: &str| FormatError::BadTensor { name: name.clone(), reason: reason.to_owned() };
        let meta_of = |member: &str| {
            source.meta(member).ok_or_else(|| FormatError::MissingTensor { name: member.to_owned() })
        };
        let first = meta_of(members.first().ok_or_else(|| bad("it has no layers"))?.1)?;
        let target = convertible(first.dtype, dtype).map_err(|to| FormatError::UnsupportedConversion {
            name: name.clone(),
            from: first.dtype,
            to,
        })?;
        let num_layers = members.len() as u64;
        let is_stacked = members[0].0.is_some();
        let mut pieces = Vec::new();
        for (index, &(layer, member)) in members.iter().enumerate() {
            if meta_of(member)? != first || layer.is_some_and(|layer| layer != index as u64) {
                return Err(bad("its layers are not the same shape and type, numbered from 0"));
            }
            let mut sizes = first.shape.clone();
            let mut offsets = vec![0; sizes.len()];
            if is_stacked {
                sizes.insert(0, 1);
                offsets.insert(0, index as u64);
            }
            let item = TorchItem::tensor(target, &sizes);
            let item_at = at;
            at = (at + item.len_bytes).next_multiple_of(ALIGNMENT);
            pieces.push(Piece { source_name: member.to_owned(), offsets, sizes, item, item_at });
        }
        let mut shape = first.shape.clone();
        if is_stacked {
            shape.insert(0, num_layers);
        }
        keys.push(StackedKey { name, dtype: target, shape, pieces });
    }
    Ok((keys, at))
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
