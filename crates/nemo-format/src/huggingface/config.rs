//! `config.json` of a Hugging Face model: typed look-ups under the several names that a key has had.
//!
//! Both spellings are read: `torch_dtype` and `rope_scaling` of transformers 4, `dtype` and `rope_parameters` of 5.
//! Which keys a family has, and their defaults, is decided in `convert`. What has been asked for is remembered, so that the
//! keys without effect can be named.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::read_json;
use crate::FormatError;

/// A parsed `config.json`.
#[derive(Debug)]
pub(crate) struct HfConfig {
    file: String,
    values: Map<String, Value>,
    /// Keys that were looked up, whether they are there or not.
    asked: RefCell<BTreeSet<String>>,
    /// Keys of inner dictionaries that were not.
    unused_inside: RefCell<Vec<String>>,
}

/// `rope_scaling` or `rope_parameters`, with what older files state outside of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HfRope {
    pub(crate) rope_type: Option<String>,
    pub(crate) factor: Option<f64>,
    pub(crate) low_freq_factor: Option<f64>,
    pub(crate) high_freq_factor: Option<f64>,
    pub(crate) original_max_position_embeddings: Option<f64>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) partial_rotary_factor: Option<f64>,
    /// LongRoPE's two lists.
    pub(crate) short_factor: Option<Vec<f64>>,
    pub(crate) long_factor: Option<Vec<f64>>,
    pub(crate) attention_factor: Option<f64>,
    /// YaRN's.
    pub(crate) beta_fast: Option<f64>,
    pub(crate) beta_slow: Option<f64>,
    pub(crate) mscale: Option<f64>,
    pub(crate) mscale_all_dim: Option<f64>,
    pub(crate) truncate: Option<bool>,
}

impl HfConfig {
    /// Reads `config.json` of a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, FormatError> {
        let path = folder.join("config.json");
        let file = path.display().to_string();
        let value = read_json(&path)?.ok_or_else(|| FormatError::MissingMember {
            path: folder.to_path_buf(),
            member: "config.json".into(),
        })?;
        match value {
            Value::Object(values) => Ok(Self::new(file, values)),
            _ => Err(FormatError::BadConfig { file, reason: "it is not a JSON object".into() }),
        }
    }

    fn new(file: String, values: Map<String, Value>) -> Self {
        Self { file, values, asked: RefCell::default(), unused_inside: RefCell::default() }
    }

    /// The file, for messages.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// The first of these keys that is there and not null.
    fn find(&self, keys: &[&str]) -> Option<(String, &Value)> {
        self.asked.borrow_mut().extend(keys.iter().map(|&key| key.to_owned()));
        let found = |key: &&str| Some(((*key).to_owned(), self.values.get(*key)?));
        keys.iter().filter_map(found).find(|(_, value)| !value.is_null())
    }

    fn read<T>(
        &self,
        keys: &[&str],
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        self.refuse_contradiction(keys, &key, value)?;
        let wrong_type = || self.bad(format!("the key `{key}` is `{value}`, expected {expected}"));
        read(value).map(Some).ok_or_else(wrong_type)
    }

    /// Names of one thing must not have two values.
    fn refuse_contradiction(&self, keys: &[&str], key: &str, value: &Value) -> Result<(), FormatError> {
        let is_same = |other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(value), Some(other)) => value == other,
            _ => value == other,
        };
        let others = keys.iter().filter_map(|other| Some((other, self.values.get(*other)?)));
        let mut others = others.filter(|(_, other)| !other.is_null() && !is_same(other));
        match others.next() {
            None => Ok(()),
            Some((other_key, other)) => Err(self.bad(format!(
                "the key `{key}` is `{value}` and `{other_key}`, another name of it, is `{other}`; remove the wrong one"
            ))),
        }
    }

    /// An integer under any of these names.
    pub(crate) fn u64(&self, keys: &[&str]) -> Result<Option<u64>, FormatError> {
        self.read(keys, "a whole number of at least 0", Value::as_u64)
    }

    /// An integer that must be there.
    pub(crate) fn require_u64(&self, keys: &[&str]) -> Result<u64, FormatError> {
        let missing = || self.bad(format!("the key `{}` is missing", keys.first().unwrap_or(&"")));
        self.u64(keys)?.ok_or_else(missing)
    }

    /// A list of integers.
    pub(crate) fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>, FormatError> {
        let read = |value: &Value| value.as_array()?.iter().map(Value::as_u64).collect();
        self.read(&[key], "a list of whole numbers of at least 0", read)
    }

    /// A list of numbers.
    fn f64s(&self, key: &str) -> Result<Option<Vec<f64>>, FormatError> {
        let read = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect();
        self.read(&[key], "a list of numbers", read)
    }

    /// The value of a key, whatever it is.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.find(&[key]).map(|(_, value)| value)
    }

    /// A number under any of these names.
    pub(crate) fn f64(&self, keys: &[&str]) -> Result<Option<f64>, FormatError> {
        self.read(keys, "a number", Value::as_f64)
    }

    /// A truth value.
    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.read(&[key], "true or false", Value::as_bool)
    }

    /// A string under any of these names.
    pub(crate) fn text(&self, keys: &[&str]) -> Result<Option<&str>, FormatError> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        self.refuse_contradiction(keys, &key, value)?;
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| self.bad(format!("the key `{key}` is `{value}`, expected a string")))
    }

    /// Whether a key is there and not null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.find(&[key]).is_some()
    }

    /// These keys with their values, as far as they are there and not null.
    pub(crate) fn values_of(&self, keys: &[&str]) -> Map<String, Value> {
        keys.iter().filter_map(|key| self.find(&[key])).map(|(key, value)| (key, value.clone())).collect()
    }

    /// Keys that are there, not null, and were not looked up.
    pub(crate) fn unasked(&self) -> Vec<(String, &Value)> {
        let asked = self.asked.borrow();
        let keys = self.values.iter().filter(|(key, value)| !value.is_null() && !asked.contains(*key));
        keys.map(|(key, value)| (key.clone(), value)).collect()
    }

    /// Remembers a key of an inner dictionary that was looked up and has no use.
    pub(crate) fn set_unused(&self, key: String) {
        let mut unused = self.unused_inside.borrow_mut();
        if !unused.contains(&key) {
            unused.push(key);
        }
    }

    /// Keys of inner dictionaries that were not looked up.
    pub(crate) fn unasked_inside(&self) -> Vec<String> {
        self.unused_inside.borrow().clone()
    }

    /// Whether a key is there, if only with null.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The strings of a list.
    pub(crate) fn texts(&self, key: &str) -> Vec<&str> {
        let list = self.values.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The rotary embedding's parameters, whichever keys have them.
    pub(crate) fn rope(&self) -> Result<HfRope, FormatError> {
        let outside = HfRope {
            rope_theta: self.f64(&["rope_theta", "rotary_emb_base"])?,
            partial_rotary_factor: self.f64(&[
                "partial_rotary_factor",
                "rotary_pct",
                "rope_pct",
                "rope_percent",
            ])?,
            ..HfRope::default()
        };
        let Some((key, value)) = self.rope_dictionary()? else { return Ok(outside) };
        self.rope_inside(&key, value, &outside)
    }

    /// The rotary embedding's parameters of one kind of layers, where they are stated by kind.
    pub(crate) fn rope_of(&self, kind: &str) -> Result<Option<HfRope>, FormatError> {
        let Some((key, Value::Object(values))) = self.rope_dictionary()? else { return Ok(None) };
        match values.get(kind).filter(|value| !value.is_null()) {
            Some(value) => {
                let inner = format!("{key}.{kind}");
                self.unused_inside.borrow_mut().retain(|unused| *unused != inner);
                self.rope_inside(&inner, value, &HfRope::default()).map(Some)
            }
            None => Ok(None),
        }
    }

    fn rope_inside(&self, key: &str, value: &Value, outside: &HfRope) -> Result<HfRope, FormatError> {
        let Value::Object(values) = value else {
            return Err(self.bad(format!("the key `{key}` is `{value}`, expected an object")));
        };
        let inside = Self::new(format!("{}: {key}", self.file), values.clone());
        let rope = HfRope {
            // Old files state the kind of scaling twice.
            rope_type: inside.text(&["rope_type", "type"])?.map(str::to_owned),
            factor: inside.f64(&["factor"])?,
            low_freq_factor: inside.f64(&["low_freq_factor"])?,
            high_freq_factor: inside.f64(&["high_freq_factor"])?,
            original_max_position_embeddings: inside.f64(&["original_max_position_embeddings"])?,
            rope_theta: inside.f64(&["rope_theta"])?.or(outside.rope_theta),
            partial_rotary_factor: inside.f64(&["partial_rotary_factor"])?.or(outside.partial_rotary_factor),
            short_factor: inside.f64s("short_factor")?,
            long_factor: inside.f64s("long_factor")?,
            attention_factor: inside.f64(&["attention_factor"])?,
            beta_fast: inside.f64(&["beta_fast"])?,
            beta_slow: inside.f64(&["beta_slow"])?,
            mscale: inside.f64(&["mscale"])?,
            mscale_all_dim: inside.f64(&["mscale_all_dim"])?,
            truncate: inside.bool("truncate")?,
        };
        for (name, stated, outer) in [
            ("rope_theta", rope.rope_theta, outside.rope_theta),
            ("partial_rotary_factor", rope.partial_rotary_factor, outside.partial_rotary_factor),
        ] {
            if let (Some(stated), Some(outer)) = (stated, outer)
                && stated != outer
            {
                return Err(self.bad(format!(
                    "`{name}` is {stated} in `{key}` and {outer} outside of it; remove the wrong one"
                )));
            }
        }
        let unasked = inside.unasked().into_iter().map(|(name, _)| format!("{key}.{name}"));
        for key in unasked {
            self.set_unused(key);
        }
        Ok(rope)
    }

    /// The dictionary of the rotary embedding; transformers 5 writes one name, 4 the other.
    fn rope_dictionary(&self) -> Result<Option<(String, &Value)>, FormatError> {
        let keys = ["rope_parameters", "rope_scaling"];
        let found = self.find(&keys);
        if let Some((key, value)) = &found {
            self.refuse_contradiction(&keys, key, value)?;
        }
        Ok(found)
    }

    /// The configuration cannot be used.
    pub(crate) fn bad(&self, reason: String) -> FormatError {
        FormatError::BadConfig { file: self.file.clone(), reason }
    }

    /// The configuration asks for what is not supported.
    pub(crate) fn unsupported(&self, what: &str, hint: &str) -> FormatError {
        FormatError::Unsupported { what: format!("{what} in `{}`", self.file), hint: hint.to_owned() }
    }
}
