use std::collections::{BTreeMap, HashMap};

use model_core::BlockId;
use proptest::prelude::*;
use sampling::{FinishReason, SampledToken, SamplingParams, TokenBytes};

use super::*;
use crate::testing::*;

mod cancelling;
mod foresight;
mod pipeline;
mod prefixes;
mod replica;
mod speculation;

fn engine(params: SamplingParams, end_strings: &[&str], limits: EngineLimits) -> Engine {
    engine_ahead(params, end_strings, limits, 0)
}

fn engine_ahead(
    params: SamplingParams,
    end_strings: &[&str],
    limits: EngineLimits,
    run_ahead: usize,
) -> Engine {
    engine_of(host_in(params, limits.tables).with_run_ahead(run_ahead), end_strings, limits)
}

/// An executor that everything reaches as text, as it would in another process.
struct Remote<E>(E);

fn sent<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

impl<E: Executor> Executor for Remote<E> {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.0.reset()
    }

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.0.set_vocabulary(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let copy = sent(&plan);
        assert_eq!(copy, plan);
        self.0.start(copy)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        Ok(sent(&self.0.collect()?))
    }

    fn run_ahead(&self) -> usize {
        self.0.run_ahead()
    }

    fn is_greedy(&self) -> bool {
        self.0.is_greedy()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_text_of_a_sample_does_not_depend_on_scheduling(
        shapes in prop::collection::vec((1_usize..15, 0_u32..5, 0_u32..40), 1..10),
        max_num_seqs in 1_usize..16,
        max_prefill_tokens in 1_usize..50,
        num_blocks in 14_usize..80,
        rotate_by in 0_usize..10,
        num_host_blocks in 0_usize..60,
        run_ahead in 0_usize..5,
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let requests: Vec<Request> = shapes
            .iter()
            .enumerate()
            .map(|(idx, &(prompt_len, num, max_new))| request(idx as u64, prompt_len, num, max_new))
            .collect();
        let (expect, _) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
        let num_expected: u32 = requests.iter().map(|request| request.num_responses).sum();
        prop_assert_eq!(expect.len(), num_expected as usize);

        let mut shuffled = requests.clone();
        shuffled.rotate_left(rotate_by % requests.len());
        let tight_limits =
            EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let mut tight = engine_ahead(params(), &["ab", "xyz"], tight_limits, run_ahead);
        let (actual, stats) = run(&mut tight, &shuffled);
        prop_assert!(stats.peak_rows <= max_num_seqs);
        prop_assert_eq!(&actual, &expect);
        // The same engine again: nothing is left over from the run before.
        prop_assert_eq!(&run(&mut tight, &requests).0, &expect);
    }
}

/// Requests whose responses end early, most of them: more begin than would have room at their greatest length.
fn uneven() -> Vec<Request> {
    (0..60).map(|idx| request(idx, 1 + idx as usize % 13, 1 + idx as u32 % 3, 60)).collect()
}

#[test]
fn a_small_cache_and_the_host_hold_as_much_as_a_large_one() {
    let (expect, roomy) = run(&mut engine(params(), &["ab"], roomy()), &uneven());
    assert_eq!((roomy.num_preemptions, roomy.num_swapped_out_blocks), (0, 0));
    let mut num_steps = Vec::new();
    for (num_blocks, num_host_blocks) in [(24, 0), (24, 1), (24, 100), (60, 0), (60, 300)] {
        let limits = EngineLimits { num_host_blocks, ..limits(64, 1000, num_blocks) };
        let (actual, stats) = run(&mut engine_ahead(params(), &["ab"], limits, 1), &uneven());
        assert_eq!(actual, expect, "{num_blocks} blocks and {num_host_blocks} of the host");
        let swapped = [stats.num_swapped_out_blocks, stats.num_swapped_in_blocks];
        assert_eq!(swapped.map(|num_blocks| num_blocks > 0), [num_host_blocks > 1; 2], "{stats:?}");
        assert_eq!(stats.num_preemptions > 0, num_host_blocks > 1, "{stats:?}");
        num_steps.push(stats.num_decode_steps);
    }
    // One place of the host is what blocks are exchanged through, and holds nothing more.
    assert!(num_steps[2] < num_steps[0] && num_steps[4] < num_steps[3], "{num_steps:?}");
}

#[test]
fn steps_can_be_sent_to_another_process() {
    let requests: Vec<Request> =
        (0..20).map(|idx| with_own_rules(request(idx, 2 + idx as usize, 3, 15))).collect();
    let (expect, _) = run(&mut engine(params(), &["a"], roomy()), &requests);
    let limits = EngineLimits { num_host_blocks: 60, ..limits(16, 60, 30) };
    let mut remote = engine_of(Remote(host(params()).with_run_ahead(1)), &["a"], limits);
    assert_eq!(run(&mut remote, &requests).0, expect);
}

/// The tokens of each row of one step.
fn step(executor: &mut HostExecutor, plan: StepPlan) -> Vec<Vec<SampledToken>> {
    executor.start(plan).unwrap();
    executor.collect().unwrap().rows().map(<[SampledToken]>::to_vec).collect()
}

fn prompt_row(group_idx: u64, context_len: u32, query_len: u32, draws: u32) -> RowSpan {
    RowSpan { id: RowId::Prompt(group_idx), context_len, query_len, draws }
}

fn new_prompt(group_idx: u64, len: usize, block_table: &[BlockId]) -> NewPrompt {
    let Request { sample_idx, prompt: tokens, .. } = request(group_idx, len, 1, 1);
    NewPrompt { group_idx, sample_idx, tokens, own: None, block_table: block_table.to_vec() }
}

#[test]
fn the_host_mixes_prompts_chunks_and_responses() {
    let prompts = || vec![new_prompt(1, 10, &[0, 1, 2]), new_prompt(2, 3, &[3])];
    let response = |group_idx, response_idx, context_len| RowSpan {
        id: RowId::Response(SeqId { group_idx, response_idx }),
        context_len,
        query_len: 1,
        draws: 1,
    };
    let start = |group_idx, block_table: &[BlockId]| NewSeq {
        id: SeqId { group_idx, response_idx: 0 },
        block_table: block_table.to_vec(),
    };
    let tables = |prompts, started| TableDelta { prompts, started, ..TableDelta::default() };

    let mut whole = host(params());
    let rows = vec![prompt_row(1, 0, 10, 2), prompt_row(2, 0, 3, 1)];
    let first = step(&mut whole, StepPlan { tables: tables(prompts(), vec![]), rows, ..StepPlan::default() });
    assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    let started = vec![start(1, &[0, 1, 2, 4]), start(2, &[3, 5])];
    let rows = vec![response(1, 0, 10), response(2, 0, 3)];
    let second = step(&mut whole, StepPlan { tables: tables(vec![], started), rows, ..StepPlan::default() });

    let mut chunked = host(params());
    let rows = vec![prompt_row(1, 0, 4, 0), prompt_row(2, 0, 3, 1)];
    let step_0 =
        step(&mut chunked, StepPlan { tables: tables(prompts(), vec![]), rows, ..StepPlan::default() });
    assert_eq!(step_0, [vec![], first[1].clone()]);
    let rows = vec![prompt_row(1, 4, 3, 0), response(2, 0, 3)];
    let plan = StepPlan { tables: tables(vec![], vec![start(2, &[3, 5])]), rows, ..StepPlan::default() };
    assert_eq!(step(&mut chunked, plan), [vec![], second[1].clone()]);
    let rows = vec![prompt_row(1, 7, 3, 2)];
    let step_2 = step(&mut chunked, StepPlan { rows, ..StepPlan::default() });
    assert_eq!(step_2, [first[0].clone()]);
    let tables = tables(vec![], vec![start(1, &[0, 1, 2, 4])]);
    let rows = vec![response(1, 0, 10)];
    assert_eq!(step(&mut chunked, StepPlan { tables, rows, ..StepPlan::default() }), [second[0].clone()]);

    let mut refused = |row: RowSpan| {
        let plan = StepPlan { rows: vec![row], ..StepPlan::default() };
        chunked.start(plan).unwrap_err().to_string()
    };
    insta::assert_snapshot!(refused(RowSpan { query_len: 3, draws: 3, ..response(1, 0, 11) }), @"the host executor does not compute a response with more or fewer draws or drafts than tokens");
    insta::assert_snapshot!(refused(response(1, 0, 12)), @"the host executor does not compute a response at a place other than its end");
    insta::assert_snapshot!(refused(response(7, 0, 1)), @"no sequence for response 0 of request 7");
    insta::assert_snapshot!(refused(prompt_row(1, 0, 10, 1)), @"no sequence for response 0 of request 1");
}

/// Gives another number of tokens than the rows draw.
struct Wrong(HostExecutor, usize);

impl Executor for Wrong {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.0.reset()
    }

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.0.set_vocabulary(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        self.0.start(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let mut output = self.0.collect()?;
        output.tokens.truncate(self.1);
        Ok(output)
    }

    fn run_ahead(&self) -> usize {
        0
    }

    fn is_greedy(&self) -> bool {
        false
    }
}

#[test]
fn an_answer_with_too_few_tokens_is_refused() {
    let mut engine = engine_of(Wrong(host(params()), 3), &[], roomy());
    let mut requests = vec![request(0, 4, 2, 9), request(1, 4, 2, 9)].into_iter();
    let mut ignore = |_| ControlFlow::Continue(());
    let error = engine.run(&mut |_| requests.next().into(), &mut ignore, &|| false).unwrap_err();
    insta::assert_snapshot!(error, @"an executor gave 0 tokens for row 1 of a step, which draws 2");
}

#[test]
fn a_response_does_not_depend_on_how_many_there_are() {
    let (many, _) = run(&mut engine(params(), &[], roomy()), &[request(5, 9, 6, 10)]);
    let (one, _) = run(&mut engine(params(), &[], roomy()), &[request(5, 9, 1, 10)]);
    assert_eq!(one[&(5, 0)], many[&(5, 0)]);
    assert!((1..6).any(|response_idx| many[&(5, response_idx)].token_ids != many[&(5, 0)].token_ids));
}

#[test]
fn stop_conditions_end_responses_with_their_tokens_kept() {
    let requests: Vec<Request> = (0..40).map(|idx| request(idx, 3, 4, 30)).collect();
    let (completions, stats) = run(&mut engine(params(), &["a", "bc"], roomy()), &requests);
    let mut num_of = HashMap::new();
    for completion in completions.values() {
        *num_of.entry(completion.finish_reason).or_insert(0) += 1;
        let text: Vec<u8> = completion.token_ids.iter().flat_map(|&id| Letters.bytes(id)).copied().collect();
        let ends_by_string = text.ends_with(b"a") || text.ends_with(b"bc");
        match completion.finish_reason {
            FinishReason::Eos => assert_eq!(completion.token_ids.last(), Some(&EOS)),
            FinishReason::EndString => assert!(ends_by_string),
            FinishReason::Length => assert!(completion.token_ids.len() == 30 && !ends_by_string),
            FinishReason::Error => panic!("{completion:?}"),
        }
        assert_eq!(completion.logprobs.as_ref().map(Vec::len), Some(completion.token_ids.len()));
        assert!(!completion.token_ids[..completion.token_ids.len() - 1].contains(&EOS));
    }
    assert_eq!(num_of.len(), 3, "all three reasons occur: {num_of:?}");
    let num_tokens: usize = completions.values().map(|completion| completion.token_ids.len()).sum();
    assert_eq!(stats.generated_tokens, num_tokens as u64);
    assert_eq!(stats.prompt_tokens, 40 * 3);
}

#[test]
fn greedy_computes_one_response_and_repeats_it() {
    let greedy = SamplingParams { use_greedy: true, ..params() };
    let (completions, stats) =
        run(&mut engine(greedy, &[], roomy()), &[request(0, 5, 3, 8), request(1, 2, 2, 0)]);
    let token_ids = &completions[&(0, 0)].token_ids;
    assert_eq!(stats.generated_tokens, token_ids.len() as u64);
    assert!((1..3).all(|response_idx| completions[&(0, response_idx)].token_ids == *token_ids));
    assert!((0..2).all(|response_idx| completions[&(1, response_idx)].token_ids.is_empty()));
}

#[test]
fn own_rules_hold_for_their_request_alone() {
    let requests: Vec<Request> = (0..36).map(|n| request(n, 4, 2, 9)).collect();
    let (plain, _) = run(&mut engine(params(), &["ab"], roomy()), &requests);
    let own: Vec<Request> = requests.iter().cloned().map(with_own_rules).collect();
    let (mixed, _) = run(&mut engine(params(), &["ab"], limits(5, 9, 60)), &own);
    let mut num_changed = 0;
    for (key, completion) in &mixed {
        match key.0 % 3 {
            0 => assert_eq!(*completion, plain[key]),
            // Greedy: the responses are one.
            1 => assert_eq!(completion.token_ids, mixed[&(key.0, 0)].token_ids),
            _ => num_changed += usize::from(completion.token_ids != plain[key].token_ids),
        }
        // `c` is the end string of those with rules of their own, `ab` the run's.
        let ends_by = if key.0 % 3 == 0 { &b"ab"[..] } else { b"c" };
        let text: Vec<u8> = completion.token_ids.iter().flat_map(|&id| Letters.bytes(id).to_vec()).collect();
        let reason_is_its_own =
            completion.finish_reason != FinishReason::EndString || text.ends_with(ends_by);
        assert!(reason_is_its_own, "{completion:?}");
        let top = completion.top_logprobs.clone().unwrap_or_default();
        assert!(top.len() == completion.token_ids.len() && top.iter().all(|top| top.len() == 2));
    }
    assert!(num_changed > 12, "another seed gives other tokens: {num_changed} of 24");
    assert!(mixed.iter().any(|(key, done)| key.0 % 3 > 0 && done.finish_reason == FinishReason::EndString));
}

#[test]
fn requests_are_fetched_only_when_they_can_start() {
    let mut engine = engine(params(), &[], limits(4, 1000, 1000));
    let num_fetched = std::cell::Cell::new(0);
    let num_completed = std::cell::Cell::new(0);
    let mut next_request = |_| {
        num_fetched.set(num_fetched.get() + 1);
        assert!(num_fetched.get() - num_completed.get() <= 5, "more than the seats are in flight");
        (num_fetched.get() <= 30).then(|| request(num_fetched.get(), 4, 1, 9)).into()
    };
    let mut on_completion = |_| {
        num_completed.set(num_completed.get() + 1);
        ControlFlow::Continue(())
    };
    engine.run(&mut next_request, &mut on_completion, &|| false).unwrap();
    assert_eq!((num_fetched.get(), num_completed.get()), (31, 30));
}

#[test]
fn requests_may_come_later() {
    let requests: Vec<Request> = (0..9).map(|n| request(n, 3 + n as usize, 2, 7)).collect();
    let (expect, _) = run(&mut engine(params(), &["ab"], roomy()), &requests);
    let mut input = requests.into_iter();
    let (mut num_asked, mut num_idle) = (0, 0);
    let mut next_request = |activity| {
        num_asked += 1;
        num_idle += u32::from(activity == Activity::Idle);
        // Long enough for everything before to end.
        if num_asked % 40 == 0 { input.next().into() } else { Supply::Later }
    };
    let mut completions = BTreeMap::new();
    let mut on_completion = |completion: Completion| {
        completions.insert((completion.sample_idx, completion.response_idx), completion);
        ControlFlow::Continue(())
    };
    let stats =
        engine(params(), &["ab"], roomy()).run(&mut next_request, &mut on_completion, &|| false).unwrap();
    assert_eq!((stats.end, num_idle > 9), (RunEnd::Finished, true));
    assert_eq!(completions, expect);
}

#[test]
fn a_run_can_be_stopped_from_both_ends() {
    let mut engine = engine(params(), &[], roomy());
    let mut num_completed = 0;
    let mut on_completion = |_| {
        num_completed += 1;
        ControlFlow::Break(())
    };
    let stats =
        engine.run(&mut |_| Supply::Request(request(0, 4, 2, 9)), &mut on_completion, &|| false).unwrap();
    assert_eq!((stats.end, num_completed), (RunEnd::Stopped, 1));

    let mut fail = |_| -> ControlFlow<()> { panic!("nothing was started") };
    let stats = engine.run(&mut |_| Supply::Request(request(0, 4, 2, 9)), &mut fail, &|| true).unwrap();
    assert_eq!((stats.end, stats.num_prefill_steps), (RunEnd::Stopped, 0));
}

#[test]
fn errors_name_the_sample() {
    let check = |request: Request| {
        let mut requests = Some(request);
        engine(params(), &[], limits(4, 100, 3))
            .run(&mut |_| requests.take().into(), &mut |_| ControlFlow::Continue(()), &|| false)
            .unwrap_err()
            .to_string()
    };
    insta::assert_snapshot!(check(request(3, 10, 2, 20)), @"sample 3 needs 9 KV blocks of 4 tokens (10 prompt and up to 20 new tokens), the cache has 3");
    insta::assert_snapshot!(check(request(4, 0, 1, 5)), @"sample 4 has an empty prompt");
}
