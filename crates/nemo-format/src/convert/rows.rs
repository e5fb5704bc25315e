//! A [`TensorSource`] whose tensors are put together from rows of another source's tensors as they are read.
//!
//! Fused QKV, fused gate and up, transposed weights, and llama.cpp's rotary row order are all lists of row ranges, so
//! one reader serves every architecture and both directions.

mod fp8;

use std::ops::Range;

use indexmap::IndexMap;

use crate::convert_dtype::{convert_into, is_float};
use crate::{DType, FormatError, Fp8Weights, Region, TensorMeta, TensorSource};

/// Rows of one tensor of the source.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) rows: Range<u64>,
    pub(super) from: PieceFrom,
}

/// Where rows come from.
#[derive(Clone, Debug)]
pub(super) enum PieceFrom {
    /// A tensor, in its own row order.
    Tensor(String),
    /// A tensor whose columns are the rows.
    Transposed(String),
    /// A tensor whose rows llama.cpp permuted: within each head, stored row `2 i + j` is row `j * head_dim / 2 + i`
    /// of the half-split rotary order.
    PairedRotary { name: String, head_dim: u64 },
    /// A tensor with one axis, as a row.
    Row(String),
    /// Rows of zeros, for biases that the source does not have but the target layout needs.
    Zeros,
}

impl PieceFrom {
    fn tensor(&self) -> Option<&str> {
        match self {
            Self::Tensor(name)
            | Self::Transposed(name)
            | Self::Row(name)
            | Self::PairedRotary { name, .. } => Some(name),
            Self::Zeros => None,
        }
    }
}

/// What happens to the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Values {
    /// At most another floating-point type.
    Kept,
    /// `by` is added in f32; the result has a type of its own.
    Shifted { by: f32, dtype: DType },
}

/// Tensors made of pieces.
pub(super) struct RowSource {
    inner: Box<dyn TensorSource>,
    dtype: DType,
    tensors: IndexMap<String, RowTensor>,
}

struct RowTensor {
    meta: TensorMeta,
    pieces: Vec<Piece>,
    shift: f32,
}

impl RowSource {
    /// Presents floating-point values as `dtype`.
    pub(super) fn new(inner: Box<dyn TensorSource>, dtype: DType) -> Self {
        Self { inner, dtype, tensors: IndexMap::new() }
    }

    pub(super) fn inner(&self) -> &dyn TensorSource {
        &*self.inner
    }

    /// Presents these tensors in float32.
    pub(super) fn widen(&mut self, names: &[String]) {
        for name in names {
            if let Some(tensor) = self.tensors.get_mut(name) {
                tensor.meta.dtype = DType::F32;
            }
        }
    }

    /// The source's tensors that were used, once for each piece, with the number of rows taken.
    pub(super) fn used(&self) -> impl Iterator<Item = (&str, u64)> {
        let pieces = self.tensors.values().flat_map(|tensor| &tensor.pieces);
        pieces.filter_map(|piece| Some((piece.from.tensor()?, piece.rows.end - piece.rows.start)))
    }

    /// Tensors that are made of such tensors alone.
    pub(super) fn names_made_of(&self, is_such: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        let tensors = self.tensors.iter().filter(move |(_, tensor)| {
            tensor.pieces.iter().all(|piece| piece.from.tensor().is_some_and(&is_such))
        });
        tensors.map(|(name, _)| name.as_str())
    }

    /// How many rows a used tensor has: columns, where it is transposed.
    pub(super) fn num_rows(&self, from: &str) -> u64 {
        let is_row = |piece: &Piece| matches!(&piece.from, PieceFrom::Row(name) if name == from);
        if self.tensors.values().flat_map(|tensor| &tensor.pieces).any(is_row) {
            return 1;
        }
        let is_transposed =
            |piece: &Piece| matches!(&piece.from, PieceFrom::Transposed(name) if name == from);
        let axis = usize::from(self.tensors.values().flat_map(|tensor| &tensor.pieces).any(is_transposed));
        self.inner.meta(from).and_then(|meta| meta.shape.get(axis)).copied().unwrap_or(0)
    }

    /// Adds the tensor `name` of the given shape, checking every piece against the source.
    pub(super) fn add(
        &mut self,
        name: String,
        shape: Vec<u64>,
        pieces: Vec<Piece>,
        values: Values,
    ) -> Result<(), FormatError> {
        let (shift, dtype) = match values {
            Values::Kept => (0.0, self.dtype),
            Values::Shifted { by, dtype } => (by, dtype),
        };
        for piece in &pieces {
            let Some(from) = piece.from.tensor() else { continue };
            let meta = self.inner.meta(from).ok_or_else(|| missing(from, &name))?;
            let mut stored = meta.shape.clone();
            if matches!(piece.from, PieceFrom::Transposed(_)) {
                stored.reverse();
            }
            if matches!(piece.from, PieceFrom::Row(_)) {
                stored.insert(0, 1);
            }
            let fits = stored.len() == shape.len()
                && stored.get(1..) == shape.get(1..)
                && stored.first().is_some_and(|&rows| piece.rows.end <= rows);
            if !fits {
                let reason = format!(
                    "its shape {:?} does not hold rows {:?} that `{name}` of shape {shape:?} needs; the configuration and \
                     the weights do not belong together",
                    meta.shape, piece.rows
                );
                return Err(FormatError::bad_tensor(from, reason));
            }
            if !is_float(meta.dtype) {
                return Err(FormatError::Unsupported {
                    what: format!("tensor `{from}` of dtype {}", meta.dtype.name()),
                    hint: "save the weights as float32, bfloat16 or float16".to_owned(),
                });
            }
        }
        let num_rows: u64 = pieces.iter().map(|piece| piece.rows.end - piece.rows.start).sum();
        if shape.first() != Some(&num_rows) {
            let reason = format!("{num_rows} rows do not make up the shape {shape:?}");
            return Err(FormatError::bad_tensor(&name, reason));
        }
        self.tensors.insert(name, RowTensor { meta: TensorMeta { dtype, shape }, pieces, shift });
        Ok(())
    }

    /// How many values a shift has changed for good: those that shifting back does not restore.
    pub(super) fn num_rounded(&self) -> Result<u64, FormatError> {
        let mut num_rounded = 0;
        for (name, tensor) in self.tensors.iter().filter(|(_, tensor)| tensor.shift != 0.0) {
            let shifted = self.read_whole(name)?;
            let names = tensor.pieces.iter().filter_map(|piece| piece.from.tensor());
            for from in names {
                let Some(meta) = self.inner.meta(from) else { continue };
                let stored = self.inner.read_whole(from)?;
                let mut restored = vec![0; stored.len()];
                convert_into(&shifted, tensor.meta.dtype, &mut restored, meta.dtype, -tensor.shift);
                let elem_bytes = meta.dtype.size_bytes();
                let pairs = stored.chunks_exact(elem_bytes).zip(restored.chunks_exact(elem_bytes));
                num_rounded += pairs.filter(|(stored, restored)| stored != restored).count() as u64;
            }
        }
        Ok(num_rounded)
    }

    /// Calls `read` with what each piece has of the rows of `region`: the piece, rows of its tensor, and their bytes in `dst`.
    fn read_pieces(
        tensor: &RowTensor,
        region: &Region,
        dst: &mut [u8],
        mut read: impl FnMut(&PieceFrom, Range<u64>, &mut [u8]) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let Some(wanted) = region.ranges.first().filter(|_| !dst.is_empty()) else { return Ok(()) };
        let row_bytes = dst.len() / (wanted.end - wanted.start) as usize;
        let mut rest = dst;
        let mut piece_start = 0;
        for piece in &tensor.pieces {
            let piece_end = piece_start + (piece.rows.end - piece.rows.start);
            let (start, end) = (wanted.start.max(piece_start), wanted.end.min(piece_end));
            if start < end {
                let (part, tail) = rest.split_at_mut((end - start) as usize * row_bytes);
                let first = piece.rows.start + (start - piece_start);
                read(&piece.from, first..first + (end - start), part)?;
                rest = tail;
            }
            piece_start = piece_end;
        }
        Ok(())
    }

    /// Reads rows `rows` of a piece (counted from its tensor's first) with the columns of `region`, in the
    /// tensor's own type.
    fn read_stored(
        &self,
        from: &PieceFrom,
        rows: Range<u64>,
        region: &Region,
        dst: &mut [u8],
    ) -> Result<(), FormatError> {
        let with_rows = |rows: Range<u64>| {
            let columns = region.ranges.iter().skip(1).cloned();
            Region { ranges: std::iter::once(rows).chain(columns).collect() }
        };
        match from {
            PieceFrom::Zeros => {
                dst.fill(0);
                Ok(())
            }
            PieceFrom::Tensor(name) => self.inner.read(name, &with_rows(rows), dst),
            PieceFrom::Row(name) => {
                let ranges = region.ranges.iter().skip(1).cloned().collect();
                self.inner.read(name, &Region { ranges }, dst)
            }
            PieceFrom::Transposed(name) => {
                let num_rows = (rows.end - rows.start) as usize;
                let mut region = with_rows(rows);
                region.ranges.reverse();
                let num_columns = region.ranges.first().map_or(0, |range| (range.end - range.start) as usize);
                let mut stored = vec![0; dst.len()];
                self.inner.read(name, &region, &mut stored)?;
                transpose(&stored, dst, num_rows, num_columns);
                Ok(())
            }
            PieceFrom::PairedRotary { name, head_dim } => {
                let heads = rows.start / head_dim * head_dim..rows.end.div_ceil(*head_dim) * head_dim;
                let row_bytes = dst.len() / (rows.end - rows.start) as usize;
                let mut stored = vec![0; (heads.end - heads.start) as usize * row_bytes];
                self.inner.read(name, &with_rows(heads.clone()), &mut stored)?;
                for (row, dst) in rows.zip(dst.chunks_exact_mut(row_bytes)) {
                    let at = (paired_row(row, *head_dim) - heads.start) as usize * row_bytes;
                    dst.copy_from_slice(&stored[at..at + row_bytes]);
                }
                Ok(())
            }
        }
    }

    fn stored_dtype(&self, from: &PieceFrom) -> Option<DType> {
        Some(self.inner.meta(from.tensor()?)?.dtype)
    }
}

/// Where llama.cpp has a row of the half-split rotary order.
fn paired_row(row: u64, head_dim: u64) -> u64 {
    let (head, in_head) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + in_head % half * 2 + in_head / half
}

/// The error that the weights lack `from`, which `name` is made of.
pub(super) fn missing(from: &str, name: &str) -> FormatError {
    let reason = format!(
        "the weights do not have it, and `{name}` is made of it; complete the files, or correct the configuration if the model has \
         no such tensor"
    );
    FormatError::bad_tensor(from, reason)
}

/// Turns `num_columns` rows of `num_rows` elements around.
fn transpose(stored: &[u8], dst: &mut [u8], num_rows: usize, num_columns: usize) {
    let elem_bytes = dst.len() / (num_rows * num_columns).max(1);
    for (row, dst) in dst.chunks_exact_mut((num_columns * elem_bytes).max(1)).enumerate() {
        for (column, dst) in dst.chunks_exact_mut(elem_bytes).enumerate() {
            let at = (column * num_rows + row) * elem_bytes;
            dst.copy_from_slice(&stored[at..at + elem_bytes]);
        }
    }
}

impl TensorSource for RowSource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors.get(name).map(|tensor| &tensor.meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let tensor =
            self.tensors.get(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        tensor.meta.check_region(name, region, dst.len())?;
        let dtype = tensor.meta.dtype;
        Self::read_pieces(tensor, region, dst, |from, rows, part| {
            match self.stored_dtype(from).filter(|&stored| stored != dtype || tensor.shift != 0.0) {
                None => self.read_stored(from, rows, region, part)?,
                Some(stored_dtype) => {
                    let num_elems = part.len() / dtype.size_bytes();
                    let mut stored = vec![0; num_elems * stored_dtype.size_bytes()];
                    self.read_stored(from, rows, region, &mut stored)?;
                    convert_into(&stored, stored_dtype, part, dtype, tensor.shift);
                }
            }
            Ok(())
        })
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let tensor = self.tensors.get(name)?;
        let [Piece { from: PieceFrom::Tensor(from), .. }] = tensor.pieces.as_slice() else { return None };
        let is_same = self.inner.meta(from)? == &tensor.meta && tensor.shift == 0.0;
        is_same.then(|| self.inner.mapped_bytes(from))?
    }
    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        self.inner.fp8().map(|_| self as &dyn Fp8Weights)
    }
}
