//! The table of tensors: one row for each module, which says all that there is to know of its tensors.

mod rows;

use self::rows::ROWS;
use crate::{
    AttentionSpec, Dim, FfnSpec, FfnWidth, Key, LayerSpec, MlpSpec, ModelSpec, Module, MoeSpec, NormSpec,
    Part, Shard, TensorId, TensorSpec,
};

/// What the names of the layers' tensors begin with, before the layer's number.
pub const LAYERS: &str = "model.decoder.layers.";

/// What the names of the experts' tensors begin with, in their layer and before the expert's number.
pub const EXPERTS: &str = "mlp.experts.local_experts.";

/// A module of the model or of each layer.
struct Row {
    module: Module,
    /// The name of its tensors without their last part and, in a layer or an expert, without the prefix of that.
    stem: &'static str,
    scope: Scope,
    /// Its tensors, where it has all of them.
    parts: &'static [Part],
    /// How its weight is sharded. Its bias goes with the rows, and is whole where columns are shared.
    shard: Shard,
    /// The axes of its weight; its bias has the first of them. `None` where the layer has no such module.
    dims: fn(&At<'_>) -> Option<Vec<Dim>>,
    /// Whether there is such a tensor, and what decides it.
    need: fn(&At<'_>, Part) -> Need,
}

/// What has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The model.
    Outside,
    /// A layer.
    Layer,
    /// An expert of a layer.
    Expert,
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

    fn moe(&self) -> Option<&MoeSpec> {
        self.layer?.moe()
    }

    fn has_pre_norms(&self) -> bool {
        self.layer.is_some_and(|layer| layer.has_pre_norms)
    }

    fn ffn_linear(&self) -> Option<&NormSpec> {
        match &self.layer?.ffn {
            Some(FfnSpec::Linear(norm)) => Some(norm),
            _ => None,
        }
    }

    fn shared_width(&self) -> Option<FfnWidth> {
        let shared = self.moe()?.experts.shared?;
        Some(FfnWidth { size: shared.ffn_hidden_size, key: "moe_shared_expert_intermediate_size" })
    }

    fn is_gated(&self) -> bool {
        self.mlp()
            .map(|mlp| mlp.activation)
            .or(self.moe().map(|moe| moe.activation))
            .is_some_and(|it| it.gated)
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
        Self { layer: None, expert: None, module, part }
    }

    /// A tensor of a layer.
    pub const fn in_layer(layer: usize, module: Module, part: Part) -> Self {
        Self { layer: Some(layer), expert: None, module, part }
    }

    /// A tensor of an expert of a layer.
    pub const fn in_expert(layer: usize, expert: usize, module: Module, part: Part) -> Self {
        Self { layer: Some(layer), expert: Some(expert), module, part }
    }

    /// The same module's tensor of another kind.
    pub const fn with_part(self, part: Part) -> Self {
        Self { part, ..self }
    }

    /// The canonical name.
    pub fn name(&self) -> String {
        let stem = Row::of(self.module).stem;
        let suffix = self.part.suffix();
        match (self.layer, self.expert) {
            (Some(layer), Some(expert)) => format!("{LAYERS}{layer}.{EXPERTS}{expert}.{stem}{suffix}"),
            (Some(layer), None) => format!("{LAYERS}{layer}.{stem}{suffix}"),
            (None, _) => format!("{stem}{suffix}"),
        }
    }

    fn scope(&self) -> Scope {
        match (self.layer, self.expert) {
            (Some(_), Some(_)) => Scope::Expert,
            (Some(_), None) => Scope::Layer,
            (None, _) => Scope::Outside,
        }
    }
}

impl ModelSpec {
    /// Every tensor of the model, in the order of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        let num_before = ROWS.iter().take_while(|row| row.scope == Scope::Outside).count();
        let num_behind = ROWS.iter().rev().take_while(|row| row.scope == Scope::Outside).count();
        let rows_of_layer = move |scope| {
            let of_layers = &ROWS[num_before..ROWS.len() - num_behind];
            of_layers.iter().filter(move |row| row.scope == scope)
        };
        let outside = |row: &'static Row| row.parts.iter().map(|&part| TensorId::outside(row.module, part));
        let in_layer = move |layer| {
            let parts = |row: &'static Row| row.parts.iter().map(|&part| (row.module, part));
            let num_experts =
                self.layers.get(layer).and_then(LayerSpec::moe).map_or(0, |moe| moe.experts.num_experts);
            let (before, behind): (Vec<_>, Vec<_>) = rows_of_layer(Scope::Layer)
                .partition(|row| (row.module as usize) < Module::ExpertFc1 as usize);
            let of_layer = move |rows: Vec<&'static Row>| {
                rows.into_iter()
                    .flat_map(parts)
                    .map(move |(module, part)| TensorId::in_layer(layer, module, part))
            };
            let of_experts = (0..num_experts).flat_map(move |expert| {
                let rows = rows_of_layer(Scope::Expert).flat_map(parts);
                rows.map(move |(module, part)| TensorId::in_expert(layer, expert, module, part))
            });
            of_layer(before).chain(of_experts).chain(of_layer(behind))
        };
        (ROWS[..num_before].iter().flat_map(outside))
            .chain((0..self.layers.len()).flat_map(in_layer))
            .chain(ROWS[ROWS.len() - num_behind..].iter().flat_map(outside))
            .filter_map(|id| self.tensor(id).ok())
    }

    /// One tensor.
    ///
    /// # Errors
    /// When the model has none such: with what it would have.
    pub fn tensor(&self, id: TensorId) -> Result<TensorSpec, Key> {
        let row = Row::of(id.module);
        if row.scope != id.scope() || !row.parts.contains(&id.part) {
            return Err(Key::LayerKind);
        }
        let layer = match id.layer {
            Some(layer_idx) => Some(self.layers.get(layer_idx).ok_or(Key::LayerKind)?),
            None => None,
        };
        let at = At { model: self, layer };
        if let Some(expert) = id.expert
            && at.moe().is_none_or(|moe| expert >= moe.experts.num_experts)
        {
            return Err(Key::Experts);
        }
        let because = match (row.need)(&at, id.part) {
            Need::Has(key) => key,
            Need::Lacks(key) => return Err(key),
        };
        let mut dims = (row.dims)(&at).ok_or(Key::LayerKind)?;
        if id.part == Part::Bias {
            dims.truncate(1);
        }
        let shard = row.shard(id.part, at.is_gated());
        Ok(TensorSpec { id, name: id.name(), dims, shard, because })
    }
}

/// The layer that a canonical name says, whether or not there is such a tensor in a layer.
pub fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix(LAYERS)?.split('.').next()?.parse().ok()
}

/// Which tensor has a canonical name; `None` for names of no model that there is a [`ModelSpec`] for.
pub fn parse_name(name: &str) -> Option<TensorId> {
    let (layer, rest) = numbered(name, LAYERS)?;
    let (expert, rest) = if layer.is_some() { numbered(rest, EXPERTS)? } else { (None, rest) };
    let id_of = |row: &Row| {
        let suffix = rest.strip_prefix(row.stem)?;
        let &part = row.parts.iter().find(|part| part.suffix() == suffix)?;
        let id = TensorId { layer, expert, module: row.module, part };
        (id.scope() == row.scope).then_some(id)
    };
    let id = ROWS.iter().find_map(id_of)?;
    // Numbers have more than one spelling.
    (id.name() == name).then_some(id)
}

/// The number behind a prefix, where the name has the prefix, and what follows; `None` where there is no number.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(Option<usize>, &'a str)> {
    match name.strip_prefix(prefix) {
        Some(behind) => {
            let (number, rest) = behind.split_once('.')?;
            Some((Some(number.parse().ok()?), rest))
        }
        None => Some((None, name)),
    }
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
