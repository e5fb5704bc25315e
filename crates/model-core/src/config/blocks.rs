//! Layers of several kinds: `heterogeneous_layers_config_encoded_json`, of which `nemo-format` knows what it says.

use model_spec::{Block, BlockStyle, HeadLayout};

use super::raw::RawModelConfig;
use crate::ModelError;

const KEY: &str = "heterogeneous_layers_config_encoded_json";

/// What each layer consists of; `None` where all are alike.
pub(super) fn parse(
    raw: &RawModelConfig,
    (num_layers, hidden_size): (usize, usize),
    heads: HeadLayout,
    block_style: BlockStyle,
) -> Result<Option<Vec<Block>>, ModelError> {
    let Some(text) = raw.heterogeneous_layers_config_encoded_json.as_deref().filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let bad = |expected: &str, actual: String| ModelError::BadValue {
        key: KEY,
        expected: expected.to_owned(),
        actual,
    };
    if block_style != BlockStyle::Sequential || raw.has_experts() {
        let expected = "null with `parallel_attention: true` and with `num_moe_experts`";
        return Err(bad(expected, "layers of several kinds".to_owned()));
    }
    let blocks = nemo_format::parse_block_configs(text, num_layers, hidden_size, heads);
    blocks
        .map(Some)
        .map_err(|actual| bad("the text of an object with `block_configs` that are computed", actual))
}
