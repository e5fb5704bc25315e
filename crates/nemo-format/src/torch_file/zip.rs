//! The zip of torch >= 1.6: stored members, a pickle and its storages in one folder whose name is free.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use ::zip::{CompressionMethod, ZipArchive};

use super::Container;
use crate::FormatError;
use crate::pickle::{self, Names};

/// The member that holds the object.
const PICKLE: &str = "data.pkl";

pub(super) fn open(bytes: &[u8], file: &str, names: Names) -> Result<Container, FormatError> {
    let damaged = |reason: String| FormatError::damaged(file, 0, reason);
    let members = members(bytes, file)?;
    let mut pickles = members.iter().filter(|(name, _)| {
        name.strip_suffix(PICKLE).is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
    });
    let (name, range) = match (pickles.next(), pickles.next()) {
        (Some(found), None) => found,
        (None, _) => return Err(damaged(format!("it has no `{PICKLE}`"))),
        _ => return Err(damaged(format!("it has several `{PICKLE}`"))),
    };
    let folder = name.strip_suffix(PICKLE).unwrap_or_default();
    let slice = |range: &Range<u64>| bytes.get(range.start as usize..range.end as usize).unwrap_or_default();
    let order = members.iter().find(|(name, _)| name.strip_prefix(folder) == Some("byteorder"));
    if let Some((_, range)) = order
        && slice(range).trim_ascii() != b"little"
    {
        return Err(FormatError::Unsupported {
            what: format!("`{file}`, written in big-endian byte order,"),
            hint: "load it with torch and save it again on a little-endian machine".to_owned(),
        });
    }
    let pickle = pickle::parse_names(slice(range), file, names)?;
    let storage = |(name, range): &(String, Range<u64>)| {
        let key = name.strip_prefix(folder)?.strip_prefix("data/")?;
        Some((key.to_owned(), range.clone()))
    };
    let storages: HashMap<String, Range<u64>> = members.iter().filter_map(storage).collect();
    Ok(Container { pickle, storages })
}

/// Names and places of all members, which are stored as they are and do not overlap.
fn members(bytes: &[u8], file: &str) -> Result<Vec<(String, Range<u64>)>, FormatError> {
    let from_zip = |error: ::zip::result::ZipError| {
        let hint = "it is cut off or no zip; copy it again";
        FormatError::damaged(file, bytes.len(), format!("{error}: {hint}"))
    };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(from_zip)?;
    let mut members = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index(index).map_err(from_zip)?;
        let name = member.name().map_err(from_zip)?.into_owned();
        let damaged = |reason: &str| {
            FormatError::damaged(file, member.header_start() as usize, format!("member `{name}` {reason}"))
        };
        if member.compression() != CompressionMethod::Stored {
            return Err(damaged("is compressed, torch only stores"));
        }
        let start = member.data_start().ok_or_else(|| damaged("has no start"))?;
        let end = start.checked_add(member.size()).filter(|&end| end <= bytes.len() as u64);
        members.push((name.clone(), start..end.ok_or_else(|| damaged("leaves the file"))?));
    }
    let mut by_start: Vec<_> = members.iter().filter(|(_, range)| !range.is_empty()).collect();
    by_start.sort_by_key(|(_, range)| range.start);
    for pair in by_start.windows(2) {
        if let [(left, first), (right, second)] = pair
            && second.start < first.end
        {
            let reason = format!("members `{left}` and `{right}` overlap");
            return Err(FormatError::damaged(file, second.start as usize, reason));
        }
    }
    Ok(members)
}
