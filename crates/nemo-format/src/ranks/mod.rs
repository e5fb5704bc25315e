//! `model_weights.ckpt`: torch files of NeMo, one for every tensor- and pipeline-parallel rank.
//!
//! The files are found by their members' names, which say more reliably than the configuration how many there are.

mod experts;
mod merge;
mod training;

use std::collections::BTreeSet;
use std::sync::Arc;

use hydra_config::Node;
use indexmap::IndexMap;

use self::merge::{Facts, Merger};
pub(crate) use self::training::open_training;
use crate::archive::Archive;
use crate::megatron_lm::{RANK_FILE, RANK_FOLDER};
use crate::naming::place_in_rank_file;
use crate::partial_models::{refuse_adapters, refuse_virtual_stages};
use crate::pieced::PiecedSource;
use crate::torch_file::{Entry, read_state_dict};
use crate::{FormatError, StoredTensorInfo, TensorMeta};

/// The base name of every such file.
const FILE: &str = "model_weights.ckpt";
/// Names have two digits for the one and three for the other kind of rank.
const MAX_RANKS: u64 = 1000;

/// How the files of the ranks are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    Single,
    Tensor,
    TensorAndPipeline,
    /// Megatron-LM's, with these numbers behind that of the tensor-parallel rank.
    Training {
        has_pipeline: bool,
        has_experts: bool,
    },
}

impl Naming {
    fn member(
        self,
        Rank { tensor: tensor_rank, pipeline: pipeline_rank, expert: expert_rank }: Rank,
    ) -> String {
        match self {
            Self::Single => FILE.to_owned(),
            Self::Tensor => format!("mp_rank_{tensor_rank:02}/{FILE}"),
            Self::TensorAndPipeline => {
                format!("tp_rank_{tensor_rank:02}_pp_rank_{pipeline_rank:03}/{FILE}")
            }
            Self::Training { has_pipeline, has_experts } => {
                let pipeline = if has_pipeline { format!("_{pipeline_rank:03}") } else { String::new() };
                let expert = if has_experts { format!("_{expert_rank:03}") } else { String::new() };
                format!("{RANK_FOLDER}{tensor_rank:02}{pipeline}{expert}/{RANK_FILE}")
            }
        }
    }
}

/// Whose part of a model a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rank {
    tensor: u64,
    pipeline: u64,
    expert: u64,
}

/// The files that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RankGrid {
    naming: Naming,
    pub(crate) tensor_parallel: u64,
    pub(crate) pipeline_parallel: u64,
    pub(crate) expert_parallel: u64,
}

/// Looks for files of ranks. `None` when there are none at all; an error when some are missing.
pub(crate) fn find(archive: &Archive) -> Result<Option<RankGrid>, FormatError> {
    let mut ranks = BTreeSet::new();
    let mut namings = Vec::new();
    for member in archive.names() {
        let Some(folder) = member.strip_suffix(FILE) else { continue };
        let Some((naming, tensor_rank, pipeline_rank)) = rank_of(folder) else {
            return Err(FormatError::Unsupported {
                what: format!("`{}`", archive.describe(member)),
                hint: "weights are read from `model_weights.ckpt`, `mp_rank_00/`, `tp_rank_00_pp_rank_000/` or a \
                       distributed checkpoint in `model_weights/`; export a training checkpoint first"
                    .to_owned(),
            });
        };
        namings.push(naming);
        ranks.insert((pipeline_rank, tensor_rank));
    }
    let Some(&naming) = namings.first() else { return Ok(None) };
    if namings.iter().any(|&other| other != naming) {
        let reason = "it has `model_weights.ckpt` of several kinds; keep the files of one export";
        return Err(FormatError::damaged(&archive.path().display().to_string(), 0, reason));
    }
    let tensor_parallel = ranks.iter().map(|&(_, rank)| rank + 1).max().unwrap_or(1);
    let pipeline_parallel = ranks.iter().map(|&(rank, _)| rank + 1).max().unwrap_or(1);
    let grid = RankGrid { naming, tensor_parallel, pipeline_parallel, expert_parallel: 1 };
    for pipeline_rank in 0..pipeline_parallel {
        for tensor_rank in 0..tensor_parallel {
            if !ranks.contains(&(pipeline_rank, tensor_rank)) {
                return Err(
                    grid.missing(archive, Rank { tensor: tensor_rank, pipeline: pipeline_rank, expert: 0 })
                );
            }
        }
    }
    Ok(Some(grid))
}

/// The rank in `mp_rank_01/` or `tp_rank_01_pp_rank_002/`.
fn rank_of(folder: &str) -> Option<(Naming, u64, u64)> {
    if folder.is_empty() {
        return Some((Naming::Single, 0, 0));
    }
    let folder = folder.strip_suffix('/')?;
    let number = |digits: &str| digits.parse().ok().filter(|&rank| rank < MAX_RANKS);
    if let Some(rank) = folder.strip_prefix("mp_rank_") {
        return Some((Naming::Tensor, number(rank)?, 0));
    }
    let (tensor_rank, pipeline_rank) = folder.strip_prefix("tp_rank_")?.split_once("_pp_rank_")?;
    Some((Naming::TensorAndPipeline, number(tensor_rank)?, number(pipeline_rank)?))
}

impl RankGrid {
    fn missing(&self, archive: &Archive, rank: Rank) -> FormatError {
        let member = self.naming.member(rank);
        FormatError::MissingMember { path: archive.path().to_owned(), member }
    }
}

/// The weights of all ranks, merged.
pub(crate) struct RankFiles {
    pub(crate) source: PiecedSource,
    pub(crate) stored: Vec<StoredTensorInfo>,
    /// The names are those of NeMo's model before Megatron-Core.
    pub(crate) is_legacy: bool,
}

/// A rank's file.
struct RankFile {
    /// For errors.
    file: String,
    entries: IndexMap<String, RankEntry>,
}

/// What a rank's file has under a name.
struct RankEntry {
    /// Of the file that it lies in, which is another one for some experts.
    member_idx: usize,
    entry: Entry,
}

impl RankFile {
    fn new(member_idx: usize, file: String, entries: IndexMap<String, Entry>) -> Self {
        let entries = entries.into_iter().map(|(name, entry)| (name, RankEntry { member_idx, entry }));
        Self { file, entries: entries.collect() }
    }
}

/// What the files of the ranks are expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A model.
    Model,
    /// Adapters of a model with this many layers, of which some may have none.
    Adapter {
        /// Of the whole model.
        num_layers: u64,
        /// Whether its MLP has a gate.
        is_gated: bool,
    },
}

/// Reads the headers of all files and finds where every tensor's pieces lie.
pub(crate) fn open(
    archive: &Arc<Archive>,
    grid: &RankGrid,
    config: &Node,
    holds: Holds,
) -> Result<RankFiles, FormatError> {
    refuse_virtual_stages(&archive.path().display().to_string(), config, grid.pipeline_parallel)?;
    let mut stored = Vec::new();
    let mut merger = Merger::new(Arc::clone(archive), Facts::read(config, grid.tensor_parallel), holds);
    for pipeline_rank in 0..grid.pipeline_parallel {
        let mut stage = Vec::new();
        for tensor_rank in 0..grid.tensor_parallel {
            let member = grid.naming.member(Rank { tensor: tensor_rank, pipeline: pipeline_rank, expert: 0 });
            let member_idx = archive.index_of(&member)?;
            let file = archive.describe(&member);
            let entries = read_state_dict(archive.at(member_idx), &file)?;
            if (pipeline_rank, tensor_rank) == (0, 0) && holds == Holds::Model {
                refuse_adapters(&file, entries.keys().map(String::as_str))?;
            }
            list(&mut stored, &member, &file, &entries)?;
            stage.push(RankFile::new(member_idx, file, entries));
        }
        merger.add_stage(&stage, pipeline_rank, grid.pipeline_parallel)?;
    }
    check_nothing_is_missing(archive, grid, config, &merger)?;
    let is_legacy = stored.iter().any(|info| info.name.contains("language_model."));
    Ok(RankFiles { source: merger.source, stored, is_legacy })
}

/// Adds a file's tensors to the listing. An unsupported type is an error only when a weight has it.
fn list(
    stored: &mut Vec<StoredTensorInfo>,
    member: &str,
    file: &str,
    entries: &IndexMap<String, Entry>,
) -> Result<(), FormatError> {
    for (name, entry) in entries {
        let canonical = place_in_rank_file(name).canonical();
        if canonical.is_none() && matches!(entry, Entry::OtherDtype(_)) {
            continue;
        }
        let tensor = entry.tensor(file, name)?;
        let meta = TensorMeta { dtype: tensor.dtype, shape: tensor.shape.clone() };
        stored.push(StoredTensorInfo { file: member.to_owned(), name: name.clone(), meta, canonical });
    }
    Ok(())
}

/// The last ranks leave no gap when they are missing; the configuration tells.
fn check_nothing_is_missing(
    archive: &Archive,
    grid: &RankGrid,
    config: &Node,
    merger: &Merger,
) -> Result<(), FormatError> {
    let size = |key: &str| config.get(key).and_then(Node::as_i64).and_then(|size| u64::try_from(size).ok());
    if grid.naming == Naming::Single {
        return Ok(());
    }
    let next_tensor = Rank { tensor: grid.tensor_parallel, pipeline: 0, expert: 0 };
    if let Holds::Adapter { .. } = merger.holds
        && size("tensor_model_parallel_size").is_some_and(|ranks| ranks > grid.tensor_parallel)
    {
        return Err(grid.missing(archive, next_tensor));
    }
    if let (Some(found), Some(expected)) = (merger.qkv_rows, merger.facts.qkv_rows())
        && let Some(ranks) = size("tensor_model_parallel_size")
        && found.checked_mul(ranks) == expected.checked_mul(grid.tensor_parallel)
        && found < expected
    {
        return Err(grid.missing(archive, next_tensor));
    }
    if let (Some(stages), Some(num_layers)) = (size("pipeline_model_parallel_size"), size("num_layers"))
        && stages > grid.pipeline_parallel
        && merger.num_layers < num_layers
    {
        return Err(grid.missing(archive, Rank { tensor: 0, pipeline: grid.pipeline_parallel, expert: 0 }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_read_from_names() {
        assert_eq!(rank_of(""), Some((Naming::Single, 0, 0)));
        assert_eq!(rank_of("mp_rank_07/"), Some((Naming::Tensor, 7, 0)));
        assert_eq!(rank_of("tp_rank_01_pp_rank_002/"), Some((Naming::TensorAndPipeline, 1, 2)));
        for folder in ["mp_rank_00_fsdp_shard_00000/", "mp_rank_99999/", "backup/", "x/mp_rank_00/"] {
            assert_eq!(rank_of(folder), None, "{folder}");
        }
    }
}
