//! A `generations.jsonl` without a manifest: one that the original software wrote, or whose manifest is gone.
//!
//! Its last step counts only when as many lines are there as `consumed_samples` says. What settings it was written with
//! is not known, which is said.

use std::io::BufRead;
use std::path::Path;

use super::OutputError;
use super::resume::{LinePosition, ResumePoint};

/// Finds the last step that is complete. Within a step all lines carry the count at the step's end, so a step is
/// complete when it has as many lines as the count grew by.
pub(super) fn scan_legacy(jsonl: &Path, mut reader: impl BufRead) -> Result<ResumePoint, OutputError> {
    let mut line = Vec::new();
    let (mut line_number, mut offset_bytes) = (0_u64, 0_u64);
    // The step being read, and everything before it.
    let mut current = ResumePoint::default();
    let mut num_lines_in_step = 0_u64;
    let mut before = ResumePoint::default();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(OutputError::io("read", jsonl))?;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        line_number += 1;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let record = LinePosition::read(text).map_err(|reason| OutputError::BadLegacyLine {
            path: jsonl.to_owned(),
            line: line_number,
            reason,
        })?;
        let is_next = record.step > current.step && record.consumed_samples > current.consumed_samples;
        let is_same = record.step == current.step && record.consumed_samples == current.consumed_samples;
        let follows = is_next || (is_same && line_number > 1);
        if !follows {
            return Err(OutputError::UnorderedLegacyLine { path: jsonl.to_owned(), line: line_number });
        }
        if is_next {
            before = current;
            num_lines_in_step = 0;
        }
        offset_bytes += read as u64;
        num_lines_in_step += 1;
        current = ResumePoint {
            step: record.step,
            consumed_samples: record.consumed_samples,
            committed_bytes: offset_bytes,
        };
    }
    let complete = before.consumed_samples + num_lines_in_step == current.consumed_samples;
    let found = if complete { current } else { before };
    if found.step > 0 {
        tracing::warn!(
            "`{}` has no manifest: it is continued after step {} ({} samples), but that it was written with these settings \
             and this data cannot be checked",
            jsonl.display(),
            found.step,
            found.consumed_samples
        );
    }
    Ok(found)
}
