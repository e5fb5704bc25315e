//! The resolved configuration as it is typed by the user, section by section. Nothing is checked here but types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hydra_config::Resolved;
use sampling::{RawEndStrings, RawSamplingParams};
use serde::Deserialize;

use super::checks::RawPassAtK;
use super::parallel::ParallelPlan;
use crate::exit::Failure;
use crate::output::OutputField;

/// `trainer`; keys of the training software are let through.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawTrainer {
    pub(crate) num_nodes: u64,
    pub(crate) devices: RawDevices,
    pub(crate) accelerator: String,
    pub(crate) precision: RawPrecision,
    pub(crate) generation: RawTrainerGeneration,
}

/// A number of devices, or `auto`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a whole number or `auto`")]
pub(crate) enum RawDevices {
    Number(i64),
    Name(String),
}

/// `32`, `bf16`, `bf16-mixed`, …
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "`32` or a name such as `bf16`")]
pub(crate) enum RawPrecision {
    Bits(i64),
    Name(String),
}

impl std::fmt::Display for RawPrecision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "{bits}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawTrainerGeneration {
    pub(crate) max_epochs: i64,
    pub(crate) max_steps: i64,
    pub(crate) limit_train_batches: Option<RawLimit>,
    pub(crate) lease_seconds: i64,
    pub(crate) join_timeout_seconds: i64,
    pub(crate) max_batch: Option<i64>,
    pub(crate) kv_cache_memory_bytes: Option<i64>,
    pub(crate) swap_space: Option<f64>,
    pub(crate) prefix_cache: Option<bool>,
    pub(crate) speculation: RawSpeculation,
    pub(crate) trt_llm: RawTrtLlm,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawSpeculation {
    pub(crate) enable: bool,
}

/// A whole number of steps, or a fraction of the data: `1` and `1.0` differ.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a whole number of steps or a fraction such as 1.0")]
pub(crate) enum RawLimit {
    Steps(i64),
    Fraction(f64),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawTrtLlm {
    pub(crate) enable: bool,
    pub(crate) max_input_len: i64,
    pub(crate) model_type: String,
    pub(crate) quantization: Option<String>,
    pub(crate) kv_cache_dtype: String,
}

/// `exp_manager`; inert keys are let through.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RawExpManager {
    pub(crate) explicit_log_dir: Option<PathBuf>,
    pub(crate) exp_dir: Option<PathBuf>,
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) max_time_per_run: Option<String>,
    pub(crate) resume_if_exists: Option<bool>,
    pub(crate) create_tensorboard_logger: Option<bool>,
    pub(crate) summary_writer_kwargs: Option<BTreeMap<String, serde_json::Value>>,
    pub(crate) create_wandb_logger: Option<bool>,
    pub(crate) wandb_logger_kwargs: Option<BTreeMap<String, serde_json::Value>>,
    pub(crate) create_mlflow_logger: Option<bool>,
    pub(crate) create_dllogger_logger: Option<bool>,
    pub(crate) create_clearml_logger: Option<bool>,
    pub(crate) create_neptune_logger: Option<bool>,
    pub(crate) log_local_rank_0_only: Option<bool>,
    pub(crate) log_global_rank_0_only: Option<bool>,
    pub(crate) files_to_copy: Option<Vec<PathBuf>>,
}

/// `model.generation`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawGeneration {
    pub(crate) reduction: Option<String>,
    pub(crate) num_responses_to_gen: i64,
    pub(crate) sampling_params: RawSampling,
    pub(crate) length_params: RawLengths,
    pub(crate) drop_unfinished: bool,
    pub(crate) output_format: Option<String>,
    pub(crate) output_fields: Vec<OutputField>,
    pub(crate) on_response: Option<String>,
    pub(crate) on_response_timeout_seconds: Option<i64>,
    pub(crate) best_of_n: Option<String>,
    pub(crate) pass_at_k: Option<RawPassAtK>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawSampling {
    #[serde(rename = "add_BOS")]
    pub(crate) add_bos: bool,
    pub(crate) all_probs: bool,
    pub(crate) end_strings: Option<RawEndStrings>,
    pub(crate) banned_tokens: Option<Vec<RawToken>>,
    pub(crate) logit_bias: Option<BTreeMap<String, f64>>,
    pub(crate) structured_outputs: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A token by its id or by its text.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a token's id or its text")]
pub(crate) enum RawToken {
    Id(u32),
    Text(String),
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct RawLengths {
    pub(crate) max_length: i64,
    pub(crate) min_length: i64,
}

/// `model.data`; inert keys are let through.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawData {
    pub(crate) chat: bool,
    pub(crate) sample: bool,
    pub(crate) date: Option<String>,
    pub(crate) format: Option<String>,
    pub(crate) chat_prompt_tokens: RawChatPromptTokens,
    pub(crate) train_ds: RawTrainDs,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawChatPromptTokens {
    pub(crate) system_turn_start: String,
    pub(crate) turn_start: String,
    pub(crate) label_start: String,
    pub(crate) end_of_turn: String,
    pub(crate) end_of_name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RawTrainDs {
    pub(crate) file_path: RawFilePath,
    pub(crate) on_bad_record: String,
    pub(crate) on_overlength: Option<String>,
    pub(crate) row_params: Option<bool>,
    pub(crate) length_hint_key: Option<String>,
    pub(crate) max_seq_length: Option<RawMaxSeqLength>,
    pub(crate) drop_last: RawDropLast,
    pub(crate) label_key: String,
    pub(crate) add_eos: bool,
    pub(crate) add_sep: bool,
    pub(crate) add_bos: bool,
    pub(crate) truncation_field: String,
    pub(crate) truncation_method: String,
    pub(crate) prompt_template: Option<String>,
    pub(crate) output_original_text: bool,
}

/// One file, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a path or a list of paths")]
pub(crate) enum RawFilePath {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// One limit for all fields, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a whole number or a list of them")]
pub(crate) enum RawMaxSeqLength {
    One(i64),
    Each(Vec<i64>),
}

/// `auto`, true or false.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "`auto`, true or false")]
pub(crate) enum RawDropLast {
    Fixed(bool),
    Name(String),
}

/// Everything that the plan is made of.
#[derive(Clone, Debug)]
pub(crate) struct RawConfig {
    pub(crate) trainer: RawTrainer,
    pub(crate) exp_manager: RawExpManager,
    pub(crate) generation: RawGeneration,
    pub(crate) sampling: RawSamplingParams,
    pub(crate) data: RawData,
    pub(crate) seed: Option<i64>,
    pub(crate) micro_batch_size: i64,
    pub(crate) global_batch_size: i64,
    pub(crate) encoder_seq_length: i64,
    pub(crate) parallel: ParallelPlan,
}

impl RawConfig {
    pub(crate) fn extract(resolved: &Resolved) -> Result<Self, Failure> {
        if resolved.node().get("model.encoder_seq_length").is_none() {
            return Err(Failure::usage(
                "`model.encoder_seq_length` is neither in the checkpoint nor in the configuration",
            ));
        }
        let model: RawModel = resolved.extract_at("model")?;
        Ok(Self {
            trainer: resolved.extract_at("trainer")?,
            exp_manager: resolved.extract_at("exp_manager")?,
            parallel: ParallelPlan::new(resolved, model.generation.reduction.as_deref())?,
            generation: model.generation,
            sampling: resolved.extract_at("model.generation.sampling_params")?,
            data: model.data,
            seed: model.seed,
            micro_batch_size: model.micro_batch_size,
            global_batch_size: model.global_batch_size,
            encoder_seq_length: model.encoder_seq_length,
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawModel {
    generation: RawGeneration,
    data: RawData,
    seed: Option<i64>,
    micro_batch_size: i64,
    global_batch_size: i64,
    encoder_seq_length: i64,
}
