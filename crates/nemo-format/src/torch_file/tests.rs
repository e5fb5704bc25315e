use std::io::{Cursor, Write};

use ::zip::CompressionMethod;
use proptest::prelude::*;

use super::*;
use crate::huggingface::torch_files::{TorchFileSource, whole_array};
use crate::{DType, TensorSource};

const TORCH_PICKLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/torch_pickle/");

/// A torch file with this pickle and one storage of 16 bytes.
fn torch_file(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = ::zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
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
    assert_eq!((tensor.shape, tensor.strides_elems), (vec![3], vec![1]));
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
    assert_eq!(read_tensor(&torch_file(&pickle), "t").unwrap().shape[0], 0);
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
        read_state_dict(&bytes, file).unwrap_err().to_string()
    };
    insta::assert_snapshot!(message("global_os_getcwd.pt"), @"`global_os_getcwd.pt` wants to load `posix.getcwd` at byte 183, which is not among the allowed names");
    insta::assert_snapshot!(message("big_endian.pt"), @"`big_endian.pt`, written in big-endian byte order, cannot be read: load it with torch and save it again on a little-endian machine");
    insta::assert_snapshot!(message("truncated_zip.pt"), @"`truncated_zip.pt` is damaged at byte 820: invalid Zip archive: Could not find EOCD: it is cut off or no zip; copy it again");
    insta::assert_snapshot!(message("storage_too_short.pt"), @"`storage_too_short.pt` is damaged at byte 417: `w` of shape [16], strides [1] and first element 0 leaves storage `0` of 20 bytes (16 elements stated)");
}

/// The bytes of a view, gathered as torch's `contiguous()` does.
fn gather(bytes: &[u8], tensor: &StoredTensor) -> Vec<u8> {
    let elem_bytes = tensor.dtype.size_bytes();
    let num_elems: u64 = tensor.shape.iter().product();
    let elem = |flat: u64| {
        let (mut rest, mut at) = (flat, 0);
        for (&dim, &stride) in tensor.shape.iter().zip(&tensor.strides_elems).rev() {
            at += rest % dim * stride;
            rest /= dim;
        }
        let start = tensor.start_bytes as usize + at as usize * elem_bytes;
        bytes[start..start + elem_bytes].to_vec()
    };
    (0..num_elems).flat_map(elem).collect()
}

fn expected_tensors(of: &str) -> Vec<(String, serde_json::Value)> {
    let text = std::fs::read(format!("{TORCH_PICKLE}expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let pairs = all[of]["dict"].as_array().unwrap();
    pairs
        .iter()
        .map(|pair| (pair[0]["str"].as_str().unwrap().to_owned(), pair[1]["tensor"].clone()))
        .collect()
}

/// Every tensor has the bytes that torch says it has, read as a file and through the source.
fn check(file: &str, expected: &str) {
    let path = format!("{TORCH_PICKLE}{file}");
    let bytes = std::fs::read(&path).unwrap();
    let entries = read_state_dict(&bytes, file).unwrap();
    let expected = expected_tensors(expected);
    // The old format cannot hold the newer types.
    let expected: Vec<_> =
        expected.into_iter().filter(|(name, _)| file != "tensors_nonzip.pt" || name != "f8_e4m3").collect();
    assert_eq!(entries.len(), expected.len(), "{file}");
    for (name, want) in expected {
        let dtype = want["dtype"].as_str().unwrap();
        match &entries[&name] {
            Entry::OtherDtype(found) => assert_eq!(found, dtype, "{file}: {name}"),
            Entry::Tensor(tensor) => {
                assert_eq!(tensor.dtype.name(), dtype, "{file}: {name}");
                assert_eq!(serde_json::json!(tensor.shape), want["shape"], "{file}: {name}");
                let hex: String = gather(&bytes, tensor).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hex, want["contiguous_bytes_hex"].as_str().unwrap(), "{file}: {name}");
                let archive = std::sync::Arc::new(
                    crate::archive::Archive::of_files(TORCH_PICKLE.as_ref(), &[(&path).into()]).unwrap(),
                );
                let mut source = crate::pieced::PiecedSource::new(archive);
                let array = whole_array(&name, tensor, 0);
                source.add(name.clone(), array).unwrap();
                assert_eq!(source.read_whole(&name).unwrap(), gather(&bytes, tensor), "{file}: {name}");
                if let Some(mapped) = source.mapped_bytes(&name) {
                    assert_eq!(mapped, gather(&bytes, tensor), "{file}: {name}");
                }
            }
        }
    }
}

#[test]
fn files_of_every_protocol_and_age_hold_the_same() {
    for file in ["tensors_proto2.pt", "tensors_proto4.pt", "tensors_nonzip.pt"] {
        check(file, "tensors");
    }
    check("module_state_dict.pt", "module_state_dict");
    check("lightning_style.ckpt", "module_state_dict");
}

/// Python's `float.hex`, as far as it is normal.
fn hex_float(text: &str) -> f64 {
    let (mantissa, exponent) = text.strip_prefix("0x1.").unwrap().split_once('p').unwrap();
    let fraction = u64::from_str_radix(mantissa, 16).unwrap() as f64 / 16_f64.powi(mantissa.len() as i32);
    (1.0 + fraction) * 2_f64.powi(exponent.parse().unwrap())
}

/// Whether a pickled value is what the original software says it is.
fn is_value(pickle: &Pickle, id: ValueId, want: &serde_json::Value) -> bool {
    let Some((kind, want)) = want.as_object().and_then(|want| want.iter().next()) else { return false };
    let items = |list: &serde_json::Value, ids: &[ValueId]| {
        let list = list.as_array().unwrap();
        list.len() == ids.len() && list.iter().zip(ids).all(|(want, &id)| is_value(pickle, id, want))
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match (kind.as_str(), pickle.value(id)) {
        ("const", Value::None) => want.is_null(),
        ("const", Value::Bool(value)) => want.as_bool() == Some(*value),
        ("int", Value::Int(value)) => want.as_str() == Some(&value.to_string()),
        // Wider than any number here needs to be: kept as its bytes.
        ("int", Value::Bytes(bytes)) => bytes.len() > 8 && want.as_str().unwrap().len() > 19,
        ("float", Value::Float(value)) => hex_float(want.as_str().unwrap()) == *value,
        ("str", Value::Str(text)) => want.as_str() == Some(text),
        ("bytes_hex", Value::Bytes(bytes)) => want.as_str() == Some(&hex(bytes)),
        ("tuple", Value::Tuple(ids)) | ("list", Value::List(ids)) => items(want, ids),
        ("size", _) => pickle.torch_size(id).is_some_and(|size| serde_json::json!(size) == *want),
        ("dtype", Value::Global(module, name)) => want.as_str() == Some(&format!("{module}.{name}")),
        ("dict", Value::Dict(entries)) => {
            let pairs = want.as_array().unwrap();
            pairs.len() == entries.len()
                && pairs.iter().zip(entries).all(|(pair, &(key, value))| {
                    is_value(pickle, key, &pair[0]) && is_value(pickle, value, &pair[1])
                })
        }
        // Structures of their own: that they are objects is all that matters here.
        ("device" | "bytesio" | "set" | "frozenset", value) => {
            matches!(value, Value::Object { .. } | Value::List(_))
        }
        ("tensor", _) => pickle.object(id).is_some(),
        _ => false,
    }
}

#[test]
fn values_of_every_kind_are_parsed_and_dropped() {
    let text = std::fs::read(format!("{TORCH_PICKLE}expected.json")).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for file in ["objects_proto2.pt", "objects_proto4.pt"] {
        let bytes = std::fs::read(format!("{TORCH_PICKLE}{file}")).unwrap();
        let container = open(&bytes, file, Names::Weights).unwrap();
        let pickle = &container.pickle;
        let wrong = |pair: &&serde_json::Value| {
            let key = pair[0].clone();
            let entries = pickle.dict(pickle.root()).unwrap();
            !entries
                .iter()
                .any(|&(name, value)| is_value(pickle, name, &key) && is_value(pickle, value, &pair[1]))
        };
        let pairs = all["objects"]["dict"].as_array().unwrap();
        assert_eq!(
            pairs.iter().filter(wrong).collect::<Vec<_>>(),
            Vec::<&serde_json::Value>::new(),
            "{file}"
        );
        assert!(read_state_dict(&bytes, file).unwrap().len() < pairs.len());
    }
}

#[test]
fn a_source_keeps_the_names_and_refuses_what_it_cannot_read() {
    let folder = std::path::Path::new(TORCH_PICKLE);
    let source = TorchFileSource::open(folder, &[folder.join("module_state_dict.pt")]).unwrap();
    assert_eq!(source.meta("0.weight").unwrap().shape, [4, 3]);
    assert_eq!(source.meta("0.weight").unwrap().dtype, DType::F32);
    assert_eq!(source.mapped_bytes("0.weight").unwrap(), source.read_whole("0.weight").unwrap());
    let young = TorchFileSource::open(folder, &[folder.join("tensors_proto2.pt")]).unwrap();
    assert_eq!(young.meta("f8_e4m3").unwrap().dtype, DType::F8E4M3);
    let message = |files: &[&str]| {
        let files: Vec<_> = files.iter().map(|file| folder.join(file)).collect();
        TorchFileSource::open(folder, &files).unwrap_err().to_string().replace(TORCH_PICKLE, "…/")
    };
    insta::assert_snapshot!(message(&["module_state_dict.pt", "lightning_style.ckpt"]), @"tensor `0.weight` is inconsistent: `…/lightning_style.ckpt` and an earlier file both have it");
    insta::assert_snapshot!(message(&["expected.json"]), @"`…/expected.json` is damaged at byte 0: it is not a torch file: neither a zip nor torch's magic number");
}

#[test]
fn a_tar_of_the_oldest_torch_is_named() {
    let mut bytes = vec![0; 512];
    bytes[257..262].copy_from_slice(b"ustar");
    insta::assert_snapshot!(read_state_dict(&bytes, "old.pt").unwrap_err(), @"`old.pt`, a torch file from before torch 0.1.10, cannot be read: load it with a torch of that time and save it again with a newer one");
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

    #[test]
    fn real_files_with_changed_bytes_are_errors_or_read(
        file in proptest::sample::select(vec!["tensors_nonzip.pt", "tensors_proto2.pt", "tensors_proto4.pt"]),
        edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        cut in 0_usize..40,
    ) {
        let mut bytes = std::fs::read(format!("{TORCH_PICKLE}{file}")).unwrap();
        for (at, value) in edits {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - if cut < 20 { 0 } else { cut });
        for entry in read_state_dict(&bytes, "t").into_iter().flatten() {
            if let Entry::Tensor(tensor) = entry.1 && tensor.shape.iter().product::<u64>() < 10_000 {
                gather(&bytes, &tensor);
            }
        }
    }
}
