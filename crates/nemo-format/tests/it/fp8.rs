//! Checkpoints with FP8 weights that are damaged: each is refused by name.

use std::collections::BTreeMap;

use nemo_format::{Checkpoint, DType, TensorMeta, WriteOptions, write_nemo};

use crate::writing::Memory;

const WEIGHT: &str = "model.decoder.layers.0.mlp.linear_fc1.weight";
const SCALES: &str = "model.decoder.layers.0.mlp.linear_fc1.weight_scale";

/// A tensor: its type, its shape, its bytes.
type Stored = (DType, Vec<u64>, Vec<u8>);

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A checkpoint of a norm, a weight of 2 by 4, and its scales.
fn opened(weight: Option<Stored>, scales: Option<Stored>) -> Result<Checkpoint, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.nemo");
    let norm = (DType::BF16, vec![4], vec![0, 0x3f, 0, 0x3f, 0, 0x3f, 0, 0x3f]);
    let norm = ("model.decoder.final_layernorm.weight", Some(norm));
    let tensors: BTreeMap<String, (TensorMeta, Vec<u8>)> = [norm, (WEIGHT, weight), (SCALES, scales)]
        .into_iter()
        .filter_map(|(name, stored)| {
            let (dtype, shape, bytes) = stored?;
            Some((name.to_owned(), (TensorMeta { dtype, shape }, bytes)))
        })
        .collect();
    write_nemo(&path, "num_layers: 1\n", &[], &Memory(tensors), &WriteOptions::default()).unwrap();
    Checkpoint::open(&path).map_err(|error| error.to_string())
}

fn numbers() -> Option<Stored> {
    Some((DType::F8E4M3, vec![2, 4], vec![0x38, 0x3c, 0xc0, 0x7e, 0x00, 0x01, 0x28, 0xfe]))
}

#[test]
fn weights_come_with_the_scales_of_their_rows() {
    let checkpoint = opened(numbers(), Some((DType::F32, vec![2], floats(&[0.5, 2.0])))).unwrap();
    assert_eq!(checkpoint.num_fp8_weights(), 1);
    assert_eq!(checkpoint.tensors().meta(WEIGHT).unwrap().dtype, DType::BF16);
    assert!(checkpoint.tensors().meta(SCALES).is_none());
    let bytes = checkpoint.tensors().read_whole(WEIGHT).unwrap();
    // 0.5, 0.75, -1, 224; 0, 2^-8, 0.5, -896, all of bf16.
    let expect = [0x3f00_u16, 0x3f40, 0xbf80, 0x4360, 0, 0x3b80, 0x3f00, 0xc460];
    assert_eq!(bytes, expect.map(u16::to_le_bytes).concat());
    let stored = checkpoint.stored_tensors().iter().map(|info| (info.name.as_str(), info.meta.dtype.name()));
    let mut stored: Vec<_> = stored.collect();
    stored.sort_unstable();
    assert_eq!(
        stored,
        [
            ("model.decoder.final_layernorm.weight", "bfloat16"),
            ("model.decoder.layers.mlp.linear_fc1.weight", "float8_e4m3fn"),
            ("model.decoder.layers.mlp.linear_fc1.weight_scale", "float32"),
        ]
    );
}

#[test]
fn scales_that_do_not_fit_are_named() {
    let refused = |weight, scales| opened(weight, scales).err().unwrap();
    let two = |values: [f32; 2]| Some((DType::F32, vec![2], floats(&values)));
    insta::assert_snapshot!(refused(numbers(), None), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: it is stored in FP8, and its scales `model.decoder.layers.0.mlp.linear_fc1.weight_scale` are missing");
    insta::assert_snapshot!(refused(numbers(), Some((DType::F32, vec![3], floats(&[1.0; 3])))), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its scales `model.decoder.layers.0.mlp.linear_fc1.weight_scale` are float32 of shape [3], float32 of shape [2] is expected for a weight of shape [2, 4]");
    insta::assert_snapshot!(refused(numbers(), Some((DType::BF16, vec![2], vec![0, 0x3f, 0, 0x3f]))), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its scales `model.decoder.layers.0.mlp.linear_fc1.weight_scale` are bfloat16 of shape [2], float32 of shape [2] is expected for a weight of shape [2, 4]");
    insta::assert_snapshot!(refused(numbers(), two([1.0, f32::NAN])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its scale of row 1 in `model.decoder.layers.0.mlp.linear_fc1.weight_scale` is NaN, expected a number above 0");
    insta::assert_snapshot!(refused(numbers(), two([f32::INFINITY, 1.0])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its scale of row 0 in `model.decoder.layers.0.mlp.linear_fc1.weight_scale` is inf, expected a number above 0");
    insta::assert_snapshot!(refused(numbers(), two([1.0, 0.0])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its scale of row 1 in `model.decoder.layers.0.mlp.linear_fc1.weight_scale` is 0, expected a number above 0");
    insta::assert_snapshot!(refused(numbers(), two([-1.0, 1.0])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its scale of row 0 in `model.decoder.layers.0.mlp.linear_fc1.weight_scale` is -1, expected a number above 0");
    let wide = Some((DType::BF16, vec![2, 4], vec![0; 16]));
    insta::assert_snapshot!(refused(wide, two([1.0, 1.0])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight_scale` is inconsistent: they are scales, and `model.decoder.layers.0.mlp.linear_fc1.weight` is not stored as float8_e4m3fn");
    insta::assert_snapshot!(refused(None, two([1.0, 1.0])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight_scale` is inconsistent: they are scales, and `model.decoder.layers.0.mlp.linear_fc1.weight` is not stored as float8_e4m3fn");
    let vector = Some((DType::F8E4M3, vec![8], vec![0; 8]));
    insta::assert_snapshot!(refused(vector, two([1.0, 1.0])), @"tensor `model.decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: it is stored in FP8 with shape [8], a matrix is expected");
}
