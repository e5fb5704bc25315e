//! A gzip tar, as NeMo wrote before 1.7: unpacked once into a file that has no name and vanishes with the reader.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::FormatError;
use crate::mmap::Mapped;

/// What every gzip file begins with.
pub(super) const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Trained weights shrink by a few per cent and dummy ones by a few hundred times; deflate itself reaches 1032.
const MAX_RATIO: u64 = 256;
/// Small archives are mostly padding, which shrinks as far as deflate can.
const ALWAYS_ALLOWED_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// The tar inside `packed`, mapped.
pub(super) fn unpack(packed: &Mapped) -> Result<Mapped, FormatError> {
    let path = packed.path();
    let limit = ALWAYS_ALLOWED_BYTES.max(MAX_RATIO.saturating_mul(packed.bytes().len() as u64));
    let mut target = nameless_file(path)?;
    let mut decoder = MultiGzDecoder::new(packed.bytes());
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total_bytes = 0;
    loop {
        let len = decoder.read(&mut buffer).map_err(|error| {
            let read_bytes = packed.bytes().len() - decoder_rest(&decoder);
            FormatError::damaged(&path.display().to_string(), read_bytes, format!("gzip: {error}"))
        })?;
        if len == 0 {
            break;
        }
        total_bytes += len as u64;
        if total_bytes > limit {
            let (file, what) = (path.display().to_string(), "bytes or more when unpacked");
            return Err(FormatError::Limit { file, what, value: total_bytes, limit });
        }
        target
            .write_all(&buffer[..len])
            .map_err(|source| FormatError::io("unpack to a temporary file", path, source))?;
    }
    Mapped::of_file(&target, path)
}

fn decoder_rest(decoder: &MultiGzDecoder<&[u8]>) -> usize {
    decoder.get_ref().len()
}

/// Beside the archive, where there is room for large files; the system's temporary folder is often memory.
fn nameless_file(path: &Path) -> Result<File, FormatError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(parent)
        .or_else(|_| tempfile::tempfile())
        .map_err(|source| FormatError::io("create a temporary file for", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn packed(content: &[u8], cut: usize) -> Mapped {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        let mut bytes = encoder.finish().unwrap();
        bytes.truncate(bytes.len() - cut);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        Mapped::of_file(&file, Path::new("t.nemo")).unwrap()
    }

    #[test]
    fn a_bomb_is_refused() {
        let error = unpack(&packed(&vec![0; 65 << 20], 0)).unwrap_err().to_string();
        assert!(error.ends_with("bytes or more when unpacked, the limit is 67108864"), "{error}");
    }

    #[test]
    fn content_is_kept_and_cuts_are_found() {
        assert_eq!(unpack(&packed(b"content", 0)).unwrap().bytes(), b"content");
        assert!(unpack(&packed(b"content", 5)).is_err());
    }
}
