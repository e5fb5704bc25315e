//! A Hugging Face folder, understood: the architecture that `config.json` describes, for each family of models.
//!
//! Defaults of keys left out are those of transformers' configuration classes. Whatever would change the numbers and has
//! no key in NeMo's configuration is refused by name.

mod dense;
mod gemma;
mod moe;
mod nas;
mod qwen;
mod rope_lists;

use model_spec::{
    Activation, AttentionRule, BlockStyle, HeadLayout, Module, Multipliers, Nonlinearity, NormSpec,
    Normalization, OutputSpec, Part, PositionEmbedding, RopeScaling, TableRows, TensorId, UniformSpec,
};

use super::arch::{ModelArch, Rope, RopeExtension, size};
use super::family::Family;
use super::rows::missing;
use super::stated_biases::StatedBiases;
use super::wrappers;
use crate::huggingface::{HfConfig, HfRope};
use crate::names::{self, NameMap};
use crate::{FormatError, SourceNote, TensorSource};

/// Context length of Llama-2 and most others.
const DEFAULT_MAX_POSITIONS: u64 = 2048;
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_INITIALIZER_RANGE: f64 = 0.02;
const SUPPORTED: &str = "supported model types are `llama`, `mistral`, `gemma`, `gemma2`, `gemma3_text`, `cohere`, `falcon`, \
                         `gpt2`, `gptj`, `gpt_neox`, `gpt_oss`, `granite`, `mixtral`, `nemotron`, `nemotron-nas`, `olmo2`, `olmoe`, `phi3`, `qwen2`, \
                         `qwen2_moe`, `qwen3`, `qwen3_moe`, `stablelm` and `starcoder2`";

/// What `layer_types` calls layers with a window and without.
const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// A model of Hugging Face, understood.
pub(super) struct HfModel {
    pub(super) arch: ModelArch,
    /// What its tensors are called.
    pub(super) names: NameMap,
    pub(super) notes: Vec<SourceNote>,
}

/// The model that `config` describes and `source` holds.
pub(super) fn understand(config: &HfConfig, source: &dyn TensorSource) -> Result<HfModel, FormatError> {
    if config.bool("is_encoder_decoder")? == Some(true) {
        return Err(config.unsupported("an encoder", "only decoders are converted"));
    }
    let (mut arch, names) = match config.text(&["model_type"])?.unwrap_or("none") {
        "llama" => (llama(config, Family::Llama)?, names::LLAMA),
        "mistral" => (mistral(config)?, names::LLAMA),
        "gemma" => (gemma::gemma(config)?, names::LLAMA),
        "gemma2" => (gemma::gemma2(config)?, names::GEMMA2),
        "gemma3_text" => (gemma::gemma3(config)?, names::GEMMA2),
        // What Falcon was called before transformers took it in.
        "falcon" | "RefinedWebModel" | "RefinedWeb" => falcon(config)?,
        "gpt2" => (gpt2(config)?, names::GPT2),
        "gptj" => (gptj(config)?, names::GPTJ),
        "gpt_neox" => (gpt_neox(config)?, names::GPT_NEOX),
        "mixtral" => (moe::mixtral(config)?, names::MIXTRAL),
        "gpt_oss" => (moe::gpt_oss(config)?, names::GPT_OSS),
        "nemotron" => (nemotron(config)?, names::NEMOTRON),
        "qwen2" => (qwen::qwen(config, Family::Qwen2)?, names::LLAMA),
        "qwen3" => (qwen::qwen(config, Family::Qwen3)?, names::LLAMA),
        "cohere" => (dense::cohere(config)?, names::LLAMA),
        "granite" => (dense::granite(config)?, names::LLAMA),
        "nemotron-nas" => (nas::nemotron_nas(config)?, names::NEMOTRON_NAS),
        "olmo2" => (dense::olmo2(config)?, names::OLMO2),
        "phi3" => (dense::phi3(config)?, names::PHI3),
        "stablelm" => (dense::stablelm(config)?, names::STABLELM),
        "starcoder2" => (dense::starcoder2(config)?, names::STARCODER2),
        "olmoe" => (moe::olmoe(config)?, names::QWEN_MOE),
        "qwen2_moe" => (moe::qwen(config, Family::Qwen2Moe)?, names::QWEN_MOE),
        "qwen3_moe" => (moe::qwen(config, Family::Qwen3Moe)?, names::QWEN_MOE),
        other => {
            let architectures = config.texts("architectures").join(", ");
            return Err(FormatError::Unsupported {
                what: format!("`{}`, model_type `{other}` ({architectures}),", config.file()),
                hint: SUPPORTED.to_owned(),
            });
        }
    };
    let names = names.fitting(|name| source.meta(name).is_some());
    wrappers::refuse_prefix(&names, source)?;
    rope_lists::settle(config, &mut arch)?;
    arch.check(config.file())?;
    let mut notes = Vec::new();
    notes.extend(settle_tie(&mut arch, &names, source)?);
    notes.extend(StatedBiases::read(config, arch.family)?.settle(
        &mut arch,
        &names,
        source,
        config.file(),
    )?);
    let output = names.output("weight");
    if !arch.model.output.tied && source.meta(&output).is_none() {
        return Err(missing(&output, &TensorId::outside(Module::Output, Part::Weight).name()));
    }
    Ok(HfModel { arch, names, notes })
}

/// transformers ties the output layer to the embedding unless the weights have both and they differ.
fn settle_tie(
    arch: &mut ModelArch,
    names: &NameMap,
    source: &dyn TensorSource,
) -> Result<Option<SourceNote>, FormatError> {
    let (embedding, output) = (names.embedding(), names.output("weight"));
    if !arch.model.output.tied || source.meta(&output).is_none() || source.meta(&embedding).is_none() {
        return Ok(None);
    }
    if source.meta(&output) == source.meta(&embedding)
        && source.read_whole(&output)? == source.read_whole(&embedding)?
    {
        return Ok(None);
    }
    arch.model.output.tied = false;
    Ok(Some(SourceNote::Contradiction {
        used: format!("`{output}`, as in transformers,"),
        ignored: "`tie_word_embeddings`, which is true,".to_owned(),
        difference: format!("the weights have it, and it is not `{embedding}`"),
    }))
}

fn common(config: &HfConfig, family: Family) -> Result<ModelArch, FormatError> {
    let hidden_size = config.require_u64(&["hidden_size", "n_embd", "n_embed"])?;
    let num_attention_heads = config.require_u64(&["num_attention_heads", "n_head"])?;
    let stated_ffn = config.u64(&["intermediate_size", "n_inner", "ffn_hidden_size"])?;
    let facts = family.facts();
    let ffn_hidden_size = match facts.default_ffn_factor {
        Some(factor) => stated_ffn.unwrap_or(hidden_size.saturating_mul(factor)),
        None => config.require_u64(&["intermediate_size"])?,
    };
    let num_query_groups =
        if facts.has_num_key_value_heads { config.u64(&["num_key_value_heads"])? } else { None };
    let model = UniformSpec {
        num_layers: size(config.require_u64(&["num_hidden_layers", "n_layer"])?),
        hidden_size: size(hidden_size),
        ffn_hidden_size: size(ffn_hidden_size),
        moe: None,
        heads: HeadLayout {
            num_attention_heads: size(num_attention_heads),
            num_query_groups: size(num_query_groups.unwrap_or(num_attention_heads)),
            kv_channels: size(hidden_size / num_attention_heads.max(1)),
        },
        block_style: BlockStyle::Sequential,
        norm: NormSpec {
            normalization: Normalization::LayerNorm,
            zero_centered_gamma: false,
            epsilon: config.f64(&[facts.epsilon_key])?.unwrap_or(1e-5),
        },
        activation: Activation { nonlinearity: Nonlinearity::Gelu, gated: false },
        bias: false,
        qkv_bias: false,
        qk_layernorm: facts.has_qk_norm,
        position_embedding: PositionEmbedding::LearnedAbsolute,
        window: None,
        attention: AttentionRule::default(),
        post_layernorms: false,
        apply_embedding_scaling: facts.scales_embeddings,
        output: OutputSpec {
            tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
            bias: facts.has_output_bias,
            softcap: None,
        },
        pre_layernorms: true,
        multipliers: Multipliers::default(),
        blocks: None,
    };
    let tables = TableRows {
        vocab: config.require_u64(&["vocab_size"])?,
        positions: config.u64(&["max_position_embeddings", "n_positions"])?.unwrap_or(DEFAULT_MAX_POSITIONS),
    };
    let init_method_std = config.f64(&["initializer_range"])?.unwrap_or(DEFAULT_INITIALIZER_RANGE);
    Ok(ModelArch::new(family, model, tables, init_method_std))
}

fn llama(config: &HfConfig, family: Family) -> Result<ModelArch, FormatError> {
    let activation = config.text(&["hidden_act"])?.unwrap_or("silu");
    // Another name of the same function.
    if !["silu", "swish"].contains(&activation) && family.facts().hidden_activation.is_none() {
        return Err(
            config.unsupported(&format!("hidden_act `{activation}`"), "models of this type use `silu`")
        );
    }
    let mut arch = common(config, family)?;
    let rope = rope(config, 1.0)?;
    if rope.percentage != 1.0 {
        let hint = "models of this type rotate whole heads: remove the key or set it to 1";
        return Err(config.unsupported(&format!("partial_rotary_factor {}", rope.percentage), hint));
    }
    if let Some(head_dim) = config.u64(&["head_dim"])? {
        arch.set_head_dim(head_dim);
    }
    arch.set_rope(rope);
    arch.model.norm = NormSpec {
        normalization: Normalization::RmsNorm,
        zero_centered_gamma: false,
        epsilon: config.f64(&[family.facts().epsilon_key])?.unwrap_or(1e-6),
    };
    arch.model.activation = Activation { nonlinearity: Nonlinearity::Silu, gated: true };
    Ok(arch)
}

/// Llama with a window: attention over no more than the window is the same with it and without.
fn mistral(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, Family::Mistral)?;
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(131_072);
    let default_window = (!config.mentions("sliding_window")).then_some(4096);
    let window = config.u64(&["sliding_window"])?.or(default_window);
    // A null is as many as heads; 8 is the default of a key that is not there.
    let heads = &mut arch.model.heads;
    let default_groups = if config.mentions("num_key_value_heads") { heads.num_attention_heads } else { 8 };
    heads.num_query_groups = config.u64(&["num_key_value_heads"])?.map_or(default_groups, size);
    arch.set_sliding_window(window);
    Ok(arch)
}

fn falcon(config: &HfConfig) -> Result<(ModelArch, NameMap), FormatError> {
    if config.bool("alibi")? == Some(true) {
        let hint = "only Falcon models with rotary embeddings (7B, 11B, 40B, 180B) are converted; set `alibi` to false if the \
                    model was trained so";
        return Err(config.unsupported("alibi position biases (`alibi: true`)", hint));
    }
    if config.bool("apply_residual_connection_post_layernorm")? == Some(true) {
        let hint = "the residual stream is added before the norm";
        return Err(config.unsupported("`apply_residual_connection_post_layernorm: true`", hint));
    }
    let mut arch = common(config, Family::Falcon)?;
    let num_attention_heads = arch.model.heads.num_attention_heads;
    // All are asked for, whichever of them count.
    let is_new = config
        .bool("new_decoder_architecture")?
        .unwrap_or(config.text(&["model_type"])? == Some("RefinedWeb"));
    let num_kv_heads = config.u64(&["num_kv_heads", "n_head_kv"])?.map_or(num_attention_heads, size);
    let is_multi_query = config.bool("multi_query")?.unwrap_or(true);
    let is_parallel = config.bool("parallel_attn")?.unwrap_or(true);
    let num_norms = config.u64(&["num_ln_in_parallel_attn"])?.unwrap_or(2);
    arch.model.heads.num_query_groups = match (is_new, is_multi_query) {
        (true, _) => num_kv_heads,
        (false, true) => 1,
        (false, false) => num_attention_heads,
    };
    let (block_style, names) = if is_new && num_norms == 2 {
        (BlockStyle::ParallelOwnNorm, names::FALCON_TWO_NORMS)
    } else if is_new || is_parallel {
        (BlockStyle::ParallelSharedNorm, names::FALCON)
    } else {
        (BlockStyle::Sequential, names::FALCON_SEQUENTIAL)
    };
    arch.model.block_style = block_style;
    arch.set_rope(rope(config, 1.0)?);
    arch.model.activation = plain_activation(config, &["activation"], "gelu")?;
    arch.model.output.tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    Ok((arch, names))
}

fn gpt2(config: &HfConfig) -> Result<ModelArch, FormatError> {
    if config.bool("scale_attn_by_inverse_layer_idx")? == Some(true) {
        let hint = "attention scores divided by the layer's number are not supported";
        return Err(config.unsupported("`scale_attn_by_inverse_layer_idx: true`", hint));
    }
    if config.bool("scale_attn_weights")? == Some(false) {
        let hint = "attention scores are always divided by the root of the head dimension";
        return Err(config.unsupported("`scale_attn_weights: false`", hint));
    }
    if config.bool("add_cross_attention")? == Some(true) {
        return Err(config.unsupported("cross attention", "only decoders without an encoder are converted"));
    }
    let mut arch = common(config, Family::Gpt2)?;
    arch.tables.positions = config.u64(&["n_positions", "max_position_embeddings", "n_ctx"])?.unwrap_or(1024);
    arch.model.activation = plain_activation(config, &["activation_function"], "gelu_new")?;
    arch.model.output.tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    Ok(arch)
}

fn gptj(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = common(config, Family::GptJ)?;
    if arch.model.output.tied {
        return Err(config.unsupported("`tie_word_embeddings: true`", "GPT-J has an output layer of its own"));
    }
    let rotary_dim = if config.has("rotary_dim") { config.require_u64(&["rotary_dim"])? } else { 64 };
    let head_dim = arch.model.heads.kv_channels as u64;
    if rotary_dim > head_dim {
        return Err(config.bad(format!("rotary_dim is {rotary_dim}, the head dimension is {head_dim}")));
    }
    arch.set_rope(Rope {
        percentage: rotary_dim as f64 / head_dim.max(1) as f64,
        base: DEFAULT_ROPE_THETA,
        scaling: RopeExtension::None,
        interleaved: true,
    });
    arch.model.activation = plain_activation(config, &["activation_function"], "gelu_new")?;
    arch.model.block_style = BlockStyle::ParallelSharedNorm;
    Ok(arch)
}

fn gpt_neox(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = common(config, Family::GptNeoX)?;
    let is_parallel = config.bool("use_parallel_residual")?.unwrap_or(true);
    arch.set_rope(rope(config, 0.25)?);
    arch.model.activation = plain_activation(config, &["hidden_act"], "gelu")?;
    arch.model.block_style = if is_parallel { BlockStyle::ParallelOwnNorm } else { BlockStyle::Sequential };
    Ok(arch)
}

fn nemotron(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = common(config, Family::Nemotron)?;
    if let Some(head_dim) = config.u64(&["head_dim"])? {
        arch.set_head_dim(head_dim);
    }
    arch.tables.positions = config.u64(&["max_position_embeddings"])?.unwrap_or(4096);
    arch.set_rope(rope(config, 0.5)?);
    arch.model.norm.zero_centered_gamma = true;
    arch.model.activation = plain_activation(config, &["hidden_act"], "relu2")?;
    arch.init_method_std = config.f64(&["initializer_range"])?.unwrap_or(0.0134);
    Ok(arch)
}

/// For each layer, whether `layer_types` gives it a window.
fn listed_layers(config: &HfConfig, num_layers: usize) -> Result<Vec<bool>, FormatError> {
    let kinds = config.texts("layer_types");
    if let Some(kind) = kinds.iter().find(|kind| ![SLIDING, FULL].contains(*kind)) {
        let hint = "layers of these models are of `sliding_attention` and `full_attention`";
        return Err(config.unsupported(&format!("`layer_types` with `{kind}`"), hint));
    }
    if kinds.len() != num_layers {
        return Err(config.bad(format!(
            "`layer_types` has {} entries and `num_hidden_layers` is {num_layers}",
            kinds.len()
        )));
    }
    Ok(kinds.iter().map(|kind| *kind == SLIDING).collect())
}

/// The activation of an MLP without a gate.
fn plain_activation(config: &HfConfig, keys: &[&str], default: &str) -> Result<Activation, FormatError> {
    let nonlinearity = match config.text(keys)?.unwrap_or(default) {
        "gelu" | "gelu_python" => Nonlinearity::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Nonlinearity::GeluTanh,
        "relu2" => Nonlinearity::SquaredRelu,
        "quick_gelu" => Nonlinearity::QuickGelu,
        other => {
            let hint = "supported are `gelu`, `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`, `quick_gelu` and `relu2`";
            return Err(config.unsupported(&format!("activation `{other}`"), hint));
        }
    };
    Ok(Activation { nonlinearity, gated: false })
}

fn rope(config: &HfConfig, default_percentage: f64) -> Result<Rope, FormatError> {
    let rope = config.rope()?;
    Ok(Rope {
        percentage: rope.partial_rotary_factor.unwrap_or(default_percentage),
        base: rope.rope_theta.unwrap_or(DEFAULT_ROPE_THETA),
        scaling: rope_scaling(&rope, config)?,
        interleaved: false,
    })
}

fn rope_scaling(rope: &HfRope, config: &HfConfig) -> Result<RopeExtension, FormatError> {
    let kind = rope.rope_type.as_deref().unwrap_or("default");
    if let Some(factor) = rope.factor.filter(|&factor| kind == "default" && factor != 1.0) {
        return Err(config.bad(format!(
            "rope_scaling has factor {factor} and no type that has one, so that transformers leaves it out; state the type, \
             or remove the factor"
        )));
    }
    let (is_yarn, has_lists) = (kind == "yarn", kind != "dynamic" && rope_lists::TYPES.contains(&kind));
    for (key, is_stated, is_used) in [
        ("short_factor", rope.short_factor.is_some(), has_lists && !is_yarn),
        ("long_factor", rope.long_factor.is_some(), has_lists && !is_yarn),
        ("attention_factor", rope.attention_factor.is_some(), has_lists),
        ("beta_fast", rope.beta_fast.is_some(), is_yarn),
        ("beta_slow", rope.beta_slow.is_some(), is_yarn),
        ("mscale", rope.mscale.is_some(), is_yarn),
        ("mscale_all_dim", rope.mscale_all_dim.is_some(), is_yarn),
        ("truncate", rope.truncate.is_some(), is_yarn),
    ] {
        if is_stated && !is_used {
            config.set_unused(format!("rope_scaling.{key}"));
        }
    }
    for (key, value) in [
        ("low_freq_factor", rope.low_freq_factor),
        ("high_freq_factor", rope.high_freq_factor),
        ("original_max_position_embeddings", rope.original_max_position_embeddings),
    ] {
        let is_used = kind == "llama3" || (key == "original_max_position_embeddings" && has_lists);
        if value.is_some() && !is_used {
            config.set_unused(format!("rope_scaling.{key}"));
        }
    }
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok(RopeExtension::None),
        Some("linear") => rope
            .factor
            .map(RopeExtension::Linear)
            .ok_or_else(|| config.bad("rope_scaling of type `linear` has no `factor`".into())),
        Some("llama3") => {
            let values = [
                rope.factor,
                rope.low_freq_factor,
                rope.high_freq_factor,
                rope.original_max_position_embeddings,
            ];
            let mut constants = [0.0; 4];
            for ((constant, value), key) in constants.iter_mut().zip(values).zip(RopeScaling::KEYS) {
                let found = value.filter(|value| value.is_finite() && *value > 0.0);
                *constant = found.ok_or_else(|| {
                    config.bad(format!("rope_scaling of type `llama3` needs `{key}`, a number above 0"))
                })?;
            }
            let rule = RopeScaling::from_values(constants);
            let (low, high) = (rule.low_freq_factor, rule.high_freq_factor);
            if low >= high {
                return Err(config.bad(format!(
                    "rope_scaling of type `llama3` has low_freq_factor {low}, which is not below high_freq_factor {high}"
                )));
            }
            Ok(RopeExtension::Llama3(rule))
        }
        Some(kind) if rope_lists::TYPES.contains(&kind) => Ok(RopeExtension::Factors),
        Some(other) => Err(config.unsupported(
            &format!("rope_scaling of type `{other}`"),
            "supported types are `default`, `linear`, `dynamic`, `llama3`, `longrope` and `yarn`",
        )),
    }
}
