//! `generations.parquet`: a copy of the lines with typed columns, made when all of them are there.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::OutputError;

const NAME: &str = "generations.parquet";

/// Makes the copy of `jsonl` beside it. A run that is killed meanwhile leaves the one from before, or none.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn copy_as_parquet(jsonl: &Path) -> Result<PathBuf, OutputError> {
    let (path, unfinished) = (jsonl.with_file_name(NAME), jsonl.with_file_name(format!("{NAME}.part")));
    let write = || {
        let file = File::create(&unfinished)?;
        data::write_parquet(jsonl, file.try_clone()?)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)
    };
    write().map_err(|source| {
        // Whatever came of it is of no use.
        let _ = std::fs::remove_file(&unfinished);
        OutputError::io("write", path.clone())(source)
    })?;
    Ok(path)
}
