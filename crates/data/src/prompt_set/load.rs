//! Reading a data file, or several: every record is checked, and what is known of its prompt is kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{
    BAD, BadRecord, DataFile, KeptRecord, MAX_LISTED, NO_HINT, OnBadRecord, OnOverlength, OnUnusable,
    PromptSet, RowDemand, TOO_LONG, list_bad, names_of, place_in,
};
use crate::DataError;
use crate::chat::PromptNote;
use crate::columns::Columns;
use crate::json::JsonObject;
use crate::jsonl::OpenedData;
use crate::likeness::{Hashes, find_alike};
use crate::limits::{LengthLimits, TokenField};
use crate::line_store::LineSpan;
use crate::prepare::PromptBuilder;
use crate::record_error::RecordError;

/// Reads, checks and tokenizes a whole data file, in parallel.
///
/// # Errors
/// When the file cannot be read, has bad records and `on_bad` refuses them, or needs a chat template that cannot be used.
pub fn load_prompts(
    path: &Path,
    builder: PromptBuilder,
    limits: &LengthLimits,
    on_unusable: impl Into<OnUnusable>,
) -> Result<PromptSet, DataError> {
    load_all_prompts(&[path.to_owned()], builder, limits, on_unusable, &|| {})
}

/// The same for several files, one after the other. `seen` is called for each record, by several threads.
///
/// # Errors
/// As [`load_prompts`].
pub fn load_all_prompts(
    paths: &[PathBuf],
    builder: PromptBuilder,
    limits: &LengthLimits,
    on_unusable: impl Into<OnUnusable>,
    seen: &(dyn Fn() + Sync),
) -> Result<PromptSet, DataError> {
    let fields: Vec<TokenField> = limits.fields.iter().map(|&(field, _)| field).collect();
    let on_unusable = on_unusable.into();
    let columns = Columns::new(&builder.input().columns);
    let prepare = |line, object: Result<JsonObject, RecordError>| {
        seen();
        match object {
            Ok(object) => {
                let custom_id = builder.custom_id(&object).map(str::to_owned);
                columns.see(line, &object);
                (custom_id, prepared(&builder, (limits, &fields), object))
            }
            Err(reason) => (None, Err(reason)),
        }
    };
    let mut found = Found {
        has_length_hints: builder.has_length_hints(),
        has_demands: builder.reads_row_params(),
        on_unusable,
        has_several_files: paths.len() > 1,
        ..Found::default()
    };
    let (files, fingerprint) = found.read(paths, &prepare)?;
    let path = &names_of(paths.iter().map(PathBuf::as_path));
    columns.check(path)?;
    if on_unusable.bad == OnBadRecord::Refuse && found.num_bad > 0 {
        return Err(DataError::BadRecords {
            path: path.into(),
            num_bad: found.num_bad,
            num_read: found.num_read,
            listed: list_bad(&found.bad, found.num_bad),
        });
    }
    let Found { mut kept, hashes, mut hints, mut demands, num_unusable, num_read, num_bad, bad, .. } = found;
    let Found { too_long, num_cut, first_cut, num_noted, has_structures, note, .. } = found;
    kept.shrink_to_fit();
    hints.shrink_to_fit();
    demands.shrink_to_fit();
    let alike = find_alike(&hashes);
    let limits = limits.clone();
    Ok(PromptSet {
        kept,
        alike,
        hints,
        demands,
        files,
        builder,
        limits,
        on_unusable,
        num_unusable,
        drawn: None,
        num_read,
        num_bad,
        bad,
        too_long,
        num_cut,
        first_cut,
        num_noted,
        has_structures,
        note,
        fingerprint,
    })
}

/// What there is to keep of a record.
fn prepared(
    builder: &PromptBuilder,
    (limits, fields): (&LengthLimits, &[TokenField]),
    object: JsonObject,
) -> Result<Prepared, RecordError> {
    let length_hint = builder.length_hint(&object)?;
    let (prompt, num_tokens) = builder.build_measured(object, fields)?;
    Ok(match limits.exceeded(prompt.ids.len(), &num_tokens) {
        Some(num_tokens) => Prepared::TooLong(num_tokens),
        None => Prepared::Kept(KeptPrompt {
            num_tokens: prompt.ids.len(),
            hashes: Hashes::of(&prompt.ids),
            length_hint,
            demand: RowDemand::of(&prompt.row),
            has_structure: prompt.row.structured_outputs.is_some(),
            cut_from: prompt.cut_from,
            note: prompt.note,
        }),
    })
}

/// What a record turned out to be, with the name of a request.
type Named = (Option<String>, Result<Prepared, RecordError>);

enum Prepared {
    Kept(KeptPrompt),
    /// With how many tokens.
    TooLong(usize),
}

struct KeptPrompt {
    num_tokens: usize,
    hashes: Hashes,
    length_hint: Option<u32>,
    demand: RowDemand,
    has_structure: bool,
    cut_from: Option<usize>,
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
    has_demands: bool,
    demands: Vec<RowDemand>,
    on_unusable: OnUnusable,
    has_several_files: bool,
    /// Of the files before the one that is read.
    lines_before: u64,
    /// Over all files.
    last_line: u64,
    num_unusable: usize,
    num_cut: u64,
    first_cut: Option<(u64, usize)>,
    num_read: u64,
    num_bad: u64,
    bad: Vec<BadRecord>,
    too_long: Vec<(u64, usize)>,
    num_noted: u64,
    has_structures: bool,
    note: Option<(u64, PromptNote)>,
    /// The line of each request, by a hash of its name.
    custom_ids: HashMap<[u8; 16], u64>,
}

impl Found {
    /// Reads the files one after the other. Gives them back with a fingerprint of all.
    fn read(
        &mut self,
        paths: &[PathBuf],
        prepare: &(impl Fn(u64, Result<JsonObject, RecordError>) -> Named + Sync),
    ) -> Result<(Vec<DataFile>, String), DataError> {
        let (mut files, mut fingerprints) =
            (Vec::with_capacity(paths.len()), Vec::with_capacity(paths.len()));
        for path in paths {
            let OpenedData { reader, store, hash } = OpenedData::open(path)?;
            let lines_before = self.last_line;
            self.lines_before = lines_before;
            reader.for_each(prepare, |span, prepared| self.add(path, span, prepared))?;
            fingerprints.push(hash.finish().map_err(|source| DataError::ReadDataFile {
                path: path.clone(),
                line: self.last_line - lines_before,
                source,
            })?);
            files.push(DataFile { store, lines_before });
        }
        let fingerprint = match fingerprints.as_slice() {
            [one] => one.clone(),
            several => blake3::hash(several.join("\n").as_bytes()).to_hex().to_string(),
        };
        Ok((files, fingerprint))
    }

    fn add(&mut self, path: &Path, span: LineSpan, (custom_id, prepared): Named) -> Result<(), DataError> {
        self.num_read += 1;
        let line = self.lines_before + span.line;
        self.last_line = line;
        self.check_custom_id(path, span.line, custom_id)?;
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
                    let place = match self.has_several_files {
                        true => place_in(path, span.line),
                        false => span.line.to_string(),
                    };
                    self.bad.push(BadRecord { place, reason });
                }
                if self.on_unusable.bad == OnBadRecord::Keep {
                    self.keep_unusable(path, span, BAD)?;
                }
            }
            Ok(Prepared::TooLong(num_tokens)) => {
                self.too_long.push((line, num_tokens));
                if self.on_unusable.too_long == OnOverlength::Keep {
                    self.keep_unusable(path, span, TOO_LONG)?;
                }
            }
            Ok(Prepared::Kept(kept)) => {
                let KeptPrompt { num_tokens, hashes, length_hint, demand, has_structure, cut_from, note } =
                    kept;
                self.has_structures |= has_structure;
                if let Some(cut_from) = cut_from {
                    self.num_cut += 1;
                    self.first_cut.get_or_insert((line, cut_from));
                }
                if let Some(note) = note {
                    self.num_noted += 1;
                    self.note.get_or_insert((line, note));
                }
                self.hashes.push(hashes);
                if self.has_length_hints {
                    self.hints.push(length_hint.unwrap_or(NO_HINT));
                }
                if self.has_demands {
                    self.demands.push(demand);
                }
                let num_tokens = u32::try_from(num_tokens).ok().filter(|&num_tokens| num_tokens < TOO_LONG);
                self.keep(path, span, num_tokens)?;
            }
        }
        Ok(())
    }

    fn check_custom_id(
        &mut self,
        path: &Path,
        line: u64,
        custom_id: Option<String>,
    ) -> Result<(), DataError> {
        let Some(custom_id) = custom_id else { return Ok(()) };
        let mut hash = [0; 16];
        blake3::Hasher::new().update(custom_id.as_bytes()).finalize_xof().fill(&mut hash);
        match self.custom_ids.insert(hash, self.lines_before + line) {
            None => Ok(()),
            Some(first) => Err(DataError::SameCustomId { path: path.into(), line, first, custom_id }),
        }
    }

    /// Keeps a record that there is nothing to generate from. It is like no other.
    fn keep_unusable(&mut self, path: &Path, span: LineSpan, kind: u32) -> Result<(), DataError> {
        self.num_unusable += 1;
        self.hashes.push(Hashes::of(&[]));
        if self.has_length_hints {
            self.hints.push(NO_HINT);
        }
        if self.has_demands {
            self.demands.push(RowDemand::default());
        }
        self.keep(path, span, Some(kind))
    }

    fn keep(&mut self, path: &Path, span: LineSpan, num_tokens: Option<u32>) -> Result<(), DataError> {
        let LineSpan { line, offset_bytes, len_bytes } = span;
        match (u32::try_from(len_bytes), num_tokens) {
            (Ok(len_bytes), Some(num_tokens)) => {
                let line = self.lines_before + line;
                self.kept.push(KeptRecord { line, offset_bytes, len_bytes, num_tokens });
                Ok(())
            }
            _ => Err(DataError::LineTooLarge { path: path.into(), line }),
        }
    }
}
