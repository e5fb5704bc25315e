mod export;
mod families;
mod fp8;
mod gpt_oss;
mod refusals;

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::{Checkpoint, Region, SafetensorsSource};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/hf_llama");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn reference() -> Checkpoint {
    let path = format!("{FIXTURE}/hf_llama_converted_bf16_torch_dist.nemo");
    Checkpoint::open(Path::new(&path)).unwrap()
}

fn convert(input: &Path, options: &ConvertOptions<'_>) -> (Checkpoint, ConvertReport) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.nemo");
    let report = convert_checkpoint(input, &output, options).unwrap();
    (Checkpoint::open(&output).unwrap(), report)
}

fn assert_same_tensors(actual: &Checkpoint, expected: &Checkpoint) {
    let (actual, expected) = (actual.tensors(), expected.tensors());
    let sorted = |source: &dyn TensorSource| {
        let mut names: Vec<String> = source.names().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(sorted(actual), sorted(expected));
    assert_eq!(sorted(actual).len(), 15);
    for name in expected.names() {
        assert_eq!(actual.meta(name), expected.meta(name), "{name}");
        assert!(actual.read_whole(name).unwrap() == expected.read_whole(name).unwrap(), "{name}");
    }
}

/// The configuration without the artifact's name, which depends on the content's hash.
fn config_without_artifact(checkpoint: &Checkpoint) -> Node {
    let mut config = checkpoint.model_config().clone();
    assert!(config.get("tokenizer.model").and_then(Node::as_str).unwrap().starts_with("nemo:"));
    config.remove("tokenizer.model");
    config
}

/// A copy of a folder of plain files.
fn copy_of(source: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit_config(folder: &Path, edit: &dyn Fn(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// A copy of the fixture's folder with an edited `config.json`.
fn edited_folder(edit: &dyn Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["config.json", "model.safetensors", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(format!("{FIXTURE}/{name}"), folder.path().join(name)).unwrap();
    }
    edit_config(folder.path(), edit);
    folder
}

#[test]
fn a_hugging_face_folder_becomes_what_nemo_writes() {
    let options = ConvertOptions { dtype: Some(DType::BF16), ..ConvertOptions::default() };
    let (converted, report) = convert(Path::new(FIXTURE), &options);
    let expected = reference();
    assert_same_tensors(&converted, &expected);
    assert_eq!(config_without_artifact(&converted), config_without_artifact(&expected));
    assert_eq!(report.input, InputKind::HuggingFace);
    assert_eq!(report.written.num_tensors, 15);
    let tokenizer = converted.model_config().get("tokenizer.model").and_then(Node::as_str).unwrap();
    assert_eq!(
        converted.artifact(tokenizer).unwrap(),
        fs::read(format!("{FIXTURE}/tokenizer.model")).unwrap()
    );
    insta::assert_snapshot!("model_config", converted.model_config_text());
}

#[test]
fn the_source_dtype_is_kept_unless_asked() {
    let (converted, report) = convert(Path::new(FIXTURE), &ConvertOptions::default());
    assert_eq!(report.dtype, DType::F32);
    assert_eq!(converted.model_config().get("precision"), Some(&Node::Int(32)));
}

#[test]
fn a_gguf_file_becomes_the_same_model() {
    let (converted, report) =
        convert(Path::new(&format!("{GOLDEN}/llama_bf16.gguf")), &ConvertOptions::default());
    let expected = reference();
    assert_same_tensors(&converted, &expected);
    assert_eq!(config_without_artifact(&converted), config_without_artifact(&expected));
    assert_eq!((report.input, report.dtype), (InputKind::Gguf, DType::BF16));
}

#[test]
fn parts_of_a_permuted_tensor_are_read_alone() {
    let file = GgufFile::open(Path::new(&format!("{GOLDEN}/llama_bf16.gguf"))).unwrap();
    let source = GgufSource::new(file, DType::BF16).unwrap();
    let arch = gguf::understand(&source).map(|(arch, _)| arch).unwrap();
    let source = canonical(Box::new(source), &arch, GGUF_LLAMA, DType::BF16).unwrap();
    let name = "model.decoder.layers.1.self_attention.linear_qkv.weight";
    let expected = reference();
    let shape = expected.tensors().meta(name).unwrap().shape.clone();
    for (rows, columns) in [(0..3, 0..64), (13..51, 5..6), (60..shape[0], 32..64)] {
        let region = Region { ranges: vec![rows, columns] };
        let size_bytes = region.shape().iter().product::<u64>() as usize * 2;
        let (mut actual, mut wanted) = (vec![0; size_bytes], vec![0; size_bytes]);
        source.read(name, &region, &mut actual).unwrap();
        expected.tensors().read(name, &region, &mut wanted).unwrap();
        assert_eq!(actual, wanted, "{region:?}");
    }
}

#[test]
fn a_nemo_archive_is_rewritten() {
    let input = format!("{FIXTURE}/hf_llama_converted_bf16_torch_dist.nemo");
    let (converted, report) = convert(Path::new(&input), &ConvertOptions::default());
    assert_same_tensors(&converted, &reference());
    assert_eq!(report.input, InputKind::Nemo);
    let tokenizer = converted.model_config().get("tokenizer.model").and_then(Node::as_str).unwrap();
    assert_eq!(converted.artifact_names(), [tokenizer.strip_prefix("nemo:").unwrap()]);
    let options = ConvertOptions {
        tokenizer: Some(format!("{FIXTURE}/tokenizer.json").into()),
        dtype: Some(DType::F16),
        ..ConvertOptions::default()
    };
    let (converted, _) = convert(Path::new(&input), &options);
    assert_eq!(converted.model_config().get("precision"), Some(&Node::Int(16)));
    assert_eq!(converted.artifact_names().len(), 1);
    let section = converted.model_config().get("tokenizer").unwrap().to_yaml();
    insta::assert_snapshot!(section, @r#"
    library: huggingface
    type: hf_llama
    model: nemo:fa96146ec7473238d1cef0917b34bc3f_tokenizer.json
    vocab_file: null
    merge_file: null
    use_fast: true
    special_tokens:
      bos_token: <s>
      eos_token: </s>
      unk_token: <unk>
    "#);
}

#[test]
fn rotary_and_tied_keys_are_carried_over() {
    let folder = edited_folder(&|config| {
        config["tie_word_embeddings"] = true.into();
        config["rope_theta"] = 500_000.0.into();
        config["rope_scaling"] = serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
    });
    let (converted, report) = convert(folder.path(), &ConvertOptions::default());
    // The fixture's `lm_head.weight` is another table, which transformers uses in spite of the flag.
    assert!(converted.tensors().meta("model.output_layer.weight").is_some());
    let get = |key| converted.model_config().get(key).cloned();
    assert_eq!(get("share_embeddings_and_output_weights"), Some(Node::Bool(false)));
    assert_eq!(get("scale_positional_embedding"), Some(Node::Bool(true)));
    assert_eq!(get("rotary_base"), Some(Node::Float(500_000.0)));
    assert_eq!(get("seq_len_interpolation_factor"), None);
    insta::assert_snapshot!(report.notes[0], @"`lm_head.weight`, as in transformers, is used and `tie_word_embeddings`, which is true, is not: the weights have it, and it is not `model.embed_tokens.weight`");
    assert_eq!(report.notes.len(), 1);

    let folder = edited_folder(&|config| {
        config["rope_scaling"] = serde_json::json!({"type": "linear", "factor": 2.0});
    });
    let (converted, _) = convert(folder.path(), &ConvertOptions::default());
    assert_eq!(converted.model_config().get("seq_len_interpolation_factor"), Some(&Node::Float(2.0)));
}

/// Adds biases of the given linear layers to the folder's weights: layer and row number as a float.
fn add_biases(folder: &Path, layers: &[(&str, usize)]) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut data = Vec::new();
    for layer in 0..2_u8 {
        for &(name, num_rows) in layers {
            let values = (0..num_rows).flat_map(|row| (f32::from(layer) * 1000.0 + row as f32).to_le_bytes());
            data.push((format!("model.layers.{layer}.{name}.bias"), num_rows, values.collect::<Vec<u8>>()));
        }
    }
    let biases = data.iter().map(|(name, num_rows, values)| {
        let dtype = safetensors::Dtype::F32;
        (name.clone(), safetensors::tensor::TensorView::new(dtype, vec![*num_rows], values).unwrap())
    });
    let all = tensors.tensors().into_iter().chain(biases);
    fs::write(&path, safetensors::serialize(all, None).unwrap()).unwrap();
}

fn floats(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.tensors().read_whole(name).unwrap();
    bytes.chunks_exact(4).map(|elem| f32::from_le_bytes([elem[0], elem[1], elem[2], elem[3]])).collect()
}

#[test]
fn biases_are_fused_and_those_that_lack_are_zeros() {
    let qkv = [("self_attn.q_proj", 64), ("self_attn.k_proj", 32), ("self_attn.v_proj", 32)];
    let folder = edited_folder(&|config| config["attention_bias"] = true.into());
    add_biases(folder.path(), &qkv);
    let (converted, report) = convert(folder.path(), &ConvertOptions::default());
    insta::assert_snapshot!(report.notes[0], @"the weights have no bias of `self_attn.o_proj` although `attention_bias` is true; zeros stand for it, as in transformers");
    assert_eq!(converted.model_config().get("qkv_bias"), Some(&Node::Bool(true)));
    assert_eq!(converted.model_config().get("bias"), Some(&Node::Bool(false)));
    assert!(converted.tensors().meta("model.decoder.layers.1.self_attention.linear_proj.bias").is_none());
    let fused = floats(&converted, "model.decoder.layers.1.self_attention.linear_qkv.bias");
    // Group 1 starts at row 64: query heads 2 and 3, then key head 1, then value head 1.
    assert_eq!([fused[64], fused[96], fused[112], fused[127]], [1032.0, 1016.0, 1016.0, 1031.0]);

    let folder = edited_folder(&|config| config["attention_bias"] = true.into());
    add_biases(folder.path(), &[&qkv[..], &[("self_attn.o_proj", 64)]].concat());
    let (converted, _) = convert(folder.path(), &ConvertOptions::default());
    assert_eq!(converted.model_config().get("bias"), Some(&Node::Bool(true)));
    assert_eq!(floats(&converted, "model.decoder.layers.0.self_attention.linear_proj.bias")[63], 63.0);
    assert_eq!(floats(&converted, "model.decoder.layers.0.mlp.linear_fc1.bias"), [0.0; 224]);
    assert_eq!(floats(&converted, "model.decoder.layers.0.mlp.linear_fc2.bias"), [0.0; 64]);
}

#[test]
fn an_existing_target_stays() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.nemo");
    fs::write(&output, "kept").unwrap();
    let error = convert_checkpoint(Path::new(FIXTURE), &output, &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, FormatError::OutputExists { .. }));
    assert_eq!(fs::read(&output).unwrap(), b"kept");
    let options = ConvertOptions { overwrite: Overwrite::Replace, ..ConvertOptions::default() };
    convert_checkpoint(Path::new(FIXTURE), &output, &options).unwrap();
    Checkpoint::open(&output).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn mutated_gguf_files_never_panic(edits in prop::collection::vec((0_usize..1500, any::<u8>()), 1..4)) {
        let mut bytes = fs::read(format!("{GOLDEN}/llama_bf16.gguf")).unwrap();
        for (at, value) in edits {
            bytes[at] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        if let Ok(converted) = from_gguf(&path, &ConvertOptions::default()) {
            prop_assert!(converted.source.names().count() > 2);
        }
    }
}
