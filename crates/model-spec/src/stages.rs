//! Which layers each pipeline stage has.

use std::ops::Range;

use crate::{ModelSpec, Numerics, ShardPlace};

impl ModelSpec {
    /// The layers of `num_stages` pipeline stages: of all ways to cut, one whose largest stage has the fewest bytes of weights,
    /// tables and the output layer counted, since that stage decides how much memory a rank needs. None where there are
    /// fewer layers than stages.
    pub fn stages(&self, num_stages: usize, numerics: &Numerics) -> Option<Vec<Range<usize>>> {
        let num_layers = self.layers.len();
        if num_stages == 0 || num_stages > num_layers {
            return None;
        }
        let sizes = self.layer_bytes(numerics);
        let mut before = vec![0_u64];
        for bytes in &sizes {
            before.push(before.last().unwrap_or(&0).saturating_add(*bytes));
        }
        // least[n]: the largest stage when the first n layers are cut into as many stages as rounds have passed.
        let mut least: Vec<u64> = before.clone();
        let mut cuts: Vec<Vec<usize>> = Vec::new();
        for _ in 1..num_stages {
            let best = |end: usize| {
                let cut_at = |start: usize| (least[start].max(before[end] - before[start]), start);
                (1..end).map(cut_at).min().unwrap_or((u64::MAX, 0))
            };
            let round: Vec<(u64, usize)> = (0..=num_layers).map(best).collect();
            least = round.iter().map(|&(bytes, _)| bytes).collect();
            cuts.push(round.into_iter().map(|(_, start)| start).collect());
        }
        let mut stages = Vec::with_capacity(num_stages);
        let mut end = num_layers;
        for starts in cuts.iter().rev() {
            let start = starts[end];
            stages.push(start..end);
            end = start;
        }
        stages.push(0..end);
        stages.reverse();
        Some(stages)
    }

    /// Bytes of each layer, the first with the tables and the last with what makes logits.
    fn layer_bytes(&self, numerics: &Numerics) -> Vec<u64> {
        let bytes = |idx| {
            let place = ShardPlace { layers: idx..idx + 1, ..ShardPlace::whole(self) };
            // One rank can always have a whole layer.
            self.footprint(numerics, &place).map_or(0, |footprint| footprint.weight_bytes)
        };
        (0..self.layers.len()).map(bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_models::{gpt, llama};
    use crate::{Float, TableRows, UniformSpec};

    fn stages(
        base: UniformSpec,
        num_layers: usize,
        vocab: u64,
        num_stages: usize,
    ) -> Option<Vec<Range<usize>>> {
        let spec = UniformSpec { num_layers, ..base }.spec(TableRows { vocab, positions: 8 });
        spec.stages(num_stages, &Numerics::uniform(Float::Bf16))
    }

    #[test]
    fn tables_count_as_layers_do() {
        assert_eq!(stages(llama(), 8, 1, 4), Some(vec![0..2, 2..4, 4..6, 6..8]));
        // As large as two layers each: the first stage and the last have fewer.
        assert_eq!(stages(llama(), 10, 250, 3), Some(vec![0..3, 3..7, 7..10]));
        assert_eq!(stages(gpt(), 3, 1, 3), Some(vec![0..1, 1..2, 2..3]));
        assert_eq!(stages(llama(), 3, 1, 1), Some(std::iter::once(0..3).collect()));
        assert_eq!(stages(llama(), 3, 1, 4), None);
    }

    proptest! {
        #[test]
        fn stages_follow_each_other_and_none_is_larger_than_need_be(
            num_layers in 1_usize..9, vocab in 1_u64..900, num_stages in 1_usize..5,
        ) {
            let spec = UniformSpec { num_layers, ..llama() }.spec(TableRows { vocab, positions: 8 });
            let numerics = Numerics::uniform(Float::Bf16);
            let Some(stages) = spec.stages(num_stages, &numerics) else {
                prop_assert!(num_stages > num_layers);
                return Ok(());
            };
            prop_assert_eq!(stages.len(), num_stages);
            prop_assert!(stages.iter().all(|stage| !stage.is_empty()));
            prop_assert_eq!(stages.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..num_layers).collect::<Vec<_>>());
            let sizes = spec.layer_bytes(&numerics);
            let largest = |stages: &[Range<usize>]| {
                stages.iter().map(|stage| sizes[stage.clone()].iter().sum::<u64>()).max()
            };
            // Moving any one border makes no stage smaller that was the largest.
            for border in 0..num_stages - 1 {
                for step in [-1_isize, 1] {
                    let mut other = stages.clone();
                    let at = other[border].end.saturating_add_signed(step);
                    other[border].end = at;
                    other[border + 1].start = at;
                    if other.iter().all(|stage| !stage.is_empty()) {
                        prop_assert!(largest(&other) >= largest(&stages));
                    }
                }
            }
        }
    }
}
