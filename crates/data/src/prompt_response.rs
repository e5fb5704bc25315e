//! Prompt-response records: a template with keys in braces, filled, tokenized piece by piece and cut to a length.
//!
//! Follows `gpt_sft_dataset.py` of NeMo v2.0.0. Two differences: escapes in a template are decoded without touching the
//! characters outside ASCII, and spaces around the names of truncation fields are ignored.

mod template;

pub use template::PromptTemplate;
pub(crate) use template::{Piece, PieceContent};

use crate::DataError;
use crate::json::{Json, JsonObject};
use crate::record_error::RecordError;
use crate::record_keys::has;
use crate::tokenizer::Tokenizer;

/// What `add_sep` puts after the prompt; the original's data loader always passes this id.
const SEP_ID: u32 = 0;
/// Under which key the original reports the fixed parts of a template.
const TEMPLATE_KEY: &str = "<template>";

/// `model.data.train_ds.truncation_method`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TruncationMethod {
    /// The start of a field is kept.
    #[default]
    Right,
    /// The end of a field is kept.
    Left,
}

/// `model.data.train_ds.add_bos`, `add_sep` and `add_eos`: how many tokens each adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddedTokens {
    /// BOS before the prompt.
    pub bos: bool,
    /// A separator after it.
    pub sep: bool,
    /// EOS after the response: never in a prompt, but counted in its length.
    pub eos: bool,
}

/// How prompt-response records become prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptResponseFormat {
    template: PromptTemplate,
    added: AddedTokens,
    truncation: Option<Truncation>,
}

/// Which fields are truncated when prompt and response are too long.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Truncation {
    fields: Vec<String>,
    method: TruncationMethod,
    max_seq_length: usize,
}

/// A prompt as text, as ids, and the text of each piece.
pub(crate) struct FilledPrompt {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) pieces: Vec<(String, String)>,
}

/// A piece of the template with a record's values in it.
struct Filled {
    key: Option<String>,
    text: String,
    ids: Vec<u32>,
    is_cut: bool,
}

impl PromptResponseFormat {
    /// A format that never cuts: the length limit then leaves long prompts out.
    pub fn new(template: PromptTemplate, added: AddedTokens) -> Self {
        Self { template, added, truncation: None }
    }

    /// Cuts `fields` (keys of the template) when prompt and response have more than `max_seq_length` tokens.
    ///
    /// # Errors
    /// When a field is not a key of the template.
    pub fn with_truncation(
        mut self,
        fields: &[&str],
        method: TruncationMethod,
        max_seq_length: usize,
    ) -> Result<Self, DataError> {
        let mut fields: Vec<String> = fields.iter().map(|&field| field.to_owned()).collect();
        // Checkpoints from before the template existed name the field so.
        if let Some(first) = fields.first_mut()
            && first == "context"
            && self.template.keys().next() == Some("input")
        {
            *first = "input".into();
        }
        if let Some(field) = fields.iter().find(|&field| !self.template.keys().any(|key| key == field)) {
            return Err(DataError::UnknownTruncationField {
                field: field.clone(),
                expected: format!("the keys of the prompt template: {}", list_quoted(self.template.keys())),
            });
        }
        self.truncation = Some(Truncation { fields, method, max_seq_length });
        Ok(self)
    }

    pub(crate) fn adds_bos(&self) -> bool {
        self.added.bos
    }

    /// Whether long records are cut, so that their text depends on their tokens.
    pub(crate) fn cuts(&self) -> bool {
        self.truncation.is_some()
    }

    /// The keys that are not in the template.
    pub(crate) fn metadata(&self, record: &JsonObject) -> JsonObject {
        let is_other = |key: &str| !self.template.keys().any(|template_key| template_key == key);
        let others = record.iter().filter(|(key, _)| is_other(key));
        others.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The prompt of one record: all but the last piece, which is the response.
    pub(crate) fn fill(
        &self,
        record: &JsonObject,
        tokenizer: &dyn Tokenizer,
    ) -> Result<FilledPrompt, RecordError> {
        let pieces = self.template.pieces(separates_words(tokenizer)?);
        let mut filled = pieces
            .into_iter()
            .map(|piece| Filled::new(piece, record, tokenizer))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(truncation) = &self.truncation {
            truncation.apply(&mut filled, self.added);
        }
        for piece in filled.iter_mut().filter(|piece| piece.is_cut) {
            let method = self.truncation.as_ref().map(|truncation| truncation.method);
            piece.text = text_of_cut(&piece.ids, method.unwrap_or_default(), tokenizer)?;
        }
        let (_, prompt) = filled.split_last().ok_or(RecordError::EmptyPrompt)?;
        let bos = if self.added.bos { tokenizer.special().bos } else { None };
        let ids = bos.into_iter().chain(prompt.iter().flat_map(|piece| piece.ids.iter().copied()));
        let ids = ids.chain(self.added.sep.then_some(SEP_ID)).collect();
        let text = prompt.iter().map(|piece| piece.text.as_str()).collect();
        let pieces = filled.into_iter().map(|piece| (piece_name(piece.key), piece.text)).collect();
        Ok(FilledPrompt { text, ids, pieces })
    }

    /// The same text and pieces without ids, for a format that does not cut.
    pub(crate) fn text(
        &self,
        record: &JsonObject,
        tokenizer: &dyn Tokenizer,
    ) -> Result<(String, Vec<(String, String)>), RecordError> {
        let pieces = self.template.pieces(separates_words(tokenizer)?);
        let pieces = pieces.into_iter().map(|piece| {
            let (key, text) = text_of(piece, record)?;
            Ok((piece_name(key), text))
        });
        let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
        let (_, prompt) = pieces.split_last().ok_or(RecordError::EmptyPrompt)?;
        let text = prompt.iter().map(|(_, text)| text.as_str()).collect();
        Ok((text, pieces))
    }
}

fn piece_name(key: Option<String>) -> String {
    key.unwrap_or_else(|| TEMPLATE_KEY.into())
}

/// The key of a piece, where it has one, and what the record makes of it.
fn text_of(piece: Piece, record: &JsonObject) -> Result<(Option<String>, String), RecordError> {
    let mut text = " ".repeat(piece.num_spaces);
    match piece.content {
        PieceContent::Literal(literal) => {
            text.push_str(&literal);
            Ok((None, text))
        }
        PieceContent::Key(key) => {
            text.push_str(value_of(record, &key)?);
            Ok((Some(key), text))
        }
    }
}

impl Filled {
    fn new(piece: Piece, record: &JsonObject, tokenizer: &dyn Tokenizer) -> Result<Self, RecordError> {
        let (key, text) = text_of(piece, record)?;
        let ids = tokenizer.encode(&text).map_err(RecordError::tokenize)?;
        Ok(Self { key, text, ids, is_cut: false })
    }

    fn keep(&mut self, num_tokens: usize, method: TruncationMethod) {
        let num_tokens = num_tokens.min(self.ids.len());
        self.is_cut |= num_tokens < self.ids.len();
        match method {
            TruncationMethod::Right => self.ids.truncate(num_tokens),
            TruncationMethod::Left => drop(self.ids.drain(..self.ids.len() - num_tokens)),
        }
    }
}

impl Truncation {
    /// Shares what is too much among the fields, then takes the rest from whole pieces.
    fn apply(&self, pieces: &mut [Filled], added: AddedTokens) {
        let num_added = [added.bos, added.sep, added.eos].into_iter().filter(|&is_added| is_added).count();
        let num_tokens: usize = pieces.iter().map(|piece| piece.ids.len()).sum::<usize>() + num_added;
        let mut excess = num_tokens.saturating_sub(self.max_seq_length);
        let num_fields = self.fields.len();
        let Some(share) = excess.checked_div(num_fields) else { return };
        let num_larger = excess % num_fields;
        let fields = pieces
            .iter_mut()
            .filter(|piece| piece.key.as_ref().is_some_and(|key| self.fields.contains(key)))
            .take(num_fields);
        for (position, piece) in fields.enumerate() {
            let share = (share + usize::from(position < num_larger)).min(piece.ids.len());
            piece.keep(piece.ids.len() - share, self.method);
            excess -= share;
        }
        let order: Box<dyn Iterator<Item = &mut Filled>> = match self.method {
            TruncationMethod::Right => Box::new(pieces.iter_mut().rev()),
            TruncationMethod::Left => Box::new(pieces.iter_mut()),
        };
        for piece in order {
            let share = excess.min(piece.ids.len());
            piece.keep(piece.ids.len() - share, self.method);
            excess -= share;
        }
    }
}

/// Whether a space between two words is a token of the second one, or vanishes between them.
fn separates_words(tokenizer: &dyn Tokenizer) -> Result<template::Spaces, RecordError> {
    let encode = |text| tokenizer.encode(text).map_err(RecordError::tokenize);
    let parts = [encode("x")?, encode("y")?].concat();
    Ok(if encode("x y")? == parts { template::Spaces::Implied } else { template::Spaces::Kept })
}

fn value_of<'a>(record: &'a JsonObject, key: &str) -> Result<&'a str, RecordError> {
    match record.get(key) {
        Some(Json::String(text)) => Ok(text.trim_matches(' ')),
        None | Some(Json::Null) if has(record, "conversations") || has(record, "messages") => {
            Err(RecordError::ChatRecord)
        }
        Some(Json::Null) => Err(RecordError::NullTemplateKey { key: key.into() }),
        Some(other) => {
            Err(RecordError::WrongType { key: key.into(), expected: "a string", found: other.kind() })
        }
        None => Err(RecordError::MissingTemplateKey { key: key.into() }),
    }
}

/// A kept head is a text of its own; a kept tail stands in the middle of one.
fn text_of_cut(
    ids: &[u32],
    method: TruncationMethod,
    tokenizer: &dyn Tokenizer,
) -> Result<String, RecordError> {
    if method == TruncationMethod::Right {
        return tokenizer.decode(ids).map_err(RecordError::tokenize);
    }
    let bytes = ids.iter().map(|&id| tokenizer.token_bytes(id)).collect::<Result<Vec<_>, _>>();
    Ok(String::from_utf8_lossy(&bytes.map_err(RecordError::tokenize)?.concat()).into_owned())
}

fn list_quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
