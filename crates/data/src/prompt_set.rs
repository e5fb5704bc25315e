//! All prompts of a data file: every record is checked before a model is loaded.
//!
//! Over-length prompts are left out, bad records refused or skipped, both with their line numbers. Only the place of a
//! line, the length of its prompt and what is known for the order of work are kept, 32 bytes a record and 4 for a hint: a
//! prompt is made again when its turn comes, which takes next to no time beside generating. `plan` decides which prompts
//! form a step.

use std::path::Path;

use crate::DataError;
use crate::chat::PromptNote;
use crate::json::JsonObject;
use crate::jsonl::{OpenedData, parse_object};
use crate::likeness::{Hashes, Likeness, find_alike};
use crate::limits::{LengthLimits, TokenField};
use crate::line_store::{LineSpan, LineStore};
use crate::prepare::{BuiltPrompt, PreparedPrompt, PromptBuilder};
use crate::record_error::RecordError;
use crate::sample_order::sample_order;

/// More than any hint.
const NO_HINT: u32 = u32::MAX;
/// How many bad lines are listed.
const MAX_LISTED: usize = 10;

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

/// A record that is used.
#[derive(Clone, Copy, Debug)]
struct KeptRecord {
    line: u64,
    offset_bytes: u64,
    len_bytes: u32,
    num_tokens: u32,
}

/// All prompts of a file, which stays on disk. A position counts the prompts in the order in which they are generated.
pub struct PromptSet {
    kept: Vec<KeptRecord>,
    /// What each of them is like.
    alike: Vec<Likeness>,
    /// How long its answer is likely to be, where hints are read.
    hints: Vec<u32>,
    store: LineStore,
    builder: PromptBuilder,
    /// The limits that prompts were left out for, as they are set.
    limits: String,
    /// Positions to records, where samples are drawn; `kept` itself otherwise.
    drawn: Option<Vec<u32>>,
    /// Records read, bad and over-length ones counted.
    pub num_read: u64,
    /// Records skipped because they are bad.
    pub num_bad: u64,
    /// The first of them.
    pub bad: Vec<BadRecord>,
    /// Prompts left out for their length: line and number of tokens.
    pub too_long: Vec<(u64, usize)>,
    /// Records that there is a note about.
    pub num_noted: u64,
    /// The first note, with its line.
    pub note: Option<(u64, PromptNote)>,
    /// BLAKE3 of the file as it lies on disk, in hexadecimal digits.
    pub fingerprint: String,
}

/// What is known of the work that a prompt will be, before it is computed. No text depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptOutlook {
    /// Tokens of the prompt.
    pub num_tokens: usize,
    /// Tokens that its answer is likely to have, as its record says.
    pub length_hint: Option<u32>,
    /// The same for all prompts that begin alike; none for one that begins as no other does.
    pub prefix: Option<u32>,
    /// The same for all prompts that are the same; none where there is one.
    pub same_as: Option<u32>,
}

/// A prompt as it is shown and written.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptText {
    /// Its record number in the file, from 0, bad and over-length records counted.
    pub index: u64,
    /// The prompt.
    pub text: String,
    /// The record's other keys, as far as they are kept.
    pub metadata: JsonObject,
}

impl PromptSet {
    /// How many prompts there are to generate from.
    pub fn len(&self) -> usize {
        self.drawn.as_ref().map_or(self.kept.len(), Vec::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fails when there is no prompt, with the reasons why records were left out.
    ///
    /// # Errors
    /// When the file holds no record, or all are bad or too long.
    pub fn check_any(&self) -> Result<(), DataError> {
        if !self.kept.is_empty() {
            return Ok(());
        }
        let path = self.store.path();
        if self.num_read == 0 {
            return Err(DataError::NoRecords { path: path.into() });
        }
        let of_all = format!("of {} records of `{}`", self.num_read, path.display());
        let bad = (self.num_bad > 0)
            .then(|| format!("{} {of_all} are bad:\n{}", self.num_bad, list_bad(&self.bad, self.num_bad)));
        let too_long = self.too_long.iter().map(|(_, num_tokens)| *num_tokens).min().map(|shortest| {
            let (num, limits) = (self.too_long.len(), &self.limits);
            format!(
                "{num} {of_all} are longer than {limits} allows; the shortest of them has {shortest} tokens"
            )
        });
        Err(DataError::NothingLeft { reasons: bad.into_iter().chain(too_long).collect() })
    }

    /// Draws this many samples in the shuffled order of `model.data.sample`, again and again from all records where
    /// there are too few.
    ///
    /// # Errors
    /// When there is nothing to draw from, or more than 2³² records.
    pub fn draw(mut self, num_samples: usize) -> Result<Self, DataError> {
        self.drawn = Some(sample_order(self.kept.len(), num_samples)?);
        Ok(self)
    }

    /// The line of a prompt in the file, from 1.
    pub fn line(&self, position: usize) -> Option<u64> {
        self.record(position).map(|kept| kept.line)
    }

    /// How many tokens a prompt has.
    pub fn num_tokens(&self, position: usize) -> Option<usize> {
        self.record(position).map(|kept| kept.num_tokens as usize)
    }

    /// What is known of the work that a prompt will be.
    pub fn outlook(&self, position: usize) -> Option<PromptOutlook> {
        let idx = self.record_idx(position)?;
        let (record, alike) = (self.kept.get(idx)?, self.alike.get(idx)?);
        Some(PromptOutlook {
            num_tokens: record.num_tokens as usize,
            length_hint: self.hints.get(idx).copied().filter(|&hint| hint != NO_HINT),
            prefix: alike.prefix(),
            // What is drawn may be drawn again.
            same_as: alike.same_as().or_else(|| self.drawn.as_ref().and(u32::try_from(idx).ok())),
        })
    }

    /// The position of the prompt with this `sample_idx`.
    pub fn position_of(&self, sample_idx: u64) -> Option<usize> {
        match &self.drawn {
            Some(drawn) => usize::try_from(sample_idx).ok().filter(|&position| position < drawn.len()),
            None => self.kept.binary_search_by_key(&sample_idx.checked_add(1)?, |kept| kept.line).ok(),
        }
    }

    /// Makes the prompt at a position.
    ///
    /// # Errors
    /// When there is none, the file cannot be read, or it has changed.
    pub fn load(&self, position: usize) -> Result<PreparedPrompt, DataError> {
        let record = self.record(position).ok_or(DataError::NoSamples)?;
        let changed = || self.store.changed(record.line);
        let built = self.object(record)?.and_then(|object| self.builder.build(object));
        let BuiltPrompt { text, ids, metadata, note: _ } = built.map_err(|_| changed())?;
        if ids.len() != record.num_tokens as usize {
            return Err(changed());
        }
        let index = record.line - 1;
        let sample_idx = if self.drawn.is_some() { position as u64 } else { index };
        Ok(PreparedPrompt { line: record.line, index, sample_idx, text, ids, metadata })
    }

    /// The text of the prompt at a position. It is tokenized only where fields of over-long records are cut.
    ///
    /// # Errors
    /// When there is none, the file cannot be read, or is no longer what it was.
    pub fn text(&self, position: usize) -> Result<PromptText, DataError> {
        let record = self.record(position).ok_or(DataError::NoSamples)?;
        let built = self.object(record)?.and_then(|object| self.builder.build_text(object));
        let (text, metadata) = built.map_err(|_| self.store.changed(record.line))?;
        Ok(PromptText { index: record.line - 1, text, metadata })
    }

    fn object(&self, record: &KeptRecord) -> Result<Result<JsonObject, RecordError>, DataError> {
        let KeptRecord { line, offset_bytes, len_bytes, .. } = *record;
        let bytes = self.store.read(LineSpan { line, offset_bytes, len_bytes: len_bytes as usize })?;
        Ok(parse_object(&bytes))
    }

    fn record(&self, position: usize) -> Option<&KeptRecord> {
        self.kept.get(self.record_idx(position)?)
    }

    fn record_idx(&self, position: usize) -> Option<usize> {
        match &self.drawn {
            Some(drawn) => drawn.get(position).map(|&idx| idx as usize),
            None => Some(position),
        }
    }
}

/// Reads, checks and tokenizes a whole data file, in parallel.
///
/// # Errors
/// When the file cannot be read, has bad records and `on_bad` refuses them, or needs a chat template that cannot be used.
pub fn load_prompts(
    path: &Path,
    builder: PromptBuilder,
    limits: &LengthLimits,
    on_bad: OnBadRecord,
) -> Result<PromptSet, DataError> {
    let fields: Vec<TokenField> = limits.fields.iter().map(|&(field, _)| field).collect();
    let prepare = |_, object: Result<JsonObject, RecordError>| {
        let object = object?;
        let length_hint = builder.length_hint(&object)?;
        let (prompt, num_tokens) = builder.build_measured(object, &fields)?;
        Ok(match limits.exceeded(prompt.ids.len(), &num_tokens) {
            Some(num_tokens) => Prepared::TooLong(num_tokens),
            None => Prepared::Kept(KeptPrompt {
                num_tokens: prompt.ids.len(),
                hashes: Hashes::of(&prompt.ids),
                length_hint,
                note: prompt.note,
            }),
        })
    };
    let OpenedData { reader, store, hash } = OpenedData::open(path)?;
    let mut found = Found { has_length_hints: builder.has_length_hints(), ..Found::default() };
    reader.for_each(prepare, |span, prepared| found.add(path, span, prepared))?;
    let fingerprint = hash.finish().map_err(|source| DataError::ReadDataFile {
        path: path.into(),
        line: found.num_read,
        source,
    })?;
    if on_bad == OnBadRecord::Refuse && found.num_bad > 0 {
        return Err(DataError::BadRecords {
            path: path.into(),
            num_bad: found.num_bad,
            num_read: found.num_read,
            listed: list_bad(&found.bad, found.num_bad),
        });
    }
    let Found { mut kept, hashes, mut hints, num_read, num_bad, bad, too_long, num_noted, note, .. } = found;
    kept.shrink_to_fit();
    hints.shrink_to_fit();
    let alike = find_alike(&hashes);
    let limits = limits.to_string();
    Ok(PromptSet {
        kept,
        alike,
        hints,
        store,
        builder,
        limits,
        drawn: None,
        num_read,
        num_bad,
        bad,
        too_long,
        num_noted,
        note,
        fingerprint,
    })
}

/// What a record turned out to be.
enum Prepared {
    Kept(KeptPrompt),
    /// With how many tokens.
    TooLong(usize),
}

struct KeptPrompt {
    num_tokens: usize,
    hashes: Hashes,
    length_hint: Option<u32>,
    note: Option<PromptNote>,
}

/// What a file turned out to hold.
#[derive(Default)]
struct Found {
    kept: Vec<KeptRecord>,
    hashes: Vec<Hashes>,
    has_length_hints: bool,
    /// One a prompt that is kept, where there are any.
    hints: Vec<u32>,
    num_read: u64,
    num_bad: u64,
    bad: Vec<BadRecord>,
    too_long: Vec<(u64, usize)>,
    num_noted: u64,
    note: Option<(u64, PromptNote)>,
}

impl Found {
    fn add(
        &mut self,
        path: &Path,
        span: LineSpan,
        prepared: Result<Prepared, RecordError>,
    ) -> Result<(), DataError> {
        self.num_read += 1;
        match prepared {
            // Not the fault of the record: to skip it would hide what is wrong.
            Err(RecordError::NoTemplateDate) => {
                return Err(DataError::NoTemplateDate { path: path.into(), line: span.line });
            }
            Err(RecordError::UnusableChatTemplate { reason }) => {
                return Err(DataError::UnusableChatTemplate { path: path.into(), line: span.line, reason });
            }
            Err(reason) => {
                self.num_bad += 1;
                if self.bad.len() < MAX_LISTED {
                    self.bad.push(BadRecord { line: span.line, reason });
                }
            }
            Ok(Prepared::TooLong(num_tokens)) => self.too_long.push((span.line, num_tokens)),
            Ok(Prepared::Kept(KeptPrompt { num_tokens, hashes, length_hint, note })) => {
                if let Some(note) = note {
                    self.num_noted += 1;
                    self.note.get_or_insert((span.line, note));
                }
                self.hashes.push(hashes);
                if self.has_length_hints {
                    self.hints.push(length_hint.unwrap_or(NO_HINT));
                }
                let too_large = |_| DataError::LineTooLarge { path: path.into(), line: span.line };
                self.kept.push(KeptRecord {
                    line: span.line,
                    offset_bytes: span.offset_bytes,
                    len_bytes: u32::try_from(span.len_bytes).map_err(too_large)?,
                    num_tokens: u32::try_from(num_tokens).map_err(too_large)?,
                });
            }
        }
        Ok(())
    }
}

fn list_bad(bad: &[BadRecord], num_bad: u64) -> String {
    let listed = bad.iter().map(|record| format!("  line {}: {}", record.line, record.reason));
    let num_more = num_bad - bad.len() as u64;
    let more = (num_more > 0).then(|| format!("  and {num_more} more"));
    listed.chain(more).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
