//! Experts that expert-parallel ranks share: each counts its own from 0.

use std::collections::BTreeMap;

use model_spec::EXPERTS;

use super::RankFile;
use crate::FormatError;
use crate::naming::{TensorPlace, place_in_rank_file};

/// An expert's tensor in a file of a rank: the layer, the expert as the file counts it, and the rest of its name.
fn expert_of(name: &str) -> Option<(u64, u64, String)> {
    let TensorPlace::Layer { layer, rest, .. } = place_in_rank_file(name) else { return None };
    let (expert, rest) = rest.strip_prefix(EXPERTS)?.split_once('.')?;
    Some((layer, expert.parse().ok()?, rest.to_owned()))
}

/// The files of all expert-parallel ranks that share a tensor-parallel rank and a stage, as one: experts are numbered on,
/// everything else is the first file's.
pub(super) fn join(files: Vec<RankFile>) -> Result<RankFile, FormatError> {
    let num_ranks = files.len();
    let mut files = files.into_iter();
    let Some(mut joined) = files.next() else {
        return Ok(RankFile { file: String::new(), entries: indexmap::IndexMap::new() });
    };
    if num_ranks == 1 {
        return Ok(joined);
    }
    let counts = num_experts(&joined);
    let entries = std::mem::take(&mut joined.entries);
    joined.entries =
        entries.into_iter().map(|(name, entry)| (renumbered(&name, &counts, 0), entry)).collect();
    for (rank, file) in (1..).zip(files) {
        let others = num_experts(&file);
        if others != counts {
            let reason = format!("it has not as many experts in each layer as `{}`", joined.file);
            return Err(FormatError::damaged(&file.file, 0, reason));
        }
        let experts = file.entries.into_iter().filter(|(name, _)| expert_of(name).is_some());
        joined.entries.extend(experts.map(|(name, entry)| (renumbered(&name, &counts, rank), entry)));
    }
    Ok(joined)
}

/// How many experts each layer of a file has.
fn num_experts(file: &RankFile) -> BTreeMap<u64, u64> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for (layer, expert, _) in file.entries.keys().filter_map(|name| expert_of(name)) {
        let count = counts.entry(layer).or_default();
        *count = (*count).max(expert.saturating_add(1));
    }
    counts
}

/// The name of a tensor in the whole layer.
fn renumbered(name: &str, counts: &BTreeMap<u64, u64>, rank: u64) -> String {
    match expert_of(name) {
        Some((layer, expert, rest)) => {
            let count = counts.get(&layer).copied().unwrap_or(0);
            let expert = rank.saturating_mul(count).saturating_add(expert);
            format!("decoder.layers.{layer}.{EXPERTS}{expert}.{rest}")
        }
        None => name.to_owned(),
    }
}
