//! What a run is resumed and joined by ([`Identity`]), put together from its plan, its model and its device.
//!
//! Types of other modules are taken apart here without a `..`: whoever adds a field to one of them decides whether it
//! changes texts.

use std::collections::BTreeMap;

use data::{KeptMetadata, LengthLimits, OnBadRecord, OnOverlength, TokenField};
use model_core::{AttentionAlgorithm, Backend, Isa, LoadOptions, ModelConfig, Reduction};
use model_spec::{
    Activation, AttentionRule, BlockStyle, Float, HeadLayout, MoeLayers, Multipliers, Nonlinearity, NormSpec,
    Normalization, OutputSpec, PositionEmbedding, RopeScaling, RotaryConfig, RotaryPairing, RouterScore,
    UniformSpec,
};
use sampling::SamplingParams;
use tch::{Device, Kind};

use crate::config::plan::{Bos, GenerationPlan, LineFormat, RowParamsMode, Unfinished};
use crate::config::records::RecordFormat;
use crate::exit::Failure;
use crate::output::identity::{ChatTokens, Compute, ModelFields, Settings};
use crate::output::{Identity, OutputField};
use crate::table::block_name;

impl GenerationPlan {
    /// The settings that decide what a sample's text and its line are. Model, device and inputs are left to the caller.
    pub(crate) fn identity(&self) -> Identity {
        let (chat, prompt_response) = match &self.records {
            RecordFormat::Chat(tokens) => {
                let tokens = tokens.clone();
                let chat = ChatTokens {
                    system_turn_start: tokens.system_turn_start,
                    turn_start: tokens.turn_start,
                    label_start: tokens.label_start,
                    end_of_turn: tokens.end_of_turn,
                    end_of_name: tokens.end_of_name,
                };
                (Some(chat), None)
            }
            RecordFormat::PromptResponse { typed, .. } => (None, Some(typed.clone())),
        };
        let mut identity = Identity::default();
        identity.settings = self.settings();
        identity.chat = chat;
        identity.prompt_response = prompt_response;
        identity
    }

    fn settings(&self) -> Settings {
        // `compute_logprob` adds nothing to a line that `output_fields` does not.
        let SamplingParams {
            use_greedy,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            compute_logprob: _,
            top_logprobs,
        } = self.sampling;
        let (banned, biased): (Vec<_>, Vec<_>) =
            self.token_bias.iter().partition(|(_, bias)| *bias == f32::NEG_INFINITY);
        Settings {
            seed: self.seed,
            encoder_seq_length: self.encoder_seq_length,
            num_responses: self.num_responses,
            use_greedy,
            temperature: as_typed(temperature),
            top_k,
            top_p: top_p.map(as_typed),
            repetition_penalty: as_typed(repetition_penalty),
            min_p: min_p.map(as_typed),
            banned_tokens: banned.into_iter().map(|(token, _)| token.to_string()).collect(),
            logit_bias: biased
                .into_iter()
                .map(|(token, bias)| (token.to_string(), as_typed(*bias)))
                .collect(),
            structured_outputs: self.structured_outputs.clone(),
            top_logprobs: Some(top_logprobs)
                .filter(|_| self.output_fields.contains(&OutputField::TopLogprobs)),
            line_format: match self.line_format {
                LineFormat::Sft => None,
                LineFormat::OpenAiBatch => Some("openai_batch".to_owned()),
            },
            on_bad_record: (self.on_unusable.bad == OnBadRecord::Keep).then(|| "keep".to_owned()),
            on_overlength: match (self.on_unusable.too_long, self.cut_to) {
                (OnOverlength::Keep, _) => Some("keep".to_owned()),
                (OnOverlength::Drop, Some(_)) => Some("truncate".to_owned()),
                (OnOverlength::Drop, None) => None,
            },
            row_params: self.row_params == RowParamsMode::Read,
            add_bos: self.bos == Bos::Add,
            end_strings: self.end_strings.clone(),
            max_length: self.max_length,
            min_length: self.min_length,
            drop_unfinished: self.unfinished == Unfinished::Drop,
            output_fields: self.output_fields.clone(),
            on_response: self.checks.on_response.clone(),
            best_of_n: self.checks.best_of.map(|by| by.name().to_owned()),
            pass_at_k: self.checks.pass_at_k.clone(),
            length_limits: length_limits(&self.length_limits),
            output_original_text: self.kept_metadata == KeptMetadata::OtherKeysAndText,
            chat: matches!(self.records, RecordFormat::Chat(_)),
            num_drawn: self.num_drawn,
            date: self.date.map(|date| date.to_string()),
            end_token_ids: Vec::new(),
        }
    }
}

/// The number that a user typed, which was rounded to float32: the shortest that rounds to the same.
fn as_typed(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// The limit of each field. Both limits on the prompt leave out the same when the smaller one is the same.
fn length_limits(limits: &LengthLimits) -> BTreeMap<String, usize> {
    let LengthLimits { fields, max_input_len } = limits;
    let mut smallest = BTreeMap::new();
    let of_fields = fields.iter().map(|&(field, limit)| (field, limit));
    for (field, limit) in of_fields.chain(max_input_len.map(|limit| (TokenField::ContextIds, limit))) {
        let name = match field {
            TokenField::ContextIds => "context_ids",
            TokenField::InputIds => "input_ids",
            TokenField::AnswerIds => "answer_ids",
            TokenField::Mask => "mask",
        };
        let known = smallest.entry(name.to_owned()).or_insert(limit);
        *known = limit.min(*known);
    }
    smallest
}

/// The fields of a model that its arithmetic depends on.
pub(crate) fn model_fields(config: &ModelConfig) -> ModelFields {
    // Among the settings is the length of a sequence.
    let ModelConfig { ref uniform, encoder_seq_length: _, max_position_embeddings } = *config;
    let UniformSpec {
        num_layers,
        hidden_size,
        ffn_hidden_size,
        ref moe,
        heads: HeadLayout { num_attention_heads, num_query_groups, kv_channels },
        block_style,
        norm: NormSpec { normalization, zero_centered_gamma, epsilon: layernorm_epsilon },
        activation: Activation { nonlinearity, gated },
        bias,
        qkv_bias,
        qk_layernorm,
        position_embedding,
        // No sequence is longer.
        window: _,
        attention:
            AttentionRule {
                scale,
                softcap: attn_logit_softcapping,
                ref local,
                norm_across_heads,
                norm_per_head,
                has_sinks,
            },
        post_layernorms,
        apply_embedding_scaling,
        output:
            OutputSpec {
                tied: share_embeddings_and_output_weights,
                bias: output_layer_bias,
                softcap: final_logit_softcapping,
            },
        pre_layernorms,
        multipliers: Multipliers { embedding, residual, logits },
        ref blocks,
    } = *uniform;
    ModelFields {
        num_layers,
        hidden_size,
        ffn_hidden_size,
        num_attention_heads,
        num_query_groups,
        kv_channels,
        block_style: block_style_name(block_style).to_owned(),
        normalization: normalization_name(normalization).to_owned(),
        zero_centered_gamma,
        layernorm_epsilon,
        activation: activation_name(nonlinearity, gated),
        bias,
        qkv_bias,
        qk_layernorm,
        qk_layernorm_across_heads: norm_across_heads,
        qk_layernorm_per_head: norm_per_head,
        pre_layernorms: (!pre_layernorms).then_some(false),
        embedding_multiplier: embedding,
        residual_multiplier: residual,
        logits_multiplier: logits,
        blocks: blocks.as_ref().map(|blocks| blocks.iter().map(block_name).collect()),
        post_layernorms,
        query_pre_attn_scalar: scale.map(|scale| 1.0 / (scale * scale)),
        attn_logit_softcapping,
        softmax_type: has_sinks.then(|| "learnable".to_owned()),
        final_logit_softcapping,
        is_local: local.as_ref().map(|local| local.is_local.clone()),
        local_tokens: local.as_ref().map(|local| local.tokens),
        rotary_base_local: local.as_ref().and_then(|local| local.rotary_base),
        share_embeddings_and_output_weights,
        output_layer_bias,
        apply_embedding_scaling,
        max_position_embeddings,
        ..of_positions(position_embedding, kv_channels, of_experts(moe.as_ref()))
    }
}

/// `others` with the fields of positions.
fn of_positions(
    position_embedding: PositionEmbedding,
    kv_channels: usize,
    others: ModelFields,
) -> ModelFields {
    let rotary = match position_embedding {
        PositionEmbedding::LearnedAbsolute => None,
        PositionEmbedding::Rope(rotary) => Some(rotary),
    };
    let scaling = rotary.and_then(|rotary| rotary.rope_scaling);
    let factors = rotary.and_then(|rotary| rotary.factors);
    let of_rotary = |rotary: RotaryConfig| {
        let RotaryConfig {
            rotary_dims,
            pairing,
            rotary_base,
            seq_len_interpolation_factor,
            rope_scaling: _,
            factors: _,
        } = rotary;
        let interleaved = pairing == RotaryPairing::Interleaved;
        (rotary_dims, interleaved, rotary_base, seq_len_interpolation_factor)
    };
    let rotary = rotary.map(of_rotary);
    ModelFields {
        rope_factors: factors.map(|factors| {
            let divisors = factors.divisors().iter().map(|&divisor| f64::from(divisor));
            divisors.chain([factors.attention_factor]).collect()
        }),
        position_embedding_type: if rotary.is_some() { "rope" } else { "learned_absolute" }.to_owned(),
        rotary_percentage: rotary.map(|(rotary_dims, ..)| rotary_dims as f64 / kv_channels as f64),
        rotary_interleaved: rotary.map(|(_, interleaved, ..)| interleaved),
        rotary_base: rotary.map(|(_, _, base, _)| base),
        seq_len_interpolation_factor: rotary.map(|(.., factor)| factor),
        rope_scaling: scaling.map(|scaling| {
            let RopeScaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
                scaling;
            [factor, low_freq_factor, high_freq_factor, original_max_position_embeddings]
        }),
        ..others
    }
}

/// The fields of experts; the others as they are by default.
fn of_experts(moe: Option<&MoeLayers>) -> ModelFields {
    let experts = moe.map(|moe| moe.experts);
    let shared = experts.and_then(|experts| experts.shared);
    ModelFields {
        num_moe_experts: experts.map(|experts| experts.num_experts),
        is_moe: moe.map(|moe| moe.is_moe.clone()),
        moe_ffn_hidden_size: experts.map(|experts| experts.ffn_hidden_size),
        moe_router_topk: experts.map(|experts| experts.router.topk),
        moe_router_score_function: experts.map(|experts| router_score_name(experts.router.score).to_owned()),
        moe_router_enable_expert_bias: experts.map(|experts| experts.router.has_expert_bias),
        moe_router_topk_scaling_factor: experts.and_then(|experts| experts.router.scaling),
        moe_shared_expert_intermediate_size: shared.map(|shared| shared.ffn_hidden_size),
        moe_shared_expert_gate: shared.map(|shared| shared.has_gate),
        ..ModelFields::default()
    }
}

fn router_score_name(score: RouterScore) -> &'static str {
    match score {
        RouterScore::SoftmaxOfChosen => "softmax",
        RouterScore::SoftmaxOfAll => "softmax of all",
        RouterScore::Sigmoid => "sigmoid",
    }
}

fn block_style_name(style: BlockStyle) -> &'static str {
    match style {
        BlockStyle::Sequential => "sequential",
        BlockStyle::ParallelSharedNorm => "parallel",
        BlockStyle::ParallelOwnNorm => "parallel with two norms",
    }
}

fn normalization_name(normalization: Normalization) -> &'static str {
    match normalization {
        Normalization::LayerNorm => "layernorm",
        Normalization::RmsNorm => "rmsnorm",
    }
}

fn activation_name(nonlinearity: Nonlinearity, gated: bool) -> String {
    let function = match nonlinearity {
        Nonlinearity::Gelu => "gelu",
        Nonlinearity::GeluTanh => "gelu (tanh)",
        Nonlinearity::QuickGelu => "quick gelu",
        Nonlinearity::ClampedQuickGelu => "quick gelu up to 7",
        Nonlinearity::Silu => "silu",
        Nonlinearity::Relu => "relu",
        Nonlinearity::SquaredRelu => "squared relu",
    };
    if gated { format!("gated {function}") } else { function.to_owned() }
}

/// What the arithmetic on a CPU is called: sets with the same name have bitwise identical results. libtorch chooses its
/// kernels by the machine, whatever the fused ones are to use. `None` on GPUs.
pub(crate) fn arithmetic(options: LoadOptions) -> Option<String> {
    match (options.device, options.backend) {
        (Device::Cpu, Backend::Fused) => {
            let is_bf16 = options.numerics.compute == Float::Bf16;
            let kind = if is_bf16 { Kind::BFloat16 } else { Kind::Float };
            Some(options.isa.arithmetic(kind).to_owned())
        }
        (Device::Cpu, Backend::Plain) => Some(format!("libtorch on {}", Isa::detect())),
        _ => None,
    }
}

/// What the model is computed with. `head_dim`: its `kv_channels`; `device`: the class of the device; `isa`: the
/// [`arithmetic`] of a CPU.
///
/// # Errors
/// When no attention backend is left.
pub(crate) fn compute(
    options: LoadOptions,
    head_dim: usize,
    device: String,
    isa: Option<String>,
    reduction: Reduction,
) -> Result<Compute, Failure> {
    // The instruction set is told by its arithmetic.
    let LoadOptions { numerics, backend, device: place, attention, isa: _ } = options;
    let attention = match backend {
        Backend::Fused => None,
        Backend::Plain => Some(match attention.choose(place, numerics.compute, head_dim)? {
            AttentionAlgorithm::Flash => "flash",
            AttentionAlgorithm::Sdpa => "fused",
            AttentionAlgorithm::Unfused => "unfused",
        }),
    };
    Ok(Compute {
        precision: numerics.to_string(),
        fused: backend == Backend::Fused,
        device,
        isa,
        attention: attention.map(str::to_owned),
        reduction: match reduction {
            Reduction::Chain => None,
            Reduction::Tree => Some("tree".to_owned()),
        },
    })
}

#[cfg(test)]
mod tests;
