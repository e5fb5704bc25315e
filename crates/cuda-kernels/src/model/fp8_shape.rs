//! How an FP8 GEMM is spread over the GPU. Needs no GPU.
#![cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only the launcher asks"))]

/// The tile of a block of an FP8 GEMM, for which a program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fp8Shape {
    /// Groups of four warps, each with 64 rows.
    pub(super) row_groups: u32,
    /// Groups of four warps, each with its share of the columns.
    pub(super) column_groups: u32,
    /// Rows of the weight.
    pub(super) columns: u32,
}

/// The ring of stages that tiles of 128 inputs go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fp8Ring {
    /// Rows that are fetched for a tile.
    pub(super) fetched_rows: u32,
    /// Rows that a tile has room for: the same in eights.
    pub(super) x_rows: u32,
    pub(super) num_stages: u32,
    /// Stages of weights that are asked for before the kernel before this one has ended.
    pub(super) num_early: u32,
    /// Shared memory of a block beside what the kernel declares.
    pub(super) shared_bytes: u32,
}

impl Fp8Shape {
    /// Of a row in one tile.
    pub(super) const LINE_BYTES: u32 = 128;
    /// Rows of a group.
    const GROUP_ROWS: u32 = 64;
    /// With the sums of more columns a thread would run out of registers.
    const COLUMNS: [u32; 9] = [32, 48, 64, 80, 96, 112, 128, 160, 192];
    /// Where two groups share the columns of at most 64 rows.
    const COLUMNS_OF_FEW_ROWS: [u32; 15] =
        [32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256];
    /// From here on.
    const MIN_SHARED_COLUMNS: u32 = 64;
    /// What a tile costs beside its columns, in columns: its first stage, its last one and its stores. Measured on an H200,
    /// 2,048 to 14,336 inputs.
    const COLUMNS_OF_A_TILE: u64 = 90;
    /// Barriers that the kernel has room for.
    const MAX_STAGES: u32 = 32;
    /// With one, fetching and multiplying would take turns.
    const MIN_STAGES: u32 = 2;
    /// Where a tile has more columns, one of them fills a stage; the tiles of 128 inputs of fewer are so small that waiting for
    /// each would take longer than multiplying it.
    const MAX_COLUMNS_OF_TWO_TILES: u32 = 96;
    /// Weights that are asked for early: with more, the reads of earlier kernels would queue behind them.
    const EARLY_BYTES: u32 = 48 * 1024;
    /// What the kernel declares, and what it may lose to start at a multiple of 1,024.
    const OVERHEAD_BYTES: u32 = 16 * Self::MAX_STAGES + 1024;

    /// For this many rows and outputs.
    pub(super) fn of(num_rows: i64, num_out: i64, num_sms: u32) -> Self {
        let is_few = num_rows <= i64::from(Self::GROUP_ROWS);
        let shape = |&columns: &u32| Self {
            row_groups: if is_few { 1 } else { 2 },
            column_groups: if is_few && columns >= Self::MIN_SHARED_COLUMNS { 2 } else { 1 },
            columns,
        };
        let cost = |shape: &Self| {
            let rounds = shape.num_tiles(num_rows, num_out).div_ceil(u64::from(num_sms.max(1)));
            rounds * (u64::from(shape.columns) + Self::COLUMNS_OF_A_TILE)
        };
        let columns: &[u32] = if is_few { &Self::COLUMNS_OF_FEW_ROWS } else { &Self::COLUMNS };
        // The first of equals: more, smaller tiles.
        let smallest = shape(&columns[0]);
        columns.iter().map(shape).min_by_key(cost).unwrap_or(smallest)
    }

    /// All that a weight with this many outputs is multiplied with, whatever the number of rows.
    pub(super) fn all(num_out: i64, num_sms: u32) -> Vec<Self> {
        let mut shapes: Vec<Self> = std::iter::once(1)
            .chain((1..=Self::MAX_ROWS / 128).map(|tiles| tiles * 128))
            .map(|num_rows| Self::of(num_rows, num_out, num_sms))
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
        tiles(num_rows, self.tile_rows()) * tiles(num_out, self.columns)
    }

    fn tile_rows(&self) -> u32 {
        self.row_groups * Self::GROUP_ROWS
    }

    /// The ring for this many rows; none where a block has too little shared memory.
    pub(super) fn ring(&self, num_rows: i64, max_shared_bytes: u32) -> Option<Fp8Ring> {
        let tile_rows = self.tile_rows();
        let fetched_rows = u32::try_from(num_rows).map_or(tile_rows, |rows| rows.min(tile_rows));
        let x_rows = fetched_rows.next_multiple_of(8);
        let tile_bytes = (x_rows + self.columns) * Self::LINE_BYTES;
        let stage_bytes = self.tiles() * tile_bytes;
        // A chain reads all rows of a tile, also where the last tile ends before them.
        let slack_bytes = (tile_rows * Self::LINE_BYTES).saturating_sub(tile_bytes);
        let ring_bytes = max_shared_bytes.saturating_sub(Self::OVERHEAD_BYTES + slack_bytes);
        let num_stages = (ring_bytes / stage_bytes).min(Self::MAX_STAGES);
        let early_stages = Self::EARLY_BYTES.div_ceil(self.tiles() * self.columns * Self::LINE_BYTES);
        (num_stages >= Self::MIN_STAGES).then_some(Fp8Ring {
            fetched_rows,
            x_rows,
            num_stages,
            num_early: early_stages.min(num_stages),
            shared_bytes: 1024 + slack_bytes + num_stages * stage_bytes,
        })
    }

    /// Columns of a group.
    pub(super) fn group_columns(&self) -> u32 {
        self.columns / self.column_groups
    }

    /// Chains of products that a group has in flight at once, as many as there are registers for.
    pub(super) fn num_parts(&self) -> u32 {
        match self.group_columns() {
            0..=64 => 4,
            65..=144 => 2,
            _ => 1,
        }
    }

    /// Tiles of 128 inputs in a stage of the ring.
    pub(super) fn tiles(&self) -> u32 {
        if self.row_groups == 1 && self.columns <= Self::MAX_COLUMNS_OF_TWO_TILES { 2 } else { 1 }
    }

    /// Those that multiply, and four warps of which two threads fetch.
    pub(super) fn num_threads(&self) -> u32 {
        (self.row_groups * self.column_groups + 1) * 128
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NUM_SMS: u32 = 132;
    const SHARED_BYTES: u32 = 227 * 1024;

    fn of(num_rows: i64, num_out: i64) -> (u32, u32, u32, u32) {
        let shape = Fp8Shape::of(num_rows, num_out, NUM_SMS);
        let ring = shape.ring(num_rows, SHARED_BYTES).unwrap();
        (shape.row_groups, shape.column_groups, shape.columns, ring.num_stages)
    }

    #[test]
    fn tiles_fill_the_gpu() {
        // One round each: 128 tiles of 132 that run at once.
        assert_eq!(of(1, 4_096), (1, 1, 32, 22));
        assert_eq!(of(64, 6_144), (1, 1, 48, 8));
        assert_eq!(of(1, 28_672), (1, 2, 224, 7));
        assert_eq!(of(64, 28_672), (1, 2, 224, 6));
        assert_eq!(of(256, 4_096), (2, 1, 64, 9));
        assert_eq!(of(256, 6_144), (2, 1, 96, 8));
        assert_eq!(of(8_192, 28_672), (2, 1, 192, 5));
        // Groups that multiply, and one that fetches.
        let threads = |num_rows, num_out| Fp8Shape::of(num_rows, num_out, NUM_SMS).num_threads();
        assert_eq!([threads(1, 64), threads(1, 28_672), threads(65, 64)], [256, 384, 384]);
    }

    #[test]
    fn what_does_not_fit_has_no_shape() {
        assert_eq!(Fp8Shape::of(1, 4_096, NUM_SMS).ring(1, 10_000), None);
    }

    proptest! {
        #[test]
        fn every_row_count_has_a_known_shape_that_fits(
            num_sms in 1_u32..200,
            kilobytes in 100_u32..228,
            num_rows in 1_i64..=16_384,
            num_out in 1_i64..40_000,
        ) {
            let shape = Fp8Shape::of(num_rows, num_out, num_sms);
            prop_assert!(Fp8Shape::all(num_out, num_sms).contains(&shape));
            let ring = shape.ring(num_rows, kilobytes * 1024).unwrap();
            prop_assert!(ring.shared_bytes + 16 * 32 <= kilobytes * 1024);
            prop_assert!((2..=32).contains(&ring.num_stages) && ring.num_early <= ring.num_stages);
            let (tile_rows, lines) = (shape.row_groups * 64, ring.x_rows + shape.columns);
            prop_assert_eq!(i64::from(ring.fetched_rows), num_rows.min(i64::from(tile_rows)));
            prop_assert!(ring.x_rows >= ring.fetched_rows && ring.x_rows <= tile_rows);
            // What a chain reads of the last tile.
            let num_tiles = ring.num_stages * shape.tiles();
            prop_assert!(ring.shared_bytes >= 1024 + 128 * ((num_tiles - 1) * lines + tile_rows));
            prop_assert_eq!(shape.num_parts() % shape.tiles(), 0);
            prop_assert!(shape.group_columns().is_multiple_of(8) && shape.columns <= 256);
            prop_assert!(shape.group_columns() / 2 * (shape.num_parts() + 1) <= 216);
            let tile = i64::from(tile_rows) * i64::from(shape.columns);
            prop_assert!(shape.num_tiles(num_rows, num_out) as i64 * tile >= num_rows * num_out);
        }
    }
}
