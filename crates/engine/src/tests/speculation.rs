//! Drafted tokens change no completion, whatever is drafted.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::{engine_ahead, host};
use crate::testing::*;
use crate::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn completions_do_not_depend_on_drafts(
        shapes in prop::collection::vec((1_usize..30, 0_u32..4, 0_u32..20), 1..8),
        max_num_seqs in 1_usize..16,
        max_prefill_tokens in 1_usize..50,
        num_blocks in 14_usize..40,
        num_host_blocks in 0_usize..30,
        run_ahead in 0_usize..3,
        use_greedy in any::<bool>(),
        right_percent in prop::sample::select(vec![0_u64, 50, 90, 100]),
        most_drafts in 0_u64..12,
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let requests: Vec<Request> = shapes
            .iter()
            .enumerate()
            .map(|(idx, &(prompt_len, num, max_new))| with_own_rules(request(idx as u64, prompt_len, num, max_new)))
            .collect();
        let params = sampling::SamplingParams { use_greedy, ..params() };
        let end_strings = ["ab", "xyz"];
        let (expect, _) = run(&mut engine_ahead(params.clone(), &end_strings, roomy(), 0), &requests);
        let tight = EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let guesser = Guesser::new(&expect, &requests, right_percent, most_drafts);
        let mut engine = engine_ahead(params, &end_strings, tight, run_ahead).with_proposer(Box::new(guesser));
        for _ in 0..2 {
            let (actual, stats) = run(&mut engine, &requests);
            prop_assert_eq!(&actual, &expect);
            prop_assert!(stats.accepted_tokens <= stats.drafted_tokens);
        }
    }
}

#[test]
fn a_prompt_whose_blocks_move_between_its_parts_is_told_once() {
    let requests: Vec<Request> =
        (0..12).map(|idx| request(idx, if idx % 2 == 0 { 3 } else { 29 }, 2, 24)).collect();
    let (expect, _) = run(&mut engine_ahead(params(), &[], roomy(), 0), &requests);
    for num_blocks in 14..30 {
        let tight = EngineLimits { num_host_blocks: 60, ..limits(8, 4, num_blocks) };
        let guesser = Guesser::new(&expect, &requests, 50, 2);
        let mut engine = engine_ahead(params(), &[], tight, 1).with_proposer(Box::new(guesser));
        assert_eq!(run(&mut engine, &requests).0, expect, "{num_blocks} blocks");
    }
}

#[test]
fn right_drafts_save_steps_and_wrong_ones_cost_none() {
    let answers = (0..).map(|sample_idx| {
        let requests = [request(sample_idx, 6, 1, 33)];
        let (expect, stats) = run(&mut engine_ahead(params(), &[], roomy(), 0), &requests);
        (requests, expect, stats)
    });
    // One that no end token ends.
    let (requests, expect, alone) = { answers }.find(|(.., stats)| stats.generated_tokens == 33).unwrap();
    assert_eq!((alone.num_decode_steps, alone.decode_rows, alone.drafted_tokens), (32, 32, 0));
    let with = |right_percent| {
        let guesser = Guesser::new(&expect, &requests, right_percent, 0);
        let always = Always(guesser);
        let engine = engine_of(host(params()), &[], roomy());
        let (actual, stats) = run(&mut engine.with_proposer(Box::new(always)), &requests);
        assert_eq!(actual, expect);
        assert_eq!(stats.generated_tokens, 33);
        (stats.num_decode_steps, stats.drafted_tokens, stats.accepted_tokens)
    };
    // Four tokens a step; the last steps have room for fewer drafts.
    assert_eq!(with(100), (8, 24, 24));
    assert_eq!(with(0), (32, 29 * 3 + 2 + 1, 0));
}

/// Three drafts at a time, of which none is right by chance.
struct Always(Guesser);

impl Proposer<SeqId> for Always {
    fn reset(&mut self) {
        self.0.reset();
    }

    fn prompt(&mut self, tokens: &[u32], responses: &[SeqId]) {
        self.0.prompt(tokens, responses);
    }

    fn append(&mut self, id: SeqId, tokens: &[u32]) {
        self.0.append(id, tokens);
    }

    fn end(&mut self, id: SeqId) {
        self.0.end(id);
    }

    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let drafts = responses.iter().map(|response| {
            assert!(response.max_drafts < 33);
            let tokens = self.0.what_follows(response.id);
            let shift = u32::from(!self.0.is_right());
            tokens.iter().take(3).map(|&token| (token + shift) % VOCAB_SIZE as u32).collect()
        });
        drafts.collect()
    }

    fn wants_drafts(&mut self, _num_in_flight: usize, _goal: Goal) -> bool {
        true
    }

    fn measured(&mut self, _step: StepTime) {}

    fn not_comparable(&mut self, _time: Duration) {}
}

/// A sampler that can draw nothing behind a token that is in no vocabulary.
struct Choosy(sampling::CpuSampler);

/// The model computes it, and no sampler draws it.
const OUTSIDE: u32 = VOCAB_SIZE as u32 + 3;

impl TokenSampler for Choosy {
    fn sample(
        &mut self,
        logits: &tch::Tensor,
        rows: &[sampling::RowState<'_>],
    ) -> Result<Vec<sampling::SampledToken>, sampling::SamplingError> {
        if let Some(row) = rows.iter().find(|row| row.history.contains(&OUTSIDE)) {
            return Err(sampling::SamplingError::BadLogits {
                sample_idx: row.sample_idx,
                response_idx: row.response_idx,
                token_idx: row.num_generated,
                problem: "tokens outside",
            });
        }
        self.0.sample(logits, rows)
    }

    fn is_greedy(&self) -> bool {
        self.0.is_greedy()
    }
}

/// Drafts a token that is never right.
struct Outsider;

impl Proposer<SeqId> for Outsider {
    fn reset(&mut self) {}

    fn prompt(&mut self, _tokens: &[u32], _responses: &[SeqId]) {}

    fn append(&mut self, _id: SeqId, _tokens: &[u32]) {}

    fn end(&mut self, _id: SeqId) {}

    fn wants_drafts(&mut self, _num_in_flight: usize, _goal: Goal) -> bool {
        true
    }

    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        vec![vec![OUTSIDE; 2]; responses.len()]
    }

    fn measured(&mut self, _step: StepTime) {}

    fn not_comparable(&mut self, _time: Duration) {}
}

#[test]
fn what_cannot_be_drawn_behind_a_wrong_draft_is_no_error() {
    let requests: Vec<Request> = (0..4).map(|idx| request(idx, 5, 2, 12)).collect();
    let (expect, _) = run(&mut engine_ahead(params(), &["ab"], roomy(), 0), &requests);
    let choosy = Box::new(Choosy(sampler(params())));
    let executor = HostExecutor::new(Box::new(FakeModel::default()), choosy, Stage::ONLY);
    let mut engine = engine_of(executor, &["ab"], roomy()).with_proposer(Box::new(Outsider));
    let (actual, stats) = run(&mut engine, &requests);
    assert_eq!(actual, expect);
    assert!(stats.drafted_tokens > 0 && stats.accepted_tokens == 0);
}

/// Writes down what it is told of steps, and drafts some token for every fourth.
#[derive(Default)]
struct Recorder {
    steps: Arc<Mutex<Vec<StepTime>>>,
    goals: Arc<Mutex<Vec<Goal>>>,
    num_asked: u64,
}

impl Proposer<SeqId> for Recorder {
    fn reset(&mut self) {}

    fn prompt(&mut self, _tokens: &[u32], _responses: &[SeqId]) {}

    fn append(&mut self, _id: SeqId, _tokens: &[u32]) {}

    fn end(&mut self, _id: SeqId) {}

    fn wants_drafts(&mut self, num_in_flight: usize, goal: Goal) -> bool {
        assert!(num_in_flight <= 1);
        self.goals.lock().unwrap().push(goal);
        self.num_asked += 1;
        self.num_asked.is_multiple_of(4)
    }

    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        vec![vec![0]; responses.len()]
    }

    fn measured(&mut self, step: StepTime) {
        self.steps.lock().unwrap().push(step);
    }

    fn not_comparable(&mut self, time: Duration) {
        assert!(time > Duration::ZERO);
    }
}

#[test]
fn a_proposer_is_told_how_steps_follow_each_other() {
    let steps_of = |run_ahead: usize| {
        let recorder = Recorder::default();
        let (steps, goals) = (recorder.steps.clone(), recorder.goals.clone());
        let reads = Cell::new(0);
        let mut engine = engine_ahead(params(), &[], roomy(), run_ahead)
            .with_proposer(Box::new(recorder))
            .with_clock(Box::new(move || Duration::from_secs(reads.replace(reads.get() + 1))));
        let (_, stats) = run(&mut engine, &[request(7, 6, 2, 20)]);
        assert!(stats.num_decode_steps > 8);
        assert_eq!(goals.lock().unwrap().last(), Some(&Goal::Finish));
        let steps = steps.lock().unwrap().clone();
        // The clock is read once a step.
        assert!(steps.iter().all(|step| step.time == Duration::from_secs(1) && step.num_rows <= 2));
        steps.iter().map(|step| (step.num_tokens > step.num_rows, step.pace)).collect::<Vec<_>>()
    };
    let (plain, drafts) = ((false, Pace::Ahead), (true, Pace::Alone));
    // What follows a step with drafts is alone as well; what follows that is not.
    let alone = (false, Pace::Alone);
    assert_eq!(steps_of(1)[..8], [plain, plain, plain, drafts, alone, plain, plain, drafts]);
    assert_eq!(steps_of(0)[..4], [alone, alone, alone, drafts]);
}
