//! Some columns of a matrix of bytes.

use std::ops::Range;

/// Of each row of `row_bytes` these bytes.
pub(crate) fn columns(rows: &[u8], row_bytes: usize, across: Range<usize>) -> Vec<u8> {
    let taken = rows.chunks(row_bytes.max(1)).filter_map(|row| row.get(across.clone()));
    let mut columns = Vec::with_capacity(rows.len() / row_bytes.max(1) * across.len());
    taken.for_each(|bytes| columns.extend_from_slice(bytes));
    columns
}
