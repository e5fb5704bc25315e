//! `Checkpoint::verify`: every byte read, every checksum compared, every tensor's values looked at.
//!
//! torch's files are zips with a CRC-32 of each member; a torch_dist data file is a row of such files. Other containers
//! have no checksums, so that of them only what their structure says can be checked. A checksum of 0 is what
//! `torch.serialization.set_crc32_options(False)` leaves, and is counted apart.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use rayon::prelude::*;
use zip::ZipArchive;

use crate::archive::Archive;
use crate::pieced::PiecedSource;
use crate::{DType, FormatError, TensorSource};

/// What every zip member, and so a torch file, begins with.
const ZIP: &[u8] = b"PK\x03\x04";

/// What was read, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Checksums that were compared.
    pub num_checksums: u64,
    /// Members of torch files that were saved without one.
    pub num_without_checksum: u64,
    /// Tensors with values that are not finite, and how many of each.
    pub nonfinite: Vec<(String, u64)>,
}

/// A torch file, or a file that is none.
struct Span {
    member_idx: usize,
    range: Range<usize>,
}

/// Reads all. `progress` gets the bytes done and those there are in all, from several threads.
///
/// # Errors
/// At the first byte that contradicts a checksum or its container.
pub(crate) fn run(
    archive: &Archive,
    source: &PiecedSource,
    tensors: &dyn TensorSource,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Verified, FormatError> {
    let spans = spans(archive, source);
    let names: Vec<&str> = tensors.names().collect();
    let size_bytes: u64 = spans.iter().map(|span| span.range.len() as u64).sum();
    let size_of = |name: &&str| tensors.meta(name).and_then(crate::TensorMeta::size_bytes).unwrap_or(0);
    let total = size_bytes.saturating_add(names.iter().map(size_of).fold(0, u64::saturating_add));
    let done = AtomicU64::new(0);
    let step = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);

    let counts = spans.par_iter().map(|span| {
        let counts = check_span(archive, span)?;
        step(span.range.len() as u64);
        Ok(counts)
    });
    let (num_checksums, num_without_checksum) =
        counts.try_reduce(|| (0, 0), |left: (u64, u64), right| Ok((left.0 + right.0, left.1 + right.1)))?;
    let counted = names.par_iter().map(|name| {
        let count = count_nonfinite(tensors, name)?;
        step(size_of(name));
        Ok(((*name).to_owned(), count))
    });
    let mut nonfinite = counted.collect::<Result<Vec<_>, FormatError>>()?;
    nonfinite.retain(|(_, count)| *count > 0);
    Ok(Verified { size_bytes, num_checksums, num_without_checksum, nonfinite })
}

/// The torch files of the checkpoint: items of data files, and whole members.
fn spans(archive: &Archive, source: &PiecedSource) -> Vec<Span> {
    let items = source.torch_items();
    let with_items: BTreeSet<usize> = items.iter().map(|(member_idx, _)| *member_idx).collect();
    let whole = (0..archive.names().count()).filter(|member_idx| !with_items.contains(member_idx));
    let whole = whole.map(|member_idx| Span { member_idx, range: 0..archive.at(member_idx).len() });
    let items = items
        .into_iter()
        .map(|(member_idx, item)| Span { member_idx, range: item.start as usize..item.end as usize });
    items.chain(whole).collect()
}

/// How many checksums were compared, and how many members have none.
fn check_span(archive: &Archive, span: &Span) -> Result<(u64, u64), FormatError> {
    let file = archive.describe(archive.name_at(span.member_idx));
    let damaged = |at: usize, reason: String| FormatError::damaged(&file, span.range.start + at, reason);
    let bytes = archive
        .at(span.member_idx)
        .get(span.range.clone())
        .ok_or_else(|| damaged(0, format!("{} bytes should follow", span.range.len())))?;
    if !bytes.starts_with(ZIP) {
        return Ok((0, 0));
    }
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(0, error.to_string()))?;
    let (mut num_checksums, mut num_without) = (0, 0);
    for index in 0..zip.len() {
        let mut member = zip.by_index(index).map_err(|error| damaged(0, error.to_string()))?;
        if member.is_dir() || member.size() == 0 {
            continue;
        }
        if member.crc32() == 0 {
            num_without += 1;
            continue;
        }
        let start = member.data_start().unwrap_or(0) as usize;
        let name = member.name().map_or_else(|_| format!("number {index}"), |name| format!("`{name}`"));
        std::io::copy(&mut member, &mut std::io::sink())
            .map_err(|error| damaged(start, format!("member {name}: {error}; copy it again")))?;
        num_checksums += 1;
    }
    Ok((num_checksums, num_without))
}

fn count_nonfinite(tensors: &dyn TensorSource, name: &str) -> Result<u64, FormatError> {
    let Some(meta) = tensors.meta(name) else { return Ok(0) };
    let copied;
    let bytes = match tensors.mapped_bytes(name) {
        Some(mapped) => mapped,
        None => {
            copied = tensors.read_whole(name)?;
            &copied
        }
    };
    Ok(match meta.dtype {
        DType::F64 => count(bytes, |value| f64::from_le_bytes(value).is_finite()),
        DType::F32 => count(bytes, |value| f32::from_le_bytes(value).is_finite()),
        DType::F16 => count(bytes, |value| f16::from_le_bytes(value).is_finite()),
        DType::BF16 => count(bytes, |value| bf16::from_le_bytes(value).is_finite()),
        DType::F8E4M3 => count(bytes, |[value]: [u8; 1]| value & 0x7f != 0x7f),
        DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => 0,
    })
}

fn count<const N: usize>(bytes: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> u64 {
    bytes.as_chunks().0.iter().filter(|&&value| !is_finite(value)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_numbers_are_counted() {
        let values = [1.0_f32, f32::NAN, f32::NEG_INFINITY, 0.0];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(count(&bytes, |value| f32::from_le_bytes(value).is_finite()), 2);
    }
}
