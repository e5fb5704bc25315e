//! What a user should know of a conversion that has succeeded.

use std::fmt;

use hydra_config::Node;

/// A remark on the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConvertNote {
    /// Positions are divided by a factor and Llama 3.1's frequency rule is applied as well, as in files converted by
    /// NeMo 2.0 and 2.1, which did it by mistake.
    ScalesPositionsTwice,
    /// Attention of the original reaches back only so far.
    SlidingWindow {
        /// How far, and the longest sequence that the result accepts.
        window_tokens: u64,
    },
    /// Adding 1 to norm weights, or taking it off, has rounded some.
    RoundedNorms {
        /// How many.
        num_values: u64,
    },
    /// The checkpoint names a tokenizer but does not hold it.
    NoTokenizer {
        /// The name.
        name: String,
    },
}

impl fmt::Display for ConvertNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScalesPositionsTwice => f.write_str(
                "`seq_len_interpolation_factor` and `scale_positional_embedding` are both set: positions are divided on \
                 top of the frequency rule, as NeMo computes it; NeMo 2.0 and 2.1 wrote this by mistake",
            ),
            Self::SlidingWindow { window_tokens } => write!(
                f,
                "attention of the original reaches back {window_tokens} tokens; `encoder_seq_length` is set to \
                 {window_tokens}, up to which the result computes the same"
            ),
            Self::RoundedNorms { num_values } => write!(
                f,
                "{num_values} norm weights are rounded where 1 is added or taken off; `--dtype fp32` keeps more digits"
            ),
            Self::NoTokenizer { name } => write!(
                f,
                "the checkpoint does not hold its tokenizer `{name}`; put the tokenizer's files into the folder, or pass \
                 `--tokenizer`"
            ),
        }
    }
}

/// What the configuration of the result gives reason to say.
pub(super) fn of_config(config: &Node) -> Option<ConvertNote> {
    let is_set =
        |key: &str| config.get(key).is_some_and(|value| !matches!(value, Node::Null | Node::Bool(false)));
    (is_set("seq_len_interpolation_factor") && is_set("scale_positional_embedding"))
        .then_some(ConvertNote::ScalesPositionsTwice)
}
