//! All prompts of a data file: every record is checked before a model is loaded.
//!
//! Over-length prompts are left out, bad records refused or skipped, both with their line numbers. Only the place of a
//! line, the length of its prompt and what is known for the order of work are kept, 32 bytes a record and 4 for a hint: a
//! prompt is made again when its turn comes, which takes next to no time beside generating. `plan` decides which prompts
//! form a step.

mod load;

use std::num::NonZero;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::chat::PromptNote;
use crate::json::JsonObject;
use crate::jsonl::parse_object;
use crate::likeness::Likeness;
use crate::limits::{LengthLimits, TokenField};
use crate::line_store::{LineSpan, LineStore};
use crate::prepare::{BuiltPrompt, InputOfSample, PreparedPrompt, PromptBuilder};
use crate::record_error::RecordError;
use crate::row_params::RowParams;
use crate::sample_order::sample_order;

pub use load::{load_all_prompts, load_prompts};

/// More than any hint.
const NO_HINT: u32 = u32::MAX;
/// In the place of a number of tokens: the record is bad and kept.
const BAD: u32 = u32::MAX;
/// The same: its prompt is too long.
const TOO_LONG: u32 = u32::MAX - 1;
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
    /// The record becomes a row without responses that says what is wrong.
    Keep,
}

/// `model.data.train_ds.on_overlength`, for prompts that are longer than a limit. The builder cuts them where that is asked
/// for, so that none is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOverlength {
    /// The record is counted and left out.
    #[default]
    Drop,
    /// The record becomes a row without responses that says how long its prompt is.
    Keep,
}

/// What becomes of records that cannot be generated from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnUnusable {
    /// Of bad ones.
    pub bad: OnBadRecord,
    /// Of those whose prompts are too long.
    pub too_long: OnOverlength,
}

impl From<OnBadRecord> for OnUnusable {
    fn from(bad: OnBadRecord) -> Self {
        Self { bad, too_long: OnOverlength::default() }
    }
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its line, from 1, and the file where there are several.
    pub place: String,
    /// What is wrong with it.
    pub reason: RecordError,
}

/// A record that is used.
#[derive(Clone, Copy, Debug)]
struct KeptRecord {
    line: u64,
    offset_bytes: u64,
    len_bytes: u32,
    /// Of its prompt; [`BAD`] or [`TOO_LONG`] where there is nothing to generate from.
    num_tokens: u32,
}

impl KeptRecord {
    fn is_usable(&self) -> bool {
        self.num_tokens < TOO_LONG
    }
}

/// One of the data files, in the order in which they are read.
struct DataFile {
    store: LineStore,
    /// Lines of the files before it.
    lines_before: u64,
}

/// All prompts of the data files, which stay on disk. Lines are counted over all of them. A position counts the prompts in the order in which they are generated.
pub struct PromptSet {
    kept: Vec<KeptRecord>,
    /// What each of them is like.
    alike: Vec<Likeness>,
    /// How long its answer is likely to be, where hints are read.
    hints: Vec<u32>,
    /// How much each of them asks for, where records may say so.
    demands: Vec<RowDemand>,
    files: Vec<DataFile>,
    builder: PromptBuilder,
    /// What prompts were left out for.
    limits: LengthLimits,
    /// What became of records that cannot be generated from.
    pub on_unusable: OnUnusable,
    /// Those that are kept.
    num_unusable: usize,
    /// Positions to records, where samples are drawn; `kept` itself otherwise.
    drawn: Option<Vec<u32>>,
    /// Records read, bad and over-length ones counted.
    pub num_read: u64,
    /// Records that are bad, skipped or kept.
    pub num_bad: u64,
    /// The first of them.
    pub bad: Vec<BadRecord>,
    /// Prompts that are too long, left out or kept: line and number of tokens.
    pub too_long: Vec<(u64, usize)>,
    /// Records that there is a note about.
    pub num_noted: u64,
    /// Prompts that were cut to the limit: how many, and the first line with its number of tokens.
    pub num_cut: u64,
    /// The first of them: its line, and how many tokens it had.
    pub first_cut: Option<(u64, usize)>,
    /// Whether some of them have structures of their own.
    pub has_structures: bool,
    /// The first note, with its line.
    pub note: Option<(u64, PromptNote)>,
    /// BLAKE3 of the file as it lies on disk, in hexadecimal digits; of several files, that of theirs.
    pub fingerprint: String,
}

/// How much a row asks for, as far as it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowDemand {
    /// Most new tokens of a response.
    pub max_length: Option<NonZero<u32>>,
    /// Responses.
    pub num_responses: Option<NonZero<u32>>,
}

impl RowDemand {
    fn of(row: &RowParams) -> Self {
        let of = |count: Option<u32>| count.and_then(NonZero::new);
        Self { max_length: of(row.max_length), num_responses: of(row.num_responses) }
    }
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptText {
    /// Its record number in the file, from 0, bad and over-length records counted.
    pub index: u64,
    /// The prompt.
    pub text: String,
    /// The record's other keys, as far as they are kept.
    pub metadata: JsonObject,
    /// How many tokens the prompt has; 0 where there is nothing to generate from.
    pub num_tokens: usize,
    /// What the output gives back of the record.
    pub input: InputOfSample,
    /// Why there is nothing to generate from, where that is so. The text is then empty unless there is one.
    pub error: Option<String>,
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
        let path = &self.names();
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

    /// How many tokens a prompt has; none where there is nothing to generate from.
    pub fn num_tokens(&self, position: usize) -> Option<usize> {
        let record = self.record(position).filter(|record| record.is_usable());
        record.map(|record| record.num_tokens as usize)
    }

    /// Whether the row at a position is one without responses, because its record is bad or too long.
    pub fn is_unusable(&self, position: usize) -> bool {
        self.record(position).is_some_and(|record| !record.is_usable())
    }

    /// How many such rows there are among those to generate.
    pub fn num_unusable(&self) -> usize {
        match &self.drawn {
            Some(_) if self.num_unusable > 0 => {
                (0..self.len()).filter(|&position| self.is_unusable(position)).count()
            }
            _ => self.num_unusable,
        }
    }

    /// What the random numbers of a position are keyed by.
    pub fn sample_idx(&self, position: usize) -> Option<u64> {
        let record = self.record(position)?;
        Some(if self.drawn.is_some() { position as u64 } else { record.line - 1 })
    }

    /// How much a prompt's row asks for.
    pub fn row_demand(&self, position: usize) -> RowDemand {
        let demand = self.record_idx(position).and_then(|idx| self.demands.get(idx));
        demand.copied().unwrap_or_default()
    }

    /// What is known of the work that a prompt will be.
    pub fn outlook(&self, position: usize) -> Option<PromptOutlook> {
        let idx = self.record_idx(position)?;
        let (record, alike) = (self.kept.get(idx)?, self.alike.get(idx)?);
        if !record.is_usable() {
            return None;
        }
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
        let changed = || self.changed(record.line);
        let built = self.object(record)?.and_then(|object| self.builder.build(object));
        let BuiltPrompt { text, ids, metadata, row, cut_from: _, note: _ } = built.map_err(|_| changed())?;
        if ids.len() != record.num_tokens as usize {
            return Err(changed());
        }
        let index = record.line - 1;
        let sample_idx = if self.drawn.is_some() { position as u64 } else { index };
        Ok(PreparedPrompt { line: record.line, index, sample_idx, text, ids, metadata, row })
    }

    /// The text of the prompt at a position. It is tokenized only where fields of over-long records are cut.
    ///
    /// # Errors
    /// When there is none, the file cannot be read, or is no longer what it was.
    pub fn text(&self, position: usize) -> Result<PromptText, DataError> {
        let record = self.record(position).ok_or(DataError::NoSamples)?;
        let changed = |_| self.changed(record.line);
        let index = record.line - 1;
        let object = match self.object(record)? {
            Err(reason) if record.num_tokens == BAD => {
                return Ok(PromptText { index, error: Some(reason.to_string()), ..PromptText::default() });
            }
            object => object.map_err(changed)?,
        };
        if record.num_tokens == BAD {
            let problem = self.problem(object.clone()).ok_or_else(|| self.changed(record.line))?;
            let input = self.builder.kept_input(object, "");
            return Ok(PromptText {
                index,
                input,
                error: Some(problem.to_string()),
                ..PromptText::default()
            });
        }
        let (text, metadata) = self.builder.build_text(object.clone()).map_err(changed)?;
        let error = match record.num_tokens {
            TOO_LONG => Some(self.length_problem(object.clone()).map_err(changed)?),
            _ => None,
        };
        let input = self.builder.kept_input(object, &text);
        let num_tokens = if record.is_usable() { record.num_tokens as usize } else { 0 };
        Ok(PromptText { index, text, metadata, num_tokens, input, error })
    }

    /// What is wrong with a bad record.
    fn problem(&self, object: JsonObject) -> Option<RecordError> {
        let hint = self.builder.length_hint(&object);
        hint.err().or_else(|| self.builder.build_measured(object, &[]).err())
    }

    /// How long a prompt is that is too long.
    fn length_problem(&self, object: JsonObject) -> Result<String, RecordError> {
        let fields: Vec<TokenField> = self.limits.fields.iter().map(|&(field, _)| field).collect();
        let (prompt, num_tokens) = self.builder.build_measured(object, &fields)?;
        let num_tokens = self.limits.exceeded(prompt.ids.len(), &num_tokens).unwrap_or(prompt.ids.len());
        Ok(format!("{num_tokens} tokens are more than {} allows", self.limits))
    }

    /// The file that a line is in, and its number there.
    fn file_of(&self, line: u64) -> Option<(&DataFile, u64)> {
        let idx = self.files.partition_point(|file| file.lines_before < line).checked_sub(1)?;
        let file = self.files.get(idx)?;
        Some((file, line - file.lines_before))
    }

    fn changed(&self, line: u64) -> DataError {
        match self.file_of(line) {
            Some((file, line)) => file.store.changed(line),
            None => DataError::NoSamples,
        }
    }

    /// A line as messages call it: its number, and the file where there are several.
    pub fn place(&self, line: u64) -> String {
        match self.file_of(line) {
            Some((file, line)) if self.files.len() > 1 => place_in(file.store.path(), line),
            _ => line.to_string(),
        }
    }

    /// The files as messages call them.
    fn names(&self) -> PathBuf {
        names_of(self.files.iter().map(|file| file.store.path()))
    }

    fn object(&self, record: &KeptRecord) -> Result<Result<JsonObject, RecordError>, DataError> {
        let KeptRecord { line, offset_bytes, len_bytes, .. } = *record;
        let (file, line) = self.file_of(line).ok_or(DataError::NoSamples)?;
        let bytes = file.store.read(LineSpan { line, offset_bytes, len_bytes: len_bytes as usize })?;
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

fn place_in(path: &Path, line: u64) -> String {
    format!("{line} of `{}`", path.display())
}

/// Files as they stand in a message, between backticks.
fn names_of<'a>(paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join("`, `").into()
}

fn list_bad(bad: &[BadRecord], num_bad: u64) -> String {
    let listed = bad.iter().map(|record| format!("  line {}: {}", record.place, record.reason));
    let num_more = num_bad - bad.len() as u64;
    let more = (num_more > 0).then(|| format!("  and {num_more} more"));
    listed.chain(more).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
