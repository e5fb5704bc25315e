//! The `.metadata` pickle of torch's distributed checkpoints (`torch.distributed.checkpoint.metadata.Metadata`).

use indexmap::IndexMap;

use crate::pickle::{self, Pickle, Value, ValueId};
use crate::{DType, FormatError, TensorMeta};

/// A piece of a tensor and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where in the global tensor it begins.
    pub(crate) offsets: Vec<u64>,
    /// Its extent.
    pub(crate) sizes: Vec<u64>,
    /// Name of the data file.
    pub(crate) file: String,
    /// The item: a torch file inside the data file.
    pub(crate) item: std::ops::Range<u64>,
}

/// A tensor as the file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredKey {
    pub(crate) meta: TensorMeta,
    pub(crate) chunks: Vec<Chunk>,
}

/// Reads all tensors; entries that hold bytes (`_extra_state`) are passed over unread.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<IndexMap<String, StoredKey>, FormatError> {
    let pickle = pickle::parse(bytes, file)?;
    let damaged = |reason: String| FormatError::Damaged { file: file.to_owned(), offset_bytes: 0, reason };
    let field = |name: &str| {
        let id = pickle.field(pickle.root(), name).and_then(|id| pickle.dict(id));
        id.ok_or_else(|| damaged(format!("it has no `{name}`")))
    };
    let mut places = IndexMap::new();
    for &(index, info) in field("storage_data")? {
        let place = storage_place(&pickle, index, info)
            .ok_or_else(|| damaged("a storage entry cannot be read".to_owned()))?;
        if let Some((key, offsets, chunk_file, item)) = place {
            if chunk_file.contains(['/', '\\']) || chunk_file.starts_with('.') {
                return Err(damaged(format!("data file `{chunk_file}` is not a plain name")));
            }
            places.insert((key, offsets), (chunk_file, item));
        }
    }
    let mut keys = IndexMap::new();
    for &(key, stored) in field("state_dict_metadata")? {
        let name = pickle.text(key).ok_or_else(|| damaged("a tensor's name is no string".to_owned()))?;
        if matches!(pickle.object(stored), Some(("BytesStorageMetadata", ..))) {
            continue;
        }
        let bad = |reason: &str| FormatError::BadTensor { name: name.to_owned(), reason: reason.to_owned() };
        let (dtype, shape) = properties(&pickle, stored).ok_or_else(|| bad("its metadata cannot be read"))?;
        let dtype = dtype_of(dtype).ok_or_else(|| bad("its dtype is not supported"))?;
        let ids = pickle
            .field(stored, "chunks")
            .and_then(|id| pickle.items(id))
            .ok_or_else(|| bad("it has no chunks"))?;
        let mut chunks = Vec::with_capacity(ids.len());
        for &id in ids {
            let size = |field| pickle.torch_size(pickle.field(id, field)?);
            let (Some(offsets), Some(sizes)) = (size("offsets"), size("sizes")) else {
                return Err(bad("a chunk cannot be read"));
            };
            let (chunk_file, item) = places
                .get(&(name.to_owned(), offsets.clone()))
                .cloned()
                .ok_or_else(|| bad("a chunk has no data"))?;
            chunks.push(Chunk { offsets, sizes, file: chunk_file, item });
        }
        let stored = StoredKey { meta: TensorMeta { dtype, shape }, chunks };
        check_tiling(&stored).map_err(|reason| bad(&reason))?;
        keys.insert(name.to_owned(), stored);
    }
    Ok(keys)
}

/// A tensor's key, offsets, data file and item.
type Place = (String, Vec<u64>, String, std::ops::Range<u64>);

/// Where a tensor entry lies, or `Some(None)` for an entry of bytes, which has no offset.
fn storage_place(pickle: &Pickle, index: ValueId, info: ValueId) -> Option<Option<Place>> {
    let key = pickle.text(pickle.field(index, "fqn")?)?.to_owned();
    let offsets = match pickle.field(index, "offset") {
        Some(id) if *pickle.value(id) != Value::None => pickle.torch_size(id)?,
        _ => return Some(None),
    };
    if let Some(transforms) = pickle.field(info, "transform_descriptors")
        && pickle.items(transforms).is_some_and(|items| !items.is_empty())
    {
        return None;
    }
    let number = |name| u64::try_from(pickle.int(pickle.field(info, name)?)?).ok();
    let start = number("offset")?;
    let end = start.checked_add(number("length")?)?;
    Some(Some((key, offsets, pickle.text(pickle.field(info, "relative_path")?)?.to_owned(), start..end)))
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

fn dtype_of(name: &str) -> Option<DType> {
    use DType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
    [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool].into_iter().find(|dtype| dtype.name() == name)
}

/// Chunks lie inside the tensor and their volumes add up to it.
fn check_tiling(stored: &StoredKey) -> Result<(), String> {
    let total = stored.meta.num_elems().ok_or("its size overflows")?;
    let mut covered = 0_u64;
    for chunk in &stored.chunks {
        let same_rank =
            chunk.offsets.len() == stored.meta.shape.len() && chunk.sizes.len() == stored.meta.shape.len();
        let inside = chunk
            .offsets
            .iter()
            .zip(&chunk.sizes)
            .zip(&stored.meta.shape)
            .all(|((&offset, &size), &dim)| offset.checked_add(size).is_some_and(|end| end <= dim));
        if !same_rank || !inside {
            return Err(format!(
                "a chunk at {:?} of {:?} leaves the shape {:?}",
                chunk.offsets, chunk.sizes, stored.meta.shape
            ));
        }
        covered = covered.saturating_add(chunk.sizes.iter().product());
    }
    if covered == total {
        Ok(())
    } else {
        Err(format!("its chunks hold {covered} elements, its shape {total}"))
    }
}
