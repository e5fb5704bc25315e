//! What the factors of a LoRA are called beside Megatron-Core's layers, and which rows of a layer they are for.
//!
//! Names follow NeMo's `parallel_adapters.py` and `merge_lora_weights/merge.py`, and `peft/lora.py` and `canonical_lora.py` of
//! megatron-bridge 0.6.

use model_spec::{LAYERS, Module, Part, Shard, TensorId};

/// A linear layer of the model, or a part of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `None` for the output layer.
    pub(crate) layer: Option<usize>,
    pub(crate) rows: Rows,
}

/// Rows, in the words of the layers that they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Rows {
    /// `linear_qkv` in the order of its own rows.
    Qkv,
    /// `linear_qkv`, first all queries, then all keys, then all values.
    StackedQkv,
    Query,
    Key,
    Value,
    Proj,
    /// `linear_fc1`, when gated the gate first.
    Fc1,
    Gate,
    Up,
    Fc2,
    Output,
}

impl Rows {
    /// The module that the rows are of.
    pub(crate) const fn module(self) -> Module {
        match self {
            Self::Qkv | Self::StackedQkv | Self::Query | Self::Key | Self::Value => Module::Qkv,
            Self::Proj => Module::Proj,
            Self::Fc1 | Self::Gate | Self::Up => Module::Fc1,
            Self::Fc2 => Module::Fc2,
            Self::Output => Module::Output,
        }
    }

    /// For display.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Qkv | Self::StackedQkv => "linear_qkv",
            Self::Query => "q of linear_qkv",
            Self::Key => "k of linear_qkv",
            Self::Value => "v of linear_qkv",
            Self::Proj => "linear_proj",
            Self::Fc1 => "linear_fc1",
            Self::Gate => "gate of linear_fc1",
            Self::Up => "up of linear_fc1",
            Self::Fc2 => "linear_fc2",
            Self::Output => "output_layer",
        }
    }
}

impl Target {
    /// The canonical name of the weight.
    pub(crate) fn weight(&self) -> String {
        let module = self.rows.module();
        TensorId { layer: self.layer, expert: None, module, part: Part::Weight }.name()
    }
}

/// Where an adapter stands in a layer, and the rows that it is for: NeMo 1, then NeMo 2 and Megatron-Bridge.
const PLACES: [(&str, Rows); 18] = [
    ("self_attention.adapter_layer.lora_kqv_adapter.", Rows::Qkv),
    ("self_attention.adapter_layer.lora_unfused_kqv_adapter.q_adapter.", Rows::Query),
    ("self_attention.adapter_layer.lora_unfused_kqv_adapter.k_adapter.", Rows::Key),
    ("self_attention.adapter_layer.lora_unfused_kqv_adapter.v_adapter.", Rows::Value),
    ("self_attention.adapter_layer.lora_dense_attention_adapter.", Rows::Proj),
    ("mlp.adapter_layer.lora_hto4h_adapter.", Rows::Fc1),
    ("mlp.adapter_layer.lora_unfused_hto4h_adapter.gate_adapter.", Rows::Gate),
    ("mlp.adapter_layer.lora_unfused_hto4h_adapter.up_adapter.", Rows::Up),
    ("mlp.adapter_layer.lora_4htoh_adapter.", Rows::Fc2),
    ("self_attention.linear_qkv.adapter.", Rows::Qkv),
    ("self_attention.linear_qkv.adapter.adapter_q.", Rows::Query),
    ("self_attention.linear_qkv.adapter.adapter_k.", Rows::Key),
    ("self_attention.linear_qkv.adapter.adapter_v.", Rows::Value),
    ("self_attention.linear_proj.adapter.", Rows::Proj),
    ("mlp.linear_fc1.adapter.", Rows::Fc1),
    ("mlp.linear_fc1.adapter.adapter_gate.", Rows::Gate),
    ("mlp.linear_fc1.adapter.adapter_up.", Rows::Up),
    ("mlp.linear_fc2.adapter.", Rows::Fc2),
];

/// One of the two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factor {
    /// `linear_in`, `[rank, in_features]`.
    Down,
    /// `linear_out`, `[out_features, rank]`.
    Up,
}

/// Which factor of which layer has a canonical name.
pub(crate) fn parse(name: &str) -> Option<(Target, Factor)> {
    let (layer, rest) = name.strip_prefix(LAYERS)?.split_once('.')?;
    let place = |(place, rows): &(&str, Rows)| {
        let factor = match rest.strip_prefix(place)? {
            "linear_in.weight" => Factor::Down,
            "linear_out.weight" => Factor::Up,
            _ => return None,
        };
        Some((*rows, factor))
    };
    let (rows, factor) = PLACES.iter().find_map(place)?;
    Some((Target { layer: Some(layer.parse().ok()?), rows }, factor))
}

/// How tensor-parallel ranks share a factor; `None` for what is none.
///
/// An adapter of a layer whose rows are shared has the rank of `linear_in` shared, one whose columns are shared the outputs
/// of `linear_out`.
pub(crate) fn shard_of(name: &str, gated: bool) -> Option<Shard> {
    let (target, factor) = parse(name)?;
    Some(match (target.rows, factor) {
        (Rows::Proj | Rows::Fc2, Factor::Down) => Shard::Columns,
        (Rows::Fc1, Factor::Up) if gated => Shard::RowsOfHalves,
        _ => Shard::Rows,
    })
}
