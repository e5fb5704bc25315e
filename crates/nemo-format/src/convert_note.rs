//! What a user should know of a conversion that has succeeded.

use std::fmt;

use hydra_config::Node;

use crate::{DType, SourceNote};

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
        /// The type that they are written in.
        dtype: DType,
    },
    /// Linear layers are written in FP8.
    InFp8 {
        /// Those that have the numbers and scales of the input.
        num_kept: usize,
        /// The others.
        num_made: usize,
        /// What the input calls the way that some of the others were scaled before.
        again: Option<String>,
    },
    /// Weights that are stored in FP8 are written as numbers.
    NoLongerFp8 {
        /// How many.
        num_tensors: usize,
        /// The type that they are written in.
        dtype: DType,
    },
    /// The checkpoint names a tokenizer but does not hold it.
    NoTokenizer {
        /// The name.
        name: String,
    },
    /// The input has something that is not used, or contradicts itself.
    Source(SourceNote),
    /// Two files of the tokenizer contradict each other.
    TokenizerFilesDiffer {
        /// What, and which one is taken.
        what: String,
    },
    /// The chat templates of two files are different, or a file is taken that tokenizers do not read.
    ChatTemplatesDiffer {
        /// The file that is taken, as transformers does.
        taken: &'static str,
        /// The other; the same one if there is no other.
        other: &'static str,
    },
    /// The class has rules of its own that are not known here.
    UnknownTokenizerClass {
        /// The class.
        class: String,
    },
    /// A file gives an added token another id than it has in the tokenizer.
    TokenIdDiffers {
        /// The token.
        token: String,
        /// What the file says.
        stated_id: u64,
        /// What transformers gives it.
        id: u64,
    },
    /// The tokenizer has tokens past the model's embedding table.
    TokensWithoutRows {
        /// The first of them.
        token: String,
        /// Its id.
        id: u64,
        /// Rows of the table.
        num_rows: u64,
    },
    /// `config.json` and `generation_config.json` name different end tokens.
    EndTokensDiffer {
        /// Of `generation_config.json`, which is taken.
        taken: String,
        /// Of `config.json`.
        other: String,
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
                 {window_tokens}, up to which the window makes no difference; a larger one is computed with the window"
            ),
            Self::RoundedNorms { num_values, dtype } => {
                write!(f, "{num_values} norm weights are rounded where 1 is added or taken off")?;
                if *dtype == DType::F32 { Ok(()) } else { f.write_str("; `--dtype fp32` keeps more digits") }
            }
            Self::InFp8 { num_kept, num_made, again } => {
                write!(
                    f,
                    "{} linear layers are written in FP8, with a float32 scale for each output; \
                     `trainer.generation.trt_llm.quantization=fp8` computes with them as they are",
                    num_kept + num_made
                )?;
                if *num_kept > 0 {
                    write!(f, "; {num_kept} of them have the numbers and scales of the input")?;
                }
                match again {
                    Some(recipe) => write!(
                        f,
                        "; those that the input has in FP8 with other scales (`{recipe}`) were rounded a second time"
                    ),
                    None => Ok(()),
                }
            }
            Self::NoLongerFp8 { num_tensors, dtype } => write!(
                f,
                "{num_tensors} weights that are stored in FP8 become {}, their numbers times their scales; \
                 `--quantization fp8` keeps them",
                dtype.name()
            ),
            Self::NoTokenizer { name } => write!(
                f,
                "the checkpoint does not hold its tokenizer `{name}`; put the tokenizer's files into the folder, or pass \
                 `--tokenizer`"
            ),
            Self::Source(note) => note.fmt(f),
            Self::TokenizerFilesDiffer { what } => {
                write!(f, "files of the tokenizer contradict each other: {what}")
            }
            Self::ChatTemplatesDiffer { taken, other } if taken == other => {
                write!(f, "the chat template is that of `{taken}`, which transformers' tokenizers do not read")
            }
            Self::ChatTemplatesDiffer { taken, other } => write!(
                f,
                "the chat templates of `{taken}` and `{other}` differ; those of `{taken}` are taken, as transformers does"
            ),
            Self::UnknownTokenizerClass { class } => write!(
                f,
                "transformers reads this tokenizer with its class `{class}`, whose rules are not known here; `tokenizer.json` is taken as it is"
            ),
            Self::TokenIdDiffers { token, stated_id, id } => write!(
                f,
                "the tokenizer's files give `{token}` the id {stated_id}, but its place among the added tokens gives it {id}, which is taken, as transformers does"
            ),
            Self::TokensWithoutRows { token, id, num_rows } => write!(
                f,
                "the tokenizer has tokens that the model cannot read: `{token}` has the id {id}, the embedding table has {num_rows} rows"
            ),
            Self::EndTokensDiffer { taken, other } => write!(
                f,
                "`eos_token_id` is {taken} in `generation_config.json`, which is taken, as transformers does, and {other} in `config.json`"
            ),
        }
    }
}

/// What the configuration of the result gives reason to say.
pub(crate) fn of_config(config: &Node) -> Option<ConvertNote> {
    let is_set =
        |key: &str| config.get(key).is_some_and(|value| !matches!(value, Node::Null | Node::Bool(false)));
    (is_set("seq_len_interpolation_factor") && is_set("scale_positional_embedding"))
        .then_some(ConvertNote::ScalesPositionsTwice)
}
