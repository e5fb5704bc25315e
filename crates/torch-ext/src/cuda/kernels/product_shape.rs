//! How the product of a few rows is spread over the GPU. Needs no GPU.

/// Rows of a product by the project's own kernel: what `mma` has columns for.
pub const MAX_PRODUCT_ROWS: i64 = 8;

/// Outputs of a tile, which one pair of warps computes.
const TILE_OUTPUTS: u64 = 16;
/// Elements of a row that a stage holds; `STAGE_ELEMS` of the kernel.
const STAGE_ELEMS: u64 = 256;
const STAGE_BYTES: u64 = TILE_OUTPUTS * (STAGE_ELEMS * 2 + 16);
/// Two barriers of 8 bytes.
const STAGE_BARRIER_BYTES: u64 = 16;
/// Pairs of warps in a block: the kernel is compiled for 768 threads.
const MAX_PAIRS: u64 = 12;
/// More would be idle at the ends of long chains.
const MAX_STAGES: u64 = 32;
/// With one, fetching and multiplying would take turns.
const MIN_STAGES: u64 = 2;

/// One block a multiprocessor, whose shared memory is one ring of stages for each pair of warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProductShape {
    pub(super) num_blocks: u32,
    pub(super) num_pairs: u32,
    pub(super) num_stages: u32,
    pub(super) shared_bytes: u32,
}

impl ProductShape {
    /// For `num_rows` rows of `num_in` to `num_out` numbers of 2 bytes; `None` when the kernel cannot compute that here.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only the launcher asks"))]
    pub(super) fn of(
        num_sms: u32,
        max_shared_bytes: u32,
        num_rows: i64,
        [num_out, num_in]: [i64; 2],
    ) -> Option<Self> {
        if !(1..=MAX_PRODUCT_ROWS).contains(&num_rows) || num_out <= 0 || num_in <= 0 || num_in % 16 != 0 {
            return None;
        }
        let num_sms = u64::from(num_sms.max(1));
        let num_tiles = (num_out as u64).div_ceil(TILE_OUTPUTS);
        let x_bytes = (num_rows as u64 * (num_in as u64 * 2 + 16) + 64).next_multiple_of(128);
        let ring_bytes = u64::from(max_shared_bytes).checked_sub(x_bytes + 128)?;
        let max_pairs = MAX_PAIRS.min(ring_bytes / (MIN_STAGES * (STAGE_BYTES + STAGE_BARRIER_BYTES)));
        // The fewest rounds, then the fewest pairs that need no more, since fewer have longer rings.
        let num_pairs = (1..=max_pairs).min_by_key(|pairs| num_tiles.div_ceil(num_sms * pairs))?;
        let of_pair = ring_bytes / num_pairs / (STAGE_BYTES + STAGE_BARRIER_BYTES);
        let num_stages = of_pair.min(MAX_STAGES);
        let barrier_bytes = (num_pairs * num_stages * STAGE_BARRIER_BYTES).next_multiple_of(128);
        Some(Self {
            num_blocks: num_sms.min(num_tiles.div_ceil(num_pairs)) as u32,
            num_pairs: num_pairs as u32,
            num_stages: num_stages as u32,
            shared_bytes: (barrier_bytes + x_bytes + num_pairs * num_stages * STAGE_BYTES) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const H100: (u32, u32) = (132, 227 * 1024);

    #[test]
    fn layers_fill_the_gpu() {
        let of = |out, in_| ProductShape::of(H100.0, H100.1, 1, [out, in_]).unwrap();
        let pairs = |out, in_| (of(out, in_).num_blocks, of(out, in_).num_pairs, of(out, in_).num_stages);
        assert_eq!(pairs(12_288, 4_096), (128, 6, 4));
        assert_eq!(pairs(4_096, 11_008), (128, 2, 12));
        assert_eq!(pairs(22_016, 4_096), (126, 11, 2));
        assert_eq!(pairs(2_048, 2_048), (128, 1, 26));
    }

    #[test]
    fn what_does_not_fit_has_no_shape() {
        let of = |rows, sizes| ProductShape::of(H100.0, H100.1, rows, sizes);
        assert_eq!(of(9, [64, 64]), None);
        assert_eq!(of(1, [64, 40]), None);
        assert_eq!(of(8, [4_096, 14_336]), None);
        assert!(of(4, [4_096, 14_336]).is_some());
    }

    proptest! {
        #[test]
        fn every_tile_has_a_pair_and_the_block_fits(
            num_sms in 1_u32..200,
            kilobytes in 40_u32..228,
            rows in 1_i64..=8,
            outputs in 1_i64..300_000,
            steps in 1_i64..2_000,
        ) {
            let Some(shape) = ProductShape::of(num_sms, kilobytes * 1024, rows, [outputs, steps * 16]) else {
                return Ok(());
            };
            prop_assert!(shape.shared_bytes <= kilobytes * 1024);
            prop_assert!(shape.num_stages >= 2 && (1..=12).contains(&shape.num_pairs));
            prop_assert!((1..=num_sms).contains(&shape.num_blocks));
        }
    }
}
