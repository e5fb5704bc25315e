//! Llama's slow Hugging Face tokenizer: a SentencePiece model with added tokens around it.
//!
//! Follows `tokenization_llama.py` and `tokenization_utils.py` of transformers 4.46, in both values of `legacy`, as
//! NeMo's `AutoTokenizer` calls them: no BOS or EOS is added, and decoding keeps special tokens.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::sentencepiece::{SPACE_SYMBOL, SentencePieceModel};
use super::trie::Trie;
use super::{SpecialTokens, Tokenizer, TokenizerSpec, special_text};
use crate::DataError;

pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const DEFAULT_ROLES: [(&str, &str); 3] =
    [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];

/// The JSON files beside `tokenizer.model`, empty where they are absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlowFiles {
    /// `tokenizer_config.json`.
    pub(crate) config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub(crate) special_tokens_map: Map<String, Value>,
    /// `added_tokens.json`.
    pub(crate) added_tokens: Map<String, Value>,
}

/// A token that is found in the text before the model sees it.
#[derive(Clone, Debug, Default)]
struct AddedToken {
    content: String,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
}

/// Whether the text before a token counts as a sentence of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    /// Every part of the text gets a space in front.
    Legacy,
    /// Only the text as a whole does.
    Plain {
        /// How many tokens the unknown token's own text has, which stands before a part that starts with a space.
        num_guard_tokens: usize,
    },
}

/// Llama's slow tokenizer.
pub(crate) struct SlowLlamaTokenizer {
    model: SentencePieceModel,
    behaviour: Behaviour,
    add_prefix_space: bool,
    added: BTreeMap<u32, AddedToken>,
    // Contents of `added`, with their ids.
    finder: Trie,
    special_texts: HashSet<String>,
    unk_token: String,
    special: SpecialTokens,
}

/// A part of a text, and the added token that it is, if it is one.
struct Part<'a> {
    text: &'a str,
    token: Option<u32>,
    // Added tokens that turned out to be part of a longer word.
    joined: String,
}

impl SlowLlamaTokenizer {
    /// Puts the tokens of the JSON files and of `spec` around `model`.
    pub(crate) fn new(model: SentencePieceModel, files: &SlowFiles, spec: &TokenizerSpec) -> Self {
        let role = |role: &str| {
            let from_files = [files.config.get(role), files.special_tokens_map.get(role)];
            let from_files = from_files.into_iter().flatten().find_map(content_of);
            let default =
                DEFAULT_ROLES.iter().find(|(name, _)| *name == role).map(|&(_, token)| token.to_owned());
            spec.special_token(role).map(str::to_owned).or(from_files).or(default)
        };
        let mut special_tokens: Vec<String> = ROLES.iter().filter_map(|name| role(name)).collect();
        let additional = [&files.config, &files.special_tokens_map]
            .into_iter()
            .find_map(|file| file.get("additional_special_tokens").and_then(Value::as_array));
        special_tokens.extend(additional.into_iter().flatten().filter_map(content_of));
        special_tokens.extend(spec.additional_special_tokens.iter().flatten().cloned());
        let mut added = added_tokens(files);
        for token in &special_tokens {
            add(&model, &mut added, token);
        }
        let finder = Trie::new(added.iter().map(|(&id, token)| (token.content.as_str(), id)));
        let unk_token = role("unk_token").unwrap_or_default();
        let is_legacy = files.config.get("legacy").and_then(Value::as_bool).unwrap_or(true);
        let (model, behaviour) = if is_legacy {
            (model, Behaviour::Legacy)
        } else {
            let model = model.without_dummy_prefix();
            let num_guard_tokens = model.encode(&unk_token).len();
            (model, Behaviour::Plain { num_guard_tokens })
        };
        let id_of = |name: &str| role(name).map(|token| token_to_id(&model, &added, &token));
        let special = SpecialTokens {
            bos: id_of("bos_token"),
            eos: id_of("eos_token"),
            pad: id_of("pad_token"),
            unk: id_of("unk_token"),
        };
        let add_prefix_space = files.config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
        let special_texts = special_tokens.into_iter().collect();
        Self { model, behaviour, add_prefix_space, added, finder, special_texts, unk_token, special }
    }

    /// Splits at added tokens; the longest one wins.
    fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let part =
            |part: special_text::Part<'a>| Part { text: part.text, token: part.token, joined: String::new() };
        let mut parts: Vec<Part<'a>> =
            special_text::split(text, &self.finder).into_iter().map(part).collect();
        self.strip_around_tokens(&mut parts);
        parts
    }

    fn strip_around_tokens(&self, parts: &mut [Part<'_>]) {
        for position in 0..parts.len() {
            let Some(token) = parts[position].token.and_then(|id| self.added.get(&id)) else { continue };
            let (before, rest) = parts.split_at_mut(position);
            let Some((own, after)) = rest.split_first_mut() else { continue };
            let (mut left, mut right) = (before.last_mut(), after.first_mut());
            if let Some(right) = right.as_mut().filter(|_| token.rstrip) {
                right.text = right.text.trim_start();
            }
            if let Some(left) = left.as_mut().filter(|_| token.lstrip) {
                left.text = left.text.trim_end();
            }
            if !token.single_word {
                continue;
            }
            if let Some(left) = left.filter(|left| !left.text.is_empty() && !left.text.ends_with(' ')) {
                left.joined.push_str(&token.content);
                (own.text, own.token) = ("", None);
            } else if let Some(right) =
                right.filter(|right| !right.text.is_empty() && !right.text.starts_with(' '))
            {
                own.joined.push_str(right.text);
                own.token = None;
                right.text = "";
                right.token = None;
            }
        }
    }

    fn push_part(&self, text: &str, ids: &mut Vec<u32>) {
        match self.behaviour {
            Behaviour::Plain { num_guard_tokens } if text.starts_with([' ', '▁']) => {
                let guarded = self.model.encode(&format!("{}{text}", self.unk_token));
                ids.extend(guarded.into_iter().skip(num_guard_tokens));
            }
            _ => ids.extend(self.model.encode(text)),
        }
    }

    fn token_text(&self, id: u32) -> Result<&str, DataError> {
        match self.added.get(&id) {
            Some(token) => Ok(&token.content),
            None => self.model.piece_text(id),
        }
    }
}

impl Tokenizer for SlowLlamaTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let is_plain = self.behaviour != Behaviour::Legacy;
        let prefix = if is_plain && self.add_prefix_space { SPACE_SYMBOL } else { "" };
        let text = if is_plain { text.replace(SPACE_SYMBOL, " ") } else { text.to_owned() };
        let text = format!("{prefix}{text}");
        let mut ids = Vec::new();
        for part in self.split(&text) {
            match part.token {
                Some(id) => ids.push(id),
                None => self.push_part(&format!("{}{}", part.text, part.joined), &mut ids),
            }
        }
        if let (true, [first, second, ..]) = (is_plain, ids.as_slice())
            && self.token_text(*first)? == SPACE_SYMBOL
            && self.special_texts.contains(self.token_text(*second)?)
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let mut tokens = ids.iter().map(|&id| self.token_text(id)).collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = tokens.first_mut().filter(|_| self.add_prefix_space) {
            *first = first.strip_prefix(SPACE_SYMBOL).unwrap_or(first);
        }
        let mut text = String::new();
        let mut run = Vec::new();
        let mut after_special = false;
        for (position, token) in tokens.into_iter().enumerate() {
            if self.special_texts.contains(token) {
                if !after_special && position != 0 && self.behaviour == Behaviour::Legacy {
                    text.push(' ');
                }
                text.push_str(&self.model.decode_pieces(&run));
                text.push_str(token);
                run.clear();
                after_special = true;
                continue;
            }
            if after_special && position == 1 && self.add_prefix_space && !token.starts_with(SPACE_SYMBOL) {
                text.push(' ');
            }
            run.push(token);
            after_special = false;
        }
        text.push_str(&self.model.decode_pieces(&run));
        Ok(text)
    }

    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        match self.added.get(&id) {
            Some(token) => Ok(token.content.clone().into_bytes()),
            None => self.model.token_bytes(id),
        }
    }

    fn vocab_size(&self) -> usize {
        let past_added = self.added.keys().next_back().map_or(0, |&id| id as usize + 1);
        self.model.num_pieces().max(past_added)
    }

    fn is_special(&self, id: u32) -> bool {
        self.added.contains_key(&id)
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

/// The text of a token that may be written as an object.
pub(super) fn content_of(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// The tokens that the files give ids.
fn added_tokens(files: &SlowFiles) -> BTreeMap<u32, AddedToken> {
    let mut added = BTreeMap::new();
    if let Some(listed) = files.config.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, token) in listed {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            if let (Ok(id), Some(content)) = (id.parse(), content_of(token)) {
                let (lstrip, rstrip, single_word) = (flag("lstrip"), flag("rstrip"), flag("single_word"));
                added.insert(id, AddedToken { content, lstrip, rstrip, single_word });
            }
        }
        return added;
    }
    for (content, id) in &files.added_tokens {
        if let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            added.insert(id, AddedToken { content: content.clone(), ..AddedToken::default() });
        }
    }
    added
}

/// Gives a special token the id of its piece, or the next free one.
fn add(model: &SentencePieceModel, added: &mut BTreeMap<u32, AddedToken>, token: &str) {
    if token.is_empty() || added.values().any(|known| known.content == token) {
        return;
    }
    let past_last = added.keys().next_back().map_or(0, |&id| id + 1).max(model.num_pieces() as u32);
    let id = model.find_piece(token).unwrap_or(past_last);
    added.insert(id, AddedToken { content: token.into(), ..AddedToken::default() });
}

fn token_to_id(model: &SentencePieceModel, added: &BTreeMap<u32, AddedToken>, token: &str) -> u32 {
    let found = added.iter().find(|(_, known)| known.content == token).map(|(&id, _)| id);
    found.unwrap_or_else(|| model.piece_to_id(token))
}
