//! Which of transformers' tokenizer classes a folder gets, and what each class makes of a vocabulary.
//!
//! transformers 5.24 (`tokenization_auto.py`) builds a new tokenizer of a known class from the vocabulary and the
//! merges, with the rules of the class: what else a `tokenizer.json` says is left. All other classes take the file as it
//! is.

use serde_json::{Map, Value, json};

use crate::huggingface::{HfTokenizer, Vocabulary};

/// A tokenizer class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend`: the file as it is.
    Backend,
    Llama,
    CodeLlama,
    Gemma,
    Gpt2,
    Qwen2,
    GptNeoX,
    /// A class whose rules are not known here.
    Unknown(String),
}

/// Models whose `tokenizer_class` transformers does not believe.
const DISTRUSTED_MODELS: [&str; 6] = ["internlm2", "internlm3", "minicpm3", "nemotron", "phi3", "qwen2"];
const END_OF_TEXT: &str = "<|endoftext|>";
const QWEN2_REGEX: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Class {
    /// The class that `AutoTokenizer` uses for a folder.
    ///
    /// A `tokenizer.json` that the user names is taken as it is.
    pub(super) fn of(tokenizer: &HfTokenizer, has_byte_level_json: bool) -> Self {
        if matches!(tokenizer.vocabulary, Vocabulary::Json(_)) && tokenizer.path.is_file() {
            return Self::Backend;
        }
        let own = tokenizer.config.get("tokenizer_class").and_then(Value::as_str);
        let stated = own.or(tokenizer.model_class.as_deref());
        let model_type = tokenizer.model_type.as_deref().unwrap_or_default();
        let registered = registered(model_type);
        let is_distrusted = DISTRUSTED_MODELS.contains(&model_type);
        let base = |name: &str| name.strip_suffix("Fast").unwrap_or(name).to_owned();
        if stated.is_some_and(|name| base(name) == "LlamaTokenizer") && !is_distrusted && has_byte_level_json
        {
            return Self::Backend;
        }
        match (stated, registered) {
            (Some(stated), Some(registered)) if base(stated) != registered => match registered {
                "TokenizersBackend" => Self::Backend,
                registered if is_distrusted => Self::named(registered),
                _ => Self::named(stated),
            },
            (Some(stated), _) => Self::named(stated),
            (None, Some(registered)) => Self::named(registered),
            (None, None) => Self::Backend,
        }
    }

    fn named(name: &str) -> Self {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "TokenizersBackend" | "PreTrainedTokenizer" | "PythonBackend" | "BloomTokenizer" => Self::Backend,
            "LlamaTokenizer" => Self::Llama,
            "CodeLlamaTokenizer" => Self::CodeLlama,
            "GemmaTokenizer" => Self::Gemma,
            "GPT2Tokenizer" => Self::Gpt2,
            "Qwen2Tokenizer" => Self::Qwen2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            _ => Self::Unknown(name.to_owned()),
        }
    }

    /// Special tokens that the class has where the files say nothing.
    pub(super) fn default_roles(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::CodeLlama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("prefix_token", "▁<PRE>"),
                ("middle_token", "▁<MID>"),
                ("suffix_token", "▁<SUF>"),
                ("eot_token", "▁<EOT>"),
                ("fill_token", "<FILL_ME>"),
            ],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Gpt2 => {
                &[("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)]
            }
            Self::Qwen2 => {
                &[("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT), ("pad_token", END_OF_TEXT)]
            }
            Self::GptNeoX => &[
                ("bos_token", END_OF_TEXT),
                ("eos_token", END_OF_TEXT),
                ("unk_token", END_OF_TEXT),
                ("pad_token", "<|padding|>"),
            ],
            Self::Backend | Self::Unknown(_) => &[],
        }
    }

    /// The tokenizer that the class builds, without vocabulary, merges, added tokens and post-processor; nothing for
    /// a class that takes its file as it is.
    pub(super) fn rules(&self, config: &Map<String, Value>, unk_token: Option<&str>) -> Option<Rules> {
        let flag = |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
        let byte_level = |prefix: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
        let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let of_spaces = |strips: bool| {
            let mut steps = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            steps.extend(strips.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})));
            json!({"type": "Sequence", "decoders": steps})
        };
        let byte_pairs = Model { unk_token: None, affix: Some(""), fuse_unk: false, byte_fallback: false };
        let nfc = json!({"type": "NFC"});
        Some(match self {
            Self::Llama => {
                let adds_space = flag("add_prefix_space", true);
                let scheme = match (adds_space, flag("legacy", false)) {
                    (false, _) => "never",
                    (true, false) => "first",
                    (true, true) => "always",
                };
                let model = Model { unk_token: None, affix: None, fuse_unk: true, byte_fallback: true };
                Rules::new(model, Value::Null, metaspace(scheme), of_spaces(adds_space))
            }
            Self::CodeLlama => {
                let scheme = if flag("add_prefix_space", true) { "first" } else { "never" };
                let unk_token = unk_token.map(str::to_owned);
                let model = Model { unk_token, affix: None, fuse_unk: true, byte_fallback: true };
                Rules::new(model, Value::Null, metaspace(scheme), of_spaces(true))
            }
            Self::Gemma => {
                let unk_token = unk_token.map(str::to_owned);
                let model = Model { unk_token, affix: None, fuse_unk: true, byte_fallback: true };
                let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
                let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
                Rules::new(model, replace, split, of_spaces(false))
            }
            Self::Gpt2 => Rules::new(
                byte_pairs,
                Value::Null,
                byte_level(flag("add_prefix_space", false), true),
                byte_level(true, true),
            ),
            Self::GptNeoX => Rules::new(
                byte_pairs,
                nfc,
                byte_level(flag("add_prefix_space", false), true),
                byte_level(true, true),
            ),
            Self::Qwen2 => {
                let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": false});
                let steps = [split, byte_level(flag("add_prefix_space", false), false)];
                Rules::new(
                    byte_pairs,
                    nfc,
                    json!({"type": "Sequence", "pretokenizers": steps}),
                    byte_level(true, true),
                )
            }
            Self::Backend | Self::Unknown(_) => return None,
        })
    }
}

/// What a class fixes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rules {
    pub(super) model: Model,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
}

impl Rules {
    fn new(model: Model, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Self {
        Self { model, normalizer, pre_tokenizer, decoder }
    }
}

/// Settings of a BPE model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) unk_token: Option<String>,
    /// Prefix of continuing subwords and suffix of words.
    pub(super) affix: Option<&'static str>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
}

impl Model {
    /// The `model` of a `tokenizer.json`.
    pub(super) fn to_json(&self, vocab: &Value, merges: &Value) -> Value {
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": self.unk_token,
            "continuing_subword_prefix": self.affix,
            "end_of_word_suffix": self.affix,
            "fuse_unk": self.fuse_unk,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        })
    }
}

/// The class that transformers registers for a kind of model, as far as such models are met here.
fn registered(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "gemma" | "gemma2" | "gemma3" | "gemma3_text" => "GemmaTokenizer",
        "code_llama" => "CodeLlamaTokenizer",
        "gpt2" | "gptj" | "gpt_neo" | "phi" | "opt" | "starcoder2" | "codegen" => "GPT2Tokenizer",
        "gpt_neox" | "olmo" | "mpt" => "GPTNeoXTokenizer",
        "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => "Qwen2Tokenizer",
        "granite" | "internlm2" | "internlm3" | "minicpm3" | "ministral" | "mistral" | "mixtral"
        | "nemotron" | "olmo2" | "phi3" | "stablelm" => "TokenizersBackend",
        _ => return None,
    })
}
