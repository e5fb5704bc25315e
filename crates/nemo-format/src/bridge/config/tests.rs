use std::fs;
use std::path::Path;

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/bridge/qwen3/iter_0000005");

fn document(edit: &dyn Fn(&mut Node)) -> Node {
    let text = fs::read_to_string(Path::new(FOLDER).join(CONFIG)).unwrap();
    let mut document = hydra_config::yaml::parse(&text, CONFIG).unwrap();
    edit(&mut document);
    document
}

fn config_of(edit: &dyn Fn(&mut Node)) -> Result<Node, String> {
    let archive = Archive::open(Path::new(FOLDER)).unwrap();
    model_config(&archive, &document(edit)).map_err(|error| error.to_string().replace(FOLDER, "…"))
}

#[test]
fn every_field_that_the_package_writes_is_known() {
    assert_eq!(unknown_keys(&document(&|_| {})), [""; 0]);
    let strange = document(&|document| document.set("model.logit_temper", Node::Int(2)));
    assert_eq!(unknown_keys(&strange), ["logit_temper"]);
}

#[test]
fn what_changes_the_numbers_is_refused_where_it_is_on() {
    for (key, _) in OFF {
        for value in [Node::Null, Node::Bool(false), Node::Int(0)] {
            assert!(
                config_of(&|document| document.set(&format!("model.{key}"), value.clone())).is_ok(),
                "{key}"
            );
        }
        for value in [Node::Int(1), Node::Float(0.5), Node::from("on"), Node::List(vec![Node::Int(1)])] {
            let error =
                config_of(&|document| document.set(&format!("model.{key}"), value.clone())).unwrap_err();
            assert!(error.contains(&format!("`model.{key}`")), "{error}");
        }
    }
}

#[test]
fn llama_3_1s_rule_and_scaled_embeddings_are_read() {
    let config = config_of(&|document| {
        document.set("model.rope_scaling", Node::Bool(true));
        document.set("model.rope_scaling_factor", Node::Float(32.0));
    });
    let config = config.unwrap();
    assert_eq!(config.get("scale_positional_embedding"), Some(&Node::Bool(true)));
    assert_eq!(config.get("rope_scaling.factor"), Some(&Node::Float(32.0)));
    let gemma = config_of(&|document| {
        document.set("model._target_", Node::from("a.b.GemmaModelProvider7B"));
        document.set("model.activation_func._target_", Node::from("megatron.core.activations.fast_gelu"));
    });
    let gemma = gemma.unwrap();
    assert_eq!(gemma.get("apply_embedding_scaling"), Some(&Node::Bool(true)));
    assert_eq!(gemma.get("activation"), Some(&Node::from("fast-geglu")));
    assert_eq!(gemma.get("openai_gelu"), Some(&Node::Bool(true)));
}

/// The fields that the providers of megatron-bridge 0.6 add or change.
#[test]
fn gemma_2_and_3_are_read_from_their_providers() {
    let shown = |config: Node| {
        let keys = [
            "apply_embedding_scaling",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "layernorm_zero_centered_gamma",
            "post_layernorms",
            "qk_layernorm",
            "query_pre_attn_scalar",
            "rotary_base",
            "rotary_base_local",
            "seq_len_interpolation_factor",
            "softmax_scale",
            "window_attn_skip_freq",
            "window_size",
        ];
        let line =
            |key: &str| Some(format!("{key}: {}", config.get(key)?.to_yaml().trim().replace('\n', " ")));
        keys.into_iter().filter_map(line).collect::<Vec<_>>().join("\n")
    };
    let pair = |one: i64, two: i64| Node::List(vec![Node::Int(one), Node::Int(two)]);
    let common = |document: &mut Node, class: &str, layers: &str| {
        document.set("model._target_", Node::Str(format!("megatron.bridge.models.gemma.{class}")));
        document.set("model.transformer_layer_spec._target_", Node::Str(format!("a.b.{layers}")));
        document.set("model.activation_func._target_", Node::from("megatron.core.activations.fast_gelu"));
        document.set("model.layernorm_zero_centered_gamma", Node::Bool(true));
    };
    let gemma2 = config_of(&|document| {
        common(document, "gemma2_provider.Gemma2ModelProvider2B", "gemma2_layer_spec");
        document.set("model.qk_layernorm", Node::Bool(false));
        document.set("model.query_pre_attn_scalar", Node::Int(256));
        document.set("model.attn_logit_softcapping", Node::Float(50.0));
        document.set("model.final_logit_softcapping", Node::Float(30.0));
        document.set("model.window_size", pair(4095, 0));
    });
    insta::assert_snapshot!(shown(gemma2.unwrap()), @r"
apply_embedding_scaling: true
attn_logit_softcapping: 50.0
final_logit_softcapping: 30.0
layernorm_zero_centered_gamma: true
post_layernorms: true
qk_layernorm: false
query_pre_attn_scalar: 256
rotary_base: 1000000
window_attn_skip_freq: 2
window_size: - 4095 - 0
");
    let gemma3 = |edit: &dyn Fn(&mut Node)| {
        config_of(&|document| {
            common(document, "gemma3_provider.Gemma3ModelProvider", "gemma3_layer_spec");
            document.set("model.rotary_base", pair(10_000, 1_000_000));
            document.set("model.rope_scaling_factor", Node::Float(8.0));
            document.set("model.softmax_scale", Node::Float(0.0625));
            document.set("model.window_size", Node::Int(1024));
            document.set("model.interleaved_attn_pattern", pair(5, 1));
            document.set("model.is_vision_language", Node::Bool(false));
            edit(document);
        })
    };
    insta::assert_snapshot!(shown(gemma3(&|_| {}).unwrap()), @r"
apply_embedding_scaling: true
layernorm_zero_centered_gamma: true
post_layernorms: true
qk_layernorm: true
rotary_base: 1000000
rotary_base_local: 10000
seq_len_interpolation_factor: 8.0
softmax_scale: 0.0625
window_attn_skip_freq: 6
window_size: - 1023 - 0
");
    let seen = gemma3(&|document| document.set("model.is_vision_language", Node::Bool(true))).unwrap_err();
    insta::assert_snapshot!(seen, @"`…/run_config.yaml` is not a model configuration: its `is_vision_language` is true, and models of text and images are not read");
    let plain = config_of(&|document| {
        document.set("model.transformer_layer_spec._target_", Node::from("a.b.gemma3_layer_spec"));
    });
    assert!(plain.unwrap_err().contains("`gemma3_layer_spec`"));
}

/// Newer classes hold a `TransformerConfig` instead of inheriting from it.
#[test]
fn a_transformer_inside_the_model_says_the_same() {
    let nested = config_of(&|document| {
        let mut inner = document.get("model").cloned().unwrap();
        let mut outer = Node::empty_map();
        outer.set("_target_", Node::from("megatron.training.models.gpt.GPTModelConfig"));
        for key in ["seq_length", "rotary_base", "vocab_size", "position_embedding_type", "rotary_percent"] {
            outer.set(key, inner.remove(key).unwrap());
        }
        outer.set("share_embeddings_and_output_weights", Node::Bool(false));
        outer.set("transformer", inner);
        document.set("model", outer);
    });
    assert_eq!(nested.unwrap(), config_of(&|_| {}).unwrap());
}

#[test]
fn partial_applications_name_their_function() {
    let spec = |function: &str| {
        let mut spec = Node::empty_map();
        spec.set("_target_", Node::from("functools.partial"));
        let mut argument = Node::empty_map();
        argument.set("_target_", Node::from(function));
        argument.set("_call_", Node::Bool(false));
        spec.set("_args_", Node::List(vec![argument]));
        config_of(&|document| document.set("model.transformer_layer_spec", spec.clone()))
    };
    assert!(spec("megatron.core.models.gpt.gpt_layer_specs.get_gpt_decoder_block_spec").is_ok());
    let error = spec("x.get_gpt_modelopt_spec").unwrap_err();
    insta::assert_snapshot!(error, @"`…/run_config.yaml`, whose `model.transformer_layer_spec` is `get_gpt_modelopt_spec` (a layer specification of its own), cannot be read: use a checkpoint trained without it");
}
