//! How an FP8 GEMM is spread over the GPU. Needs no GPU.
#![cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only the launcher asks"))]

/// The tile of a block of an FP8 GEMM and its ring of stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fp8Shape {
    /// Groups of four warps, each with 64 rows.
    pub(super) groups: u32,
    /// Rows of the weight.
    pub(super) columns: u32,
    /// Stages of 128 inputs in the ring.
    pub(super) num_stages: u32,
}

impl Fp8Shape {
    /// Of a row in one stage.
    pub(super) const LINE_BYTES: u32 = 128;
    /// Rows of a group.
    const GROUP_ROWS: u32 = 64;
    /// With the sums of more columns a thread would run out of registers.
    const COLUMNS: [u32; 9] = [32, 48, 64, 80, 96, 112, 128, 160, 192];
    /// What a tile costs beside its columns, in columns: its first stage, its last one and its stores. Measured on an H200,
    /// 2,048 to 14,336 inputs.
    const COLUMNS_OF_A_TILE: u64 = 90;
    /// More are not faster.
    const MAX_STAGES: u32 = 12;
    /// With one, fetching and multiplying would take turns.
    const MIN_STAGES: u32 = 2;
    /// What the kernel declares, and what it may lose to start at a multiple of 1,024.
    const OVERHEAD_BYTES: u32 = 16 * Self::MAX_STAGES + 1024;

    /// For this many rows and outputs; none where no ring fits.
    pub(super) fn of(num_rows: i64, num_out: i64, num_sms: u32, max_shared_bytes: u32) -> Option<Self> {
        let groups = if num_rows <= i64::from(Self::GROUP_ROWS) { 1 } else { 2 };
        let cost = |&columns: &u32| {
            let tiles = Self { groups, columns, num_stages: 0 }.num_tiles(num_rows, num_out);
            tiles.div_ceil(u64::from(num_sms.max(1))) * (u64::from(columns) + Self::COLUMNS_OF_A_TILE)
        };
        // The first of equals: more, smaller tiles.
        let columns = Self::COLUMNS.into_iter().min_by_key(cost)?;
        let stage_bytes = (groups * Self::GROUP_ROWS + columns) * Self::LINE_BYTES;
        let ring_bytes = max_shared_bytes.saturating_sub(Self::OVERHEAD_BYTES);
        let num_stages = (ring_bytes / stage_bytes).min(Self::MAX_STAGES);
        (num_stages >= Self::MIN_STAGES).then_some(Self { groups, columns, num_stages })
    }

    /// All that a weight with this many outputs is multiplied with, whatever the number of rows.
    pub(super) fn all(num_out: i64, num_sms: u32, max_shared_bytes: u32) -> Vec<Self> {
        let mut shapes: Vec<Self> = std::iter::once(1)
            .chain((1..=Self::MAX_ROWS / 128).map(|tiles| tiles * 128))
            .filter_map(|num_rows| Self::of(num_rows, num_out, num_sms, max_shared_bytes))
            .collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// Rows up to which every shape is known beforehand; a step has no more.
    const MAX_ROWS: i64 = 16_384;

    /// Tiles over all rows and outputs.
    pub(super) fn num_tiles(&self, num_rows: i64, num_out: i64) -> u64 {
        let tiles = |size: i64, tile: u32| (size.max(0) as u64).div_ceil(u64::from(tile));
        tiles(num_rows, self.groups * Self::GROUP_ROWS) * tiles(num_out, self.columns)
    }

    /// Rows that are fetched for a tile: those that there are, in eights.
    pub(super) fn fetched_rows(&self, num_rows: i64) -> u32 {
        let tile_rows = self.groups * Self::GROUP_ROWS;
        u32::try_from(num_rows).map_or(tile_rows, |rows| rows.next_multiple_of(8).min(tile_rows))
    }

    /// Shared memory of a block beside what the kernel declares.
    pub(super) fn shared_bytes(&self) -> u32 {
        1024 + self.num_stages * (self.groups * Self::GROUP_ROWS + self.columns) * Self::LINE_BYTES
    }

    /// Those that multiply, and four warps of which one thread fetches.
    pub(super) fn num_threads(&self) -> u32 {
        (self.groups + 1) * 128
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const H200: (u32, u32) = (132, 227 * 1024);

    fn of(num_rows: i64, num_out: i64) -> (u32, u32, u32) {
        let shape = Fp8Shape::of(num_rows, num_out, H200.0, H200.1).unwrap();
        (shape.groups, shape.columns, shape.num_stages)
    }

    #[test]
    fn tiles_fill_the_gpu() {
        // One round each: 128 tiles of 132 that run at once.
        assert_eq!(of(1, 4_096), (1, 32, 12));
        assert_eq!(of(64, 6_144), (1, 48, 12));
        assert_eq!(of(256, 4_096), (2, 64, 9));
        assert_eq!(of(256, 6_144), (2, 96, 8));
        // Two rounds.
        assert_eq!(of(64, 28_672), (1, 112, 10));
        assert_eq!(of(8_192, 28_672), (2, 192, 5));
        // A group that multiplies or two, and one that fetches.
        let threads =
            [1, 65].map(|num_rows| Fp8Shape::of(num_rows, 64, H200.0, H200.1).unwrap().num_threads());
        assert_eq!(threads, [256, 384]);
    }

    #[test]
    fn what_does_not_fit_has_no_shape() {
        assert_eq!(Fp8Shape::of(1, 4_096, 132, 20_000), None);
        assert_eq!(Fp8Shape::all(4_096, 132, 20_000), []);
    }

    proptest! {
        #[test]
        fn every_row_count_has_a_known_shape_that_fits(
            num_sms in 1_u32..200,
            kilobytes in 100_u32..228,
            num_rows in 1_i64..=16_384,
            num_out in 1_i64..40_000,
        ) {
            let shape = Fp8Shape::of(num_rows, num_out, num_sms, kilobytes * 1024).unwrap();
            prop_assert!(Fp8Shape::all(num_out, num_sms, kilobytes * 1024).contains(&shape));
            prop_assert!(shape.shared_bytes() + 16 * shape.num_stages <= kilobytes * 1024);
            prop_assert!((2..=12).contains(&shape.num_stages));
            prop_assert!(shape.fetched_rows(num_rows) as i64 >= num_rows.min(64) && shape.fetched_rows(num_rows) <= 128);
            let tile = i64::from(shape.groups * 64) * i64::from(shape.columns);
            prop_assert!(shape.num_tiles(num_rows, num_out) as i64 * tile >= num_rows * num_out);
        }
    }
}
