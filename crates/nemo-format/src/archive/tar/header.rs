//! One block of a tar that describes a member, and the records of a PAX header.

/// Everything in a tar is a multiple of this.
pub(super) const BLOCK_BYTES: usize = 512;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Link,
    /// Fields of the next member.
    Pax,
    PaxGlobal,
    /// GNU's own way to name the next member.
    LongName,
    LongLink,
    Sparse,
    /// Devices, pipes and anything unknown.
    Other,
}

/// A member's header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) kind: Kind,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Self, &'static str> {
        let stated = number(&block[148..156]).ok_or("its checksum is not a number")?;
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(index, &byte)| if (148..156).contains(&index) { 32 } else { u64::from(byte) })
            .sum();
        // Some old writers summed signed bytes.
        let signed_sum: i64 = block
            .iter()
            .enumerate()
            .map(|(index, &byte)| if (148..156).contains(&index) { 32 } else { i64::from(byte as i8) })
            .sum();
        if stated != sum && i64::try_from(stated) != Ok(signed_sum) {
            return Err("its checksum does not match");
        }
        let kind = match block[156] {
            b'0' | 0 | b'7' => Kind::File,
            b'5' => Kind::Folder,
            b'1' | b'2' => Kind::Link,
            b'x' => Kind::Pax,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            b'S' => Kind::Sparse,
            _ => Kind::Other,
        };
        let mut name = text(&block[..100])?;
        let is_posix = &block[257..263] == b"ustar\0";
        let prefix = if is_posix { text(&block[345..500])? } else { String::new() };
        if !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        // Tars of 1979 mark folders by the name alone.
        let kind = if kind == Kind::File && name.ends_with('/') { Kind::Folder } else { kind };
        let size_bytes = number(&block[124..136]).ok_or("its size is not a number")?;
        Ok(Self { name, size_bytes, kind })
    }
}

fn text(field: &[u8]) -> Result<String, &'static str> {
    let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).map(str::to_owned).map_err(|_| "its name is not UTF-8")
}

/// Octal digits between blanks, or GNU's big-endian binary behind a set top bit.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        return rest
            .iter()
            .try_fold(0_u64, |number, &byte| number.checked_mul(256).map(|number| number | u64::from(byte)));
    }
    let end = field.iter().rposition(|&byte| byte != 0 && byte != b' ').map_or(0, |last| last + 1);
    let digits = field[..end].trim_ascii_start();
    digits.iter().try_fold(0_u64, |number, &digit| match digit {
        b'0'..=b'7' => number.checked_mul(8).map(|number| number + u64::from(digit - b'0')),
        _ => None,
    })
}

/// What a PAX header can say that matters here.
#[derive(Debug, Default)]
pub(super) struct PaxFields {
    pub(super) path: Option<String>,
    pub(super) size_bytes: Option<u64>,
    pub(super) is_sparse: bool,
    /// A header was read, whatever it said.
    pub(super) is_pending: bool,
}

impl PaxFields {
    /// Reads records of the form `<length> <key>=<value>\n`.
    pub(super) fn read(&mut self, mut content: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "a PAX record cannot be read";
        self.is_pending = true;
        while !content.is_empty() && content[0] != 0 {
            let blank = content.iter().position(|&byte| byte == b' ').ok_or(BAD)?;
            let digits = std::str::from_utf8(&content[..blank]).map_err(|_| BAD)?;
            let len: usize = digits.parse().map_err(|_| BAD)?;
            let record = content.get(blank + 1..len).ok_or(BAD)?;
            let record = record.strip_suffix(b"\n").ok_or(BAD)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => {
                    let path = std::str::from_utf8(value).map_err(|_| "a PAX name is not UTF-8")?;
                    self.path = Some(path.to_owned());
                }
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok());
                    self.size_bytes = Some(size.ok_or("a PAX size is not a number")?);
                }
                _ if key.starts_with(b"GNU.sparse") => self.is_sparse = true,
                _ => {}
            }
            content = content.get(len..).unwrap_or_default();
        }
        Ok(())
    }
}
