//! How the GEMM of a few hundred rows is spread over the GPU. Needs no GPU.
#![cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "only the launcher asks"))]

use super::gemm_shape::GemmSizes;

/// The largest batch of the GEMM in clusters, in rows: that of the largest decode step.
pub const MAX_CLUSTER_GEMM_ROWS: i64 = 1024;

/// What a thread block computes, and how its cluster is laid out. The kernel is compiled for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClusterTile {
    /// Groups of 64 rows.
    pub(super) row_groups: u32,
    /// Rows of the weight.
    pub(super) weight_rows: u32,
    /// Blocks of a cluster with the same rows.
    pub(super) across: u32,
    /// Blocks of a cluster with the same outputs.
    pub(super) along: u32,
    /// Stages of the ring.
    pub(super) num_stages: u32,
}

/// A launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClusterShape {
    pub(super) tile: ClusterTile,
    /// Clusters that cover all rows.
    pub(super) row_clusters: u32,
    pub(super) num_blocks: u32,
}

impl ClusterTile {
    /// Of a row in one stage: 64 elements.
    const LINE_BYTES: u32 = 128;
    const MAX_STAGES: u32 = 8;
    /// With fewer, memory is waited for.
    const MIN_STAGES: u32 = 3;
    /// The kernel's own barriers, and what it may lose to start at a multiple of 1,024.
    const OVERHEAD_BYTES: u32 = 16 * Self::MAX_STAGES + 1024;

    pub(super) fn block_rows(&self) -> u32 {
        64 * self.row_groups
    }

    fn stage_bytes(&self) -> u32 {
        (self.block_rows() + self.weight_rows) * Self::LINE_BYTES
    }

    pub(super) fn shared_bytes(&self) -> u32 {
        1024 + self.num_stages * self.stage_bytes()
    }

    /// Threads that multiply, and a warp that fetches.
    pub(super) fn num_threads(&self) -> u32 {
        128 * self.row_groups + 32
    }

    /// With as many stages as there is room for.
    fn with_stages(self, max_shared_bytes: u32) -> Option<Self> {
        let room = max_shared_bytes.checked_sub(Self::OVERHEAD_BYTES)?;
        let num_stages = (room / self.stage_bytes()).min(Self::MAX_STAGES);
        (num_stages >= Self::MIN_STAGES).then_some(Self { num_stages, ..self })
    }
}

/// What a step of 64 inputs costs a multiprocessor, in its cycles.
mod cycles {
    /// `wgmma` has 256 columns in 128 cycles, for 16 inputs of 64 rows.
    pub(super) fn multiply(row_groups: u32, weight_rows: u32) -> f64 {
        f64::from(2 * row_groups * weight_rows)
    }

    /// What comes from the second-level cache at 40 bytes a cycle: all multiprocessors at once ask for no more.
    pub(super) fn fetch(bytes: u32) -> f64 {
        f64::from(bytes) / 40.0
    }
}

impl ClusterShape {
    /// The groups of rows and the clusters that are tried: two that read no more than they must, and what fills the
    /// multiprocessors where outputs are few.
    const LAYOUTS: [[u32; 3]; 4] = [[2, 2, 1], [2, 1, 2], [2, 2, 2], [4, 2, 1]];
    /// Steps that a round of blocks takes to begin and to end.
    const STEPS_OF_ROUND: u32 = 8;

    /// For `num_rows` rows of numbers of 2 bytes: the launch that should take the least time. `None` when the kernel cannot
    /// compute that here.
    pub(super) fn of(num_rows: i64, sizes: &GemmSizes) -> Option<Self> {
        let &GemmSizes { num_out, num_in, .. } = sizes;
        // Rows must start at multiples of 16 bytes.
        if !(1..=MAX_CLUSTER_GEMM_ROWS).contains(&num_rows) || num_out <= 0 || num_in <= 0 || num_in % 8 != 0
        {
            return None;
        }
        let candidates = Self::LAYOUTS
            .into_iter()
            .flat_map(|layout| (1..=4).map(move |num_rounds| (layout, num_rounds)))
            .filter_map(|(layout, num_rounds)| Self::candidate(num_rows, sizes, layout, num_rounds));
        let best = candidates.min_by(|a, b| a.cost(sizes).total_cmp(&b.cost(sizes)))?;
        (best.cost(sizes).is_finite()).then_some(best)
    }

    /// The smallest tile of outputs with which all of them take so many rounds of blocks.
    fn candidate(
        num_rows: i64,
        sizes: &GemmSizes,
        [row_groups, across, along]: [u32; 3],
        num_rounds: u32,
    ) -> Option<Self> {
        let halves = sizes.halves as u32;
        let row_clusters = u32::try_from(num_rows).ok()?.div_ceil(64 * row_groups * along);
        let of_round = sizes.num_sms / (across * along);
        let output_clusters = (of_round * num_rounds / row_clusters).max(1);
        let num_out = u32::try_from(sizes.num_out).ok()?;
        // Each half of the weight's rows is cut into as many shares as blocks read together.
        let share = num_out.div_ceil(output_clusters * across).next_multiple_of(8 * along);
        let weight_rows = share * halves;
        // The registers of the sums.
        let most = if row_groups > 2 { 128 } else { 256 };
        if weight_rows > most {
            return None;
        }
        let tile = ClusterTile { row_groups, weight_rows, across, along, num_stages: 0 };
        Some(Self {
            tile: tile.with_stages(sizes.max_shared_bytes)?,
            row_clusters,
            num_blocks: num_out.div_ceil(share * across) * row_clusters * across * along,
        })
    }

    fn cost(&self, sizes: &GemmSizes) -> f64 {
        let ClusterTile { row_groups, weight_rows, across, along, .. } = self.tile;
        let of_round = (sizes.num_sms / (across * along) * across * along).max(1);
        let num_rounds = self.num_blocks.div_ceil(of_round);
        let bytes = (self.tile.block_rows() / across + weight_rows / along) * ClusterTile::LINE_BYTES;
        let of_step = cycles::multiply(row_groups, weight_rows).max(cycles::fetch(bytes));
        let num_steps = sizes.num_in as u64 / 64 + u64::from(Self::STEPS_OF_ROUND);
        f64::from(num_rounds) * num_steps as f64 * of_step
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(num_out: i64, num_in: i64, halves: i64) -> GemmSizes {
        GemmSizes { num_sms: 132, max_shared_bytes: 227 * 1024, num_out, num_in, halves }
    }

    #[test]
    fn what_does_not_fit_has_no_shape() {
        assert_eq!(ClusterShape::of(1025, &sizes(4096, 4096, 1)), None);
        assert_eq!(ClusterShape::of(0, &sizes(4096, 4096, 1)), None);
        assert_eq!(ClusterShape::of(256, &sizes(4096, 4100, 1)), None);
        let small = GemmSizes { max_shared_bytes: 48 * 1024, ..sizes(4096, 4096, 1) };
        assert_eq!(ClusterShape::of(256, &small), None);
    }

    proptest! {
        #[test]
        fn every_output_of_every_row_has_a_block_and_the_block_fits(
            num_sms in 8_u32..200,
            kilobytes in 100_u32..228,
            rows in 1_i64..=1024,
            num_out in 1_i64..40_000,
            steps in 1_i64..2_000,
            halves in 1_i64..=2,
        ) {
            let sizes = GemmSizes { num_sms, max_shared_bytes: kilobytes * 1024, num_out, num_in: steps * 8, halves };
            let Some(ClusterShape { tile, row_clusters, num_blocks }) = ClusterShape::of(rows, &sizes) else {
                return Ok(());
            };
            prop_assert!(tile.shared_bytes() + 16 * tile.num_stages <= kilobytes * 1024);
            prop_assert_eq!(tile.weight_rows % (8 * halves as u32 * tile.along), 0);
            prop_assert!(tile.weight_rows <= 256 && tile.block_rows() / tile.across % 8 == 0);
            prop_assert_eq!(num_blocks % (row_clusters * tile.across * tile.along), 0);
            prop_assert!(i64::from(row_clusters * tile.along * tile.block_rows()) >= rows);
            let output_blocks = num_blocks / (row_clusters * tile.along);
            prop_assert!(i64::from(output_blocks) * i64::from(tile.weight_rows) / halves >= num_out);
            // The sums of all rows, up to 31 elements between two rows, go where the stages were.
            prop_assert!(tile.block_rows() * (tile.weight_rows + 31) * 4 <= tile.num_stages * tile.stage_bytes());
        }
    }
}
