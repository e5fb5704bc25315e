//! The hash of a data file, taken while its lines are read, so that it is read once.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// A reader that hashes the bytes of a file as they go through it. Clones share the place in the file and the hash.
pub(crate) struct FileHash {
    file: File,
    hasher: Arc<Mutex<blake3::Hasher>>,
}

impl FileHash {
    /// Hashes what is read of `file` from here on.
    pub(crate) fn new(file: File) -> Self {
        Self { file, hasher: Arc::new(Mutex::new(blake3::Hasher::new())) }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, hasher: Arc::clone(&self.hasher) })
    }

    /// The BLAKE3 of the whole file in hexadecimal digits. Reads on to the end: a decompressor may stop before it.
    pub(crate) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        let hasher = self.hasher.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(hasher.finalize().to_hex().to_string())
    }
}

impl Read for FileHash {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.file.read(bytes)?;
        let mut hasher = self.hasher.lock().unwrap_or_else(PoisonError::into_inner);
        hasher.update(bytes.get(..num_bytes).unwrap_or_default());
        Ok(num_bytes)
    }
}
