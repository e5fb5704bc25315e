//! Which tokens end a response without being asked for: the tokenizer's EOS, every `eos_token_id` of the
//! `generation_config.json` that travels with the checkpoint, as transformers' `generate` takes them, and the token with
//! which the chat template closes an answer.

use data::tokenizer::turn_end_token;
use data::{ChatTemplate, Date, Json, JsonObject, MessagesRecord, Tokenizer};
use nemo_format::Checkpoint;
use serde_json::Value;

use super::checkpoint::OpenTokenizer;
use crate::exit::{ExitStatus, Failure, ResultExt};

const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer";
const CHAT_TEMPLATE: &str = "chat template";
const EOS_TOKEN_ID: &str = "eos_token_id";

/// The end tokens of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EndTokens {
    tokens: Vec<EndToken>,
    /// Ids that the files name and the tokenizer lacks.
    unknown: Vec<u64>,
    vocab_size: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct EndToken {
    id: u32,
    text: String,
    sources: Vec<&'static str>,
}

impl EndTokens {
    /// Reads what the checkpoint says.
    pub(crate) fn of(checkpoint: &Checkpoint, opened: &OpenTokenizer) -> Result<Self, Failure> {
        let tokenizer = opened.tokenizer.as_ref();
        let stated = match stated_ids(checkpoint) {
            Ok(ids) => ids,
            Err(reason) => {
                return Err(anyhow::anyhow!(
                    "`{GENERATION_CONFIG}` of `{}`: {reason}",
                    checkpoint.path().display()
                ))
                .exit_with(ExitStatus::Checkpoint);
            }
        };
        let mut end = Self::new(tokenizer, &stated);
        // Any day will do: a turn ends in the same way tomorrow.
        let template = opened.chat_template(Date::new(2000, 1, 1));
        if let Some(id) = template.and_then(|template| turn_end(&template, tokenizer)) {
            end.add(tokenizer, id, CHAT_TEMPLATE);
        }
        Ok(end)
    }

    /// The same with the checkpoint's own tokenizer.
    pub(crate) fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let tokenizer = OpenTokenizer::open(checkpoint, checkpoint.model_config())?;
        Self::of(checkpoint, &tokenizer)
    }

    fn new(tokenizer: &dyn Tokenizer, stated: &[u64]) -> Self {
        let mut end = Self { vocab_size: tokenizer.vocab_size(), ..Self::default() };
        if let Some(eos) = tokenizer.special().eos {
            end.add(tokenizer, eos, TOKENIZER);
        }
        for &stated in stated {
            match u32::try_from(stated).ok().filter(|&id| tokenizer.token_bytes(id).is_ok()) {
                Some(id) => end.add(tokenizer, id, GENERATION_CONFIG),
                None => end.unknown.push(stated),
            }
        }
        end
    }

    fn add(&mut self, tokenizer: &dyn Tokenizer, id: u32, source: &'static str) {
        match self.tokens.iter_mut().find(|token| token.id == id) {
            Some(known) if known.sources.contains(&source) => {}
            Some(known) => known.sources.push(source),
            None => {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                self.tokens.push(EndToken { id, text, sources: vec![source] });
            }
        }
    }

    /// Whether anything beside the tokenizer's EOS names any.
    pub(crate) fn is_stated(&self) -> bool {
        !self.unknown.is_empty() || self.tokens.iter().any(|token| token.sources != [TOKENIZER])
    }

    /// The ids, the tokenizer's first.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        if self.tokens.is_empty() {
            return "none".to_owned();
        }
        let token = |token: &EndToken| {
            format!("{} `{}` ({})", token.id, token.text.escape_debug(), token.sources.join(", "))
        };
        self.tokens.iter().map(token).collect::<Vec<_>>().join("; ")
    }

    /// What is odd about them.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for id in &self.unknown {
            warnings.push(format!(
                "`{EOS_TOKEN_ID}` {id} of `{GENERATION_CONFIG}` is not in the tokenizer's vocabulary of {} and ends nothing",
                self.vocab_size
            ));
        }
        let has = |source| self.tokens.iter().any(|token| token.sources.contains(&source));
        let own = self.tokens.iter().find(|token| token.sources == [TOKENIZER]);
        if let Some(own) = own.filter(|_| has(GENERATION_CONFIG)) {
            warnings.push(format!(
                "the tokenizer's EOS `{}` ({}) is not among the `{EOS_TOKEN_ID}` of `{GENERATION_CONFIG}`; both end a response",
                own.text, own.id
            ));
        }
        warnings
    }
}

/// The token behind an answer in a rendered conversation, unless that is where the next turn begins.
///
/// A template that refuses the conversation or writes no answer out says nothing of ends. Nor does one where an answer has
/// special tokens in front that the prompt lacks: gpt-oss writes several messages an answer, each with an end of its own.
fn turn_end(template: &ChatTemplate, tokenizer: &dyn Tokenizer) -> Option<u32> {
    const TEXTS: [(&str, &str); 3] =
        [("user", "first question"), ("assistant", "only answer"), ("user", "second question")];
    let message = |(role, text): (&str, &str)| {
        let entries = [("role", role), ("content", text)];
        let entries = entries.map(|(key, value)| (key.to_owned(), Json::from(value)));
        Json::Object(entries.into_iter().collect::<JsonObject>())
    };
    let record = |texts: &[(&str, &str)]| MessagesRecord {
        messages: texts.iter().copied().map(message).collect(),
        ..MessagesRecord::default()
    };
    let [(_, question), (_, answer), (_, next)] = TEXTS;
    let prompt = template.prompt_text(&record(&TEXTS[..1])).ok()?;
    let prompt_header = prompt.split_once(question)?.1;
    let text = template.conversation_text(&record(&TEXTS)).ok()?;
    let (before, rest) = text.split_once(question)?;
    let (header, rest) = rest.split_once(answer)?;
    let after = rest.split_once(next)?.0;
    let bos = tokenizer.special().bos;
    let mut before = tokenizer.encode_rendered(before).ok()?.into_iter();
    let begins_turn = before.find(|&id| Some(id) != bos && tokenizer.is_special(id));
    let begins_message = |text: &str| {
        let ids = tokenizer.encode_rendered(text).unwrap_or_default();
        ids.into_iter().any(|id| tokenizer.is_special(id) && Some(id) != begins_turn)
    };
    let is_other_message =
        header.strip_prefix(prompt_header).map_or(!prompt_header.starts_with(header), begins_message);
    if is_other_message {
        return None;
    }
    turn_end_token(tokenizer, after, begins_turn).ok()?
}

/// Whether the checkpoint has a file that names end tokens.
pub(crate) fn is_stated_by(checkpoint: &Checkpoint) -> bool {
    checkpoint.artifact_names().iter().any(|name| name.ends_with(GENERATION_CONFIG))
}

/// `eos_token_id` of the checkpoint's `generation_config.json`, one id or a list.
fn stated_ids(checkpoint: &Checkpoint) -> Result<Vec<u64>, String> {
    let names = checkpoint.artifact_names();
    let is_config = |name: &&&str| name.ends_with(GENERATION_CONFIG);
    let Some(name) = names.iter().find(is_config) else { return Ok(Vec::new()) };
    let bytes = checkpoint.artifact(name).map_err(|error| error.to_string())?;
    ids_of(&bytes)
}

fn ids_of(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let ids = match document.get(EOS_TOKEN_ID) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(Value::as_u64).collect(),
        Some(id) => id.as_u64().map(|id| vec![id]),
    };
    ids.ok_or_else(|| {
        format!("`{EOS_TOKEN_ID}` is {}, expected an id or a list of ids", document[EOS_TOKEN_ID])
    })
}

#[cfg(test)]
mod tests {
    use data::{DataError, SpecialTokens};

    use super::*;

    struct Letters(SpecialTokens);

    impl Tokenizer for Letters {
        fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
            Ok(text.bytes().map(u32::from).collect())
        }

        fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
            Ok(ids.iter().map(|&id| char::from(id as u8)).collect())
        }

        fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
            let byte = u8::try_from(id).ok().filter(u8::is_ascii);
            byte.map(|byte| vec![byte]).ok_or(DataError::UnknownTokenId { id, vocab_size: 128 })
        }

        fn vocab_size(&self) -> usize {
            128
        }

        fn special(&self) -> &SpecialTokens {
            &self.0
        }
    }

    #[test]
    fn all_sources_count_once() {
        let tokenizer = Letters(SpecialTokens { eos: Some(97), ..SpecialTokens::default() });
        let end = EndTokens::new(&tokenizer, &[98, 97, 98, 300]);
        assert_eq!(end.ids(), [97, 98]);
        insta::assert_snapshot!(end.line(), @"97 `a` (tokenizer, generation_config.json); 98 `b` (generation_config.json)");
        insta::assert_snapshot!(end.warnings().join("\n"), @"`eos_token_id` 300 of `generation_config.json` is not in the tokenizer's vocabulary of 128 and ends nothing");
        let end = EndTokens::new(&tokenizer, &[98]);
        insta::assert_snapshot!(end.warnings().join("\n"), @"the tokenizer's EOS `a` (97) is not among the `eos_token_id` of `generation_config.json`; both end a response");
        assert_eq!(EndTokens::new(&Letters(SpecialTokens::default()), &[]).line(), "none");
    }

    #[test]
    fn ids_are_one_or_a_list() {
        assert_eq!(ids_of(br#"{"eos_token_id": 5}"#).unwrap(), [5]);
        assert_eq!(ids_of(br#"{"eos_token_id": [5, 6]}"#).unwrap(), [5, 6]);
        assert_eq!(ids_of(br#"{"eos_token_id": null}"#).unwrap(), [0_u64; 0]);
        assert_eq!(ids_of(br#"{}"#).unwrap(), [0_u64; 0]);
        insta::assert_snapshot!(ids_of(br#"{"eos_token_id": "x"}"#).unwrap_err(), @r#"`eos_token_id` is "x", expected an id or a list of ids"#);
    }
}
