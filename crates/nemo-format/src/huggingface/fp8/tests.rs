use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;
use crate::{Region, SafetensorsSource};

/// A folder with a 3 by 4 weight in FP8, a norm, and these scales.
fn folder(config: &Value, scale: (&str, &[usize], &[f32])) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    // 1, 1.5, -2, 448; 0, 2^-9, 0.25, -0; 16, 17 is no number of e4m3 but 18 is, 3, 5.
    let numbers = [0x38, 0x3c, 0xc0, 0x7e, 0x00, 0x01, 0x28, 0x80, 0x58, 0x59, 0x44, 0x4a];
    let norm: Vec<u8> =
        [1.0_f32, 2.0].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    let (name, shape, factors) = scale;
    let factors: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let one = 1.0_f32.to_le_bytes();
    let views = [
        ("a.weight".to_owned(), TensorView::new(Dtype::F8_E4M3, vec![3, 4], &numbers).unwrap()),
        ("norm.weight".to_owned(), TensorView::new(Dtype::BF16, vec![2], &norm).unwrap()),
        (name.to_owned(), TensorView::new(Dtype::F32, shape.to_vec(), &factors).unwrap()),
        ("a.input_scale".to_owned(), TensorView::new(Dtype::F32, vec![], &one).unwrap()),
    ];
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn opened(folder: &Path) -> Result<(Box<dyn TensorSource>, Option<SourceNote>), FormatError> {
    let source = SafetensorsSource::open_folder(folder)?;
    dequantized(&HfConfig::open(folder)?, folder, Box::new(source))
}

fn values(source: &dyn TensorSource, region: &Region) -> Vec<f32> {
    let mut bytes = vec![0; region.num_elems() as usize * 2];
    source.read("a.weight", region, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|elem| bf16::from_le_bytes(*elem).to_f32()).collect()
}

const NUMBERS: [f32; 12] = [1.0, 1.5, -2.0, 448.0, 0.0, 1.0 / 512.0, 0.25, -0.0, 16.0, 18.0, 3.0, 5.0];

#[test]
fn weights_are_numbers_times_the_scale_of_tensor_row_or_block() {
    let compressed = |strategy: &str| {
        let weights = json!({"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": true});
        json!({"quantization_config": {
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"weights": weights}},
        }})
    };
    let modelopt = json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}});
    let blocks = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}});
    let fbgemm = json!({"quantization_config": {"quant_method": "fbgemm_fp8"}});
    let rows: &[f32] = &[0.5, 2.0, -1.0];
    // Configuration, name, shape and values of the scales, and which of them an element has.
    type Case<'a> = (Value, &'a str, &'a [usize], &'a [f32], fn(usize, usize) -> usize);
    let cases: [Case<'_>; 6] = [
        (compressed("tensor"), "a.weight_scale", &[1], &[0.5], |_, _| 0),
        (modelopt, "a.weight_scale", &[], &[0.25], |_, _| 0),
        (compressed("channel"), "a.weight_scale", &[3, 1], rows, |row, _| row),
        (fbgemm, "a.weight_scale", &[3, 1], rows, |row, _| row),
        (
            json!({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}),
            "a.weight_scale",
            &[],
            &[2.0],
            |_, _| 0,
        ),
        (blocks, "a.weight_scale_inv", &[2, 2], &[1.0, 2.0, 4.0, 8.0], |row, column| {
            row / 2 * 2 + column / 3
        }),
    ];
    for (config, name, shape, factors, factor_of) in cases {
        let folder = folder(&config, (name, shape, factors));
        let (source, note) = opened(folder.path()).unwrap();
        let mut names: Vec<&str> = source.names().collect();
        names.sort_unstable();
        assert_eq!(names, ["a.weight", "norm.weight"], "{config}");
        assert_eq!(source.meta("a.weight").unwrap(), &TensorMeta { dtype: DType::BF16, shape: vec![3, 4] });
        assert!(source.meta(name).is_none() && source.mapped_bytes("a.weight").is_none());
        assert!(note.unwrap().to_string().contains("1 weights in FP8"));
        let expect = |row: usize, column: usize| NUMBERS[row * 4 + column] * factors[factor_of(row, column)];
        let all: Vec<f32> = (0..12).map(|at| expect(at / 4, at % 4)).collect();
        assert_eq!(values(&*source, &Region::whole(&[3, 4])), all, "{config}");
        let part: Vec<f32> = (0..4).map(|at| expect(1 + at / 2, 2 + at % 2)).collect();
        assert_eq!(values(&*source, &Region { ranges: vec![1..3, 2..4] }), part, "{config}");
    }
}

#[test]
fn modelopt_may_state_it_in_a_file_of_its_own() {
    let folder = folder(&json!({}), ("a.weight_scale", &[], &[0.5]));
    let error = opened(folder.path()).err().unwrap().to_string();
    insta::assert_snapshot!(error, @"tensor `a.weight` is inconsistent: it is stored in FP8, and neither `config.json` nor `hf_quant_config.json` says how it is scaled");
    let said = json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}});
    std::fs::write(folder.path().join("hf_quant_config.json"), said.to_string()).unwrap();
    assert_eq!(values(&*opened(folder.path()).unwrap().0, &Region { ranges: vec![0..1, 0..2] }), [0.5, 0.75]);
}

#[test]
fn what_is_not_read_is_named() {
    let refused = |quantization: Value, scale: (&str, &[usize], &[f32])| {
        let folder = folder(&json!({"quantization_config": quantization}), scale);
        let error = opened(folder.path()).err().unwrap().to_string();
        error.replace(&folder.path().display().to_string(), "FOLDER")
    };
    let scale: (&str, &[usize], &[f32]) = ("a.weight_scale", &[], &[1.0]);
    insta::assert_snapshot!(refused(json!({"quant_method": "awq", "bits": 4}), scale), @"weights quantised by `awq` in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    insta::assert_snapshot!(refused(json!({"bits": 4}), scale), @"quantised weights in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    insta::assert_snapshot!(refused(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), scale), @"weights quantised by modelopt to `NVFP4` in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    insta::assert_snapshot!(refused(json!({"quant_method": "fp8", "fmt": "e5m2"}), scale), @"FP8 weights of format `e5m2` in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    insta::assert_snapshot!(refused(json!({"quant_method": "fp8", "weight_block_size": [128]}), scale), @"`FOLDER/config.json` is not a model configuration: the key `weight_block_size` is `[128]`, expected two whole numbers above 0");
    insta::assert_snapshot!(refused(json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), scale), @"compressed-tensors of format `pack-quantized` in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    let compressed = |weights: Value| json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"weights": weights}}});
    insta::assert_snapshot!(refused(compressed(json!({"num_bits": 4, "type": "float"})), scale), @"compressed-tensors with weights of 4 bits, type `float`, in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    insta::assert_snapshot!(refused(compressed(json!({"num_bits": 8, "type": "float", "strategy": "group"})), scale), @"compressed-tensors with weights of strategy `group` in `FOLDER/config.json` cannot be read: convert the original bf16 or fp16 model");
    let fp8 = || json!({"quant_method": "fp8", "weight_block_size": [2, 3]});
    insta::assert_snapshot!(refused(fp8(), scale), @"tensor `a.weight` is inconsistent: it is stored in FP8, and its scale `a.weight_scale_inv` is missing");
    insta::assert_snapshot!(refused(fp8(), ("a.weight_scale_inv", &[2, 1], &[1.0, 1.0])), @"tensor `a.weight` is inconsistent: its scale `a.weight_scale_inv` has shape [2, 1], [2, 2] is expected for a weight of shape [3, 4]");
    let tensor = || json!({"quant_method": "fbgemm_fp8"});
    insta::assert_snapshot!(refused(tensor(), ("a.weight_scale", &[2], &[1.0, 1.0])), @"tensor `a.weight` is inconsistent: its scale `a.weight_scale` has shape [2], [], [3] or [3, 1] is expected for a weight of shape [3, 4]");
    insta::assert_snapshot!(refused(tensor(), ("a.weight_scale", &[], &[f32::INFINITY])), @"tensor `a.weight` is inconsistent: its scale `a.weight_scale` has the value inf");
}
