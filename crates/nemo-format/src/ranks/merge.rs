//! Putting the tensors of ranks together: Megatron's column- and row-parallel layers, undone.
//!
//! Which axis is split goes by name, never by shape, which misleads when sizes coincide. Layers of a pipeline stage
//! count from 0 and are numbered on. Rules: NeMo v2.0.0 `megatron_change_num_partitions.py`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use hydra_config::Node;
use model_spec::{LAYERS, Module, Part, Shard, TensorId, parse_name, shard_of};

use super::{Holds, RankFile};
use crate::adapter_names;
use crate::archive::Archive;
use crate::naming::{self, TensorPlace, place_in_rank_file};
use crate::pieced::{Array, Piece, PieceData, PiecedSource};
use crate::torch_file::StoredTensor;
use crate::{FormatError, TensorMeta};

const OUTPUT_LAYER: TensorId = TensorId::outside(Module::Output, Part::Weight);

/// What of the configuration the layout of the files depends on.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The first projection of the MLP is gate and up, one after the other on each rank.
    is_gated: bool,
    is_tied: bool,
    /// Rows of `linear_qkv` are all queries, then all keys, then all values, on each rank.
    has_split_qkv: bool,
    num_heads: Option<u64>,
    num_groups: Option<u64>,
    head_dim: Option<u64>,
    tensor_parallel: u64,
}

impl Facts {
    pub(super) fn read(config: &Node, tensor_parallel: u64) -> Self {
        let size = |key: &str| {
            let size = config.get(key).and_then(Node::as_f64).filter(|&size| size >= 1.0)?;
            Some(size as u64)
        };
        let flag = |key: &str| config.get(key).and_then(Node::as_bool);
        let num_heads = size("num_attention_heads");
        let from_hidden = || size("hidden_size")?.checked_div(num_heads?);
        Self {
            is_gated: config
                .get("activation")
                .and_then(Node::as_str)
                .is_some_and(|name| name.ends_with("glu")),
            is_tied: flag("share_embeddings_and_output_weights").unwrap_or(true),
            has_split_qkv: flag("megatron_legacy").unwrap_or(false),
            num_heads,
            num_groups: size("num_query_groups").or(num_heads),
            head_dim: size("kv_channels").or_else(from_hidden),
            tensor_parallel,
        }
    }

    /// Rows of `linear_qkv` of the whole model.
    pub(super) fn qkv_rows(&self) -> Option<u64> {
        self.num_heads?.checked_add(self.num_groups?.checked_mul(2)?)?.checked_mul(self.head_dim?)
    }
}

/// The merged model under construction.
pub(super) struct Merger {
    pub(super) facts: Facts,
    pub(super) holds: Holds,
    pub(super) source: PiecedSource,
    /// Layers of the stages so far.
    pub(super) num_layers: u64,
    /// Rows of the first `linear_qkv` met.
    pub(super) qkv_rows: Option<u64>,
}

/// One tensor as every tensor-parallel rank of a stage has it.
struct Parts<'a> {
    /// The files' name of it.
    name: &'a str,
    ranks: Vec<(usize, &'a StoredTensor)>,
}

impl Merger {
    pub(super) fn new(archive: Arc<Archive>, mut facts: Facts, holds: Holds) -> Self {
        if let Holds::Adapter { is_gated, .. } = holds {
            facts.is_gated = is_gated;
        }
        Self { facts, holds, source: PiecedSource::new(archive), num_layers: 0, qkv_rows: None }
    }

    /// Adds the tensors of a pipeline stage, whose files are given in order of their tensor-parallel rank.
    pub(super) fn add_stage(
        &mut self,
        stage: &[RankFile],
        pipeline_rank: u64,
        pipeline_parallel: u64,
    ) -> Result<(), FormatError> {
        let Some(first) = stage.first() else { return Ok(()) };
        check_same_names(stage)?;
        let first_layer = match self.holds {
            Holds::Model => self.number_layers(first)?,
            Holds::Adapter { num_layers, .. } => {
                first_layer_of_adapter(first, num_layers, pipeline_rank, pipeline_parallel)?
            }
        };
        for name in first.entries.keys() {
            match place_in_rank_file(name) {
                TensorPlace::Unused | TensorPlace::Layer { part: naming::LegacyPart::Up, .. } => {}
                // The head of a tied model that a later stage cannot share is a copy of the table.
                TensorPlace::Outside(canonical)
                    if parse_name(&canonical) == Some(OUTPUT_LAYER)
                        && self.facts.is_tied
                        && pipeline_rank > 0 => {}
                TensorPlace::Outside(canonical) => {
                    let parts = parts(stage, name)?;
                    let array = merge(&parts, shard(&canonical, false), None)?;
                    self.source.add(canonical, array)?;
                }
                TensorPlace::Layer { layer, rest, .. } => {
                    let canonical = format!("{LAYERS}{}.{rest}", first_layer + layer);
                    let array = self.layer_tensor(stage, name, &canonical)?;
                    self.source.add(canonical, array)?;
                }
                TensorPlace::Stacked(_) => {
                    return Err(FormatError::bad_tensor(name, "a file of one rank has no stacked layers"));
                }
            }
        }
        Ok(())
    }

    /// What to add to the numbers of this stage's layers.
    fn number_layers(&mut self, file: &RankFile) -> Result<u64, FormatError> {
        let layers = layers_of(file);
        let (Some(&lowest), Some(&highest)) = (layers.first(), layers.last()) else { return Ok(0) };
        let count = layers.len() as u64;
        // Stages count from 0; files that number all layers through are unmistakable.
        let is_numbered_through = lowest == self.num_layers;
        if highest - lowest != count - 1 || !(lowest == 0 || is_numbered_through) {
            let reason = format!(
                "its layers are numbered {lowest} to {highest}, {count} of them; expected them to begin at 0 without a gap"
            );
            return Err(FormatError::damaged(&file.file, 0, reason));
        }
        let add = self.num_layers - lowest;
        self.num_layers += count;
        Ok(add)
    }

    fn layer_tensor(
        &mut self,
        stage: &[RankFile],
        name: &str,
        canonical: &str,
    ) -> Result<Array, FormatError> {
        let parts_of = parts(stage, name)?;
        let up_name = name.replace(".dense_h_to_4h.", ".dense_h_to_4h_2.");
        let ups = (up_name != name && stage.iter().all(|file| file.entries.contains_key(&up_name)))
            .then(|| parts(stage, &up_name))
            .transpose()?;
        let id = parse_name(canonical);
        let is_qkv = id.is_some_and(|id| id.module == Module::Qkv);
        let array = if self.facts.has_split_qkv && is_qkv {
            self.interleave_heads(&parts_of)?
        } else {
            merge(&parts_of, shard(canonical, self.facts.is_gated && ups.is_none()), ups.as_ref())?
        };
        if is_qkv && id.is_some_and(|id| id.part == Part::Weight) {
            self.qkv_rows = array.meta.shape.first().copied();
        }
        Ok(array)
    }

    /// Rows of all heads' queries, then keys, then values to query, key, value of each head.
    fn interleave_heads(&self, parts: &Parts<'_>) -> Result<Array, FormatError> {
        let bad = |reason: &str| FormatError::bad_tensor(parts.name, reason);
        let heads = self.facts.num_heads.zip(self.facts.head_dim);
        let (num_heads, head_dim) =
            heads.ok_or_else(|| bad("`megatron_legacy` needs `num_attention_heads` and `hidden_size`"))?;
        let rank_heads = num_heads / self.facts.tensor_parallel;
        let rank_rows = parts.ranks.first().and_then(|(_, tensor)| tensor.shape.first().copied());
        let expected = rank_heads.checked_mul(head_dim).and_then(|rows| rows.checked_mul(3));
        if rank_rows.is_none() || rank_rows != expected || rank_heads == 0 {
            return Err(bad("`megatron_legacy` needs three equal parts for every attention head"));
        }
        let mut rows = Vec::new();
        for rank in 0..parts.ranks.len() {
            for head in 0..rank_heads {
                for third in 0..3 {
                    let from = (third * rank_heads + head) * head_dim;
                    rows.push((rank, from..from + head_dim));
                }
            }
        }
        stack_rows(&[parts], rows.into_iter().map(|(rank, range)| (0, rank, range)))
    }
}

/// How ranks share a tensor of a model or of an adapter.
fn shard(canonical: &str, gated: bool) -> Option<Shard> {
    // Their names come first: a layer that has an adapter is a part of them.
    adapter_names::shard_of(canonical, gated).or_else(|| shard_of(canonical, gated))
}

fn layers_of(file: &RankFile) -> BTreeSet<u64> {
    let layer_of = |name: &String| match place_in_rank_file(name) {
        TensorPlace::Layer { layer, .. } => Some(layer),
        _ => None,
    };
    file.entries.keys().filter_map(layer_of).collect()
}

/// The number of the first layer of a stage: layers count from 0 in each, and some may have no adapter.
fn first_layer_of_adapter(
    file: &RankFile,
    num_layers: u64,
    pipeline_rank: u64,
    pipeline_parallel: u64,
) -> Result<u64, FormatError> {
    let stages = pipeline_parallel.max(1);
    if !num_layers.is_multiple_of(stages) {
        let reason =
            format!("its {stages} pipeline ranks cannot share the {num_layers} layers of the model evenly");
        return Err(FormatError::damaged(&file.file, 0, reason));
    }
    let per_stage = num_layers / stages;
    let layers = layers_of(file);
    let is_beyond = stages > 1 && layers.last() >= Some(&per_stage);
    // Files that number all layers through are unmistakable where they leave the first stage.
    let is_numbered_through = pipeline_rank > 0 && layers.first() >= Some(&(pipeline_rank * per_stage));
    if is_beyond && !is_numbered_through {
        let last = layers.last().copied().unwrap_or(0);
        let reason = format!(
            "it has an adapter of layer {last}, and a pipeline rank of this model has {per_stage} layers"
        );
        return Err(FormatError::damaged(&file.file, 0, reason));
    }
    Ok(if is_numbered_through { 0 } else { pipeline_rank * per_stage })
}

/// Ranks of a stage have the same tensors.
fn check_same_names(stage: &[RankFile]) -> Result<(), FormatError> {
    let weights = |file: &RankFile| -> BTreeSet<String> {
        file.entries.keys().filter(|name| place_in_rank_file(name) != TensorPlace::Unused).cloned().collect()
    };
    let Some((first, others)) = stage.split_first() else { return Ok(()) };
    let names = weights(first);
    for file in others {
        let other = weights(file);
        if let Some(name) = names.symmetric_difference(&other).next() {
            let (has, lacks) =
                if names.contains(name) { (&first.file, &file.file) } else { (&file.file, &first.file) };
            let reason = format!("`{has}` has it, `{lacks}` does not; the ranks are not of one checkpoint");
            return Err(FormatError::bad_tensor(name, reason));
        }
    }
    Ok(())
}

/// The tensor `name` of every rank; all have one shape and type.
fn parts<'a>(stage: &'a [RankFile], name: &'a str) -> Result<Parts<'a>, FormatError> {
    let mut ranks: Vec<(usize, &StoredTensor)> = Vec::new();
    for file in stage {
        let entry = file.entries.get(name);
        let found = entry.ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        let tensor = found.entry.tensor(&file.file, name)?;
        if let Some((_, first)) = ranks.first()
            && (first.shape != tensor.shape || first.dtype != tensor.dtype)
        {
            let reason = format!(
                "`{}` has it as {} {:?}, the first rank as {} {:?}",
                file.file,
                tensor.dtype.name(),
                tensor.shape,
                first.dtype.name(),
                first.shape
            );
            return Err(FormatError::bad_tensor(name, reason));
        }
        ranks.push((found.member_idx, tensor));
    }
    Ok(Parts { name, ranks })
}

/// The whole tensor. `ups` are the second tensors of a gated MLP that has two.
fn merge(parts: &Parts<'_>, shard: Option<Shard>, ups: Option<&Parts<'_>>) -> Result<Array, FormatError> {
    let Some((_, tensor)) = parts.ranks.first() else {
        return Err(FormatError::MissingTensor { name: parts.name.to_owned() });
    };
    let num_rows = tensor.shape.first().copied().unwrap_or(0);
    let num_ranks = parts.ranks.len();
    if let Some(ups) = ups {
        let rows = [0, 1].into_iter().flat_map(|which| (0..num_ranks).map(move |rank| (which, rank)));
        return stack_rows(&[parts, ups], rows.map(|(which, rank)| (which, rank, 0..num_rows)));
    }
    // What one rank has is whole, however ranks would share it.
    let shard = if num_ranks == 1 { Some(Shard::Replicated) } else { shard };
    match shard {
        Some(Shard::Replicated) => whole(parts),
        Some(Shard::Rows) => stack_rows(&[parts], (0..num_ranks).map(|rank| (0, rank, 0..num_rows))),
        Some(Shard::RowsOfHalves) => {
            if !num_rows.is_multiple_of(2) {
                let reason = format!("gate and up cannot share its {num_rows} rows");
                return Err(FormatError::bad_tensor(parts.name, reason));
            }
            let halves = [0..num_rows / 2, num_rows / 2..num_rows];
            let rows =
                halves.into_iter().flat_map(|half| (0..num_ranks).map(move |rank| (0, rank, half.clone())));
            stack_rows(&[parts], rows)
        }
        Some(Shard::Columns) => side_by_side(parts),
        None => Err(FormatError::bad_tensor(
            parts.name,
            "it is not known how tensor-parallel ranks share it; merge the ranks with NeMo first",
        )),
    }
}

fn whole(parts: &Parts<'_>) -> Result<Array, FormatError> {
    let Some(&(member_idx, tensor)) = parts.ranks.first() else {
        return Err(FormatError::MissingTensor { name: parts.name.to_owned() });
    };
    let piece = piece(member_idx, tensor, vec![0; tensor.shape.len()]);
    Ok(array(parts.name, tensor, tensor.shape.clone(), vec![piece]))
}

fn piece(member_idx: usize, tensor: &StoredTensor, offsets: Vec<u64>) -> Piece {
    let (start_bytes, strides_elems) = (tensor.start_bytes, tensor.strides_elems.clone());
    let data = PieceData::Strided { start_bytes, strides_elems };
    Piece { offsets, sizes: tensor.shape.clone(), member_idx, data }
}

fn array(name: &str, tensor: &StoredTensor, shape: Vec<u64>, pieces: Vec<Piece>) -> Array {
    Array { name: name.to_owned(), meta: TensorMeta { dtype: tensor.dtype, shape }, pieces }
}

/// One under the other: rows of the rank's tensor of `tensors[which]`, as `(which, rank, rows)`.
fn stack_rows(
    tensors: &[&Parts<'_>],
    rows: impl Iterator<Item = (usize, usize, Range<u64>)>,
) -> Result<Array, FormatError> {
    let name = tensors.first().map_or("", |parts| parts.name);
    let mut pieces = Vec::new();
    let mut num_rows = 0_u64;
    let mut model: Option<&StoredTensor> = None;
    for (which, rank, range) in rows {
        let found = tensors.get(which).and_then(|parts| parts.ranks.get(rank));
        let Some(&(member_idx, tensor)) = found else { continue };
        let model = *model.get_or_insert(tensor);
        let fits = tensor.shape.get(1..) == model.shape.get(1..)
            && tensor.dtype == model.dtype
            && tensor.shape.first().is_some_and(|&rows| range.end <= rows);
        if !fits {
            let reason = format!("its parts have shapes {:?} and {:?}", model.shape, tensor.shape);
            return Err(FormatError::bad_tensor(name, reason));
        }
        let mut offsets = vec![0; tensor.shape.len()];
        offsets[0] = num_rows;
        let mut piece = piece(member_idx, tensor, offsets);
        piece.sizes[0] = range.end - range.start;
        let skipped = range.start * tensor.strides_elems[0] * tensor.dtype.size_bytes() as u64;
        if let PieceData::Strided { start_bytes, .. } = &mut piece.data {
            *start_bytes += skipped;
        }
        num_rows += piece.sizes[0];
        pieces.push(piece);
    }
    let Some(model) = model else { return Err(FormatError::MissingTensor { name: name.to_owned() }) };
    let mut shape = model.shape.clone();
    shape[0] = num_rows;
    Ok(array(name, model, shape, pieces))
}

/// Columns of the ranks in turn.
fn side_by_side(parts: &Parts<'_>) -> Result<Array, FormatError> {
    let Some((_, model)) = parts.ranks.first() else {
        return Err(FormatError::MissingTensor { name: parts.name.to_owned() });
    };
    let [num_rows, num_columns] = model.shape[..] else {
        let reason = format!("its shape {:?} has no columns to put together", model.shape);
        return Err(FormatError::bad_tensor(parts.name, reason));
    };
    let place = |(rank, &(member_idx, tensor)): (usize, &(usize, &StoredTensor))| {
        piece(member_idx, tensor, vec![0, (rank as u64).saturating_mul(num_columns)])
    };
    let pieces = parts.ranks.iter().enumerate().map(place).collect();
    let total = num_columns.saturating_mul(parts.ranks.len() as u64);
    Ok(array(parts.name, model, vec![num_rows, total], pieces))
}
