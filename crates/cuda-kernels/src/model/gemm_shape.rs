//! How the GEMM of a small batch is spread over the GPU. Needs no GPU.
#![cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only the launcher asks"))]

/// The largest batch of the in-house GEMM, in rows: the lines of one `wgmma`.
pub const MAX_GEMM_ROWS: i64 = 64;

/// What decides the shape: the GPU, the outputs and inputs, and how many rows of the weight an output has.
#[derive(Clone, Copy, Debug)]
pub(super) struct GemmSizes {
    pub(super) num_sms: u32,
    pub(super) max_shared_bytes: u32,
    pub(super) num_out: i64,
    pub(super) num_in: i64,
    pub(super) halves: i64,
    /// Pieces of the inputs that are summed apart: 1, 2, 4 or 8.
    pub(super) num_pieces: i64,
}

/// Tiles of 64 inputs in a stage: fewer waits where tiles are small, more stages where they are not.
pub(super) fn tiles_of_stage(weight_rows: u64) -> u64 {
    if weight_rows <= 96 { 2 } else { 1 }
}

/// How many outputs a block takes, how many blocks there are, and the ring of stages of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GemmShape {
    /// Rows of the weight in a tile.
    pub(super) weight_rows: u32,
    /// Rows of the input in a tile: those that there are, in eights.
    pub(super) x_rows: u32,
    pub(super) num_blocks: u32,
    pub(super) num_stages: u32,
    /// Stages of weights that may be in flight at once.
    pub(super) max_pending: u32,
    pub(super) shared_bytes: u32,
}

impl GemmShape {
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
    /// The most numbers that a thread holds of sums: those of a piece, and as many for each level of the tree above it.
    const MAX_SUMS: u64 = 160;
    /// Barriers that the kernel has room for.
    const MAX_STAGES: u64 = 16;
    /// With one, fetching and multiplying would take turns.
    const MIN_STAGES: u64 = 2;
    /// Weights in flight to a multiprocessor: with fewer, memory is not busy all the time; with more, the reads of earlier
    /// kernels queue behind them.
    const PENDING_BYTES: u64 = 48 * 1024;
    /// What the kernel declares, and what it may lose to start at a multiple of 1,024.
    const OVERHEAD_BYTES: u64 = Self::MAX_STAGES * 24 + 1024;
    /// What each block costs a multiprocessor beside its own.
    const RESERVED_BYTES: u64 = 1024;

    /// The most that a block takes where it has a multiprocessor to itself. With many rows it leaves room for blocks of decode
    /// attention, which start and end beside it; with few, whose attention is short, a longer ring is worth more.
    const fn most_of_one(num_rows: i64) -> u64 {
        if num_rows <= 32 { 200 * 1024 } else { 165 * 1024 }
    }

    /// For `num_rows` rows of numbers of 2 bytes; `None` when the kernel cannot compute that here. Which outputs share a
    /// block does not depend on the rows.
    pub(super) fn of(num_rows: i64, sizes: &GemmSizes) -> Option<Self> {
        let &GemmSizes { num_out, num_in, halves, num_pieces, .. } = sizes;
        // Rows, and pieces of them, must start at multiples of 16 bytes.
        if !(1..=MAX_GEMM_ROWS).contains(&num_rows) || num_out <= 0 || num_in <= 0 {
            return None;
        }
        if ![1, 2, 4, 8].contains(&num_pieces) || num_in % (8 * num_pieces) != 0 {
            return None;
        }
        let (num_out, num_in, halves, num_pieces) =
            (num_out as u64, num_in as u64, halves as u64, num_pieces as u64);
        let of_levels = match num_pieces {
            1 => Self::MAX_WEIGHT_ROWS,
            _ => 2 * Self::MAX_SUMS / u64::from(num_pieces.ilog2() + 1) / 8 * 8,
        };
        let max_weight_rows = Self::MAX_WEIGHT_ROWS.min(of_levels);
        let (num_sms, max_shared_bytes) =
            (u64::from(sizes.num_sms.max(1)), u64::from(sizes.max_shared_bytes));
        // One block a multiprocessor; where that cannot be, several rounds of two, of which one starts while the other runs.
        let share = num_out.div_ceil(num_sms).next_multiple_of(8).max(Self::MIN_WEIGHT_ROWS / halves);
        let (share, of_block) = if share * halves <= max_weight_rows {
            (share, max_shared_bytes.min(Self::most_of_one(num_rows)))
        } else {
            let max_share = Self::MAX_WEIGHT_ROWS_OF_TWO.min(max_weight_rows) / halves / 8 * 8;
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
            .min((num_pieces * (num_in / num_pieces).div_ceil(64 * tiles)).max(Self::MIN_STAGES));
        let pending_stages = Self::PENDING_BYTES.div_ceil(tiles * weight_rows * Self::LINE_BYTES);
        // A thread that waited for a stage further back than the ring is long could miss it and wait for ever.
        let max_pending = pending_stages.max(Self::MIN_STAGES).min(num_stages);
        (num_stages >= Self::MIN_STAGES).then_some(Self {
            weight_rows: weight_rows as u32,
            x_rows: x_rows as u32,
            num_blocks: num_out.div_ceil(share) as u32,
            num_stages: num_stages as u32,
            max_pending: max_pending as u32,
            shared_bytes: (1024 + slack_bytes + num_stages * tiles * tile_bytes) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(num_out: i64, num_in: i64, halves: i64) -> GemmSizes {
        GemmSizes { num_sms: 132, max_shared_bytes: 227 * 1024, num_out, num_in, halves, num_pieces: 1 }
    }

    #[test]
    fn layers_fill_the_gpu() {
        let of = |num_out, num_in, halves| {
            let shape = GemmShape::of(64, &sizes(num_out, num_in, halves)).unwrap();
            (shape.weight_rows, shape.num_blocks, shape.num_stages)
        };
        assert_eq!(of(12_288, 4_096, 1), (96, 128, 4));
        assert_eq!(of(4_096, 11_008, 1), (32, 128, 6));
        assert_eq!(of(11_008, 4_096, 2), (176, 126, 5));
        assert_eq!(of(2_048, 2_048, 1), (32, 64, 6));
        assert_eq!(of(256_000, 2_048, 1), (112, 2_286, 5));
    }

    #[test]
    fn sums_of_pieces_fit_the_registers() {
        let of = |num_out, num_pieces| {
            let sizes = GemmSizes { num_pieces, ..sizes(num_out, 8_192, 1) };
            GemmShape::of(64, &sizes).map(|shape| (shape.weight_rows, shape.num_blocks))
        };
        assert_eq!(of(4_096, 8), Some((32, 128)));
        assert_eq!(of(8_192, 8), Some((64, 128)));
        // Two blocks a multiprocessor, where one would have to hold too much.
        assert_eq!(of(12_288, 8), Some((48, 256)));
        assert_eq!(of(12_288, 4), Some((96, 128)));
        assert_eq!(of(12_288, 3), None);
    }

    #[test]
    fn no_more_is_in_flight_than_the_ring_holds() {
        let of = |num_rows, num_out| {
            let shape = GemmShape::of(num_rows, &sizes(num_out, 4_096, 1)).unwrap();
            (shape.weight_rows, shape.num_stages, shape.max_pending)
        };
        assert_eq!(of(1, 4_096), (32, 16, 6));
        assert_eq!(of(1, 12_288), (96, 7, 2));
        assert_eq!(of(64, 46_464), (88, 2, 2));
    }

    #[test]
    fn what_does_not_fit_has_no_shape() {
        assert_eq!(GemmShape::of(65, &sizes(64, 64, 1)), None);
        assert_eq!(GemmShape::of(0, &sizes(64, 64, 1)), None);
        assert_eq!(GemmShape::of(1, &sizes(64, 36, 1)), None);
        assert!(GemmShape::of(64, &sizes(16_384, 53_248, 1)).is_some());
    }

    proptest! {
        #[test]
        fn every_output_has_a_block_and_the_block_fits(
            num_sms in 1_u32..200,
            kilobytes in 40_u32..228,
            rows in 1_i64..=64,
            num_out in 1_i64..300_000,
            steps in 1_i64..2_000,
            halves in 1_i64..=2,
            log_pieces in 0_u32..=3,
        ) {
            let num_pieces = 1 << log_pieces;
            let num_in = steps * 8 * num_pieces;
            let sizes =
                GemmSizes { num_sms, max_shared_bytes: kilobytes * 1024, num_out, num_in, halves, num_pieces };
            let Some(shape) = GemmShape::of(rows, &sizes) else {
                return Ok(());
            };
            let tile_bytes = (shape.x_rows + shape.weight_rows) * 128;
            let num_tiles = shape.num_stages * tiles_of_stage(u64::from(shape.weight_rows)) as u32;
            prop_assert!(shape.shared_bytes + 384 <= kilobytes * 1024);
            prop_assert!(shape.shared_bytes >= 1024 + (num_tiles - 1) * tile_bytes + tile_bytes.max(8192));
            prop_assert!((2..=16).contains(&shape.num_stages));
            prop_assert!((2..=shape.num_stages).contains(&shape.max_pending));
            // The sums of all rows, up to 24 elements between two rows, go where the stages were.
            prop_assert!(rows as u32 * (shape.weight_rows + 24) * 4 <= num_tiles * tile_bytes);
            prop_assert!(shape.weight_rows % (8 * halves as u32) == 0 && shape.weight_rows <= 248);
            let num_sums = shape.weight_rows / 2 * if log_pieces == 0 { 1 } else { log_pieces + 1 };
            let most_sums = if log_pieces == 0 { 124 } else { 160 };
            prop_assert!(num_sums <= most_sums);
            prop_assert!(i64::from(shape.num_blocks) * i64::from(shape.weight_rows) / halves >= num_out);
            prop_assert!(i64::from(shape.x_rows) >= rows && shape.x_rows <= 64);
            if let Some(alone) = GemmShape::of(1, &sizes) {
                prop_assert_eq!(alone.weight_rows, shape.weight_rows);
            }
        }
    }
}
