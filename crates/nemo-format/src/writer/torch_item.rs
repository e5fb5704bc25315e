//! One torch file of a checkpoint, planned before its tensor is read: a zip of stored members.
//!
//! The `zip` crate's writer seeks back to fill in what it learns while writing; here the size of every item must be
//! known first, since the tar header and the index that hold it are written before the data.

use crate::DType;
use crate::pickle::write::Writer as Pickle;

/// torch maps tensors with vector loads: data starts on this boundary.
pub(super) const ALIGNMENT: u64 = 64;
const LOCAL_HEADER_BYTES: u64 = 30;
/// Where a local header has the checksum.
const LOCAL_CHECKSUM_AT: u64 = 14;
const CENTRAL_HEADER_BYTES: u64 = 46;
/// 1980-01-01, the first day that a zip can name: no clock in the file.
const DOS_DATE: u16 = 0x21;
const ZIP64_LIMIT: u64 = u32::MAX as u64;

/// A member of the zip, without its content.
struct Member {
    name: &'static str,
    len_bytes: u64,
    /// Where its local header starts.
    header_at: u64,
    /// Padding of its local header, as an extra field.
    padding_bytes: u64,
}

impl Member {
    /// Room of the local header's extra field: zip64 sizes where needed, then padding.
    fn extra_bytes(&self) -> u64 {
        (if self.len_bytes >= ZIP64_LIMIT { 20 } else { 0 }) + self.padding_bytes
    }

    fn data_at(&self) -> u64 {
        self.header_at + LOCAL_HEADER_BYTES + self.name.len() as u64 + self.extra_bytes()
    }
}

/// A planned torch file that holds one tensor, or an empty dict.
pub(super) struct TorchItem {
    pickle: Vec<u8>,
    members: Vec<Member>,
    /// Bytes of the whole file.
    pub(super) len_bytes: u64,
}

impl TorchItem {
    /// A file with one contiguous tensor.
    pub(super) fn tensor(dtype: DType, shape: &[u64]) -> Self {
        let num_elems: u64 = shape.iter().product();
        let mut pickle = Pickle::new(2);
        // Types that are younger than typed storages have storages of bytes.
        let (rebuild, storage_class) = match storage_class(dtype) {
            Some(class) => ("_rebuild_tensor_v2", ("torch", class)),
            None => ("_rebuild_tensor_v3", ("torch.storage", "UntypedStorage")),
        };
        let is_untyped = rebuild == "_rebuild_tensor_v3";
        pickle.call("torch._utils", rebuild, |arguments| {
            arguments.persistent(|id| {
                id.tuple(|id| {
                    id.text("storage");
                    id.global(storage_class.0, storage_class.1);
                    id.text("0");
                    id.text("cpu");
                    id.int(if is_untyped { num_elems * dtype.size_bytes() as u64 } else { num_elems });
                });
            });
            arguments.int(0);
            arguments.tuple(|size| shape.iter().for_each(|&dim| size.int(dim)));
            let mut strides: Vec<u64> = Vec::with_capacity(shape.len());
            let mut stride = 1;
            for &dim in shape.iter().rev() {
                strides.push(stride);
                stride *= dim;
            }
            arguments.tuple(|items| strides.iter().rev().for_each(|&stride| items.int(stride)));
            arguments.bool(false);
            arguments.call("collections", "OrderedDict", |_| {});
            if is_untyped {
                arguments.global("torch", dtype.name());
            }
        });
        Self::plan(pickle.finish(), Some(num_elems * dtype.size_bytes() as u64))
    }

    /// A file with an empty dict: `common.pt` of an export.
    pub(super) fn empty_dict() -> Self {
        let mut pickle = Pickle::new(2);
        pickle.dict(|_| {});
        Self::plan(pickle.finish(), None)
    }

    fn plan(pickle: Vec<u8>, storage_bytes: Option<u64>) -> Self {
        let mut contents = vec![("archive/data.pkl", pickle.len() as u64), ("archive/byteorder", 6)];
        contents.extend(storage_bytes.map(|len| ("archive/data/0", len)));
        contents.push(("archive/version", 2));
        let mut members: Vec<Member> = Vec::new();
        let mut at = 0;
        for (name, len_bytes) in contents {
            let mut member = Member { name, len_bytes, header_at: at, padding_bytes: 0 };
            if name == "archive/data/0" && !member.data_at().is_multiple_of(ALIGNMENT) {
                // An extra field has a header of four bytes.
                member.padding_bytes = 4;
                member.padding_bytes += member.data_at().next_multiple_of(ALIGNMENT) - member.data_at();
            }
            at = member.data_at() + len_bytes;
            members.push(member);
        }
        let central: u64 = members
            .iter()
            .map(|member| CENTRAL_HEADER_BYTES + member.name.len() as u64 + central_extra(member))
            .sum();
        // The zip64 end record and its locator are always there, as torch writes them.
        let len_bytes = at + central + 56 + 20 + 22;
        Self { pickle, members, len_bytes }
    }

    /// Everything before the tensor's data, and where in it the data's checksum belongs. The checksum is not known
    /// before the data has been read, so its place holds zeros.
    pub(super) fn head(&self) -> (Vec<u8>, Option<u64>) {
        let mut out = Vec::new();
        for member in &self.members {
            let content = self.content(member);
            let checksum = content.map_or(0, crc32fast::hash);
            let checksum_at = out.len() as u64 + LOCAL_CHECKSUM_AT;
            out.extend(local_header(member, checksum));
            match content {
                Some(content) => out.extend(content),
                None => return (out, Some(checksum_at)),
            }
        }
        (out, None)
    }

    /// Everything after the tensor's data, whose checksum is `checksum`. An item without a tensor ends likewise.
    pub(super) fn tail(&self, checksum: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let tensor = self.members.iter().position(|member| self.content(member).is_none());
        for member in self.members.iter().skip(tensor.map_or(self.members.len(), |index| index + 1)) {
            let content = self.content(member).unwrap_or_default();
            out.extend(local_header(member, crc32fast::hash(content)));
            out.extend(content);
        }
        let central_at = self.members.last().map_or(0, |member| member.data_at() + member.len_bytes);
        let mut central = Vec::new();
        for member in &self.members {
            let checksum = self.content(member).map_or(checksum, crc32fast::hash);
            write_central_header(&mut central, member, checksum);
        }
        out.extend(&central);
        out.extend(end_records(self.members.len() as u64, central.len() as u64, central_at));
        out
    }

    /// A member's content, or `None` for the tensor's data.
    fn content(&self, member: &Member) -> Option<&[u8]> {
        match member.name {
            "archive/data.pkl" => Some(&self.pickle),
            "archive/byteorder" => Some(b"little"),
            "archive/version" => Some(b"3\n"),
            _ => None,
        }
    }
}

/// The class of a storage of elements of this type alone.
fn storage_class(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "DoubleStorage",
        DType::F32 => "FloatStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::I32 => "IntStorage",
        DType::I16 => "ShortStorage",
        DType::I8 => "CharStorage",
        DType::U8 => "ByteStorage",
        DType::F8E4M3 => return None,
        DType::Bool => "BoolStorage",
    })
}

fn central_extra(member: &Member) -> u64 {
    if member.len_bytes >= ZIP64_LIMIT || member.header_at >= ZIP64_LIMIT { 28 } else { 0 }
}

fn clamp(value: u64) -> [u8; 4] {
    (value.min(ZIP64_LIMIT) as u32).to_le_bytes()
}

fn local_header(member: &Member, checksum: u32) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(0x0403_4b50_u32.to_le_bytes());
    header.extend(20_u16.to_le_bytes());
    header.extend([0; 6]); // flags, method: stored, time
    header.extend(DOS_DATE.to_le_bytes());
    header.extend(checksum.to_le_bytes());
    header.extend(clamp(member.len_bytes));
    header.extend(clamp(member.len_bytes));
    header.extend((member.name.len() as u16).to_le_bytes());
    header.extend((member.extra_bytes() as u16).to_le_bytes());
    header.extend(member.name.as_bytes());
    if member.len_bytes >= ZIP64_LIMIT {
        header.extend([1, 0, 16, 0]);
        header.extend(member.len_bytes.to_le_bytes());
        header.extend(member.len_bytes.to_le_bytes());
    }
    if member.padding_bytes > 0 {
        // "FB" is the tag of torch's own padding.
        header.extend(b"FB");
        header.extend((member.padding_bytes as u16 - 4).to_le_bytes());
        header.resize(header.len() + member.padding_bytes as usize - 4, b'Z');
    }
    header
}

fn write_central_header(out: &mut Vec<u8>, member: &Member, checksum: u32) {
    let zip64 = central_extra(member) > 0;
    out.extend(0x0201_4b50_u32.to_le_bytes());
    out.extend([0, 0, 20, 0, 0, 0, 0, 0, 0, 0]); // made by, needed, flags, method, time
    out.extend(DOS_DATE.to_le_bytes());
    out.extend(checksum.to_le_bytes());
    let size = if zip64 { ZIP64_LIMIT } else { member.len_bytes };
    out.extend(clamp(size));
    out.extend(clamp(size));
    out.extend((member.name.len() as u16).to_le_bytes());
    out.extend((central_extra(member) as u16).to_le_bytes());
    out.extend([0; 10]); // comment, disk, attributes
    out.extend(clamp(if zip64 { ZIP64_LIMIT } else { member.header_at }));
    out.extend(member.name.as_bytes());
    if zip64 {
        out.extend([1, 0, 24, 0]);
        out.extend(member.len_bytes.to_le_bytes());
        out.extend(member.len_bytes.to_le_bytes());
        out.extend(member.header_at.to_le_bytes());
    }
}

fn end_records(num_members: u64, central_bytes: u64, central_at: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(0x0606_4b50_u32.to_le_bytes());
    out.extend(44_u64.to_le_bytes());
    out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // versions, disks
    out.extend(num_members.to_le_bytes());
    out.extend(num_members.to_le_bytes());
    out.extend(central_bytes.to_le_bytes());
    out.extend(central_at.to_le_bytes());
    out.extend(0x0706_4b50_u32.to_le_bytes());
    out.extend([0; 4]);
    out.extend((central_at + central_bytes).to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    out.extend(0x0605_4b50_u32.to_le_bytes());
    out.extend([0; 4]);
    out.extend((num_members as u16).to_le_bytes());
    out.extend((num_members as u16).to_le_bytes());
    out.extend(clamp(central_bytes));
    out.extend(clamp(central_at));
    out.extend([0; 2]);
    out
}
