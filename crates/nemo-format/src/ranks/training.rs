//! The files in which Megatron-LM saves what each rank has of a model: `mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt`.
//!
//! A number behind the first is that of the pipeline-parallel rank, or of the expert-parallel one where there is but one
//! stage, which the arguments tell. Rules: `get_checkpoint_name` of `megatron/training/checkpointing.py`.

use std::collections::BTreeSet;
use std::sync::Arc;

use hydra_config::Node;

use super::merge::{Facts, Merger};
use super::{
    Holds, MAX_RANKS, Naming, Rank, RankFile, RankFiles, RankGrid, check_nothing_is_missing, experts, list,
};
use crate::FormatError;
use crate::archive::Archive;
use crate::megatron_lm::{self, Model, RANK_FILE, RANK_FOLDER};
use crate::partial_models::refuse_virtual_stages;
use crate::torch_file::{TrainingFile, read_training};

/// From this version on, rows of `linear_qkv` are ordered as Megatron-Core's.
const GROUPED_VERSION: f64 = 2.0;

/// Layers that predict further tokens, and the last stage's copy of a tied table.
const UNUSED: [&str; 2] = ["mtp.", "word_embeddings_for_head."];

/// A checkpoint of Megatron-LM in a file of every rank.
pub(crate) struct RankedTraining {
    pub(crate) args: Node,
    pub(crate) config: Node,
    /// The file that the arguments are from.
    pub(crate) file: String,
    pub(crate) grid: RankGrid,
    pub(crate) files: RankFiles,
}

/// Opens the files of all ranks.
pub(crate) fn open_training(archive: &Arc<Archive>) -> Result<RankedTraining, FormatError> {
    let ranks = ranks_of(archive)?;
    let first = ranks.first().map(|numbers| member_of(numbers)).unwrap_or_default();
    let file = archive.describe(&first);
    let TrainingFile { args, checkpoint_version, entries } = read_training(archive.member(&first)?, &file)?;
    let args = args.ok_or_else(|| megatron_lm::without_arguments(&file))?;
    let grid = grid(archive, &ranks, &args)?;
    let is_legacy = entries.keys().any(|name| name.contains("language_model."));
    let model = if is_legacy { Model::Legacy } else { Model::Core };
    let mut config = megatron_lm::model_config(archive, &args, &file, model)?;
    set_row_order(&mut config, checkpoint_version, &file)?;
    refuse_virtual_stages(&archive.path().display().to_string(), &args, grid.pipeline_parallel)?;
    refuse_other_expert_ranks(&args, &grid, &file)?;
    let files = merged(archive, &grid, &config)?;
    // The reader has put the rows of `linear_qkv` in order.
    config.remove("megatron_legacy");
    if is_legacy {
        config.set("mcore_gpt", Node::Bool(false));
    }
    Ok(RankedTraining { args, config, file, grid, files })
}

/// Old files have rows in other orders.
fn set_row_order(config: &mut Node, version: Option<f64>, file: &str) -> Result<(), FormatError> {
    let version = version.unwrap_or(0.0);
    if version >= GROUPED_VERSION {
        return Ok(());
    }
    if version != 0.0 {
        return Err(FormatError::Unsupported {
            what: format!("`{file}`, whose `checkpoint_version` is {version},"),
            hint: "load it with Megatron-LM and save it again: from version 2 on its rows are in the order that is read".to_owned(),
        });
    }
    config.set("megatron_legacy", Node::Bool(true));
    Ok(())
}

/// The numbers in the names of all folders of ranks, in order, each with as many.
fn ranks_of(archive: &Archive) -> Result<Vec<Vec<u64>>, FormatError> {
    let numbers_of = |member: &str| -> Option<Vec<u64>> {
        let folder = member.strip_suffix(RANK_FILE)?.strip_suffix('/')?.strip_prefix(RANK_FOLDER)?;
        let numbers = folder.split('_').map(|digits| digits.parse().ok().filter(|&rank| rank < MAX_RANKS));
        numbers.collect::<Option<Vec<u64>>>().filter(|numbers| (1..=3).contains(&numbers.len()))
    };
    let ranks: BTreeSet<Vec<u64>> = archive.names().filter_map(numbers_of).collect();
    let ranks: Vec<Vec<u64>> = ranks.into_iter().collect();
    let lengths: BTreeSet<usize> = ranks.iter().map(Vec::len).collect();
    if lengths.len() > 1 {
        let reason =
            format!("it has folders `{RANK_FOLDER}…` of several kinds; keep those of one checkpoint");
        return Err(FormatError::damaged(&archive.path().display().to_string(), 0, reason));
    }
    Ok(ranks)
}

/// The member that these numbers name.
fn member_of(numbers: &[u64]) -> String {
    let mut folder = RANK_FOLDER.to_owned();
    for (idx, number) in numbers.iter().enumerate() {
        folder += &if idx == 0 { format!("{number:02}") } else { format!("_{number:03}") };
    }
    format!("{folder}/{RANK_FILE}")
}

/// How many ranks of each kind there are; none may be missing.
fn grid(archive: &Archive, ranks: &[Vec<u64>], args: &Node) -> Result<RankGrid, FormatError> {
    let stated = |key: &str| args.get(key).and_then(Node::as_i64).unwrap_or(1);
    let num_numbers = ranks.first().map_or(1, Vec::len);
    let has_pipeline = num_numbers == 3 || (num_numbers == 2 && stated("pipeline_model_parallel_size") > 1);
    let has_experts = num_numbers == 3 || (num_numbers == 2 && !has_pipeline);
    let count =
        |idx: usize| ranks.iter().filter_map(|numbers| numbers.get(idx)).max().map_or(1, |&last| last + 1);
    let grid = RankGrid {
        naming: Naming::Training { has_pipeline, has_experts },
        tensor_parallel: count(0),
        pipeline_parallel: if has_pipeline { count(1) } else { 1 },
        expert_parallel: if has_experts { count(num_numbers - 1) } else { 1 },
    };
    for (key, found, rank) in [
        (
            "tensor_model_parallel_size",
            grid.tensor_parallel,
            Rank { tensor: grid.tensor_parallel, pipeline: 0, expert: 0 },
        ),
        (
            "pipeline_model_parallel_size",
            grid.pipeline_parallel,
            Rank { tensor: 0, pipeline: grid.pipeline_parallel, expert: 0 },
        ),
        (
            "expert_model_parallel_size",
            grid.expert_parallel,
            Rank { tensor: 0, pipeline: 0, expert: grid.expert_parallel },
        ),
    ] {
        if u64::try_from(stated(key)).is_ok_and(|stated| stated > found) {
            return Err(grid.missing(archive, rank));
        }
    }
    for rank in grid.ranks() {
        if archive.get(&grid.naming.member(rank)).is_none() {
            return Err(grid.missing(archive, rank));
        }
    }
    Ok(grid)
}

impl RankGrid {
    fn ranks(&self) -> impl Iterator<Item = Rank> {
        let Self { tensor_parallel, pipeline_parallel, expert_parallel, .. } = *self;
        (0..pipeline_parallel).flat_map(move |pipeline| {
            (0..tensor_parallel).flat_map(move |tensor| {
                (0..expert_parallel).map(move |expert| Rank { tensor, pipeline, expert })
            })
        })
    }
}

/// Experts are put together as the other layers are.
fn refuse_other_expert_ranks(args: &Node, grid: &RankGrid, file: &str) -> Result<(), FormatError> {
    let has_experts = args.get("num_experts").is_some_and(|value| *value != Node::Null);
    let key = "expert_tensor_parallel_size";
    match args.get(key).and_then(Node::as_i64) {
        Some(size) if has_experts && u64::try_from(size) != Ok(grid.tensor_parallel) => {
            Err(FormatError::Unsupported {
                what: format!(
                    "`{file}`, files of {} tensor-parallel ranks with `{key}` {size},",
                    grid.tensor_parallel
                ),
                hint: "save it with `--ckpt-format torch_dist`".to_owned(),
            })
        }
        _ => Ok(()),
    }
}

fn merged(archive: &Arc<Archive>, grid: &RankGrid, config: &Node) -> Result<RankFiles, FormatError> {
    let mut stored = Vec::new();
    let facts = Facts::read(config, grid.tensor_parallel);
    let mut merger = Merger::new(Arc::clone(archive), facts, Holds::Model);
    for pipeline in 0..grid.pipeline_parallel {
        let mut stage = Vec::new();
        for tensor in 0..grid.tensor_parallel {
            let mut files = Vec::new();
            for expert in 0..grid.expert_parallel {
                let member = grid.naming.member(Rank { tensor, pipeline, expert });
                let member_idx = archive.index_of(&member)?;
                let file = archive.describe(&member);
                let mut entries = read_training(archive.at(member_idx), &file)?.entries;
                entries.retain(|name, _| !UNUSED.iter().any(|unused| name.starts_with(unused)));
                if entries.is_empty() {
                    return Err(FormatError::damaged(&file, 0, "it has no `model` with tensors"));
                }
                list(&mut stored, &member, &file, &entries)?;
                files.push(RankFile::new(member_idx, file, entries));
            }
            stage.push(experts::join(files)?);
        }
        merger.add_stage(&stage, pipeline, grid.pipeline_parallel)?;
    }
    check_nothing_is_missing(archive, grid, config, &merger)?;
    let is_legacy = stored.iter().any(|info| info.name.contains("language_model."));
    Ok(RankFiles { source: merger.source, stored, is_legacy })
}
