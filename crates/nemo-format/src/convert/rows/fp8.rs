//! Rows that are stored in FP8, put together as they are: a row keeps its numbers and its scale wherever it goes.

use super::{Piece, PieceFrom, RowSource, paired_row};
use crate::{FormatError, Fp8Weights, Region};

impl Fp8Weights for RowSource {
    fn row_scales(&self, name: &str) -> Option<Vec<f32>> {
        let (stored, tensor) = (self.inner.fp8()?, self.tensors.get(name)?);
        if tensor.shift != 0.0 {
            return None;
        }
        let mut scales = Vec::new();
        for piece in &tensor.pieces {
            let (from, row_of): (_, &dyn Fn(u64) -> u64) = match &piece.from {
                PieceFrom::Tensor(from) => (from, &|row| row),
                PieceFrom::PairedRotary { name, head_dim } => (name, &|row| paired_row(row, *head_dim)),
                // Columns and vectors have no scales of their own.
                PieceFrom::Transposed(_) | PieceFrom::Row(_) | PieceFrom::Zeros => return None,
            };
            let of_tensor = stored.row_scales(from)?;
            for row in piece.rows.clone() {
                scales.push(*of_tensor.get(usize::try_from(row_of(row)).ok()?)?);
            }
        }
        Some(scales)
    }

    fn read_numbers(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let stored = self.inner.fp8().ok_or_else(missing)?;
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let [_, columns] = region.ranges.as_slice() else { return Err(missing()) };
        let width = columns.end.saturating_sub(columns.start) as usize;
        Self::read_pieces(tensor, region, dst, |from, rows, part| match from {
            PieceFrom::Tensor(from) => {
                stored.read_numbers(from, &Region { ranges: vec![rows, columns.clone()] }, part)
            }
            PieceFrom::PairedRotary { name, head_dim } => {
                for (row, part) in rows.zip(part.chunks_exact_mut(width.max(1))) {
                    let row = paired_row(row, *head_dim);
                    let one = Region { ranges: vec![row..row + 1, columns.clone()] };
                    stored.read_numbers(name, &one, part)?;
                }
                Ok(())
            }
            PieceFrom::Transposed(_) | PieceFrom::Row(_) | PieceFrom::Zeros => Err(missing()),
        })
    }

    fn mapped_numbers(&self, name: &str) -> Option<&[u8]> {
        let tensor = self.tensors.get(name)?;
        let [Piece { from: PieceFrom::Tensor(from), .. }] = tensor.pieces.as_slice() else { return None };
        // A piece may be some of the rows.
        let is_whole = self.inner.meta(from)?.shape == tensor.meta.shape;
        is_whole.then(|| self.inner.fp8()?.mapped_numbers(from))?
    }
}
