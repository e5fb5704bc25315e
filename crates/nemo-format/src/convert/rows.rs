//! A [`TensorSource`] whose tensors are put together from rows of another source's tensors as they are read.
//!
//! Fused QKV, fused gate and up, and llama.cpp's rotary row order are all lists of row ranges, so one reader serves
//! every architecture. Columns are never moved and values never changed.

use std::ops::Range;

use indexmap::IndexMap;

use crate::{DType, FormatError, Region, TensorMeta, TensorSource};

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
    /// A tensor whose rows llama.cpp permuted: within each head, stored row `2 i + j` is row `j * head_dim / 2 + i`
    /// of the half-split rotary order.
    PairedRotary { name: String, head_dim: u64 },
    /// Rows of zeros, for biases that the source does not have but the target layout needs.
    Zeros,
}

/// Tensors made of pieces.
pub(super) struct RowSource<S> {
    inner: S,
    zeros_dtype: DType,
    tensors: IndexMap<String, RowTensor>,
}

struct RowTensor {
    meta: TensorMeta,
    pieces: Vec<Piece>,
}

impl<S: TensorSource> RowSource<S> {
    /// Tensors that are all zeros get `zeros_dtype`.
    pub(super) fn new(inner: S, zeros_dtype: DType) -> Self {
        Self { inner, zeros_dtype, tensors: IndexMap::new() }
    }

    pub(super) fn inner(&self) -> &S {
        &self.inner
    }

    /// Adds the tensor `name` of the given shape, checking every piece against the source.
    pub(super) fn add(
        &mut self,
        name: String,
        shape: Vec<u64>,
        pieces: Vec<Piece>,
    ) -> Result<(), FormatError> {
        let mut dtype = None;
        for piece in &pieces {
            let (PieceFrom::Tensor(from) | PieceFrom::PairedRotary { name: from, .. }) = &piece.from else {
                continue;
            };
            let meta =
                self.inner.meta(from).ok_or_else(|| FormatError::MissingTensor { name: from.clone() })?;
            let fits = meta.shape.len() == shape.len()
                && meta.shape.get(1..) == shape.get(1..)
                && meta.shape.first().is_some_and(|&rows| piece.rows.end <= rows);
            if !fits {
                let reason = format!(
                    "its shape {:?} does not hold rows {:?} that `{name}` of shape {shape:?} needs",
                    meta.shape, piece.rows
                );
                return Err(FormatError::bad_tensor(from, reason));
            }
            if *dtype.get_or_insert(meta.dtype) != meta.dtype {
                return Err(FormatError::bad_tensor(from, format!("its parts in `{name}` differ in dtype")));
            }
        }
        let num_rows: u64 = pieces.iter().map(|piece| piece.rows.end - piece.rows.start).sum();
        if shape.first() != Some(&num_rows) {
            let reason = format!("{num_rows} rows do not make up the shape {shape:?}");
            return Err(FormatError::bad_tensor(&name, reason));
        }
        let dtype = dtype.unwrap_or(self.zeros_dtype);
        self.tensors.insert(name, RowTensor { meta: TensorMeta { dtype, shape }, pieces });
        Ok(())
    }

    /// Reads rows `rows` of `piece` (counted from the tensor's first) with the columns of `region`.
    fn read_piece(
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
            PieceFrom::PairedRotary { name, head_dim } => {
                let heads = rows.start / head_dim * head_dim..rows.end.div_ceil(*head_dim) * head_dim;
                let row_bytes = dst.len() / (rows.end - rows.start) as usize;
                let mut stored = vec![0; (heads.end - heads.start) as usize * row_bytes];
                self.inner.read(name, &with_rows(heads.clone()), &mut stored)?;
                for (row, dst) in rows.zip(dst.chunks_exact_mut(row_bytes)) {
                    let (head, in_head) = (row / head_dim, row % head_dim);
                    let half = head_dim / 2;
                    let stored_row = head * head_dim + in_head % half * 2 + in_head / half;
                    let at = (stored_row - heads.start) as usize * row_bytes;
                    dst.copy_from_slice(&stored[at..at + row_bytes]);
                }
                Ok(())
            }
        }
    }
}

impl<S: TensorSource> TensorSource for RowSource<S> {
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
                self.read_piece(&piece.from, first..first + (end - start), region, part)?;
                rest = tail;
            }
            piece_start = piece_end;
        }
        Ok(())
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        let tensor = self.tensors.get(name)?;
        let [Piece { from: PieceFrom::Tensor(from), .. }] = tensor.pieces.as_slice() else { return None };
        (self.inner.meta(from)? == &tensor.meta).then(|| self.inner.mapped_bytes(from))?
    }
}
