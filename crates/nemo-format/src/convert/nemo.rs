//! Rewriting a Megatron-Core checkpoint: another dtype, another tokenizer, a folder packed again.

use std::path::Path;

use hydra_config::Node;

use super::arch::precision;
use super::{ConvertOptions, Converted, InputKind, folder_name, tokenizer};
use crate::huggingface::HfTokenizer;
use crate::{Artifact, Checkpoint, DType, FormatError, Region, TensorMeta, TensorSource};

const HASH_CHARS: usize = 32;

/// Presents an open checkpoint for writing. Artifacts are named by their content anew.
pub(super) fn rewrite(input: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let checkpoint = Checkpoint::open(input)?;
    let mut config = checkpoint.model_config().clone();
    let mut artifacts = Vec::new();
    for member in checkpoint.artifact_names() {
        let artifact = Artifact { name: base_name(member).to_owned(), bytes: checkpoint.artifact(member)? };
        let (old, new) = (format!("nemo:{member}"), format!("nemo:{}", artifact.member_name()));
        for path in config.leaf_paths() {
            if config.get(&path).and_then(Node::as_str) == Some(old.as_str()) {
                config.set(&path, Node::from(new.as_str()));
            }
        }
        artifacts.push(artifact);
    }
    if let Some(path) = &options.tokenizer {
        let part = tokenizer::from_files(HfTokenizer::open(path)?, &folder_name(path));
        let replaced = config.get("tokenizer.model").and_then(Node::as_str).map(str::to_owned);
        artifacts.retain(|artifact| replaced != Some(format!("nemo:{}", artifact.member_name())));
        config.set("tokenizer", part.section);
        artifacts.push(part.artifact);
    }
    let first = checkpoint.tensors().names().next().and_then(|name| checkpoint.tensors().meta(name));
    let source_dtype = first.map_or(DType::F32, |meta| meta.dtype);
    let dtype = options.dtype.unwrap_or(source_dtype);
    if options.dtype.is_some() {
        config.set("precision", precision(dtype));
    }
    Ok(Converted { input: InputKind::Nemo, config, artifacts, source: Box::new(Tensors(checkpoint)), dtype })
}

/// The member's name without the hashes of earlier packings.
fn base_name(member: &str) -> &str {
    let mut name = member;
    while let Some((hash, rest)) = name.split_once('_')
        && hash.len() == HASH_CHARS
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        name = rest;
    }
    name
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
}
