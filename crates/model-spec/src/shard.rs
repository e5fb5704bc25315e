//! How tensor-parallel ranks share tensors, and which regions of a whole tensor a rank holds.

use std::ops::Range;

use crate::{
    AttentionSpec, Dim, EXPERTS, FfnSpec, HeadLayout, LAYERS, LayerSpec, ModelSpec, Module, MoeSpec, Part,
    Shard, TensorId, TensorSpec,
};

/// Most pieces that the inputs of a linear layer are cut into for a sum that does not depend on the number of ranks.
const MAX_REDUCTION_PIECES: usize = 8;

/// Pieces that the inputs of `linear_proj` or `linear_fc2` are cut into, so that as many ranks as divide them give one sum:
/// each piece is summed by itself, and the sums are added in pairs, `((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))`. The largest
/// power of two, up to 8, that divides `num_units`: query heads, or the MLP's inner width.
pub const fn reduction_pieces(num_units: usize) -> usize {
    let mut pieces = MAX_REDUCTION_PIECES;
    while pieces > 1 && !num_units.is_multiple_of(pieces) {
        pieces /= 2;
    }
    pieces
}

/// How tensor-parallel ranks share the experts of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertSharing {
    /// Each has a part of every expert's width (`expert_model_parallel_size: 1`).
    #[default]
    Widths,
    /// Each has whole experts, the first rank the first ones (`expert_model_parallel_size` as large as
    /// `tensor_model_parallel_size`, and so `expert_tensor_parallel_size: 1`). A shared expert is shared by its width all the
    /// same.
    Numbers,
}

/// Which part of a model a rank has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// Its number among the ranks that share each tensor.
    pub tp_rank: u32,
    /// How many these are.
    pub tp_size: u32,
    /// How these share experts.
    pub experts: ExpertSharing,
    /// The layers of its pipeline stage.
    pub layers: Range<usize>,
}

impl ShardPlace {
    /// The place of a rank that has the whole model.
    pub fn whole(model: &ModelSpec) -> Self {
        Self { tp_rank: 0, tp_size: 1, experts: ExpertSharing::Widths, layers: 0..model.layers.len() }
    }

    /// Whether it is the whole model.
    pub fn is_whole(&self, model: &ModelSpec) -> bool {
        self.tp_size == 1 && self.layers == (0..model.layers.len())
    }

    /// Whether the pipeline stage begins with the embedding.
    pub fn is_first_stage(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether the pipeline stage ends with the output layer.
    pub fn is_last_stage(&self, model: &ModelSpec) -> bool {
        self.layers.end == model.layers.len()
    }

    /// What this rank has of the model, as a model of its own: its layers, with its heads and its part of the MLP, and its
    /// rows of the tables.
    ///
    /// # Errors
    /// When the ranks cannot share a layer evenly.
    pub fn part_of(&self, model: &ModelSpec) -> Result<ModelSpec, Indivisible> {
        let tp_size = self.tp_size as usize;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (layer, idx) in
            model.layers.get(self.layers.clone()).unwrap_or_default().iter().zip(self.layers.clone())
        {
            // The tensors know whether they can be cut.
            let linears =
                [Module::Qkv, Module::Proj, Module::Fc1, Module::Fc2, Module::SharedFc1, Module::SharedFc2];
            let of_layer = linears.map(|module| TensorId::in_layer(idx, module, Part::Weight));
            let experts = [Module::ExpertFc1, Module::ExpertFc2];
            let of_expert = experts.map(|module| TensorId::in_expert(idx, 0, module, Part::Weight));
            for id in of_layer.into_iter().chain(of_expert) {
                if let Ok(tensor) = model.tensor(id) {
                    tensor.regions(self)?;
                }
            }
            if let Some(AttentionSpec { qk_norm: Some(_), norm_across_heads, norm_per_head, .. }) =
                &layer.attention
                && tp_size > 1
                && (*norm_across_heads || *norm_per_head)
            {
                let key =
                    if *norm_across_heads { "qk_layernorm_across_heads" } else { "qk_layernorm_per_head" };
                return Err(Indivisible {
                    name: TensorId::in_layer(idx, Module::QNorm, Part::Weight).name(),
                    tp_size: self.tp_size,
                    num_units: 1,
                    origin: format!("`{key}: true`"),
                });
            }
            let mut part = layer.clone();
            let attention = part.attention.map(|mut attention| {
                attention.heads = attention.heads.of_rank(tp_size);
                attention
            });
            part.attention = attention;
            if let Some(moe) = layer.moe() {
                self.check_experts(moe, idx)?;
            }
            part.ffn = part.ffn.map(|ffn| self.part_of_ffn(ffn));
            layers.push(part);
        }
        let rows = self.share_of(model.padded_vocab_size);
        Ok(ModelSpec { layers: layers.into(), padded_vocab_size: rows.end - rows.start, ..model.clone() })
    }

    /// Whether it has whole experts, and other ranks have others.
    pub fn has_some_experts(&self) -> bool {
        self.tp_size > 1 && self.experts == ExpertSharing::Numbers
    }

    /// The experts of a layer of which it has something, by their numbers.
    pub fn experts_of(&self, num_experts: usize) -> Range<usize> {
        if !self.has_some_experts() {
            return 0..num_experts;
        }
        let (rank, share) = (self.tp_rank as usize, num_experts / self.tp_size as usize);
        rank * share..(rank + 1) * share
    }

    fn holds_expert(&self, model: &ModelSpec, id: TensorId) -> bool {
        let moe = id.layer.and_then(|layer| model.layers.get(layer)?.moe());
        id.expert
            .zip(moe)
            .is_none_or(|(expert, moe)| self.experts_of(moe.experts.num_experts).contains(&expert))
    }

    fn check_experts(&self, moe: &MoeSpec, layer_idx: usize) -> Result<(), Indivisible> {
        let num_experts = moe.experts.num_experts;
        if !self.has_some_experts() || num_experts.is_multiple_of(self.tp_size as usize) {
            return Ok(());
        }
        Err(Indivisible {
            name: format!("{LAYERS}{layer_idx}.{}", EXPERTS.trim_end_matches('.')),
            tp_size: self.tp_size,
            num_units: num_experts as u64,
            origin: Dim::Experts(num_experts).to_string(),
        })
    }

    fn part_of_ffn(&self, ffn: FfnSpec) -> FfnSpec {
        let tp_size = self.tp_size.max(1) as usize;
        match ffn {
            FfnSpec::Dense(mut mlp) => {
                mlp.ffn_hidden_size /= tp_size;
                FfnSpec::Dense(mlp)
            }
            // The router chooses among the experts of all ranks.
            FfnSpec::Moe(mut moe) => {
                if !self.has_some_experts() {
                    moe.experts.ffn_hidden_size /= tp_size;
                }
                if let Some(shared) = &mut moe.experts.shared {
                    shared.ffn_hidden_size /= tp_size;
                }
                FfnSpec::Moe(moe)
            }
            // Every rank computes all of it.
            FfnSpec::Linear(norm) => FfnSpec::Linear(norm),
        }
    }

    /// This rank's part of so many rows of the embedding table or the output layer; ranks need not have equally many.
    pub fn share_of(&self, num_rows: u64) -> Range<u64> {
        let tp_size = u128::from(self.tp_size.max(1));
        // At most `num_rows`.
        let start = |rank: u32| (u128::from(num_rows) * u128::from(rank) / tp_size) as u64;
        start(self.tp_rank)..start(self.tp_rank + 1)
    }

    /// Whether it has something of a tensor of the model.
    pub fn holds(&self, model: &ModelSpec, id: TensorId) -> bool {
        let is_first = self.layers.start == 0;
        let is_last = self.layers.end == model.layers.len();
        match (id.layer, id.module) {
            (Some(layer), _) => self.layers.contains(&layer) && self.holds_expert(model, id),
            (None, Module::WordEmbeddings) => is_first || (is_last && model.output.tied),
            (None, Module::PositionEmbeddings) => is_first,
            (None, _) => is_last,
        }
    }
}

/// A half-open box of a tensor: one range per axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// One half-open range per axis, outermost first.
    pub ranges: Vec<Range<u64>>,
}

impl Region {
    /// The whole of a tensor of this shape.
    pub fn whole(shape: &[u64]) -> Self {
        Self { ranges: shape.iter().map(|&dim| 0..dim).collect() }
    }

    /// The extent along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.ranges.iter().map(|range| range.end.saturating_sub(range.start)).collect()
    }

    /// Number of elements; the greatest number when it overflows.
    pub fn num_elems(&self) -> u64 {
        self.shape().iter().fold(1, |product: u64, &size| product.saturating_mul(size))
    }
}

/// A tensor that ranks cannot share evenly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tp_size} ranks cannot share `{name}` evenly, whose {num_units} parts follow from {origin}")]
pub struct Indivisible {
    /// The tensor.
    pub name: String,
    /// How many ranks are to share it.
    pub tp_size: u32,
    /// The parts of it that are never cut.
    pub num_units: u64,
    /// What their number follows from.
    pub origin: String,
}

impl TensorSpec {
    /// The regions of the whole tensor that a rank holds: one under the other along the first axis, they are its tensor.
    ///
    /// # Errors
    /// When the ranks cannot share it evenly.
    pub fn regions(&self, at: &ShardPlace) -> Result<Vec<Region>, Indivisible> {
        let whole = Region::whole(&self.shape());
        if self.id.expert.is_some() && at.has_some_experts() {
            return Ok(vec![whole]);
        }
        let (axis, num_parts) = match self.shard {
            Shard::Replicated => return Ok(vec![whole]),
            Shard::Rows => (0, 1),
            Shard::RowsOfHalves => (0, 2),
            Shard::Columns => (1, 1),
        };
        let Some(&dim) = self.dims.get(axis) else { return Ok(vec![whole]) };
        let along = |range: Range<u64>| {
            let mut region = whole.clone();
            region.ranges[axis] = range;
            region
        };
        if let Dim::Vocab(num_rows) = dim {
            self.check_rank(dim, num_rows, at)?;
            return Ok(vec![along(at.share_of(num_rows))]);
        }
        if let Dim::Qkv(heads) = dim
            && at.tp_size as usize > heads.num_query_groups
        {
            return Ok(self.parts_of_group(heads, at)?.map(along).to_vec());
        }
        let part_size = dim.size() / num_parts;
        let rank_size = self.rank_size(dim, part_size, at)?;
        let region = |part: u64| {
            let start = part * part_size + u64::from(at.tp_rank) * rank_size;
            along(start..start + rank_size)
        };
        Ok((0..num_parts).map(region).collect())
    }

    /// A rank's share of `part_size` elements along an axis.
    fn rank_size(&self, dim: Dim, part_size: u64, at: &ShardPlace) -> Result<u64, Indivisible> {
        let unit = dim.unit_for(at.tp_size).max(1);
        let num_units = part_size / unit;
        self.check_rank(dim, num_units, at)?;
        let tp_size = u64::from(at.tp_size);
        if !num_units.is_multiple_of(tp_size) {
            return Err(self.indivisible(dim, num_units, at));
        }
        Ok(num_units / tp_size * unit)
    }

    /// The rows of `linear_qkv` of a rank among more ranks than there are query groups: some query heads of a group, and its
    /// key and value, which other ranks have too.
    fn parts_of_group(&self, heads: HeadLayout, at: &ShardPlace) -> Result<[Range<u64>; 3], Indivisible> {
        let HeadLayout { num_attention_heads, num_query_groups, kv_channels } = heads;
        let tp_size = at.tp_size as usize;
        let dim = Dim::Qkv(heads);
        self.check_rank(dim, num_attention_heads as u64, at)?;
        let shared_by = tp_size.checked_div(num_query_groups).unwrap_or(0);
        if !num_attention_heads.is_multiple_of(tp_size) {
            return Err(self.indivisible(dim, num_attention_heads as u64, at));
        }
        if shared_by * num_query_groups != tp_size {
            return Err(self.indivisible(dim, num_query_groups as u64, at));
        }
        let num_queries = num_attention_heads / tp_size;
        let (group, part) = (at.tp_rank as usize / shared_by, at.tp_rank as usize % shared_by);
        let first = group * (heads.queries_per_group() + 2);
        let of_heads = |start: usize, len: usize| {
            ((first + start) * kv_channels) as u64..((first + start + len) * kv_channels) as u64
        };
        let key = heads.queries_per_group();
        Ok([of_heads(part * num_queries, num_queries), of_heads(key, 1), of_heads(key + 1, 1)])
    }

    fn check_rank(&self, dim: Dim, num_units: u64, at: &ShardPlace) -> Result<(), Indivisible> {
        if at.tp_rank < at.tp_size { Ok(()) } else { Err(self.indivisible(dim, num_units, at)) }
    }

    fn indivisible(&self, dim: Dim, num_units: u64, at: &ShardPlace) -> Indivisible {
        Indivisible { name: self.name.clone(), tp_size: at.tp_size, num_units, origin: dim.to_string() }
    }
}

impl HeadLayout {
    /// The heads of one of `tp_size` ranks that can share them. Fewer key heads than ranks are there several times.
    pub const fn of_rank(self, tp_size: usize) -> Self {
        let tp_size = if tp_size == 0 { 1 } else { tp_size };
        let num_query_groups = self.num_query_groups / tp_size;
        Self {
            num_attention_heads: self.num_attention_heads / tp_size,
            num_query_groups: if num_query_groups == 0 { 1 } else { num_query_groups },
            kv_channels: self.kv_channels,
        }
    }
}

impl LayerSpec {
    /// Whether `tp_size` ranks can share the layer, and give the sums that one rank gives.
    fn is_shared_by(&self, tp_size: usize, sharing: ExpertSharing) -> bool {
        let divides = |units: usize| reduction_pieces(units).is_multiple_of(tp_size);
        let attention = self.attention.as_ref().is_none_or(|attention| {
            let HeadLayout { num_attention_heads, num_query_groups, .. } = attention.heads;
            let groups =
                num_query_groups.is_multiple_of(tp_size) || tp_size.is_multiple_of(num_query_groups.max(1));
            let norms = tp_size == 1
                || attention.qk_norm.is_none()
                || !(attention.norm_across_heads || attention.norm_per_head);
            groups && norms && divides(num_attention_heads)
        });
        let experts = self.moe().is_none_or(|moe| {
            let own = match sharing {
                ExpertSharing::Widths => divides(moe.experts.ffn_hidden_size),
                ExpertSharing::Numbers => moe.experts.num_experts.is_multiple_of(tp_size),
            };
            own && moe.experts.shared.is_none_or(|shared| divides(shared.ffn_hidden_size))
        });
        attention && experts && self.mlp().is_none_or(|mlp| divides(mlp.ffn_hidden_size))
    }
}

impl ModelSpec {
    /// The numbers of tensor-parallel ranks that can share every layer and give the sums that one rank gives with
    /// [`reduction_pieces`], in ascending order; 1 is always among them.
    pub fn tensor_parallel_sizes(&self, experts: ExpertSharing) -> Vec<u32> {
        let sizes = (0..=MAX_REDUCTION_PIECES.ilog2()).map(|power| 1_u32 << power);
        sizes
            .filter(|&size| self.layers.iter().all(|layer| layer.is_shared_by(size as usize, experts)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
