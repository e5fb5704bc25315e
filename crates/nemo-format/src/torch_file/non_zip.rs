//! The format before torch 1.6: pickles in a row (magic number, version, system, object, storage keys), then the
//! storages, each with its number of elements in front.

use std::collections::HashMap;

use super::tensor::storage_elem_bytes;
use super::{Container, StorageId};
use crate::FormatError;
use crate::pickle::{self, Names, Pickle, Value};

/// `0x1950a86a20f9469cfc6c`, little endian, as LONG1 holds it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// Whether a file begins as this format does: a pickle of any protocol that holds the magic number.
pub(super) fn is_magic(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(&[0x80]) else { return false };
    // Protocols 4 and 5 put a frame of nine bytes around the number.
    rest.get(1..).is_some_and(|rest| {
        [rest, rest.get(9..).unwrap_or_default()]
            .iter()
            .any(|rest| rest.strip_prefix(&[0x8a, 10]).is_some_and(|rest| rest.starts_with(&MAGIC)))
    })
}

pub(super) fn open(bytes: &[u8], file: &str, names: Names) -> Result<Container, FormatError> {
    let mut reader = Reader { bytes, file, names, at: 0 };
    let magic = reader.pickle()?;
    if *magic.value(magic.root()) != Value::Bytes(MAGIC.to_vec()) {
        return Err(reader.damaged("its magic number is not torch's"));
    }
    let version = reader.pickle()?;
    if version.int(version.root()) != Some(PROTOCOL) {
        return Err(reader.damaged(format!("its protocol version is not {PROTOCOL}")));
    }
    let system = reader.pickle()?;
    let little = system.entry(system.root(), "little_endian").map(|id| system.value(id).clone());
    if little != Some(Value::Bool(true)) {
        return Err(FormatError::Unsupported {
            what: format!("`{file}`, written in big-endian byte order,"),
            hint: "load it with torch and save it again on a little-endian machine".to_owned(),
        });
    }
    let pickle = reader.pickle()?;
    let keys = reader.pickle()?;
    let no_keys = || reader.damaged("its list of storages cannot be read");
    let key_ids = keys.items(keys.root()).ok_or_else(no_keys)?;
    let keys: Option<Vec<&str>> = key_ids.iter().map(|&id| keys.text(id)).collect();
    let keys: Vec<String> = keys.ok_or_else(no_keys)?.into_iter().map(str::to_owned).collect();

    let elem_bytes = elem_bytes_of_storages(&pickle);
    let mut storages = HashMap::new();
    for key in keys {
        let Some(&elem_bytes) = elem_bytes.get(&key) else {
            return Err(reader.damaged(format!("storage `{key}` belongs to no tensor")));
        };
        let range = reader.storage(&key, elem_bytes)?;
        storages.insert(key, range);
    }
    Ok(Container { pickle, storages })
}

/// Bytes of an element of every storage that the object mentions.
fn elem_bytes_of_storages(pickle: &Pickle) -> HashMap<String, u64> {
    pickle
        .ids()
        .filter_map(|id| {
            let storage = StorageId::read(pickle, id)?;
            Some((storage.key.to_owned(), storage_elem_bytes(storage.class)?))
        })
        .collect()
}

struct Reader<'a> {
    bytes: &'a [u8],
    file: &'a str,
    names: Names,
    at: usize,
}

impl Reader<'_> {
    fn damaged(&self, reason: impl Into<String>) -> FormatError {
        FormatError::damaged(self.file, self.at, reason)
    }

    fn pickle(&mut self) -> Result<Pickle, FormatError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (pickle, len_bytes) = pickle::parse_first(rest, self.file, self.names)?;
        self.at += len_bytes;
        Ok(pickle)
    }

    fn storage(&mut self, key: &str, elem_bytes: u64) -> Result<std::ops::Range<u64>, FormatError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let num_elems = rest.first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
        let num_elems = num_elems.and_then(|number| u64::try_from(number).ok());
        let start = self.at as u64 + 8;
        let end = num_elems
            .and_then(|number| number.checked_mul(elem_bytes))
            .and_then(|len_bytes| start.checked_add(len_bytes));
        match end.filter(|&end| end <= self.bytes.len() as u64) {
            Some(end) => {
                self.at = end as usize;
                Ok(start..end)
            }
            None => {
                let stated =
                    num_elems.map_or("an unreadable number of".to_owned(), |number| number.to_string());
                let rest_bytes = rest.len().saturating_sub(8);
                Err(self.damaged(format!(
                    "storage `{key}` has {stated} elements of {elem_bytes} bytes, the file has {rest_bytes} bytes left"
                )))
            }
        }
    }
}
