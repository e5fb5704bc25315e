//! Names of weights with the marks of what the model was wrapped in when it was saved.
//!
//! Wrappers of PyTorch add a prefix that is not part of any model; it is removed. Any other prefix means another model,
//! and is refused by name.

use indexmap::IndexMap;

use crate::names::NameMap;
use crate::{FormatError, Fp8Weights, Region, SourceNote, TensorMeta, TensorSource};

/// The attribute in which each wrapper keeps the model.
const WRAPPERS: [&str; 5] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];
/// Other prefixes, with what they mean and what to do.
const MEANINGS: [(&str, &str, &str); 8] = [
    (
        "base_model.model.",
        "the wrapper of a PEFT tuning (LoRA and the like)",
        "merge the adapters with `merge_and_unload()` of the Python package peft and save the model that it returns",
    ),
    (
        "pretrained_model.",
        "the wrapper of trl's models with a value head",
        "save its `pretrained_model` alone",
    ),
    ("model.language_model.", "a model of text and images", "save its language model alone"),
    ("language_model.", "a model of text and images", "save its language model alone"),
    ("model.text_model.", "a model of text and images", "save its language model alone"),
    ("text_model.", "a model of text and images", "save its language model alone"),
    ("actor.", "a model of reinforcement learning", "save its actor alone"),
    ("policy.", "a model of reinforcement learning", "save its policy alone"),
];

/// Weights under the names that they had before they were wrapped.
struct Unwrapped {
    inner: Box<dyn TensorSource>,
    /// To the stored names.
    names: IndexMap<String, String>,
}

/// Takes the marks of wrappers off, if there are any.
pub(super) fn unwrap(
    source: Box<dyn TensorSource>,
) -> Result<(Box<dyn TensorSource>, Option<SourceNote>), FormatError> {
    let is_mark = |part: &&str| WRAPPERS.contains(part);
    let mut parts: Vec<String> = Vec::new();
    let mut names = IndexMap::new();
    for stored in source.names() {
        for mark in stored.split('.').filter(is_mark) {
            let mark = format!("{mark}.");
            if !parts.contains(&mark) {
                parts.push(mark);
            }
        }
        let name = stored.split('.').filter(|part| !is_mark(part)).collect::<Vec<_>>().join(".");
        if let Some(other) = names.insert(name.clone(), stored.to_owned()) {
            let reason = format!("`{other}` is the same tensor `{name}` without the names of wrappers");
            return Err(FormatError::bad_tensor(stored, reason));
        }
    }
    if parts.is_empty() {
        return Ok((source, None));
    }
    Ok((Box::new(Unwrapped { inner: source, names }), Some(SourceNote::Unwrapped { parts })))
}

/// Refuses weights whose names begin with what no model of this type has there.
pub(super) fn refuse_prefix(names: &NameMap, source: &dyn TensorSource) -> Result<(), FormatError> {
    let (embedding, bare) = (names.embedding(), format!(".{}.weight", names.embedding));
    if source.meta(&embedding).is_some() {
        return Ok(());
    }
    let in_peft = |name: &&str| name.starts_with("base_model.model.") || name.contains(".lora_");
    let whole = source.names().find(|name| name.ends_with(&bare)).or_else(|| source.names().find(in_peft));
    let Some(name) = whole else { return Ok(()) };
    let prefix = name.strip_suffix(&embedding).or_else(|| name.strip_suffix(&bare[1..])).unwrap_or(name);
    let known = MEANINGS.iter().find(|(known, ..)| name.starts_with(known));
    let (prefix, meaning, hint) = match known {
        Some((prefix, meaning, hint)) => (*prefix, (*meaning).to_owned(), (*hint).to_owned()),
        None => (
            prefix,
            "which models of this type do not have".to_owned(),
            format!("save the model so that its embedding is called `{embedding}`"),
        ),
    };
    Err(FormatError::Unsupported {
        what: format!("tensor `{name}`, whose name begins with `{prefix}` ({meaning}),"),
        hint,
    })
}

impl Unwrapped {
    fn stored(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(String::as_str)
    }
}

impl TensorSource for Unwrapped {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.names.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.inner.meta(self.stored(name)?)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        self.inner.read(self.stored(name).ok_or_else(missing)?, region, dst)
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        self.inner.mapped_bytes(self.stored(name)?)
    }

    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        self.inner.fp8().map(|_| self as &dyn Fp8Weights)
    }
}

impl Fp8Weights for Unwrapped {
    fn row_scales(&self, name: &str) -> Option<Vec<f32>> {
        self.inner.fp8()?.row_scales(self.stored(name)?)
    }

    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let stored = self.inner.fp8().zip(self.stored(name));
        let (inner, name) = stored.ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        inner.read_numbers(name, region, dst)
    }

    fn mapped_numbers(&self, name: &str) -> Option<&[u8]> {
        self.inner.fp8()?.mapped_numbers(self.stored(name)?)
    }
}
