//! What only Gemma 2 has of the families that are written: caps, a scale of its own, and windows in some of the layers.

use hydra_config::Node;
use model_spec::{LocalLayers, UniformSpec};
use serde_json::{Value, json};

use super::config::{NemoConfig, bad, refused};
use super::shown;
use crate::FormatError;
use crate::convert::arch::{ModelArch, inverse_square};

const WINDOW: &str = "window_size";
const SKIPS: &str = "window_attn_skip_freq";

/// Whether NeMo's name of the layers says it.
pub(super) fn is_named(config: &NemoConfig<'_>) -> bool {
    config.find("name").and_then(Node::as_str) == Some("megatron_gemma2")
}

/// Whether the outputs of attention and MLP have norms.
pub(super) fn is_meant(config: &NemoConfig<'_>) -> Result<bool, FormatError> {
    Ok(config.bool("post_layernorms")?.unwrap_or_else(|| is_named(config)))
}

/// A number, which Megatron-Core's own keys have first; 0 is none.
fn number(config: &NemoConfig<'_>, key: &str) -> Result<Option<f64>, FormatError> {
    let customized = config.f64(&format!("mcore_customization_config.{key}"))?;
    Ok(customized.or(config.f64(key)?).filter(|&number| number != 0.0))
}

/// Reads the keys into the architecture.
pub(super) fn read(config: &NemoConfig<'_>, arch: &mut ModelArch) -> Result<(), FormatError> {
    let rule = &mut arch.model.attention;
    rule.softcap = number(config, "attn_logit_softcapping")?;
    let of_scalar = number(config, "query_pre_attn_scalar")?.map(|scalar| 1.0 / scalar.sqrt());
    rule.scale = number(config, "softmax_scale")?.or(of_scalar);
    if rule.scale.is_none() {
        return Err(bad("the key `query_pre_attn_scalar` is missing, which a Gemma 2 needs".to_owned()));
    }
    rule.local = local_layers(config, arch.model.num_layers)?;
    arch.model.output.softcap = number(config, "final_logit_softcapping")?;
    Ok(())
}

fn local_layers(config: &NemoConfig<'_>, num_layers: usize) -> Result<Option<LocalLayers>, FormatError> {
    let Some(window) = config.find(WINDOW) else { return Ok(None) };
    let pair = window.as_list().unwrap_or_default();
    let tokens = match pair.iter().map(Node::as_f64).collect::<Option<Vec<f64>>>().as_deref() {
        Some([left, _]) if *left == -1.0 => return Ok(None),
        Some([left, right]) if *left >= 1.0 && left.fract() == 0.0 && *right == 0.0 => *left as usize + 1,
        _ => return Err(refused(&format!("{WINDOW} `{}`", shown(window)))),
    };
    let is_local: Vec<bool> = match config.find(SKIPS) {
        None if is_named(config) => (1..=num_layers).map(|layer| layer.is_multiple_of(2)).collect(),
        None => return Err(refused(&format!("{WINDOW} `{}` in every layer", shown(window)))),
        Some(Node::Int(every @ 1..)) => (1..=num_layers as i64).map(|layer| layer % every != 0).collect(),
        Some(Node::List(flags)) if flags.len() == num_layers => {
            flags.iter().map(|flag| flag.as_f64() == Some(1.0)).collect()
        }
        Some(other) => return Err(bad(format!("the key `{SKIPS}` is `{}`, expected a list", shown(other)))),
    };
    Ok(Some(LocalLayers { tokens, is_local, rotary_base: None }))
}

/// What `config.json` says of them.
pub(super) fn keys(model: &UniformSpec) -> Vec<(&'static str, Value)> {
    let scalar = model.attention.scale.map_or(model.heads.kv_channels as f64, inverse_square);
    let scalar = if scalar.fract() == 0.0 { json!(scalar as u64) } else { json!(scalar) };
    let local = model.attention.local.as_ref();
    let kind = |layer: usize| match local.and_then(|local| local.is_local.get(layer)) {
        Some(true) => "sliding_attention",
        _ => "full_attention",
    };
    vec![
        ("query_pre_attn_scalar", scalar),
        ("attn_logit_softcapping", json!(model.attention.softcap)),
        ("final_logit_softcapping", json!(model.output.softcap)),
        ("sliding_window", json!(local.map(|local| local.tokens))),
        ("layer_types", json!((0..model.num_layers).map(kind).collect::<Vec<_>>())),
    ]
}
