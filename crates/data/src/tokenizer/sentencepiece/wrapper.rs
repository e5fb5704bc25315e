//! NeMo's `SentencePieceTokenizer` around a model, in its plain and its legacy form (v2.0.0).
//!
//! Legacy: added special tokens get ids after the pieces, are found in the text before the model sees it, and stand
//! between spaces when decoded. Where the original raises because no EOS was set, the model's own id is used.

use super::SentencePieceModel;
use crate::DataError;
use crate::tokenizer::special_text::split;
use crate::tokenizer::trie::Trie;
use crate::tokenizer::{SpecialTokens, Tokenizer, TokenizerSpec};

/// A SentencePiece model as NeMo uses it.
pub struct SentencePieceTokenizer {
    model: SentencePieceModel,
    // Id of entry `i` is the number of pieces plus `i`.
    added: Vec<String>,
    strip_decoded: bool,
    special: SpecialTokens,
    // Control pieces and added tokens, for texts that spell them out.
    finder: Trie,
}

impl SentencePieceTokenizer {
    /// The plain form.
    ///
    /// # Errors
    /// When special tokens are set, which this form cannot have.
    pub fn new(model: SentencePieceModel, spec: &TokenizerSpec) -> Result<Self, DataError> {
        let has_tokens = spec.special_tokens.as_ref().is_some_and(|tokens| !tokens.tokens().is_empty());
        let has_added = spec.additional_special_tokens.as_ref().is_some_and(|tokens| !tokens.is_empty());
        if has_tokens || has_added {
            return Err(DataError::BadTokenizerSetting {
                key: if has_tokens { "special_tokens" } else { "additional_special_tokens" },
                reason: "special tokens can only be added with `sentencepiece_legacy: true`".into(),
            });
        }
        let special = model.special().clone();
        let finder = Trie::new(model.control_pieces());
        Ok(Self { model, added: Vec::new(), strip_decoded: false, special, finder })
    }

    /// The legacy form, with the special tokens of `spec` added.
    pub fn legacy(model: SentencePieceModel, spec: &TokenizerSpec) -> Self {
        let own = model.special().clone();
        let finder = Trie::default();
        let mut tokenizer = Self { model, added: Vec::new(), strip_decoded: true, special: own, finder };
        let named = spec.special_tokens.iter().flat_map(|tokens| tokens.tokens());
        let additional = spec.additional_special_tokens.iter().flatten().map(String::as_str);
        for token in named.chain(additional) {
            tokenizer.add(token);
        }
        let special = &tokenizer.special;
        let id_of =
            |role, own| spec.special_token(role).map_or(own, |token| Some(tokenizer.token_to_id(token)));
        tokenizer.special = SpecialTokens {
            bos: id_of("bos", id_of("bos_token", special.bos)),
            eos: id_of("eos", id_of("eos_token", special.eos)),
            pad: id_of("pad", id_of("pad_token", special.pad)),
            unk: special.unk,
        };
        let added =
            (0..tokenizer.added.len()).map(|idx| (tokenizer.added[idx].as_str(), tokenizer.added_id(idx)));
        tokenizer.finder = Trie::new(tokenizer.model.control_pieces().chain(added));
        tokenizer
    }

    fn add(&mut self, token: &str) {
        let is_known = self.model.piece_to_id(token) != self.model.unk_id;
        if !token.is_empty() && !is_known && !self.added.iter().any(|added| added == token) {
            self.added.push(token.into());
        }
    }

    fn token_to_id(&self, token: &str) -> u32 {
        match self.added.iter().position(|added| added == token) {
            Some(idx) => self.added_id(idx),
            None => self.model.piece_to_id(token),
        }
    }

    fn added_id(&self, idx: usize) -> u32 {
        (self.model.num_pieces() + idx) as u32
    }

    fn added_token(&self, id: u32) -> Option<&str> {
        let idx = (id as usize).checked_sub(self.model.num_pieces())?;
        self.added.get(idx).map(String::as_str)
    }
}

impl Tokenizer for SentencePieceTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = Vec::new();
        let mut start = 0;
        // Where each added token comes next; searched again only once it is passed, so the whole is linear.
        let mut next_starts: Vec<Option<usize>> = self.added.iter().map(|token| text.find(token)).collect();
        loop {
            for (next, token) in next_starts.iter_mut().zip(&self.added) {
                if next.is_some_and(|next| next < start) {
                    *next = text[start..].find(token).map(|offset_bytes| start + offset_bytes);
                }
            }
            let found = next_starts.iter().enumerate().filter_map(|(idx, next)| Some(((*next)?, idx))).min();
            let Some((end, idx)) = found else { break };
            ids.extend(self.model.encode(&text[start..end]));
            ids.push(self.added_id(idx));
            start = end + self.added[idx].len();
        }
        ids.extend(self.model.encode(&text[start..]));
        Ok(ids)
    }

    /// Only a text that begins with no special token gets the model's space in front, as with transformers'
    /// `LlamaTokenizer` where nothing says `legacy`.
    fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = Vec::new();
        for (position, part) in split(text, &self.finder).into_iter().enumerate() {
            match part.token {
                Some(id) => ids.push(id),
                None if position == 0 => ids.extend(self.model.encode(part.text)),
                None => ids.extend(self.model.encode_continued(part.text)),
            }
        }
        Ok(ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        if !self.strip_decoded {
            return self.model.decode(ids);
        }
        let mut text = String::new();
        let mut segment_start = 0;
        for (position, &id) in ids.iter().enumerate() {
            if let Some(token) = self.added_token(id) {
                text.push_str(&self.model.decode(&ids[segment_start..position])?);
                text.push(' ');
                text.push_str(token);
                text.push(' ');
                segment_start = position + 1;
            }
        }
        text.push_str(&self.model.decode(&ids[segment_start..])?);
        Ok(text.trim_matches(is_python_space).into())
    }

    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        match self.added_token(id) {
            Some(token) => Ok(token.as_bytes().to_vec()),
            None => self.model.token_bytes(id),
        }
    }

    fn vocab_size(&self) -> usize {
        self.model.num_pieces() + self.added.len()
    }

    fn is_special(&self, id: u32) -> bool {
        self.added_token(id).is_some() || self.model.is_control(id)
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

/// What Python's `str.strip` takes off: four separators more than Rust's whitespace.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
