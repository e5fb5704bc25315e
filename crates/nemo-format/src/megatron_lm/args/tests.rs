use std::path::Path;

use super::*;
use crate::torch_file::read_training;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/megatron_lm");

/// The arguments of a fixture, which the original parser made.
fn args_of(file: &str) -> Node {
    let bytes = std::fs::read(Path::new(FIXTURES).join(file)).unwrap();
    read_training(&bytes, "f").unwrap().args.unwrap()
}

fn gpt() -> Node {
    args_of("gpt/iter_0000007/mp_rank_00/model_optim_rng.pt")
}

fn section(args: &Node, model: Model) -> Result<Node, FormatError> {
    let folder = tempfile::tempdir().unwrap();
    model_config(&Archive::open(folder.path()).unwrap(), args, "FILE", model)
}

/// Every argument of Megatron-LM is read, refused, or listed.
#[test]
fn every_argument_is_known() {
    assert_eq!(unknown_arguments(&gpt()), [""; 0]);
    assert_eq!(unknown_arguments(&args_of("qwen2_tied/iter_0000007/common.pt")), [""; 0]);
    let mut args = gpt();
    args.set("my_own_scale", Node::Float(2.0));
    args.set("my_own_null", Node::Null);
    assert_eq!(unknown_arguments(&args), ["my_own_scale"]);
    let lines: Vec<&str> = INERT.lines().collect();
    assert!(lines.is_sorted() && lines.iter().all(|name| !name.is_empty()));
    for name in READ.iter().chain(RENAMED.iter().map(|(from, _)| from)) {
        assert!(!lines.contains(name), "{name} is read");
    }
}

/// Every argument that is not listed as without effect is given another value: the configuration is another, or it is
/// refused.
#[test]
fn every_other_argument_changes_the_model_or_is_refused() {
    // What only counts beside another argument, says where files are, or is checked against the files.
    const ELSEWHERE: [&str; 20] = [
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "merge_file",
        "num_query_groups",
        "onnx_safe",
        "openai_gelu",
        "quick_geglu",
        "rope_scaling_factor",
        "rotary_scaling_factor",
        "softmax_type",
        "tokenizer_model",
        "tokenizer_type",
        "vocab_file",
        "use_kitchen_attention",
        "qk_clip",
        "seq_length",
        "squared_relu",
        "swiglu",
        "add_position_embedding",
        "use_rotary_position_embeddings",
    ];
    let args = gpt();
    let plain = section(&args, Model::Core).unwrap();
    let inert: Vec<&str> = INERT.lines().collect();
    let mut num_changed = 0;
    for (key, value) in args.as_map().unwrap() {
        let is_of_moe = key.starts_with("moe_");
        if inert.contains(&key.as_str()) || ELSEWHERE.contains(&key.as_str()) || is_of_moe {
            continue;
        }
        let other = match value {
            Node::Bool(flag) => Node::Bool(!flag),
            Node::Int(number) => Node::Int(number * 2 + 1),
            Node::Float(number) => Node::Float(number * 2.0 + 0.25),
            Node::Str(_) => Node::from("other"),
            Node::List(_) => Node::List(Vec::new()),
            Node::Null => Node::Int(3),
            Node::Map(_) => continue,
        };
        let mut changed = args.clone();
        changed.set(key, other);
        let is_other = section(&changed, Model::Core).is_ok_and(|config| config == plain);
        assert!(!is_other, "{key} changes nothing");
        num_changed += 1;
    }
    assert!(num_changed > 25, "{num_changed}");
}

#[test]
fn activations_follow_the_model_and_its_fused_kernels() {
    let of = |edits: &[(&str, bool)], model| {
        let mut args = gpt();
        for (key, flag) in edits {
            args.set(key, Node::Bool(*flag));
        }
        let config = section(&args, model)?;
        let text = config.get("activation").and_then(Node::as_str).unwrap().to_owned();
        Ok::<_, FormatError>((text, config.get("openai_gelu").and_then(Node::as_bool).unwrap()))
    };
    let check = |edits: &[(&str, bool)], model, activation: &str, openai_gelu| {
        assert_eq!(of(edits, model).unwrap(), (activation.to_owned(), openai_gelu), "{edits:?}");
    };
    for model in [Model::Core, Model::Legacy] {
        check(&[], model, "gelu", true);
        check(&[("bias_gelu_fusion", false)], model, "gelu", false);
        check(&[("swiglu", true), ("bias_gelu_fusion", false)], model, "fast-swiglu", false);
        check(&[("squared_relu", true), ("bias_gelu_fusion", false)], model, "squared-relu", false);
    }
    check(&[("bias_gelu_fusion", false), ("openai_gelu", true)], Model::Legacy, "gelu", true);
    check(&[("onnx_safe", true)], Model::Legacy, "gelu", false);
    let error = of(&[("quick_geglu", true)], Model::Core).unwrap_err();
    insta::assert_snapshot!(error, @"`FILE` is not a model configuration: its `activation_func` is the gated function `quick_gelu`; supported are silu (gated), gelu, openai_gelu, fast_gelu, relu (gated), squared_relu and quick_gelu");
}

#[test]
fn arguments_of_several_versions() {
    let edited = |edits: &[(&str, Node)]| {
        let mut args = gpt();
        for (key, value) in edits {
            args.set(key, value.clone());
        }
        args
    };
    let get =
        |edits: &[(&str, Node)], key: &str| section(&edited(edits), Model::Core).unwrap().get(key).cloned();
    let flag = Node::Bool;
    assert_eq!(
        get(&[("norm_epsilon", Node::Float(0.25)), ("layernorm_epsilon", Node::Null)], "layernorm_epsilon"),
        Some(Node::Float(0.25))
    );
    assert_eq!(
        get(
            &[
                ("use_rotary_position_embeddings", flag(true)),
                ("position_embedding_type", Node::from("learned_absolute"))
            ],
            "position_embedding_type"
        ),
        Some(Node::from("rope"))
    );
    assert_eq!(
        get(
            &[
                ("add_position_embedding", flag(false)),
                ("position_embedding_type", Node::from("learned_absolute"))
            ],
            "position_embedding_type"
        ),
        Some(Node::from("none"))
    );
    assert_eq!(
        get(&[("group_query_attention", flag(true)), ("num_query_groups", Node::Int(2))], "num_query_groups"),
        Some(Node::Int(2))
    );
    assert_eq!(
        get(
            &[("group_query_attention", flag(false)), ("num_query_groups", Node::Int(2))],
            "num_query_groups"
        ),
        None
    );
    assert_eq!(get(&[("disable_bias_linear", flag(true))], "bias"), Some(flag(false)));
    let llama3 = [("use_rope_scaling", flag(true)), ("rope_scaling_factor", Node::Float(32.0))];
    assert_eq!(get(&llama3, "scale_positional_embedding"), Some(flag(true)));
    assert_eq!(get(&llama3, "rope_scaling.factor"), Some(Node::Float(32.0)));
    let experts = [("num_experts", Node::Int(4)), ("moe_router_topk", Node::Int(3))];
    assert_eq!(get(&experts, "num_moe_experts"), Some(Node::Int(4)));
    assert_eq!(get(&experts, "moe_router_topk"), Some(Node::Int(3)));
    let error =
        |key: &str, value: Node| section(&edited(&[(key, value)]), Model::Core).unwrap_err().to_string();
    insta::assert_snapshot!(error("spec", Node::List(vec![Node::from("my.module"), Node::from("layer")])), @"`FILE`, whose argument `spec` is `- my.module - layer` (a layer specification of its own), cannot be read: use a checkpoint trained without it");
    insta::assert_snapshot!(error("rotary_seq_len_interpolation_factor", Node::Int(2)), @"`FILE`, whose argument `rotary_seq_len_interpolation_factor` is `2` (divided positions, which some versions of Megatron-LM compute and others do not), cannot be read: use a checkpoint trained without it");
    insta::assert_snapshot!(error("qk_l2_norm", flag(true)), @"`FILE`, whose `args.qk_l2_norm` is `true` (a norm of queries and keys without gains), cannot be read: use a checkpoint trained without it");
    insta::assert_snapshot!(error("rope_type", Node::from("yarn")), @"`FILE`, whose argument `rope_type` is `yarn` (another rule of frequencies), cannot be read: use a checkpoint trained without it");
}
