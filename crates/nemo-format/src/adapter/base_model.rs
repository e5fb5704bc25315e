//! What an adapter has to know of its model: how many layers it has, and which rows of a layer are whose.

use std::ops::Range;

use hydra_config::Node;
use model_spec::HeadLayout;

use crate::FormatError;
use crate::adapter_names::Rows;

/// What an adapter has to know of its model.
#[derive(Clone, Debug)]
pub(super) struct BaseModel {
    /// For messages.
    pub(super) name: String,
    pub(super) num_layers: u64,
    pub(super) heads: HeadLayout,
    pub(super) is_gated: bool,
    pub(super) is_tied: bool,
}

impl BaseModel {
    /// Reads the facts from a model section of NeMo.
    pub(super) fn read(config: &Node, name: &str) -> Result<Self, FormatError> {
        let bad = |reason: String| FormatError::BadConfig { file: name.to_owned(), reason };
        let size = |key: &str| {
            let size = config.get(key).and_then(Node::as_f64)?;
            (1.0..=f64::from(1 << 24)).contains(&size).then_some(size as usize)
        };
        let required = |key: &str| {
            size(key).ok_or_else(|| bad(format!("an adapter needs the key `{key}`, a whole number from 1")))
        };
        let num_attention_heads = required("num_attention_heads")?;
        let num_query_groups = size("num_query_groups").unwrap_or(num_attention_heads);
        let kv_channels = match size("kv_channels") {
            Some(channels) => channels,
            None => required("hidden_size")? / num_attention_heads,
        };
        let activation = config.get("activation").and_then(Node::as_str).unwrap_or("gelu");
        Ok(Self {
            name: name.to_owned(),
            num_layers: required("num_layers")? as u64,
            heads: HeadLayout { num_attention_heads, num_query_groups, kv_channels },
            is_gated: activation.ends_with("glu"),
            is_tied: config
                .get("share_embeddings_and_output_weights")
                .and_then(Node::as_bool)
                .unwrap_or(true),
        })
    }

    /// Where the rows of a target lie in its weight of `num_rows`: runs of rows, in the order in which the factor has
    /// them.
    pub(super) fn runs(&self, rows: Rows, num_rows: u64) -> Vec<Range<u64>> {
        let head = self.heads.kv_channels as u64;
        let queries = self.heads.queries_per_group() as u64 * head;
        let group = queries + 2 * head;
        let of_groups = |start: u64, size: u64| {
            (0..self.heads.num_query_groups as u64)
                .map(move |at| at * group + start..at * group + start + size)
        };
        let (query, key, value) =
            (of_groups(0, queries), of_groups(queries, head), of_groups(queries + head, head));
        match rows {
            Rows::Query => query.collect(),
            Rows::Key => key.collect(),
            Rows::Value => value.collect(),
            Rows::StackedQkv => query.chain(key).chain(value).collect(),
            Rows::Gate => std::iter::once(0..num_rows / 2).collect(),
            Rows::Up => std::iter::once(num_rows / 2..num_rows).collect(),
            Rows::Qkv | Rows::Proj | Rows::Fc1 | Rows::Fc2 | Rows::Output => {
                std::iter::once(0..num_rows).collect()
            }
        }
    }
}
