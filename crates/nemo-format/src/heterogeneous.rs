//! Layers of several kinds: the text of a `config.json` with `block_configs`, as Megatron-Core's
//! `HeterogeneousTransformerConfig` reads it (`heterogeneous_layers_config_encoded_json`) and Llama-Nemotron has it.

use model_spec::{AttentionBlock, Block, FfnBlock, HeadLayout};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Widths that follow from `ffn_mult` are rounded up to a multiple of it.
const WIDTH_STEP: u64 = 256;

#[derive(Debug, Deserialize)]
struct Document {
    block_configs: Vec<RawBlock>,
}

/// Fields that have no name here are ones that Megatron-Core does not read: of windows, sinks, sparse weights. They are
/// refused where they say something.
#[derive(Debug, Deserialize)]
struct RawBlock {
    attention: RawAttention,
    #[serde(alias = "mlp")]
    ffn: RawFfn,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct RawAttention {
    no_op: Option<bool>,
    replace_with_linear: Option<bool>,
    n_heads_in_group: Option<usize>,
    num_query_groups: Option<usize>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct RawFfn {
    no_op: Option<bool>,
    replace_with_linear: Option<bool>,
    ffn_mult: Option<f64>,
    ffn_hidden_size: Option<usize>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// What each layer consists of, or why that is not known.
///
/// # Errors
/// When the text is no such object, or a layer is of a kind that is not computed: a sentence.
pub fn parse(
    text: &str,
    num_layers: usize,
    hidden_size: usize,
    heads: HeadLayout,
) -> Result<Vec<Block>, String> {
    let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if document.block_configs.len() != num_layers {
        return Err(format!("{} blocks for {num_layers} layers", document.block_configs.len()));
    }
    let block = |(layer, raw): (usize, &RawBlock)| {
        let of_layer = |what: String| format!("layer {layer}: {what}");
        refuse_others("", &raw.others).map_err(of_layer)?;
        let attention = raw.attention.block(heads).map_err(of_layer)?;
        let ffn = raw.ffn.block(hidden_size).map_err(of_layer)?;
        Ok(Block { attention, ffn })
    };
    document.block_configs.iter().enumerate().map(block).collect()
}

/// Refuses fields that say something and are not read.
fn refuse_others(part: &str, others: &Map<String, Value>) -> Result<(), String> {
    let says = |value: &Value| !matches!(value, Value::Null | Value::Bool(false)) && *value != json!(0);
    match others.iter().find(|(_, value)| says(value)) {
        Some((name, value)) => Err(format!("`{part}{name}` is {value}")),
        None => Ok(()),
    }
}

impl RawAttention {
    fn block(&self, heads: HeadLayout) -> Result<AttentionBlock, String> {
        refuse_others("attention.", &self.others)?;
        let (no_op, linear) = (self.no_op.unwrap_or(false), self.replace_with_linear.unwrap_or(false));
        let num_heads = heads.num_attention_heads;
        let groups = match (self.num_query_groups, self.n_heads_in_group) {
            (Some(groups), _) => Some(groups),
            (None, Some(in_group)) if in_group > 0 && num_heads.is_multiple_of(in_group) => {
                Some(num_heads / in_group)
            }
            (None, Some(in_group)) => {
                return Err(format!("`attention.n_heads_in_group` is {in_group}, of {num_heads} heads"));
            }
            (None, None) => None,
        };
        match (no_op, linear, groups) {
            (true, false, None) => Ok(AttentionBlock::NoOp),
            (false, true, None) => Ok(AttentionBlock::Linear),
            (false, false, groups) => {
                let num_query_groups = groups.unwrap_or(heads.num_query_groups);
                if num_query_groups == 0 || !num_heads.is_multiple_of(num_query_groups) {
                    return Err(format!(
                        "`attention.num_query_groups` is {num_query_groups}, of {num_heads} heads"
                    ));
                }
                Ok(AttentionBlock::Attention { num_query_groups })
            }
            _ => Err("`attention` is several of `no_op`, `replace_with_linear` and heads".to_owned()),
        }
    }
}

impl RawFfn {
    fn block(&self, hidden_size: usize) -> Result<FfnBlock, String> {
        refuse_others("ffn.", &self.others)?;
        let (no_op, linear) = (self.no_op.unwrap_or(false), self.replace_with_linear.unwrap_or(false));
        let width = match (self.ffn_hidden_size, self.ffn_mult) {
            (Some(width), _) => Some(width),
            (None, Some(factor)) => Some(width_of(factor, hidden_size)?),
            (None, None) => None,
        };
        match (no_op, linear, width) {
            (true, false, None) => Ok(FfnBlock::NoOp),
            (false, true, None) => Ok(FfnBlock::Linear),
            (false, false, Some(ffn_hidden_size @ 1..=0x7fff_ffff)) => Ok(FfnBlock::Mlp { ffn_hidden_size }),
            (false, false, _) => Err("`ffn` has no width".to_owned()),
            _ => Err("`ffn` is several of `no_op`, `replace_with_linear` and an MLP".to_owned()),
        }
    }
}

/// `int(2 * factor * hidden_size / 3)`, rounded up.
fn width_of(factor: f64, hidden_size: usize) -> Result<usize, String> {
    let width = 2.0 * factor * hidden_size as f64 / 3.0;
    if !(width >= 1.0 && width <= f64::from(i32::MAX)) {
        return Err(format!("`ffn.ffn_mult` is {factor}"));
    }
    Ok((width as u64).next_multiple_of(WIDTH_STEP) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: HeadLayout = HeadLayout { num_attention_heads: 64, num_query_groups: 8, kv_channels: 128 };

    #[test]
    fn blocks_are_read_as_megatron_core_reads_them() {
        let text = r#"{"block_configs": [
            {"attention": {"n_heads_in_group": 16, "no_op": false}, "ffn": {"ffn_mult": 2.625}},
            {"attention": {"no_op": true, "n_heads_in_group": null}, "mlp": {"replace_with_linear": true, "ffn_mult": null}}
        ]}"#;
        let expected = vec![
            Block {
                attention: AttentionBlock::Attention { num_query_groups: 4 },
                ffn: FfnBlock::Mlp { ffn_hidden_size: 14_336 },
            },
            Block { attention: AttentionBlock::NoOp, ffn: FfnBlock::Linear },
        ];
        assert_eq!(parse(text, 2, 8192, HEADS), Ok(expected));
        assert_eq!(width_of(0.5, 8192), Ok(2816));
    }

    #[test]
    fn blocks_that_are_not_computed_are_named() {
        let error = |attention: &str, ffn: &str| {
            let other = r#"{"attention": {"no_op": true}, "ffn": {"no_op": true}}"#;
            let block = format!("{{\"attention\": {attention}, \"ffn\": {ffn}}}");
            parse(&format!("{{\"block_configs\": [{other}, {block}]}}"), 2, 8192, HEADS).unwrap_err()
        };
        let (attention, ffn) = (r#"{"n_heads_in_group": 8}"#, r#"{"ffn_mult": 1.0}"#);
        insta::assert_snapshot!(error(r#"{"n_heads_in_group": 8, "window_length": 512}"#, ffn), @"layer 1: `attention.window_length` is 512");
        insta::assert_snapshot!(error(r#"{"n_heads_in_group": 7}"#, ffn), @"layer 1: `attention.n_heads_in_group` is 7, of 64 heads");
        insta::assert_snapshot!(error(r#"{"n_heads_in_group": 8, "no_op": true}"#, ffn), @"layer 1: `attention` is several of `no_op`, `replace_with_linear` and heads");
        insta::assert_snapshot!(error(attention, r#"{"ffn_mult": null}"#), @"layer 1: `ffn` has no width");
        insta::assert_snapshot!(error(attention, r#"{"ffn_mult": 1.0, "sparsify": ["2:4"]}"#), @r#"layer 1: `ffn.sparsify` is ["2:4"]"#);
        insta::assert_snapshot!(parse("{\"block_configs\": []}", 2, 8192, HEADS).unwrap_err(), @"0 blocks for 2 layers");
        insta::assert_snapshot!(parse("3", 2, 8192, HEADS).unwrap_err(), @"invalid type: integer `3`, expected struct Document at line 1 column 1");
    }
}
