//! The programs of the sampler's kernels, the same for all models. Needs no GPU.

use cuda_runtime::Program;

use crate::source::{headers, source};

/// How the sampler cuts a row of logits into blocks. Tokens do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplerTiling {
    /// Without top_k and top_p.
    Plain,
    /// With them or `min_p`: larger blocks, since each has its own histograms.
    Filtered,
    /// The same where rows may have rules of their own.
    OwnRules,
}

impl SamplerTiling {
    /// Threads of a block.
    pub(super) fn num_threads(self) -> u32 {
        match self {
            Self::Plain => 256,
            Self::Filtered | Self::OwnRules => 512,
        }
    }

    /// Logits that a block holds in registers.
    #[cfg(feature = "cuda")]
    pub(super) fn chunk(self) -> u32 {
        self.num_threads() * SAMPLE_VALUES
    }

    /// Sampling; the same for all models.
    pub fn program(self) -> Program {
        let (name, blocks_per_sm, filters, own_rules) = match self {
            Self::Plain => ("sampling", SAMPLE_BLOCKS_PER_SM, "0", "0"),
            Self::Filtered => ("sampling_filtered", 2, "1", "0"),
            Self::OwnRules => ("sampling_own_rules", 2, "1", "1"),
        };
        Program {
            name,
            source: source!("sample.cu"),
            headers: headers!("common.cuh", "numbers.cuh", "row.cuh", "filter.cuh", "many.cuh", "own.cuh"),
            defines: vec![
                ("ELEM", "0".to_owned()),
                ("SAMPLE_THREADS", self.num_threads().to_string()),
                ("SAMPLE_VALUES", SAMPLE_VALUES.to_string()),
                ("SAMPLE_BLOCKS_PER_SM", blocks_per_sm.to_string()),
                ("SAMPLE_FILTERS", filters.to_owned()),
                ("SAMPLE_OWN_RULES", own_rules.to_owned()),
                ("MANY_THREADS", MANY_THREADS.to_string()),
                ("MANY_BLOCKS_PER_SM", MANY_BLOCKS_PER_SM.to_string()),
                ("MANY_STAGES", MANY_STAGES.to_string()),
                ("PIECE_VALUES", PIECE_VALUES.to_string()),
            ],
            // The CPU rounds after every operation.
            options: &["--fmad=false"],
            is_specific: false,
        }
    }
}

/// Blocks of the sampler without filters that a multiprocessor holds at once.
pub(super) const SAMPLE_BLOCKS_PER_SM: u32 = 5;
/// The same of the sampler of large batches.
const MANY_BLOCKS_PER_SM: u32 = 2;
/// Pieces that each of its warps has in flight.
pub(super) const MANY_STAGES: u32 = 2;
pub(super) const MANY_THREADS: u32 = 320;
/// Logits that a thread has of a piece.
const PIECE_VALUES: u32 = 32;
/// Logits of a piece, which is a warp's.
#[cfg(feature = "cuda")]
pub(super) const PIECE: u32 = 32 * PIECE_VALUES;
/// Logits that a thread of the sampler holds.
const SAMPLE_VALUES: u32 = 16;

/// The most likely tokens.
pub fn top_program() -> Program {
    Program {
        name: "top_tokens",
        source: source!("top.cu"),
        headers: headers!("common.cuh", "numbers.cuh"),
        defines: vec![("ELEM", "0".to_owned())],
        // The CPU rounds after every operation.
        options: &["--fmad=false"],
        is_specific: false,
    }
}

/// The sets of seen tokens.
pub fn seen_program() -> Program {
    Program {
        name: "seen",
        source: source!("seen.cu"),
        headers: headers!("common.cuh"),
        defines: vec![("ELEM", "0".to_owned())],
        options: &[],
        is_specific: false,
    }
}

#[cfg(all(test, feature = "nvrtc"))]
mod tests {
    use super::*;
    use crate::test_compile::check;

    #[test]
    fn the_sampler_compiles() {
        check(&SamplerTiling::Plain.program());
        check(&SamplerTiling::Filtered.program());
        check(&SamplerTiling::OwnRules.program());
        check(&seen_program());
        check(&top_program());
    }
}
