//! From the configuration as typed to a checked, immutable plan. Pure: no file is touched here.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use data::{
    BatchSizes, DataError, Date, DropLast, KeptMetadata, LengthLimits, LimitTrainBatches, OnBadRecord,
    OnOverlength, OnUnusable, RowDemand,
};
use hydra_config::{overrides, shell_word};
use model_core::Backend;
use model_spec::Numerics;
use sampling::{RawEndStrings, SamplingParams};

use super::checks::ChecksPlan;
use super::devices::Devices;
use super::exp_manager::ExpManagerPlan;
use super::model_type::ModelType;
use super::parallel::ParallelPlan;
use super::range::{count, out_of_range, positive};
use super::raw::{
    RawConfig, RawDropLast, RawLengths, RawLimit, RawSampling, RawToken, RawTrainerGeneration, RawTrtLlm,
};
use super::records::{self, RecordFormat};
use crate::exit::Failure;
use crate::output::OutputField;

const MAX_LENGTH: &str = "model.generation.length_params.max_length";

/// What the main job is to do.
#[derive(Clone, Debug)]
pub(crate) struct GenerationPlan {
    /// As typed: files, patterns of files, or `-` for a pipe.
    pub(crate) data_paths: Vec<PathBuf>,
    pub(crate) line_format: LineFormat,
    pub(crate) exp_manager: ExpManagerPlan,
    pub(crate) numerics: Numerics,
    pub(crate) backend: Backend,
    pub(crate) accelerator: String,
    /// `trt_llm.model_type`, with the fast engine.
    pub(crate) model_type: Option<ModelType>,
    pub(crate) devices: Devices,
    pub(crate) parallel: ParallelPlan,
    pub(crate) lease: Duration,
    pub(crate) join_timeout: Duration,
    pub(crate) batch: BatchSizes,
    /// With `model.data.sample`: how many samples are drawn.
    pub(crate) num_drawn: Option<usize>,
    pub(crate) limit: LimitTrainBatches,
    pub(crate) room: RoomPlan,
    /// Whether what prompts begin with in common is computed once.
    pub(crate) prefix_cache: bool,
    pub(crate) speculation: Speculation,
    pub(crate) max_steps: i64,
    pub(crate) drop_last: DropLast,
    pub(crate) length_limits: LengthLimits,
    pub(crate) on_unusable: OnUnusable,
    /// Prompts are cut to this many tokens.
    pub(crate) cut_to: Option<usize>,
    /// Where a record says how long its answer is likely to be.
    pub(crate) length_hint_key: Option<String>,
    pub(crate) row_params: RowParamsMode,
    pub(crate) records: RecordFormat,
    /// What day chat templates take for today.
    pub(crate) date: Option<Date>,
    pub(crate) kept_metadata: KeptMetadata,
    pub(crate) bos: Bos,
    pub(crate) num_responses: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) end_strings: Vec<String>,
    /// As typed, token by token.
    pub(crate) token_bias: Vec<(TokenName, f32)>,
    /// What every response must be, as JSON, but for rows that have a structure of their own.
    pub(crate) structured_outputs: Option<String>,
    pub(crate) max_length: u32,
    pub(crate) min_length: u32,
    pub(crate) encoder_seq_length: usize,
    pub(crate) seed: u64,
    pub(crate) unfinished: Unfinished,
    pub(crate) output_fields: Vec<OutputField>,
    pub(crate) checks: ChecksPlan,
    pub(crate) output_format: OutputFormat,
}

/// `model.generation.output_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    Jsonl,
    /// Beside the lines, when all are there.
    Parquet,
}

impl OutputFormat {
    fn parse(typed: Option<&str>) -> Result<Self, Failure> {
        match typed {
            None | Some("jsonl") => Ok(Self::Jsonl),
            Some("parquet") => Ok(Self::Parquet),
            Some(other) => {
                let key = "model.generation.output_format";
                Err(out_of_range(key, "`jsonl` or `parquet`", &format!("`{other}`")))
            }
        }
    }
}

/// Whether the tokenizer's BOS goes before a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bos {
    Add,
    Leave,
}

/// Whether tokens are drafted and checked several in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speculation {
    On,
    Off,
}

impl Speculation {
    fn new(is_on: bool) -> Self {
        if is_on { Self::On } else { Self::Off }
    }
}

/// `model.data.format`: what lines of input and output are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// Records of SFT data sets, and the guide's lines.
    Sft,
    /// Requests and answers of OpenAI's batch API.
    OpenAiBatch,
}

/// Whether columns of a record set how its own prompt is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowParamsMode {
    Read,
    Ignore,
}

/// A token as it is typed: by its id, or by a text that is one token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TokenName {
    Id(u32),
    Text(String),
}

impl std::fmt::Display for TokenName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Text(text) => write!(f, "`{text}`"),
        }
    }
}

/// What happens to responses that hit the length limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    Keep,
    Drop,
}

impl GenerationPlan {
    /// Checks every value and what they mean together.
    pub(crate) fn new(raw: RawConfig) -> Result<Self, Failure> {
        let devices = Devices::new(&raw.trainer)?;
        let (lease, join_timeout) = patience(&raw)?;
        data::plan::check_max_epochs(raw.trainer.generation.max_epochs)?;
        check_unavailable(&raw)?;
        let trt_llm = &raw.trainer.generation.trt_llm;
        let numerics = numerics(&raw.trainer.precision.to_string(), trt_llm)?;
        let fast = trt_llm.enable;
        let model_type = fast.then(|| ModelType::parse(&trt_llm.model_type)).transpose()?;
        let max_input_len = fast
            .then(|| positive("trainer.generation.trt_llm.max_input_len", trt_llm.max_input_len))
            .transpose()?;
        let batch = BatchSizes {
            global: positive("model.global_batch_size", raw.global_batch_size)?,
            micro: positive("model.micro_batch_size", raw.micro_batch_size)?,
        };
        let num_drawn = records::num_drawn(&raw.data, raw.trainer.generation.max_steps, batch.global)?;
        let generation = raw.generation;
        let records = RecordFormat::new(&raw.data)?;
        let length_limits = records::length_limits(&raw.data, max_input_len)?;
        let on_unusable = records::on_unusable(&raw.data.train_ds)?;
        let cut_to = records::cut_to(&raw.data.train_ds, &length_limits)?;
        let writes_logprobs = raw.sampling.compute_logprob || raw.sampling.top_logprobs > 0;
        let line_format = records::line_format(&raw.data, &generation.output_fields, writes_logprobs)?;
        let row_params = records::row_params(raw.data.train_ds.row_params, line_format);
        let num_responses = count("model.generation.num_responses_to_gen", generation.num_responses_to_gen)?;
        let checks = ChecksPlan::new(&generation, num_responses, row_params, line_format)?;
        let has_errors = may_have_errors(on_unusable, &generation.sampling_params);
        let output_fields = records::output_fields(generation.output_fields, has_errors, line_format);
        let output_fields = checks.with_fields(output_fields);
        let kept_metadata = records::kept_metadata(&raw.data.train_ds, &output_fields, &checks);
        let date = raw.data.date.as_deref().map(parse_date).transpose()?;
        let train_ds = raw.data.train_ds;
        let token_bias = token_bias(&generation.sampling_params)?;
        let structured_outputs = structured_outputs(generation.sampling_params.structured_outputs.as_ref());
        let end_strings = generation.sampling_params.end_strings.map(end_strings).transpose()?;
        Ok(Self {
            data_paths: records::data_paths(train_ds.file_path)?,
            line_format,
            exp_manager: ExpManagerPlan::new(raw.exp_manager)?,
            numerics,
            backend: if fast { Backend::Fused } else { Backend::Plain },
            accelerator: raw.trainer.accelerator,
            model_type,
            devices,
            parallel: raw.parallel,
            lease,
            join_timeout,
            batch,
            num_drawn,
            limit: limit(raw.trainer.generation.limit_train_batches.as_ref()),
            room: RoomPlan::new(&raw.trainer.generation)?,
            prefix_cache: raw.trainer.generation.prefix_cache.unwrap_or(true),
            speculation: Speculation::new(raw.trainer.generation.speculation.enable),
            max_steps: raw.trainer.generation.max_steps,
            drop_last: parse_drop_last(&train_ds.drop_last)?,
            length_limits,
            on_unusable,
            cut_to,
            length_hint_key: records::length_hint_key(train_ds.length_hint_key)?,
            row_params,
            records,
            date,
            kept_metadata,
            bos: if generation.sampling_params.add_bos { Bos::Add } else { Bos::Leave },
            num_responses,
            sampling: with_logprobs(raw.sampling.try_into()?, &checks),
            end_strings: end_strings.unwrap_or_default(),
            token_bias,
            structured_outputs,
            max_length: max_length(generation.length_params)?,
            min_length: u32::try_from(generation.length_params.min_length.max(0)).unwrap_or(u32::MAX),
            encoder_seq_length: positive("model.encoder_seq_length", raw.encoder_seq_length)?,
            seed: parse_seed(raw.seed)?,
            unfinished: if generation.drop_unfinished { Unfinished::Drop } else { Unfinished::Keep },
            output_fields,
            checks,
            output_format: OutputFormat::parse(generation.output_format.as_deref())?,
        })
    }

    /// New tokens that a response to a prompt of this length may have.
    pub(crate) fn budget_tokens(&self, prompt_tokens: usize, row: RowDemand) -> u32 {
        let room = self.encoder_seq_length.saturating_sub(prompt_tokens);
        row.max_length.map_or(self.max_length, NonZero::get).min(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// Whether responses may have structures.
    pub(crate) fn may_have_structures(&self) -> bool {
        self.structured_outputs.is_some() || self.row_params == RowParamsMode::Read
    }

    /// The same for the memory plan.
    pub(crate) fn row_structures(&self) -> RowStructures {
        if self.may_have_structures() { RowStructures::Some } else { RowStructures::None }
    }

    /// How many responses a row gets.
    pub(crate) fn num_responses(&self, row: RowDemand) -> u32 {
        row.num_responses.map_or(self.num_responses, NonZero::get)
    }
}

fn max_length(lengths: RawLengths) -> Result<u32, Failure> {
    count(MAX_LENGTH, lengths.max_length)
}

/// The parameters with log-probabilities where checks need them, which changes no text.
fn with_logprobs(mut sampling: SamplingParams, checks: &ChecksPlan) -> SamplingParams {
    sampling.compute_logprob |= checks.needs_logprobs();
    sampling
}

/// `banned_tokens` and `logit_bias`, each token once.
fn token_bias(sampling: &RawSampling) -> Result<Vec<(TokenName, f32)>, Failure> {
    const LOGIT_BIAS: &str = "model.generation.sampling_params.logit_bias";
    let mut bias = BTreeMap::new();
    for (token, &value) in sampling.logit_bias.iter().flatten() {
        // A map has strings for keys: one that is a whole number is an id.
        let name = token.parse().map_or_else(|_| TokenName::Text(token.clone()), TokenName::Id);
        let narrow = value as f32;
        if !narrow.is_finite() {
            let key = format!("{LOGIT_BIAS}.{token}");
            return Err(out_of_range(&key, "a finite number", &value.to_string()));
        }
        bias.insert(name, narrow);
    }
    for token in sampling.banned_tokens.iter().flatten() {
        let name = match token {
            RawToken::Id(id) => TokenName::Id(*id),
            RawToken::Text(text) => TokenName::Text(text.clone()),
        };
        bias.insert(name, f32::NEG_INFINITY);
    }
    Ok(bias.into_iter().collect())
}

/// Whether rows may have an error, whatever the rows themselves ask for.
fn may_have_errors(on_unusable: OnUnusable, sampling: &RawSampling) -> bool {
    let keeps_any = on_unusable.bad == OnBadRecord::Keep || on_unusable.too_long == OnOverlength::Keep;
    keeps_any || sampling.structured_outputs.is_some()
}

/// The job's structure without the keys that say nothing.
fn structured_outputs(typed: Option<&serde_json::Map<String, serde_json::Value>>) -> Option<String> {
    let set = typed?.iter().filter(|(_, value)| !value.is_null());
    let set: serde_json::Map<_, _> = set.map(|(key, value)| (key.clone(), value.clone())).collect();
    (!set.is_empty()).then(|| serde_json::Value::Object(set).to_string())
}

fn limit(raw: Option<&RawLimit>) -> LimitTrainBatches {
    match raw {
        None => LimitTrainBatches::Fraction(1.0),
        Some(&RawLimit::Steps(steps)) => LimitTrainBatches::Batches(steps),
        Some(&RawLimit::Fraction(fraction)) => LimitTrainBatches::Fraction(fraction),
    }
}

/// How long a rank may be silent, and how long one looks for rank 0.
fn patience(raw: &RawConfig) -> Result<(Duration, Duration), Failure> {
    let generation = &raw.trainer.generation;
    let seconds = |key: &str, value| positive(key, value).map(|value| Duration::from_secs(value as u64));
    Ok((
        seconds("trainer.generation.lease_seconds", generation.lease_seconds)?,
        seconds("trainer.generation.join_timeout_seconds", generation.join_timeout_seconds)?,
    ))
}

/// Whether responses may have structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowStructures {
    Some,
    None,
}

/// How much runs at once, where the user sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoomPlan {
    /// Most responses in one decode step.
    pub(crate) max_batch: Option<usize>,
    /// What the KV cache takes.
    pub(crate) kv_cache_memory_bytes: Option<u64>,
    /// What of it the host may keep beside.
    pub(crate) swap_space_bytes: Option<u64>,
}

impl RoomPlan {
    fn new(raw: &RawTrainerGeneration) -> Result<Self, Failure> {
        const KV_CACHE: &str = "trainer.generation.kv_cache_memory_bytes";
        let max_batch = raw.max_batch.map(|value| positive("trainer.generation.max_batch", value));
        let kv_cache_memory_bytes = raw.kv_cache_memory_bytes.map(|value| positive(KV_CACHE, value));
        Ok(Self {
            max_batch: max_batch.transpose()?,
            kv_cache_memory_bytes: kv_cache_memory_bytes.transpose()?.map(|bytes| bytes as u64),
            swap_space_bytes: raw.swap_space.map(swap_space_bytes).transpose()?,
        })
    }
}

/// GiB, as in vLLM.
fn swap_space_bytes(gibibytes: f64) -> Result<u64, Failure> {
    const KEY: &str = "trainer.generation.swap_space";
    let bytes = gibibytes * f64::from(1 << 30);
    match (0.0..=f64::from(1 << 20) * f64::from(1 << 30)).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(out_of_range(KEY, "a number of GiB from 0 to 1048576", &gibibytes.to_string())),
    }
}

fn check_unavailable(raw: &RawConfig) -> Result<(), Failure> {
    if raw.generation.sampling_params.all_probs {
        return Err(Failure::usage(
            "`model.generation.sampling_params.all_probs=true` would return the probability of every token at every \
             position, some hundred kilobytes a token, and the original fails with it too: leave it out, or for the \
             probabilities of the chosen tokens in the shell write model.generation.sampling_params.all_probs=false \
             model.generation.sampling_params.compute_logprob=true",
        ));
    }
    OutputField::check_all(&raw.generation.output_fields)
        .map_err(|reason| Failure::usage(format!("`model.generation.output_fields`: {reason}")))?;
    if raw.generation.output_fields.contains(&OutputField::Logprobs) && !raw.sampling.compute_logprob {
        return Err(Failure::usage(
            "`model.generation.output_fields` asks for logprobs: set `model.generation.sampling_params.compute_logprob=true`",
        ));
    }
    if raw.generation.output_fields.contains(&OutputField::TopLogprobs) && raw.sampling.top_logprobs == 0 {
        return Err(Failure::usage(
            "`model.generation.output_fields` asks for top_logprobs: set how many with \
             `++model.generation.sampling_params.top_logprobs=5`",
        ));
    }
    Ok(())
}

/// The formats of a precision, with those that the keys of the fast engine name.
fn numerics(precision: &str, trt_llm: &RawTrtLlm) -> Result<Numerics, Failure> {
    let numerics: Numerics = precision.parse()?;
    let numerics = match trt_llm.quantization.as_deref() {
        None => numerics,
        Some("fp8") => numerics.with_fp8_weights(),
        Some(other) => {
            return Err(Failure::usage(format!(
                "`trainer.generation.trt_llm.quantization` must be `fp8` or null, found `{other}`"
            )));
        }
    };
    match trt_llm.kv_cache_dtype.as_str() {
        "auto" => Ok(numerics),
        "fp8" => Ok(numerics.with_fp8_kv()),
        other => Err(Failure::usage(format!(
            "`trainer.generation.trt_llm.kv_cache_dtype` must be `auto` or `fp8`, found `{other}`"
        ))),
    }
}

/// A list of texts that are not empty. An error shows the list that was meant, as it is typed.
fn end_strings(raw: RawEndStrings) -> Result<Vec<String>, Failure> {
    const KEY: &str = "model.generation.sampling_params.end_strings";
    let (mut end_strings, found) = match raw {
        RawEndStrings::List(list) => {
            let found = list.iter().any(String::is_empty).then(|| "an empty string among them".to_owned());
            (list, found)
        }
        RawEndStrings::Bare(text) => {
            let found = format!("the string `{text}`");
            (vec![text], Some(found))
        }
    };
    let Some(found) = found else { return Ok(end_strings) };
    end_strings.retain(|text| !text.is_empty());
    let quoted: Vec<String> = end_strings.iter().map(|text| overrides::quoted(text)).collect();
    let typed = shell_word(&format!("{KEY}=[{}]", quoted.join(",")));
    let problem = out_of_range(KEY, "a list of strings that are not empty", &found).sentence();
    Err(Failure::usage(format!("{problem}; in the shell write {typed}")))
}

fn parse_date(text: &str) -> Result<Date, Failure> {
    Ok(Date::parse(text).ok_or_else(|| DataError::BadDate { text: text.to_owned() })?)
}

fn parse_drop_last(raw: &RawDropLast) -> Result<DropLast, Failure> {
    match raw {
        RawDropLast::Fixed(true) => Ok(DropLast::Always),
        RawDropLast::Fixed(false) => Ok(DropLast::Never),
        RawDropLast::Name(name) if name == "auto" => Ok(DropLast::Auto),
        RawDropLast::Name(name) => {
            Err(out_of_range("model.data.train_ds.drop_last", "`auto`, true or false", &format!("`{name}`")))
        }
    }
}

fn parse_seed(seed: Option<i64>) -> Result<u64, Failure> {
    let seed = seed.ok_or_else(|| out_of_range("model.seed", "a positive whole number", "null"))?;
    u64::try_from(seed)
        .ok()
        .filter(|&seed| seed > 0)
        .ok_or_else(|| out_of_range("model.seed", "a positive whole number", &seed.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn plan(overrides: &[&str]) -> Result<GenerationPlan, Failure> {
        let checkpoint =
            "encoder_seq_length: 256\ntensor_model_parallel_size: 1\npipeline_model_parallel_size: 1\n";
        let basic = ["trainer.devices=1", "trainer.num_nodes=1", "model.data.train_ds.file_path=d.jsonl"];
        let user = config::tests::user(&basic.iter().chain(overrides).copied().collect::<Vec<_>>());
        GenerationPlan::new(RawConfig::extract(&config::resolve(&user.compose_with(checkpoint)?)?)?)
    }

    fn message(overrides: &[&str]) -> String {
        plan(overrides).unwrap_err().sentence()
    }

    #[test]
    fn defaults_are_the_guides() {
        let plan = plan(&[]).unwrap();
        assert_eq!((plan.num_responses, plan.max_length, plan.min_length, plan.seed), (4, 128, 1, 1234));
        assert_eq!(plan.length_limits, LengthLimits::of_prompt(256));
        assert_eq!(plan.end_strings, ["<|endoftext|>", "<extra_id_1>", "<|eot_id|>"]);
        assert_eq!((plan.batch.global, plan.backend), (64, Backend::Plain));
        assert_eq!((plan.limit, plan.drop_last), (LimitTrainBatches::Fraction(1.0), DropLast::Auto));
    }

    #[test]
    fn budget_is_the_rows_own() {
        let plan = plan(&[]).unwrap();
        let job = RowDemand::default();
        assert_eq!(
            [1, 128, 200, 256, 300].map(|tokens| plan.budget_tokens(tokens, job)),
            [128, 128, 56, 0, 0]
        );
        let row = RowDemand { max_length: NonZero::new(150), num_responses: NonZero::new(3) };
        assert_eq!([1, 200].map(|tokens| plan.budget_tokens(tokens, row)), [150, 56]);
        assert_eq!((plan.num_responses(job), plan.num_responses(row)), (4, 3));
    }

    #[test]
    fn limits_keep_their_type() {
        assert_eq!(
            plan(&["trainer.generation.limit_train_batches=1"]).unwrap().limit,
            LimitTrainBatches::Batches(1)
        );
        let plan = plan(&["trainer.generation.trt_llm.enable=true", "model.data.train_ds.max_seq_length=9"])
            .unwrap();
        assert_eq!(
            plan.length_limits,
            LengthLimits { max_input_len: Some(128), ..LengthLimits::of_prompt(9) }
        );
        assert_eq!(plan.backend, Backend::Fused);
    }

    #[test]
    fn prompt_response_records_are_cut_or_left_out() {
        let overrides = ["model.data.chat=false", "model.data.train_ds.prompt_template='{input}\\n{output}'"];
        let left_out = plan(&overrides).unwrap();
        assert_eq!(left_out.length_limits, LengthLimits::of_prompt(256));
        let cut = plan(&[&overrides[..], &["model.data.train_ds.truncation_field='input, output'"]].concat());
        let cut = cut.unwrap();
        assert_eq!(cut.length_limits, LengthLimits::default());
        assert_ne!(left_out.records, cut.records);
        let changes = left_out.identity().changes(&cut.identity());
        assert!(changes.iter().any(|change| change.contains("truncation_field")), "{changes:?}");
    }

    #[test]
    fn sampling_is_about_max_steps() {
        let drawn = |overrides: &[&str]| plan(overrides).unwrap().num_drawn;
        assert_eq!(drawn(&["model.data.sample=true"]), None);
        assert_eq!(drawn(&["trainer.generation.max_steps=3"]), None);
        let sampled = ["model.data.sample=true", "trainer.generation.max_steps=3"];
        assert_eq!(drawn(&sampled), Some(192));
        // Another number of steps is another order, so such a run cannot be continued.
        let base = plan(&sampled).unwrap().identity();
        let more = plan(&[sampled[0], "trainer.generation.max_steps=4"]).unwrap().identity();
        assert_eq!(base.changes(&more).len(), 1);
        assert_eq!(base.changes(&plan(&[]).unwrap().identity()).len(), 1);
    }

    #[test]
    fn refusals() {
        insta::assert_snapshot!(message(&["model.data.sample=true", "trainer.generation.max_steps=0"]), @"`model.data.sample=true` draws `trainer.generation.max_steps` times `model.global_batch_size` samples: 0 times 64 must be from 1 to 1073741824");
        let chat = |text: &'static str| message(&["model.data.chat=false", text]);
        insta::assert_snapshot!(message(&["model.data.chat=false"]), @r#"`model.data.chat=false` needs `model.data.train_ds.prompt_template`, with the key of the response at its end; for records with `input` and `output`, in the shell write 'model.data.train_ds.prompt_template="{input} {output}"'"#);
        insta::assert_snapshot!(chat("model.data.train_ds.prompt_template='{output} {input}'"), @"`model.data.train_ds.prompt_template` is `{output} {input}`: it must end with `{output}`, the key of `model.data.train_ds.label_key`");
        let cut = |text: &str| {
            message(&[
                "model.data.chat=false",
                "model.data.train_ds.prompt_template='{input} {output}'",
                text,
            ])
        };
        insta::assert_snapshot!(cut("model.data.train_ds.truncation_field='context_ids,input'"), @"`model.data.train_ds.truncation_field` names `context_ids`, it may name the keys of the prompt template: `input`, `output`");
        insta::assert_snapshot!(cut("model.data.train_ds.truncation_method=random"), @"`model.data.train_ds.truncation_method` must be `left` or `right`, found `random`");
        insta::assert_snapshot!(message(&["model.data.train_ds.truncation_field=input"]), @"`model.data.train_ds.truncation_field` names `input`, it may name `context_ids`, `input_ids`, `answer_ids` and `mask`, because `model.data.chat=true`");
        insta::assert_snapshot!(message(&["model.data.train_ds.max_seq_length=[7,9]"]), @"`model.data.train_ds.max_seq_length` has 2 limits for the 1 fields of `model.data.train_ds.truncation_field`; give one limit, or one for each field");
        insta::assert_snapshot!(message(&["++model.data.train_ds.length_hint_key=''"]), @"`model.data.train_ds.length_hint_key` must be a key of the records or null, found ``");
        insta::assert_snapshot!(message(&["trainer.devices=0"]), @"`trainer.devices` must be a number from 1, -1 or `auto`, found 0");
        insta::assert_snapshot!(message(&["trainer.devices=some"]), @"`trainer.devices` must be a number from 1, -1 or `auto`, found `some`");
        insta::assert_snapshot!(message(&["trainer.num_nodes=0"]), @"`trainer.num_nodes` must be at least 1, found 0");
        insta::assert_snapshot!(message(&["trainer.generation.lease_seconds=0"]), @"`trainer.generation.lease_seconds` must be at least 1, found 0");
        let wandb = |kwargs: &str| {
            message(&["exp_manager.create_wandb_logger=true", "~exp_manager.wandb_logger_kwargs", kwargs])
        };
        insta::assert_snapshot!(wandb("+exp_manager.wandb_logger_kwargs={entity:x}"), @"`exp_manager.create_wandb_logger=true` needs `exp_manager.wandb_logger_kwargs.name` or `exp_manager.wandb_logger_kwargs.project`; both may be null");
        insta::assert_snapshot!(wandb("+exp_manager.wandb_logger_kwargs={name:x,tags:[1]}"), @"`exp_manager.wandb_logger_kwargs.tags` must be a list of strings or null, found `[1]`");
        insta::assert_snapshot!(wandb("+exp_manager.wandb_logger_kwargs={name:x,id:a/b}"), @"`exp_manager.wandb_logger_kwargs.id` must be at most 64 letters, digits, `-` and `_`, found `a/b`");
        insta::assert_snapshot!(wandb("+exp_manager.wandb_logger_kwargs={name:[x]}"), @r#"`exp_manager.wandb_logger_kwargs.name` must be a string or null, found `["x"]`"#);
        insta::assert_snapshot!(message(&["++exp_manager.summary_writer_kwargs={log_dir:x}"]), @"`exp_manager.summary_writer_kwargs` must not have `log_dir`: events go to `exp_manager.explicit_log_dir`");
        insta::assert_snapshot!(message(&["++exp_manager.create_mlflow_logger=true"]), @"`exp_manager.create_mlflow_logger=true`: there are only TensorBoard and Weights & Biases; set it to false, or use `exp_manager.create_tensorboard_logger` or `exp_manager.create_wandb_logger`");
        insta::assert_snapshot!(message(&["exp_manager.log_local_rank_0_only=true", "exp_manager.log_global_rank_0_only=true"]), @"`exp_manager.log_local_rank_0_only` and `exp_manager.log_global_rank_0_only` are both true; set one of them to false");
        insta::assert_snapshot!(message(&["model.seed=null"]), @"`model.seed` must be a positive whole number, found null");
        insta::assert_snapshot!(message(&["trainer.precision=8"]), @"precision `8` is not supported, use one of `32`, `32-true`, `bf16`, `bf16-mixed`, `bf16-true`");
        insta::assert_snapshot!(message(&["model.generation.sampling_params.end_strings=x"]), @r#"`model.generation.sampling_params.end_strings` must be a list of strings that are not empty, found the string `x`; in the shell write 'model.generation.sampling_params.end_strings=["x"]'"#);
        insta::assert_snapshot!(message(&["model.generation.sampling_params.end_strings=''"]), @"`model.generation.sampling_params.end_strings` must be a list of strings that are not empty, found the string ``; in the shell write 'model.generation.sampling_params.end_strings=[]'");
        insta::assert_snapshot!(message(&["model.generation.sampling_params.end_strings=['',\"it's \\\"\"]"]), @r#"`model.generation.sampling_params.end_strings` must be a list of strings that are not empty, found an empty string among them; in the shell write 'model.generation.sampling_params.end_strings=["it'\''s \""]'"#);
        insta::assert_snapshot!(message(&["++model.data.date=2026-02-30"]), @"`model.data.date` must be a day of the calendar as `YYYY-MM-DD`, found `2026-02-30`");
        insta::assert_snapshot!(message(&["++model.data.date=20260228"]), @"`model.data.date` must be a string, found the whole number 20260228 (command line: ++model.data.date=20260228)");
        insta::assert_snapshot!(message(&["model.generation.sampling_params.temperature=-1"]), @"`temperature` must be a positive, finite number (or set `model.generation.sampling_params.use_greedy=true`), got -1");
        insta::assert_snapshot!(message(&["exp_manager.max_time_per_run=4h"]), @"`exp_manager.max_time_per_run` must be `DD:HH:MM:SS`, found `4h`");
        insta::assert_snapshot!(message(&["model.generation.num_responses_to_gen=0"]), @"`model.generation.num_responses_to_gen` must be at least 1, found 0");
        insta::assert_snapshot!(message(&["model.generation.output_fields=[logprobs]"]), @"`model.generation.output_fields` asks for logprobs: set `model.generation.sampling_params.compute_logprob=true`");
        insta::assert_snapshot!(message(&["model.generation.output_fields=[prompt]"]), @"`model.generation.output_fields`: `prompt` is a key that lines have anyway: take `input`, which has the whole record");
        insta::assert_snapshot!(message(&["model.generation.output_fields=[top_logprobs]"]), @"`model.generation.output_fields` asks for top_logprobs: set how many with `++model.generation.sampling_params.top_logprobs=5`");
        insta::assert_snapshot!(message(&["++model.generation.sampling_params.logit_bias={x:inf}"]), @"`model.generation.sampling_params.logit_bias.x` must be a finite number, found inf");
        insta::assert_snapshot!(message(&["++model.generation.sampling_params.banned_tokens=[1.5]"]), @"`model.generation.sampling_params.banned_tokens.0` must be a token's id or its text, found the number 1.5 (command line: ++model.generation.sampling_params.banned_tokens=[1.5])");
        insta::assert_snapshot!(message(&["model.global_batch_size=two"]), @"`model.global_batch_size` must be a whole number, found the string `two` (command line: model.global_batch_size=two)");
        insta::assert_snapshot!(message(&["trainer.generation.max_epochs=2"]), @"`trainer.generation.max_epochs` is 2, it must be 1");
        insta::assert_snapshot!(message(&["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=bert"]), @"`trainer.generation.trt_llm.model_type` must be `gptj`, `gptnext`, `llama`, `gemma`, `falcon`, `qwen2`, `qwen3`, `mixtral`, `qwen2_moe`, `qwen3_moe`, `olmoe`, `phi3`, `olmo2`, `granite`, `starcoder2`, `stablelm`, `cohere`, `nemotron_nas` or `gpt_oss`, found `bert`");
    }
}
