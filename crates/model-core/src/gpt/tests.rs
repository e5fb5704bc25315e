//! A model whose layers all differ, against its formulas written out slowly in double precision.

use model_spec::{
    Activation, AttentionSpec, BlockStyle, ExpertsSpec, FfnSpec, Float, HeadLayout, LayerSpec, MlpSpec,
    MoeSpec, Nonlinearity, NormSpec, Normalization, RotaryConfig, RotaryPairing, RouterScore, RouterSpec,
    SharedExpertSpec, TableRows,
};
use serde_json::json;
use tch::Device;

use super::*;
use crate::backend::cpu::CpuLoader;
use crate::backend::plain::PlainLoader;
use crate::kinds::StoredFloat;
use crate::layers::row_parallel::RowParallel;
use crate::layers::{Attention, AttentionPart, Ffn, Layer, Mlp, OutputRule};
use crate::model_ranks::Reduction;
use crate::ops::{
    LinearRole, LinearSource, Loader, Norm, SharedExperts, StoredLinearWeight, WeightBytes,
    refuse_experts_on_gpu,
};
use crate::weights::Head;
use crate::{AttentionSwitches, Isa, RawModelConfig};

const HIDDEN_SIZE: usize = 24;
const VOCAB_SIZE: usize = 17;
/// What fp32 rounding may do; seen is 2e-6.
const MATCH: f64 = 2e-5;
const TOKENS: [u32; 11] = [3, 16, 0, 7, 7, 8, 1, 12, 5, 9, 2];
/// Of which the last ones are decoded one by one.
const NUM_DECODED: usize = 3;

type Rows = Vec<Vec<f64>>;

/// `[out_features, in_features]` and `[out_features]`.
struct StoredLinear {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    in_features: usize,
}

struct StoredNorm {
    spec: NormSpec,
    gain: Vec<f32>,
    bias: Vec<f32>,
}

struct StoredLayer {
    spec: LayerSpec,
    attention: Option<(StoredNorm, StoredLinear, StoredLinear)>,
    mlp: Option<(StoredNorm, StoredLinear, StoredLinear)>,
}

struct StoredModel {
    embeddings: StoredLinear,
    layers: Vec<StoredLayer>,
    final_norm: StoredNorm,
}

/// Numbers between -0.4 and 0.4, from a fixed linear congruence.
struct Numbers(u64);

impl Numbers {
    fn list(&mut self, len: usize) -> Vec<f32> {
        let next = |_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.8
        };
        (0..len).map(next).collect()
    }

    fn linear(&mut self, out_features: usize, in_features: usize, has_bias: bool) -> StoredLinear {
        StoredLinear {
            weight: self.list(out_features * in_features),
            bias: has_bias.then(|| self.list(out_features)),
            in_features,
        }
    }

    fn norm(&mut self, spec: NormSpec) -> StoredNorm {
        let gain = self.list(HIDDEN_SIZE).into_iter().map(|value| value + 1.0).collect();
        StoredNorm { spec, gain, bias: self.list(HIDDEN_SIZE) }
    }

    fn layer(&mut self, spec: LayerSpec) -> StoredLayer {
        let attention = spec.attention.as_ref().map(|attention| {
            let heads = attention.heads;
            (
                self.norm(attention.norm),
                self.linear(heads.qkv_size(), HIDDEN_SIZE, attention.qkv_bias),
                self.linear(HIDDEN_SIZE, heads.query_size(), attention.proj_bias),
            )
        });
        let mlp = spec.mlp().map(|mlp| {
            (
                self.norm(mlp.norm),
                self.linear(mlp.fc1_size(), HIDDEN_SIZE, mlp.bias),
                self.linear(HIDDEN_SIZE, mlp.ffn_hidden_size, mlp.bias),
            )
        });
        StoredLayer { spec, attention, mlp }
    }
}

const RMS: NormSpec =
    NormSpec { normalization: Normalization::RmsNorm, zero_centered_gamma: false, epsilon: 1e-5 };
const LAYER_NORM: NormSpec =
    NormSpec { normalization: Normalization::LayerNorm, zero_centered_gamma: false, epsilon: 1e-3 };
const ROTARY: RotaryConfig = RotaryConfig {
    rotary_dims: 8,
    pairing: RotaryPairing::HalfSplit,
    rotary_base: 100.0,
    seq_len_interpolation_factor: 1.0,
    rope_scaling: None,
    factors: None,
};

fn attention(num_attention_heads: usize, norm: NormSpec, rotary: Option<RotaryConfig>) -> AttentionSpec {
    let heads = HeadLayout { num_attention_heads, num_query_groups: 2, kv_channels: 8 };
    AttentionSpec {
        heads,
        norm,
        qkv_bias: num_attention_heads == 4,
        proj_bias: num_attention_heads != 4,
        qk_norm: None,
        norm_across_heads: false,
        norm_per_head: false,
        rotary,
        window: None,
        local_tokens: None,
        softcap: None,
        scale: heads.default_scale(),
        post_norm: None,
        has_sinks: false,
    }
}

fn mlp(ffn_hidden_size: usize, norm: NormSpec, nonlinearity: Nonlinearity, gated: bool) -> FfnSpec {
    let bias = norm.normalization == Normalization::LayerNorm;
    let activation = Activation { nonlinearity, gated };
    FfnSpec::Dense(MlpSpec { ffn_hidden_size, activation, norm, bias, post_norm: None })
}

/// A layer with nothing in it.
fn plain_layer() -> LayerSpec {
    LayerSpec {
        attention: None,
        ffn: None,
        join: BlockStyle::Sequential,
        attention_linear: None,
        has_pre_norms: true,
        residual_multiplier: None,
    }
}

/// Both parts, an MLP alone, attention alone, and both ways to compute them beside each other; no two parts alike.
fn stored_model() -> StoredModel {
    let slower = RotaryConfig { rotary_dims: 4, rotary_base: 500.0, ..ROTARY };
    let layers = [
        LayerSpec {
            attention: Some(attention(4, LAYER_NORM, Some(ROTARY))),
            ffn: Some(mlp(20, RMS, Nonlinearity::Relu, false)),
            join: BlockStyle::Sequential,
            ..plain_layer()
        },
        LayerSpec {
            attention: None,
            ffn: Some(mlp(32, RMS, Nonlinearity::Silu, true)),
            join: BlockStyle::Sequential,
            ..plain_layer()
        },
        LayerSpec {
            attention: Some(AttentionSpec { scale: 0.7, ..attention(6, RMS, None) }),
            ffn: None,
            join: BlockStyle::Sequential,
            ..plain_layer()
        },
        LayerSpec {
            attention: Some(attention(2, RMS, Some(slower))),
            ffn: Some(mlp(12, LAYER_NORM, Nonlinearity::SquaredRelu, false)),
            join: BlockStyle::ParallelOwnNorm,
            ..plain_layer()
        },
        LayerSpec {
            attention: Some(attention(4, LAYER_NORM, Some(ROTARY))),
            ffn: Some(mlp(16, RMS, Nonlinearity::QuickGelu, true)),
            join: BlockStyle::ParallelSharedNorm,
            ..plain_layer()
        },
    ];
    let mut numbers = Numbers(12_345);
    StoredModel {
        embeddings: numbers.linear(VOCAB_SIZE, HIDDEN_SIZE, false),
        layers: layers.into_iter().map(|spec| numbers.layer(spec)).collect(),
        final_norm: numbers.norm(RMS),
    }
}

/// The formulas.
impl StoredModel {
    /// Logits after every token, without a cache.
    fn logits(&self, tokens: &[u32]) -> Rows {
        let row_of = |&token: &u32| {
            let weight = &self.embeddings.weight[token as usize * HIDDEN_SIZE..][..HIDDEN_SIZE];
            weight.iter().copied().map(f64::from).collect()
        };
        let mut x: Rows = tokens.iter().map(row_of).collect();
        for layer in &self.layers {
            let before = x.clone();
            let mut attention_input = None;
            if let (Some((norm, qkv, proj)), Some(spec)) = (&layer.attention, &layer.spec.attention) {
                let normed = norm.apply(&before);
                add(&mut x, &proj.apply(&attend(spec, &qkv.apply(&normed))));
                attention_input = Some(normed);
            }
            if let (Some((norm, fc1, fc2)), Some(spec)) = (&layer.mlp, layer.spec.mlp()) {
                let input = match layer.spec.join {
                    BlockStyle::Sequential => norm.apply(&x),
                    BlockStyle::ParallelOwnNorm => norm.apply(&before),
                    BlockStyle::ParallelSharedNorm => attention_input.unwrap(),
                };
                add(&mut x, &fc2.apply(&activate(spec.activation, &fc1.apply(&input))));
            }
        }
        self.embeddings.apply(&self.final_norm.apply(&x))
    }
}

impl StoredLinear {
    fn apply(&self, x: &Rows) -> Rows {
        let output = |row: &Vec<f64>, (out, weight): (usize, &[f32])| {
            let product: f64 = row.iter().zip(weight).map(|(x, &weight)| x * f64::from(weight)).sum();
            product + self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[out]))
        };
        let weights = || self.weight.chunks(self.in_features).enumerate();
        x.iter().map(|row| weights().map(|weight| output(row, weight)).collect()).collect()
    }
}

impl StoredNorm {
    fn apply(&self, x: &Rows) -> Rows {
        let is_rms = self.spec.normalization == Normalization::RmsNorm;
        let normalize = |row: &Vec<f64>| {
            let len = row.len() as f64;
            let mean = if is_rms { 0.0 } else { row.iter().sum::<f64>() / len };
            let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / len;
            let scaled = row.iter().map(|value| (value - mean) / (variance + self.spec.epsilon).sqrt());
            let gained = scaled.zip(&self.gain).map(|(value, &gain)| value * f64::from(gain));
            gained
                .zip(&self.bias)
                .map(|(value, &bias)| if is_rms { value } else { value + f64::from(bias) })
                .collect()
        };
        x.iter().map(normalize).collect()
    }
}

fn add(x: &mut Rows, other: &Rows) {
    for (x, other) in x.iter_mut().flatten().zip(other.iter().flatten()) {
        *x += other;
    }
}

fn activate(activation: Activation, x: &Rows) -> Rows {
    let function = |x: f64| match activation.nonlinearity {
        Nonlinearity::Silu => x / (1.0 + (-x).exp()),
        Nonlinearity::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Nonlinearity::Relu => x.max(0.0),
        Nonlinearity::SquaredRelu => x.max(0.0).powi(2),
        other => panic!("{other:?} is not in this model"),
    };
    let apply = |row: &Vec<f64>| match activation.gated {
        true => {
            let (gate, up) = row.split_at(row.len() / 2);
            gate.iter().zip(up).map(|(&gate, up)| function(gate) * up).collect()
        }
        false => row.iter().map(|&x| function(x)).collect(),
    };
    x.iter().map(apply).collect()
}

fn attend(spec: &AttentionSpec, qkv: &Rows) -> Rows {
    let HeadLayout { num_attention_heads, kv_channels, .. } = spec.heads;
    let per_group = spec.heads.queries_per_group();
    let part = |token: usize, group: usize, slot: usize| {
        let start = (group * (per_group + 2) + slot) * kv_channels;
        qkv[token][start..start + kv_channels].to_vec()
    };
    let rotated = |token: usize, group: usize, slot: usize| match &spec.rotary {
        Some(rotary) => rotate(rotary, token, part(token, group, slot)),
        None => part(token, group, slot),
    };
    let head_output = |token: usize, head: usize| {
        let (group, slot) = (head / per_group, head % per_group);
        let query = rotated(token, group, slot);
        let weights: Vec<f64> = (0..=token)
            .map(|earlier| {
                let key = rotated(earlier, group, per_group);
                let product: f64 = query.iter().zip(&key).map(|(query, key)| query * key).sum();
                (product * spec.scale).exp()
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut output = vec![0.0; kv_channels];
        for (earlier, weight) in weights.iter().enumerate() {
            let values = part(earlier, group, per_group + 1);
            output.iter_mut().zip(values).for_each(|(output, value)| *output += weight / sum * value);
        }
        output
    };
    (0..qkv.len())
        .map(|token| (0..num_attention_heads).flat_map(|head| head_output(token, head)).collect())
        .collect()
}

fn rotate(rotary: &RotaryConfig, position: usize, mut head: Vec<f64>) -> Vec<f64> {
    let half = rotary.rotary_dims / 2;
    for pair in 0..half {
        let freq = rotary.rotary_base.powf(-(pair as f64) / half as f64);
        let (sin, cos) = (position as f64 * freq).sin_cos();
        let (first, second) = (head[pair], head[pair + half]);
        head[pair] = first * cos - second * sin;
        head[pair + half] = second * cos + first * sin;
    }
    head
}

/// The same model for a backend.
impl StoredModel {
    fn load<L: Loader>(&self, mut loader: L) -> Gpt<L::State> {
        let layers = self.layers.iter().enumerate();
        let layers = layers.map(|(layer_idx, layer)| layer.load(layer_idx, &mut loader)).collect();
        let weights = Weights {
            word_embeddings: None,
            position_embeddings: None,
            layers,
            head: Some(Head {
                final_norm: self.final_norm.load(),
                output: self.embeddings.load(&mut loader, LinearRole::Output),
            }),
            num_params: 0,
        };
        let keys = json!({
            "num_layers": self.layers.len(), "hidden_size": HIDDEN_SIZE, "num_attention_heads": 2, "kv_channels": 8,
            "encoder_seq_length": 64,
        });
        let config: ModelConfig = serde_json::from_value::<RawModelConfig>(keys).unwrap().try_into().unwrap();
        let rows =
            TableRows { vocab: self.embeddings.weight.len() as u64 / HIDDEN_SIZE as u64, positions: 0 };
        let layers: Vec<LayerSpec> = self.layers.iter().map(|layer| layer.spec.clone()).collect();
        let model = ModelSpec { layers: layers.into(), ..config.spec(rows) };
        let shares = Shares::new(&model, &ShardPlace::whole(&model)).unwrap();
        Gpt::new(config, weights, loader.finish().unwrap(), shares).unwrap()
    }
}

impl StoredLayer {
    fn load<L: Loader>(&self, layer_idx: usize, loader: &mut L) -> Layer<L::State> {
        let attention = self.attention.as_ref().map(|(norm, qkv, proj)| {
            let op = loader.attention(layer_idx, self.spec.attention.as_ref().unwrap()).unwrap();
            let [qkv, proj] = [qkv, proj].map(|linear| linear.load(loader, LinearRole::Plain));
            let (proj, output) = (RowParallel::Chain(proj), OutputRule::default());
            (norm.load(), Attention { qkv, head_norms: None, op, proj, output })
        });
        let mlp = self.mlp.as_ref().map(|(norm, fc1, fc2)| {
            let activation = self.spec.mlp().unwrap().activation;
            let fc1 = fc1.load(loader, LinearRole::FirstOfMlp(activation));
            let fc2 = RowParallel::Chain(fc2.load(loader, LinearRole::Plain));
            (norm.load(), Mlp { fc1, activation, fc2, output: OutputRule::default() })
        });
        if self.spec.join == BlockStyle::Sequential {
            let ffn = mlp.map(|(norm, mlp)| (Some(norm), Ffn::Dense(mlp)));
            let part = |(norm, attention)| (Some(norm), AttentionPart::Attention(Box::new(attention)));
            let attention = attention.map(part);
            return Layer::Sequential { attention, ffn };
        }
        let ((attention_norm, attention), (mlp_norm, mlp)) = (attention.unwrap(), mlp.unwrap());
        let mlp_norm = (!self.spec.shares_norm()).then_some(mlp_norm);
        Layer::Parallel { attention_norm, attention, mlp_norm, mlp }
    }
}

impl StoredLinear {
    fn load<L: Loader>(&self, loader: &mut L, role: LinearRole) -> <L::State as StepState>::Linear {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (weight, bias) = (bytes(&self.weight), self.bias.as_deref().map(bytes));
        let out_features = (self.weight.len() / self.in_features) as u64;
        let stored = |bytes, shape| WeightBytes { bytes, dtype: StoredFloat::F32, shape };
        let shape = [out_features, self.in_features as u64];
        let source = LinearSource {
            weight: StoredLinearWeight::Float(stored(&weight, &shape)),
            bias: bias.as_deref().map(|bias| stored(bias, &shape[..1])),
        };
        loader.linear(source, role).unwrap()
    }
}

impl StoredNorm {
    fn load(&self) -> Norm {
        let has_bias = self.spec.normalization == Normalization::LayerNorm;
        Norm {
            normalization: self.spec.normalization,
            gain: Tensor::from_slice(&self.gain),
            bias: has_bias.then(|| Tensor::from_slice(&self.bias)),
            epsilon: self.spec.epsilon,
        }
    }
}

/// Logits after the prompt's last token and after each token that is decoded.
fn logits_of<S: StepState>(model: &mut Gpt<S>) -> Rows {
    let mut cache = model.new_cache(4).unwrap();
    let (prompt, decoded) = TOKENS.split_at(TOKENS.len() - NUM_DECODED);
    let mut batch = Batch::default();
    batch.push(prompt, 0, 1, &[2]);
    let mut rows = vec![model.forward(&batch, &mut cache).unwrap()];
    for (nth, token) in decoded.iter().enumerate() {
        let mut batch = Batch::default();
        batch.push(&[*token], (prompt.len() + nth) as u32, 1, &[2]);
        rows.push(model.forward(&batch, &mut cache).unwrap());
    }
    rows.iter().map(|row| Vec::<f64>::try_from(row.view([-1]).to_kind(Kind::Double)).unwrap()).collect()
}

fn assert_close(actual: &Rows, expected: &[Vec<f64>], backend: &str) {
    assert_eq!(actual.len(), expected.len());
    let pairs = actual.iter().flatten().zip(expected.iter().flatten());
    let difference = pairs.map(|(actual, expected)| (actual - expected).abs()).fold(0.0, f64::max);
    assert!(difference < MATCH, "{backend}: {difference}");
}

fn plain() -> PlainLoader {
    PlainLoader::new(Numerics::uniform(Float::Fp32), Device::Cpu, AttentionSwitches::default(), 64, None)
        .unwrap()
}

fn cpu() -> CpuLoader {
    CpuLoader::new(Numerics::uniform(Float::Fp32), Isa::detect(), 64, None).unwrap()
}

#[test]
fn layers_that_differ_match_their_formulas() {
    let stored = stored_model();
    let expected = stored.logits(&TOKENS);
    let expected = &expected[TOKENS.len() - NUM_DECODED - 1..];
    assert_close(&logits_of(&mut stored.load(plain())), expected, "plain");
    assert_close(&logits_of(&mut stored.load(cpu())), expected, "fused");
}

#[test]
fn what_no_kernel_of_a_gpu_computes_is_refused_by_its_key() {
    let rule = RouterSpec { topk: 1, score: RouterScore::Sigmoid, has_expert_bias: false, scaling: None };
    let experts = ExpertsSpec { num_experts: 8, ffn_hidden_size: 4, router: rule, shared: None };
    let activation = Activation { nonlinearity: Nonlinearity::Silu, gated: true };
    let moe = MoeSpec { experts, bias: false, activation, norm: RMS };
    let bf16: Numerics = "bf16".parse().unwrap();
    let alone = SharedExperts { reduction: Reduction::Chain, tp_size: 1, has_some: false };
    let two = SharedExperts { reduction: Reduction::Tree, tp_size: 2, has_some: false };
    let refused = |moe: &MoeSpec, hidden_size, numerics, shared| {
        refuse_experts_on_gpu(moe, hidden_size, numerics, shared).unwrap_err().to_string()
    };
    insta::assert_snapshot!(refused(&moe, 16, bf16, alone), @"model config key `moe_ffn_hidden_size` is `4`, experts whose widths are no multiples of 8 on a GPU with the fast engine, which is not supported; use the plain backend (`trt_llm.enable: false`), or a CPU");
    insta::assert_snapshot!(refused(&moe, 16, bf16.with_fp8_weights(), alone), @"model config key `quantization` is `fp8`, experts in FP8 on a GPU, which is not supported; use bf16, or a CPU");
    insta::assert_snapshot!(refused(&moe, 16, bf16, SharedExperts { has_some: true, ..two }), @"model config key `expert_model_parallel_size` is `2`, whole experts on each of several GPUs, which is not supported; use 1, a part of each expert on every GPU");
    let of_width =
        |ffn_hidden_size| MoeSpec { experts: ExpertsSpec { ffn_hidden_size, ..experts }, ..moe.clone() };
    let wide = of_width(8);
    assert!(refuse_experts_on_gpu(&wide, 16, bf16, alone).is_ok());
    // A part of 40 of 80: pieces of 10. Of 64 of 128, and of 96 of 192, they are 16 and 24 wide.
    insta::assert_snapshot!(refused(&of_width(40), 16, bf16, two), @"model config key `moe_ffn_hidden_size` is `80`, experts whose sums are in pieces that are no multiples of 8 wide on GPUs, which is not supported; use a CPU, or one GPU for each replica without `model.generation.reduction: tree`");
    assert!([64, 96].iter().all(|&width| refuse_experts_on_gpu(&of_width(width), 16, bf16, two).is_ok()));
    let shared = Some(SharedExpertSpec { ffn_hidden_size: 32, has_gate: false });
    let with_shared = MoeSpec { experts: ExpertsSpec { shared, ..of_width(64).experts }, ..moe };
    assert!(refuse_experts_on_gpu(&with_shared, 16, bf16, alone).is_ok());
    insta::assert_snapshot!(refused(&with_shared, 16, bf16, two), @"model config key `moe_shared_expert_intermediate_size` is `64`, a shared expert whose sum is in pieces on GPUs, which is not supported; use a CPU, or one GPU for each replica without `model.generation.reduction: tree`");
}

#[test]
fn a_gated_layer_packed_for_its_activation_has_no_other_epilogue() {
    let gated = Activation { nonlinearity: Nonlinearity::Silu, gated: true };
    let linear = Numbers(1).linear(8, HIDDEN_SIZE, false);
    let mut loader = cpu();
    let first = linear.load(&mut loader, LinearRole::FirstOfMlp(gated));
    let other = linear.load(&mut loader, LinearRole::Plain);
    let mut state = loader.finish().unwrap();
    let x = Tensor::zeros([3, HIDDEN_SIZE as i64], (Kind::Float, Device::Cpu));
    assert!(first.run(&x, Epilogue::Store, &mut state).is_err());
    assert!(other.run(&x, Epilogue::Activate(gated), &mut state).is_err());
    let activated = first.run(&x, Epilogue::Activate(gated), &mut state).unwrap();
    assert_eq!(activated.size(), [3, 4]);
}
