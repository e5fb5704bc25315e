//! What a run is resumed and joined by: everything that decides the texts of its samples and their lines.
//!
//! Version 2. Its fields are named as a user knows them, settings by their keys, and stand here one by one, so that what
//! an unfinished run is compared by does not change when a type of the program does. A field that is added later gets a
//! default that stands for what every run before it had; where there is no such value the version is raised.
//! Version 1 was a list of settings and a hash of the model's `Debug` text; it knew neither kernels nor device.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OutputField;

/// The version that this program writes and compares.
pub(crate) const VERSION: u64 = 2;

/// Everything that decides the text of a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    version: u64,
    pub(crate) settings: Settings,
    /// Of chat records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chat: Option<ChatTokens>,
    /// Of prompt-response records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_response: Option<PromptResponse>,
    pub(crate) model: ModelFields,
    pub(crate) compute: Compute,
    pub(crate) inputs: Inputs,
}

/// Settings of the run, by their keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    #[serde(rename = "model.seed")]
    pub(crate) seed: u64,
    #[serde(rename = "model.encoder_seq_length")]
    pub(crate) encoder_seq_length: usize,
    #[serde(rename = "model.generation.num_responses_to_gen")]
    pub(crate) num_responses: u32,
    #[serde(rename = "model.generation.sampling_params.use_greedy")]
    pub(crate) use_greedy: bool,
    #[serde(rename = "model.generation.sampling_params.temperature")]
    pub(crate) temperature: f64,
    #[serde(rename = "model.generation.sampling_params.top_k")]
    pub(crate) top_k: Option<u32>,
    #[serde(rename = "model.generation.sampling_params.top_p")]
    pub(crate) top_p: Option<f64>,
    #[serde(rename = "model.generation.sampling_params.repetition_penalty")]
    pub(crate) repetition_penalty: f64,
    /// What was added after this version was first recorded is absent where it changes nothing.
    #[serde(
        rename = "model.generation.sampling_params.min_p",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) min_p: Option<f64>,
    /// By what is typed for the tokens.
    #[serde(
        rename = "model.generation.sampling_params.banned_tokens",
        default,
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) banned_tokens: Vec<String>,
    #[serde(
        rename = "model.generation.sampling_params.logit_bias",
        default,
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(crate) logit_bias: BTreeMap<String, f64>,
    /// With the schema itself where a file has it.
    #[serde(
        rename = "model.generation.sampling_params.structured_outputs",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) structured_outputs: Option<String>,
    /// Where they are written.
    #[serde(
        rename = "model.generation.sampling_params.top_logprobs",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) top_logprobs: Option<u32>,
    /// What lines are, where they are not the guide's.
    #[serde(rename = "model.data.format", default, skip_serializing_if = "Option::is_none")]
    pub(crate) line_format: Option<String>,
    /// `keep`: bad records are rows.
    #[serde(rename = "model.data.train_ds.on_bad_record", default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_bad_record: Option<String>,
    /// `keep`: prompts that are too long are rows; `truncate`: they are cut.
    #[serde(rename = "model.data.train_ds.on_overlength", default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_overlength: Option<String>,
    /// Whether records set how they are answered.
    #[serde(rename = "model.data.train_ds.row_params", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) row_params: bool,
    #[serde(rename = "model.generation.sampling_params.add_BOS")]
    pub(crate) add_bos: bool,
    #[serde(rename = "model.generation.sampling_params.end_strings")]
    pub(crate) end_strings: Vec<String>,
    #[serde(rename = "model.generation.length_params.max_length")]
    pub(crate) max_length: u32,
    #[serde(rename = "model.generation.length_params.min_length")]
    pub(crate) min_length: u32,
    #[serde(rename = "model.generation.drop_unfinished")]
    pub(crate) drop_unfinished: bool,
    #[serde(rename = "model.generation.output_fields")]
    pub(crate) output_fields: Vec<OutputField>,
    /// The command whose answers decide what is kept.
    #[serde(rename = "model.generation.on_response", default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_response: Option<String>,
    #[serde(rename = "model.generation.best_of_n", default, skip_serializing_if = "Option::is_none")]
    pub(crate) best_of_n: Option<String>,
    #[serde(rename = "model.generation.pass_at_k", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pass_at_k: Vec<u32>,
    /// The limit of each field that leaves a sample out; `trt_llm.max_input_len` is one more of the prompt.
    #[serde(rename = "model.data.train_ds.max_seq_length")]
    pub(crate) length_limits: BTreeMap<String, usize>,
    /// Only where the metadata are written.
    #[serde(rename = "model.data.train_ds.output_original_text")]
    pub(crate) output_original_text: bool,
    #[serde(rename = "model.data.chat")]
    pub(crate) chat: bool,
    /// How many samples are drawn; their order depends on it.
    #[serde(rename = "model.data.sample")]
    pub(crate) num_drawn: Option<usize>,
    #[serde(rename = "model.data.date")]
    pub(crate) date: Option<String>,
    /// The tokens that end a response without being asked for.
    #[serde(rename = "end tokens")]
    pub(crate) end_token_ids: Vec<u32>,
}

/// `model.data.chat_prompt_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatTokens {
    #[serde(rename = "model.data.chat_prompt_tokens.system_turn_start")]
    pub(crate) system_turn_start: String,
    #[serde(rename = "model.data.chat_prompt_tokens.turn_start")]
    pub(crate) turn_start: String,
    #[serde(rename = "model.data.chat_prompt_tokens.label_start")]
    pub(crate) label_start: String,
    #[serde(rename = "model.data.chat_prompt_tokens.end_of_turn")]
    pub(crate) end_of_turn: String,
    #[serde(rename = "model.data.chat_prompt_tokens.end_of_name")]
    pub(crate) end_of_name: String,
}

/// What makes prompts of prompt-response records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromptResponse {
    #[serde(rename = "model.data.train_ds.prompt_template")]
    pub(crate) prompt_template: String,
    #[serde(rename = "model.data.train_ds.label_key")]
    pub(crate) label_key: String,
    #[serde(rename = "model.data.train_ds.add_bos")]
    pub(crate) add_bos: bool,
    #[serde(rename = "model.data.train_ds.add_sep")]
    pub(crate) add_sep: bool,
    #[serde(rename = "model.data.train_ds.add_eos")]
    pub(crate) add_eos: bool,
    /// The fields that are cut; none where over-long records are left out.
    #[serde(rename = "model.data.train_ds.truncation_field")]
    pub(crate) truncation_fields: Vec<String>,
    #[serde(rename = "model.data.train_ds.truncation_method")]
    pub(crate) truncation_method: String,
    /// What they are cut to, in tokens.
    #[serde(rename = "model.data.train_ds.max_seq_length (cut to)")]
    pub(crate) cut_to: Option<usize>,
}

/// The arithmetic of the model, by the keys of its `model_config.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelFields {
    #[serde(rename = "model.num_layers")]
    pub(crate) num_layers: usize,
    #[serde(rename = "model.hidden_size")]
    pub(crate) hidden_size: usize,
    #[serde(rename = "model.ffn_hidden_size")]
    pub(crate) ffn_hidden_size: usize,
    #[serde(rename = "model.num_attention_heads")]
    pub(crate) num_attention_heads: usize,
    #[serde(rename = "model.num_query_groups")]
    pub(crate) num_query_groups: usize,
    #[serde(rename = "model.kv_channels")]
    pub(crate) kv_channels: usize,
    /// `sequential`, `parallel` or `parallel with two norms`.
    #[serde(rename = "model.parallel_attention")]
    pub(crate) block_style: String,
    #[serde(rename = "model.normalization")]
    pub(crate) normalization: String,
    #[serde(rename = "model.layernorm_zero_centered_gamma")]
    pub(crate) zero_centered_gamma: bool,
    #[serde(rename = "model.layernorm_epsilon")]
    pub(crate) layernorm_epsilon: f64,
    /// The function and, before it, `gated` where it gates a second projection.
    #[serde(rename = "model.activation")]
    pub(crate) activation: String,
    #[serde(rename = "model.bias")]
    pub(crate) bias: bool,
    #[serde(rename = "model.qkv_bias")]
    pub(crate) qkv_bias: bool,
    /// Absent in records from before it was computed.
    #[serde(rename = "model.qk_layernorm", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) qk_layernorm: bool,
    #[serde(rename = "model.qk_layernorm_across_heads", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) qk_layernorm_across_heads: bool,
    /// These are absent in records from before they were computed.
    #[serde(rename = "model.qk_layernorm_per_head", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) qk_layernorm_per_head: bool,
    /// Where they are not there.
    #[serde(rename = "model.pre_layernorms", default, skip_serializing_if = "Option::is_none")]
    pub(crate) pre_layernorms: Option<bool>,
    #[serde(rename = "model.embedding_multiplier", default, skip_serializing_if = "Option::is_none")]
    pub(crate) embedding_multiplier: Option<f64>,
    #[serde(rename = "model.residual_multiplier", default, skip_serializing_if = "Option::is_none")]
    pub(crate) residual_multiplier: Option<f64>,
    #[serde(rename = "model.logits_multiplier", default, skip_serializing_if = "Option::is_none")]
    pub(crate) logits_multiplier: Option<f64>,
    /// What each layer consists of, where they are of several kinds.
    #[serde(
        rename = "model.heterogeneous_layers_config_encoded_json",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) blocks: Option<Vec<String>>,
    /// What frequencies are divided by, and at last what cosines and sines are multiplied by.
    #[serde(rename = "model.rope_scaling.factors", default, skip_serializing_if = "Option::is_none")]
    pub(crate) rope_factors: Option<Vec<f64>>,
    #[serde(rename = "model.post_layernorms", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) post_layernorms: bool,
    /// Of the scale of scores, however it is stated, where it is not the usual one.
    #[serde(rename = "model.query_pre_attn_scalar", default, skip_serializing_if = "Option::is_none")]
    pub(crate) query_pre_attn_scalar: Option<f64>,
    /// Where it is not `vanilla`.
    #[serde(rename = "model.softmax_type", default, skip_serializing_if = "Option::is_none")]
    pub(crate) softmax_type: Option<String>,
    #[serde(rename = "model.attn_logit_softcapping", default, skip_serializing_if = "Option::is_none")]
    pub(crate) attn_logit_softcapping: Option<f64>,
    #[serde(rename = "model.final_logit_softcapping", default, skip_serializing_if = "Option::is_none")]
    pub(crate) final_logit_softcapping: Option<f64>,
    /// For each layer, whether it sees a part of what is before it, where some do.
    #[serde(rename = "model.window_attn_skip_freq", default, skip_serializing_if = "Option::is_none")]
    pub(crate) is_local: Option<Vec<bool>>,
    /// What such layers see.
    #[serde(rename = "model.window_size", default, skip_serializing_if = "Option::is_none")]
    pub(crate) local_tokens: Option<usize>,
    #[serde(rename = "model.rotary_base_local", default, skip_serializing_if = "Option::is_none")]
    pub(crate) rotary_base_local: Option<f64>,
    /// These are absent in records of models without experts.
    #[serde(rename = "model.num_moe_experts", default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_moe_experts: Option<usize>,
    /// For each layer, whether it has experts.
    #[serde(rename = "model.moe_layer_freq", default, skip_serializing_if = "Option::is_none")]
    pub(crate) is_moe: Option<Vec<bool>>,
    #[serde(rename = "model.moe_ffn_hidden_size", default, skip_serializing_if = "Option::is_none")]
    pub(crate) moe_ffn_hidden_size: Option<usize>,
    #[serde(rename = "model.moe_router_topk", default, skip_serializing_if = "Option::is_none")]
    pub(crate) moe_router_topk: Option<usize>,
    /// `softmax` of those that were chosen, `softmax of all` or `sigmoid`.
    #[serde(rename = "model.moe_router_score_function", default, skip_serializing_if = "Option::is_none")]
    pub(crate) moe_router_score_function: Option<String>,
    #[serde(
        rename = "model.moe_router_enable_expert_bias",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) moe_router_enable_expert_bias: Option<bool>,
    #[serde(
        rename = "model.moe_router_topk_scaling_factor",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) moe_router_topk_scaling_factor: Option<f64>,
    #[serde(
        rename = "model.moe_shared_expert_intermediate_size",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub(crate) moe_shared_expert_intermediate_size: Option<usize>,
    #[serde(rename = "model.moe_shared_expert_gate", default, skip_serializing_if = "Option::is_none")]
    pub(crate) moe_shared_expert_gate: Option<bool>,
    /// `learned_absolute` or `rope`, to which all that follows belongs.
    #[serde(rename = "model.position_embedding_type")]
    pub(crate) position_embedding_type: String,
    /// The share of a head's dimensions that is rotated.
    #[serde(rename = "model.rotary_percentage")]
    pub(crate) rotary_percentage: Option<f64>,
    #[serde(rename = "model.rotary_interleaved")]
    pub(crate) rotary_interleaved: Option<bool>,
    #[serde(rename = "model.rotary_base")]
    pub(crate) rotary_base: Option<f64>,
    #[serde(rename = "model.seq_len_interpolation_factor")]
    pub(crate) seq_len_interpolation_factor: Option<f64>,
    /// `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
    #[serde(rename = "model.rope_scaling")]
    pub(crate) rope_scaling: Option<[f64; 4]>,
    #[serde(rename = "model.share_embeddings_and_output_weights")]
    pub(crate) share_embeddings_and_output_weights: bool,
    #[serde(rename = "model.output_layer_bias")]
    pub(crate) output_layer_bias: bool,
    #[serde(rename = "model.apply_embedding_scaling")]
    pub(crate) apply_embedding_scaling: bool,
    #[serde(rename = "model.max_position_embeddings")]
    pub(crate) max_position_embeddings: usize,
}

/// What it is computed with. Kernels, devices and number formats round differently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compute {
    /// What weights, activations and the KV cache are held in.
    #[serde(rename = "trainer.precision")]
    pub(crate) precision: String,
    /// Whether the fused kernels are used.
    #[serde(rename = "trainer.generation.trt_llm.enable")]
    pub(crate) fused: bool,
    /// `cpu`, or `gpu` and its architecture.
    pub(crate) device: String,
    /// The arithmetic of the CPU's instruction set. Absent on GPUs and in records from before it was recorded, which are not
    /// compared by it.
    #[serde(rename = "instruction set", default, skip_serializing_if = "Option::is_none")]
    pub(crate) isa: Option<String>,
    /// Of the plain kernels, as the `NVTE_*` variables choose it.
    #[serde(rename = "attention backend")]
    pub(crate) attention: Option<String>,
    /// How sums over the inputs of a layer are taken, where that is not in one chain. The sizes of the job's topology change
    /// no text.
    #[serde(rename = "model.generation.reduction", default, skip_serializing_if = "Option::is_none")]
    pub(crate) reduction: Option<String>,
}

/// Fingerprints of what is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inputs {
    pub(crate) checkpoint: String,
    /// What is added to its weights, in this order. Absent in records from before anything could be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) adapters: Vec<String>,
    pub(crate) tokenizer: String,
    /// Absent for ranks that do not read the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
}

/// A recorded identity that this program cannot compare.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdentityError {
    /// Of another version.
    #[error("it has version {found} of what decides the texts, this program has version {VERSION}")]
    Version { found: u64 },
    /// Of this version, with something that this program does not know.
    #[error("what decides the texts cannot be read: {reason}")]
    Unreadable { reason: String },
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            version: VERSION,
            settings: Settings::default(),
            chat: None,
            prompt_response: None,
            model: ModelFields::default(),
            compute: Compute::default(),
            inputs: Inputs::default(),
        }
    }
}

impl Identity {
    /// Reads one that this program or another version of it recorded.
    ///
    /// # Errors
    /// When it has another version, or fields that this program does not know.
    pub(crate) fn read(recorded: &Value) -> Result<Self, IdentityError> {
        // The first version had no number.
        let found = recorded.get("version").map_or(Some(1), Value::as_u64);
        match found {
            Some(VERSION) | None => Self::deserialize(recorded)
                .map_err(|error| IdentityError::Unreadable { reason: error.to_string() }),
            Some(found) => Err(IdentityError::Version { found }),
        }
    }

    /// As it is recorded.
    ///
    /// # Errors
    /// When a value cannot be written as JSON.
    pub(crate) fn record(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self)
    }

    /// What ranks that do not read the data can be held to.
    pub(crate) fn without_data(mut self) -> Self {
        self.inputs.data = None;
        self
    }

    /// What differs, with both values; fingerprints by name alone.
    pub(crate) fn changes(&self, now: &Self) -> Vec<String> {
        let mut recorded = self.clone();
        if recorded.compute.isa.is_none() && recorded.compute.device == now.compute.device {
            recorded.compute.isa.clone_from(&now.compute.isa);
        }
        let (before, after) = (recorded.entries(), now.entries());
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let change = |name: &String| match (before.get(name), after.get(name)) {
            (before, after) if before == after => None,
            (Some(Entry::Value(before)), Some(Entry::Value(after))) => {
                Some(format!("`{name}` (was {before}, now {after})"))
            }
            _ => Some(format!("`{name}`")),
        };
        let changes: Vec<String> = names.into_iter().filter_map(change).collect();
        // Whatever the names say: what is not equal is not taken for equal.
        if changes.is_empty() && recorded != *now { vec!["a value".to_owned()] } else { changes }
    }

    /// All fields, by the name that a user knows them by.
    fn entries(&self) -> BTreeMap<String, Entry> {
        let Self { version: _, settings, chat, prompt_response, model, compute, inputs } = self;
        let groups = [
            serde_json::to_value(settings),
            serde_json::to_value(chat),
            serde_json::to_value(prompt_response),
            serde_json::to_value(model),
            serde_json::to_value(compute),
        ];
        let values = groups.into_iter().flat_map(fields_of).map(|(name, value)| (name, Entry::Value(value)));
        let fingerprints = fields_of(serde_json::to_value(inputs));
        values
            .chain(fingerprints.into_iter().map(|(name, value)| (name, Entry::Fingerprint(value))))
            .collect()
    }
}

#[derive(PartialEq)]
enum Entry {
    Value(Value),
    Fingerprint(Value),
}

/// The fields of a group, none where it is absent.
fn fields_of(group: serde_json::Result<Value>) -> serde_json::Map<String, Value> {
    match group {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn identity(seed: u64, data: &str) -> Identity {
        let mut identity = Identity::default();
        identity.settings.seed = seed;
        identity.inputs.data = Some(data.to_owned());
        identity
    }

    #[test]
    fn changes_are_named() {
        assert_eq!(identity(1, "a").changes(&identity(1, "a")), Vec::<String>::new());
        assert_eq!(identity(1, "a").changes(&identity(2, "b")), ["`data`", "`model.seed` (was 1, now 2)"]);
        let without = identity(1, "a").without_data();
        assert_eq!(without.changes(&identity(1, "b").without_data()), Vec::<String>::new());
        let chat = Identity { chat: Some(ChatTokens::default()), ..identity(1, "a") };
        assert_eq!(chat.changes(&identity(1, "a")).len(), 5);
    }

    #[test]
    fn instruction_sets_are_compared_where_they_are_recorded() {
        let on = |isa: Option<&str>| {
            let mut identity = identity(1, "a");
            identity.compute.isa = isa.map(str::to_owned);
            identity
        };
        let change = "`instruction set` (was \"amx\", now \"fma\")";
        assert_eq!(on(Some("amx")).changes(&on(Some("fma"))), [change]);
        assert_eq!(on(None).changes(&on(Some("fma"))), Vec::<String>::new());
        assert_eq!(on(Some("amx")).changes(&on(None)), ["`instruction set`"]);
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let recorded = identity(7, "a").record().unwrap();
        assert_eq!(recorded["version"], VERSION);
        assert_eq!(recorded["settings"]["model.seed"], 7);
        assert_eq!(Identity::read(&recorded).unwrap(), identity(7, "a"));
    }

    #[test]
    fn other_versions_and_unknown_fields_are_told_apart() {
        let first = json!({"model.seed": 7, "model configuration fingerprint": "ab"});
        assert_eq!(Identity::read(&first), Err(IdentityError::Version { found: 1 }));
        assert_eq!(Identity::read(&json!({"version": 3})), Err(IdentityError::Version { found: 3 }));
        let mut more = identity(7, "a").record().unwrap();
        more["compute"]["new"] = json!(1);
        let error = Identity::read(&more).unwrap_err().to_string();
        assert!(error.contains("unknown field `new`"), "{error}");
        let mut less = identity(7, "a").record().unwrap();
        less["compute"].as_object_mut().unwrap().remove("device");
        let error = Identity::read(&less).unwrap_err().to_string();
        assert!(error.contains("missing field `device`"), "{error}");
    }
}
