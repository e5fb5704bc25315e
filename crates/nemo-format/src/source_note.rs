//! What a reader found in a checkpoint and did not use, or used otherwise than another part of it says.
//!
//! Nothing is left out silently: the caller that opens a checkpoint gets these notes and shows them.

use std::fmt;

use hydra_config::Node;

/// Where a converted checkpoint keeps the notes on its origin: a key of this project.
pub(crate) const RECORD: &str = "conversion_notes";

/// How many names a note lists before it counts the rest.
const MAX_LISTED: usize = 12;

/// A remark on what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceNote {
    /// Two parts of the checkpoint contradict each other.
    Contradiction {
        /// What counts, and why.
        used: String,
        /// What does not.
        ignored: String,
        /// Where they differ.
        difference: String,
    },
    /// Files that look like weights and are not read.
    OtherFiles {
        /// Their names.
        files: Vec<String>,
    },
    /// Keys of a file that change nothing here.
    UnusedKeys {
        /// The file.
        file: String,
        /// The keys.
        keys: Vec<String>,
    },
    /// Settings for sampling that the checkpoint recommends.
    SamplingValues {
        /// The file.
        file: String,
        /// Keys with their values.
        values: Vec<String>,
    },
    /// Tensors that are stored and not used.
    UnusedTensors {
        /// What they are, with their number.
        groups: Vec<(String, usize)>,
    },
    /// Names were read without what a wrapper has put into them.
    Unwrapped {
        /// Parts of names that were left out.
        parts: Vec<String>,
    },
    /// Biases that the configuration announces and the weights lack.
    ZeroBiases {
        /// The layers, without their number.
        stems: Vec<String>,
        /// The key of the configuration.
        key: String,
    },
    /// A type that the configuration states and the weights do not have.
    StoredDtype {
        /// What the configuration says.
        stated: String,
        /// What the weights are.
        stored: String,
    },
    /// Weights of several types become one, and some lose digits.
    MixedDtypes {
        /// How many tensors lose digits.
        num_tensors: usize,
        /// Their own type.
        stored: String,
        /// The type that they get.
        written: String,
    },
    /// A model of Mixtral's kind has the router of NeMo's configurations, which is not that of the original.
    UnnormedExperts,
    /// Weights that are stored in FP8 were made numbers of another type.
    Dequantized {
        /// How many.
        num_tensors: usize,
        /// What the folder calls the way that they are scaled.
        recipe: String,
        /// The other type.
        dtype: String,
    },
    /// Experts that are stored in MXFP4 have become numbers of another type.
    UnpackedMxfp4 {
        /// How many stacked tensors.
        num_tensors: usize,
        /// The other type.
        dtype: String,
    },
    /// An adapter was added to the weights.
    Merged(String),
    /// A note of the conversion that has written the checkpoint.
    Recorded(String),
}

impl fmt::Display for SourceNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradiction { used, ignored, difference } => {
                write!(f, "{used} is used and {ignored} is not: {difference}")
            }
            Self::OtherFiles { files } => {
                write!(f, "files beside the weights that are not read: {}", list(files))
            }
            Self::UnusedKeys { file, keys } => {
                write!(f, "keys of `{file}` that are not understood and not used: {}", list(keys))
            }
            Self::SamplingValues { file, values } => write!(
                f,
                "values of `{file}` that are not used: {}; set `model.generation.sampling_params` to sample so",
                list(values)
            ),
            Self::UnusedTensors { groups } => {
                let groups = groups.iter().map(|(what, count)| format!("{count} of {what}"));
                write!(f, "tensors that are stored and not used: {}", groups.collect::<Vec<_>>().join(", "))
            }
            Self::Unwrapped { parts } => write!(
                f,
                "names of the weights are read without {}, which a wrapper for training has put in",
                list(parts)
            ),
            Self::ZeroBiases { stems, key } => write!(
                f,
                "the weights have no bias of {} although `{key}` is true; zeros stand for it, as in transformers",
                list(stems)
            ),
            Self::StoredDtype { stated, stored } => write!(
                f,
                "`config.json` says {stated}, the weights are stored as {stored} and keep that; `--dtype` chooses another type"
            ),
            Self::MixedDtypes { num_tensors, stored, written } => write!(
                f,
                "{num_tensors} tensors are stored as {stored} and rounded to {written}, the type of the embedding; \
                 `--dtype fp32` keeps their digits"
            ),
            Self::Dequantized { num_tensors, recipe, dtype } => write!(
                f,
                "{num_tensors} weights in FP8 (`{recipe}`) become {dtype}, their numbers times their scales; scales of \
                 activations and of the KV cache are not used (`trainer.generation.trt_llm.quantization=fp8` computes in FP8 \
                 with scales found while it runs)"
            ),
            Self::UnpackedMxfp4 { num_tensors, dtype } => write!(
                f,
                "{num_tensors} stacked weights in MXFP4 become {dtype}, which holds their numbers exactly, four times as many bytes"
            ),
            Self::UnnormedExperts => f.write_str(
                "`moe_router_pre_softmax: true` is followed: the weights of a token's experts do not add up to 1, as they do in \
                 Mistral's and transformers' Mixtral",
            ),
            Self::Merged(text) | Self::Recorded(text) => f.write_str(text),
        }
    }
}

/// Names in backquotes; of many, the first and the number of the others.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(MAX_LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Writes notes into the configuration of a converted checkpoint, so that every later reader gets them too.
pub(crate) fn record<'a>(config: &mut Node, notes: impl Iterator<Item = &'a SourceNote>) {
    // A name from a file must not become an interpolation.
    let texts: Vec<Node> = notes.map(|note| Node::Str(note.to_string().replace("${", "$ {"))).collect();
    if !texts.is_empty() {
        let earlier = config.get(RECORD).and_then(Node::as_list).unwrap_or_default();
        config.set(RECORD, Node::List([earlier, &texts].concat()));
    }
}

/// The notes that a conversion has written.
pub(crate) fn recorded(config: &Node) -> Vec<SourceNote> {
    let Some(Node::List(notes)) = config.get(RECORD) else { return Vec::new() };
    notes.iter().filter_map(Node::as_str).map(|note| SourceNote::Recorded(note.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_counted() {
        let keys: Vec<String> = (0..15).map(|n| format!("k{n}")).collect();
        let note = SourceNote::UnusedKeys { file: "config.json".to_owned(), keys };
        insta::assert_snapshot!(note.to_string(), @"keys of `config.json` that are not understood and not used: `k0`, `k1`, `k2`, `k3`, `k4`, `k5`, `k6`, `k7`, `k8`, `k9`, `k10`, `k11` and 3 more");
        let groups = vec![("`_extra_state`".to_owned(), 3), ("`rng_state`".to_owned(), 1)];
        insta::assert_snapshot!(SourceNote::UnusedTensors { groups }.to_string(), @"tensors that are stored and not used: 3 of `_extra_state`, 1 of `rng_state`");
    }
}
