//! Tensors in a pickle: what `torch._utils._rebuild_tensor_v2` and its relatives would make, checked.

use super::{Container, StorageId};
use crate::pickle::{Pickle, Value, ValueId};
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
    /// Its only element, where it is a whole number; `bytes` is the torch file.
    pub(crate) fn whole_number(&self, bytes: &[u8]) -> Option<i64> {
        if self.shape.iter().any(|&size| size != 1) {
            return None;
        }
        let start = usize::try_from(self.start_bytes).ok()?;
        let elem = bytes.get(start..start.checked_add(self.dtype.size_bytes())?)?;
        match self.dtype {
            DType::I64 => Some(i64::from_le_bytes(elem.try_into().ok()?)),
            DType::I32 => Some(i64::from(i32::from_le_bytes(elem.try_into().ok()?))),
            _ => None,
        }
    }
}

/// What a value turned out to be.
#[derive(Debug)]
pub(super) enum Parsed {
    Tensor(StoredTensor),
    /// A tensor of a type that is not read: its name.
    OtherDtype(String),
    NotATensor,
}

/// How a storage's elements are typed.
enum StorageKind {
    Typed(DType),
    /// Bytes; the tensor says what they are.
    Untyped,
    Other {
        dtype: &'static str,
        elem_bytes: u64,
    },
}

fn storage_kind(class: &str) -> Option<StorageKind> {
    let other = |dtype, elem_bytes| Some(StorageKind::Other { dtype, elem_bytes });
    let typed = |dtype| Some(StorageKind::Typed(dtype));
    match class {
        "DoubleStorage" => typed(DType::F64),
        "FloatStorage" => typed(DType::F32),
        "HalfStorage" => typed(DType::F16),
        "BFloat16Storage" => typed(DType::BF16),
        "LongStorage" => typed(DType::I64),
        "IntStorage" => typed(DType::I32),
        "ShortStorage" => typed(DType::I16),
        "CharStorage" => typed(DType::I8),
        "ByteStorage" => typed(DType::U8),
        "BoolStorage" => typed(DType::Bool),
        "UntypedStorage" => Some(StorageKind::Untyped),
        "ComplexFloatStorage" => other("complex64", 8),
        "ComplexDoubleStorage" => other("complex128", 16),
        "QInt8Storage" => other("qint8", 1),
        "QUInt8Storage" => other("quint8", 1),
        "QInt32Storage" => other("qint32", 4),
        _ => None,
    }
}

/// Bytes of one element of a storage class.
pub(super) fn storage_elem_bytes(class: &str) -> Option<u64> {
    Some(match storage_kind(class)? {
        StorageKind::Typed(dtype) => dtype.size_bytes() as u64,
        StorageKind::Untyped => 1,
        StorageKind::Other { elem_bytes, .. } => elem_bytes,
    })
}

pub(super) fn parse(
    container: &Container,
    id: ValueId,
    file: &str,
    name: &str,
) -> Result<Parsed, FormatError> {
    let pickle = &container.pickle;
    let Some((call, arguments)) = rebuild_call(pickle, id) else { return Ok(Parsed::NotATensor) };
    let damaged = |reason: String| FormatError::damaged(file, 0, format!("`{name}`: {reason}"));
    let fields = Fields::read(container, arguments)
        .ok_or_else(|| damaged(format!("the arguments of `{call}` cannot be read")))?;
    let dtype = match (storage_kind(fields.storage.class), fields.dtype) {
        (Some(StorageKind::Typed(dtype)), _) => dtype,
        (Some(StorageKind::Other { dtype, .. }), _) => return Ok(Parsed::OtherDtype(dtype.to_owned())),
        (Some(StorageKind::Untyped), Some(dtype)) => match DType::from_name(dtype) {
            Some(dtype) => dtype,
            None => return Ok(Parsed::OtherDtype(dtype.to_owned())),
        },
        _ => return Err(damaged(format!("its storage has no known type: `{}`", fields.storage.class))),
    };
    let key = fields.storage.key;
    let range =
        container.storages.get(key).ok_or_else(|| damaged(format!("the file has no storage `{key}`")))?;
    match fields.place(dtype, range) {
        Some(tensor) => Ok(Parsed::Tensor(tensor)),
        None => {
            let reason = format!(
                "`{name}` of shape {:?}, strides {:?} and first element {} leaves storage `{key}` of {} bytes ({} elements stated)",
                fields.shape,
                fields.strides_elems,
                fields.first_elem,
                range.end - range.start,
                fields.storage.num_elems,
            );
            Err(FormatError::damaged(file, range.start as usize, reason))
        }
    }
}

/// The rebuilding function and its arguments, inside one `_rebuild_parameter` or not. A parameter never holds
/// another; following a chain of them would let a file overflow the stack.
fn rebuild_call(pickle: &Pickle, id: ValueId) -> Option<(&str, &[ValueId])> {
    let (mut name, mut arguments, _) = pickle.object(id)?;
    if name == "_rebuild_parameter" {
        (name, arguments, _) = pickle.object(*pickle.items(arguments)?.first()?)?;
    }
    match name {
        "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" => {
            Some((name, pickle.items(arguments)?))
        }
        _ => None,
    }
}

struct Fields<'a> {
    storage: StorageId<'a>,
    first_elem: u64,
    shape: Vec<u64>,
    strides_elems: Vec<u64>,
    /// Only `_rebuild_tensor_v3` has it.
    dtype: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(container: &'a Container, arguments: &[ValueId]) -> Option<Self> {
        let pickle = &container.pickle;
        let [storage, first, size, strides, rest @ ..] = arguments else { return None };
        let dtype = rest.get(2).and_then(|&id| match pickle.value(id) {
            Value::Global(_, name) => Some(name.as_str()),
            _ => None,
        });
        let fields = Self {
            storage: container.storage_id(*storage)?,
            first_elem: u64::try_from(pickle.int(*first)?).ok()?,
            shape: pickle.torch_size(*size)?,
            strides_elems: pickle.torch_size(*strides)?,
            dtype,
        };
        (fields.shape.len() == fields.strides_elems.len()).then_some(fields)
    }

    /// The tensor, if all its elements lie in its storage and the storage is as large as it says.
    fn place(&self, dtype: DType, storage: &std::ops::Range<u64>) -> Option<StoredTensor> {
        let elem_bytes = dtype.size_bytes() as u64;
        let stored_elems = (storage.end - storage.start) / elem_bytes;
        let storage_elem_bytes = storage_elem_bytes(self.storage.class)?;
        let stated_bytes = self.storage.num_elems.checked_mul(storage_elem_bytes)?;
        if stated_bytes != storage.end - storage.start {
            return None;
        }
        let (view_first, limit) = match self.storage.view {
            Some((first, len)) => (first, first.checked_add(len).filter(|&end| end <= stored_elems)?),
            None => (0, stored_elems),
        };
        let first_elem = view_first.checked_add(self.first_elem)?;
        let last_elem = self.shape.iter().zip(&self.strides_elems).try_fold(
            first_elem,
            |last, (&dim, &stride)| match dim.checked_sub(1) {
                Some(steps) => last.checked_add(steps.checked_mul(stride)?),
                None => Some(last),
            },
        )?;
        if last_elem >= limit && !self.shape.contains(&0) {
            return None;
        }
        let start_bytes = first_elem.checked_mul(elem_bytes)?.checked_add(storage.start)?;
        Some(StoredTensor {
            dtype,
            shape: self.shape.clone(),
            strides_elems: self.strides_elems.clone(),
            start_bytes,
        })
    }
}
