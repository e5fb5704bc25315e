//! Every family against `tests/fixtures/families`: canonical tensors as Python computes them, and the configuration.

use md5::{Digest, Md5};

use super::*;

const FAMILIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/families");
const NAMES: [&str; 35] = [
    "nemotron_nas",
    "cohere",
    "cohere_plus",
    "granite",
    "olmo2",
    "phi3",
    "phi3_plain",
    "qwen2_window",
    "qwen3_yarn",
    "stablelm",
    "stablelm_parallel",
    "starcoder2",
    "falcon40b",
    "falcon7b",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "gpt_neox",
    "gpt_neox_sequential",
    "gptj",
    "llama31",
    "llama32",
    "mistral",
    "mixtral",
    "nemotron",
    "olmoe",
    "qwen2",
    "qwen2_moe",
    "qwen2_tied",
    "qwen3",
    "qwen3_moe",
    "qwen3_tied",
];

pub(super) fn folder(name: &str) -> PathBuf {
    Path::new(FAMILIES).join(name)
}

#[test]
fn canonical_tensors_are_those_that_python_computes() {
    for name in NAMES {
        let options = ConvertOptions { dtype: Some(DType::F32), ..ConvertOptions::default() };
        let (converted, report) = convert(&folder(name), &options);
        let text = fs::read(folder(name).join("reference.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let expected = reference["canonical"].as_object().unwrap();
        assert_eq!(report.written.num_tensors, expected.len(), "{name}");
        for (tensor, expected) in expected {
            let meta = converted.tensors().meta(tensor).unwrap_or_else(|| panic!("{name}: no {tensor}"));
            assert_eq!(serde_json::to_value(&meta.shape).unwrap(), expected["shape"], "{name}: {tensor}");
            let bytes = converted.tensors().read_whole(tensor).unwrap();
            let digest: String = Md5::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, expected["md5"], "{name}: {tensor}");
        }
    }
}

/// What differs from the configuration of a plain Llama, for every family.
#[test]
fn the_configuration_of_each_family() {
    let (plain, _) = convert(Path::new(FIXTURE), &ConvertOptions::default());
    let plain = plain.model_config();
    for name in NAMES {
        let (converted, _) = convert(&folder(name), &ConvertOptions::default());
        let config = converted.model_config();
        let mut text = String::new();
        for path in config.leaf_paths() {
            if config.get(&path) != plain.get(&path) {
                let mut leaf = Node::empty_map();
                leaf.set("value", config.get(&path).unwrap().clone());
                text += &format!("{path}: {}", leaf.to_yaml().trim_start_matches("value: "));
            }
        }
        insta::assert_snapshot!(format!("family_{name}"), text);
    }
}

/// Files of `torch.save` in the place of safetensors, single and sharded, with the names and masks of old uploads.
#[test]
fn torch_files_become_the_same_model() {
    for name in ["gpt2", "llama32"] {
        let copy = copy_of(&folder(name));
        fs::remove_file(copy.path().join("model.safetensors")).unwrap();
        for entry in fs::read_dir(folder(&format!("{name}_bin"))).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        // The shards are fp16, in which the smallest weights have fewer digits.
        let options = ConvertOptions { dtype: Some(DType::F16), ..ConvertOptions::default() };
        let (expected, _) = convert(&folder(name), &options);
        let (converted, _) = convert(copy.path(), &options);
        let names: Vec<_> = expected.tensors().names().collect();
        assert_eq!(converted.tensors().names().count(), names.len());
        for tensor in names {
            let same = converted.tensors().read_whole(tensor).unwrap()
                == expected.tensors().read_whole(tensor).unwrap();
            assert!(same, "{name}: {tensor}");
        }
        fs::copy(folder(name).join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
        fs::write(copy.path().join("pytorch_model.bin"), "never read").unwrap();
        convert(copy.path(), &options);
    }
}

/// transformers 4 wrote `torch_dtype`, `rope_theta` and `rope_scaling` where 5 writes `dtype` and `rope_parameters`.
#[test]
fn both_spellings_of_a_configuration_say_the_same() {
    for name in [
        "falcon7b", "gemma", "gemma2", "gpt_neox", "llama31", "llama32", "mistral", "nemotron", "qwen2",
        "qwen3",
    ] {
        let copy = copy_of(&folder(name));
        edit_config(copy.path(), &|config| {
            let config = config.as_object_mut().unwrap();
            let dtype = config.remove("dtype").unwrap();
            config.insert("torch_dtype".into(), dtype);
            let mut rope = config.remove("rope_parameters").unwrap().as_object().unwrap().clone();
            let is_neox = name == "gpt_neox";
            let theta = rope.remove("rope_theta").unwrap();
            config.insert(if is_neox { "rotary_emb_base" } else { "rope_theta" }.into(), theta);
            if let Some(share) = rope.remove("partial_rotary_factor") {
                config.insert(if is_neox { "rotary_pct" } else { "partial_rotary_factor" }.into(), share);
            }
            let is_default = rope["rope_type"] == "default";
            config.insert(
                "rope_scaling".into(),
                if is_default { serde_json::Value::Null } else { rope.into() },
            );
            // The hub's name of the model, as `type_name` finds it for a folder that states none.
            config.insert("_name_or_path".into(), name.into());
        });
        let (expected, _) = convert(&folder(name), &ConvertOptions::default());
        let (converted, _) = convert(copy.path(), &ConvertOptions::default());
        assert_eq!(converted.model_config(), expected.model_config(), "{name}");
    }
}

/// transformers 4 wrote the two bases under keys of their own, and a pattern instead of the list of layers.
#[test]
fn both_spellings_of_a_gemma_3_say_the_same() {
    let copy = copy_of(&folder("gemma3"));
    let newer = |config: &mut serde_json::Value| config["layer_types"] = serde_json::Value::Null;
    edit_config(copy.path(), &|config| {
        newer(config);
        config["sliding_window_pattern"] = 2.into();
        config["_name_or_path"] = "gemma3".into();
        let rope = config.as_object_mut().unwrap().remove("rope_parameters").unwrap();
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"].clone();
        config["rope_theta"] = rope["full_attention"]["rope_theta"].clone();
        config["rope_scaling"] = serde_json::json!({"rope_type": "linear", "factor": 8.0});
    });
    let (expected, _) = convert(&folder("gemma3"), &ConvertOptions::default());
    let (converted, _) = convert(copy.path(), &ConvertOptions::default());
    assert_eq!(converted.model_config(), expected.model_config());
}
