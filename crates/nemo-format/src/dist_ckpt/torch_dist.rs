//! The torch_dist backend as a [`TensorSource`].

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;

use super::metadata::{self, Chunk, StoredKey};
use super::{FOLDER, LAYERS};
use crate::archive::Archive;
use crate::torch_zip::{StoredTensor, read_tensor};
use crate::{FormatError, Region, TensorMeta, TensorSource};

/// The tensors of a torch_dist checkpoint, read in place.
#[derive(Debug)]
pub(crate) struct TorchDist {
    archive: Arc<Archive>,
    /// By the file's own names.
    stored: IndexMap<String, StoredKey>,
    /// By canonical names.
    tensors: IndexMap<String, Canonical>,
}

/// A canonical tensor: a stored one, or one layer of a stacked one.
#[derive(Debug)]
struct Canonical {
    stored_idx: usize,
    layer: Option<u64>,
    meta: TensorMeta,
}

impl TorchDist {
    pub(crate) fn open(archive: Arc<Archive>) -> Result<Self, FormatError> {
        let file = format!("{FOLDER}/.metadata");
        let stored = metadata::parse(archive.member(&file)?, &file)?;
        let mut tensors = IndexMap::new();
        for (stored_idx, (key, value)) in stored.iter().enumerate() {
            let name = canonical_key(key);
            let in_layers = name.strip_prefix(LAYERS);
            let is_stacked = in_layers.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
            match in_layers.filter(|_| is_stacked) {
                Some(rest) => {
                    let Some((&num_layers, shape)) = value.meta.shape.split_first() else {
                        let reason = "a stacked tensor has no layer axis".to_owned();
                        return Err(FormatError::BadTensor { name: key.clone(), reason });
                    };
                    for layer in 0..num_layers.min(MAX_LAYERS) {
                        let meta = TensorMeta { dtype: value.meta.dtype, shape: shape.to_vec() };
                        tensors.insert(
                            format!("{LAYERS}{layer}.{rest}"),
                            Canonical { stored_idx, layer: Some(layer), meta },
                        );
                    }
                }
                None => {
                    tensors.insert(name, Canonical { stored_idx, layer: None, meta: value.meta.clone() });
                }
            }
        }
        Ok(Self { archive, stored, tensors })
    }

    /// The tensors as the file names them, in its order.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &TensorMeta)> {
        self.stored.iter().map(|(name, key)| (name.as_str(), &key.meta))
    }

    /// A chunk's tensor and its bytes.
    fn chunk_bytes(
        &self,
        name: &str,
        key: &StoredKey,
        chunk: &Chunk,
    ) -> Result<(StoredTensor, &[u8]), FormatError> {
        let member = format!("{FOLDER}/{}", chunk.file);
        let bytes = self.archive.member(&member)?;
        let item = bytes.get(chunk.item.start as usize..chunk.item.end as usize).ok_or_else(|| {
            FormatError::Damaged {
                file: member.clone(),
                offset_bytes: chunk.item.start,
                reason: format!(
                    "an item of `{name}` ends at {}, the file at {}",
                    chunk.item.end,
                    bytes.len()
                ),
            }
        })?;
        let tensor = read_tensor(item, &member)?;
        if tensor.shape != chunk.sizes || tensor.dtype != key.meta.dtype {
            let reason = format!(
                "a chunk holds {} {:?}, its metadata says {} {:?}",
                tensor.dtype.name(),
                tensor.shape,
                key.meta.dtype.name(),
                chunk.sizes
            );
            return Err(FormatError::BadTensor { name: name.to_owned(), reason });
        }
        Ok((tensor, item))
    }
}

/// More layers than any model has; bounds what a hostile file can make this reader allocate.
const MAX_LAYERS: u64 = 4096;

/// `model.module.x`, `module.x` and `x._orig_mod.y` mean the same tensor as `model.x` and `x.y`.
fn canonical_key(key: &str) -> String {
    let rest = key.strip_prefix("model.").unwrap_or(key);
    let rest = rest.strip_prefix("module.").unwrap_or(rest);
    format!("model.{}", rest.replace("._orig_mod", ""))
}

impl TensorSource for TorchDist {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors.get(name).map(|tensor| &tensor.meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let tensor =
            self.tensors.get(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        region.check(name, &tensor.meta, dst.len())?;
        let Some((key_name, key)) = self.stored.get_index(tensor.stored_idx) else { return Ok(()) };
        let mut wanted: Vec<Range<u64>> = tensor.layer.map(|layer| layer..layer + 1).into_iter().collect();
        wanted.extend(region.ranges.iter().cloned());
        for chunk in &key.chunks {
            let overlap: Option<Vec<Range<u64>>> = wanted
                .iter()
                .zip(chunk.offsets.iter().zip(&chunk.sizes))
                .map(|(range, (&offset, &size))| {
                    let (start, end) = (range.start.max(offset), range.end.min(offset + size));
                    (start < end).then_some(start..end)
                })
                .collect();
            if let Some(overlap) = overlap {
                let (stored, bytes) = self.chunk_bytes(key_name, key, chunk)?;
                copy_overlap(
                    &Overlap { wanted: &wanted, overlap: &overlap, chunk, stored: &stored },
                    bytes,
                    dst,
                );
            }
        }
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let tensor = self.tensors.get(name)?;
        let (key_name, key) = self.stored.get_index(tensor.stored_idx)?;
        let first = tensor.layer.unwrap_or(0);
        let chunk = key.chunks.iter().find(|chunk| match tensor.layer {
            Some(layer) => chunk
                .offsets
                .first()
                .zip(chunk.sizes.first())
                .is_some_and(|(&offset, &size)| (offset..offset + size).contains(&layer)),
            None => true,
        })?;
        let is_whole = if tensor.layer.is_some() {
            chunk.sizes.get(1..)? == tensor.meta.shape
                && chunk.offsets.get(1..)?.iter().all(|&offset| offset == 0)
        } else {
            chunk.sizes == tensor.meta.shape
        };
        if !is_whole {
            return None;
        }
        let (stored, bytes) = self.chunk_bytes(key_name, key, chunk).ok()?;
        if !stored.is_contiguous() {
            return None;
        }
        let size_bytes = tensor.meta.size_bytes()?;
        let layer_in_chunk = if tensor.layer.is_some() { first - chunk.offsets.first()? } else { 0 };
        let start = stored.start_bytes + layer_in_chunk * size_bytes;
        bytes.get(start as usize..(start + size_bytes) as usize)
    }
}

/// What part of a chunk goes where.
struct Overlap<'a> {
    wanted: &'a [Range<u64>],
    overlap: &'a [Range<u64>],
    chunk: &'a Chunk,
    stored: &'a StoredTensor,
}

/// Copies the overlap row by row, a row being a run along the last axis.
fn copy_overlap(part: &Overlap<'_>, bytes: &[u8], dst: &mut [u8]) {
    let elem_bytes = part.stored.dtype.size_bytes();
    let num_axes = part.wanted.len();
    let last = num_axes.saturating_sub(1);
    let row_elems = part.overlap.get(last).map_or(1, |range| range.end - range.start);
    let mut index: Vec<u64> = part.overlap.iter().map(|range| range.start).collect();
    loop {
        let mut from_elems = 0;
        let mut to_elems = 0;
        for (axis, &at) in index.iter().enumerate() {
            from_elems += (at - part.chunk.offsets[axis]) * part.stored.strides_elems[axis];
            let extent = part.wanted[axis].end - part.wanted[axis].start;
            to_elems = to_elems * extent + (at - part.wanted[axis].start);
        }
        let stride_elems = part.stored.strides_elems.get(last).copied().unwrap_or(1);
        let from = part.stored.start_bytes as usize + from_elems as usize * elem_bytes;
        let to = to_elems as usize * elem_bytes;
        if stride_elems == 1 || row_elems == 1 {
            let len = row_elems as usize * elem_bytes;
            dst[to..to + len].copy_from_slice(&bytes[from..from + len]);
        } else {
            for elem in 0..row_elems as usize {
                let from = from + elem * stride_elems as usize * elem_bytes;
                let to = to + elem * elem_bytes;
                dst[to..to + elem_bytes].copy_from_slice(&bytes[from..from + elem_bytes]);
            }
        }
        // The next row: count up all axes but the last.
        let mut axis = last;
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < part.overlap[axis].end {
                break;
            }
            index[axis] = part.overlap[axis].start;
        }
    }
}
