//! What configurations say of an adapter: whether it is a plain LoRA, its rank, and what its product is multiplied by.

use hydra_config::Node;
use serde_json::Value;

use super::refused;
use crate::FormatError;

/// `alpha` and the rank that it is divided by, where they are stated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scaling {
    pub(super) alpha: Option<f64>,
    pub(super) dim: Option<u64>,
}

impl Scaling {
    /// What the product of factors of this rank is multiplied by. Adapters of 2023 state no alpha and are added as they are.
    pub(super) fn of_rank(self, rank: u64, file: &str, name: &str) -> Result<f32, FormatError> {
        if let Some(dim) = self.dim.filter(|&dim| dim != rank) {
            let reason = format!("it has rank {rank}, and `{file}` states {dim}");
            return Err(FormatError::bad_tensor(name, reason));
        }
        Ok(self.alpha.map_or(1.0, |alpha| (alpha / rank as f64) as f32))
    }
}

/// The `peft` section of NeMo 1.
pub(super) fn of_nemo(peft: Option<&Node>, file: &str) -> Result<Scaling, FormatError> {
    let get = |key: &str| peft.and_then(|peft| peft.get(key)).filter(|value| **value != Node::Null);
    if let Some(scheme) = get("peft_scheme")
        && scheme.as_str() != Some("lora")
    {
        return Err(refused(file, &format!("whose `peft.peft_scheme` is `{}`", shown(scheme))));
    }
    if let Some(tied @ Node::Bool(true)) = get("lora_tuning.weight_tying") {
        return Err(refused(file, &format!("whose `peft.lora_tuning.weight_tying` is `{}`", shown(tied))));
    }
    let variant = get("lora_tuning.variant").and_then(Node::as_str).unwrap_or("nemo");
    if !["nemo", "canonical"].contains(&variant) {
        return Err(refused(file, &format!("whose `peft.lora_tuning.variant` is `{variant}`")));
    }
    Ok(Scaling {
        alpha: number(get("lora_tuning.alpha"), "peft.lora_tuning.alpha", file)?,
        dim: rank(get("lora_tuning.adapter_dim"), "peft.lora_tuning.adapter_dim", file)?,
    })
}

/// A class of NeMo 2 or Megatron-Bridge with its fields; `key` is where it stands.
pub(super) fn of_class(class: &str, fields: &Node, key: &str, file: &str) -> Result<Scaling, FormatError> {
    let name = class.rsplit('.').next().unwrap_or(class);
    if !["LoRA", "CanonicalLoRA"].contains(&name) {
        return Err(refused(file, &format!("whose `{key}` is a `{name}`")));
    }
    let get = |field: &str| fields.get(field).filter(|value| **value != Node::Null);
    let alpha = number(get("alpha"), &format!("{key}.alpha"), file)?;
    let dim = rank(get("dim"), &format!("{key}.dim"), file)?;
    match (alpha, dim) {
        (Some(_), Some(_)) => Ok(Scaling { alpha, dim }),
        _ => Err(FormatError::BadConfig {
            file: file.to_owned(),
            reason: format!(
                "its `{key}` has no `alpha` and `dim`, on which the scale of the adapter depends"
            ),
        }),
    }
}

/// The LoRA object of NeMo 2's `io.json`, the graph of Python objects that a training consists of: its class and its
/// fields.
pub(super) fn of_io_json(text: &[u8], file: &str) -> Result<Option<(String, Node)>, FormatError> {
    let bad = |reason: String| FormatError::BadConfig { file: file.to_owned(), reason };
    let document: Value = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
    let objects = document.get("objects").and_then(Value::as_object);
    let mut found = None;
    for object in objects.into_iter().flat_map(serde_json::Map::values) {
        let text_of = |key: &str| object.get("type")?.get(key)?.as_str();
        let (Some(module), Some(name)) = (text_of("module"), text_of("name")) else { continue };
        if !module.contains(".peft.") {
            continue;
        }
        let mut fields = Node::empty_map();
        for item in object.get("items").and_then(Value::as_array).into_iter().flatten() {
            let Some(path) = item.get(0).and_then(Value::as_str) else { continue };
            let Some(field) = path.split('\'').nth(1) else { continue };
            let value = item.get(1).filter(|value| value.get("type").and_then(Value::as_str) == Some("leaf"));
            if let Some(number) = value.and_then(|value| value.get("value")).and_then(Value::as_f64) {
                fields.set(field, Node::Float(number));
            }
        }
        let object = (name.to_owned(), fields);
        // An object may stand there more than once.
        if found.as_ref().is_some_and(|other| *other != object) {
            return Err(bad("it has several objects of `peft` that differ, expected one".to_owned()));
        }
        found = Some(object);
    }
    Ok(found)
}

fn number(value: Option<&Node>, key: &str, file: &str) -> Result<Option<f64>, FormatError> {
    let Some(value) = value else { return Ok(None) };
    match value.as_f64().filter(|number| number.is_finite()) {
        Some(number) => Ok(Some(number)),
        None => Err(FormatError::BadConfig {
            file: file.to_owned(),
            reason: format!("the key `{key}` is `{}`, expected a number", shown(value)),
        }),
    }
}

fn rank(value: Option<&Node>, key: &str, file: &str) -> Result<Option<u64>, FormatError> {
    let Some(value) = value else { return Ok(None) };
    let whole =
        |number: f64| (number >= 1.0 && number.fract() == 0.0 && number < 1e9).then_some(number as u64);
    match value.as_f64().and_then(whole) {
        Some(rank) => Ok(Some(rank)),
        None => Err(FormatError::BadConfig {
            file: file.to_owned(),
            reason: format!("the key `{key}` is `{}`, expected a whole number from 1", shown(value)),
        }),
    }
}

fn shown(value: &Node) -> String {
    value.to_yaml().trim().to_owned()
}
