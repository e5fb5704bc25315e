//! The `model.data` section: which records are read, what becomes of them, and how long prompts may be.

use std::path::PathBuf;

use data::{
    AddedTokens, ChatPromptTokens, KeptInput, KeptMetadata, LengthLimits, OnBadRecord, OnOverlength,
    OnUnusable, PromptResponseFormat, PromptTemplate, TokenField, TruncationMethod,
};

use super::checks::ChecksPlan;
use super::plan::{LineFormat, RowParamsMode};
use super::range::{out_of_range, positive};
use super::raw::{RawData, RawFilePath, RawMaxSeqLength, RawTrainDs};
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::output::OutputField;
use crate::output::identity::PromptResponse;

/// What `truncation_field` is when nobody sets it: the name of a chat record's prompt.
const DEFAULT_TRUNCATION_FIELD: &str = "context_ids";

/// The order of samples that are drawn is held in memory.
const MAX_DRAWN: usize = 1 << 30;

/// Which records are read, and what makes a prompt of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecordFormat {
    Chat(ChatPromptTokens),
    PromptResponse {
        format: PromptResponseFormat,
        /// What it was made of.
        typed: PromptResponse,
    },
}

impl RecordFormat {
    pub(crate) fn new(data: &RawData) -> Result<Self, Failure> {
        if data.chat {
            let tokens = data.chat_prompt_tokens.clone();
            return Ok(Self::Chat(ChatPromptTokens {
                system_turn_start: tokens.system_turn_start,
                turn_start: tokens.turn_start,
                label_start: tokens.label_start,
                end_of_turn: tokens.end_of_turn,
                end_of_name: tokens.end_of_name,
            }));
        }
        let train_ds = &data.train_ds;
        let text = train_ds.prompt_template.as_deref().ok_or_else(|| {
            Failure::usage(
                "`model.data.chat=false` needs `model.data.train_ds.prompt_template`, with the key of the response at its \
                 end; for records with `input` and `output`, in the shell write \
                 'model.data.train_ds.prompt_template=\"{input} {output}\"'",
            )
        })?;
        let template = PromptTemplate::parse(text, &train_ds.label_key).exit_with(ExitStatus::Usage)?;
        let added = AddedTokens { bos: train_ds.add_bos, sep: train_ds.add_sep, eos: train_ds.add_eos };
        let format = PromptResponseFormat::new(template, added);
        let mut typed = PromptResponse {
            prompt_template: text.to_owned(),
            label_key: train_ds.label_key.clone(),
            add_bos: train_ds.add_bos,
            add_sep: train_ds.add_sep,
            add_eos: train_ds.add_eos,
            ..PromptResponse::default()
        };
        let method = match train_ds.truncation_method.as_str() {
            "right" => TruncationMethod::Right,
            "left" => TruncationMethod::Left,
            other => {
                let key = "model.data.train_ds.truncation_method";
                return Err(out_of_range(key, "`left` or `right`", &format!("`{other}`")));
            }
        };
        let fields = truncation_fields(train_ds);
        let limit = max_seq_lengths(train_ds)?.into_iter().max();
        let Some(limit) = limit.filter(|_| fields != [DEFAULT_TRUNCATION_FIELD]) else {
            return Ok(Self::PromptResponse { format, typed });
        };
        let format = format.with_truncation(&fields, method, limit).exit_with(ExitStatus::Usage)?;
        typed.truncation_fields = fields.into_iter().map(str::to_owned).collect();
        typed.truncation_method.clone_from(&train_ds.truncation_method);
        typed.cut_to = Some(limit);
        Ok(Self::PromptResponse { format, typed })
    }
}

/// How many samples `model.data.sample` draws, in a shuffled order and the same one again where the data are too few;
/// `None` where every record is generated once. Without `max_steps` it has no effect, as in the original.
pub(crate) fn num_drawn(
    data: &RawData,
    max_steps: i64,
    global_batch_size: usize,
) -> Result<Option<usize>, Failure> {
    if !data.sample || max_steps < 0 {
        return Ok(None);
    }
    let num_samples = usize::try_from(max_steps).ok().and_then(|steps| steps.checked_mul(global_batch_size));
    match num_samples {
        Some(num_samples @ 1..=MAX_DRAWN) => Ok(Some(num_samples)),
        _ => Err(Failure::usage(format!(
            "`model.data.sample=true` draws `trainer.generation.max_steps` times `model.global_batch_size` samples: \
             {max_steps} times {global_batch_size} must be from 1 to {MAX_DRAWN}"
        ))),
    }
}

/// What leaves a prompt out. Prompt-response records that are cut to the limit are never too long.
pub(crate) fn length_limits(data: &RawData, max_input_len: Option<usize>) -> Result<LengthLimits, Failure> {
    let train_ds = &data.train_ds;
    let fields = truncation_fields(train_ds);
    if !data.chat && fields != [DEFAULT_TRUNCATION_FIELD] {
        return Ok(LengthLimits { fields: Vec::new(), max_input_len });
    }
    let fields = fields.into_iter().map(str::parse::<TokenField>).collect::<Result<Vec<_>, _>>();
    let fields = fields.exit_with(ExitStatus::Usage)?;
    let limits = max_seq_lengths(train_ds)?;
    let limits = match limits.as_slice() {
        [] => return Ok(LengthLimits { fields: Vec::new(), max_input_len }),
        &[one] => vec![one; fields.len()],
        many if many.len() == fields.len() => limits,
        many => {
            return Err(Failure::usage(format!(
                "`model.data.train_ds.max_seq_length` has {} limits for the {} fields of \
                 `model.data.train_ds.truncation_field`; give one limit, or one for each field",
                many.len(),
                fields.len()
            )));
        }
    };
    Ok(LengthLimits { fields: fields.into_iter().zip(limits).collect(), max_input_len })
}

/// What becomes of records that cannot be generated from.
pub(crate) fn on_unusable(train_ds: &RawTrainDs) -> Result<OnUnusable, Failure> {
    let bad = match train_ds.on_bad_record.as_str() {
        "error" => OnBadRecord::Refuse,
        "skip" => OnBadRecord::Skip,
        "keep" => OnBadRecord::Keep,
        other => {
            let key = "model.data.train_ds.on_bad_record";
            return Err(out_of_range(key, "`error`, `skip` or `keep`", &format!("`{other}`")));
        }
    };
    let too_long = match train_ds.on_overlength.as_deref() {
        None | Some("drop" | "truncate") => OnOverlength::Drop,
        Some("keep") => OnOverlength::Keep,
        Some(other) => {
            let key = "model.data.train_ds.on_overlength";
            return Err(out_of_range(key, "`drop`, `keep` or `truncate`", &format!("`{other}`")));
        }
    };
    Ok(OnUnusable { bad, too_long })
}

/// With `on_overlength=truncate`: how many tokens prompts are cut to.
pub(crate) fn cut_to(train_ds: &RawTrainDs, limits: &LengthLimits) -> Result<Option<usize>, Failure> {
    if train_ds.on_overlength.as_deref() != Some("truncate") {
        return Ok(None);
    }
    if let Some((field, _)) = limits.fields.iter().find(|(field, _)| *field != TokenField::ContextIds) {
        return Err(Failure::usage(format!(
            "`model.data.train_ds.on_overlength=truncate` cuts prompts, and `model.data.train_ds.truncation_field` limits \
             {field:?}: set `model.data.train_ds.truncation_field=context_ids`"
        )));
    }
    let of_prompt = limits.fields.iter().map(|&(_, limit)| limit);
    Ok(of_prompt.chain(limits.max_input_len).min())
}

/// The key of length hints, if they are read.
pub(crate) fn length_hint_key(key: Option<String>) -> Result<Option<String>, Failure> {
    match key {
        Some(key) if key.is_empty() => {
            Err(out_of_range("model.data.train_ds.length_hint_key", "a key of the records or null", "``"))
        }
        key => Ok(key),
    }
}

/// What of the records the output, or a program that checks responses, asks for.
pub(crate) fn kept_metadata(
    train_ds: &RawTrainDs,
    output_fields: &[OutputField],
    checks: &ChecksPlan,
) -> KeptMetadata {
    let is_wanted = output_fields.contains(&OutputField::Metadata) || checks.on_response.is_some();
    match (is_wanted, train_ds.output_original_text) {
        (false, _) => KeptMetadata::Nothing,
        (true, false) => KeptMetadata::OtherKeys,
        (true, true) => KeptMetadata::OtherKeysAndText,
    }
}

/// The files as they are typed.
pub(crate) fn data_paths(file_path: RawFilePath) -> Result<Vec<PathBuf>, Failure> {
    match file_path {
        RawFilePath::One(path) => Ok(vec![path]),
        RawFilePath::Several(paths) if paths.is_empty() => {
            Err(out_of_range("model.data.train_ds.file_path", "a path or a list of paths", "an empty list"))
        }
        RawFilePath::Several(paths) => Ok(paths),
    }
}

/// The fields of each line. Where rows may have an error, all lines have the field.
pub(crate) fn output_fields(
    mut fields: Vec<OutputField>,
    may_have_errors: bool,
    line_format: LineFormat,
) -> Vec<OutputField> {
    if may_have_errors && line_format == LineFormat::Sft && !fields.contains(&OutputField::Error) {
        fields.push(OutputField::Error);
    }
    fields
}

/// Whether records set how they are answered. Requests of OpenAI's always may.
pub(crate) fn row_params(typed: Option<bool>, line_format: LineFormat) -> RowParamsMode {
    match typed {
        Some(true) => RowParamsMode::Read,
        _ if line_format == LineFormat::OpenAiBatch => RowParamsMode::Read,
        Some(false) | None => RowParamsMode::Ignore,
    }
}

/// What lines of input and output are.
pub(crate) fn line_format(
    data: &RawData,
    output_fields: &[OutputField],
    writes_logprobs: bool,
) -> Result<LineFormat, Failure> {
    match data.format.as_deref() {
        None => Ok(LineFormat::Sft),
        Some("openai_batch") if !data.chat => Err(Failure::usage(
            "`model.data.format=openai_batch` has conversations: set `model.data.chat=true`",
        )),
        Some("openai_batch") if !output_fields.is_empty() => Err(Failure::usage(
            "`model.data.format=openai_batch` writes OpenAI's lines, which have no further fields: leave out \
             `model.generation.output_fields`",
        )),
        Some("openai_batch") if writes_logprobs => Err(Failure::usage(
            "`model.data.format=openai_batch` writes no log-probabilities: leave out \
             `model.generation.sampling_params.compute_logprob` and `model.generation.sampling_params.top_logprobs`",
        )),
        Some("openai_batch") => Ok(LineFormat::OpenAiBatch),
        Some(other) => {
            Err(out_of_range("model.data.format", "`openai_batch` or null", &format!("`{other}`")))
        }
    }
}

/// What of the records goes to the output as it is.
pub(crate) fn kept_input(output_fields: &[OutputField], line_format: LineFormat) -> KeptInput {
    let column = |field: &OutputField| match field {
        OutputField::Column(key) => Some(key.clone()),
        _ => None,
    };
    KeptInput {
        record: output_fields.contains(&OutputField::Input) || line_format == LineFormat::OpenAiBatch,
        conversation: output_fields.contains(&OutputField::Messages),
        columns: output_fields.iter().filter_map(column).collect(),
    }
}

fn truncation_fields(train_ds: &RawTrainDs) -> Vec<&str> {
    train_ds.truncation_field.split(',').map(str::trim).collect()
}

fn max_seq_lengths(train_ds: &RawTrainDs) -> Result<Vec<usize>, Failure> {
    let values = match &train_ds.max_seq_length {
        None => Vec::new(),
        Some(RawMaxSeqLength::One(value)) => vec![*value],
        Some(RawMaxSeqLength::Each(values)) => values.clone(),
    };
    values.into_iter().map(|value| positive("model.data.train_ds.max_seq_length", value)).collect()
}
