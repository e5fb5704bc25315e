//! `model_config.yaml` read as an architecture, and the `config.json` that says the same.
//!
//! Spelled as transformers 4 does (`torch_dtype`, `rope_theta`, `rope_scaling`), which 5 reads too.

use hydra_config::Node;
use model_spec::{
    Activation, AttentionRule, BlockStyle, HeadLayout, MoeLayers, Multipliers, NemoActivation, Nonlinearity,
    NormSpec, Normalization, OutputSpec, PositionEmbedding, RopeScaling, TableRows, UniformSpec,
};
use serde_json::{Map, Value, json};

use super::super::arch::{Biases, ModelArch, Rope, RopeExtension, size};
use super::super::family::{Announced, Family};
use super::experts::{self, QkNorm};
use super::{gemma2, shown};
use crate::writer::FolderFile;
use crate::{DType, FormatError};

const FILE: &str = "model_config.yaml";

/// Typed look-ups in a model's configuration.
pub(super) struct NemoConfig<'a>(&'a Node);

impl<'a> NemoConfig<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        Self(node)
    }

    pub(super) fn node(&self) -> &'a Node {
        self.0
    }

    pub(super) fn find(&self, key: &str) -> Option<&'a Node> {
        self.0.get(key).filter(|value| !matches!(value, Node::Null))
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Node) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let wrong_type = || bad(format!("the key `{key}` is `{}`, expected {expected}", shown(value)));
        read(value).map(Some).ok_or_else(wrong_type)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.read(key, "true or false", Node::as_bool)
    }

    pub(super) fn u64(&self, key: &str) -> Result<Option<u64>, FormatError> {
        self.read(key, "a whole number", |value| value.as_i64().and_then(|value| u64::try_from(value).ok()))
    }

    fn require_u64(&self, key: &str) -> Result<u64, FormatError> {
        self.u64(key)?.ok_or_else(|| bad(format!("the key `{key}` is missing")))
    }

    /// A number; YAML 1.1 calls `1e-5` a string, OmegaConf a number.
    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>, FormatError> {
        self.read(key, "a number", |value| value.as_f64().or_else(|| value.as_str()?.parse().ok()))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, FormatError> {
        self.read(key, "a string", Node::as_str)
    }
}

pub(super) fn bad(reason: String) -> FormatError {
    FormatError::BadConfig { file: FILE.to_owned(), reason }
}

/// A property that none of the target families has.
pub(super) fn refused(what: &str) -> FormatError {
    FormatError::NotExported {
        what: what.to_owned(),
        hint: "it writes Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma and Gemma 2 folders only, which have rmsnorm, a gated activation and \
               full rotary embeddings; leave `--to hf` out to write a `.nemo`, which generates as it is"
            .to_owned(),
    }
}

/// Keys that must be off: the targets compute nothing of the kind.
const OFF: [&str; 22] = [
    "embedding_multiplier",
    "heterogeneous_layers_config_encoded_json",
    "logits_multiplier",
    "qk_layernorm_per_head",
    "residual_multiplier",
    "rope_scaling.attention_factor",
    "rope_scaling.dynamic_factor",
    "apply_residual_connection_post_layernorm",
    "headscale",
    "heterogeneous_block_specs",
    "hybrid_override_pattern",
    "is_hybrid_model",
    "megatron_legacy",
    "mm_cfg",
    "mrope_section",
    "multi_latent_attention",
    "new_decoder_architecture",
    "output_layer_bias",
    "parallel_attention",
    "retro",
    "rotary_base_local",
    "rotary_interleaved",
];
/// Keys that only Gemma 2 of the targets has a use for.
const OF_GEMMA2: [&str; 6] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "softmax_scale",
    // Of NeMo's example configuration; its layers read the other key.
    "sqrt_query_pre_attn_scalar",
    "window_attn_skip_freq",
];
/// Keys that choose between models, with the one value that the targets have.
const FIXED: [(&str, &str); 3] = [
    ("attention_type", "multihead"),
    ("normalize_attention_scores", "true"),
    ("transformer_block_type", "pre_ln"),
];
/// Layer specifications that are other models whatever their keys say.
const OTHER_NAMES: [&str; 2] = ["megatron_falcon_gpt", "te_gpt_hyena"];

/// Refuses what would be lost in silence.
fn refuse_other_models(config: &NemoConfig<'_>) -> Result<(), FormatError> {
    let name = config.text("name")?.unwrap_or_default();
    if OTHER_NAMES.contains(&name) {
        return Err(refused(&format!("name `{name}`")));
    }
    // Megatron-Core's own keys come on top of NeMo's.
    for section in ["", "mcore_customization_config."] {
        let of_others = if gemma2::is_meant(config)? { &[][..] } else { &OF_GEMMA2 };
        for key in OFF.iter().chain(of_others).map(|key| format!("{section}{key}")) {
            let value = config.find(&key);
            if let Some(value) = value.filter(|value| !matches!(value, Node::Bool(false) | Node::Int(0))) {
                return Err(refused(&format!("{key} `{}`", shown(value))));
            }
        }
        for (key, only) in FIXED {
            let key = format!("{section}{key}");
            if let Some(value) = config.find(&key).filter(|value| shown(value) != only) {
                return Err(refused(&format!("{key} `{}`", shown(value))));
            }
        }
    }
    if config.bool("pre_layernorms")? == Some(false) {
        return Err(refused("pre_layernorms `false`"));
    }
    match config.find("mcore_customization_config.window_size") {
        Some(value) => Err(refused(&format!("mcore_customization_config.window_size `{}`", shown(value)))),
        None => Ok(()),
    }
}

/// The architecture, refused where no Hugging Face family of the Llama kind has it.
pub(super) fn read_arch(config: &NemoConfig<'_>, vocab_size: u64) -> Result<ModelArch, FormatError> {
    let normalization = config.text("normalization")?.unwrap_or("layernorm");
    if !normalization.eq_ignore_ascii_case("rmsnorm") {
        return Err(refused(&format!("normalization `{normalization}`")));
    }
    refuse_other_models(config)?;
    let customized = config.bool("mcore_customization_config.qk_layernorm")?;
    let qk_norm = customized.or(config.bool("qk_layernorm")?).unwrap_or(false);
    let is_across_heads = config.bool("qk_layernorm_across_heads")?.unwrap_or(false);
    let is_gemma2 = gemma2::is_meant(config)?;
    let window = if is_gemma2 { None } else { window(config)? };
    let biases = biases(config)?;
    let num_layers = config.require_u64("num_layers")?;
    let ffn_hidden_size = config.require_u64("ffn_hidden_size")?;
    let moe = experts::read(config, num_layers, ffn_hidden_size)?;
    let kind = Kind { window, biases, qk_norm, is_across_heads, is_gemma2, moe: moe.as_ref() };
    let (family, activation) = family(config, &kind)?;
    let hidden_size = config.require_u64("hidden_size")?;
    let num_attention_heads = config.require_u64("num_attention_heads")?;
    let encoder_seq_length = config.u64("encoder_seq_length")?;
    let max_position_embeddings = match config.u64("max_position_embeddings")?.or(encoder_seq_length) {
        Some(length) => length,
        None => return Err(bad("the key `max_position_embeddings` is missing".to_owned())),
    };
    let num_query_groups = config.u64("num_query_groups")?.unwrap_or(num_attention_heads);
    let head_dim = config.u64("kv_channels")?.unwrap_or(hidden_size / num_attention_heads.max(1));
    let model = UniformSpec {
        num_layers: size(num_layers),
        hidden_size: size(hidden_size),
        ffn_hidden_size: size(ffn_hidden_size),
        moe,
        heads: HeadLayout {
            num_attention_heads: size(num_attention_heads),
            num_query_groups: size(num_query_groups),
            kv_channels: size(head_dim),
        },
        block_style: BlockStyle::Sequential,
        norm: NormSpec {
            normalization: Normalization::RmsNorm,
            zero_centered_gamma: is_gemma2,
            epsilon: config.f64("layernorm_epsilon")?.unwrap_or(1e-5),
        },
        activation,
        bias: false,
        qkv_bias: false,
        qk_layernorm: qk_norm,
        position_embedding: PositionEmbedding::LearnedAbsolute,
        window: None,
        attention: AttentionRule::default(),
        post_layernorms: is_gemma2,
        apply_embedding_scaling: family.facts().scales_embeddings,
        output: OutputSpec {
            tied: config.bool("share_embeddings_and_output_weights")?.unwrap_or(true),
            bias: family.facts().has_output_bias,
            softcap: None,
        },
        pre_layernorms: true,
        multipliers: Multipliers::default(),
        blocks: None,
    };
    let tables = TableRows { vocab: vocab_size, positions: max_position_embeddings };
    let init_method_std = config.f64("init_method_std")?.unwrap_or(0.02);
    let mut arch = ModelArch::new(family, model, tables, init_method_std);
    arch.model.attention.norm_across_heads = is_across_heads;
    arch.set_rope(rope(config)?);
    arch.set_sliding_window(window);
    if is_gemma2 {
        gemma2::read(config, &mut arch)?;
    }
    arch.set_biases(biases);
    arch.check(FILE)?;
    refuse_strange_windows(&arch)?;
    if matches!(family.facts().attention_bias, Announced::Never) && biases != Biases::None {
        return Err(refused(&format!("biases of linear layers that is called a `{}`", family.name())));
    }
    Ok(arch)
}

fn biases(config: &NemoConfig<'_>) -> Result<Biases, FormatError> {
    Ok(match (config.bool("bias")?.unwrap_or(true), config.bool("qkv_bias")?.unwrap_or(false)) {
        (true, _) => Biases::All,
        (false, true) => Biases::Qkv,
        (false, false) => Biases::None,
    })
}

/// Of the targets only Mistral and Mixtral have a window.
fn refuse_strange_windows(arch: &ModelArch) -> Result<(), FormatError> {
    let facts = arch.family.facts();
    let beside = match arch.family {
        _ if arch.sliding_window().is_none() => return Ok(()),
        _ if facts.has_window && arch.biases() == Biases::None => return Ok(()),
        _ if facts.has_window => "biases",
        _ if facts.has_qk_norm => "norms of queries and keys",
        _ => "geglu",
    };
    Err(FormatError::NotExported {
        what: format!("a window of attention and {beside}"),
        hint: "of the families that it writes only Mistral and Mixtral have a window, which have no such thing; leave `--to hf` out to \
               write a `.nemo`"
            .to_owned(),
    })
}

/// The window of attention as Hugging Face counts it. NeMo's converters write that number into `window_size` as it is,
/// although Transformer Engine sees one position more.
fn window(config: &NemoConfig<'_>) -> Result<Option<u64>, FormatError> {
    let sliding = config.u64("huggingface.sliding_window")?;
    let Some(pair) = config.find("window_size") else { return Ok(sliding) };
    let number = |value: &Node| value.as_f64().or_else(|| value.as_str()?.parse().ok());
    let pair_of = |list: &[Node]| match list {
        [left, right] => Some((number(left)?, number(right)?)),
        _ => None,
    };
    let stated = match pair.as_list().and_then(pair_of) {
        Some((left, right)) if left == -1.0 && right >= -1.0 => None,
        Some((left, right)) if left >= 1.0 && left.fract() == 0.0 && right >= -1.0 => Some(left as u64),
        _ => {
            let expected = "null or two whole numbers `[window, 0]`";
            return Err(bad(format!("the key `window_size` is `{}`, expected {expected}", shown(pair))));
        }
    };
    match (stated, sliding) {
        (Some(stated), Some(sliding)) if stated != sliding => Err(bad(format!(
            "the key `window_size` says {stated} tokens and `huggingface.sliding_window` {sliding}; remove the wrong one"
        ))),
        _ => Ok(stated.or(sliding)),
    }
}

/// What tells families with one activation apart.
struct Kind<'a> {
    window: Option<u64>,
    biases: Biases,
    qk_norm: bool,
    is_across_heads: bool,
    is_gemma2: bool,
    moe: Option<&'a MoeLayers>,
}

impl Kind<'_> {
    fn family_of_experts(&self) -> Result<Option<Family>, FormatError> {
        let qk_norm = match (self.qk_norm, self.is_across_heads) {
            (false, _) => QkNorm::None,
            (true, false) => QkNorm::EachHead,
            (true, true) => QkNorm::AllHeads,
        };
        self.moe.map(|moe| experts::family(moe, qk_norm, self.biases != Biases::None)).transpose()
    }
}

fn family(config: &NemoConfig<'_>, kind: &Kind<'_>) -> Result<(Family, Activation), FormatError> {
    let name = config.text("activation")?.unwrap_or("gelu");
    let keys = NemoActivation {
        name,
        openai_gelu: config.bool("openai_gelu")?.unwrap_or(false),
        bias_activation_fusion: config.bool("bias_activation_fusion")?,
        bias: config.bool("bias")?.unwrap_or(true),
    };
    let is_tanh_gelu =
        keys.function().is_ok_and(|activation| activation.nonlinearity == Nonlinearity::GeluTanh);
    let is_scaled = config.bool("apply_embedding_scaling")?.unwrap_or(false);
    match (name, is_tanh_gelu, is_scaled) {
        ("swiglu" | "fast-swiglu", false, false) if !kind.is_gemma2 => {
            let is_mistral =
                kind.window.is_some() || config.text("huggingface.model_type")? == Some("mistral");
            let of_experts = kind.family_of_experts()?;
            if kind.is_across_heads && (of_experts.is_none() || !kind.qk_norm) {
                return Err(refused("qk_layernorm_across_heads `true`"));
            }
            let family = match kind.biases {
                _ if kind.qk_norm => Family::Qwen3,
                _ if is_mistral => Family::Mistral,
                Biases::Qkv => Family::Qwen2,
                Biases::None | Biases::All => Family::Llama,
            };
            let family = of_experts.unwrap_or(family);
            Ok((family, Activation { nonlinearity: Nonlinearity::Silu, gated: true }))
        }
        ("geglu" | "fast-geglu", true, true) if !kind.qk_norm && kind.moe.is_none() => {
            let family = if kind.is_gemma2 { Family::Gemma2 } else { Family::Gemma };
            Ok((family, Activation { nonlinearity: Nonlinearity::GeluTanh, gated: true }))
        }
        _ => Err(refused(&format!(
            "activation `{name}`, openai_gelu {is_tanh_gelu}, apply_embedding_scaling {is_scaled}, qk_layernorm {} and post_layernorms {}",
            kind.qk_norm, kind.is_gemma2
        ))),
    }
}

fn rope(config: &NemoConfig<'_>) -> Result<Rope, FormatError> {
    let kind = config.text("position_embedding_type")?.unwrap_or("learned_absolute");
    if kind != "rope" {
        return Err(refused(&format!("position_embedding_type `{kind}`")));
    }
    let percentage = config.f64("rotary_percentage")?.unwrap_or(1.0);
    if percentage != 1.0 {
        return Err(refused(&format!("rotary_percentage {percentage}")));
    }
    let factor = config.f64("seq_len_interpolation_factor")?.filter(|&factor| factor != 1.0);
    let is_llama3 = config.bool("scale_positional_embedding")?.unwrap_or(false);
    let scaling = match (factor, is_llama3) {
        (None, false) => RopeExtension::None,
        (Some(factor), false) => RopeExtension::Linear(factor),
        (None, true) => {
            let mut constants = RopeScaling::LLAMA_3_1.values();
            for (constant, key) in constants.iter_mut().zip(RopeScaling::KEYS) {
                *constant = config.f64(&format!("rope_scaling.{key}"))?.unwrap_or(*constant);
            }
            RopeExtension::Llama3(RopeScaling::from_values(constants))
        }
        (Some(_), true) => {
            let what = "both `seq_len_interpolation_factor` and `scale_positional_embedding`";
            return Err(FormatError::NotExported {
                what: what.to_owned(),
                hint:
                    "a Hugging Face folder can only have one: set `seq_len_interpolation_factor` to null in \
                       `model_config.yaml` if NeMo 2.0 or 2.1 wrote it for a Llama 3.1"
                        .to_owned(),
            });
        }
    };
    let base = config.f64("rotary_base")?.unwrap_or(10_000.0);
    Ok(Rope { percentage, base, scaling, interleaved: false })
}

/// The file that transformers reads first.
pub(super) fn config_json(
    arch: &ModelArch,
    config: &NemoConfig<'_>,
    has_mlp_bias: bool,
    dtype: DType,
    token_ids: &Map<String, Value>,
) -> FolderFile {
    let (facts, model) = (arch.family.facts(), &arch.model);
    let mut document = json!({
        "architectures": [facts.classes.first()],
        "model_type": facts.name,
        "attention_dropout": 0.0,
        "head_dim": model.heads.kv_channels,
        "hidden_act": facts.hidden_activation.unwrap_or("silu"),
        "hidden_size": model.hidden_size,
        "initializer_range": arch.init_method_std,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": arch.tables.positions,
        "num_attention_heads": model.heads.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.heads.num_query_groups,
        "rms_norm_eps": model.norm.epsilon,
        "tie_word_embeddings": model.output.tied,
        "torch_dtype": dtype.name(),
        "use_cache": true,
        "vocab_size": arch.tables.vocab,
    });
    if arch.family == Family::Gemma2
        && let Some(keys) = document.as_object_mut()
    {
        // The class has only the other name of it.
        keys.shift_remove("hidden_act");
    }
    // A class without the key, which only reads one that is there.
    let is_usual = model.heads.query_size() == model.hidden_size;
    if matches!(arch.family, Family::Qwen2 | Family::Qwen2Moe | Family::Mixtral | Family::Olmoe)
        && is_usual
        && let Some(keys) = document.as_object_mut()
    {
        keys.shift_remove("head_dim");
    }
    let mut set = |key: &str, value: Value| document[key] = value;
    if let PositionEmbedding::Rope(rotary) = model.position_embedding {
        set("rope_theta", json!(rotary.rotary_base));
        set("rope_scaling", rope_scaling(RopeExtension::of(&rotary)));
    }
    if facts.has_window {
        set("sliding_window", json!(arch.sliding_window()));
    }
    if arch.family == Family::Gemma2 {
        gemma2::keys(model).into_iter().for_each(|(key, value)| set(key, value));
    }
    experts::keys(arch.family, model).into_iter().for_each(|(key, value)| set(key, value));
    if matches!(arch.family, Family::Qwen2 | Family::Qwen3 | Family::Qwen2Moe | Family::Qwen3Moe) {
        set("use_sliding_window", json!(false));
    }
    if let Some(activation) = facts.hidden_activation {
        set("hidden_activation", json!(activation));
    }
    if let Announced::ByKey(key, _) | Announced::OfQkvByKey(key, _) = facts.attention_bias {
        set(key, json!(arch.biases() != Biases::None));
    }
    if let Announced::ByKey(key, _) = facts.mlp_bias {
        set(key, json!(has_mlp_bias));
    }
    if arch.family == Family::Olmoe {
        // The class has ids of its own for keys that are not there.
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            set(key, Value::Null);
        }
    }
    for (key, id) in token_ids {
        set(key, id.clone());
    }
    if let Some(Node::Str(version)) = config.node().get("nemo_version") {
        set("nemo_version", json!(version));
    }
    FolderFile { name: "config.json".to_owned(), bytes: format!("{document:#}\n").into_bytes() }
}

fn rope_scaling(scaling: RopeExtension) -> Value {
    match scaling {
        RopeExtension::None | RopeExtension::Factors => Value::Null,
        RopeExtension::Linear(factor) => json!({"rope_type": "linear", "type": "linear", "factor": factor}),
        RopeExtension::Llama3(rule) => json!({
            "rope_type": "llama3",
            "factor": rule.factor,
            "low_freq_factor": rule.low_freq_factor,
            "high_freq_factor": rule.high_freq_factor,
            "original_max_position_embeddings": rule.original_max_position_embeddings as u64,
        }),
    }
}
