//! Columns that the output asks for: each must be a key of some record, or its name is a slip.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::DataError;
use crate::json::JsonObject;

/// How many keys of the first record an error lists.
const MAX_LISTED: usize = 12;

/// What is seen of the columns while records are read, by several threads.
pub(crate) struct Columns<'a> {
    wanted: Vec<(&'a str, AtomicBool)>,
    /// The keys of the first record.
    first: OnceLock<Vec<String>>,
}

impl<'a> Columns<'a> {
    pub(crate) fn new(wanted: &'a [String]) -> Self {
        let wanted = wanted.iter().map(|column| (column.as_str(), AtomicBool::new(false))).collect();
        Self { wanted, first: OnceLock::new() }
    }

    /// Looks at the record of a line.
    pub(crate) fn see(&self, line: u64, record: &JsonObject) {
        if self.wanted.is_empty() {
            return;
        }
        for (column, is_seen) in &self.wanted {
            if record.contains_key(*column) {
                is_seen.store(true, Ordering::Relaxed);
            }
        }
        if line == 1 {
            let _ = self.first.set(record.keys().cloned().collect());
        }
    }

    /// # Errors
    /// When no record has one of them.
    pub(crate) fn check(&self, path: &Path) -> Result<(), DataError> {
        let Some((column, _)) = self.wanted.iter().find(|(_, is_seen)| !is_seen.load(Ordering::Relaxed))
        else {
            return Ok(());
        };
        // Without records there is another error.
        if self.first.get().is_none() {
            return Ok(());
        }
        let keys = self.first.get().map_or(&[][..], Vec::as_slice);
        let mut listed: Vec<String> = keys.iter().take(MAX_LISTED).map(|key| format!("`{key}`")).collect();
        if keys.len() > MAX_LISTED {
            listed.push(format!("{} more", keys.len() - MAX_LISTED));
        }
        Err(DataError::NoSuchColumn {
            path: path.into(),
            column: (*column).to_owned(),
            known: if listed.is_empty() { "none".to_owned() } else { listed.join(", ") },
        })
    }
}
