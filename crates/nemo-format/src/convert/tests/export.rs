//! Hugging Face folder to `.nemo` and back: the same tensors, bit for bit, and the same facts.

use super::families::folder as family;
use super::*;
use crate::writer::write_hf_folder;

/// Keys that say the same in both spellings of a configuration.
const FACTS: [&str; 16] = [
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "sliding_window",
    "vocab_size",
];

/// The same of models with experts.
const OF_EXPERTS: [&str; 7] = [
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts_per_tok",
    "qkv_bias",
    "shared_expert_intermediate_size",
];

fn config_of(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn there_and_back(source: &Path, options: &ConvertOptions<'_>) -> (tempfile::TempDir, ConvertReport) {
    let folder = tempfile::tempdir().unwrap();
    let nemo = folder.path().join("model.nemo");
    let there = convert_checkpoint(source, &nemo, options).unwrap();
    assert!(!there.notes.iter().any(|note| matches!(note, ConvertNote::RoundedNorms { .. })));
    let report = export_huggingface(&nemo, &folder.path().join("hf"), &ConvertOptions::default()).unwrap();
    (folder, report)
}

#[test]
fn a_round_trip_changes_nothing() {
    let dense =
        ["gemma", "gemma2", "llama31", "llama32", "mistral", "qwen2", "qwen2_tied", "qwen3", "qwen3_tied"];
    for name in dense.into_iter().chain(["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]) {
        let (folder, report) = there_and_back(&family(name), &ConvertOptions::default());
        let back = folder.path().join("hf");
        let (old, new) = (
            SafetensorsSource::open_folder(&family(name)).unwrap(),
            SafetensorsSource::open_folder(&back).unwrap(),
        );
        assert_eq!(old.names().count(), new.names().count(), "{name}");
        for tensor in old.names() {
            assert_eq!(old.meta(tensor), new.meta(tensor), "{name}: {tensor}");
            assert!(
                old.mapped_bytes(tensor).unwrap() == new.mapped_bytes(tensor).unwrap(),
                "{name}: {tensor}"
            );
        }
        assert_eq!(report.notes, []);
        let (old, new) = (config_of(&family(name)), config_of(&back));
        // A window of 0 is none in this class alone.
        for fact in FACTS.into_iter().filter(|&fact| (name, fact) != ("qwen2_moe", "sliding_window")) {
            assert_eq!(old[fact], new[fact], "{name}: {fact}");
        }
        assert_eq!(old["rope_parameters"]["rope_theta"], new["rope_theta"], "{name}");
        for constant in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        {
            let (old, new) = (&old["rope_parameters"][constant], &new["rope_scaling"][constant]);
            assert_eq!(old.as_f64(), new.as_f64(), "{name}: {constant}");
        }
        assert_eq!(old["tie_word_embeddings"], new["tie_word_embeddings"], "{name}");
        assert_eq!(old["dtype"], new["torch_dtype"], "{name}");
        for fact in OF_EXPERTS {
            assert_eq!(old[fact], new[fact], "{name}: {fact}");
        }
        let num_experts = |config: &serde_json::Value| config["num_experts"].as_u64();
        assert_eq!(
            num_experts(&old).or(old["num_local_experts"].as_u64()),
            num_experts(&new).or(new["num_local_experts"].as_u64()),
            "{name}"
        );
        if name == "gemma2" {
            for key in [
                "query_pre_attn_scalar",
                "attn_logit_softcapping",
                "final_logit_softcapping",
                "sliding_window",
                "layer_types",
            ] {
                assert_eq!(old[key], new[key], "{key}");
            }
        }
        for file in ["generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"] {
            // transformers makes the tokenizer of a Qwen2 anew, of the same vocabulary, and so does the conversion.
            let is_made_anew = file == "tokenizer.json" && name.starts_with("qwen2");
            if family(name).join(file).exists() && !is_made_anew {
                let same = fs::read(family(name).join(file)).unwrap() == fs::read(back.join(file)).unwrap();
                assert!(same, "{name}: {file}");
            }
        }
    }
}

/// Norm weights next to 0 lose bits when 1 is added even in fp32; the notes say so.
#[test]
fn norm_weights_that_do_not_survive_are_counted() {
    let folder = copy_of(&family("gemma"));
    let source = SafetensorsSource::open_folder(&family("gemma")).unwrap();
    let tiny = half::bf16::from_f32(1.37e-6).to_le_bytes();
    let tensors: Vec<(String, Vec<u64>, Vec<u8>)> = source
        .names()
        .map(|name| {
            let mut bytes = source.read_whole(name).unwrap();
            if name == "model.norm.weight" {
                bytes[..2].copy_from_slice(&tiny);
            }
            (name.to_owned(), source.meta(name).unwrap().shape.clone(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let shape = shape.iter().map(|&dim| dim as usize).collect();
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape, bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let (_, report) = convert(folder.path(), &ConvertOptions::default());
    assert_eq!(report.notes, [ConvertNote::RoundedNorms { num_values: 1, dtype: DType::F32 }]);
}

#[test]
fn a_checkpoint_of_nemo_becomes_a_folder_with_a_configuration_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let nemo = format!("{FIXTURE}/hf_llama_converted_bf16_torch_dist.nemo");
    let back = folder.path().join("hf");
    export_huggingface(Path::new(&nemo), &back, &ConvertOptions::default()).unwrap();
    insta::assert_snapshot!("exported_config", fs::read_to_string(back.join("config.json")).unwrap());
    let text = fs::read_to_string(back.join("tokenizer_config.json")).unwrap();
    insta::assert_snapshot!("exported_tokenizer_config", text);
    let (old, new) = (
        SafetensorsSource::open_folder(Path::new(FIXTURE)).unwrap(),
        SafetensorsSource::open_folder(&back).unwrap(),
    );
    for tensor in old.names() {
        let old = crate::convert_dtype::convert(&old.read_whole(tensor).unwrap(), DType::F32, DType::BF16);
        assert!(old == new.read_whole(tensor).unwrap(), "{tensor}");
    }
}

#[test]
fn large_models_are_cut_into_shards() {
    let source = SafetensorsSource::open_folder(&family("llama31")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("hf");
    let options = WriteOptions::default();
    let report = write_hf_folder(&output, &[], &source, &options, 12_000).unwrap();
    let mut names: Vec<_> = fs::read_dir(&output)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names.len(), 7);
    assert_eq!(names[0], "model-00001-of-00006.safetensors");
    let sharded = SafetensorsSource::open_folder(&output).unwrap();
    for name in source.names() {
        assert!(source.mapped_bytes(name) == sharded.mapped_bytes(name), "{name}");
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(output.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(report.tensor_bytes));
}

#[test]
fn only_folders_of_models_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("hf");
    let replace = ConvertOptions { overwrite: Overwrite::Replace, ..ConvertOptions::default() };
    fs::create_dir(&output).unwrap();
    let error = export_huggingface(&family("llama31"), &output, &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, FormatError::OutputExists { .. }));
    export_huggingface(&family("llama31"), &output, &replace).unwrap();
    export_huggingface(&family("gemma"), &output, &replace).unwrap();
    assert_eq!(config_of(&output)["model_type"], "gemma");
    fs::remove_file(output.join("config.json")).unwrap();
    let error = export_huggingface(&family("gemma"), &output, &replace).unwrap_err();
    assert!(matches!(error, FormatError::Unsupported { .. }));
    assert!(output.join("model.safetensors").is_file());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
