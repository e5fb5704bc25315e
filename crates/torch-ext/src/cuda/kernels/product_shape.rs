//! How the product of a few rows is spread over the GPU. Needs no GPU.
#![cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only the launchers ask"))]

/// Rows of a product by the project's own kernels: the lines of one `wgmma`.
pub const MAX_PRODUCT_ROWS: i64 = 64;

/// What decides the shape: the GPU, the outputs and inputs, and how many rows of the weight an output has.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductSizes {
    pub(super) num_sms: u32,
    pub(super) max_shared_bytes: u32,
    pub(super) num_out: i64,
    pub(super) num_in: i64,
    pub(super) halves: i64,
}

/// `product_mma.cu`: one block a multiprocessor, whose shared memory is one ring of stages for each pair of warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MmaShape {
    pub(super) num_blocks: u32,
    pub(super) num_pairs: u32,
    pub(super) num_stages: u32,
    pub(super) shared_bytes: u32,
}

impl MmaShape {
    /// Columns of `mma`.
    pub(super) const MAX_ROWS: i64 = 8;
    /// Rows of the weight that one pair of warps takes at once.
    const TILE_ROWS: u64 = 16;
    /// Elements of a row that a stage holds; `STAGE_ELEMS` of the kernel.
    const STAGE_ELEMS: u64 = 256;
    const STAGE_BYTES: u64 = Self::TILE_ROWS * (Self::STAGE_ELEMS * 2 + 16);
    /// Two barriers of 8 bytes.
    const STAGE_BARRIER_BYTES: u64 = 16;
    /// Pairs of warps in a block: the kernel is compiled for 768 threads.
    const MAX_PAIRS: u64 = 12;
    /// More would be idle at the ends of long chains.
    const MAX_STAGES: u64 = 32;
    /// With one, fetching and multiplying would take turns.
    const MIN_STAGES: u64 = 2;

    /// For `num_rows` rows of numbers of 2 bytes; `None` when the kernel cannot compute that here.
    pub(super) fn of(num_rows: i64, sizes: &ProductSizes) -> Option<Self> {
        let &ProductSizes { num_out, num_in, halves, .. } = sizes;
        if !(1..=Self::MAX_ROWS).contains(&num_rows) || num_out <= 0 || num_in <= 0 || num_in % 16 != 0 {
            return None;
        }
        let num_sms = u64::from(sizes.num_sms.max(1));
        let num_tiles = (num_out as u64).div_ceil(Self::TILE_ROWS / halves as u64);
        let x_bytes = (num_rows as u64 * (num_in as u64 * 2 + 16) + 64).next_multiple_of(128);
        let ring_bytes = u64::from(sizes.max_shared_bytes).checked_sub(x_bytes + 128)?;
        let of_stage = Self::STAGE_BYTES + Self::STAGE_BARRIER_BYTES;
        let max_pairs = Self::MAX_PAIRS.min(ring_bytes / (Self::MIN_STAGES * of_stage));
        // The fewest rounds, then the fewest pairs that need no more, since fewer have longer rings.
        let num_pairs = (1..=max_pairs).min_by_key(|pairs| num_tiles.div_ceil(num_sms * pairs))?;
        let num_filled =
            num_tiles.div_ceil(num_sms * num_pairs) * (num_in as u64).div_ceil(Self::STAGE_ELEMS);
        let num_stages =
            (ring_bytes / num_pairs / of_stage).min(Self::MAX_STAGES).min(num_filled.max(Self::MIN_STAGES));
        let barrier_bytes = (num_pairs * num_stages * Self::STAGE_BARRIER_BYTES).next_multiple_of(128);
        Some(Self {
            num_blocks: num_sms.min(num_tiles.div_ceil(num_pairs)) as u32,
            num_pairs: num_pairs as u32,
            num_stages: num_stages as u32,
            shared_bytes: (barrier_bytes + x_bytes + num_pairs * num_stages * Self::STAGE_BYTES) as u32,
        })
    }
}

/// Tiles of 64 inputs in a stage of `product_wgmma.cu`: fewer waits where tiles are small, more stages where they are not.
pub(super) fn tiles_of_stage(weight_rows: u64) -> u64 {
    if weight_rows <= 96 { 2 } else { 1 }
}

/// `product_wgmma.cu`: blocks that take so many outputs each, and the ring of stages of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WgmmaShape {
    /// Rows of the weight in a tile.
    pub(super) weight_rows: u32,
    /// Rows of the input in a tile: those that there are, in eights.
    pub(super) x_rows: u32,
    pub(super) num_blocks: u32,
    pub(super) num_stages: u32,
    pub(super) shared_bytes: u32,
}

impl WgmmaShape {
    /// Of a row in one tile.
    pub(super) const LINE_BYTES: u64 = 128;
    /// What `wgmma` reads of a tile's inputs, whether they are there or not.
    const LINES_BYTES: u64 = 64 * Self::LINE_BYTES;
    /// With fewer outputs, blocks would read the inputs more often than the weight.
    const MIN_WEIGHT_ROWS: u64 = 32;
    /// `wgmma` has 256 columns.
    const MAX_WEIGHT_ROWS: u64 = 248;
    /// The most where two blocks share a multiprocessor.
    const MAX_WEIGHT_ROWS_OF_TWO: u64 = 120;
    /// Barriers that the kernel has room for.
    const MAX_STAGES: u64 = 16;
    /// With one, fetching and multiplying would take turns.
    const MIN_STAGES: u64 = 2;
    /// A block leaves room for those of the kernels before and after it, which start and end beside it.
    const MAX_SHARED_BYTES: u64 = 165 * 1024;
    /// What the kernel declares, and what it may lose to start at a multiple of 1,024.
    const OVERHEAD_BYTES: u64 = Self::MAX_STAGES * 16 + 1024;
    /// What each block costs a multiprocessor beside its own.
    const RESERVED_BYTES: u64 = 1024;

    /// For `num_rows` rows of numbers of 2 bytes; `None` when the kernel cannot compute that here. Which outputs share a
    /// block does not depend on the rows.
    pub(super) fn of(num_rows: i64, sizes: &ProductSizes) -> Option<Self> {
        let &ProductSizes { num_out, num_in, halves, .. } = sizes;
        // Rows must start at multiples of 16 bytes.
        if !(1..=MAX_PRODUCT_ROWS).contains(&num_rows) || num_out <= 0 || num_in <= 0 || num_in % 8 != 0 {
            return None;
        }
        let (num_out, num_in, halves) = (num_out as u64, num_in as u64, halves as u64);
        let (num_sms, max_shared_bytes) =
            (u64::from(sizes.num_sms.max(1)), u64::from(sizes.max_shared_bytes));
        // One block a multiprocessor; where that cannot be, several rounds of two, of which one starts while the other runs.
        let share = num_out.div_ceil(num_sms).next_multiple_of(8).max(Self::MIN_WEIGHT_ROWS / halves);
        let (share, of_block) = if share * halves <= Self::MAX_WEIGHT_ROWS {
            (share, max_shared_bytes.min(Self::MAX_SHARED_BYTES))
        } else {
            let max_share = Self::MAX_WEIGHT_ROWS_OF_TWO / halves / 8 * 8;
            let num_rounds = num_out.div_ceil(2 * num_sms * max_share);
            let share = num_out.div_ceil(2 * num_sms * num_rounds).next_multiple_of(8);
            (share, (max_shared_bytes + Self::RESERVED_BYTES) / 2 - Self::RESERVED_BYTES)
        };
        let weight_rows = share * halves;
        let x_rows = (num_rows as u64).next_multiple_of(8);
        let tile_bytes = (x_rows + weight_rows) * Self::LINE_BYTES;
        let slack_bytes = Self::LINES_BYTES.saturating_sub(tile_bytes);
        let ring_bytes = of_block.checked_sub(Self::OVERHEAD_BYTES + slack_bytes)?;
        let tiles = tiles_of_stage(weight_rows);
        let num_stages = (ring_bytes / (tiles * tile_bytes))
            .min(Self::MAX_STAGES)
            .min(num_in.div_ceil(64 * tiles).max(Self::MIN_STAGES));
        (num_stages >= Self::MIN_STAGES).then_some(Self {
            weight_rows: weight_rows as u32,
            x_rows: x_rows as u32,
            num_blocks: num_out.div_ceil(share) as u32,
            num_stages: num_stages as u32,
            shared_bytes: (1024 + slack_bytes + num_stages * tiles * tile_bytes) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(num_out: i64, num_in: i64, halves: i64) -> ProductSizes {
        ProductSizes { num_sms: 132, max_shared_bytes: 227 * 1024, num_out, num_in, halves }
    }

    #[test]
    fn layers_fill_the_gpu() {
        let mma = |num_out, num_in, halves| {
            let shape = MmaShape::of(1, &sizes(num_out, num_in, halves)).unwrap();
            (shape.num_blocks, shape.num_pairs, shape.num_stages)
        };
        assert_eq!(mma(12_288, 4_096, 1), (128, 6, 4));
        assert_eq!(mma(4_096, 11_008, 1), (128, 2, 12));
        assert_eq!(mma(11_008, 4_096, 2), (126, 11, 2));
        assert_eq!(mma(2_048, 2_048, 1), (128, 1, 8));
        let wgmma = |num_out, num_in, halves| {
            let shape = WgmmaShape::of(64, &sizes(num_out, num_in, halves)).unwrap();
            (shape.weight_rows, shape.num_blocks, shape.num_stages)
        };
        assert_eq!(wgmma(12_288, 4_096, 1), (96, 128, 4));
        assert_eq!(wgmma(4_096, 11_008, 1), (32, 128, 6));
        assert_eq!(wgmma(11_008, 4_096, 2), (176, 126, 5));
        assert_eq!(wgmma(2_048, 2_048, 1), (32, 64, 6));
        assert_eq!(wgmma(256_000, 2_048, 1), (112, 2_286, 5));
    }

    #[test]
    fn what_does_not_fit_has_no_shape() {
        assert_eq!(MmaShape::of(9, &sizes(64, 64, 1)), None);
        assert_eq!(MmaShape::of(1, &sizes(64, 40, 1)), None);
        assert_eq!(MmaShape::of(8, &sizes(4_096, 14_336, 1)), None);
        assert!(MmaShape::of(4, &sizes(4_096, 14_336, 1)).is_some());
        assert_eq!(WgmmaShape::of(65, &sizes(64, 64, 1)), None);
        assert_eq!(WgmmaShape::of(0, &sizes(64, 64, 1)), None);
        assert_eq!(WgmmaShape::of(1, &sizes(64, 36, 1)), None);
        assert!(WgmmaShape::of(64, &sizes(16_384, 53_248, 1)).is_some());
    }

    proptest! {
        #[test]
        fn every_tile_has_a_pair_and_the_block_fits(
            num_sms in 1_u32..200,
            kilobytes in 40_u32..228,
            rows in 1_i64..=8,
            num_out in 1_i64..300_000,
            steps in 1_i64..2_000,
            halves in 1_i64..=2,
        ) {
            let sizes = ProductSizes { num_sms, max_shared_bytes: kilobytes * 1024, num_out, num_in: steps * 16, halves };
            let Some(shape) = MmaShape::of(rows, &sizes) else {
                return Ok(());
            };
            prop_assert!(shape.shared_bytes <= kilobytes * 1024);
            prop_assert!(shape.num_stages >= 2 && (1..=12).contains(&shape.num_pairs));
            prop_assert!((1..=num_sms).contains(&shape.num_blocks));
        }

        #[test]
        fn every_output_has_a_block_and_the_block_fits(
            num_sms in 1_u32..200,
            kilobytes in 40_u32..228,
            rows in 1_i64..=64,
            num_out in 1_i64..300_000,
            steps in 1_i64..2_000,
            halves in 1_i64..=2,
        ) {
            let sizes = ProductSizes { num_sms, max_shared_bytes: kilobytes * 1024, num_out, num_in: steps * 8, halves };
            let Some(shape) = WgmmaShape::of(rows, &sizes) else {
                return Ok(());
            };
            let tile_bytes = (shape.x_rows + shape.weight_rows) * 128;
            let num_tiles = shape.num_stages * tiles_of_stage(u64::from(shape.weight_rows)) as u32;
            prop_assert!(shape.shared_bytes + 256 <= kilobytes * 1024);
            prop_assert!(shape.shared_bytes >= 1024 + (num_tiles - 1) * tile_bytes + tile_bytes.max(8192));
            prop_assert!((2..=16).contains(&shape.num_stages));
            prop_assert!(shape.weight_rows % (8 * halves as u32) == 0 && shape.weight_rows <= 248);
            prop_assert!(i64::from(shape.num_blocks) * i64::from(shape.weight_rows) / halves >= num_out);
            prop_assert!(i64::from(shape.x_rows) >= rows && shape.x_rows <= 64);
            if let Some(alone) = WgmmaShape::of(1, &sizes) {
                prop_assert_eq!(alone.weight_rows, shape.weight_rows);
            }
        }
    }
}
