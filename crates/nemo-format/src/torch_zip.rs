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
        let mut expected = 1_u64;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides_elems).rev() {
            if dim != 1 && stride != expected {
                return false;
            }
            // A tensor without elements can claim any other extents.
            let Some(product) = expected.checked_mul(dim) else { return false };
            expected = product;
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
    let (key, tensor, num_storage_elems) =
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
    let start = tensor.start_bytes.checked_mul(elem_bytes).and_then(|bytes| bytes.checked_add(storage.start));
    match start.filter(|_| fits) {
        Some(start_bytes) => Ok(StoredTensor { start_bytes, ..tensor }),
        None => Err(damaged(format!("its tensor of shape {:?} leaves its storage", tensor.shape))),
    }
}

/// The arguments of `_rebuild_tensor_v2`, inside one `_rebuild_parameter` or not. A parameter never holds another;
/// following a chain of them would let a file overflow the stack.
fn rebuild_arguments(pickle: &Pickle, id: ValueId) -> Option<&[ValueId]> {
    let (mut name, mut arguments, _) = pickle.object(id)?;
    if name == "_rebuild_parameter" {
        (name, arguments, _) = pickle.object(*pickle.items(arguments)?.first()?)?;
    }
    if name == "_rebuild_tensor_v2" { pickle.items(arguments) } else { None }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const TORCH_PICKLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/torch_pickle/");

    /// A torch file with this pickle and one storage of 16 bytes.
    fn torch_file(pickle: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, content) in [("archive/data.pkl", pickle), ("archive/data/0", &[0; 16])] {
            zip.start_file(name, options).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// A pickle of a float tensor over a storage of `num_elems`.
    fn tensor_pickle(num_elems: u8, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let mut pickle =
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
        pickle.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK");
        pickle.extend([num_elems, b't', b'Q']);
        for piece in [offset, shape, strides] {
            pickle.extend(piece);
        }
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR.");
        pickle
    }

    #[test]
    fn a_tensor_is_found() {
        let tensor =
            read_tensor(&torch_file(&tensor_pickle(4, b"K\x01", b"K\x03\x85", b"K\x01\x85")), "t").unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.is_contiguous()), ([3].as_slice(), true));
    }

    #[test]
    fn views_outside_their_storage_are_refused() {
        let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
        let check = |num_elems, offset: &[u8], shape: &[u8], strides: &[u8]| {
            let file = torch_file(&tensor_pickle(num_elems, offset, shape, strides));
            assert!(read_tensor(&file, "t").is_err(), "{offset:?} {shape:?} {strides:?}");
        };
        check(4, b"K\x02", b"K\x03\x85", b"K\x01\x85");
        check(5, b"K\x00", b"K\x03\x85", b"K\x01\x85");
        check(4, b"K\x00", b"K\x02\x85", &[huge, b"\x85".as_slice()].concat());
        check(4, huge, b"K\x00\x85", b"K\x01\x85");
        check(4, b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85");
    }

    #[test]
    fn extents_of_an_empty_tensor_do_not_overflow() {
        let dim = b"\x8a\x06\0\0\0\0\0\x01";
        let shape = [b"(K\0".as_slice(), dim, dim, dim, b"t"].concat();
        let pickle = tensor_pickle(4, b"K\0", &shape, b"(K\x01K\x01K\x01K\x01t");
        assert!(!read_tensor(&torch_file(&pickle), "t").unwrap().is_contiguous());
    }

    #[test]
    fn a_parameter_that_holds_itself_is_refused() {
        let pickle = b"\x80\x02ctorch._utils\n_rebuild_parameter\n]q\x01R)\x86q\x020h\x01ctorch._utils\n_rebuild_parameter\nh\x01Rq\x03a0h\x03.";
        let error = read_tensor(&torch_file(pickle), "t").unwrap_err();
        insta::assert_snapshot!(error, @"`t` is damaged at byte 0: its pickle is not one tensor");
    }

    #[test]
    fn damaged_and_hostile_files_are_refused() {
        let message = |file: &str| {
            let bytes = std::fs::read(format!("{TORCH_PICKLE}reject/{file}")).unwrap();
            read_tensor(&bytes, file).unwrap_err().to_string()
        };
        insta::assert_snapshot!(message("global_os_getcwd.pt"), @"`global_os_getcwd.pt` wants to load `posix.getcwd` at byte 183, which is not among the allowed names");
        insta::assert_snapshot!(message("big_endian.pt"), @"`big_endian.pt` is damaged at byte 0: its byte order is not little endian");
        assert!(message("truncated_zip.pt").contains("truncated_zip.pt"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn changed_bytes_never_panic(edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
            let mut bytes = torch_file(&tensor_pickle(4, b"K\x01", b"K\x03\x85", b"K\x01\x85"));
            for (at, value) in edits {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let _ = read_tensor(&bytes, "t");
        }
    }
}
