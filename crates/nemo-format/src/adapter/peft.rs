//! LoRA adapters of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Keys and scales follow `peft/tuners/lora` of peft 0.21. Modules have the names of the model in transformers, of which
//! the tables of `convert` know what they are in Megatron-Core.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::base_model::BaseModel;
use super::{Adapter, Matrix, Pair, matrix, refused};
use crate::huggingface::{read_json, torch_files::TorchFileSource};
use crate::names::linear_of;
use crate::{FormatError, SafetensorsSource, TensorSource};

/// What makes a folder one of PEFT.
pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const TORCH_WEIGHTS: &str = "adapter_model.bin";
/// PEFT's wrapper around the model.
const WRAPPER: &str = "base_model.model.";

/// Keys that mean more than a plain LoRA unless they are null, false or empty.
const OFF: [&str; 18] = [
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "eva_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];
/// Keys that do not change what is added to a weight, or that are read here.
const KNOWN: [&str; 24] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];
/// Ways to draw the factors that leave the weights of the model as they are.
const PLAIN_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "lora"];

/// A checked `adapter_config.json`.
struct Config {
    file: String,
    values: Map<String, Value>,
}

/// Opens a folder of PEFT.
pub(super) fn open(folder: &Path, base: &BaseModel) -> Result<Adapter, FormatError> {
    let config = Config::open(folder)?;
    let source = open_weights(folder)?;
    let path = folder.display().to_string();
    let mut found: IndexMap<String, (Option<Matrix>, Option<Matrix>)> = IndexMap::new();
    for name in source.names() {
        let (module, part) = factor_of(name).ok_or_else(|| refused_tensor(&path, name))?;
        let pair = found.entry(module.to_owned()).or_default();
        let factor = if part == 'A' { &mut pair.0 } else { &mut pair.1 };
        *factor = Some(matrix(&*source, &path, name)?);
    }
    let pair = |(module, (down, up)): (String, (Option<Matrix>, Option<Matrix>))| {
        let target = linear_of(&module, base.is_gated).ok_or_else(|| {
            let what = format!(
                "whose module `{module}` is no linear layer that is known of a model like `{}`",
                base.name
            );
            refused(&path, &what)
        })?;
        let lacks = |part: &str| {
            FormatError::bad_tensor(&module, format!("`{path}` has one of its factors and no `{part}`"))
        };
        let down = down.ok_or_else(|| lacks("lora_A"))?;
        let up = up.ok_or_else(|| lacks("lora_B"))?;
        let (scale, alpha) = config.scale(&module, down.rows)?;
        Ok(Pair { target, name: module, down, up, scale, alpha: Some(alpha) })
    };
    let pairs = found.into_iter().map(pair).collect::<Result<_, FormatError>>()?;
    let trained_on = config.text("base_model_name_or_path").map(str::to_owned);
    Ok(Adapter { path, format: "Hugging Face PEFT", pairs, trained_on })
}

fn open_weights(folder: &Path) -> Result<Box<dyn TensorSource>, FormatError> {
    let [safe, torch] = [WEIGHTS, TORCH_WEIGHTS].map(|name| folder.join(name));
    if safe.is_file() {
        return Ok(Box::new(SafetensorsSource::open_file(&safe)?));
    }
    if torch.is_file() {
        return Ok(Box::new(TorchFileSource::open(folder, &[torch])?));
    }
    let member = format!("{WEIGHTS}` or `{TORCH_WEIGHTS}");
    Err(FormatError::MissingMember { path: folder.to_owned(), member })
}

/// `base_model.model.X.lora_A.weight` is factor `A` of the module `X`. Files that were saved without PEFT have the name of
/// the adapter behind the factor's.
fn factor_of(name: &str) -> Option<(&str, char)> {
    let name = name.strip_prefix(WRAPPER)?.strip_suffix(".weight")?;
    let name = name.strip_suffix(".default").unwrap_or(name);
    let of = |suffix: &str, factor: char| Some((name.strip_suffix(suffix)?, factor));
    of(".lora_A", 'A').or_else(|| of(".lora_B", 'B'))
}

fn refused_tensor(file: &str, name: &str) -> FormatError {
    const MEANINGS: [(&str, &str); 8] = [
        (
            "base_layer",
            "a copy of weights of its model, which `save_embedding_layers=False` leaves out when it is saved",
        ),
        ("lora_embedding", "a LoRA of the embedding"),
        ("magnitude", "a DoRA"),
        ("ia3", "an IA3 tuning"),
        ("prompt", "a prompt tuning"),
        ("lora_B.bias", "a LoRA with biases"),
        ("norm", "a norm that was trained, too"),
        (".bias", "a bias that was trained, too"),
    ];
    let meaning = MEANINGS.iter().find(|(part, _)| name.contains(part));
    let meaning = meaning.map_or("no factor of a LoRA", |(_, meaning)| meaning);
    refused(file, &format!("whose tensor `{name}` is {meaning}"))
}

impl Config {
    fn open(folder: &Path) -> Result<Self, FormatError> {
        let path = folder.join(CONFIG);
        let file = path.display().to_string();
        let Some(Value::Object(values)) = read_json(&path)? else {
            return Err(FormatError::BadConfig { file, reason: "it is not a JSON object".to_owned() });
        };
        let config = Self { file, values };
        config.check()?;
        Ok(config)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// Refuses everything but a plain LoRA.
    fn check(&self) -> Result<(), FormatError> {
        let refuse =
            |key: &str, value: &Value| Err(refused(&self.file, &format!("whose `{key}` is `{value}`")));
        match self.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            other => return refuse("peft_type", other.unwrap_or(&Value::Null)),
        }
        for (key, value) in &self.values {
            let is_off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(values) => values.is_empty(),
                Value::Object(values) => values.is_empty(),
                Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
            };
            let is_switch = OFF.contains(&key.as_str());
            if !is_off && (is_switch || !KNOWN.contains(&key.as_str())) {
                return refuse(key, value);
            }
        }
        match self.get("bias") {
            None => {}
            Some(Value::String(bias)) if bias == "none" => {}
            Some(bias) => return refuse("bias", bias),
        }
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(init)) if PLAIN_INITS.contains(&init.as_str()) => Ok(()),
            // PiSSA, OLoRA, CorDA and LoftQ leave another model beside the adapter.
            Some(init) => refuse("init_lora_weights", init),
        }
    }

    /// What the product of a module's factors is multiplied by, and the alpha that it follows from.
    fn scale(&self, module: &str, rank: u64) -> Result<(f32, f64), FormatError> {
        let stated = self.of_module("rank_pattern", "r", module)?;
        if stated != rank as f64 {
            let reason = format!("it has rank {rank}, and `{}` states {stated}", self.file);
            return Err(FormatError::bad_tensor(module, reason));
        }
        let alpha = self.of_module("alpha_pattern", "lora_alpha", module)?;
        let divisor = match self.get("use_rslora") {
            Some(Value::Bool(true)) => stated.sqrt(),
            _ => stated,
        };
        Ok(((alpha / divisor) as f32, alpha))
    }

    /// The value of the first key of a pattern, in the order of the file, that fits the module; else the general one.
    fn of_module(&self, pattern: &str, key: &str, module: &str) -> Result<f64, FormatError> {
        let bad = |reason: String| FormatError::BadConfig { file: self.file.clone(), reason };
        let patterns = self.get(pattern).and_then(Value::as_object);
        for (name, value) in patterns.into_iter().flatten() {
            if !is_plain(name) {
                let reason = format!(
                    "the key `{name}` of its `{pattern}` is a regular expression; write the module's name"
                );
                return Err(bad(reason));
            }
            if module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')) {
                let number = value.as_f64().filter(|value| value.is_finite());
                return number
                    .ok_or_else(|| bad(format!("`{pattern}.{name}` is `{value}`, expected a number")));
            }
        }
        let value = self.get(key).unwrap_or(&Value::Null);
        let number = value.as_f64().filter(|value| value.is_finite());
        number.ok_or_else(|| bad(format!("the key `{key}` is `{value}`, expected a number")))
    }
}

/// Whether a key of a pattern is the end of a module's name, rather than a regular expression that means more.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
