//! The recorded steps, one for each number of rows that is run, and which number that is.

use std::collections::HashMap;

use torch_ext::cuda::{Graph, GraphPool};

use crate::EngineError;

/// Steps have multiples of this many rows; below, cuBLAS's sums depend on the number of rows. The model may have products
/// of its own for a few.
pub(super) const ROWS_PER_BUCKET: usize = 32;
/// Rows that may be added because the step is faster with them.
const MAX_FILLER_ROWS: usize = 64;

/// The fewest rows that a step of `num_seqs` sequences can have, where the model has the same bits with up to `few_rows`
/// rows: a power of two among those.
pub(super) fn bucket(num_seqs: usize, few_rows: usize) -> usize {
    let num_rows = num_seqs.max(1).next_power_of_two();
    if num_rows <= few_rows { num_rows } else { num_seqs.max(1).next_multiple_of(ROWS_PER_BUCKET) }
}

/// The most rows that a step of up to `max_num_seqs` sequences can have.
pub(crate) fn max_rows(max_num_seqs: usize) -> usize {
    bucket(max_num_seqs, 0) + MAX_FILLER_ROWS
}

/// How many rows are tried where `num_rows` would do, fewest first.
pub(super) fn candidates(num_rows: usize) -> impl Iterator<Item = usize> {
    (num_rows..=num_rows + MAX_FILLER_ROWS).step_by(ROWS_PER_BUCKET)
}

/// The fastest of some numbers of rows, with the time of each in milliseconds; the first unless another saves more
/// than a hundredth, which is noise.
pub(super) fn fastest(times_ms: &[(usize, f32)]) -> Option<usize> {
    let mut fastest = *times_ms.first()?;
    for &(num_rows, time_ms) in times_ms {
        if time_ms < 0.99 * fastest.1 {
            fastest = (num_rows, time_ms);
        }
    }
    Some(fastest.0)
}

/// What was recorded and measured.
#[derive(Debug)]
pub(super) struct Graphs {
    /// The graphs run one after the other and share their memory.
    pub(super) pool: GraphPool,
    /// Steps by number of rows.
    pub(super) steps: HashMap<usize, Graph>,
    /// Steps so far by bucket, until a number of rows is chosen for it.
    pub(super) num_steps: HashMap<usize, u32>,
    /// How many rows are run for a bucket.
    pub(super) chosen: HashMap<usize, usize>,
    /// How long the model takes with so many rows.
    pub(super) times_ms: HashMap<usize, f32>,
}

impl Graphs {
    pub(super) fn new() -> Result<Self, EngineError> {
        Ok(Self {
            pool: GraphPool::new()?,
            steps: HashMap::new(),
            num_steps: HashMap::new(),
            chosen: HashMap::new(),
            times_ms: HashMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_buckets_and_all_candidates_fit() {
        assert_eq!([0, 1, 32, 33, 256].map(|num_seqs| bucket(num_seqs, 0)), [32, 32, 32, 64, 256]);
        assert_eq!([0, 1, 3, 4, 5, 33].map(|num_seqs| bucket(num_seqs, 4)), [1, 1, 4, 4, 32, 64]);
        assert_eq!(candidates(32).collect::<Vec<_>>(), [32, 64, 96]);
        assert_eq!([33, 64, 65].map(|num_seqs| bucket(num_seqs, 64)), [64, 64, 96]);
        for num_seqs in 1..300 {
            for few_rows in [0, 4, 64] {
                let num_rows = bucket(num_seqs, few_rows);
                let most = if num_rows <= few_rows { num_rows } else { num_rows + MAX_FILLER_ROWS };
                assert!(num_seqs <= num_rows && most <= max_rows(299));
            }
        }
    }

    #[test]
    fn more_rows_are_taken_only_where_they_save_time() {
        assert_eq!(fastest(&[(32, 2.0), (64, 1.7), (96, 1.69)]), Some(64));
        assert_eq!(fastest(&[(32, 2.0), (64, 1.99), (96, 2.1)]), Some(32));
        assert_eq!(fastest(&[]), None);
    }
}
