//! Tensors put together from boxes of mapped files: the one [`TensorSource`] behind every Megatron and torch format.
//!
//! A reader says where the pieces of an array lie and what the array is called; reading, cutting out layers and
//! finding what can be used in place are the same for all. Values are never changed.

use std::ops::Range;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::archive::Archive;
use crate::region::{StridedCopy, row_major_strides_elems};
use crate::torch_file::read_tensor;
use crate::{FormatError, Region, TensorMeta, TensorSource};

/// Pieces of one array. The largest real checkpoints cut an array by layers, experts and ranks into some ten thousand.
const MAX_PIECES: usize = 1 << 18;

/// A box of an array and the bytes that fill it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where in the array it begins.
    pub(crate) offsets: Vec<u64>,
    /// Its extent.
    pub(crate) sizes: Vec<u64>,
    /// The file, as [`Archive::at`] knows it.
    pub(crate) member_idx: usize,
    pub(crate) data: PieceData,
}

/// Where in its file a piece's elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PieceData {
    /// Element by element at these strides.
    Strided { start_bytes: u64, strides_elems: Vec<u64> },
    /// In a torch file of one tensor, which is opened when it is needed.
    TorchItem(Range<u64>),
}

/// A global array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Array {
    /// The file's own name, for errors.
    pub(crate) name: String,
    pub(crate) meta: TensorMeta,
    pub(crate) pieces: Vec<Piece>,
}

/// A tensor: an array, or a part of an array whose first axes count layers or experts.
#[derive(Debug)]
struct Tensor {
    array_idx: usize,
    /// The place on each of these axes.
    at: Vec<u64>,
    meta: TensorMeta,
}

/// Arrays under the names of their tensors.
#[derive(Debug)]
pub(crate) struct PiecedSource {
    archive: Arc<Archive>,
    arrays: Vec<Array>,
    tensors: IndexMap<String, Tensor>,
}

impl PiecedSource {
    pub(crate) fn new(archive: Arc<Archive>) -> Self {
        Self { archive, arrays: Vec::new(), tensors: IndexMap::new() }
    }

    /// Adds an array, all of it as the tensor `name`.
    pub(crate) fn add(&mut self, name: String, array: Array) -> Result<(), FormatError> {
        let meta = array.meta.clone();
        let array_idx = self.add_array(array)?;
        self.add_tensor(name, Tensor { array_idx, at: Vec::new(), meta })
    }

    /// Adds an array whose first axes count what `axes` are called in messages; `name_of` names the tensor at each place.
    pub(crate) fn add_stack<const N: usize>(
        &mut self,
        array: Array,
        axes: [&str; N],
        name_of: impl Fn([u64; N]) -> String,
    ) -> Result<(), FormatError> {
        let Some((counts, shape)) = array.meta.shape.split_first_chunk::<N>() else {
            let missing = axes.get(array.meta.shape.len()).unwrap_or(&"");
            return Err(FormatError::bad_tensor(
                &array.name,
                format!("a stacked tensor has no {missing} axis"),
            ));
        };
        let counts = *counts;
        let num_parts = counts.iter().fold(1_u64, |product, &count| product.saturating_mul(count));
        if num_parts > MAX_PIECES as u64 {
            return Err(FormatError::Limit {
                file: array.name,
                what: if N == 1 { "layers" } else { "experts of all layers" },
                value: num_parts,
                limit: MAX_PIECES as u64,
            });
        }
        let meta = TensorMeta { dtype: array.meta.dtype, shape: shape.to_vec() };
        let array_idx = self.add_array(array)?;
        (0..num_parts).try_for_each(|part| {
            let mut rest = part;
            let mut at = [0; N];
            for (place, &count) in at.iter_mut().zip(&counts).rev() {
                *place = rest % count.max(1);
                rest /= count.max(1);
            }
            self.add_tensor(name_of(at), Tensor { array_idx, at: at.to_vec(), meta: meta.clone() })
        })
    }

    fn add_array(&mut self, array: Array) -> Result<usize, FormatError> {
        check_tiling(&array).map_err(|reason| FormatError::bad_tensor(&array.name, reason))?;
        self.arrays.push(array);
        Ok(self.arrays.len() - 1)
    }

    fn add_tensor(&mut self, name: String, tensor: Tensor) -> Result<(), FormatError> {
        let new = self.arrays.get(tensor.array_idx).map_or("", |array| &array.name);
        if let Some(old) = self.tensors.get(&name) {
            let old = self.arrays.get(old.array_idx).map_or("", |array| &array.name);
            let reason = format!("`{old}` and `{new}` both stand for it; one of them must go");
            return Err(FormatError::bad_tensor(&name, reason));
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// The torch files that hold pieces: members as [`Archive::at`] knows them, and where in these they lie.
    pub(crate) fn torch_items(&self) -> Vec<(usize, Range<u64>)> {
        let pieces = self.arrays.iter().flat_map(|array| &array.pieces);
        let items = pieces.filter_map(|piece| match &piece.data {
            PieceData::TorchItem(item) => Some((piece.member_idx, item.clone())),
            PieceData::Strided { .. } => None,
        });
        items.collect()
    }

    fn find(&self, name: &str) -> Option<(&Tensor, &Array)> {
        let tensor = self.tensors.get(name)?;
        Some((tensor, self.arrays.get(tensor.array_idx)?))
    }

    /// The piece's bytes from its first element on, and its strides.
    fn view<'a>(&'a self, array: &'a Array, piece: &'a Piece) -> Result<View<'a>, FormatError> {
        let file = self.archive.at(piece.member_idx);
        let outside = |start: u64| {
            FormatError::bad_tensor(
                &array.name,
                format!("a piece begins at byte {start} of a file of {} bytes", file.len()),
            )
        };
        match &piece.data {
            PieceData::Strided { start_bytes, strides_elems } => {
                let bytes = file.get(*start_bytes as usize..).ok_or_else(|| outside(*start_bytes))?;
                Ok(View { bytes, strides_elems: strides_elems.clone() })
            }
            PieceData::TorchItem(item) => {
                let bytes =
                    file.get(item.start as usize..item.end as usize).ok_or_else(|| outside(item.start))?;
                let tensor = read_tensor(bytes, &array.name)?;
                if tensor.shape != piece.sizes || tensor.dtype != array.meta.dtype {
                    let reason = format!(
                        "a chunk holds {} {:?}, its metadata says {} {:?}",
                        tensor.dtype.name(),
                        tensor.shape,
                        array.meta.dtype.name(),
                        piece.sizes
                    );
                    return Err(FormatError::bad_tensor(&array.name, reason));
                }
                let bytes =
                    bytes.get(tensor.start_bytes as usize..).ok_or_else(|| outside(tensor.start_bytes))?;
                Ok(View { bytes, strides_elems: tensor.strides_elems })
            }
        }
    }
}

/// A piece's bytes.
struct View<'a> {
    bytes: &'a [u8],
    strides_elems: Vec<u64>,
}

impl View<'_> {
    /// The byte of the element `index` of the piece.
    fn byte_of(&self, index: impl Iterator<Item = u64>, elem_bytes: usize) -> Option<usize> {
        let elem = index
            .zip(&self.strides_elems)
            .try_fold(0_u64, |elem, (at, &stride)| elem.checked_add(at.checked_mul(stride)?))?;
        usize::try_from(elem).ok()?.checked_mul(elem_bytes)
    }
}

impl Piece {
    fn end(&self, axis: usize) -> u64 {
        self.offsets[axis].saturating_add(self.sizes[axis])
    }

    /// What it shares with a box.
    fn overlap(&self, wanted: &[Range<u64>]) -> Option<Vec<Range<u64>>> {
        let shared = |(axis, range): (usize, &Range<u64>)| {
            let (start, end) = (range.start.max(self.offsets[axis]), range.end.min(self.end(axis)));
            (start < end).then_some(start..end)
        };
        wanted.iter().enumerate().map(shared).collect()
    }

    fn is_disjoint(&self, other: &Self) -> bool {
        (0..self.sizes.len())
            .any(|axis| self.end(axis) <= other.offsets[axis] || other.end(axis) <= self.offsets[axis])
    }
}

/// The box of the array that `region` of the tensor is.
fn in_array(tensor: &Tensor, region: &Region) -> Vec<Range<u64>> {
    tensor.at.iter().map(|&place| place..place + 1).chain(region.ranges.iter().cloned()).collect()
}

impl TensorSource for PiecedSource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors.get(name).map(|tensor| &tensor.meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let (tensor, array) =
            self.find(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        tensor.meta.check_region(name, region, dst.len())?;
        let wanted = in_array(tensor, region);
        let extents: Vec<u64> = wanted.iter().map(|range| range.end - range.start).collect();
        let to_strides_elems = row_major_strides_elems(&extents);
        let elem_bytes = array.meta.dtype.size_bytes();
        for piece in &array.pieces {
            let Some(overlap) = piece.overlap(&wanted) else { continue };
            let view = self.view(array, piece)?;
            let from_first = overlap.iter().zip(&piece.offsets).map(|(range, &offset)| range.start - offset);
            let to_first: u64 = overlap
                .iter()
                .zip(&wanted)
                .zip(&to_strides_elems)
                .map(|((range, wanted), &stride)| (range.start - wanted.start) * stride)
                .sum();
            let sizes: Vec<u64> = overlap.iter().map(|range| range.end - range.start).collect();
            let copy = StridedCopy {
                sizes: &sizes,
                from_strides_elems: &view.strides_elems,
                to_strides_elems: &to_strides_elems,
                elem_bytes,
            };
            let from = view.byte_of(from_first, elem_bytes).and_then(|start| view.bytes.get(start..));
            let to = dst.get_mut(to_first as usize * elem_bytes..);
            from.zip(to).and_then(|(from, to)| copy.copy(from, to)).ok_or_else(|| {
                let reason = format!("its piece at {:?} of {:?} leaves its file", piece.offsets, piece.sizes);
                FormatError::bad_tensor(&array.name, reason)
            })?;
        }
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let (tensor, array) = self.find(name)?;
        let wanted = in_array(tensor, &Region::whole(&tensor.meta.shape));
        let piece = array.pieces.iter().find(|piece| piece.overlap(&wanted).as_ref() == Some(&wanted))?;
        let view = self.view(array, piece).ok()?;
        let mut run_elems = 1_u64;
        for (range, &stride) in wanted.iter().zip(&view.strides_elems).rev() {
            let size = range.end - range.start;
            if size != 1 && stride != run_elems {
                return None;
            }
            run_elems = run_elems.checked_mul(size)?;
        }
        let first = wanted.iter().zip(&piece.offsets).map(|(range, &offset)| range.start - offset);
        let start = view.byte_of(first, array.meta.dtype.size_bytes())?;
        let bytes = view.bytes.get(start..)?;
        bytes.get(..usize::try_from(tensor.meta.size_bytes()?).ok()?)
    }
}

/// Every element of the array is in exactly one piece: pieces lie inside, are disjoint, and add up.
fn check_tiling(array: &Array) -> Result<(), String> {
    let shape = &array.meta.shape;
    let total = array.meta.num_elems().ok_or("its size overflows")?;
    if array.pieces.len() > MAX_PIECES {
        return Err(format!("it has {} pieces, the limit is {MAX_PIECES}", array.pieces.len()));
    }
    let mut covered = 0_u64;
    for piece in &array.pieces {
        let same_rank = piece.offsets.len() == shape.len() && piece.sizes.len() == shape.len();
        let inside = same_rank
            && (0..shape.len()).all(|axis| {
                piece.offsets[axis].checked_add(piece.sizes[axis]).is_some_and(|end| end <= shape[axis])
            });
        if !inside {
            return Err(format!(
                "a piece at {:?} of {:?} leaves the shape {shape:?}",
                piece.offsets, piece.sizes
            ));
        }
        // Inside the shape, so no larger than it.
        covered = covered.saturating_add(piece.sizes.iter().product());
    }
    let mut by_start: Vec<&Piece> = array.pieces.iter().filter(|piece| !piece.sizes.contains(&0)).collect();
    by_start.sort_by(|left, right| left.offsets.cmp(&right.offsets));
    let mut open: Vec<&Piece> = Vec::new();
    for piece in by_start {
        open.retain(|other| shape.is_empty() || other.end(0) > piece.offsets[0]);
        if let Some(other) = open.iter().find(|other| !other.is_disjoint(piece)) {
            return Err(format!("its pieces at {:?} and {:?} overlap", other.offsets, piece.offsets));
        }
        open.push(piece);
    }
    if covered == total {
        Ok(())
    } else {
        Err(format!("its pieces hold {covered} elements, its shape {shape:?} needs {total}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn tiling(shape: &[u64], pieces: &[(&[u64], &[u64])]) -> Result<(), String> {
        let piece = |&(offsets, sizes): &(&[u64], &[u64])| Piece {
            offsets: offsets.to_vec(),
            sizes: sizes.to_vec(),
            member_idx: 0,
            data: PieceData::TorchItem(0..0),
        };
        check_tiling(&Array {
            name: "t".to_owned(),
            meta: TensorMeta { dtype: DType::U8, shape: shape.to_vec() },
            pieces: pieces.iter().map(piece).collect(),
        })
    }

    #[test]
    fn every_element_is_in_one_piece() {
        assert_eq!(tiling(&[2, 3], &[(&[0, 0], &[2, 1]), (&[0, 1], &[1, 2]), (&[1, 1], &[1, 2])]), Ok(()));
        assert_eq!(tiling(&[], &[(&[], &[])]), Ok(()));
        assert_eq!(tiling(&[0, 3], &[]), Ok(()));
        // The volumes add up, the coverage does not.
        let error = tiling(&[4], &[(&[0], &[2]), (&[1], &[2])]).unwrap_err();
        insta::assert_snapshot!(error, @"its pieces at [0] and [1] overlap");
        insta::assert_snapshot!(tiling(&[4], &[(&[0], &[2])]).unwrap_err(), @"its pieces hold 2 elements, its shape [4] needs 4");
        insta::assert_snapshot!(tiling(&[4], &[(&[3], &[2])]).unwrap_err(), @"a piece at [3] of [2] leaves the shape [4]");
        assert!(tiling(&[], &[(&[], &[]), (&[], &[])]).is_err());
        assert!(tiling(&[u64::MAX, 2], &[]).is_err());
    }
}
