//! Writing a Megatron-Core `.nemo`: a plain tar with the configuration, the artifacts and a torch_dist folder.
//!
//! Sizes are planned before the first byte, so tensors stream through; nothing is ever kept whole. Hugging Face
//! folders are written by the same means.

mod eager;
mod hf_folder;
mod metadata;
mod partial;
mod plan;
mod stream;
mod torch_item;

use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use md5::{Digest, Md5};

use self::eager::EagerFile;
pub(crate) use self::hf_folder::{FolderFile, MAX_SHARD_BYTES, write_hf_folder};
use self::partial::Partial;
use self::plan::{Piece, StackedKey};
use self::stream::{Checksums, Event, Job, stream};
use self::torch_item::TorchItem;
use crate::dist_ckpt::FOLDER;
use crate::{DType, FormatError, TensorSource};

const METADATA_JSON: &str = r#"{"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}"#;

/// A file that travels inside the checkpoint: a tokenizer model, a vocabulary, a chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Base name; the member becomes `<md5 of the bytes>_<name>`.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

impl Artifact {
    /// The member's name in the archive: what the configuration refers to as `nemo:<member>`.
    pub fn member_name(&self) -> String {
        let digest = Md5::digest(&self.bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}_{}", self.name)
    }
}

/// What to do when the target exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Stop with [`FormatError::OutputExists`].
    #[default]
    Refuse,
    /// Replace it once the new file is complete.
    Replace,
}

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteProgress {
    /// Tensors written.
    pub num_tensors_done: usize,
    /// Tensors in all.
    pub num_tensors: usize,
    /// Bytes of tensor data written.
    pub done_bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
}

/// Choices of [`write_nemo`].
#[derive(Clone, Copy, Default)]
pub struct WriteOptions<'a> {
    /// Converts floating-point tensors to this dtype (f32, bf16 or f16), rounding to nearest even.
    pub dtype: Option<DType>,
    /// What to do when the target exists.
    pub overwrite: Overwrite,
    /// Called after every tensor.
    pub progress: Option<&'a (dyn Fn(WriteProgress) + Sync)>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteReport {
    /// Tensors under their canonical names.
    pub num_tensors: usize,
    /// Elements of all tensors.
    pub num_parameters: u64,
    /// Bytes of tensor data.
    pub tensor_bytes: u64,
    /// Size of the file, or of all files of a folder.
    pub size_bytes: u64,
    /// Members that hold the artifacts, in the order given.
    pub artifact_members: Vec<String>,
}

/// Writes `output` as a Megatron-Core `.nemo` archive with a torch_dist checkpoint inside.
///
/// The tensors of `source` carry canonical names; those of homogeneous decoder layers are stacked under their key
/// without a layer number, as Megatron-Core stores them.
///
/// # Errors
/// When the target exists and may not be replaced, a tensor cannot be read or converted, or the disk refuses.
/// Nothing is left under `output` then.
pub fn write_nemo(
    output: &Path,
    config_yaml: &str,
    artifacts: &[Artifact],
    source: &dyn TensorSource,
    options: &WriteOptions<'_>,
) -> Result<WriteReport, FormatError> {
    if options.overwrite == Overwrite::Refuse && output.exists() {
        return Err(FormatError::OutputExists { path: output.to_owned() });
    }
    let (keys, data_bytes) = plan::plan(source, options.dtype)?;
    let file = Partial::file(output)?;
    let io_error = |source| FormatError::io("write", output, source);

    let eager = file.handle().try_clone().and_then(EagerFile::new).map_err(io_error)?;
    let mut tar = Tar { out: BufWriter::with_capacity(1 << 20, eager), written_bytes: 0 };
    tar.member("./model_config.yaml", config_yaml.as_bytes()).map_err(io_error)?;
    for artifact in artifacts {
        tar.member(&format!("./{}", artifact.member_name()), &artifact.bytes).map_err(io_error)?;
    }
    tar.member(&format!("./{FOLDER}/metadata.json"), METADATA_JSON.as_bytes()).map_err(io_error)?;
    let empty = TorchItem::empty_dict();
    let common = [empty.head().0, empty.tail(0)].concat();
    tar.member(&format!("./{FOLDER}/common.pt"), &common).map_err(io_error)?;
    tar.member(&format!("./{FOLDER}/.metadata"), &metadata::pickle(&keys)).map_err(io_error)?;
    tar.header(&format!("./{FOLDER}/{}", metadata::DATA_FILE), data_bytes).map_err(io_error)?;
    let checksums = write_items(&mut tar, &keys, source, options, output)?;
    tar.pad(data_bytes).map_err(io_error)?;
    // Two empty blocks end an archive.
    tar.write(&[0; 2 * BLOCK_BYTES]).map_err(io_error)?;

    let size_bytes = tar.written_bytes;
    let eager = tar.out.into_inner().map_err(|error| io_error(error.into_error()))?;
    for (at, checksum) in checksums {
        file.handle().write_all_at(&checksum.to_le_bytes(), at).map_err(io_error)?;
    }
    eager.finish().map_err(io_error)?;
    file.persist(output).map_err(io_error)?;
    let num_parameters = keys.iter().map(|key| key.shape.iter().product::<u64>()).sum();
    Ok(WriteReport {
        num_tensors: keys.iter().map(|key| key.pieces.len()).sum(),
        num_parameters,
        tensor_bytes: keys
            .iter()
            .map(|key| key.shape.iter().product::<u64>() * key.dtype.size_bytes() as u64)
            .sum(),
        size_bytes,
        artifact_members: artifacts.iter().map(Artifact::member_name).collect(),
    })
}

/// The folder that holds `output`.
fn parent_of(output: &Path) -> &Path {
    output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Streams the items; the result is where in the file which checksums belong.
fn write_items<W: Write>(
    tar: &mut Tar<W>,
    keys: &[StackedKey],
    source: &dyn TensorSource,
    options: &WriteOptions<'_>,
    output: &Path,
) -> Result<Vec<(u64, u32)>, FormatError> {
    let pieces: Vec<(DType, &Piece)> =
        keys.iter().flat_map(|key| key.pieces.iter().map(|piece| (key.dtype, piece))).collect();
    let jobs: Vec<Job<'_>> =
        pieces.iter().map(|(dtype, piece)| Job { name: &piece.source_name, dtype: *dtype }).collect();
    let bytes_of =
        |(dtype, piece): (DType, &Piece)| piece.sizes.iter().product::<u64>() * dtype.size_bytes() as u64;
    let mut progress = Progress::new(options.progress, pieces.iter().map(|&pair| bytes_of(pair)));
    let data_at = tar.written_bytes;
    let mut checksums = Vec::new();
    let mut checksum_at = None;
    stream(source, &jobs, Checksums::Crc32, &mut |event| {
        let written = match event {
            Event::Begin(index) => pieces.get(index).map_or(Ok(()), |(_, piece)| {
                let gap = data_at + piece.item_at - tar.written_bytes;
                let (head, at) = piece.item.head();
                checksum_at = at.map(|at| data_at + piece.item_at + at);
                tar.write(&vec![0; gap as usize]).and_then(|()| tar.write(&head))
            }),
            Event::Bytes(bytes) => tar.write(bytes),
            Event::End(index, checksum) => pieces.get(index).map_or(Ok(()), |&(dtype, piece)| {
                checksums.extend(checksum_at.map(|at| (at, checksum)));
                progress.advance(bytes_of((dtype, piece)));
                tar.write(&piece.item.tail(checksum))
            }),
        };
        written.map_err(|source| FormatError::io("write", output, source))
    })?;
    let end = tar.written_bytes - data_at;
    let tail = vec![0; (end.next_multiple_of(torch_item::ALIGNMENT) - end) as usize];
    tar.write(&tail).map_err(|source| FormatError::io("write", output, source))?;
    Ok(checksums)
}

/// Counts what is written and reports it to the caller.
struct Progress<'a> {
    report: Option<&'a (dyn Fn(WriteProgress) + Sync)>,
    state: WriteProgress,
}

impl<'a> Progress<'a> {
    fn new(report: Option<&'a (dyn Fn(WriteProgress) + Sync)>, sizes: impl Iterator<Item = u64>) -> Self {
        let mut state = WriteProgress { num_tensors_done: 0, num_tensors: 0, done_bytes: 0, total_bytes: 0 };
        for size_bytes in sizes {
            state.num_tensors += 1;
            state.total_bytes += size_bytes;
        }
        Self { report, state }
    }

    fn advance(&mut self, size_bytes: u64) {
        self.state.num_tensors_done += 1;
        self.state.done_bytes += size_bytes;
        if let Some(report) = self.report {
            report(self.state);
        }
    }
}

const BLOCK_BYTES: usize = 512;

/// A tar under construction. Members start on blocks of 512 bytes, so data aligned within a member is aligned in
/// the archive.
struct Tar<W> {
    out: W,
    written_bytes: u64,
}

impl<W: Write> Tar<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// A header in GNU format, whose sizes have no limit; the same bytes on every machine and day.
    fn header(&mut self, name: &str, len_bytes: u64) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        // Written by hand because `set_path` drops the leading `./` that NeMo's own archives have.
        let field = &mut header.as_old_mut().name;
        match field.get_mut(..name.len()) {
            Some(field) => field.copy_from_slice(name.as_bytes()),
            // Converted checkpoints carry several hashes in front of an artifact's name.
            None => {
                let len = field.len();
                field.copy_from_slice(&name.as_bytes()[..len]);
                self.long_name(name)?;
            }
        }
        header.set_size(len_bytes);
        header.set_entry_type(tar::EntryType::Regular);
        self.plain_header(&mut header)
    }

    /// The member that carries a name too long for the header after it.
    fn long_name(&mut self, name: &str) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink")?;
        header.set_entry_type(tar::EntryType::GNULongName);
        let content = [name.as_bytes(), &[0]].concat();
        header.set_size(content.len() as u64);
        self.plain_header(&mut header)?;
        self.write(&content)?;
        self.pad(content.len() as u64)
    }

    fn plain_header(&mut self, header: &mut tar::Header) -> io::Result<()> {
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn pad(&mut self, len_bytes: u64) -> io::Result<()> {
        let padding = len_bytes.next_multiple_of(BLOCK_BYTES as u64) - len_bytes;
        self.write(&vec![0; padding as usize])
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, bytes.len() as u64)?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }
}
