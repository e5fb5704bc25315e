//! A `.nemo` archive: a tar (PAX, GNU or ustar), its members found in the mapped file and never unpacked.
//!
//! Headers are read here, not by a library, so that a cut or damaged archive is reported by member and offset.
//! Layout: POSIX.1-2001 `pax`, and GNU tar's long names and base-256 numbers.

mod header;

use std::path::{Component, Path};

use indexmap::IndexMap;

use self::header::{BLOCK_BYTES, Header, Kind, PaxFields};
use super::{Archive, Member, Packing, gzip};
use crate::mmap::Mapped;
use crate::{FormatError, lfs};

/// A PAX header or a long name is a few hundred bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// A checkpoint of the zarr backend has a file for every layer, tensor and rank.
const MAX_MEMBERS: usize = 1 << 22;

pub(super) fn open(path: &Path) -> Result<Archive, FormatError> {
    let mut file = Mapped::open(path)?;
    let mut packing = Packing::Tar;
    if file.bytes().starts_with(&gzip::MAGIC) {
        file = gzip::unpack(&file)?;
        packing = Packing::GzipTar;
    }
    let members = members(file.bytes(), &path.display().to_string())?;
    Ok(Archive { path: path.to_owned(), packing, files: vec![file], members })
}

fn members(bytes: &[u8], file: &str) -> Result<IndexMap<String, Member>, FormatError> {
    if bytes.get(257..262) != Some(b"ustar".as_slice()) {
        return Err(FormatError::damaged(file, 0, "it is not a tar archive"));
    }
    let mut walker = Walker { bytes, file, at: 0, next: PaxFields::default(), last: None };
    let mut members = IndexMap::new();
    while let Some((name, range)) = walker.next_file()? {
        let content = bytes.get(range.clone()).unwrap_or_default();
        lfs::refuse_pointer(|| format!("{file}: {name}"), content)?;
        members.insert(name, Member { file_idx: 0, range });
        if members.len() > MAX_MEMBERS {
            let (value, limit) = (members.len() as u64, MAX_MEMBERS as u64);
            return Err(FormatError::Limit { file: file.to_owned(), what: "members", value, limit });
        }
    }
    Ok(members)
}

/// A place in the archive.
struct Walker<'a> {
    bytes: &'a [u8],
    file: &'a str,
    at: usize,
    /// What extension headers say of the member that follows.
    next: PaxFields,
    /// The member before, for errors.
    last: Option<String>,
}

impl<'a> Walker<'a> {
    /// The next file and its bytes; folders are skipped.
    fn next_file(&mut self) -> Result<Option<(String, std::ops::Range<usize>)>, FormatError> {
        loop {
            let header_at = self.at;
            let Some(header) = self.header()? else { return Ok(None) };
            let is_extension =
                matches!(header.kind, Kind::Pax | Kind::PaxGlobal | Kind::LongName | Kind::LongLink);
            let fields = if is_extension { PaxFields::default() } else { std::mem::take(&mut self.next) };
            let name = fields.path.unwrap_or_else(|| header.name.clone());
            let size_bytes = fields.size_bytes.unwrap_or(header.size_bytes);
            let refused = |reason| {
                let (file, member) = (self.file.to_owned(), name.clone());
                FormatError::RefusedMember { file, member, offset_bytes: header_at as u64, reason }
            };
            match header.kind {
                Kind::Link => return Err(refused("links are not allowed")),
                Kind::Other => return Err(refused("only files and folders are allowed")),
                Kind::Sparse => return Err(refused("sparse files are not allowed")),
                _ if fields.is_sparse => return Err(refused("sparse files are not allowed")),
                Kind::Folder => {
                    self.content(&name, 0)?;
                }
                Kind::Pax | Kind::LongName | Kind::PaxGlobal | Kind::LongLink => {
                    if size_bytes > MAX_EXTENSION_BYTES {
                        return Err(refused("a header of this size describes no file"));
                    }
                    let range = self.content(&name, size_bytes)?;
                    let content = self.bytes.get(range).unwrap_or_default();
                    self.extend(header.kind, content, header_at)?;
                }
                Kind::File => {
                    let normal =
                        normalise(&name).and_then(|name| name.ok_or("it has no name")).map_err(refused)?;
                    let range = self.content(&name, size_bytes)?;
                    self.last = Some(name);
                    return Ok(Some((normal, range)));
                }
            }
        }
    }

    /// The header at the current place, or `None` at the archive's end.
    fn header(&mut self) -> Result<Option<Header>, FormatError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        // Some writers leave out the empty blocks that end an archive.
        if rest.is_empty() && !self.next.is_pending {
            return Ok(None);
        }
        let Some(block) = rest.first_chunk::<BLOCK_BYTES>() else {
            let after = || match &self.last {
                Some(name) => format!("(the one after {name})"),
                None => "(the first file)".to_owned(),
            };
            return Err(FormatError::Truncated {
                file: self.file.to_owned(),
                member: self.next.path.clone().unwrap_or_else(after),
                offset_bytes: self.at as u64,
                expected_bytes: BLOCK_BYTES as u64,
                actual_bytes: rest.len() as u64,
            });
        };
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Header::parse(block).map_err(|reason| {
            let after = self.last.as_deref().map_or(String::new(), |name| format!(" (after `{name}`)"));
            FormatError::damaged(self.file, self.at, format!("tar header{after}: {reason}"))
        })?;
        self.at += BLOCK_BYTES;
        Ok(Some(header))
    }

    /// Steps over a member's content.
    fn content(&mut self, name: &str, size_bytes: u64) -> Result<std::ops::Range<usize>, FormatError> {
        let rest_bytes = (self.bytes.len() - self.at) as u64;
        if size_bytes > rest_bytes {
            return Err(FormatError::Truncated {
                file: self.file.to_owned(),
                member: name.to_owned(),
                offset_bytes: self.at as u64,
                expected_bytes: size_bytes,
                actual_bytes: rest_bytes,
            });
        }
        let range = self.at..self.at + size_bytes as usize;
        // The last member's padding may be cut off without loss.
        self.at = range.end.next_multiple_of(BLOCK_BYTES).min(self.bytes.len());
        Ok(range)
    }

    fn extend(&mut self, kind: Kind, content: &[u8], header_at: usize) -> Result<(), FormatError> {
        let damaged = |reason: &str| FormatError::damaged(self.file, header_at, reason);
        match kind {
            Kind::LongName => {
                let name = content.split(|&byte| byte == 0).next().unwrap_or_default();
                let name = std::str::from_utf8(name).map_err(|_| damaged("a long name is not UTF-8"))?;
                self.next.path = Some(name.to_owned());
                self.next.is_pending = true;
            }
            Kind::Pax => self.next.read(content).map_err(damaged)?,
            // Links are refused by their own header, and global fields name no member.
            _ => {}
        }
        Ok(())
    }
}

/// `./a//b` to `a/b`; `None` for the folder itself.
fn normalise(name: &str) -> Result<Option<String>, &'static str> {
    let mut parts = Vec::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            Component::ParentDir => return Err("`..` leaves the checkpoint"),
            Component::RootDir | Component::Prefix(_) => return Err("absolute names are not allowed"),
        }
    }
    Ok(Some(parts.join("/")).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests;
