//! The torch_dist backend: the pickle `.metadata` (`torch.distributed.checkpoint.metadata.Metadata`) and data files
//! that it points into. Every piece is a torch file of its own, opened when it is read.

use std::collections::HashMap;
use std::ops::Range;

use super::member_of;
use crate::archive::Archive;
use crate::naming::is_weight;
use crate::pickle::{self, Names, Pickle, Value, ValueId};
use crate::pieced::{Array, Piece, PieceData};
use crate::{DType, FormatError, TensorMeta};

/// The key of what is no sharded tensor.
const COMMON_STATE: &str = "common_state";

/// All arrays that are weights, in the order of the file.
pub(super) fn arrays(archive: &Archive, folder: &str) -> Result<Vec<Array>, FormatError> {
    let member = member_of(folder, ".metadata");
    let pickle = pickle::parse_names(archive.member(&member)?, &archive.describe(&member), Names::Training)?;
    let reader = Reader { archive, folder, file: archive.describe(&member), pickle: &pickle };
    let places = reader.places()?;
    let mut arrays = Vec::new();
    for &(key, stored) in reader.root_dict("state_dict_metadata")? {
        let name = pickle.text(key).ok_or_else(|| reader.damaged("a tensor's name is no string"))?;
        // Entries of bytes are `_extra_state`, which inference does not need.
        if !is_weight(name) || matches!(pickle.object(stored), Some(("BytesStorageMetadata", ..))) {
            continue;
        }
        arrays.push(reader.array(name, stored, &places)?);
    }
    reader.check_items(&arrays)?;
    Ok(arrays)
}

/// What Megatron-Core has saved beside sharded tensors, a torch file: the data file and the item in it. Old versions have a
/// file of its own.
pub(super) fn common_state(
    archive: &Archive,
    folder: &str,
) -> Result<Option<(usize, Range<u64>)>, FormatError> {
    let member = member_of(folder, ".metadata");
    let file = archive.describe(&member);
    let pickle = pickle::parse_names(archive.member(&member)?, &file, Names::Training)?;
    let reader = Reader { archive, folder, file, pickle: &pickle };
    for &(index, info) in reader.root_dict("storage_data")? {
        let key = pickle.field(index, "fqn").and_then(|id| pickle.text(id)).unwrap_or_default();
        if key.split('/').next() != Some(COMMON_STATE) {
            continue;
        }
        reader.check_transforms(key, info)?;
        let unreadable = || reader.damaged(format!("the entry `{key}` cannot be read"));
        let (data_file, item) = reader.item(info).ok_or_else(unreadable)?;
        let member_idx = archive.index_of(&member_of(folder, data_file))?;
        if item.end > archive.at(member_idx).len() as u64 {
            return Err(unreadable());
        }
        return Ok(Some((member_idx, item)));
    }
    Ok(None)
}

/// Data file and item of a piece, by key and offsets.
type Places<'a> = HashMap<(&'a str, Vec<u64>), (usize, Range<u64>)>;

struct Reader<'a> {
    archive: &'a Archive,
    folder: &'a str,
    file: String,
    pickle: &'a Pickle,
}

impl<'a> Reader<'a> {
    fn damaged(&self, reason: impl Into<String>) -> FormatError {
        FormatError::damaged(&self.file, 0, reason)
    }

    fn root_dict(&self, name: &str) -> Result<&'a [(ValueId, ValueId)], FormatError> {
        let id = self.pickle.field(self.pickle.root(), name).and_then(|id| self.pickle.dict(id));
        id.ok_or_else(|| self.damaged(format!("it has no `{name}`")))
    }

    fn places(&self) -> Result<Places<'a>, FormatError> {
        let mut places = Places::new();
        for &(index, info) in self.root_dict("storage_data")? {
            let unreadable = || self.damaged("a storage entry cannot be read");
            let fqn = self.pickle.field(index, "fqn").and_then(|id| self.pickle.text(id));
            let key = fqn.ok_or_else(unreadable)?;
            // Entries of bytes have no offset.
            let offsets = match self.pickle.field(index, "offset") {
                Some(id) if *self.pickle.value(id) != Value::None => {
                    self.pickle.torch_size(id).ok_or_else(unreadable)?
                }
                _ => continue,
            };
            if !is_weight(key) {
                continue;
            }
            self.check_transforms(key, info)?;
            let (chunk_file, item) = self.item(info).ok_or_else(unreadable)?;
            if chunk_file.contains(['/', '\\']) || chunk_file.starts_with('.') {
                return Err(self.damaged(format!("data file `{chunk_file}` is not a plain name")));
            }
            let member_idx = self.archive.index_of(&member_of(self.folder, chunk_file))?;
            if places.insert((key, offsets), (member_idx, item)).is_some() {
                return Err(FormatError::bad_tensor(key, "two storage entries are for the same piece"));
            }
        }
        Ok(places)
    }

    fn check_transforms(&self, key: &str, info: ValueId) -> Result<(), FormatError> {
        let transforms = self.pickle.field(info, "transform_descriptors").map(|id| self.pickle.value(id));
        match transforms {
            None | Some(Value::None) => Ok(()),
            Some(Value::List(items) | Value::Tuple(items)) if items.is_empty() => Ok(()),
            Some(_) => Err(FormatError::Unsupported {
                what: format!("tensor `{key}`, which was written through `transform_descriptors`,"),
                hint: "save the checkpoint without compression or other storage extensions".to_owned(),
            }),
        }
    }

    /// The data file and the place in it.
    fn item(&self, info: ValueId) -> Option<(&'a str, Range<u64>)> {
        let field = |name| self.pickle.field(info, name);
        let number = |name| u64::try_from(self.pickle.int(field(name)?)?).ok();
        let start = number("offset")?;
        let end = start.checked_add(number("length")?)?;
        Some((self.pickle.text(field("relative_path")?)?, start..end))
    }

    fn array(&self, name: &str, stored: ValueId, places: &Places<'_>) -> Result<Array, FormatError> {
        let bad = |reason: String| FormatError::bad_tensor(name, reason);
        let (dtype, shape) =
            properties(self.pickle, stored).ok_or_else(|| bad("its metadata cannot be read".to_owned()))?;
        let dtype = DType::from_name(dtype).ok_or_else(|| FormatError::Unsupported {
            what: format!("tensor `{name}` of dtype {dtype}"),
            hint: "save the weights as float32, bfloat16 or float16".to_owned(),
        })?;
        let ids = self.pickle.field(stored, "chunks").and_then(|id| self.pickle.items(id));
        let ids = ids.ok_or_else(|| bad("it has no chunks".to_owned()))?;
        let mut pieces = Vec::with_capacity(ids.len());
        for &id in ids {
            let size = |field| self.pickle.torch_size(self.pickle.field(id, field)?);
            let (Some(offsets), Some(sizes)) = (size("offsets"), size("sizes")) else {
                return Err(bad("a chunk cannot be read".to_owned()));
            };
            let (member_idx, item) = places.get(&(name, offsets.clone())).cloned().ok_or_else(|| {
                bad(format!("its piece at {offsets:?} has no data; the checkpoint is incomplete"))
            })?;
            pieces.push(Piece { offsets, sizes, member_idx, data: PieceData::TorchItem(item) });
        }
        Ok(Array { name: name.to_owned(), meta: TensorMeta { dtype, shape }, pieces })
    }

    /// Items lie inside their data files and share no byte.
    fn check_items(&self, arrays: &[Array]) -> Result<(), FormatError> {
        let mut items = Vec::new();
        for array in arrays {
            for piece in &array.pieces {
                let PieceData::TorchItem(item) = &piece.data else { continue };
                let file_bytes = self.archive.at(piece.member_idx).len() as u64;
                if item.end > file_bytes {
                    let reason = format!(
                        "its piece at {:?} ends at byte {} of `{}`, which has {file_bytes}; copy the checkpoint again",
                        piece.offsets,
                        item.end,
                        self.archive.name_at(piece.member_idx)
                    );
                    return Err(FormatError::bad_tensor(&array.name, reason));
                }
                items.push((piece.member_idx, item.clone(), array.name.as_str()));
            }
        }
        items.sort_unstable_by_key(|(member_idx, item, _)| (*member_idx, item.start));
        for pair in items.windows(2) {
            if let [(left_file, left, left_name), (right_file, right, right_name)] = pair
                && left_file == right_file
                && right.start < left.end
            {
                let file = self.archive.describe(self.archive.name_at(*left_file));
                let reason = format!("items of `{left_name}` and `{right_name}` overlap");
                return Err(FormatError::damaged(&file, right.start as usize, reason));
            }
        }
        Ok(())
    }
}

fn properties(pickle: &Pickle, stored: ValueId) -> Option<(&str, Vec<u64>)> {
    let properties = pickle.object(pickle.field(stored, "properties")?)?.2?;
    // Torch pickles the state as a tuple; a plain dict of the dataclass's fields means the same.
    let dtype = match pickle.items(properties) {
        Some(items) => *items.first()?,
        None => pickle.entry(properties, "dtype")?,
    };
    let Value::Global(_, dtype) = pickle.value(dtype) else { return None };
    Some((dtype, pickle.torch_size(pickle.field(stored, "size")?)?))
}

#[cfg(test)]
mod tests;
