//! Which samples form which step. Pure: numbers in, numbers out.
//!
//! Follows NeMo's `megatron_batch_samplers.py` and NeMo-Aligner's `builders.py` for the checks and for
//! `limit_train_batches`. Unlike there, a remainder is generated as a short last step where nothing forbids it.

use std::ops::Range;

use crate::DataError;

/// Prompts in a step and in a micro batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSizes {
    /// `model.global_batch_size`.
    pub global: usize,
    /// `model.micro_batch_size`; only checked, never used to batch.
    pub micro: usize,
}

/// The data-parallel ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DpWorld {
    /// How many there are.
    pub size: usize,
}

/// `model.data.train_ds.drop_last`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DropLast {
    /// Drops the remainder with more than one data-parallel rank.
    #[default]
    Auto,
    /// Always drops it.
    Always,
    /// Never drops it.
    Never,
}

/// `trainer.generation.limit_train_batches`; an integer and a float of the same value differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LimitTrainBatches {
    /// A number of steps; 0 or less means all.
    Batches(i64),
    /// A part of the samples, at most 1.0; 0 or less means all.
    Fraction(f64),
}

/// The steps of a run and what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSteps {
    num_samples: usize,
    global_batch_size: usize,
    num_steps: usize,
    num_planned: usize,
    dropped: Range<usize>,
}

/// Plans one pass over `num_samples` samples in order.
///
/// # Errors
/// When there is no sample, no sample is left, a size is 0, or the global batch does not divide evenly over ranks and micro batches.
pub fn plan_output_steps(
    num_samples: usize,
    batch: BatchSizes,
    world: DpWorld,
    drop_last: DropLast,
) -> Result<OutputSteps, DataError> {
    if num_samples == 0 {
        return Err(DataError::NoSamples);
    }
    let settings = [
        ("model.global_batch_size", batch.global),
        ("model.micro_batch_size", batch.micro),
        ("data-parallel size", world.size),
    ];
    if let Some((name, _)) = settings.into_iter().find(|&(_, value)| value == 0) {
        return Err(DataError::ZeroBatchSetting { name });
    }
    let divides = batch.micro.checked_mul(world.size).is_some_and(|unit| batch.global.is_multiple_of(unit));
    if !divides {
        return Err(DataError::IndivisibleBatch {
            global: batch.global,
            micro: batch.micro,
            data_parallel: world.size,
        });
    }
    let drops = match drop_last {
        DropLast::Auto => world.size > 1,
        DropLast::Always => true,
        DropLast::Never => false,
    };
    let num_kept = if drops { num_samples - num_samples % batch.global } else { num_samples };
    if num_kept == 0 {
        return Err(DataError::AllDropped { num_samples, global: batch.global });
    }
    Ok(OutputSteps {
        num_samples,
        global_batch_size: batch.global,
        num_steps: num_kept.div_ceil(batch.global),
        num_planned: num_kept,
        dropped: num_kept..num_samples,
    })
}

impl OutputSteps {
    /// Caps the steps at `trainer.generation.max_steps`; a negative number means no limit, 0 generates nothing.
    #[must_use]
    pub fn with_max_steps(mut self, max_steps: i64) -> Self {
        if let Ok(max_steps) = usize::try_from(max_steps)
            && max_steps < self.num_steps
        {
            self.num_steps = max_steps;
            self.num_planned = max_steps * self.global_batch_size;
        }
        self
    }

    /// How many steps there are.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// How many samples are in steps.
    pub fn num_planned(&self) -> usize {
        self.num_planned
    }

    /// The sample positions of a step; steps count from 0. Only the last one may be short.
    pub fn step(&self, step_idx: usize) -> Option<Range<usize>> {
        let start = (step_idx < self.num_steps).then(|| step_idx * self.global_batch_size)?;
        Some(start..start.saturating_add(self.global_batch_size).min(self.num_planned))
    }

    /// The sample positions of every step.
    pub fn steps(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.num_steps).filter_map(|step_idx| self.step(step_idx))
    }

    /// The remainder at the end of the file that is not generated.
    pub fn dropped(&self) -> Range<usize> {
        self.dropped.clone()
    }

    /// The whole batches that `max_steps` leaves out.
    pub fn beyond_max_steps(&self) -> Range<usize> {
        self.num_planned..self.dropped.start
    }

    /// All samples: planned, dropped and left out.
    pub fn num_samples(&self) -> usize {
        self.num_samples
    }
}

impl LimitTrainBatches {
    /// How many of `num_samples` samples are used.
    ///
    /// # Errors
    /// When a fraction is above 1.0 or not a number, or leaves nothing of some samples.
    pub fn num_samples(self, num_samples: usize, global_batch_size: usize) -> Result<usize, DataError> {
        match self {
            Self::Batches(batches) => Ok(match usize::try_from(batches) {
                Ok(batches) if batches > 0 => batches.saturating_mul(global_batch_size).min(num_samples),
                _ => num_samples,
            }),
            Self::Fraction(fraction) if fraction <= 0.0 => Ok(num_samples),
            // Python's `int(f * N)`: truncation, which `as` does.
            Self::Fraction(fraction) if fraction <= 1.0 => match (fraction * num_samples as f64) as usize {
                0 if num_samples > 0 => Err(DataError::LimitedToNone { fraction, num_samples }),
                num_used => Ok(num_used),
            },
            Self::Fraction(value) => Err(DataError::LimitTooLarge { value }),
        }
    }
}

/// Checks `trainer.generation.max_epochs`.
///
/// # Errors
/// When it is not 1.
pub fn check_max_epochs(value: i64) -> Result<(), DataError> {
    if value == 1 { Ok(()) } else { Err(DataError::MaxEpochs { value }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(num_samples: usize, global: usize, dp: usize, drop_last: DropLast) -> OutputSteps {
        plan_output_steps(num_samples, BatchSizes { global, micro: 1 }, DpWorld { size: dp }, drop_last)
            .unwrap()
    }

    #[test]
    fn the_guides_example() {
        let eight_ranks = plan(11_639, 32, 8, DropLast::Auto);
        assert_eq!((eight_ranks.num_steps(), eight_ranks.dropped()), (363, 11_616..11_639));
        let one_rank = plan(11_639, 32, 1, DropLast::Auto);
        assert_eq!((one_rank.num_steps(), one_rank.dropped().len()), (364, 0));
        assert_eq!(one_rank.step(363), Some(11_616..11_639));
        assert_eq!(one_rank.step(364), None);
        assert_eq!(plan(11_639, 32, 1, DropLast::Always), eight_ranks);
        assert_eq!(plan(11_639, 32, 8, DropLast::Never), one_rank);
    }

    #[test]
    fn fewer_samples_than_a_batch() {
        assert!(plan(3, 8, 1, DropLast::Auto).steps().eq(std::iter::once(0..3)));
        let batch = BatchSizes { global: 8, micro: 1 };
        let dropped = plan_output_steps(3, batch, DpWorld { size: 2 }, DropLast::Auto).unwrap_err();
        insta::assert_snapshot!(dropped, @"all 3 samples are dropped, because they fill no step of `model.global_batch_size` 8: set `model.data.train_ds.drop_last=false` or a smaller `model.global_batch_size`");
    }

    #[test]
    fn max_steps_caps() {
        let all = plan(10, 4, 1, DropLast::Auto);
        assert_eq!(all.clone().with_max_steps(-1), all);
        assert_eq!(all.clone().with_max_steps(3), all);
        assert_eq!(all.clone().with_max_steps(0).num_steps(), 0);
        let two = all.with_max_steps(2);
        assert_eq!((two.steps().collect::<Vec<_>>(), two.beyond_max_steps()), (vec![0..4, 4..8], 8..10));
    }

    #[test]
    fn an_integer_limit_is_steps_and_a_float_is_a_part() {
        let check =
            |limit: LimitTrainBatches, expected| assert_eq!(limit.num_samples(10, 4).unwrap(), expected);
        check(LimitTrainBatches::Batches(1), 4);
        check(LimitTrainBatches::Batches(3), 10);
        check(LimitTrainBatches::Batches(0), 10);
        check(LimitTrainBatches::Batches(-1), 10);
        check(LimitTrainBatches::Batches(i64::MAX), 10);
        check(LimitTrainBatches::Fraction(1.0), 10);
        check(LimitTrainBatches::Fraction(0.55), 5);
        check(LimitTrainBatches::Fraction(0.0), 10);
        check(LimitTrainBatches::Fraction(-1.0), 10);
    }

    #[test]
    fn errors_state_value_and_limit() {
        let error = |num_samples, global, micro, size| {
            let batch = BatchSizes { global, micro };
            plan_output_steps(num_samples, batch, DpWorld { size }, DropLast::Auto).unwrap_err()
        };
        insta::assert_snapshot!(error(0, 1, 1, 1), @"there is no sample to generate from");
        insta::assert_snapshot!(error(1, 0, 1, 1), @"`model.global_batch_size` is 0, it must be at least 1");
        insta::assert_snapshot!(error(1, 32, 3, 8), @"`model.global_batch_size` 32 is not a multiple of `model.micro_batch_size` 3 times 8 data-parallel ranks: it must be one of 24, 48, …");
        insta::assert_snapshot!(check_max_epochs(2).unwrap_err(), @"`trainer.generation.max_epochs` is 2, it must be 1");
        let limit = LimitTrainBatches::Fraction(1.5).num_samples(1, 1).unwrap_err();
        insta::assert_snapshot!(limit, @"`trainer.generation.limit_train_batches` is 1.5, a fraction must be at most 1.0");
        let none = LimitTrainBatches::Fraction(0.01).num_samples(99, 4).unwrap_err();
        insta::assert_snapshot!(none, @"there is no sample to generate from: `trainer.generation.limit_train_batches=0.01` of 99 samples is less than one; a whole number is a number of steps");
        assert!(LimitTrainBatches::Fraction(f64::NAN).num_samples(1, 1).is_err());
    }

    proptest! {
        #[test]
        fn every_sample_is_in_one_place(
            num_samples in 1usize..500, micro in 1usize..4, size in 1usize..5, factor in 1usize..10,
            drop_last in prop_oneof![Just(DropLast::Auto), Just(DropLast::Always), Just(DropLast::Never)],
            max_steps in -1i64..20,
        ) {
            let batch = BatchSizes { global: micro * size * factor, micro };
            let drops = drop_last == DropLast::Always || drop_last == DropLast::Auto && size > 1;
            prop_assume!(!drops || num_samples >= batch.global);
            let plan = plan_output_steps(num_samples, batch, DpWorld { size }, drop_last).unwrap().with_max_steps(max_steps);
            let planned: Vec<usize> = plan.steps().flatten().collect();
            prop_assert_eq!(planned.len(), plan.num_planned());
            let all: Vec<usize> = planned.into_iter().chain(plan.beyond_max_steps()).chain(plan.dropped()).collect();
            prop_assert_eq!(all, (0..num_samples).collect::<Vec<_>>());
            let num_whole = plan.num_steps().saturating_sub(1);
            prop_assert!(plan.steps().take(num_whole).all(|step| step.len() == batch.global));
            prop_assert!(plan.steps().all(|step| !step.is_empty()));
        }
    }
}
