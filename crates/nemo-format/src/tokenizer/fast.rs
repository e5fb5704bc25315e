//! The `tokenizer.json` of a folder: what transformers 5.24 has loaded from it (`AutoTokenizer.from_pretrained`).
//!
//! A file that already says so is kept byte for byte. The ids of added tokens follow from their order, as the
//! tokenizers library gives them; where files state others, a note says it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::class::{Class, Rules};
use super::from_proto;
use super::sentencepiece_model::ModelProto;
use super::tokens::{StatedTokens, Token};
use crate::huggingface::{HfTokenizer, Vocabulary};
use crate::{ConvertNote, FormatError};

/// A tokenizer as transformers has it.
#[derive(Debug)]
pub(super) struct FastTokenizer {
    /// The file.
    pub(super) bytes: Vec<u8>,
    pub(super) stated: StatedTokens,
    /// Added tokens by their ids, ascending.
    pub(super) added: Vec<(u64, Token)>,
    pub(super) class: Class,
    pub(super) notes: Vec<ConvertNote>,
    /// Tokens of the model itself to ids.
    vocab: HashMap<String, u64>,
}

impl FastTokenizer {
    /// Builds it.
    ///
    /// # Errors
    /// When a file is damaged, or the class is not known and there is no `tokenizer.json`.
    pub(super) fn build(tokenizer: &HfTokenizer) -> Result<Self, FormatError> {
        let file = tokenizer.path.display().to_string();
        let bad = |reason: String| FormatError::BadTokenizer { file: file.clone(), reason };
        if tokenizer.config.get("split_special_tokens").and_then(Value::as_bool) == Some(true) {
            return Err(FormatError::Unsupported {
                what: format!("`split_special_tokens: true` of the tokenizer `{file}`"),
                hint: "special tokens in a text are always found; set it to false if that is meant".into(),
            });
        }
        match &tokenizer.vocabulary {
            Vocabulary::Json(bytes) => {
                let document: Value =
                    serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
                Self::from_json(tokenizer, bytes, document).map_err(bad)
            }
            Vocabulary::SentencePiece(bytes) => {
                let model = ModelProto::parse(bytes).map_err(bad)?;
                let class = Class::of(tokenizer, false);
                Self::from_proto(tokenizer, &model, class).map_err(bad)
            }
            Vocabulary::Gpt2 { vocab, merges } => {
                let vocab: Map<String, Value> =
                    serde_json::from_slice(vocab).map_err(|error| bad(format!("vocab.json: {error}")))?;
                let merges = merge_lines(merges).map_err(bad)?;
                Self::from_gpt2(tokenizer, vocab, merges).map_err(bad)
            }
        }
    }

    fn from_json(tokenizer: &HfTokenizer, bytes: &[u8], mut document: Value) -> Result<Self, String> {
        let class = Class::of(tokenizer, has_byte_level(&document));
        let model = document.get("model").and_then(Value::as_object).ok_or("it has no `model`")?;
        let vocab = vocab_of(model);
        let mut in_json = Vec::new();
        for entry in document.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let token = Token::read(entry, None).zip(entry.get("id").and_then(Value::as_u64));
            let (token, id) = token.ok_or("`added_tokens` has an entry without `id` and `content`")?;
            in_json.push((id, token));
        }
        let stated = StatedTokens::merge(tokenizer, &class, &in_json)?;
        let is_bpe = model.get("type").is_none_or(|kind| kind == "BPE") && model.contains_key("merges");
        let rules = class.rules(&tokenizer.config, unk_text(&stated)).filter(|_| is_bpe);
        let mut notes = Vec::new();
        if let Class::Unknown(name) = &class {
            notes.push(ConvertNote::UnknownTokenizerClass { class: name.clone() });
        } else if rules.is_none() && class != Class::Backend {
            notes.push(ConvertNote::UnknownTokenizerClass {
                class: format!("{class:?} over a model that is not BPE"),
            });
        }
        let mut added = AddedTokens::new(&vocab);
        if rules.is_none() {
            in_json.iter().for_each(|(_, token)| added.add(token));
        }
        added.add_stated(&stated);
        let added = added.tokens;
        for (id, token) in &in_json {
            if !added.iter().any(|(_, other)| other.content == token.content) {
                notes.push(ConvertNote::TokenizerFilesDiffer {
                    what: format!(
                        "tokenizer.json adds `{}` ({id}), tokenizer_config.json, which is taken, does not",
                        token.content
                    ),
                });
            }
        }
        let mut of_file = AddedTokens::new(&vocab);
        in_json.iter().for_each(|(_, token)| of_file.add(token));
        let keeps_tokens = of_file.tokens == added;
        let keeps_rules = rules.as_ref().is_none_or(|rules| follows(&document, &vocab, rules));
        let bytes = if keeps_tokens && keeps_rules {
            bytes.to_vec()
        } else {
            set(&mut document, "added_tokens", entries(&added));
            if let Some(rules) = rules.filter(|_| !keeps_rules) {
                let part =
                    |key: &str| document.pointer(&format!("/model/{key}")).cloned().unwrap_or_default();
                let model = rules.model.to_json(&part("vocab"), &part("merges"));
                set(&mut document, "model", model);
                set(&mut document, "normalizer", rules.normalizer);
                set(&mut document, "pre_tokenizer", rules.pre_tokenizer);
                set(&mut document, "decoder", rules.decoder);
            }
            to_bytes(&document)?
        };
        Ok(Self { bytes, added, class, notes, vocab, stated }.with_notes())
    }

    fn from_proto(tokenizer: &HfTokenizer, model: &ModelProto<'_>, class: Class) -> Result<Self, String> {
        let flag = |key: &str| tokenizer.config.get(key).and_then(Value::as_bool);
        let mut stated = StatedTokens::merge(tokenizer, &class, &[])?;
        let mut reserved = from_proto::reserved_tokens(model);
        if class == Class::Backend {
            for (role, id, piece) in [
                ("bos_token", model.bos_id, model.bos_piece),
                ("eos_token", model.eos_id, model.eos_piece),
                ("unk_token", model.unk_id, model.unk_piece),
            ] {
                if id >= 0 && !stated.roles.contains_key(role) && !tokenizer.config.contains_key(role) {
                    stated.roles.insert(role.into(), Token::new(piece, true));
                }
            }
            reserved.retain(|token| token.special);
            if model.add_dummy_prefix {
                stated.by_id.values_mut().for_each(|token| token.normalized = false);
            }
        }
        if stated.is_extra_of_map {
            // transformers puts the proto's own tokens in the place of these.
            let lost: Vec<String> =
                stated.extra.take().into_iter().flatten().map(|token| token.content).collect();
            let lost: Vec<String> = lost
                .into_iter()
                .filter(|lost| !stated.by_id.values().chain(&reserved).any(|token| token.content == *lost))
                .map(|token| format!("`{token}`"))
                .collect();
            if !lost.is_empty() {
                stated.conflicts.push(format!(
                    "special_tokens_map.json lists {}, which transformers does not add to the pieces of tokenizer.model",
                    lost.join(", ")
                ));
            }
        }
        stated.extra.get_or_insert(reserved);
        let document = match class.rules(&tokenizer.config, unk_text(&stated)) {
            Some(rules) => {
                let vocab = from_proto::vocab(model);
                let merges = from_proto::merges(&vocab);
                document_of(&rules, &Value::Object(vocab), &merges)
            }
            None => from_proto::document(model, flag("legacy").unwrap_or(true)),
        };
        Self::with_stated(document, class, stated, tokenizer)
    }

    /// A document made from the vocabulary alone, with the tokens that the files state put in.
    fn with_stated(
        mut document: Value,
        class: Class,
        stated: StatedTokens,
        tokenizer: &HfTokenizer,
    ) -> Result<Self, String> {
        let vocab = document.get("model").and_then(Value::as_object).map(vocab_of).unwrap_or_default();
        let mut added = AddedTokens::new(&vocab);
        added.add_stated(&stated);
        let added = added.tokens;
        set(&mut document, "added_tokens", entries(&added));
        let built = Self { bytes: Vec::new(), added, class, notes: Vec::new(), vocab, stated };
        built.finished(document, tokenizer)
    }

    fn from_gpt2(
        tokenizer: &HfTokenizer,
        vocab: Map<String, Value>,
        merges: Vec<Value>,
    ) -> Result<Self, String> {
        let is_stated = tokenizer.config.contains_key("tokenizer_class") || tokenizer.model_class.is_some();
        let class = match Class::of(tokenizer, false) {
            Class::Backend if !is_stated => Class::Gpt2,
            class => class,
        };
        let stated = StatedTokens::merge(tokenizer, &class, &[])?;
        // A class without rules is refused before anything is written.
        let rules =
            class.rules(&tokenizer.config, None).or_else(|| Class::Gpt2.rules(&tokenizer.config, None));
        let rules = rules.ok_or("the class has no rules")?;
        let document = document_of(&rules, &Value::Object(vocab), &Value::Array(merges));
        Self::with_stated(document, class, stated, tokenizer)
    }

    /// Refuses a vocabulary of which only its class knows how a text is cut.
    pub(super) fn refuse_unknown_class(&self, tokenizer: &HfTokenizer) -> Result<(), FormatError> {
        let is_known = match &tokenizer.vocabulary {
            Vocabulary::Json(_) => true,
            Vocabulary::SentencePiece(_) => {
                matches!(self.class, Class::Backend | Class::Llama | Class::CodeLlama | Class::Gemma)
            }
            Vocabulary::Gpt2 { .. } => matches!(self.class, Class::Gpt2 | Class::Qwen2 | Class::GptNeoX),
        };
        if is_known {
            return Ok(());
        }
        let own = tokenizer.config.get("tokenizer_class").and_then(Value::as_str);
        let name = own.or(tokenizer.model_class.as_deref()).unwrap_or("TokenizersBackend");
        Err(FormatError::Unsupported {
            what: format!(
                "the tokenizer class `{name}` of `{}`, which has no `tokenizer.json`,",
                tokenizer.path.display()
            ),
            hint: "put the `tokenizer.json` that transformers saves for it into the folder, or pass one with `--tokenizer`"
                .into(),
        })
    }

    /// Writes a document made here, with the post-processor that the switches ask for.
    fn finished(mut self, mut document: Value, tokenizer: &HfTokenizer) -> Result<Self, String> {
        let flag = |key: &str| tokenizer.config.get(key).and_then(Value::as_bool);
        let adds_bos = flag("add_bos_token").unwrap_or(self.class == Class::CodeLlama);
        let role = |role: &str| self.stated.roles.get(role).map(|token| token.content.clone());
        let bos = role("bos_token").filter(|_| adds_bos);
        let eos = role("eos_token").filter(|_| flag("add_eos_token").unwrap_or(false));
        set(&mut document, "post_processor", self.post_processor(bos.as_deref(), eos.as_deref()));
        self.bytes = to_bytes(&document)?;
        Ok(self.with_notes())
    }

    fn post_processor(&self, bos: Option<&str>, eos: Option<&str>) -> Value {
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let special = |token: &str, type_id: u8| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        let one = |name: &str, type_id: u8| {
            let mut steps = Vec::new();
            steps.extend(bos.map(|token| special(token, type_id)));
            steps.push(json!({"Sequence": {"id": name, "type_id": type_id}}));
            steps.extend(eos.map(|token| special(token, type_id)));
            steps
        };
        let tokens: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .filter_map(|token| {
                let id = self.id_of(token)?;
                Some((token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            })
            .collect();
        let pair = [one("A", 0), one("B", 1)].concat();
        json!({"type": "TemplateProcessing", "single": one("A", 0), "pair": pair, "special_tokens": tokens})
    }

    /// The id of a token.
    pub(super) fn id_of(&self, token: &str) -> Option<u64> {
        let added = self.added.iter().find(|(_, added)| added.content == token).map(|(id, _)| *id);
        added.or_else(|| self.vocab.get(token).copied())
    }

    /// Tokens of the model itself.
    pub(super) fn vocab(&self) -> &HashMap<String, u64> {
        &self.vocab
    }

    fn with_notes(mut self) -> Self {
        self.notes
            .extend(self.stated.conflicts.drain(..).map(|what| ConvertNote::TokenizerFilesDiffer { what }));
        for (&stated_id, token) in &self.stated.by_id {
            if let Some(id) = self.id_of(&token.content).filter(|&id| id != stated_id) {
                let token = token.content.clone();
                self.notes.push(ConvertNote::TokenIdDiffers { token, stated_id, id });
            }
        }
        self
    }
}

/// Added tokens with the ids that the tokenizers library gives them.
struct AddedTokens<'a> {
    vocab: &'a HashMap<String, u64>,
    tokens: Vec<(u64, Token)>,
}

impl<'a> AddedTokens<'a> {
    fn new(vocab: &'a HashMap<String, u64>) -> Self {
        Self { vocab, tokens: Vec::new() }
    }

    /// `AddedVocabulary::add_tokens` of the library: a known text keeps its id, another gets the next one.
    fn add(&mut self, token: &Token) {
        if token.content.is_empty() {
            return;
        }
        let num_model_tokens = self.vocab.len() as u64;
        let known = self.tokens.iter().find(|(_, added)| added.content == token.content).map(|(id, _)| *id);
        let next = self.tokens.last().map_or(num_model_tokens, |(id, _)| (id + 1).max(num_model_tokens));
        let id = known.or_else(|| self.vocab.get(&token.content).copied()).unwrap_or(next);
        match self.tokens.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => self.tokens[at].1 = token.clone(),
            Err(at) => self.tokens.insert(at, (id, token.clone())),
        }
    }

    /// What transformers adds: tokens with ids in their order, then those with roles, then the others.
    fn add_stated(&mut self, stated: &StatedTokens) {
        let has_role = |token: &Token| stated.roles.values().any(|role| role.content == token.content);
        let mut known: Vec<&str> = Vec::new();
        for token in stated.by_id.values() {
            let special = token.special || has_role(token);
            self.add(&Token { special, ..token.clone() });
            known.push(&token.content);
        }
        let others = stated.roles.values().chain(stated.extra.iter().flatten());
        for token in others {
            let is_known = known.contains(&token.content.as_str())
                || self.tokens.iter().any(|(_, added)| added.content == token.content);
            if !is_known {
                let special = token.special || has_role(token);
                self.add(&Token { special, ..token.clone() });
            }
        }
    }
}

fn unk_text(stated: &StatedTokens) -> Option<&str> {
    stated.roles.get("unk_token").map(|token| token.content.as_str())
}

/// Whether the file is that of a byte-level tokenizer (`_tokenizer_json_has_byte_level`).
fn has_byte_level(document: &Value) -> bool {
    let part = |key: &str| document.get(key).is_some_and(|part| part.to_string().contains("\"ByteLevel\""));
    part("pre_tokenizer") || part("decoder")
}

/// Tokens to ids of any kind of model; a Unigram model lists its tokens.
fn vocab_of(model: &Map<String, Value>) -> HashMap<String, u64> {
    match model.get("vocab") {
        Some(Value::Object(vocab)) => {
            vocab.iter().filter_map(|(token, id)| Some((token.clone(), id.as_u64()?))).collect()
        }
        Some(Value::Array(entries)) => {
            let texts = (0_u64..).zip(entries);
            texts.filter_map(|(id, entry)| Some((entry.get(0)?.as_str()?.to_owned(), id))).collect()
        }
        _ => HashMap::new(),
    }
}

fn merge_lines(bytes: &[u8]) -> Result<Vec<Value>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("merges.txt: {error}"))?;
    let mut merges = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => merges.push(json!([left, right])),
            _ => {
                return Err(format!(
                    "line {number} of merges.txt is not two tokens with a space between them"
                ));
            }
        }
    }
    Ok(merges)
}

/// Whether a file already has what the class would build, as far as it bears on ids.
fn follows(document: &Value, vocab: &HashMap<String, u64>, rules: &Rules) -> bool {
    let model = |key: &str| document.pointer(&format!("/model/{key}")).cloned().unwrap_or_default();
    let flag = |key: &str| model(key).as_bool().unwrap_or(false);
    let affix = |key: &str| model(key).as_str().is_none_or(str::is_empty);
    let has_bytes = || (0..=255).all(|byte: u8| vocab.contains_key(&format!("<0x{byte:02X}>")));
    let same_unk = model("unk_token").as_str() == rules.model.unk_token.as_deref();
    // `trim_offsets` and an absent key of a default bear on nothing.
    let plain = |mut part: Value| {
        if let Some(object) = part.as_object_mut() {
            object.shift_remove("trim_offsets");
            let defaults = [("ByteLevel", "use_regex", true), ("Metaspace", "split", true)];
            for (kind, key, default) in defaults {
                if object.get("type").is_some_and(|value| value == kind) {
                    object.entry(key).or_insert(default.into());
                }
            }
        }
        part
    };
    let part = |key: &str| plain(document.get(key).cloned().unwrap_or_default());
    part("normalizer") == plain(rules.normalizer.clone())
        && part("pre_tokenizer") == plain(rules.pre_tokenizer.clone())
        && flag("fuse_unk") == rules.model.fuse_unk
        && flag("byte_fallback") == rules.model.byte_fallback
        && !flag("ignore_merges")
        && affix("continuing_subword_prefix")
        && affix("end_of_word_suffix")
        && (same_unk || (rules.model.byte_fallback && has_bytes()))
}

fn document_of(rules: &Rules, vocab: &Value, merges: &Value) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.pre_tokenizer,
        "post_processor": null,
        "decoder": rules.decoder,
        "model": rules.model.to_json(vocab, merges),
    })
}

fn entries(added: &[(u64, Token)]) -> Value {
    added.iter().map(|(id, token)| token.to_json(*id)).collect()
}

fn set(document: &mut Value, key: &str, value: Value) {
    if let Some(object) = document.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

fn to_bytes(document: &Value) -> Result<Vec<u8>, String> {
    serde_json::to_vec(document).map_err(|error| error.to_string())
}
