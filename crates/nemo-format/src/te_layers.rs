//! What the configuration of NeMo 1 means in layers that are not Megatron-Core's own.
//!
//! Two kinds of layers compute another function than the keys say: those that Transformer Engine has whole, and those of
//! NeMo before Megatron-Core. What these mean is said here in keys that mean it for all others.

use hydra_config::Node;

use crate::FormatError;
use crate::archive::CONFIG;

/// The layer specification of Megatron-Core's models whose layers are whole layers of Transformer Engine. Their tensors
/// have names of their own, which a written file no longer has.
pub(crate) const WHOLE_TE_LAYER: &str = "megatron_gpt_full_te_layer_autocast";

/// Settles `activation` of layers that read other keys, and says whether that changed the configuration. `is_legacy`: the
/// layers are those of NeMo before Megatron-Core.
///
/// # Errors
/// When such layers compute a function that no other layer has.
pub(crate) fn settle(config: &mut Node, is_legacy: bool) -> Result<bool, FormatError> {
    let flag = |key: &str| config.get(key).and_then(Node::as_bool);
    let name = config.get("activation").and_then(Node::as_str).unwrap_or("gelu");
    let is_te_layer = if is_legacy {
        flag("transformer_engine") == Some(true)
    } else {
        config.get("name").and_then(Node::as_str) == Some(WHOLE_TE_LAYER)
    };
    if is_te_layer {
        // NeMo gives the layer no activation (`transformer.py` line 1124, `gpt_full_te_layer_autocast_spec.py` line 223), so
        // it is Transformer Engine's `gelu`, which has the tanh form (`pytorch/transformer.py` line 344, `common/util/math.h`
        // line 28), whatever the keys of fusion say.
        let is_settled = flag("openai_gelu") == Some(true) || name != "gelu";
        if !is_settled {
            config.set("openai_gelu", Node::Bool(true));
            config.set("bias_activation_fusion", Node::Bool(false));
        }
        return Ok(!is_settled);
    }
    // `mlp.py` line 181: the key replaces every function that is looked for after it.
    let comes_first = ["gelu", "geglu", "fast-geglu", "approx-gelu"].contains(&name);
    if is_legacy && flag("onnx_safe") == Some(true) && flag("openai_gelu") != Some(true) && !comes_first {
        return Err(FormatError::BadConfig {
            file: CONFIG.to_owned(),
            reason: format!(
                "it has `onnx_safe: true` with `activation: {name}`, for which NeMo's layers before Megatron-Core compute the \
                 error-function GELU; remove the wrong one of the two keys"
            ),
        });
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(text: &str, is_legacy: bool) -> Result<(bool, Option<bool>), String> {
        let mut config = hydra_config::yaml::parse(text, "x").unwrap();
        let is_changed = settle(&mut config, is_legacy).map_err(|error| error.to_string())?;
        Ok((is_changed, config.get("openai_gelu").and_then(Node::as_bool)))
    }

    #[test]
    fn the_gelu_of_a_whole_layer_of_transformer_engine_is_the_tanh_form() {
        let legacy = "transformer_engine: true\nbias_activation_fusion: false\n";
        assert_eq!(settled(legacy, true), Ok((true, Some(true))));
        assert_eq!(settled(legacy, false), Ok((false, None)));
        let named = format!("name: {WHOLE_TE_LAYER}\nactivation: gelu\n");
        assert_eq!(settled(&named, false), Ok((true, Some(true))));
        assert_eq!(settled("activation: gelu\n", true), Ok((false, None)));
        assert_eq!(settled("transformer_engine: true\nactivation: fast-swiglu\n", true), Ok((false, None)));
    }

    #[test]
    fn a_function_that_another_key_replaces_is_refused() {
        let of = |activation: &str| settled(&format!("onnx_safe: true\nactivation: {activation}\n"), true);
        assert_eq!(of("gelu"), Ok((false, None)));
        insta::assert_snapshot!(of("squared-relu").unwrap_err(), @"`model_config.yaml` is not a model configuration: it has `onnx_safe: true` with `activation: squared-relu`, for which NeMo's layers before Megatron-Core compute the error-function GELU; remove the wrong one of the two keys");
        assert_eq!(settled("onnx_safe: true\nactivation: squared-relu\n", false), Ok((false, None)));
    }
}
