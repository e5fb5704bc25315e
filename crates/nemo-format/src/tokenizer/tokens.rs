//! The special and added tokens that a folder's JSON files state, merged as transformers 5.24 does it
//! (`_from_pretrained` of `tokenization_utils_base.py`).
//!
//! With `added_tokens_decoder` in `tokenizer_config.json` neither `special_tokens_map.json` nor `added_tokens.json`
//! count; without it the map wins over the configuration, and `tokenizer.json` over `added_tokens.json`.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::class::Class;
use crate::huggingface::HfTokenizer;

/// Roles in the order in which transformers keeps them.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const CONFIG: &str = "tokenizer_config.json";

/// A token with the way it is found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

impl Token {
    /// A token without further settings.
    pub(super) fn new(content: &str, special: bool) -> Self {
        let (single_word, lstrip, rstrip) = (false, false, false);
        Self { content: content.into(), single_word, lstrip, rstrip, normalized: !special, special }
    }

    /// A token as a string or an object with `content`.
    pub(super) fn read(value: &Value, is_special: Option<bool>) -> Option<Self> {
        if let Some(content) = value.as_str() {
            return Some(Self::new(content, true));
        }
        let flag = |key: &str| value.get(key).and_then(Value::as_bool);
        let special = is_special.or_else(|| flag("special")).unwrap_or(false);
        Some(Self {
            content: value.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word").unwrap_or(false),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            normalized: flag("normalized").unwrap_or(!special),
            special,
        })
    }

    /// An entry of `added_tokens`.
    pub(super) fn to_json(&self, id: u64) -> Value {
        json!({
            "id": id,
            "content": self.content,
            "single_word": self.single_word,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": self.normalized,
            "special": self.special,
        })
    }
}

/// What the JSON files say of tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct StatedTokens {
    /// Roles, those of the model's own (`image_token`) among them.
    pub(super) roles: IndexMap<String, Token>,
    /// Special tokens without a role; nothing where no file has the key.
    pub(super) extra: Option<Vec<Token>>,
    /// Whether `extra` is the list `additional_special_tokens` of `special_tokens_map.json`.
    pub(super) is_extra_of_map: bool,
    /// Added tokens with the ids that the files give them.
    pub(super) by_id: BTreeMap<u64, Token>,
    /// Files that give one id, token or role twice, and differently: what, and which one is not taken.
    pub(super) conflicts: Vec<String>,
}

impl StatedTokens {
    /// Merges the files. `in_json` are the entries of `tokenizer.json`.
    pub(super) fn merge(
        tokenizer: &HfTokenizer,
        class: &Class,
        in_json: &[(u64, Token)],
    ) -> Result<Self, String> {
        let mut stated = Self::default();
        let decoder = tokenizer.config.get("added_tokens_decoder").filter(|value| !value.is_null());
        stated.read_roles(&tokenizer.config, class, None)?;
        if let Some(decoder) = decoder {
            for (id, token) in decoder.as_object().ok_or("`added_tokens_decoder` is not an object")? {
                let id = id
                    .parse()
                    .map_err(|_| format!("`added_tokens_decoder` has the key `{id}`, not an id"))?;
                let token = Token::read(token, None).filter(|_| token.is_object());
                let token =
                    token.ok_or_else(|| format!("`added_tokens_decoder` has no token under `{id}`"))?;
                stated.by_id.insert(id, token);
            }
            stated.compare_unread(tokenizer)?;
        } else {
            stated.read_roles(&tokenizer.special_tokens_map, class, Some(true))?;
            stated.read_added_tokens(&tokenizer.added_tokens)?;
            for (id, token) in in_json {
                stated.note_replaced(*id, &token.content, "added_tokens.json", "tokenizer.json");
                stated.by_id.insert(*id, token.clone());
            }
        }
        for role in stated.roles.values_mut() {
            if let Some(token) = stated.by_id.values().rev().find(|token| token.content == role.content) {
                *role = token.clone();
            }
        }
        stated.roles.sort_by_cached_key(|role, _| {
            ROLES.iter().position(|known| known == role).unwrap_or(ROLES.len())
        });
        Ok(stated)
    }

    /// Takes the roles of one file; `is_special` is what its objects are.
    fn read_roles(
        &mut self,
        file: &Map<String, Value>,
        class: &Class,
        is_special: Option<bool>,
    ) -> Result<(), String> {
        let is_map = is_special.is_some();
        if !is_map {
            let defaults = class.default_roles().iter();
            self.roles = defaults.map(|&(role, token)| (role.to_owned(), Token::new(token, true))).collect();
        }
        for (key, value) in file {
            let is_known = ROLES.contains(&key.as_str());
            if !is_known && !key.ends_with("_token") {
                continue;
            }
            // `add_bos_token` and its like are switches.
            match Token::read(value, is_special.or(Some(true))) {
                Some(token) => {
                    if is_map
                        && let Some(known) =
                            self.roles.get(key).filter(|known| known.content != token.content)
                        && !class.default_roles().iter().any(|(_, default)| *default == known.content)
                    {
                        self.conflicts.push(format!(
                            "`{key}` is `{}` in special_tokens_map.json, which is taken, and `{}` in {CONFIG}",
                            token.content, known.content
                        ));
                    }
                    self.roles.insert(key.clone(), token);
                }
                None if value.is_null() => drop(self.roles.shift_remove(key)),
                None if is_known => return Err(format!("`{key}` is {value}, not a token")),
                None => {}
            }
        }
        let named = file.get("extra_special_tokens").filter(|value| !value.is_null());
        if let Some(Value::Object(named)) = named {
            for (role, token) in named {
                let token = Token::read(token, Some(true))
                    .ok_or_else(|| format!("`{role}` is {token}, not a token"))?;
                self.roles.insert(role.clone(), token);
            }
        }
        let listed = named.and_then(Value::as_array).filter(|list| !list.is_empty());
        let listed = listed.or_else(|| file.get("additional_special_tokens")?.as_array());
        if let Some(listed) = listed.filter(|_| self.extra.is_none()) {
            let tokens = listed.iter().map(|token| Token::read(token, Some(true)));
            let tokens: Option<Vec<Token>> = tokens.collect();
            self.is_extra_of_map = is_map && named.is_none_or(|named| !named.is_array());
            self.extra = Some(tokens.ok_or("`additional_special_tokens` is not a list of tokens")?);
        }
        Ok(())
    }

    fn read_added_tokens(&mut self, file: &Map<String, Value>) -> Result<(), String> {
        for (content, id) in file {
            let id =
                id.as_u64().ok_or_else(|| format!("`{content}` has the id {id} in added_tokens.json"))?;
            let has_role =
                ROLES.iter().filter_map(|role| self.roles.get(*role)).any(|token| token.content == *content);
            let is_special = has_role || self.extra.iter().flatten().any(|token| token.content == *content);
            self.by_id.insert(id, Token::new(content, is_special));
        }
        Ok(())
    }

    /// Says what files state that transformers does not read where there is `added_tokens_decoder`.
    fn compare_unread(&mut self, tokenizer: &HfTokenizer) -> Result<(), String> {
        for (content, id) in &tokenizer.added_tokens {
            let id =
                id.as_u64().ok_or_else(|| format!("`{content}` has the id {id} in added_tokens.json"))?;
            if self.by_id.get(&id).is_none_or(|token| token.content != *content) {
                self.conflicts.push(format!(
                    "added_tokens.json gives `{content}` the id {id}; `added_tokens_decoder` in {CONFIG}, which is taken, does not"
                ));
            }
        }
        for role in ROLES {
            let in_map = tokenizer.special_tokens_map.get(role).and_then(|token| Token::read(token, None));
            if let (Some(in_map), Some(taken)) = (in_map, self.roles.get(role))
                && in_map.content != taken.content
            {
                self.conflicts.push(format!(
                    "`{role}` is `{}` in {CONFIG}, which is taken, and `{}` in special_tokens_map.json",
                    taken.content, in_map.content
                ));
            }
        }
        Ok(())
    }

    fn note_replaced(&mut self, id: u64, content: &str, old: &str, new: &str) {
        let same_id = self.by_id.get(&id).filter(|token| token.content != content);
        if let Some(token) = same_id {
            self.conflicts.push(format!(
                "the id {id} is `{content}` in {new}, which is taken, and `{}` in {old}",
                token.content
            ));
        } else if let Some((other, _)) =
            self.by_id.iter().find(|(other, token)| **other != id && token.content == content)
        {
            self.conflicts
                .push(format!("`{content}` has the id {id} in {new}, which is taken, and {other} in {old}"));
            let other = *other;
            self.by_id.remove(&other);
        }
    }
}
