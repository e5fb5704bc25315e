//! Every activation, norm, position and block variant against the formulas written out in double precision.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::tiny::{VOCAB_SIZE, config, weights};
use common::{BACKENDS, MemorySource, Runner, max_difference, rows};
use model_core::{AttentionSwitches, Backend, Isa, LoadOptions, ModelConfig};
use model_spec::{
    Activation, BlockStyle, ExpertsSpec, Float, Nonlinearity, Normalization, Numerics, PositionEmbedding,
    RotaryPairing, RouterScore, ShardPlace,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// What fp32 rounding may do; seen is 3e-6.
const MATCH: f32 = 2e-5;
/// What a change of formula must do at least.
const DIFFER: f32 = 1e-4;
const TOKENS: [u32; 9] = [3, 49, 0, 17, 17, 8, 31, 22, 5];

/// The formulas of the model for one sequence, in double precision, without a cache.
struct Direct<'a> {
    config: &'a ModelConfig,
    source: &'a MemorySource,
}

impl Direct<'_> {
    fn logits(&self) -> Vec<Vec<f32>> {
        let config = &self.config.uniform;
        let ids = Tensor::from_slice(&TOKENS.map(i64::from));
        let embedding = self.source.double("model.embedding.word_embeddings.weight");
        let mut x = embedding.index_select(0, &ids);
        if config.position_embedding == PositionEmbedding::LearnedAbsolute {
            let table = self.source.double("model.embedding.position_embeddings.weight");
            x += table.narrow(0, 0, TOKENS.len() as i64);
        }
        if config.apply_embedding_scaling {
            x *= (config.hidden_size as f64).sqrt();
        }
        for layer in 0..config.num_layers {
            let prefix = format!("model.decoder.layers.{layer}.");
            let normed = self.norm(&x, &format!("{prefix}self_attention.linear_qkv.layer_norm_"));
            let qkv = self.linear(&normed, &format!("{prefix}self_attention.linear_qkv"));
            let attended = self.attention(&qkv, &format!("{prefix}self_attention."));
            let after_attention = &x + self.linear(&attended, &format!("{prefix}self_attention.linear_proj"));
            let own_norm = format!("{prefix}mlp.linear_fc1.layer_norm_");
            let normed = match config.block_style {
                BlockStyle::Sequential => self.norm(&after_attention, &own_norm),
                BlockStyle::ParallelSharedNorm => normed,
                BlockStyle::ParallelOwnNorm => self.norm(&x, &own_norm),
            };
            x = after_attention
                + match &config.moe {
                    Some(moe) if moe.is_moe[layer] => {
                        self.mixture(&normed, &format!("{prefix}mlp."), &moe.experts)
                    }
                    _ => self.mlp(&normed, &format!("{prefix}mlp.")),
                };
        }
        let hidden = self.norm(&x, "model.decoder.final_layernorm.");
        let output =
            if config.output.tied { embedding } else { self.source.double("model.output_layer.weight") };
        let mut logits = hidden.matmul(&output.tr());
        if config.output.bias {
            logits += self.source.double("model.output_layer.bias");
        }
        rows(&logits.to_kind(Kind::Float).contiguous())
    }

    fn norm(&self, x: &Tensor, prefix: &str) -> Tensor {
        let mut gain = self.source.double(&format!("{prefix}weight"));
        if self.config.uniform.norm.zero_centered_gamma {
            gain += 1.0;
        }
        let mean = |x: &Tensor| x.mean_dim(-1, true, Kind::Double);
        match self.config.uniform.norm.normalization {
            Normalization::RmsNorm => x / (mean(&(x * x)) + self.config.uniform.norm.epsilon).sqrt() * gain,
            Normalization::LayerNorm => {
                let centred = x - mean(x);
                let variance = mean(&(&centred * &centred));
                centred / (variance + self.config.uniform.norm.epsilon).sqrt() * gain
                    + self.source.double(&format!("{prefix}bias"))
            }
        }
    }

    fn linear(&self, x: &Tensor, module: &str) -> Tensor {
        let product = x.matmul(&self.source.double(&format!("{module}.weight")).tr());
        let bias = format!("{module}.bias");
        if self.source.0.contains_key(&bias) { product + self.source.double(&bias) } else { product }
    }

    fn mlp(&self, x: &Tensor, prefix: &str) -> Tensor {
        let activated =
            activation(&self.linear(x, &format!("{prefix}linear_fc1")), self.config.uniform.activation);
        self.linear(&activated, &format!("{prefix}linear_fc2"))
    }

    /// Every expert on every token, most of them with a weight of 0.
    fn mixture(&self, x: &Tensor, prefix: &str, experts: &ExpertsSpec) -> Tensor {
        let logits = self.linear(x, &format!("{prefix}router"));
        let (rule, dim) = (experts.router, -1);
        let scores = match rule.score {
            RouterScore::SoftmaxOfChosen => logits.shallow_clone(),
            RouterScore::SoftmaxOfAll => logits.softmax(dim, Kind::Double),
            RouterScore::Sigmoid => logits.sigmoid(),
        };
        let ranked = match rule.has_expert_bias {
            true => &scores + self.source.double(&format!("{prefix}router.expert_bias")),
            false => scores.shallow_clone(),
        };
        let (_, chosen) = ranked.topk(rule.topk as i64, dim, true, true);
        let of_chosen = scores.gather(dim, &chosen, false);
        let weights = match rule.score {
            RouterScore::SoftmaxOfChosen => of_chosen.softmax(dim, Kind::Double),
            RouterScore::Sigmoid if rule.topk > 1 => {
                &of_chosen / of_chosen.sum_dim_intlist(dim, true, Kind::Double)
            }
            RouterScore::SoftmaxOfAll | RouterScore::Sigmoid => of_chosen,
        };
        let weights = logits.zeros_like().scatter(dim, &chosen, &(weights * rule.scaling.unwrap_or(1.0)));
        let mut sum = x.zeros_like();
        for expert in 0..experts.num_experts {
            let output = self.mlp(x, &format!("{prefix}experts.local_experts.{expert}."));
            sum += output * weights.narrow(1, expert as i64, 1);
        }
        if let Some(shared) = experts.shared {
            let output = self.mlp(x, &format!("{prefix}shared_experts."));
            sum += match shared.has_gate {
                true => {
                    let gate = self.source.double(&format!("{prefix}shared_experts.gate_weight"));
                    output * x.matmul(&gate.tr()).sigmoid()
                }
                false => output,
            };
        }
        sum
    }

    fn attention(&self, qkv: &Tensor, prefix: &str) -> Tensor {
        let heads = self.config.uniform.heads;
        let (num_tokens, channels) = (TOKENS.len() as i64, heads.kv_channels as i64);
        let queries_per_group = heads.queries_per_group() as i64;
        let grouped = qkv.view([num_tokens, heads.num_query_groups as i64, queries_per_group + 2, channels]);
        // Of all query heads together, and of all key heads.
        let across = |start: i64, len: i64, name: &str| {
            let all = grouped.narrow(2, start, len).reshape([num_tokens, -1]);
            self.norm(&all, &format!("{prefix}{name}.")).view([num_tokens, -1, len, channels])
        };
        let head = |group: i64, slot: i64| {
            let head = grouped.select(1, group).select(1, slot);
            if self.config.uniform.attention.norm_across_heads && slot <= queries_per_group {
                return match slot < queries_per_group {
                    true => across(0, queries_per_group, "q_layernorm").select(1, group).select(1, slot),
                    false => across(slot, 1, "k_layernorm").select(1, group).select(1, 0),
                };
            }
            match self.config.uniform.qk_layernorm {
                true if slot < queries_per_group => self.norm(&head, &format!("{prefix}q_layernorm.")),
                true if slot == queries_per_group => self.norm(&head, &format!("{prefix}k_layernorm.")),
                _ => head,
            }
        };
        let causal = Tensor::ones([num_tokens, num_tokens], (Kind::Bool, tch::Device::Cpu)).tril(0);
        let attended = (0..heads.num_attention_heads as i64)
            .map(|query| {
                let group = query / queries_per_group;
                let rotated_query = self.rotate(&head(group, query % queries_per_group));
                let key = self.rotate(&head(group, queries_per_group));
                let scores = rotated_query.matmul(&key.tr()) / (channels as f64).sqrt();
                let scores = scores.masked_fill(&causal.logical_not(), f64::NEG_INFINITY);
                scores.softmax(-1, Kind::Double).matmul(&head(group, queries_per_group + 1))
            })
            .collect::<Vec<_>>();
        Tensor::cat(&attended, 1)
    }

    /// Element by element, as the papers have it.
    fn rotate(&self, x: &Tensor) -> Tensor {
        let PositionEmbedding::Rope(rope) = self.config.uniform.position_embedding else {
            return x.shallow_clone();
        };
        let (half, channels) = (rope.rotary_dims / 2, self.config.uniform.heads.kv_channels);
        let mut values: Vec<f64> = Vec::<f64>::try_from(x.contiguous().view([-1])).unwrap();
        for (position, row) in values.chunks_mut(channels).enumerate() {
            for pair in 0..half {
                let mut freq = rope.rotary_base.powf(-(pair as f64) / half as f64);
                if let Some(scaling) = rope.rope_scaling {
                    let [low, high] = [scaling.low_freq_factor, scaling.high_freq_factor];
                    let turns = scaling.original_max_position_embeddings * freq / std::f64::consts::TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    freq *= (1.0 - smooth) / scaling.factor + smooth;
                }
                let (sin, cos) = (position as f64 / rope.seq_len_interpolation_factor * freq).sin_cos();
                let [at_first, at_second] = match rope.pairing {
                    RotaryPairing::HalfSplit => [pair, pair + half],
                    RotaryPairing::Interleaved => [2 * pair, 2 * pair + 1],
                };
                let (first, second) = (row[at_first], row[at_second]);
                row[at_first] = first * cos - second * sin;
                row[at_second] = second * cos + first * sin;
            }
        }
        Tensor::from_slice(&values).view([-1, channels as i64])
    }
}

fn activation(x: &Tensor, activation: Activation) -> Tensor {
    let apply = |x: &Tensor| match activation.nonlinearity {
        Nonlinearity::Gelu => x * 0.5 * ((x / 2.0_f64.sqrt()).erf() + 1.0),
        Nonlinearity::GeluTanh => {
            let inner = (x + x.pow_tensor_scalar(3.0) * 0.044_715) * std::f64::consts::FRAC_2_PI.sqrt();
            x * 0.5 * (inner.tanh() + 1.0)
        }
        Nonlinearity::ClampedQuickGelu => {
            let x = x.clamp_max(7.0);
            &x * (&x * 1.702).sigmoid()
        }
        Nonlinearity::QuickGelu => x / ((x * -1.702).exp() + 1.0),
        Nonlinearity::Silu => x / ((-x).exp() + 1.0),
        Nonlinearity::Relu => x.maximum(&x.zeros_like()),
        Nonlinearity::SquaredRelu => x.maximum(&x.zeros_like()).pow_tensor_scalar(2.0),
    };
    if activation.gated {
        let half = x.size()[1] / 2;
        let multiplied = match activation.nonlinearity {
            Nonlinearity::ClampedQuickGelu => x.narrow(1, half, half).clamp(-7.0, 7.0) + 1.0,
            _ => x.narrow(1, half, half),
        };
        apply(&x.narrow(1, 0, half)) * multiplied
    } else {
        apply(x)
    }
}

fn assert_matches_formulas(extra: &Value) -> Vec<Vec<f32>> {
    let config = config(extra);
    let source = weights(&config);
    let expected = Direct { config: &config, source: &source }.logits();
    let [plain, fused] = BACKENDS.map(|backend| {
        let runner = Runner::new(config.clone(), &source, Float::Fp32, backend);
        let actual = runner.unwrap().all_logits(&TOKENS);
        let difference = max_difference(&actual, &expected);
        assert!(difference < MATCH, "{backend:?} {extra}: {difference}");
        actual
    });
    assert!(max_difference(&plain, &fused) < MATCH);
    plain
}

/// Each variant must match the formulas, and must differ from every other, or its key would have no effect.
fn assert_all_match_and_differ(variants: &[Value]) {
    let logits = variants.iter().map(assert_matches_formulas).collect::<Vec<_>>();
    for (idx, left) in logits.iter().enumerate() {
        for (other, right) in logits.iter().enumerate().skip(idx + 1) {
            let difference = max_difference(left, right);
            assert!(difference > DIFFER, "{} and {}: {difference}", variants[idx], variants[other]);
        }
    }
}

#[test]
fn activations_match_their_formulas() {
    assert_all_match_and_differ(&[
        json!({ "activation": "gelu", "bias_activation_fusion": false }),
        json!({ "activation": "approx-gelu" }),
        json!({ "activation": "squared-relu" }),
        json!({ "activation": "geglu", "bias_activation_fusion": false }),
        json!({ "activation": "swiglu" }),
        json!({ "activation": "reglu" }),
        json!({ "activation": "geglu", "openai_gelu": true }),
        json!({ "activation": "gelu", "openai_gelu": true }),
    ]);
}

#[test]
fn norms_match_their_formulas() {
    assert_all_match_and_differ(&[
        json!({ "normalization": "layernorm" }),
        json!({ "normalization": "layernorm", "layernorm_epsilon": 0.1 }),
        json!({ "normalization": "rmsnorm" }),
    ]);
    let _ = assert_matches_formulas(&json!({ "normalization": "layernorm1p" }));
    let _ = assert_matches_formulas(
        &json!({ "normalization": "rmsnorm", "layernorm_zero_centered_gamma": true }),
    );
}

#[test]
fn positions_match_their_formulas() {
    let rope = |extra: Value| {
        let mut keys =
            json!({ "position_embedding_type": "rope", "normalization": "rmsnorm", "bias": false });
        for (key, value) in extra.as_object().unwrap() {
            keys[key] = value.clone();
        }
        keys
    };
    assert_all_match_and_differ(&[
        json!({ "position_embedding_type": "learned_absolute" }),
        rope(json!({})),
        rope(json!({ "rotary_percentage": 0.5 })),
        rope(json!({ "rotary_base": 500 })),
        rope(json!({ "seq_len_interpolation_factor": 4 })),
        rope(json!({ "seq_len_interpolation_factor": 4, "rotary_percentage": 0.5, "num_query_groups": 2 })),
        // The frequencies of this base have wavelengths on all three sides of the rule.
        rope(json!({ "scale_positional_embedding": true })),
        rope(json!({
            "scale_positional_embedding": true,
            "rope_scaling": {
                "factor": 2.5, "low_freq_factor": 1.5, "high_freq_factor": 6, "original_max_position_embeddings": 64,
            },
        })),
        rope(json!({ "rotary_interleaved": true })),
        rope(json!({ "rotary_interleaved": true, "rotary_percentage": 0.5, "num_query_groups": 2 })),
        rope(json!({ "rotary_interleaved": true, "num_query_groups": 1, "bias": true })),
    ]);
}

#[test]
fn norms_of_heads_match_their_formulas() {
    let normed = |extra: Value| {
        let mut keys = json!({
            "position_embedding_type": "rope", "normalization": "rmsnorm", "bias": false, "num_query_groups": 2,
        });
        for (key, value) in extra.as_object().unwrap() {
            keys[key] = value.clone();
        }
        keys
    };
    assert_all_match_and_differ(&[
        normed(json!({})),
        normed(json!({ "qk_layernorm": true })),
        normed(json!({ "qk_layernorm": true, "qkv_bias": true })),
        normed(json!({ "qk_layernorm": true, "qk_layernorm_across_heads": true })),
        normed(json!({ "qk_layernorm": true, "qk_layernorm_across_heads": true, "num_query_groups": 4 })),
        normed(json!({ "qk_layernorm": true, "num_query_groups": 4 })),
        normed(json!({ "qk_layernorm": true, "layernorm_epsilon": 0.1 })),
        normed(json!({ "qk_layernorm": true, "rotary_percentage": 0.5 })),
        normed(json!({ "qk_layernorm": true, "normalization": "layernorm" })),
        // The gains are put in the order of the rows.
        normed(json!({ "qk_layernorm": true, "rotary_interleaved": true })),
        normed(json!({ "qk_layernorm": true, "rotary_interleaved": true, "rotary_percentage": 0.5 })),
    ]);
    let _ = assert_matches_formulas(&normed(
        json!({ "qk_layernorm": true, "layernorm_zero_centered_gamma": true }),
    ));
}

#[test]
fn experts_match_their_formulas() {
    let experts = |extra: Value| {
        let mut keys = json!({
            "position_embedding_type": "rope", "normalization": "rmsnorm", "bias": false, "activation": "swiglu",
            "num_moe_experts": 5, "moe_ffn_hidden_size": 20,
        });
        for (key, value) in extra.as_object().unwrap() {
            keys[key] = value.clone();
        }
        keys
    };
    assert_all_match_and_differ(&[
        experts(json!({ "num_moe_experts": 0 })),
        experts(json!({})),
        experts(json!({ "moe_router_topk": 1, "moe_router_pre_softmax": true })),
        experts(json!({ "moe_router_topk": 5 })),
        experts(json!({ "moe_router_pre_softmax": true })),
        experts(json!({ "moe_router_score_function": "sigmoid" })),
        experts(json!({ "moe_router_score_function": "sigmoid", "moe_router_topk": 1 })),
        experts(json!({ "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": true,
                        "moe_router_topk_scaling_factor": 2.5 })),
        experts(json!({ "moe_router_topk_scaling_factor": 0.5 })),
        experts(json!({ "moe_ffn_hidden_size": null })),
        experts(json!({ "moe_layer_freq": 2 })),
        experts(json!({ "moe_layer_freq": [0, 1] })),
        experts(json!({ "moe_shared_expert_intermediate_size": 12 })),
        experts(json!({ "moe_shared_expert_intermediate_size": 12, "moe_shared_expert_gate": true })),
        experts(json!({ "activation": "gelu", "moe_router_topk": 3 })),
    ]);
}

#[test]
fn heads_biases_and_embeddings_match_their_formulas() {
    assert_all_match_and_differ(&[
        json!({ "bias": true }),
        json!({ "bias": false }),
        json!({ "bias": false, "qkv_bias": true }),
        json!({ "bias": false, "num_query_groups": 2 }),
        json!({ "bias": false, "num_query_groups": 1 }),
        json!({ "bias": false, "share_embeddings_and_output_weights": false }),
        json!({ "bias": false, "apply_embedding_scaling": true }),
    ]);
}

#[test]
fn blocks_and_output_biases_match_their_formulas() {
    let customized = |keys: Value| json!({ "mcore_customization_config": keys });
    assert_all_match_and_differ(&[
        customized(json!({})),
        customized(json!({ "parallel_attention": true })),
        customized(json!({ "parallel_attention": true, "new_decoder_architecture": true })),
        json!({ "output_layer_bias": true, "share_embeddings_and_output_weights": false }),
        json!({ "output_layer_bias": true }),
        json!({ "name": "megatron_falcon_gpt", "bias": false, "position_embedding_type": "rope" }),
    ]);
}

#[test]
fn parameters_and_bytes_are_counted_once_for_a_shared_table() {
    count_parameters_and_bytes(&json!({ "bias": false }));
    count_parameters_and_bytes(&json!({
        "bias": false, "num_moe_experts": 3, "moe_layer_freq": 2, "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": true, "moe_shared_expert_intermediate_size": 12, "moe_shared_expert_gate": true,
    }));
}

fn count_parameters_and_bytes(keys: &Value) {
    let config = config(keys);
    let source = weights(&config);
    let stored: u64 = source.0.values().map(|(meta, _)| meta.num_elems().unwrap()).sum();
    let model = Runner::new(config.clone(), &source, Float::Fp32, Backend::Plain).unwrap().model;
    assert_eq!((model.num_params(), model.weight_bytes()), (stored, 4 * stored));
    assert_eq!(model.padded_vocab_size() as u64, VOCAB_SIZE);
    let plain = LoadOptions {
        numerics: Numerics::uniform(Float::Bf16),
        backend: Backend::Plain,
        device: tch::Device::Cpu,
        attention: AttentionSwitches::default(),
        isa: Isa::detect(),
    };
    let footprint = |options| {
        let spec = config.spec_of(&source);
        model_core::footprint(&spec, options, &ShardPlace::whole(&spec)).unwrap()
    };
    assert_eq!(footprint(plain).bytes_per_block(), 2 * 2 * 4 * 12 * 32 * 2);
    let fp32 = LoadOptions { numerics: Numerics::uniform(Float::Fp32), ..plain };
    assert_eq!(footprint(fp32).weight_bytes, model.weight_bytes());
    let bf16 = Runner::new(config.clone(), &source, Float::Bf16, Backend::Plain).unwrap().model;
    assert_eq!(footprint(plain).weight_bytes, bf16.weight_bytes());
    // A weight of e4m3 takes a byte, and each output four more. The CPU kernels keep the numbers in what they multiply.
    for (backend, numerics) in [Backend::Plain, Backend::Fused].into_iter().flat_map(|backend| {
        [(backend, plain.numerics.with_fp8_weights()), (backend, fp32.numerics.with_fp8_weights())]
    }) {
        let quantized = Runner::with_numerics(config.clone(), &source, numerics, backend).unwrap().model;
        let options = LoadOptions { numerics, backend, ..plain };
        match backend {
            Backend::Plain => assert_eq!(footprint(options).weight_bytes, quantized.weight_bytes()),
            Backend::Fused => {
                let held = LoadOptions { numerics: Numerics::uniform(numerics.compute), ..options };
                assert_eq!(footprint(options).weight_bytes, footprint(held).weight_bytes);
            }
        }
    }
    // The fused kernels' value panels have heads of whole multiples of 32.
    let fused = LoadOptions { backend: Backend::Fused, ..plain };
    assert_eq!(footprint(fused).bytes_per_block(), 2 * 4 * (12 + 32) * 32 * 2);
}
