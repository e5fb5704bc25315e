//! How many rows a step on a GPU has: a few sizes, each recorded once as a CUDA graph.

use crate::{EngineError, MAX_NUM_SEQS_ON_GPU};

/// Steps have multiples of this many rows: below, cuBLAS's sums depend on the number of rows. The model may have a GEMM of
/// its own for smaller ones.
const ROWS_PER_BUCKET: usize = 32;

/// The fewest rows that a step of `num_seqs` sequences can have, where results are bitwise identical for any batch of at
/// most `small_batch` rows: a power of two among those.
pub(super) fn bucket(num_seqs: usize, small_batch: usize) -> usize {
    let num_rows = num_seqs.max(1).next_power_of_two();
    if num_rows <= small_batch { num_rows } else { num_seqs.max(1).next_multiple_of(ROWS_PER_BUCKET) }
}

/// # Errors
/// When there may be more sequences in a step than the kernels are checked with.
pub(super) fn check_num_seqs(max_num_seqs: usize) -> Result<(), EngineError> {
    match max_num_seqs <= MAX_NUM_SEQS_ON_GPU {
        true => Ok(()),
        false => Err(EngineError::BadLimit {
            limit: "max_num_seqs",
            expected: format!("at most {MAX_NUM_SEQS_ON_GPU} on a GPU"),
            actual: max_num_seqs,
        }),
    }
}

/// The most rows that a step of up to `max_num_seqs` sequences can have.
pub(crate) fn max_rows(max_num_seqs: usize) -> usize {
    bucket(max_num_seqs, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_sequences_than_the_kernels_are_checked_with_are_refused() {
        check_num_seqs(1024).unwrap();
        insta::assert_snapshot!(
            check_num_seqs(1025).unwrap_err(),
            @"`max_num_seqs` must be at most 1024 on a GPU, got 1025"
        );
    }

    #[test]
    fn rows_come_in_buckets_that_fit() {
        assert_eq!([0, 1, 32, 33, 256].map(|num_seqs| bucket(num_seqs, 0)), [32, 32, 32, 64, 256]);
        assert_eq!([0, 1, 3, 4, 5, 33].map(|num_seqs| bucket(num_seqs, 4)), [1, 1, 4, 4, 32, 64]);
        assert_eq!([5, 33, 64, 65].map(|num_seqs| bucket(num_seqs, 64)), [8, 64, 64, 96]);
        assert_eq!(bucket(1024, 64), 1024);
        for num_seqs in (1..300).chain([993, 1000, 1024]) {
            for small_batch in [0, 4, 40, 64] {
                let num_rows = bucket(num_seqs, small_batch);
                assert!(num_seqs <= num_rows && num_rows <= max_rows(num_seqs));
            }
        }
    }
}
