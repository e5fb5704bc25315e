//! From a data file to tokenized prompts: every record is checked before a model is loaded.
//!
//! Over-length prompts are left out, bad records refused or skipped, both with their line numbers. Which prompts form a
//! step is the matter of `plan`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::DataError;
use crate::chat::{ChatPromptTokens, PromptNote};
use crate::chat_template::ChatTemplate;
use crate::jsonl::JsonlReader;
use crate::record::{Record, RecordError};
use crate::tokenizer::Tokenizer;

/// How many bad lines an error lists.
const MAX_LISTED: usize = 10;

/// A prompt ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedPrompt {
    /// Its line in the file, from 1.
    pub line: u64,
    /// Its record number in the file, from 0, bad and over-length records counted.
    pub index: u64,
    /// The prompt as text.
    pub text: String,
    /// The prompt as token ids.
    pub ids: Vec<u32>,
    /// The record's other keys.
    pub metadata: Map<String, Value>,
}

/// Records to token ids.
pub struct PromptBuilder {
    tokenizer: Arc<dyn Tokenizer>,
    chat_tokens: ChatPromptTokens,
    template: Option<ChatTemplate>,
    bos: Option<u32>,
}

impl PromptBuilder {
    /// A builder for chat records.
    pub fn new(tokenizer: Arc<dyn Tokenizer>, chat_tokens: ChatPromptTokens) -> Self {
        Self { tokenizer, chat_tokens, template: None, bos: None }
    }

    /// Accepts `messages` records too.
    #[must_use]
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = Some(template);
        self
    }

    /// Puts the tokenizer's BOS before each prompt that does not begin with it.
    ///
    /// # Errors
    /// When the tokenizer has no BOS.
    pub fn with_bos(mut self) -> Result<Self, DataError> {
        self.bos = Some(self.tokenizer.special().bos.ok_or(DataError::NoBosToken)?);
        Ok(self)
    }

    /// The prompt of one record: text, ids and what the user should know.
    ///
    /// # Errors
    /// When the record makes no prompt.
    pub fn build(&self, record: &Record) -> Result<(String, Vec<u32>, Option<PromptNote>), RecordError> {
        let (text, note) = match record {
            Record::Chat(record) => self.chat_tokens.prompt_text(record)?,
            Record::Messages(record) => {
                let template = self.template.as_ref().ok_or(RecordError::NoChatTemplate)?;
                (template.prompt_text(record)?, None)
            }
        };
        let encoded = self.tokenizer.encode(&text);
        let mut ids = encoded.map_err(|error| RecordError::Tokenize { reason: error.to_string() })?;
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.is_empty() {
            return Err(RecordError::EmptyPrompt);
        }
        Ok((text, ids, note))
    }
}

/// The most tokens a prompt may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LengthLimits {
    /// `model.data.train_ds.max_seq_length`.
    pub max_seq_length: Option<usize>,
    /// `trainer.generation.trt_llm.max_input_len`, with the fast engine.
    pub max_input_len: Option<usize>,
}

impl LengthLimits {
    fn admits(self, num_tokens: usize) -> bool {
        [self.max_seq_length, self.max_input_len].into_iter().flatten().all(|limit| num_tokens <= limit)
    }
}

/// `model.data.train_ds.on_bad_record`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadRecord {
    /// The run does not start.
    #[default]
    Refuse,
    /// The record is counted and left out.
    Skip,
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: RecordError,
}

/// All prompts of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptSet {
    /// The prompts kept, in the order of the file.
    pub prompts: Vec<PreparedPrompt>,
    /// Records read, bad and over-length ones counted.
    pub num_read: u64,
    /// Records skipped because they are bad.
    pub bad: Vec<BadRecord>,
    /// Prompts left out for their length: line and number of tokens.
    pub too_long: Vec<(u64, usize)>,
    /// What the user should know, with the line.
    pub notes: Vec<(u64, PromptNote)>,
}

/// Reads, checks and tokenizes a whole data file, in parallel.
///
/// # Errors
/// When the file cannot be read, or has bad records and `on_bad` refuses them.
pub fn load_prompts(
    path: &Path,
    builder: &PromptBuilder,
    limits: LengthLimits,
    on_bad: OnBadRecord,
) -> Result<PromptSet, DataError> {
    let mut set = PromptSet::default();
    let prepare = |line, object: Result<Map<String, Value>, RecordError>| {
        let record = Record::from_object(object?)?;
        let (text, ids, note) = builder.build(&record)?;
        let metadata = match record {
            Record::Chat(record) => record.metadata,
            Record::Messages(record) => record.metadata,
        };
        Ok((PreparedPrompt { line, index: 0, text, ids, metadata }, note))
    };
    JsonlReader::open(path)?.for_each(prepare, |line, prepared: Result<_, RecordError>| {
        let index = set.num_read;
        set.num_read += 1;
        match prepared {
            Err(reason) => set.bad.push(BadRecord { line, reason }),
            Ok((prompt, _)) if !limits.admits(prompt.ids.len()) => {
                set.too_long.push((line, prompt.ids.len()));
            }
            Ok((prompt, note)) => {
                set.notes.extend(note.map(|note| (line, note)));
                set.prompts.push(PreparedPrompt { index, ..prompt });
            }
        }
        Ok(())
    })?;
    if on_bad == OnBadRecord::Refuse && !set.bad.is_empty() {
        return Err(DataError::BadRecords {
            path: path.into(),
            num_bad: set.bad.len() as u64,
            num_read: set.num_read,
            listed: list_bad(&set.bad),
        });
    }
    Ok(set)
}

fn list_bad(bad: &[BadRecord]) -> String {
    let listed =
        bad.iter().take(MAX_LISTED).map(|record| format!("  line {}: {}", record.line, record.reason));
    let more = bad.len().checked_sub(MAX_LISTED + 1).map(|rest| format!("  and {} more", rest + 1));
    listed.chain(more).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::SpecialTokens;

    /// One id a byte, BOS 256.
    struct ByteTokenizer(SpecialTokens);

    impl Tokenizer for ByteTokenizer {
        fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
            Ok(text.bytes().map(u32::from).collect())
        }
        fn decode(&self, _: &[u32]) -> Result<String, DataError> {
            Ok(String::new())
        }
        fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
            Ok(vec![id as u8])
        }
        fn vocab_size(&self) -> usize {
            257
        }
        fn special(&self) -> &SpecialTokens {
            &self.0
        }
    }

    fn builder() -> PromptBuilder {
        let special = SpecialTokens { bos: Some(256), ..SpecialTokens::default() };
        PromptBuilder::new(Arc::new(ByteTokenizer(special)), ChatPromptTokens::default())
    }

    fn load(text: &str, limits: LengthLimits, on_bad: OnBadRecord) -> Result<PromptSet, DataError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        load_prompts(&path, &builder(), limits, on_bad)
    }

    fn line(question: &str) -> String {
        format!(
            "{{\"system\": \"\", \"id\": 1, \"conversations\": [{{\"from\": \"User\", \"value\": \"{question}\"}}]}}\n"
        )
    }

    #[test]
    fn bad_and_long_records_keep_the_numbering() {
        let text = [line("a"), "nonsense\n".into(), line(&"b".repeat(100)), line("c")].concat();
        let limits = LengthLimits { max_seq_length: Some(4096), max_input_len: Some(100) };
        let set = load(&text, limits, OnBadRecord::Skip).unwrap();
        assert_eq!(set.num_read, 4);
        assert_eq!(
            set.prompts.iter().map(|prompt| (prompt.line, prompt.index)).collect::<Vec<_>>(),
            [(1, 0), (4, 3)]
        );
        assert_eq!(set.too_long, [(3, 160)]);
        assert_eq!(set.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2]);
        assert_eq!(set.notes.len(), 2);
        assert_eq!(set.prompts[0].metadata.len(), 2);
    }

    #[test]
    fn refusal_lists_the_first_ten() {
        let text = [line("a"), "{}\n".repeat(6), "\n\n".into(), "[]\n{\n".repeat(3), line("a")].concat();
        let error = load(&text, LengthLimits::default(), OnBadRecord::Refuse).unwrap_err();
        let message = error.to_string();
        let (head, listed) = message.split_once('\n').unwrap();
        assert!(
            head.starts_with("14 of 16 records of `") && head.ends_with("data.jsonl` cannot be used:"),
            "{head}"
        );
        insta::assert_snapshot!(listed, @r"
          line 2: prompt-response records are not supported yet, `conversations` or `messages` is needed
          line 3: prompt-response records are not supported yet, `conversations` or `messages` is needed
          line 4: prompt-response records are not supported yet, `conversations` or `messages` is needed
          line 5: prompt-response records are not supported yet, `conversations` or `messages` is needed
          line 6: prompt-response records are not supported yet, `conversations` or `messages` is needed
          line 7: prompt-response records are not supported yet, `conversations` or `messages` is needed
          line 8: the line is blank
          line 9: the line is blank
          line 10: the line is a list, not an object
          line 11: not JSON at column 1: EOF while parsing an object
          and 4 more
        ");
    }

    #[test]
    fn bos_is_added_once() {
        let object = crate::jsonl::parse_object(line("a").as_bytes()).unwrap();
        let record = Record::from_object(object).unwrap();
        let (text, plain, _) = builder().build(&record).unwrap();
        let (same_text, ids, _) = builder().with_bos().unwrap().build(&record).unwrap();
        assert_eq!(text, same_text);
        assert_eq!(ids, [&[256], &plain[..]].concat());
    }

    #[test]
    fn messages_need_a_template() {
        let object =
            crate::jsonl::parse_object(br#"{"messages": [{"role": "user", "content": "x"}]}"#).unwrap();
        let record = Record::from_object(object).unwrap();
        assert_eq!(builder().build(&record).unwrap_err(), RecordError::NoChatTemplate);
        let template = ChatTemplate::new("{{ messages[0].content }}:", "", "").unwrap();
        assert_eq!(builder().with_template(template).build(&record).unwrap().0, "x:");
    }
}
