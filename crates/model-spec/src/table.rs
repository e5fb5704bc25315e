//! The table of tensors: one row for each module, which says all that there is to know of its tensors.

use crate::{
    AttentionSpec, BlockStyle, Dim, Key, LayerSpec, MlpSpec, ModelSpec, Module, NormSpec, Normalization,
    Part, Shard, TensorId, TensorSpec,
};

/// What the names of the layers' tensors begin with, before the layer's number.
pub const LAYERS: &str = "model.decoder.layers.";

/// A module of the model or of each layer.
struct Row {
    module: Module,
    /// The name of its tensors without their last part and, in a layer, without the layer's prefix.
    stem: &'static str,
    in_layer: bool,
    /// Its tensors, where it has all of them.
    parts: &'static [Part],
    /// How its weight is sharded. Its bias goes with the rows, and is whole where columns are shared.
    shard: Shard,
    /// The axes of its weight; its bias has the first of them. `None` where the layer has no such module.
    dims: fn(&At<'_>) -> Option<Vec<Dim>>,
    /// Whether there is such a tensor, and what decides it.
    need: fn(&At<'_>, Part) -> Need,
}

/// A model and, for the rows of a layer, one of its layers.
struct At<'a> {
    model: &'a ModelSpec,
    layer: Option<&'a LayerSpec>,
}

/// Whether a model has a tensor.
enum Need {
    /// It has, because of this.
    Has(Key),
    /// It would have, with this.
    Lacks(Key),
}

impl Need {
    fn when(condition: bool, key: Key) -> Self {
        if condition { Self::Has(key) } else { Self::Lacks(key) }
    }
}

const WEIGHT: &[Part] = &[Part::Weight];
const WEIGHT_AND_BIAS: &[Part] = &[Part::Weight, Part::Bias];

/// In the order of the forward pass.
static ROWS: [Row; 14] = [
    Row {
        module: Module::WordEmbeddings,
        stem: "model.embedding.word_embeddings.",
        in_layer: false,
        parts: WEIGHT,
        shard: Shard::Rows,
        dims: |at| Some(vec![at.vocab(), at.hidden()]),
        need: |_, _| Need::Has(Key::Always),
    },
    Row {
        module: Module::PositionEmbeddings,
        stem: "model.embedding.position_embeddings.",
        in_layer: false,
        parts: WEIGHT,
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Positions(at.model.learned_positions?), at.hidden()]),
        need: |at, _| Need::when(at.model.learned_positions.is_some(), Key::LearnedPositions),
    },
    Row {
        module: Module::InputNorm,
        stem: "self_attention.linear_qkv.layer_norm_",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.attention().map(|_| vec![at.hidden()]),
        need: |at, part| match at.attention() {
            Some(attention) => norm(&attention.norm, part, Key::Always),
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::Qkv,
        stem: "self_attention.linear_qkv.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Rows,
        dims: |at| Some(vec![Dim::Qkv(at.attention()?.heads), at.hidden()]),
        need: |at, part| match at.attention() {
            Some(attention) => {
                let key = if attention.proj_bias { Key::Bias } else { Key::QkvBias };
                linear(attention.qkv_bias, part, key)
            }
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::QNorm,
        stem: "self_attention.q_layernorm.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Head(at.attention()?.heads)]),
        need: |at, part| head_norm(at, part),
    },
    Row {
        module: Module::KNorm,
        stem: "self_attention.k_layernorm.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![Dim::Head(at.attention()?.heads)]),
        need: |at, part| head_norm(at, part),
    },
    Row {
        module: Module::Proj,
        stem: "self_attention.linear_proj.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Columns,
        dims: |at| Some(vec![at.hidden(), Dim::Query(at.attention()?.heads)]),
        need: |at, part| match at.attention() {
            Some(attention) => linear(attention.proj_bias, part, Key::Bias),
            None => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::PostAttentionNorm,
        stem: "self_attention.linear_proj.post_layernorm.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.attention().map(|_| vec![at.hidden()]),
        need: |at, part| post_norm(at.attention().map(|attention| &attention.post_norm), part),
    },
    Row {
        module: Module::MlpNorm,
        stem: "mlp.linear_fc1.layer_norm_",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.mlp().map(|_| vec![at.hidden()]),
        need: |at, part| match (at.layer, at.mlp()) {
            (Some(layer), Some(mlp)) if !layer.shares_norm() => {
                let is_own = layer.join == BlockStyle::ParallelOwnNorm;
                let key = if is_own { Key::NewDecoderArchitecture } else { Key::NotParallel };
                norm(&mlp.norm, part, key)
            }
            (_, Some(_)) => Need::Lacks(Key::NewDecoderArchitecture),
            (_, None) => Need::Lacks(Key::LayerKind),
        },
    },
    Row {
        module: Module::Fc1,
        stem: "mlp.linear_fc1.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::RowsOfHalves,
        dims: |at| {
            let MlpSpec { ffn_hidden_size, activation, .. } = *at.mlp()?;
            Some(vec![Dim::Fc1 { ffn_hidden_size, gated: activation.gated }, at.hidden()])
        },
        need: |at, part| mlp_linear(at, part),
    },
    Row {
        module: Module::Fc2,
        stem: "mlp.linear_fc2.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Columns,
        dims: |at| Some(vec![at.hidden(), Dim::Ffn(at.mlp()?.ffn_hidden_size)]),
        need: |at, part| mlp_linear(at, part),
    },
    Row {
        module: Module::PostMlpNorm,
        stem: "mlp.linear_fc2.post_layernorm.",
        in_layer: true,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| at.mlp().map(|_| vec![at.hidden()]),
        need: |at, part| post_norm(at.mlp().map(|mlp| &mlp.post_norm), part),
    },
    Row {
        module: Module::FinalNorm,
        stem: "model.decoder.final_layernorm.",
        in_layer: false,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Replicated,
        dims: |at| Some(vec![at.hidden()]),
        need: |at, part| norm(&at.model.final_norm, part, Key::Always),
    },
    Row {
        module: Module::Output,
        stem: "model.output_layer.",
        in_layer: false,
        parts: WEIGHT_AND_BIAS,
        shard: Shard::Rows,
        dims: |at| Some(vec![at.vocab(), at.hidden()]),
        need: |at, part| match part {
            Part::Weight => Need::when(!at.model.output.tied, Key::Untied),
            Part::Bias => Need::when(at.model.output.bias, Key::OutputLayerBias),
        },
    },
];

fn norm(norm: &NormSpec, part: Part, key: Key) -> Need {
    match part {
        Part::Weight => Need::Has(key),
        Part::Bias => Need::when(norm.normalization == Normalization::LayerNorm, Key::LayerNorm),
    }
}

fn post_norm(spec: Option<&Option<NormSpec>>, part: Part) -> Need {
    match spec {
        Some(Some(spec)) => norm(spec, part, Key::PostLayernorms),
        Some(None) => Need::Lacks(Key::PostLayernorms),
        None => Need::Lacks(Key::LayerKind),
    }
}

fn head_norm(at: &At<'_>, part: Part) -> Need {
    match at.attention() {
        Some(AttentionSpec { qk_norm: Some(spec), .. }) => norm(spec, part, Key::QkLayernorm),
        Some(_) => Need::Lacks(Key::QkLayernorm),
        None => Need::Lacks(Key::LayerKind),
    }
}

fn linear(has_bias: bool, part: Part, key: Key) -> Need {
    match part {
        Part::Weight => Need::Has(Key::Always),
        Part::Bias => Need::when(has_bias, key),
    }
}

fn mlp_linear(at: &At<'_>, part: Part) -> Need {
    match at.mlp() {
        Some(mlp) => linear(mlp.bias, part, Key::Bias),
        None => Need::Lacks(Key::LayerKind),
    }
}

impl At<'_> {
    fn hidden(&self) -> Dim {
        Dim::Hidden(self.model.hidden_size)
    }

    fn vocab(&self) -> Dim {
        Dim::Vocab(self.model.padded_vocab_size)
    }

    fn attention(&self) -> Option<&AttentionSpec> {
        self.layer?.attention.as_ref()
    }

    fn mlp(&self) -> Option<&MlpSpec> {
        self.layer?.mlp()
    }
}

impl Row {
    /// The row of a module.
    fn of(module: Module) -> &'static Self {
        const { assert!(is_in_order(), "the table has its rows in the order of `Module`") }
        &ROWS[module as usize]
    }

    fn shard(&self, part: Part, gated: bool) -> Shard {
        match (self.shard, part) {
            (Shard::Columns, Part::Bias) => Shard::Replicated,
            (Shard::RowsOfHalves, _) if !gated => Shard::Rows,
            (shard, _) => shard,
        }
    }
}

const fn is_in_order() -> bool {
    let mut idx = 0;
    while idx < ROWS.len() {
        if ROWS[idx].module as usize != idx {
            return false;
        }
        idx += 1;
    }
    true
}

impl Module {
    /// The canonical name of its tensors without their last part and, in a layer, without the layer's prefix.
    pub fn stem(self) -> &'static str {
        Row::of(self).stem
    }
}

impl TensorId {
    /// A tensor outside the layers.
    pub const fn outside(module: Module, part: Part) -> Self {
        Self { layer: None, module, part }
    }

    /// A tensor of a layer.
    pub const fn in_layer(layer: usize, module: Module, part: Part) -> Self {
        Self { layer: Some(layer), module, part }
    }

    /// The canonical name.
    pub fn name(&self) -> String {
        let stem = Row::of(self.module).stem;
        let suffix = self.part.suffix();
        match self.layer {
            Some(layer) => format!("{LAYERS}{layer}.{stem}{suffix}"),
            None => format!("{stem}{suffix}"),
        }
    }
}

impl ModelSpec {
    /// Every tensor of the model, in the order of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        let ids = |row: &'static Row, layer| {
            row.parts.iter().map(move |&part| TensorId { layer, module: row.module, part })
        };
        let outside = move |rows: &'static [Row]| rows.iter().flat_map(move |row| ids(row, None));
        let in_layer =
            move |layer| ROWS.iter().filter(|row| row.in_layer).flat_map(move |row| ids(row, Some(layer)));
        let num_before = ROWS.iter().take_while(|row| !row.in_layer).count();
        let num_behind = ROWS.iter().rev().take_while(|row| !row.in_layer).count();
        outside(&ROWS[..num_before])
            .chain((0..self.layers.len()).flat_map(in_layer))
            .chain(outside(&ROWS[ROWS.len() - num_behind..]))
            .filter_map(|id| self.tensor(id).ok())
    }

    /// One tensor.
    ///
    /// # Errors
    /// When the model has none such: with what it would have.
    pub fn tensor(&self, id: TensorId) -> Result<TensorSpec, Key> {
        let row = Row::of(id.module);
        if row.in_layer != id.layer.is_some() || !row.parts.contains(&id.part) {
            return Err(Key::LayerKind);
        }
        let layer = match id.layer {
            Some(layer_idx) => Some(self.layers.get(layer_idx).ok_or(Key::LayerKind)?),
            None => None,
        };
        let at = At { model: self, layer };
        let because = match (row.need)(&at, id.part) {
            Need::Has(key) => key,
            Need::Lacks(key) => return Err(key),
        };
        let mut dims = (row.dims)(&at).ok_or(Key::LayerKind)?;
        if id.part == Part::Bias {
            dims.truncate(1);
        }
        let gated = at.mlp().is_some_and(|mlp| mlp.activation.gated);
        Ok(TensorSpec { id, name: id.name(), dims, shard: row.shard(id.part, gated), because })
    }
}

/// The layer that a canonical name says, whether or not there is such a tensor in a layer.
pub fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix(LAYERS)?.split('.').next()?.parse().ok()
}

/// Which tensor has a canonical name; `None` for names of no model that there is a [`ModelSpec`] for.
pub fn parse_name(name: &str) -> Option<TensorId> {
    let (layer, rest) = match name.strip_prefix(LAYERS) {
        Some(in_layers) => {
            let (number, rest) = in_layers.split_once('.')?;
            (Some(number.parse().ok()?), rest)
        }
        None => (None, name),
    };
    let id_of = |row: &Row| {
        let suffix = rest.strip_prefix(row.stem)?;
        let &part = row.parts.iter().find(|part| part.suffix() == suffix)?;
        Some(TensorId { layer, module: row.module, part })
    };
    let id = ROWS.iter().filter(|row| row.in_layer == layer.is_some()).find_map(id_of)?;
    // Numbers have more than one spelling.
    (id.name() == name).then_some(id)
}

/// How tensor-parallel ranks share the tensor of a canonical name, for readers that know no more of the model than
/// whether its MLP is gated. Norms are whole on every rank, also those of models that there is no [`ModelSpec`] for.
/// `None` where it is not known.
pub fn shard_of(name: &str, gated: bool) -> Option<Shard> {
    match parse_name(name) {
        Some(id) => Some(Row::of(id.module).shard(id.part, gated)),
        None if ["layer_norm_", "layernorm", "norm."].iter().any(|part| name.contains(part)) => {
            Some(Shard::Replicated)
        }
        None => None,
    }
}

#[cfg(test)]
mod tests;
