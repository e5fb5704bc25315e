use proptest::prelude::*;

use super::*;
use crate::SafetensorsSource;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");

fn golden() -> GgufFile {
    GgufFile::open(Path::new(&format!("{GOLDEN}quantised.gguf"))).unwrap()
}

#[test]
fn metadata_of_every_shape() {
    let file = golden();
    assert_eq!(file.value("test.f32").and_then(GgufValue::as_f64), Some(1e-5));
    assert_eq!(file.value("test.bool").and_then(GgufValue::as_bool), Some(true));
    let strings: Vec<_> = file
        .value("test.strings")
        .and_then(GgufValue::as_array)
        .unwrap()
        .iter()
        .filter_map(GgufValue::as_str)
        .collect();
    assert_eq!(strings, ["a", "\u{2581}b", ""]);
}

fn assert_dequantised(name: &str, num_types: usize) {
    let open = |name: &str| GgufFile::open(Path::new(&format!("{GOLDEN}{name}.gguf"))).unwrap();
    let expected = SafetensorsSource::open_file(Path::new(&format!("{GOLDEN}{name}.safetensors"))).unwrap();
    let source = GgufSource::new(open(name), DType::F32).unwrap();
    let as_bf16 = GgufSource::new(open(name), DType::BF16).unwrap();
    let names: Vec<&str> = expected.names().collect();
    assert_eq!(names.len(), num_types);
    for name in names {
        let whole = source.read_whole(name).unwrap();
        assert!(whole == expected.mapped_bytes(name).unwrap(), "{name}");
        let bf16_bytes = as_bf16.read_whole(name).unwrap();
        assert!(bf16_bytes == crate::convert_dtype::convert(&whole, DType::F32, DType::BF16), "{name}");
        let region = Region { ranges: vec![1..3, 30..70] };
        let (mut part, mut expected_part) = (vec![0; 2 * 40 * 4], vec![0; 2 * 40 * 4]);
        source.read(name, &region, &mut part).unwrap();
        expected.read(name, &region, &mut expected_part).unwrap();
        assert_eq!(part, expected_part, "{name}");
    }
}

#[test]
fn dequantisation_equals_the_gguf_package_bit_for_bit() {
    assert_dequantised("quantised", 8);
    assert_dequantised("k_quants", 5);
}

/// The gguf package has no code for it: ggml uses it between operations, and few files have it.
#[test]
fn a_block_of_q8_k_is_scaled() {
    let quants = (0..=255_u8).chain([0; 32]);
    let block: Vec<u8> = 0.5_f32.to_le_bytes().into_iter().chain(quants).collect();
    let mut row = vec![0.0; 256];
    BlockType::Q8K.dequantize(&block, &mut row);
    assert_eq!([row[0], row[3], row[127], row[128], row[255]], [0.0, 1.5, 63.5, -64.0, -0.5]);
}

#[test]
fn damaged_headers_are_named() {
    let bytes = golden().mapped.bytes().to_vec();
    let check = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        edit(&mut bytes);
        reader::parse("f.gguf", &bytes).unwrap_err().to_string()
    };
    insta::assert_snapshot!(check(&|b| b[4] = 1), @"`f.gguf`, GGUF version 1, cannot be read: only little-endian files of version 2 or 3 are");
    insta::assert_snapshot!(check(&|b| b[4..8].rotate_left(1)), @"`f.gguf`, a big-endian GGUF file, cannot be read: only little-endian files of version 2 or 3 are");
    insta::assert_snapshot!(check(&|b| b[15] = 1), @"`f.gguf` has 72057594037927944 tensors, the limit is 262144");
    insta::assert_snapshot!(check(&|b| b.truncate(100)), @"`f.gguf` is damaged at byte 96: metadata key `test.strings` needs 8 bytes, 4 are left");
    insta::assert_snapshot!(check(&|b| b.truncate(b.len() - 600)), @"`f.gguf` is damaged at byte 441: tensor `Q5_1`: its 360 bytes at data offset 4800 leave the file of 5640 bytes");
    let q5_1 = bytes.windows(4).position(|window| window == b"Q5_1").unwrap();
    insta::assert_snapshot!(check(&|b| b[q5_1 + 4 + 4 + 16] = 18), @"tensor `Q5_1` of GGUF type IQ3_XXS in `f.gguf` cannot be read: supported types are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q8_K");
    insta::assert_snapshot!(check(&|b| b[q5_1 + 4 + 4] = 97), @"`f.gguf` is damaged at byte 441: tensor `Q5_1`: its row length 97 is not a multiple of the block size 32");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn mutated_bytes_never_panic(edits in prop::collection::vec((0_usize..700, any::<u8>()), 1..6), cut in 0_usize..3000) {
        let mut bytes = golden().mapped.bytes().to_vec();
        for (at, value) in edits {
            bytes[at] = value;
        }
        if cut > 1500 {
            bytes.truncate(bytes.len().saturating_sub(cut));
        }
        if let Ok(header) = reader::parse("f", &bytes) {
            for tensor in header.tensors.values() {
                prop_assert!(tensor.bytes.end <= bytes.len());
            }
        }
    }
}
