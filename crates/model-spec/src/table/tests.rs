use super::*;
use crate::test_models::{ROWS as TABLE_ROWS, gpt, gpt_oss, llama, mixed, moe};
use crate::{AttentionRule, BlockStyle, LocalLayers, UniformSpec};

fn shown(model: &ModelSpec) -> String {
    let line = |tensor: TensorSpec| {
        format!("{} {:?} {:?}; {}", tensor.name, tensor.shape(), tensor.shard, tensor.because.needs_it())
    };
    model.tensors().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn tensors_of_a_llama() {
    let model = UniformSpec { num_layers: 1, ..llama() }.spec(TABLE_ROWS);
    insta::assert_snapshot!(shown(&model), @r"
    model.embedding.word_embeddings.weight [48, 16] Rows; every model of this kind has it
    model.decoder.layers.0.self_attention.linear_qkv.layer_norm_weight [16] Replicated; every model of this kind has it
    model.decoder.layers.0.self_attention.linear_qkv.weight [48, 16] Rows; every model of this kind has it
    model.decoder.layers.0.self_attention.linear_proj.weight [16, 24] Columns; every model of this kind has it
    model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight [16] Replicated; a block without `parallel_attention` needs it
    model.decoder.layers.0.mlp.linear_fc1.weight [48, 16] RowsOfHalves; every model of this kind has it
    model.decoder.layers.0.mlp.linear_fc2.weight [16, 24] Columns; every model of this kind has it
    model.decoder.final_layernorm.weight [16] Replicated; every model of this kind has it
    model.output_layer.weight [48, 16] Rows; `share_embeddings_and_output_weights: false` needs it
    ");
}

#[test]
fn tensors_of_a_gpt() {
    let model = UniformSpec { num_layers: 1, ..gpt() }.spec(TABLE_ROWS);
    insta::assert_snapshot!(shown(&model), @r"
    model.embedding.word_embeddings.weight [48, 16] Rows; every model of this kind has it
    model.embedding.position_embeddings.weight [16, 16] Replicated; `position_embedding_type: learned_absolute` needs it
    model.decoder.layers.0.self_attention.linear_qkv.layer_norm_weight [16] Replicated; every model of this kind has it
    model.decoder.layers.0.self_attention.linear_qkv.layer_norm_bias [16] Replicated; `normalization: layernorm` needs it, `rmsnorm` has none
    model.decoder.layers.0.self_attention.linear_qkv.weight [48, 16] Rows; every model of this kind has it
    model.decoder.layers.0.self_attention.linear_qkv.bias [48] Rows; `bias: true` needs it
    model.decoder.layers.0.self_attention.linear_proj.weight [16, 24] Columns; every model of this kind has it
    model.decoder.layers.0.self_attention.linear_proj.bias [16] Replicated; `bias: true` needs it
    model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight [16] Replicated; a block without `parallel_attention` needs it
    model.decoder.layers.0.mlp.linear_fc1.layer_norm_bias [16] Replicated; `normalization: layernorm` needs it, `rmsnorm` has none
    model.decoder.layers.0.mlp.linear_fc1.weight [24, 16] Rows; every model of this kind has it
    model.decoder.layers.0.mlp.linear_fc1.bias [24] Rows; `bias: true` needs it
    model.decoder.layers.0.mlp.linear_fc2.weight [16, 24] Columns; every model of this kind has it
    model.decoder.layers.0.mlp.linear_fc2.bias [16] Replicated; `bias: true` needs it
    model.decoder.final_layernorm.weight [16] Replicated; every model of this kind has it
    model.decoder.final_layernorm.bias [16] Replicated; `normalization: layernorm` needs it, `rmsnorm` has none
    model.output_layer.bias [48] Rows; `output_layer_bias: true` needs it
    ");
}

#[test]
fn tensors_of_experts() {
    let model = moe().spec(TABLE_ROWS);
    let lines = shown(&model);
    let of_experts = lines.lines().filter(|line| line.contains("layers.1.mlp.")).collect::<Vec<_>>();
    insta::assert_snapshot!(of_experts.join("\n"), @r"
    model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight [16] Replicated; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.router.weight [3, 16] Replicated; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.router.expert_bias [3] Replicated; `moe_router_enable_expert_bias: true` needs it
    model.decoder.layers.1.mlp.shared_experts.linear_fc1.weight [16, 16] RowsOfHalves; `moe_shared_expert_intermediate_size` needs it
    model.decoder.layers.1.mlp.shared_experts.linear_fc2.weight [16, 8] Columns; `moe_shared_expert_intermediate_size` needs it
    model.decoder.layers.1.mlp.shared_experts.gate_weight [1, 16] Replicated; `moe_shared_expert_gate: true` needs it
    model.decoder.layers.1.mlp.experts.local_experts.0.linear_fc1.weight [24, 16] RowsOfHalves; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.experts.local_experts.0.linear_fc2.weight [16, 12] Columns; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.experts.local_experts.1.linear_fc1.weight [24, 16] RowsOfHalves; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.experts.local_experts.1.linear_fc2.weight [16, 12] Columns; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight [24, 16] RowsOfHalves; `num_moe_experts` and `moe_layer_freq` give the layer experts
    model.decoder.layers.1.mlp.experts.local_experts.2.linear_fc2.weight [16, 12] Columns; `num_moe_experts` and `moe_layer_freq` give the layer experts
    ");
}

#[test]
fn norms_of_heads_are_as_long_as_a_head_and_whole_on_every_rank() {
    let added = |spec: UniformSpec| {
        let plain: Vec<TensorSpec> = spec.spec(TABLE_ROWS).tensors().collect();
        let normed = UniformSpec { num_layers: 1, qk_layernorm: true, ..spec }.spec(TABLE_ROWS);
        let lines = shown(&normed);
        let is_new = |line: &&str| !plain.iter().any(|tensor| line.starts_with(&format!("{} ", tensor.name)));
        lines.lines().filter(is_new).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(added(llama()), @r"
    model.decoder.layers.0.self_attention.q_layernorm.weight [6] Replicated; `qk_layernorm: true` needs it
    model.decoder.layers.0.self_attention.k_layernorm.weight [6] Replicated; `qk_layernorm: true` needs it
    ");
    insta::assert_snapshot!(added(gpt()), @r"
    model.decoder.layers.0.self_attention.q_layernorm.weight [6] Replicated; `qk_layernorm: true` needs it
    model.decoder.layers.0.self_attention.q_layernorm.bias [6] Replicated; `normalization: layernorm` needs it, `rmsnorm` has none
    model.decoder.layers.0.self_attention.k_layernorm.weight [6] Replicated; `qk_layernorm: true` needs it
    model.decoder.layers.0.self_attention.k_layernorm.bias [6] Replicated; `normalization: layernorm` needs it, `rmsnorm` has none
    ");
}

#[test]
fn outputs_have_norms_of_their_own_where_the_model_says_so() {
    let model = UniformSpec { num_layers: 1, post_layernorms: true, ..llama() }.spec(TABLE_ROWS);
    let lines = shown(&model);
    let of_posts: Vec<&str> = lines.lines().filter(|line| line.contains("post_layernorm.")).collect();
    insta::assert_snapshot!(of_posts.join("\n"), @r"
    model.decoder.layers.0.self_attention.linear_proj.post_layernorm.weight [16] Replicated; `post_layernorms: true` needs it, as `name: megatron_gemma2` does
    model.decoder.layers.0.mlp.linear_fc2.post_layernorm.weight [16] Replicated; `post_layernorms: true` needs it, as `name: megatron_gemma2` does
    ");
}

#[test]
fn local_layers_see_less_and_may_rotate_otherwise() {
    let local = |rotary_base| {
        let local = LocalLayers { tokens: 4, is_local: vec![false, true], rotary_base };
        let attention = AttentionRule { local: Some(local), ..AttentionRule::default() };
        UniformSpec { num_layers: 3, attention, ..llama() }.spec(TABLE_ROWS)
    };
    let seen = |model: &ModelSpec| -> Vec<_> {
        let attention = model.layers.iter().map(|layer| layer.attention.clone().unwrap());
        attention.map(|part| (part.local_tokens, part.rotary.unwrap().rotary_base)).collect()
    };
    let base = seen(&llama().spec(TABLE_ROWS))[0].1;
    assert_eq!(seen(&local(None)), [(None, base), (Some(4), base), (None, base)]);
    assert_eq!(seen(&local(Some(77.0))), [(None, base), (Some(4), 77.0), (None, base)]);
}

#[test]
fn layers_have_the_tensors_of_their_own_shape() {
    let model = mixed();
    let of_layer = |idx| model.tensors().filter(move |tensor| tensor.id.layer == Some(idx));
    let modules = |idx| of_layer(idx).map(|tensor| tensor.id.module).collect::<Vec<_>>();
    use Module::{Fc1, Fc2, InputNorm, MlpNorm, Proj, Qkv};
    assert_eq!(modules(0), [InputNorm, Qkv, Proj, MlpNorm, Fc1, Fc2]);
    assert_eq!(modules(1), [InputNorm, Qkv, Proj]);
    assert_eq!(modules(2), [MlpNorm, Fc1, Fc2], "there is no norm of attention to share");
    let rows = |idx| of_layer(idx).find(|tensor| tensor.id.module == Qkv).unwrap().shape()[0];
    assert_eq!((rows(0), rows(3)), ((4 + 2 * 2) * 6, (4 + 2 * 4) * 6));
}

#[test]
fn what_a_model_lacks_names_the_setting() {
    let check = |spec: UniformSpec, id: TensorId, setting: &str| {
        assert_eq!(spec.spec(TABLE_ROWS).tensor(id).unwrap_err().setting(), setting, "{id:?}");
    };
    use Part::{Bias, Weight};
    let shared = || UniformSpec { block_style: BlockStyle::ParallelSharedNorm, ..gpt() };
    check(gpt(), TensorId::outside(Module::Output, Weight), "`share_embeddings_and_output_weights: false`");
    check(llama(), TensorId::outside(Module::Output, Bias), "`output_layer_bias: true`");
    check(llama(), TensorId::in_layer(0, Module::InputNorm, Bias), "`normalization: layernorm`");
    check(
        llama(),
        TensorId::in_layer(0, Module::Fc2, Bias),
        "`bias: true`, or `qkv_bias: true` for those of `linear_qkv` alone",
    );
    check(shared(), TensorId::in_layer(1, Module::MlpNorm, Bias), "`new_decoder_architecture: true`");
    check(
        llama(),
        TensorId::outside(Module::PositionEmbeddings, Weight),
        "`position_embedding_type: learned_absolute`",
    );
    check(llama(), TensorId::in_layer(0, Module::QNorm, Weight), "`qk_layernorm: true`");
    check(llama(), TensorId::in_layer(2, Module::Qkv, Weight), "a layer of another kind");
    let experts = "more `num_moe_experts`, and a `moe_layer_freq` that gives the layer experts";
    check(llama(), TensorId::in_layer(0, Module::Router, Weight), experts);
    check(moe(), TensorId::in_expert(0, 0, Module::ExpertFc1, Weight), experts);
    check(moe(), TensorId::in_expert(1, 3, Module::ExpertFc1, Weight), experts);
    check(moe(), TensorId::in_layer(1, Module::ExpertFc1, Weight), "a layer of another kind");
    let dense = "`num_moe_experts: null`, or a `moe_layer_freq` that gives the layer no experts";
    check(moe(), TensorId::in_layer(1, Module::Fc1, Weight), dense);
    let mut plain = moe();
    if let Some(layers) = &mut plain.moe {
        layers.experts.shared = None;
        layers.experts.router.has_expert_bias = false;
    }
    let check_plain =
        |module, part, setting| check(plain.clone(), TensorId::in_layer(1, module, part), setting);
    check_plain(Module::SharedFc1, Weight, "a `moe_shared_expert_intermediate_size`");
    check_plain(Module::SharedGate, Weight, "a `moe_shared_expert_intermediate_size`");
    check_plain(Module::ExpertBias, Bias, "`moe_router_enable_expert_bias: true`");
}

#[test]
fn names_are_read_as_they_are_written() {
    let normed = UniformSpec { qk_layernorm: true, post_layernorms: true, ..gpt() };
    for model in [
        llama().spec(TABLE_ROWS),
        gpt().spec(TABLE_ROWS),
        normed.spec(TABLE_ROWS),
        moe().spec(TABLE_ROWS),
        gpt_oss().spec(TABLE_ROWS),
        mixed(),
    ] {
        for tensor in model.tensors() {
            assert_eq!(parse_name(&tensor.name), Some(tensor.id));
            let gated = model.layers[0].mlp().unwrap().activation.gated;
            assert_eq!(shard_of(&tensor.name, gated), Some(tensor.shard), "{}", tensor.name);
        }
    }
    for name in [
        "",
        "model.decoder.layers.",
        "model.decoder.layers.0",
        "model.decoder.layers.00.mlp.linear_fc1.weight",
        "model.decoder.layers.+1.mlp.linear_fc1.weight",
        "model.decoder.layers.99999999999999999999.mlp.linear_fc1.weight",
        "model.decoder.layers.0.mlp.linear_fc1.weights",
        "model.decoder.layers.0.mlp.experts.linear_fc1.weight",
        "model.decoder.layers.0.mlp.experts.local_experts.linear_fc1.weight",
        "model.decoder.layers.0.mlp.experts.local_experts.01.linear_fc1.weight",
        "model.decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.offset",
        "model.decoder.layers.0.mlp.experts.local_experts.1.self_attention.linear_qkv.weight",
        "model.decoder.layers.0.mlp.router.offset",
        "model.decoder.layers.0.self_attention.core_attention.softmax_bias",
        "mlp.experts.local_experts.1.linear_fc1.weight",
        "linear_fc1.weight",
        "mlp.linear_fc1.weight",
        "model.embedding.word_embeddings.bias",
        "model.decoder.layers.0.model.output_layer.weight",
    ] {
        assert_eq!(parse_name(name), None, "{name}");
    }
}

#[test]
fn norms_of_other_models_are_whole_and_the_rest_is_not_known() {
    let other_norm = "model.decoder.layers.0.pre_cross_attn_layernorm.weight";
    assert_eq!(shard_of(other_norm, false), Some(Shard::Replicated));
    assert_eq!(shard_of("model.decoder.layers.0.mlp.router.offset", false), None);
}

/// Under Megatron-Core's names: of layers with experts, their biases and the router's; a shared expert has none.
#[test]
fn tensors_of_sinks_and_biased_experts() {
    let model = gpt_oss().spec(TABLE_ROWS);
    let shape = |name: &str| {
        let tensor = model.tensor(parse_name(&format!("{LAYERS}1.{name}")).unwrap());
        tensor.map(|tensor| (tensor.shape(), tensor.shard)).map_err(Key::setting)
    };
    assert_eq!(shape("self_attention.core_attention.softmax_offset"), Ok((vec![4], Shard::Rows)));
    assert_eq!(shape("mlp.router.bias"), Ok((vec![3], Shard::Replicated)));
    let expert = |rest: &str| shape(&format!("{EXPERTS}2.{rest}"));
    assert_eq!(expert("linear_fc1.bias"), Ok((vec![24], Shard::RowsOfHalves)));
    assert_eq!(expert("linear_fc2.bias"), Ok((vec![16], Shard::Replicated)));
    let plain = moe().spec(TABLE_ROWS);
    for (name, setting) in [
        ("self_attention.core_attention.softmax_offset", "`softmax_type: learnable`"),
        ("mlp.router.bias", Key::Bias.setting()),
    ] {
        let id = parse_name(&format!("{LAYERS}1.{name}")).unwrap();
        assert_eq!(plain.tensor(id).unwrap_err().setting(), setting);
    }
}
