//! Which samples are still to be generated, in which steps, and putting finished responses back into input order.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use data::{PreparedPrompt, StepPlan};
use engine::Completion;
use sampling::FinishReason;

use crate::checkpoint::TokenTable;
use crate::output::{CompletedStep, ResponseOutput, ResumePoint, SampleOutput};
use crate::plan::Unfinished;

/// One step still to do: positions among the kept prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingStep {
    /// Counted from 1 over all runs on the folder.
    pub(crate) step: u64,
    pub(crate) positions: Range<usize>,
}

/// The steps after what an earlier run committed. Counted by samples, so that the batch size may differ between runs.
pub(crate) fn pending_steps(
    plan: &StepPlan,
    global_batch_size: usize,
    resume: ResumePoint,
) -> Vec<PendingStep> {
    let done = usize::try_from(resume.consumed_samples).unwrap_or(usize::MAX);
    (done..plan.num_planned())
        .step_by(global_batch_size)
        .zip(resume.step + 1..)
        .map(|(start, step)| PendingStep {
            step,
            positions: start..plan.num_planned().min(start + global_batch_size),
        })
        .collect()
}

/// Collects completions, which come in any order, into whole steps in order.
pub(crate) struct StepCollector<'a> {
    prompts: &'a [PreparedPrompt],
    steps: std::iter::Peekable<std::vec::IntoIter<PendingStep>>,
    positions: HashMap<u64, usize>,
    num_responses: usize,
    unfinished: Unfinished,
    /// Responses by position, each slot filled when its response is there.
    open: BTreeMap<usize, Vec<Option<ResponseOutput>>>,
    tokens: &'a TokenTable,
}

impl<'a> StepCollector<'a> {
    pub(crate) fn new(
        prompts: &'a [PreparedPrompt],
        steps: Vec<PendingStep>,
        num_responses: u32,
        unfinished: Unfinished,
        tokens: &'a TokenTable,
    ) -> Self {
        let positions = steps
            .iter()
            .flat_map(|step| step.positions.clone())
            .filter_map(|position| Some((prompts.get(position)?.index, position)))
            .collect();
        let steps = steps.into_iter().peekable();
        Self {
            prompts,
            steps,
            positions,
            num_responses: num_responses as usize,
            unfinished,
            open: BTreeMap::new(),
            tokens,
        }
    }

    /// Takes one completion. A completion of a sample that is not pending is a fault and is left out.
    pub(crate) fn push(&mut self, completion: Completion) {
        let Some(&position) = self.positions.get(&completion.sample_idx) else {
            tracing::error!("a completion of sample {}, which was not asked for", completion.sample_idx);
            return;
        };
        let slots = self.open.entry(position).or_insert_with(|| vec![None; self.num_responses]);
        if let Some(slot) = slots.get_mut(completion.response_idx as usize) {
            *slot = Some(ResponseOutput {
                text: self.tokens.text(&completion.token_ids),
                token_ids: completion.token_ids,
                logprobs: completion.logprobs,
                finish_reason: completion.finish_reason,
            });
        }
    }

    /// The next step, once all its responses are there.
    pub(crate) fn pop(&mut self) -> Option<CompletedStep> {
        let is_whole =
            |position: &usize| self.open.get(position).is_some_and(|slots| slots.iter().all(Option::is_some));
        let step = self.steps.next_if(|step| step.positions.clone().all(|position| is_whole(&position)))?;
        let samples = step.positions.clone().filter_map(|position| self.take_sample(position)).collect();
        Some(CompletedStep { step: step.step, consumed_samples: step.positions.end as u64, samples })
    }

    /// `None` when the sample is left out: all its responses hit the limit and those are dropped.
    fn take_sample(&mut self, position: usize) -> Option<SampleOutput> {
        let prompt = self.prompts.get(position)?;
        let mut responses: Vec<ResponseOutput> = self.open.remove(&position)?.into_iter().flatten().collect();
        if self.unfinished == Unfinished::Drop {
            responses.retain(|response| response.finish_reason != FinishReason::Length);
            if responses.is_empty() {
                return None;
            }
        }
        Some(SampleOutput {
            index: prompt.index,
            prompt: prompt.text.clone(),
            metadata: prompt.metadata.clone(),
            responses,
        })
    }
}

#[cfg(test)]
mod tests {
    use data::{BatchSizes, DpWorld, DropLast, plan_steps};
    use proptest::prelude::*;

    use super::*;

    fn plan(num_samples: usize, global: usize) -> StepPlan {
        plan_steps(num_samples, BatchSizes { global, micro: 1 }, DpWorld { size: 1 }, DropLast::Auto).unwrap()
    }

    fn resume(step: u64, consumed_samples: u64) -> ResumePoint {
        ResumePoint { step, consumed_samples, committed_bytes: 0 }
    }

    #[test]
    fn steps_continue_with_another_batch_size() {
        let step = |step, positions| PendingStep { step, positions };
        assert_eq!(
            pending_steps(&plan(5, 2), 2, resume(0, 0)),
            [step(1, 0..2), step(2, 2..4), step(3, 4..5)]
        );
        assert_eq!(pending_steps(&plan(5, 2), 2, resume(1, 2)), [step(2, 2..4), step(3, 4..5)]);
        assert_eq!(pending_steps(&plan(9, 4), 4, resume(1, 3)), [step(2, 3..7), step(3, 7..9)]);
        assert_eq!(pending_steps(&plan(5, 2), 2, resume(3, 5)), []);
        assert_eq!(pending_steps(&plan(5, 2), 2, resume(9, 50)), []);
    }

    fn prompts(num: u64) -> Vec<PreparedPrompt> {
        // Indices have gaps, as left-out records make them.
        let prompt = |n| PreparedPrompt {
            line: 2 * n + 1,
            index: 2 * n,
            text: format!("Q{n}"),
            ids: vec![1],
            metadata: serde_json::Map::new(),
        };
        (0..num).map(prompt).collect()
    }

    fn completion(sample_idx: u64, response_idx: u32, finish_reason: FinishReason) -> Completion {
        let token_ids = vec![sample_idx as u32, response_idx];
        Completion { sample_idx, response_idx, token_ids, finish_reason, logprobs: None }
    }

    #[test]
    fn unfinished_responses_are_dropped_when_asked() {
        let (prompts, tokens) = (prompts(2), TokenTable::unknown());
        let steps = pending_steps(&plan(2, 2), 2, resume(0, 0));
        let mut collector = StepCollector::new(&prompts, steps, 2, Unfinished::Drop, &tokens);
        for (sample_idx, reason) in [(0, FinishReason::Eos), (2, FinishReason::Length)] {
            collector.push(completion(sample_idx, 0, FinishReason::Length));
            collector.push(completion(sample_idx, 1, reason));
        }
        let step = collector.pop().unwrap();
        assert_eq!((step.samples.len(), step.samples[0].responses.len(), step.consumed_samples), (1, 1, 2));
    }

    proptest! {
        #[test]
        fn every_kept_sample_is_generated_once(
            num in 1_usize..200, micro in 1_usize..3, size in 1_usize..5, factor in 1_usize..6,
            stops in prop::collection::vec((0_usize..8, 1_usize..40), 0..4), drops in any::<bool>(),
        ) {
            // Each run stops after some steps; the next one goes on with another batch size.
            let drop_last = if drops { DropLast::Always } else { DropLast::Auto };
            let batch = BatchSizes { global: micro * size * factor, micro };
            prop_assume!(num >= batch.global || size == 1 && !drops);
            let first = plan_steps(num, batch, DpWorld { size }, drop_last).unwrap();
            let mut done = Vec::new();
            let mut step = 0;
            let sizes = std::iter::once(batch.global).chain(stops.iter().map(|&(_, global)| global));
            let limits = stops.iter().map(|&(num_steps, _)| num_steps).chain([usize::MAX]);
            for (global, num_steps) in sizes.zip(limits) {
                for pending in pending_steps(&first, global, resume(step, done.len() as u64)).into_iter().take(num_steps) {
                    prop_assert_eq!(pending.step, step + 1);
                    step = pending.step;
                    done.extend(pending.positions);
                }
            }
            prop_assert_eq!(done, (0..first.num_planned()).collect::<Vec<_>>());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_order_gives_the_same_steps(
            (num, global, order) in (1_usize..12, 1_usize..5)
                .prop_flat_map(|(num, global)| {
                    let all: Vec<(u64, u32)> = (0..num as u64).flat_map(|n| [(2 * n, 0), (2 * n, 1)]).collect();
                    (Just(num), Just(global), Just(all).prop_shuffle())
                }),
        ) {
            let (prompts, tokens) = (prompts(num as u64), TokenTable::unknown());
            let steps = pending_steps(&plan(num, global), global, resume(0, 0));
            let mut collector = StepCollector::new(&prompts, steps, 2, Unfinished::Keep, &tokens);
            let mut done = Vec::new();
            for (sample_idx, response_idx) in order {
                collector.push(completion(sample_idx, response_idx, FinishReason::Length));
                done.extend(std::iter::from_fn(|| collector.pop()));
            }
            let indices: Vec<u64> = done.iter().flat_map(|step| &step.samples).map(|sample| sample.index).collect();
            prop_assert_eq!(indices, (0..num as u64).map(|n| 2 * n).collect::<Vec<_>>());
            for (nth, step) in done.iter().enumerate() {
                prop_assert_eq!(step.step, nth as u64 + 1);
                for sample in &step.samples {
                    let ids: Vec<_> = sample.responses.iter().map(|response| response.token_ids.clone()).collect();
                    prop_assert_eq!(ids, vec![vec![sample.index as u32, 0], vec![sample.index as u32, 1]]);
                }
            }
        }
    }
}
