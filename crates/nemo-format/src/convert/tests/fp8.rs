//! Linear layers written in FP8: half the size, the numbers of a job that quantises while it loads, kept by every way on.

use serde_json::{Value, json};

use super::families::folder as family;
use super::*;
use crate::{Fp8Weights, quantize_rows};

const FP8: ConvertOptions<'static> = ConvertOptions {
    dtype: Some(DType::BF16),
    quantization: Some(Quantization::Fp8),
    tokenizer: None,
    adapters: Vec::new(),
    overwrite: Overwrite::Refuse,
    check_tokenizer: None,
    progress: None,
};
const LINEARS: [&str; 4] = [
    "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
];

fn notes(report: &ConvertReport) -> String {
    report.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Numbers and scales of a weight.
fn stored(source: &dyn TensorSource, name: &str) -> (Vec<u8>, Vec<f32>) {
    let fp8 = source.fp8().unwrap();
    let shape = source.meta(name).unwrap().shape.clone();
    let mut numbers = vec![0; shape.iter().product::<u64>() as usize];
    fp8.read_numbers(name, &Region::whole(&shape), &mut numbers).unwrap();
    if let Some(mapped) = fp8.mapped_numbers(name) {
        assert_eq!(mapped, numbers, "{name}");
    }
    (numbers, fp8.row_scales(name).unwrap())
}

fn linear_names(source: &dyn TensorSource) -> Vec<String> {
    let is_linear = |name: &&str| LINEARS.iter().any(|linear| name.ends_with(linear));
    source.names().filter(is_linear).map(str::to_owned).collect()
}

fn assert_same_fp8(one: &dyn TensorSource, two: &dyn TensorSource) {
    let names = linear_names(one);
    assert!(!names.is_empty());
    for name in names {
        assert!(stored(one, &name) == stored(two, &name), "{name}");
    }
}

#[test]
fn linear_layers_have_the_numbers_of_a_job_that_quantises() {
    let (fp8, report) = convert(Path::new(FIXTURE), &FP8);
    let plain = reference();
    let names = linear_names(plain.tensors());
    assert_eq!((names.len(), fp8.num_fp8_weights()), (8, 8));
    insta::assert_snapshot!(notes(&report), @"8 linear layers are written in FP8, with a float32 scale for each output; `trainer.generation.trt_llm.quantization=fp8` computes with them as they are");
    let mut num_elems = 0;
    for name in &names {
        let meta = plain.tensors().meta(name).unwrap();
        let bytes = plain.tensors().read_whole(name).unwrap();
        let width = meta.shape[1] as usize;
        let expect = quantize_rows(&bytes, DType::BF16, DType::BF16, width).unwrap();
        assert_eq!(stored(fp8.tensors(), name), (expect.numbers.clone(), expect.scales.clone()), "{name}");
        num_elems += bytes.len() as u64 / 2;
        // Without the key they are numbers, each its own times the scale of its row.
        assert_eq!(fp8.tensors().meta(name), Some(meta), "{name}");
        let numbers = fp8.tensors().read_whole(name).unwrap();
        let largest = |bytes: &[u8]| {
            let values = bytes.as_chunks().0.iter().map(|elem| half::bf16::from_le_bytes(*elem).to_f32());
            values.fold(0.0_f32, |largest, value| largest.max(value.abs()))
        };
        let row_bytes = width * 2;
        for (row, (number, original)) in numbers.chunks(row_bytes).zip(bytes.chunks(row_bytes)).enumerate() {
            assert_eq!(largest(number), largest(original), "row {row} of {name}");
        }
        let mut part = vec![0; 3 * 2 * 2];
        let region = Region { ranges: vec![1..4, 5..7] };
        fp8.tensors().read(name, &region, &mut part).unwrap();
        assert_eq!(part[..4], numbers[row_bytes + 10..row_bytes + 14]);
    }
    let others = |checkpoint: &Checkpoint| {
        let names = checkpoint.tensors().names().filter(|name| !names.iter().any(|linear| linear == name));
        names
            .map(|name| (name.to_owned(), checkpoint.tensors().read_whole(name).unwrap()))
            .collect::<Vec<_>>()
    };
    let sorted = |mut tensors: Vec<(String, Vec<u8>)>| {
        tensors.sort();
        tensors
    };
    assert!(sorted(others(&fp8)) == sorted(others(&plain)));
    assert!(fp8.tensors().names().all(|name| !name.contains("_scale")));
    let stored_bytes = |checkpoint: &Checkpoint| {
        checkpoint.stored_tensors().iter().filter_map(|info| info.meta.size_bytes()).sum::<u64>()
    };
    let scales: u64 = names.iter().map(|name| plain.tensors().meta(name).unwrap().shape[0] * 4).sum();
    assert_eq!(stored_bytes(&fp8), stored_bytes(&plain) - num_elems + scales);
    fp8.verify(&|_, _| {}).unwrap();
}

#[test]
fn they_are_kept_on_every_way_on() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first.nemo");
    convert_checkpoint(Path::new(FIXTURE), &first, &FP8).unwrap();
    let fp8 = Checkpoint::open(&first).unwrap();
    let (again, report) = convert(&first, &FP8);
    assert_same_fp8(fp8.tensors(), again.tensors());
    insta::assert_snapshot!(notes(&report), @"8 linear layers are written in FP8, with a float32 scale for each output; `trainer.generation.trt_llm.quantization=fp8` computes with them as they are; 8 of them have the numbers and scales of the input");
    // Another type is for what is not FP8.
    let (wide, _) = convert(&first, &ConvertOptions { dtype: Some(DType::F32), ..FP8 });
    assert_same_fp8(fp8.tensors(), wide.tensors());
    assert_eq!(wide.tensors().meta("model.output_layer.weight").unwrap().dtype, DType::F32);
    // From the original checkpoint of NeMo, too.
    let nemo = format!("{FIXTURE}/hf_llama_converted_bf16_torch_dist.nemo");
    assert_same_fp8(fp8.tensors(), convert(Path::new(&nemo), &FP8).0.tensors());
    let (plain, report) = convert(&first, &ConvertOptions::default());
    assert_eq!(plain.num_fp8_weights(), 0);
    insta::assert_snapshot!(notes(&report), @"8 weights that are stored in FP8 become bfloat16, their numbers times their scales; `--quantization fp8` keeps them");
    // Every layer's own shape and experts have names of their own in the file.
    for input in ["nas", "qwen3_moe"].map(family).into_iter().filter(|folder| folder.exists()) {
        let (fp8, _) = convert(&input, &FP8);
        assert!(fp8.num_fp8_weights() > 0, "{input:?}");
        for name in linear_names(fp8.tensors()) {
            stored(fp8.tensors(), &name);
        }
    }
}

#[test]
fn a_hugging_face_folder_keeps_them_both_ways() {
    for (name, num_ignored) in [("llama31", 1), ("qwen3_tied", 0), ("qwen3_moe", 3)] {
        let folder = tempfile::tempdir().unwrap();
        let (hf, nemo) = (folder.path().join("hf"), folder.path().join("model.nemo"));
        convert_checkpoint(&family(name), &nemo, &FP8).unwrap();
        let direct = folder.path().join("direct");
        export_huggingface(&family(name), &direct, &FP8).unwrap();
        export_huggingface(&nemo, &hf, &FP8).unwrap();
        // Quantised before the export or after.
        let [before, after] = [&hf, &direct].map(|folder| SafetensorsSource::open_folder(folder).unwrap());
        assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        for tensor in before.names() {
            assert_eq!(before.meta(tensor), after.meta(tensor), "{name}: {tensor}");
            assert!(
                before.read_whole(tensor).unwrap() == after.read_whole(tensor).unwrap(),
                "{name}: {tensor}"
            );
        }
        let config: Value = serde_json::from_slice(&fs::read(hf.join("config.json")).unwrap()).unwrap();
        let said = &config["quantization_config"];
        assert_eq!(said["quant_method"], "compressed-tensors");
        assert_eq!(said["ignore"].as_array().unwrap().len(), num_ignored, "{name}: {said}");
        let back = folder.path().join("back.nemo");
        let report = convert_checkpoint(&hf, &back, &FP8).unwrap();
        let there = Checkpoint::open(&nemo).unwrap();
        assert_same_fp8(there.tensors(), Checkpoint::open(&back).unwrap().tensors());
        let num = there.num_fp8_weights();
        assert!(notes(&report).contains(&format!("{num} of them have the numbers and scales of the input")));
    }
}

/// The fixture's folder with `q_proj` of its first layer in FP8, scaled in this way; others stay as they are, or are FP8 of
/// the same way with numbers of their own.
fn stored_otherwise(strategy: &Value, scale_shape: &[usize]) -> tempfile::TempDir {
    use safetensors::{Dtype, tensor::TensorView};
    let folder = edited_folder(&|config| {
        config["quantization_config"] = json!({
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"weights": strategy}},
        });
    });
    let path = folder.path().join("model.safetensors");
    let original = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&original).unwrap();
    let num_scales = scale_shape.iter().product::<usize>();
    let scales: Vec<u8> = (0..num_scales).flat_map(|at| (0.001 + at as f32 * 1e-5).to_le_bytes()).collect();
    let mut numbers = Vec::new();
    for (name, view) in tensors.tensors() {
        if name.ends_with("_proj.weight") {
            let len = view.shape().iter().product::<usize>();
            let values: Vec<u8> = (0..len).map(|at| (at * 37 % 127 + at % 2 * 128) as u8).collect();
            numbers.push((name, view.shape().to_vec(), values));
        }
    }
    let scale_of = |shape: &[usize]| match scale_shape {
        [] => Vec::new(),
        [_, 1] => vec![shape[0], 1],
        _ => vec![shape[0].div_ceil(16), shape[1].div_ceil(16)],
    };
    let shapes: Vec<Vec<usize>> = numbers.iter().map(|(_, shape, _)| scale_of(shape)).collect();
    let filled: Vec<Vec<u8>> = shapes
        .iter()
        .map(|shape| scales.iter().cycle().take(shape.iter().product::<usize>() * 4).copied().collect())
        .collect();
    let mut views: Vec<(String, TensorView<'_>)> =
        tensors.tensors().into_iter().filter(|(name, _)| !name.ends_with("_proj.weight")).collect();
    for (((name, shape, values), scale_shape), scales) in numbers.iter().zip(&shapes).zip(&filled) {
        views.push((name.clone(), TensorView::new(Dtype::F8_E4M3, shape.clone(), values).unwrap()));
        let scale = TensorView::new(Dtype::F32, scale_shape.clone(), scales).unwrap();
        views.push((format!("{name}_scale"), scale));
    }
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(path, bytes).unwrap();
    folder
}

#[test]
fn stored_fp8_is_kept_where_a_row_has_one_scale() {
    let weights = |strategy: &str| json!({"num_bits": 8, "type": "float", "strategy": strategy});
    for (strategy, shape) in [("channel", [64, 1].as_slice()), ("tensor", &[])] {
        let folder = stored_otherwise(&weights(strategy), shape);
        let (kept, report) = convert(folder.path(), &FP8);
        assert_eq!(kept.num_fp8_weights(), 8);
        assert!(notes(&report).contains("8 of them have the numbers and scales of the input"), "{strategy}");
        assert!(!notes(&report).contains("become"), "{}", notes(&report));
        let folder_numbers = SafetensorsSource::open_folder(folder.path()).unwrap();
        let proj = folder_numbers.read_whole("model.layers.1.self_attn.o_proj.weight").unwrap();
        let name = "model.decoder.layers.1.self_attention.linear_proj.weight";
        let (numbers, scales) = stored(kept.tensors(), name);
        assert_eq!(numbers, proj);
        let expect = |row: usize| 0.001 + if strategy == "channel" { row as f32 * 1e-5 } else { 0.0 };
        assert!(scales.iter().enumerate().all(|(row, &scale)| scale == expect(row)), "{scales:?}");
        // Key heads stand between query heads; their rows keep their numbers and scales.
        let k_proj = folder_numbers.read_whole("model.layers.0.self_attn.k_proj.weight").unwrap();
        let (numbers, _) = stored(kept.tensors(), "model.decoder.layers.0.self_attention.linear_qkv.weight");
        assert!(numbers.windows(64).any(|row| row == &k_proj[64..128]));
        // Without the option they are numbers, as before.
        let (plain, report) = convert(folder.path(), &ConvertOptions::default());
        assert_eq!(plain.num_fp8_weights(), 0);
        assert!(
            notes(&report).contains("14 weights in FP8 (`compressed-tensors`) become float32"),
            "{}",
            notes(&report)
        );
    }
    let block = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16]});
    let folder = stored_otherwise(&block, &[4, 4]);
    let (made, report) = convert(folder.path(), &FP8);
    assert_eq!(made.num_fp8_weights(), 8);
    insta::assert_snapshot!(notes(&report), @"8 linear layers are written in FP8, with a float32 scale for each output; `trainer.generation.trt_llm.quantization=fp8` computes with them as they are; those that the input has in FP8 with other scales (`compressed-tensors`) were rounded a second time");
    assert!(!made.model_config_text().contains("become"));
}

#[test]
fn what_cannot_be_made_fp8_is_named() {
    let folder = edited_folder(&|_| {});
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let start = tensors["model.layers.1.mlp.down_proj.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let width = tensors["model.layers.1.mlp.down_proj.weight"]["shape"][1].as_u64().unwrap() as usize;
    let at = header + start + 4 * (2 * width + 5);
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let output = folder.path().join("out.nemo");
    let error = convert_checkpoint(folder.path(), &output, &FP8).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"tensor `model.decoder.layers.1.mlp.linear_fc2.weight` is inconsistent: its row 2 has values that are not finite");
    assert!(!output.exists());
}
