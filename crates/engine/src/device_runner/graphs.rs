//! The recorded steps, one for each number of rows, and which number a step has.

use std::collections::HashMap;

use cuda_runtime::{Graph, GraphPool};

use crate::EngineError;

/// Steps have multiples of this many rows; below, cuBLAS's sums depend on the number of rows. The model may have products
/// of its own for a few.
pub(super) const ROWS_PER_BUCKET: usize = 32;

/// The fewest rows that a step of `num_seqs` sequences can have, where the model has the same bits with up to `few_rows`
/// rows: a power of two among those.
pub(super) fn bucket(num_seqs: usize, few_rows: usize) -> usize {
    let num_rows = num_seqs.max(1).next_power_of_two();
    if num_rows <= few_rows { num_rows } else { num_seqs.max(1).next_multiple_of(ROWS_PER_BUCKET) }
}

/// The most rows that a step of up to `max_num_seqs` sequences can have.
pub(crate) fn max_rows(max_num_seqs: usize) -> usize {
    bucket(max_num_seqs, 0)
}

/// What was recorded.
#[derive(Debug)]
pub(super) struct Graphs {
    /// The graphs run one after the other and share their memory.
    pub(super) pool: GraphPool,
    /// Steps by number of rows.
    pub(super) steps: HashMap<usize, Graph>,
}

impl Graphs {
    pub(super) fn new() -> Result<Self, EngineError> {
        Ok(Self { pool: GraphPool::new()?, steps: HashMap::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_buckets_that_fit() {
        assert_eq!([0, 1, 32, 33, 256].map(|num_seqs| bucket(num_seqs, 0)), [32, 32, 32, 64, 256]);
        assert_eq!([0, 1, 3, 4, 5, 33].map(|num_seqs| bucket(num_seqs, 4)), [1, 1, 4, 4, 32, 64]);
        assert_eq!([5, 33, 64, 65].map(|num_seqs| bucket(num_seqs, 64)), [8, 64, 64, 96]);
        for num_seqs in 1..300 {
            for few_rows in [0, 4, 40, 64] {
                let num_rows = bucket(num_seqs, few_rows);
                assert!(num_seqs <= num_rows && num_rows <= max_rows(num_seqs));
            }
        }
    }
}
