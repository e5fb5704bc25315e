//! Every key of a Hugging Face configuration is given other values: the logits are others, or it is refused, or it stands
//! in a list of keys that change no logits.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::Path;

use common::{Runner, fixture, max_difference};
use model_core::{Backend, ModelConfig, RawModelConfig};
use model_spec::Float;
use nemo_format::{Checkpoint, ConvertOptions, convert_checkpoint};
use serde_json::{Value, json};

const TOKENS: [u32; 7] = [3, 120, 40, 17, 17, 88, 31];
/// What a change of the numbers does at least.
const DIFFER: f32 = 1e-4;

/// Families, and the keys of each that change no logits, beside those of all.
const FAMILIES: [(&str, &[&str]); 25] = [
    ("nemotron_nas", &["intermediate_size", "pretraining_tp", "tie_word_embeddings", "torch_dtype"]),
    ("cohere", &[]),
    ("cohere_plus", &["tie_word_embeddings"]),
    ("granite", &[]),
    ("olmo2", &["tie_word_embeddings"]),
    ("phi3", &PHI3),
    ("phi3_plain", &PHI3),
    ("qwen2_window", &["max_window_layers", "tie_word_embeddings"]),
    ("qwen3_yarn", &WINDOWS),
    // One pair of dimensions rotates, whose frequency is 1 whatever the base.
    ("stablelm", &["hidden_dropout", "rope_parameters.rope_theta", "tie_word_embeddings"]),
    ("stablelm_parallel", &["hidden_dropout", "tie_word_embeddings"]),
    ("starcoder2", &["embedding_dropout", "residual_dropout", "sliding_window"]),
    ("gemma2", &[]),
    ("gpt_oss", &GPT_OSS),
    ("gpt_oss_mxfp4", &GPT_OSS_PACKED),
    // What transformers itself made of another key and does not read.
    ("gemma3", &["_sliding_window_pattern"]),
    ("llama31", &["pretraining_tp", "tie_word_embeddings"]),
    (
        "mixtral",
        &[
            "output_router_logits",
            "router_aux_loss_coef",
            "router_jitter_noise",
            "sliding_window",
            "tie_word_embeddings",
        ],
    ),
    ("olmoe", &["output_router_logits", "router_aux_loss_coef", "tie_word_embeddings"]),
    ("qwen2", &WINDOWS),
    ("qwen2_moe", &EXPERTS_EVERYWHERE),
    ("qwen2_tied", &WINDOWS),
    ("qwen3", &WINDOWS),
    ("qwen3_moe", &EXPERTS),
    ("qwen3_tied", &WINDOWS),
];

/// How a router is trained.
const GPT_OSS: [&str; 3] = ["output_router_logits", "router_aux_loss_coef", "tie_word_embeddings"];
const GPT_OSS_PACKED: [&str; 4] = [
    "output_router_logits",
    "quantization_config.modules_to_not_convert",
    "router_aux_loss_coef",
    "tie_word_embeddings",
];

/// Dropouts, and what counts for longer sequences. The length inside `rope_parameters` comes first.
const PHI3: [&str; 5] = [
    "embd_pdrop",
    "original_max_position_embeddings",
    "resid_pdrop",
    "sliding_window",
    "tie_word_embeddings",
];

/// Names, tokens, training, and how long a sequence may be.
const NEUTRAL: [&str; 10] = [
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "max_position_embeddings",
    "pad_token_id",
    "transformers_version",
    "use_cache",
];
/// A window needs all three, which a test of its own sets. `tie_word_embeddings` of an untied model is contradicted by its
/// weights, with a note.
const WINDOWS: [&str; 4] =
    ["max_window_layers", "sliding_window", "tie_word_embeddings", "use_sliding_window"];

/// The same, and how a router is trained.
const EXPERTS: [&str; 6] = [
    "max_window_layers",
    "output_router_logits",
    "router_aux_loss_coef",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
];

/// The same; no layer has an MLP of this width.
const EXPERTS_EVERYWHERE: [&str; 7] = [
    "intermediate_size",
    "max_window_layers",
    "output_router_logits",
    "router_aux_loss_coef",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
];

/// Logits of the folder with this configuration, or why there are none.
fn logits(folder: &Path, config: &Value) -> Result<Vec<Vec<f32>>, String> {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let archive = folder.join("converted.nemo");
    let _ = std::fs::remove_file(&archive);
    convert_checkpoint(folder, &archive, &ConvertOptions::default()).map_err(|error| error.to_string())?;
    let checkpoint = Checkpoint::open(&archive).unwrap();
    let raw = checkpoint.model_config().deserialize_into::<RawModelConfig>().unwrap();
    let config = ModelConfig::try_from(raw).map_err(|error| error.to_string())?;
    let runner = Runner::new(config, checkpoint.tensors(), Float::Fp32, Backend::Plain);
    Ok(runner.map_err(|error| error.to_string())?.all_logits(&TOKENS))
}

/// Values of the same kind that are others.
fn others(key: &str, value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap();
            vec![json!(number * 8.0 + 0.1)]
        }
        Value::Number(number) => {
            vec![json!(number.as_u64().unwrap() * 2 + 2)]
        }
        Value::String(_) => vec![json!("other")],
        Value::Null if key == "sliding_window" => vec![json!(4)],
        Value::Null => vec![json!(3)],
        // Layers by their numbers.
        Value::Array(values) if values.iter().all(Value::is_number) => {
            let other = json!([if values.contains(&json!(1)) { 0 } else { 1 }]);
            vec![other, json!(["other"])]
        }
        Value::Array(values) => {
            let mut changed = values.clone();
            let is_sliding = values[0] == "sliding_attention";
            changed[0] = json!(if is_sliding { "full_attention" } else { "sliding_attention" });
            vec![
                json!(changed),
                json!(vec!["other"; values.len()]),
                json!([values.clone(), values.clone()].concat()),
            ]
        }
        Value::Object(_) => Vec::new(),
    }
}

/// The configuration with one key changed, for every key and each of its other values.
fn changes(config: &Value) -> Vec<(String, Value)> {
    let mut changes = Vec::new();
    for (key, value) in config.as_object().unwrap() {
        let inner = if value.is_object() { self::changes(value) } else { Vec::new() };
        let inner = inner.into_iter().map(|(name, value)| (format!("{key}.{name}"), value));
        let own = others(key, value).into_iter().map(|value| (key.clone(), value));
        for (name, value) in own.chain(inner) {
            let mut changed = config.clone();
            changed[key] = value;
            changes.push((name, changed));
        }
    }
    changes
}

#[test]
fn every_key_changes_logits_or_is_refused_or_is_listed() {
    for (name, own) in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        let original = fixture(&format!("families/{name}"));
        for file in ["model.safetensors", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"] {
            if original.join(file).exists() {
                std::fs::copy(original.join(file), folder.path().join(file)).unwrap();
            }
        }
        let text = std::fs::read_to_string(original.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let expected = logits(folder.path(), &config).unwrap();
        let mut num_refused = 0;
        for (key, changed) in changes(&config) {
            // Of LongRoPE a factor follows from it.
            let is_length = key == "max_position_embeddings" && name == "phi3";
            let is_neutral = NEUTRAL.contains(&key.as_str()) && !is_length || own.contains(&key.as_str());
            match logits(folder.path(), &changed) {
                Ok(actual) => {
                    let difference = max_difference(&actual, &expected);
                    let is_other = difference > DIFFER;
                    assert_eq!(is_other, !is_neutral, "{name}: {key}: {difference}");
                }
                Err(error) => {
                    // A tied model has no other table to use.
                    assert!(!is_neutral || key == "tie_word_embeddings", "{name}: {key}: {error}");
                    num_refused += 1;
                }
            }
        }
        assert!(num_refused > 5, "{name}");
    }
}

/// transformers puts a window over layers from `max_window_layers` on, where no list says which.
#[test]
fn windows_of_qwen_are_computed_where_they_count() {
    for name in ["qwen2", "qwen3"] {
        let folder = tempfile::tempdir().unwrap();
        let original = fixture(&format!("families/{name}"));
        for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(original.join(file), folder.path().join(file)).unwrap();
        }
        let text = std::fs::read_to_string(original.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let plain = logits(folder.path(), &config).unwrap();
        let of = |edit: &dyn Fn(&mut Value)| {
            let mut config = config.clone();
            config.as_object_mut().unwrap().remove("layer_types");
            config["use_sliding_window"] = json!(true);
            edit(&mut config);
            logits(folder.path(), &config)
        };
        let windowed = |window: Value, first_layer: u64| {
            of(&|config| {
                config["sliding_window"] = window.clone();
                config["max_window_layers"] = json!(first_layer);
            })
            .unwrap()
        };
        assert!(max_difference(&windowed(json!(4), 1), &plain) > DIFFER, "{name}");
        assert_eq!(windowed(json!(4), 2), plain);
        assert_eq!(windowed(Value::Null, 0), plain);
        assert_eq!(windowed(json!(7), 0), plain);
        // 4,096 is the default of a key that is not there.
        let default = of(&|config| {
            config.as_object_mut().unwrap().remove("sliding_window");
            config["max_window_layers"] = json!(0);
        });
        assert_eq!(default.unwrap(), plain);
        let listed = |kinds: Value, window: Value| {
            of(&|config| {
                config["layer_types"] = kinds.clone();
                config["sliding_window"] = window.clone();
            })
        };
        let second = json!(["full_attention", "sliding_attention"]);
        assert_eq!(listed(second.clone(), json!(4)).unwrap(), windowed(json!(4), 1));
        let error = listed(second, Value::Null).unwrap_err();
        assert!(error.contains("`layer_types` with `sliding_attention` without a window"), "{error}");
        assert_eq!(listed(json!(["full_attention", "full_attention"]), json!(4)).unwrap(), plain);
    }
}
