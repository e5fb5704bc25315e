//! Every activation, norm and position variant against the formulas written out in double precision, and the errors
//! of loading and of batches.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::{BACKENDS, MemorySource, Runner, max_difference, rows};
use model_core::{
    Activation, Backend, DecodeBatch, KvCache, LogitsRows, ModelConfig, ModelError, Nonlinearity,
    Normalization, PositionEmbedding, Precision, PrefillBatch, RawModelConfig,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const VOCAB_SIZE: u64 = 50;
/// What fp32 rounding may do; seen is 3e-6.
const MATCH: f32 = 2e-5;
/// What a change of formula must do at least.
const DIFFER: f32 = 1e-4;
const TOKENS: [u32; 9] = [3, 49, 0, 17, 17, 8, 31, 22, 5];

fn config(extra: &Value) -> ModelConfig {
    let mut keys = json!({
        "num_layers": 2, "hidden_size": 36, "ffn_hidden_size": 40, "num_attention_heads": 4, "kv_channels": 12,
        "encoder_seq_length": 48,
    });
    for (key, value) in extra.as_object().unwrap() {
        keys[key] = value.clone();
    }
    serde_json::from_value::<RawModelConfig>(keys).unwrap().try_into().unwrap()
}

/// Weights between -0.4 and 0.4 (gains around what makes them neutral), from a fixed linear congruence.
fn weights(config: &ModelConfig) -> MemorySource {
    let mut source = MemorySource::default();
    let mut state = 12_345_u64;
    let mut add = |name: &str, shape: &[u64], centre: f32| {
        let values = (0..shape.iter().product::<u64>())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                centre + ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.8
            })
            .collect::<Vec<_>>();
        source.insert(name, shape, &values);
    };
    let hidden = config.hidden_size as u64;
    let gain_centre = if config.zero_centered_gamma { 0.0 } else { 1.0 };
    let has_norm_bias = config.normalization == Normalization::LayerNorm;
    add("model.embedding.word_embeddings.weight", &[VOCAB_SIZE, hidden], 0.0);
    if config.position_embedding == PositionEmbedding::LearnedAbsolute {
        add("model.embedding.position_embeddings.weight", &[config.encoder_seq_length as u64, hidden], 0.0);
    }
    if !config.share_embeddings_and_output_weights {
        add("model.output_layer.weight", &[VOCAB_SIZE, hidden], 0.0);
    }
    add("model.decoder.final_layernorm.weight", &[hidden], gain_centre);
    if has_norm_bias {
        add("model.decoder.final_layernorm.bias", &[hidden], 0.0);
    }
    for layer in 0..config.num_layers {
        let linears = [
            ("self_attention.linear_qkv", config.qkv_size() as u64, hidden, config.qkv_bias),
            ("self_attention.linear_proj", hidden, config.query_size() as u64, config.bias),
            ("mlp.linear_fc1", config.fc1_size() as u64, hidden, config.bias),
            ("mlp.linear_fc2", hidden, config.ffn_hidden_size as u64, config.bias),
        ];
        for (module, out_features, in_features, has_bias) in linears {
            let prefix = format!("model.decoder.layers.{layer}.{module}");
            add(&format!("{prefix}.weight"), &[out_features, in_features], 0.0);
            if has_bias {
                add(&format!("{prefix}.bias"), &[out_features], 0.0);
            }
            if module.ends_with("qkv") || module.ends_with("fc1") {
                add(&format!("{prefix}.layer_norm_weight"), &[hidden], gain_centre);
                if has_norm_bias {
                    add(&format!("{prefix}.layer_norm_bias"), &[hidden], 0.0);
                }
            }
        }
    }
    source
}

/// The formulas of the model for one sequence, in double precision, without a cache.
struct Direct<'a> {
    config: &'a ModelConfig,
    source: &'a MemorySource,
}

impl Direct<'_> {
    fn logits(&self) -> Vec<Vec<f32>> {
        let config = self.config;
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
            let attended =
                self.attention(&self.linear(&normed, &format!("{prefix}self_attention.linear_qkv")));
            x += self.linear(&attended, &format!("{prefix}self_attention.linear_proj"));
            let normed = self.norm(&x, &format!("{prefix}mlp.linear_fc1.layer_norm_"));
            let activated =
                activation(&self.linear(&normed, &format!("{prefix}mlp.linear_fc1")), config.activation);
            x += self.linear(&activated, &format!("{prefix}mlp.linear_fc2"));
        }
        let hidden = self.norm(&x, "model.decoder.final_layernorm.");
        let output = if config.share_embeddings_and_output_weights {
            embedding
        } else {
            self.source.double("model.output_layer.weight")
        };
        rows(&hidden.matmul(&output.tr()).to_kind(Kind::Float).contiguous())
    }

    fn norm(&self, x: &Tensor, prefix: &str) -> Tensor {
        let mut gain = self.source.double(&format!("{prefix}weight"));
        if self.config.zero_centered_gamma {
            gain += 1.0;
        }
        let mean = |x: &Tensor| x.mean_dim(-1, true, Kind::Double);
        match self.config.normalization {
            Normalization::RmsNorm => x / (mean(&(x * x)) + self.config.layernorm_epsilon).sqrt() * gain,
            Normalization::LayerNorm => {
                let centred = x - mean(x);
                let variance = mean(&(&centred * &centred));
                centred / (variance + self.config.layernorm_epsilon).sqrt() * gain
                    + self.source.double(&format!("{prefix}bias"))
            }
        }
    }

    fn linear(&self, x: &Tensor, module: &str) -> Tensor {
        let product = x.matmul(&self.source.double(&format!("{module}.weight")).tr());
        let bias = format!("{module}.bias");
        if self.source.0.contains_key(&bias) { product + self.source.double(&bias) } else { product }
    }

    fn attention(&self, qkv: &Tensor) -> Tensor {
        let config = self.config;
        let (num_tokens, channels) = (TOKENS.len() as i64, config.kv_channels as i64);
        let queries_per_group = (config.num_attention_heads / config.num_query_groups) as i64;
        let grouped = qkv.view([num_tokens, config.num_query_groups as i64, queries_per_group + 2, channels]);
        let head = |group: i64, slot: i64| grouped.select(1, group).select(1, slot);
        let causal = Tensor::ones([num_tokens, num_tokens], (Kind::Bool, tch::Device::Cpu)).tril(0);
        let heads = (0..config.num_attention_heads as i64)
            .map(|query| {
                let group = query / queries_per_group;
                let rotated_query = self.rotate(&head(group, query % queries_per_group));
                let key = self.rotate(&head(group, queries_per_group));
                let scores = rotated_query.matmul(&key.tr()) / (channels as f64).sqrt();
                let scores = scores.masked_fill(&causal.logical_not(), f64::NEG_INFINITY);
                scores.softmax(-1, Kind::Double).matmul(&head(group, queries_per_group + 1))
            })
            .collect::<Vec<_>>();
        Tensor::cat(&heads, 1)
    }

    /// Element by element, as the papers have it.
    fn rotate(&self, x: &Tensor) -> Tensor {
        let PositionEmbedding::Rope(rope) = self.config.position_embedding else {
            return x.shallow_clone();
        };
        let (half, channels) = (rope.rotary_dims / 2, self.config.kv_channels);
        let mut values: Vec<f64> = Vec::<f64>::try_from(x.contiguous().view([-1])).unwrap();
        for (position, row) in values.chunks_mut(channels).enumerate() {
            for pair in 0..half {
                let mut freq = rope.rotary_base.powf(-(pair as f64) / half as f64);
                if rope.scale_positional_embedding {
                    let wavelength = std::f64::consts::TAU / freq;
                    let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
                    freq *= (1.0 - smooth) / 8.0 + smooth;
                }
                let (sin, cos) = (position as f64 / rope.seq_len_interpolation_factor * freq).sin_cos();
                let (first, second) = (row[pair], row[pair + half]);
                row[pair] = first * cos - second * sin;
                row[pair + half] = second * cos + first * sin;
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
        Nonlinearity::QuickGelu => x / ((x * -1.702).exp() + 1.0),
        Nonlinearity::Silu => x / ((-x).exp() + 1.0),
        Nonlinearity::Relu => x.maximum(&x.zeros_like()),
        Nonlinearity::SquaredRelu => x.maximum(&x.zeros_like()).pow_tensor_scalar(2.0),
    };
    if activation.gated {
        let half = x.size()[1] / 2;
        apply(&x.narrow(1, 0, half)) * x.narrow(1, half, half)
    } else {
        apply(x)
    }
}

fn assert_matches_formulas(extra: &Value) -> Vec<Vec<f32>> {
    let config = config(extra);
    let source = weights(&config);
    let expected = Direct { config: &config, source: &source }.logits();
    let [plain, fused] = BACKENDS.map(|backend| {
        let runner = Runner::new(config.clone(), &source, Precision::Fp32, backend);
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
        json!({ "activation": "gelu" }),
        json!({ "activation": "approx-gelu" }),
        json!({ "activation": "squared-relu" }),
        json!({ "activation": "geglu" }),
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
fn parameters_and_bytes_are_counted_once_for_a_shared_table() {
    let config = config(&json!({ "bias": false }));
    let source = weights(&config);
    let stored: u64 = source.0.values().map(|(meta, _)| meta.num_elems().unwrap()).sum();
    let model = Runner::new(config.clone(), &source, Precision::Fp32, Backend::Plain).unwrap().model;
    assert_eq!((model.num_params(), model.weight_bytes()), (stored, 4 * stored));
    assert_eq!(model.padded_vocab_size() as u64, VOCAB_SIZE);
    assert_eq!(KvCache::bytes_per_block(&config, Precision::Bf16), 2 * 2 * 4 * 12 * 32 * 2);
}

fn load_error(change: impl FnOnce(&mut MemorySource)) -> String {
    let config = config(&json!({}));
    let mut source = weights(&config);
    change(&mut source);
    Runner::new(config, &source, Precision::Fp32, Backend::Plain).err().unwrap().to_string()
}

#[test]
fn loading_names_the_tensor_that_does_not_fit() {
    let fc2 = "model.decoder.layers.1.mlp.linear_fc2.weight";
    assert_eq!(
        load_error(|source| source.insert(fc2, &[36, 39], &[0.0; 36 * 39])),
        format!("tensor `{fc2}` has shape [36, 39], the model needs [36, 40]")
    );
    assert_eq!(
        load_error(|source| drop(source.0.remove(fc2))),
        format!("the checkpoint has no tensor `{fc2}`")
    );
    assert_eq!(
        load_error(|source| {
            source.insert("model.decoder.layers.2.mlp.linear_fc2.weight", &[1], &[0.0]);
            source.insert("model.decoder.layers.0.mlp.linear_fc2._extra_state", &[1], &[0.0]);
        }),
        "the checkpoint holds 1 tensors that the config does not account for: \
         `model.decoder.layers.2.mlp.linear_fc2.weight`"
    );
    assert_eq!(
        load_error(|source| source.0.get_mut(fc2).unwrap().0.dtype = nemo_format::DType::I32),
        format!("tensor `{fc2}` holds int32, the model needs floating-point numbers")
    );
}

#[test]
fn contradictory_batches_are_refused() {
    let config = config(&json!({}));
    let mut runner = Runner::new(config.clone(), &weights(&config), Precision::Fp32, Backend::Plain).unwrap();
    let mut prefill = |tokens: &[u32], cu_seqlens: &[u32], tables: &[Vec<u32>]| {
        let batch = PrefillBatch {
            tokens: tokens.to_vec(),
            cu_seqlens: cu_seqlens.to_vec(),
            block_tables: tables.to_vec(),
            logits: LogitsRows::Last,
        };
        runner.model.prefill(&batch, &mut runner.cache).unwrap_err()
    };
    assert!(matches!(prefill(&[], &[0], &[]), ModelError::BadBatch { .. }));
    assert!(matches!(prefill(&[1, 2], &[0, 1], &[vec![0]]), ModelError::BadBatch { .. }));
    assert!(matches!(prefill(&[1, 2], &[0, 2, 2], &[vec![0], vec![1]]), ModelError::BadBatch { .. }));
    assert!(matches!(prefill(&[1, 2], &[0, 3, 2], &[vec![0], vec![1]]), ModelError::BadBatch { .. }));
    assert!(matches!(prefill(&[1, 2], &[0, 2], &[vec![]]), ModelError::BadBatch { .. }));
    assert!(matches!(prefill(&[1, 2], &[0, 2], &[vec![61]]), ModelError::BadBlock { block: 61, .. }));
    assert!(matches!(prefill(&[1, 50], &[0, 2], &[vec![0]]), ModelError::BadToken { token: 50, .. }));
    let long = vec![1; 49];
    assert!(matches!(prefill(&long, &[0, 49], &[vec![0, 1]]), ModelError::TooLong { actual: 49, limit: 48 }));
    let decode =
        DecodeBatch { tokens: vec![1, 2], context_lens: vec![3], block_tables: vec![vec![0], vec![1]] };
    assert!(runner.model.decode(&decode, &mut runner.cache).is_err());
}
