//! `aligner-gen inspect`: what a checkpoint holds, read from its headers alone.

use std::io::Write;
use std::path::Path;

use nemo_format::{Checkpoint, StoredTensorInfo};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::table::{human_bytes, human_count, thousands};

/// Prints the report on stdout.
pub(crate) fn run(path: &Path, out: &mut impl Write, format: ReportFormat) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(path)?;
    let text = match format {
        ReportFormat::Text => text_report(&checkpoint),
        ReportFormat::Json => {
            serde_json::to_string_pretty(&json_report(&checkpoint)).map_err(anyhow::Error::from)? + "\n"
        }
    };
    out.write_all(text.as_bytes()).map_err(anyhow::Error::from)?;
    Ok(())
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportFormat {
    Text,
    Json,
}

const SHOWN_KEYS: [&str; 16] = [
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "encoder_seq_length",
    "normalization",
    "activation",
    "position_embedding_type",
    "rotary_percentage",
    "rotary_base",
    "bias",
    "share_embeddings_and_output_weights",
    "precision",
    "megatron_amp_O2",
];

fn text_report(checkpoint: &Checkpoint) -> String {
    let tensors = checkpoint.stored_tensors();
    let (num_params, size_bytes) = totals(&tensors);
    let mut lines = vec![
        format!("format       {}", checkpoint.format()),
        format!("size         {}", human_bytes(checkpoint.size_bytes())),
        format!("parameters   {} ({})", thousands(num_params), human_count(num_params)),
        format!("tensors      {} of {}", tensors.len(), human_bytes(size_bytes)),
        format!("dtypes       {}", dtypes(&tensors)),
        format!("tokenizer    {}", tokenizer_line(checkpoint)),
        format!("artifacts    {}", checkpoint.artifact_names().join(", ")),
        format!("fingerprint  {}", checkpoint.fingerprint()),
        String::new(),
        "config".to_owned(),
    ];
    for key in SHOWN_KEYS {
        if let Some(value) = checkpoint.model_config().get(key) {
            lines.push(format!("  {key:<36} {}", value.to_yaml().trim()));
        }
    }
    lines.extend([String::new(), "tensors".to_owned()]);
    for tensor in &tensors {
        lines.push(format!(
            "  {:<9} {:<18} {}",
            tensor.meta.dtype.name(),
            format!("{:?}", tensor.meta.shape),
            tensor.name
        ));
    }
    lines.join("\n") + "\n"
}

fn json_report(checkpoint: &Checkpoint) -> Value {
    let tensors = checkpoint.stored_tensors();
    let (num_params, size_bytes) = totals(&tensors);
    let tensors: Vec<Value> = tensors
        .iter()
        .map(|tensor| json!({"name": tensor.name, "dtype": tensor.meta.dtype.name(), "shape": tensor.meta.shape}))
        .collect();
    json!({
        "path": checkpoint.path(),
        "format": checkpoint.format(),
        "size_bytes": checkpoint.size_bytes(),
        "num_parameters": num_params,
        "tensor_bytes": size_bytes,
        "fingerprint": checkpoint.fingerprint(),
        "artifacts": checkpoint.artifact_names(),
        "model_config": crate::node_json::to_json(checkpoint.model_config()),
        "tensors": tensors,
    })
}

/// Parameters and bytes of all tensors. Overflow cannot come from a real file, so it shows as the largest number.
fn totals(tensors: &[StoredTensorInfo]) -> (u64, u64) {
    tensors.iter().fold((0, 0), |(num_elems, size_bytes), tensor| {
        (
            num_elems.saturating_add(tensor.meta.num_elems().unwrap_or(u64::MAX)),
            size_bytes.saturating_add(tensor.meta.size_bytes().unwrap_or(u64::MAX)),
        )
    })
}

fn dtypes(tensors: &[StoredTensorInfo]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for tensor in tensors {
        let name = tensor.meta.dtype.name();
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>().join(", ")
}

fn tokenizer_line(checkpoint: &Checkpoint) -> String {
    let get = |key: &str| {
        let value = checkpoint.model_config().get(&format!("tokenizer.{key}"))?;
        value.as_str().map(str::to_owned)
    };
    match (get("library"), get("type").or_else(|| get("model"))) {
        (Some(library), Some(what)) => format!("{library} ({what})"),
        (Some(library), None) => library,
        (None, _) => "none".to_owned(),
    }
}
