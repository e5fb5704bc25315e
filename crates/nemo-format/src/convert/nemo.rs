//! Rewriting a checkpoint of NeMo as a Megatron-Core archive: another dtype, another tokenizer, ranks merged, a folder
//! packed, a model from before Megatron-Core renamed.
//!
//! The configuration changes as in NeMo's `convert_nemo_gpt_to_mcore.py` (v2.1.0); what that script leaves to the user,
//! ranks and names of other layer specifications, is settled here.

use std::path::Path;

use hydra_config::Node;

use super::arch::precision;
use super::{
    ConvertNote, ConvertOptions, Converted, InputKind, TOKENIZER_JSON_FILES, folder_name, merged_note,
    tokenizer,
};
use crate::adapter::Precision;
use crate::checkpoint::{CheckpointKind, without_hashes};
use crate::huggingface::HfTokenizer;
use crate::te_layers::WHOLE_TE_LAYER;
use crate::{Artifact, Checkpoint, DType, FormatError, Fp8Weights, Region, TensorMeta, TensorSource};

/// Values that name a file of the archive, or did where the checkpoint was saved.
const ARTIFACT_KEYS: [&str; 3] = ["tokenizer.model", "tokenizer.vocab_file", "tokenizer.merge_file"];
const TARGET: &str = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel";

/// Presents an open checkpoint for writing. Artifacts are renamed by their content.
pub(super) fn rewrite(input: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let checkpoint = Checkpoint::open(input)?;
    // A type that was asked for is what the writer rounds to.
    let merged_type = if options.dtype.is_some() { Precision::Float32 } else { Precision::Stored };
    let checkpoint = checkpoint.adapted(&options.adapters, merged_type)?;
    let mut config = checkpoint.model_config().clone();
    mcore_config(&mut config, checkpoint.kind());
    let mut artifacts = artifacts(&checkpoint, &mut config)?;
    let mut notes: Vec<ConvertNote> = checkpoint.notes().iter().cloned().map(ConvertNote::Source).collect();
    notes.extend(checkpoint.adapters().iter().map(merged_note));
    if let Some(path) = &options.tokenizer {
        let part = tokenizer::from_files(&HfTokenizer::open(path)?, &folder_name(path))?;
        let replaced = config.get("tokenizer.model").and_then(Node::as_str).map(str::to_owned);
        artifacts.retain(|artifact| {
            // The JSON files of the old tokenizer say nothing of the new one.
            replaced != Some(format!("nemo:{}", artifact.member_name()))
                && !TOKENIZER_JSON_FILES.contains(&artifact.name.as_str())
        });
        config.set("tokenizer", part.section);
        artifacts.extend(part.artifacts);
        notes.extend(part.notes);
    }
    let first = checkpoint.tensors().names().next().and_then(|name| checkpoint.tensors().meta(name));
    let source_dtype = first.map_or(DType::F32, |meta| meta.dtype);
    let dtype = options.dtype.unwrap_or(source_dtype);
    if options.dtype.is_some() {
        config.set("precision", precision(dtype));
    }
    let num_tensors = checkpoint.num_fp8_weights();
    if num_tensors > 0 {
        notes.push(ConvertNote::NoLongerFp8 { num_tensors, dtype });
    }
    let source = Box::new(Tensors(checkpoint));
    Ok(Converted { input: InputKind::Nemo, config, artifacts, source, dtype, notes })
}

/// Takes the artifacts along, and has the configuration name them by their new members.
fn artifacts(checkpoint: &Checkpoint, config: &mut Node) -> Result<Vec<Artifact>, FormatError> {
    let mut artifacts = Vec::new();
    let references: Vec<(String, String)> = config
        .leaf_paths()
        .into_iter()
        .filter_map(|path| Some((path.clone(), config.get(&path)?.as_str()?.to_owned())))
        .filter(|(path, value)| value.starts_with("nemo:") || ARTIFACT_KEYS.contains(&path.as_str()))
        .collect();
    for member in checkpoint.artifact_names() {
        let base = member.rsplit('/').next().unwrap_or(member);
        let [_, name] = without_hashes(base);
        let artifact = Artifact { name: name.to_owned(), bytes: checkpoint.artifact(member)? };
        let new = format!("nemo:{}", artifact.member_name());
        let mut is_named = false;
        for (path, value) in &references {
            if checkpoint.artifact_member(value) == Some(member) {
                config.set(path, Node::from(new.as_str()));
                is_named = true;
            }
        }
        let is_wanted = match checkpoint.kind() {
            // The context holds more files than NeMo 1 has a use for.
            CheckpointKind::NeMo2 => false,
            // A whole folder of Hugging Face's; the way back needs these of it.
            CheckpointKind::Bridge => TOKENIZER_JSON_FILES.contains(&name),
            CheckpointKind::Distributed | CheckpointKind::Ranks | CheckpointKind::Legacy => true,
        };
        if is_named || is_wanted {
            artifacts.push(artifact);
        }
    }
    Ok(artifacts)
}

/// What the configuration of the written file must say: Megatron-Core's model, in one piece.
fn mcore_config(config: &mut Node, kind: CheckpointKind) {
    let is_set = |config: &Node, key: &str| config.get(key).is_some_and(|value| *value != Node::Null);
    if kind == CheckpointKind::Distributed {
        return;
    }
    for key in ["tensor_model_parallel_size", "pipeline_model_parallel_size"] {
        if is_set(config, key) {
            config.set(key, Node::Int(1));
        }
    }
    if config.get("name").and_then(Node::as_str) == Some(WHOLE_TE_LAYER) {
        config.remove("name");
    }
    if matches!(kind, CheckpointKind::NeMo2 | CheckpointKind::Bridge) && !is_set(config, "target") {
        config.set("target", Node::from(TARGET));
    }
    if kind != CheckpointKind::Legacy {
        return;
    }
    config.set("mcore_gpt", Node::Bool(true));
    config.set("transformer_engine", Node::Bool(true));
    config.set("use_cpu_initialization", Node::Bool(false));
    // The table of positions had this many rows; Megatron-Core gives it `encoder_seq_length`.
    let is_learned = config
        .get("position_embedding_type")
        .and_then(Node::as_str)
        .is_none_or(|position| position == "learned_absolute");
    if is_learned && let Some(rows @ Node::Int(_)) = config.get("max_position_embeddings").cloned() {
        config.set("encoder_seq_length", rows);
    }
}

/// The checkpoint's tensors, keeping the checkpoint open.
struct Tensors(Checkpoint);

impl TensorSource for Tensors {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.0.tensors().names()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.0.tensors().meta(name)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        self.0.tensors().read(name, region, dst)
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.tensors().mapped_bytes(name)
    }

    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        self.0.tensors().fp8()
    }
}

#[cfg(test)]
mod tests;
