//! Which samples are still to be generated, in which steps, and putting finished samples back into input order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use data::{DataError, OutputSteps, PromptSet, PromptText};
use sampling::{FinishReason, TopToken};

use super::clean::Cleaner;
use super::select::Selection;
use crate::cluster::queue::message::{ResponseDone, SampleDone};
use crate::model::checkpoint::TokenTable;
use crate::model::structures::TokenStructures;
use crate::output::{
    Checked, CleanResponse, CompletedStep, ResponseOutput, ResumePoint, SampleOutput, TopLogprob,
};

/// One step still to do: positions among the kept prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingStep {
    /// Counted from 1 over all runs on the folder.
    pub(crate) step: u64,
    pub(crate) positions: Range<usize>,
}

/// The steps after what an earlier run committed. Counted by samples, so that the batch size may differ between runs.
pub(crate) fn pending_steps(
    plan: &OutputSteps,
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

/// Prompts by their position.
pub(crate) trait Prompts {
    /// The text of the prompt at a position.
    fn text(&self, position: usize) -> Result<PromptText, DataError>;
}

impl Prompts for PromptSet {
    fn text(&self, position: usize) -> Result<PromptText, DataError> {
        self.text(position)
    }
}

/// Collects samples, which come in any order, into whole steps in order.
pub(crate) struct StepCollector<'a> {
    prompts: &'a (dyn Prompts + Sync),
    steps: std::iter::Peekable<std::vec::IntoIter<PendingStep>>,
    selection: Selection,
    /// Responses by position.
    open: BTreeMap<usize, Vec<ResponseOutput>>,
    tokens: &'a TokenTable,
    /// Where the output asks for clean responses.
    cleaner: Option<Cleaner>,
    /// Where responses may have structures: those, and the job's.
    structures: Option<(Arc<TokenStructures>, Option<String>)>,
    /// Responses that ended inside their structure.
    pub(crate) num_cut: u64,
    /// Samples of which a response could not go on.
    pub(crate) num_failed: u64,
}

impl<'a> StepCollector<'a> {
    pub(crate) fn new(
        prompts: &'a (dyn Prompts + Sync),
        steps: Vec<PendingStep>,
        selection: Selection,
        tokens: &'a TokenTable,
    ) -> Self {
        let steps = steps.into_iter().peekable();
        Self {
            prompts,
            steps,
            selection,
            open: BTreeMap::new(),
            tokens,
            cleaner: None,
            structures: None,
            num_cut: 0,
            num_failed: 0,
        }
    }

    /// Makes the responses clean, too.
    pub(crate) fn with_cleaner(self, cleaner: Cleaner) -> Self {
        Self { cleaner: Some(cleaner), ..self }
    }

    /// Looks for responses that end inside their structures, which are their rows' or the job's.
    pub(crate) fn with_structures(self, structures: Arc<TokenStructures>, of_job: Option<String>) -> Self {
        Self { structures: Some((structures, of_job)), ..self }
    }

    /// Takes the responses of the sample at `position`, with what is known of each where they are checked.
    pub(crate) fn push(&mut self, position: usize, sample: SampleDone, checked: &[Checked]) {
        let response = |(response_idx, response): (usize, ResponseDone)| ResponseOutput {
            text: self.tokens.text(&response.token_ids),
            top_logprobs: response.top_logprobs.map(|places| {
                let named = |top: Vec<TopToken>| top.into_iter().map(|top| self.named(top)).collect();
                places.into_iter().map(named).collect()
            }),
            token_ids: response.token_ids,
            logprobs: response.logprobs,
            finish_reason: response.finish_reason,
            error: response.error,
            clean: CleanResponse::default(),
            response_idx: response_idx as u32,
            checked: checked.get(response_idx).copied().unwrap_or_default(),
        };
        self.open.insert(position, sample.responses.into_iter().enumerate().map(response).collect());
    }

    fn named(&self, TopToken { token: id, logprob }: TopToken) -> TopLogprob {
        TopLogprob { id, text: self.tokens.text(&[id]), logprob }
    }

    /// The next step, once all its samples are there.
    pub(crate) fn pop(&mut self) -> Result<Option<CompletedStep>, DataError> {
        let is_whole =
            |step: &PendingStep| step.positions.clone().all(|position| self.open.contains_key(&position));
        let Some(step) = self.steps.next_if(is_whole) else { return Ok(None) };
        let samples = step.positions.clone().filter_map(|position| self.take_sample(position).transpose());
        let samples = samples.collect::<Result<Vec<_>, _>>()?;
        Ok(Some(CompletedStep { step: step.step, consumed_samples: step.positions.end as u64, samples }))
    }

    /// `None` when the sample is left out: all its responses hit the limit and those are dropped.
    fn take_sample(&mut self, position: usize) -> Result<Option<SampleOutput>, DataError> {
        let mut responses = self.open.remove(&position).unwrap_or_default();
        let pass_at_k = self.selection.pass_at_k(&responses);
        // A row without responses says why.
        if !responses.is_empty() {
            self.selection.keep(&mut responses);
            if responses.is_empty() {
                return Ok(None);
            }
        }
        // Rendered once more: keeping the texts of all samples in flight would take more than that does.
        let PromptText { index, text: prompt, metadata, num_tokens, input, error } =
            self.prompts.text(position)?;
        if let Some(cleaner) = &self.cleaner {
            for response in &mut responses {
                let raw = (response.token_ids.as_slice(), response.finish_reason);
                response.clean = cleaner.clean(self.tokens, &prompt, raw, &input);
            }
        }
        if let Some((structures, of_job)) = &self.structures
            && let Some(structure) = input.structured_outputs.as_ref().or(of_job.as_ref())
        {
            let is_cut = |response: &&ResponseOutput| {
                matches!(response.finish_reason, FinishReason::Length | FinishReason::EndString)
                    && !structures.is_whole(structure, &response.token_ids)
            };
            self.num_cut += responses.iter().filter(is_cut).count() as u64;
        }
        let failed =
            responses.iter().find_map(|response| Some((response.response_idx, response.error.as_ref()?)));
        let failed = failed.map(|(idx, reason)| format!("response {idx}: {reason}"));
        if let Some(reason) = &failed {
            self.num_failed += 1;
            tracing::warn!("line {} of the data, {reason}", index + 1);
        }
        let (num_prompt_tokens, error) = (num_tokens, error.or(failed));
        Ok(Some(SampleOutput {
            index,
            prompt,
            num_prompt_tokens,
            error,
            metadata,
            input,
            responses,
            pass_at_k,
        }))
    }
}

#[cfg(test)]
mod tests {
    use data::{BatchSizes, DpWorld, DropLast, plan_output_steps};
    use proptest::prelude::*;

    use super::*;
    use crate::config::plan::Unfinished;

    fn plan(num_samples: usize, global: usize) -> OutputSteps {
        plan_output_steps(num_samples, BatchSizes { global, micro: 1 }, DpWorld { size: 1 }, DropLast::Auto)
            .unwrap()
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

    impl Prompts for Vec<PromptText> {
        fn text(&self, position: usize) -> Result<PromptText, DataError> {
            Ok(self[position].clone())
        }
    }

    fn prompts(num: u64) -> Vec<PromptText> {
        // Indices have gaps, as left-out records make them.
        let prompt = |n| PromptText { index: 2 * n, text: format!("Q{n}"), ..PromptText::default() };
        (0..num).map(prompt).collect()
    }

    fn sample(sample_idx: u64, finish_reasons: [FinishReason; 2]) -> SampleDone {
        let response = |(finish_reason, response_idx)| ResponseDone {
            token_ids: vec![sample_idx as u32, response_idx],
            finish_reason,
            error: None,
            logprobs: None,
            top_logprobs: None,
        };
        SampleDone { sample_idx, responses: finish_reasons.into_iter().zip(0..).map(response).collect() }
    }

    #[test]
    fn unfinished_responses_are_dropped_when_asked() {
        let (prompts, tokens) = (prompts(2), TokenTable::unknown());
        let steps = pending_steps(&plan(2, 2), 2, resume(0, 0));
        let mut collector = StepCollector::new(&prompts, steps, Selection::only(Unfinished::Drop), &tokens);
        for (position, reason) in [(0, FinishReason::Eos), (1, FinishReason::Length)] {
            collector.push(position, sample(2 * position as u64, [FinishReason::Length, reason]), &[]);
        }
        let step = collector.pop().unwrap().unwrap();
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
            let first = plan_output_steps(num, batch, DpWorld { size }, drop_last).unwrap();
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
                    (Just(num), Just(global), Just((0..num).collect::<Vec<_>>()).prop_shuffle())
                }),
        ) {
            let (prompts, tokens) = (prompts(num as u64), TokenTable::unknown());
            let steps = pending_steps(&plan(num, global), global, resume(0, 0));
            let mut collector = StepCollector::new(&prompts, steps, Selection::only(Unfinished::Keep), &tokens);
            let mut done = Vec::new();
            for position in order {
                collector.push(position, sample(2 * position as u64, [FinishReason::Length; 2]), &[]);
                done.extend(std::iter::from_fn(|| collector.pop().unwrap()));
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
