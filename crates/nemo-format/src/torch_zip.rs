//! A torch file (torch >= 1.6): a zip of stored members with a pickle of tensors and their storages.
//!
//! Only files of one tensor are read so far: the items of a torch_dist checkpoint.

use std::io::Cursor;

use zip::{CompressionMethod, ZipArchive};

use crate::pickle::{self, Pickle, Value, ValueId};
use crate::{DType, FormatError};

/// A tensor as it lies in a torch file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides_elems: Vec<u64>,
    /// The first element, from the start of the torch file.
    pub(crate) start_bytes: u64,
}

impl StoredTensor {
    /// Whether the elements lie in row-major order without gaps.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides_elems).rev() {
            if dim != 1 && stride != expected {
                return false;
            }
            expected *= dim;
        }
        true
    }
}

/// The single tensor of the torch file `bytes`.
pub(crate) fn read_tensor(bytes: &[u8], file: &str) -> Result<StoredTensor, FormatError> {
    let damaged = |reason: String| FormatError::Damaged { file: file.to_owned(), offset_bytes: 0, reason };
    let from_zip = |error: zip::result::ZipError| damaged(error.to_string());
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(from_zip)?;
    let mut members = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index(index).map_err(from_zip)?;
        let name = member.name().map_err(from_zip)?.into_owned();
        if member.compression() != CompressionMethod::Stored {
            return Err(damaged(format!("member `{name}` is compressed, torch only stores")));
        }
        let start = member.data_start().ok_or_else(|| damaged(format!("member `{name}` has no start")))?;
        let end = start.checked_add(member.size()).filter(|&end| end <= bytes.len() as u64);
        let end = end.ok_or_else(|| damaged(format!("member `{name}` leaves the file")))?;
        members.push((name, start..end));
    }
    let find = |suffix: &str| {
        members.iter().find(|(name, _)| name.ends_with(suffix)).map(|(_, range)| range.clone())
    };
    if let Some(order) = find("/byteorder")
        && bytes[order.start as usize..order.end as usize].trim_ascii() != b"little"
    {
        return Err(damaged("its byte order is not little endian".to_owned()));
    }
    let range = find("/data.pkl").ok_or_else(|| damaged("it has no `data.pkl`".to_owned()))?;
    let pickle = pickle::parse(&bytes[range.start as usize..range.end as usize], file)?;
    let found =
        rebuild_arguments(&pickle, pickle.root()).and_then(|arguments| parse_tensor(&pickle, arguments));
    let (key, mut tensor, num_storage_elems) =
        found.ok_or_else(|| damaged("its pickle is not one tensor".to_owned()))?;
    let storage =
        find(&format!("/data/{key}")).ok_or_else(|| damaged(format!("it has no storage `{key}`")))?;
    let elem_bytes = tensor.dtype.size_bytes() as u64;
    let last_elem = tensor.shape.iter().zip(&tensor.strides_elems).try_fold(
        tensor.start_bytes,
        |last, (&dim, &stride)| {
            dim.checked_sub(1).map_or(Some(last), |steps| last.checked_add(steps.checked_mul(stride)?))
        },
    );
    let fits = last_elem.is_some_and(|last| last < num_storage_elems || tensor.shape.contains(&0))
        && num_storage_elems.checked_mul(elem_bytes) == Some(storage.end - storage.start);
    if !fits {
        return Err(damaged(format!("its tensor of shape {:?} leaves its storage", tensor.shape)));
    }
    tensor.start_bytes = storage.start + tensor.start_bytes * elem_bytes;
    Ok(tensor)
}

/// The arguments of `_rebuild_tensor_v2`, inside `_rebuild_parameter` or not.
fn rebuild_arguments(pickle: &Pickle, id: ValueId) -> Option<&[ValueId]> {
    let (name, arguments, _) = pickle.object(id)?;
    let arguments = pickle.items(arguments)?;
    match name {
        "_rebuild_tensor_v2" => Some(arguments),
        "_rebuild_parameter" => rebuild_arguments(pickle, *arguments.first()?),
        _ => None,
    }
}

/// Storage key, tensor (its start still in elements of the storage), elements of the storage.
fn parse_tensor(pickle: &Pickle, arguments: &[ValueId]) -> Option<(String, StoredTensor, u64)> {
    let [storage, offset, size, strides, ..] = arguments else { return None };
    let Value::Persistent(id) = pickle.value(*storage) else { return None };
    let [_, class, key, _, num_elems, ..] = pickle.items(*id)? else { return None };
    let Value::Global(_, class) = pickle.value(*class) else { return None };
    let dtype = match class.as_str() {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        _ => return None,
    };
    let tensor = StoredTensor {
        dtype,
        shape: pickle.torch_size(*size)?,
        strides_elems: pickle.sizes(*strides)?,
        start_bytes: u64::try_from(pickle.int(*offset)?).ok()?,
    };
    let consistent = tensor.shape.len() == tensor.strides_elems.len();
    consistent.then_some((
        pickle.text(*key)?.to_owned(),
        tensor,
        u64::try_from(pickle.int(*num_elems)?).ok()?,
    ))
}
