//! `generations.parquet`: a copy of the lines with typed columns, made when all of them are there.

use std::path::{Path, PathBuf};

use super::OutputError;
use super::whole_file::WholeFile;

const NAME: &str = "generations.parquet";

/// Makes the copy of `jsonl` beside it. A run that is killed meanwhile leaves the one from before, or none.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn copy_as_parquet(jsonl: &Path) -> Result<PathBuf, OutputError> {
    let path = jsonl.with_file_name(NAME);
    let write = || {
        let mut file = WholeFile::create(&path)?;
        data::write_parquet(jsonl, &mut file)?;
        file.finish()
    };
    write().map_err(OutputError::io("write", path.clone()))?;
    Ok(path)
}
