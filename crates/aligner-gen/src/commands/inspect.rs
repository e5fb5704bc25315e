//! `aligner-gen inspect`: what a checkpoint holds, read from its headers alone.

mod windows;

use std::io::Write;

use hydra_config::Node;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_spec::HeadLayout;
use nemo_format::{Checkpoint, FormatError, StoredTensorInfo, TensorSource, Verified};
use serde_json::{Value, json};

use crate::config::cli::InspectArgs;
use crate::exit::Failure;
use crate::model::end_tokens::{self, EndTokens};
use crate::table::{block_name, human_bytes, human_count, thousands};

/// Prints the report on stdout.
pub(crate) fn run(
    arguments: &InspectArgs,
    out: &mut impl Write,
    format: ReportFormat,
) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let verified = if arguments.verify { Some(verify(&checkpoint)?) } else { None };
    let text = match format {
        ReportFormat::Text => text_report(&checkpoint, verified.as_ref()),
        ReportFormat::Json => {
            let report = json_report(&checkpoint, verified.as_ref());
            serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)? + "\n"
        }
    };
    out.write_all(text.as_bytes()).map_err(anyhow::Error::from)?;
    Ok(())
}

/// Reads all of it, with a bar on a terminal.
fn verify(checkpoint: &Checkpoint) -> Result<Verified, FormatError> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {bytes}/{total_bytes} ETA {eta}") {
        bar.set_style(style);
    }
    let verified = checkpoint.verify(&|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    verified
}

/// `270.4 MB read, 273 checksums are right, all values are finite`.
fn verified_line(verified: &Verified) -> String {
    let checksums = match (verified.num_checksums, verified.num_without_checksum) {
        (0, _) => "there are no checksums".to_owned(),
        (right, 0) => format!("{} checksums are right", thousands(right)),
        (right, without) => {
            format!("{} checksums are right, {} parts have none", thousands(right), thousands(without))
        }
    };
    let values = match verified.nonfinite.first() {
        None => "all values are finite".to_owned(),
        Some((name, count)) => format!(
            "{} tensors have values that are not finite, the first `{name}` with {}",
            verified.nonfinite.len(),
            thousands(*count)
        ),
    };
    format!("{} read, {checksums}, {values}", human_bytes(verified.size_bytes))
}

/// The line of the text report behind that of the tokenizer.
const END_TOKENS_AT: usize = 6;

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportFormat {
    Text,
    Json,
}

const SHOWN_KEYS: [&str; 41] = [
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_moe_experts",
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_router_topk",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_shared_expert_intermediate_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "encoder_seq_length",
    "window_size",
    "window_attn_skip_freq",
    "huggingface.sliding_window",
    "normalization",
    "activation",
    "position_embedding_type",
    "rotary_percentage",
    "rotary_base",
    "rotary_base_local",
    "rope_scaling.factors",
    "rope_scaling.short_factor",
    "rope_scaling.long_factor",
    "rope_scaling.attention_factor",
    "bias",
    "qkv_bias",
    "qk_layernorm",
    "pre_layernorms",
    "post_layernorms",
    "query_pre_attn_scalar",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_multiplier",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "share_embeddings_and_output_weights",
    "precision",
    "megatron_amp_O2",
];

fn text_report(checkpoint: &Checkpoint, verified: Option<&Verified>) -> String {
    let totals = Totals::of(checkpoint);
    let stored = checkpoint.stored_tensors();
    let mut lines = vec![
        format!("format       {}", checkpoint.format()),
        format!("size         {}", human_bytes(checkpoint.size_bytes())),
        format!("parameters   {} ({})", thousands(totals.num_params), human_count(totals.num_params)),
        format!(
            "tensors      {} of {}, stored as {}",
            totals.num_tensors,
            human_bytes(totals.size_bytes),
            stored.len()
        ),
        format!("dtypes       {}", dtypes(checkpoint.tensors())),
        format!("tokenizer    {}", tokenizer_line(checkpoint)),
        format!("artifacts    {}", checkpoint.artifact_names().join(", ")),
        format!("fingerprint  {}", checkpoint.fingerprint()),
    ];
    lines.extend(fp8_line(checkpoint));
    lines.extend(windows::line(checkpoint));
    lines.extend(verified.map(|verified| format!("verified     {}", verified_line(verified))));
    lines.extend([String::new(), "config".to_owned()]);
    if let Some(line) = end_tokens_line(checkpoint) {
        lines.insert(END_TOKENS_AT, line);
    }
    for key in SHOWN_KEYS {
        if let Some(value) = checkpoint.model_config().get(key) {
            lines.push(format!("  {key:<36} {}", on_one_line(value)));
        }
    }
    lines.extend(blocks_line(checkpoint.model_config()));
    let mut last_file = "";
    let notes = checkpoint.notes();
    if !notes.is_empty() {
        lines.extend([String::new(), "notes".to_owned()]);
        lines.extend(notes.iter().map(|note| format!("  {note}")));
    }
    for tensor in stored {
        if tensor.file != last_file {
            lines.extend([String::new(), format!("tensors in {}", tensor.file)]);
            last_file = &tensor.file;
        }
        lines.push(format!(
            "  {:<9} {:<18} {}{}",
            tensor.meta.dtype.name(),
            format!("{:?}", tensor.meta.shape),
            tensor.name,
            meaning(tensor)
        ));
    }
    lines.join("\n") + "\n"
}

/// What becomes of weights that are stored in FP8, where there are such.
fn fp8_line(checkpoint: &Checkpoint) -> Option<String> {
    let num_weights = checkpoint.num_fp8_weights();
    (num_weights > 0).then(|| {
        format!(
            "fp8          {num_weights} weights of linear layers are stored in FP8 with a scale for each output: a job with \
             trainer.generation.trt_llm.quantization=fp8 computes with them as they are, any other with their numbers"
        )
    })
}

/// How many layers there are of each kind, where there are several; as it is written, where it cannot be read.
fn blocks_line(config: &Node) -> Option<String> {
    const KEY: &str = "heterogeneous_layers_config_encoded_json";
    let text = config.get(KEY)?.as_str().filter(|text| !text.is_empty())?;
    let size = |key: &str| config.get(key).and_then(Node::as_i64).and_then(|size| usize::try_from(size).ok());
    let num_attention_heads = size("num_attention_heads").unwrap_or(0);
    let heads = HeadLayout {
        num_attention_heads,
        num_query_groups: size("num_query_groups").unwrap_or(num_attention_heads),
        kv_channels: size("kv_channels").unwrap_or(0),
    };
    let num_layers = size("num_layers").unwrap_or(0);
    let blocks = nemo_format::parse_block_configs(text, num_layers, size("hidden_size").unwrap_or(0), heads);
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for block in blocks.iter().flatten() {
        let kind = block_name(block);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
    let shown = blocks.map_or_else(|reason| reason, |_| kinds.join("; "));
    Some(format!("  {KEY} {shown}"))
}

fn on_one_line(value: &Node) -> String {
    match value {
        Node::List(values) => {
            format!("[{}]", values.iter().map(on_one_line).collect::<Vec<_>>().join(", "))
        }
        value => value.to_yaml().trim().to_owned(),
    }
}

/// What a tensor is to the model, where its own name does not say so.
fn meaning(tensor: &StoredTensorInfo) -> String {
    match &tensor.canonical {
        None => " (not used)".to_owned(),
        Some(canonical) if *canonical == tensor.name || canonical.replace(".*.", ".") == tensor.name => {
            String::new()
        }
        Some(canonical) => format!(" = {canonical}"),
    }
}

fn json_report(checkpoint: &Checkpoint, verified: Option<&Verified>) -> Value {
    let totals = Totals::of(checkpoint);
    let notes: Vec<String> = checkpoint.notes().iter().map(ToString::to_string).collect();
    let tensors: Vec<Value> = checkpoint
        .stored_tensors()
        .iter()
        .map(|tensor| {
            json!({
                "file": tensor.file,
                "name": tensor.name,
                "dtype": tensor.meta.dtype.name(),
                "shape": tensor.meta.shape,
                "canonical": tensor.canonical,
            })
        })
        .collect();
    let mut report = json!({
        "path": checkpoint.path(),
        "format": checkpoint.format(),
        "size_bytes": checkpoint.size_bytes(),
        "num_parameters": totals.num_params,
        "num_tensors": totals.num_tensors,
        "tensor_bytes": totals.size_bytes,
        "fingerprint": checkpoint.fingerprint(),
        "end_tokens": EndTokens::of_checkpoint(checkpoint).map_or_else(|_| Vec::new(), |end| end.ids()),
        "artifacts": checkpoint.artifact_names(),
        "notes": notes,
        "model_config": crate::node_json::to_json(checkpoint.model_config()),
        "tensors": tensors,
    });
    if checkpoint.num_fp8_weights() > 0 {
        report["num_fp8_weights"] = checkpoint.num_fp8_weights().into();
    }
    if let Some(verified) = verified {
        let nonfinite: serde_json::Map<String, Value> =
            verified.nonfinite.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
        report["verified"] = json!({
            "bytes": verified.size_bytes,
            "checksums": verified.num_checksums,
            "without_checksum": verified.num_without_checksum,
            "nonfinite": nonfinite,
        });
    }
    report
}

/// Of the model, whatever way its tensors are cut, stacked or repeated.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    num_tensors: usize,
    num_params: u64,
    size_bytes: u64,
}

impl Totals {
    /// Overflow cannot come from a real file, so it shows as the largest number.
    fn of(checkpoint: &Checkpoint) -> Self {
        let tensors = checkpoint.tensors();
        let metas = tensors.names().filter_map(|name| tensors.meta(name));
        metas.fold(Self::default(), |totals, meta| Self {
            num_tensors: totals.num_tensors + 1,
            num_params: totals.num_params.saturating_add(meta.num_elems().unwrap_or(u64::MAX)),
            size_bytes: totals.size_bytes.saturating_add(meta.size_bytes().unwrap_or(u64::MAX)),
        })
    }
}

fn dtypes(tensors: &dyn TensorSource) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for meta in tensors.names().filter_map(|name| tensors.meta(name)) {
        let name = meta.dtype.name();
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>().join(", ")
}

/// The tokens that end a response, where the checkpoint says more of them than its tokenizer does.
fn end_tokens_line(checkpoint: &Checkpoint) -> Option<String> {
    let end = EndTokens::of_checkpoint(checkpoint);
    let line = match end {
        Ok(end) if !end.is_stated() => return None,
        Ok(end) => {
            end.warnings().into_iter().fold(end.line(), |line, warning| format!("{line}; note: {warning}"))
        }
        Err(_) if !end_tokens::is_stated_by(checkpoint) => return None,
        Err(failure) => format!("unknown: {}", failure.sentence()),
    };
    Some(format!("end tokens   {line}"))
}

fn tokenizer_line(checkpoint: &Checkpoint) -> String {
    let get = |key: &str| {
        let value = checkpoint.model_config().get(&format!("tokenizer.{key}"))?;
        value.as_str().map(str::to_owned)
    };
    match (get("library"), get("type").or_else(|| get("model"))) {
        (Some(library), Some(what)) => format!("{library} ({what})"),
        (Some(library), None) => library,
        (None, _) => match checkpoint.tokenizer_needed() {
            Some(needed) => format!("none: {needed}"),
            None => "none".to_owned(),
        },
    }
}
