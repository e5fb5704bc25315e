//! A `.nemo` archive: a plain tar (PAX, GNU or ustar), its members found in the mapped file and never unpacked.

use std::io::Cursor;
use std::path::{Component, Path};

use indexmap::IndexMap;
use tar::EntryType;

use super::{Archive, Member};
use crate::FormatError;
use crate::mmap::Mapped;

pub(super) fn open(path: &Path) -> Result<Archive, FormatError> {
    let file = Mapped::open(path)?;
    let members = members(file.bytes(), &path.display().to_string())?;
    Ok(Archive { path: path.to_owned(), is_tar: true, files: vec![file], members })
}

fn members(bytes: &[u8], file: &str) -> Result<IndexMap<String, Member>, FormatError> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(FormatError::Unsupported {
            what: format!("the gzip archive `{file}`"),
            hint: "unpack it with `mkdir checkpoint && tar -xzf FILE -C checkpoint` and pass the folder"
                .to_owned(),
        });
    }
    if bytes.get(257..262) != Some(b"ustar".as_slice()) {
        return Err(FormatError::Damaged {
            file: file.to_owned(),
            offset_bytes: 0,
            reason: "it is not a tar archive".to_owned(),
        });
    }
    let mut members = IndexMap::new();
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    let damaged = |offset_bytes: u64, error: &std::io::Error| FormatError::Damaged {
        file: file.to_owned(),
        offset_bytes,
        reason: error.to_string(),
    };
    let mut last_end = 0;
    for entry in archive.entries_with_seek().map_err(|error| damaged(0, &error))? {
        let entry = entry.map_err(|error| damaged(last_end, &error))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let offset_bytes = entry.raw_header_position();
        let refused = |reason| FormatError::RefusedMember { member: name.clone(), offset_bytes, reason };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            EntryType::Symlink | EntryType::Link => return Err(refused("links are not allowed")),
            _ => return Err(refused("only files and folders are allowed")),
        }
        let start = entry.raw_file_position();
        let end = start.checked_add(entry.size()).filter(|&end| end <= bytes.len() as u64);
        let Some(end) = end else {
            return Err(FormatError::Truncated {
                member: name,
                offset_bytes: start,
                expected_bytes: entry.size(),
                actual_bytes: (bytes.len() as u64).saturating_sub(start),
            });
        };
        let normal = normalise(&name).map_err(refused)?;
        members.insert(normal, Member { file_idx: 0, range: start as usize..end as usize });
        last_end = end;
    }
    Ok(members)
}

/// `./a//b` to `a/b`.
fn normalise(name: &str) -> Result<String, &'static str> {
    let mut parts = Vec::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::ParentDir => return Err("`..` leaves the checkpoint"),
            Component::RootDir | Component::Prefix(_) => return Err("absolute names are not allowed"),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTAINERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/container");

    fn names(file: &str) -> Result<Vec<String>, String> {
        Archive::open(&Path::new(CONTAINERS).join(file))
            .map(|archive| archive.names().map(str::to_owned).collect())
            .map_err(|error| error.to_string().replace(CONTAINERS, "…"))
    }

    #[test]
    fn every_flavour_of_tar_is_read() {
        for file in ["dot_slash_pax.nemo", "dot_slash_gnu.nemo", "no_prefix_ustar.nemo", "top_folder.nemo"] {
            let names = names(file).unwrap();
            assert!(names.iter().any(|name| name == "model_config.yaml"), "{file}: {names:?}");
        }
        for file in ["long_names_pax.nemo", "long_names_gnu.nemo"] {
            assert!(names(file).unwrap().iter().any(|name| name.len() > 100), "{file}");
        }
    }

    #[test]
    fn what_leaves_the_checkpoint_is_refused() {
        insta::assert_snapshot!(names("reject_absolute.nemo").unwrap_err(), @"archive member `/tmp/escape_abs.txt` at byte 8704 is refused: absolute names are not allowed");
        insta::assert_snapshot!(names("reject_parent_dir.nemo").unwrap_err(), @"archive member `./../escape.txt` at byte 8704 is refused: `..` leaves the checkpoint");
        insta::assert_snapshot!(names("reject_symlink.nemo").unwrap_err(), @"archive member `./link` at byte 8704 is refused: links are not allowed");
        insta::assert_snapshot!(names("truncated.nemo").unwrap_err(), @"`…/truncated.nemo` is damaged at byte 0: members found describing a future member but no future member found");
        insta::assert_snapshot!(names("gzip.nemo").unwrap_err(), @"the gzip archive `…/gzip.nemo` cannot be read: unpack it with `mkdir checkpoint && tar -xzf FILE -C checkpoint` and pass the folder");
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(at in 0_usize..4096, byte in any::<u8>(), cut in 0_usize..20_000) {
            let mut bytes = std::fs::read(Path::new(CONTAINERS).join("long_names_pax.nemo")).unwrap();
            let index = at % bytes.len();
            bytes[index] = byte;
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = members(&bytes, "t");
        }
    }
}
