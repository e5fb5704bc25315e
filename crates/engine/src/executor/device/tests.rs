//! The bookkeeping against a simulated device, which knows of a run only what is uploaded to it.

use std::sync::{Arc, Mutex};

use model_core::BlockMove;
use model_spec::{KvTables, blocks_for};
use proptest::prelude::*;
use sampling::{
    CpuSampler, ROW_RULE_WORDS, RowMasks, RowRules, RowState, SamplingParams, StopConditions, TokenSampler,
    read_row_rules,
};
use tch::Tensor;

use super::*;
use crate::{
    Engine, EngineLimits, Request,
    executor::host::{BatchModel, StepOf},
    plan::RowId,
    testing::{
        BLOCK_SIZE_TOKENS, FakeModel, Guesser, Letters, engine_of, host, host_in, limits, params, request,
        roomy, run, run_cancelling, sampler, tables, wanted, with_own_rules,
    },
};

/// Most tokens of a sequence in these tests.
const MAX_SEQ_LEN_TOKENS: usize = 40;

/// What the device was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Prefill,
    Gather,
    Upload,
    PutDrafts,
    /// Of the model, or of the sampler, too.
    Decode(DecodeStep),
    DrawMasked,
    /// Of the tokens of a step.
    Read,
}

/// Words and tokens as they lie on a GPU. A decode step reads nothing else, and moves its rows on as the sampler's kernel
/// does.
struct FakeDevice {
    layout: TableLayout,
    words: Vec<i32>,
    tokens: Vec<u32>,
    model: FakeModel,
    sampler: CpuSampler,
    params: SamplingParams,
    calls: Arc<Mutex<Vec<Call>>>,
    /// A step whose tokens are not drawn.
    computed: Option<Computed>,
    num_begun: usize,
    num_read: usize,
}

/// What the model leaves of each row to the sampler.
#[derive(Default)]
struct Computed {
    histories: Vec<Vec<u32>>,
    states: Vec<(Owner, u32, Option<RowRules>)>,
}

/// A row of the tables.
struct Row {
    owner: Owner,
    num_generated: u32,
    /// None where the row is not in use.
    position: Option<usize>,
    own: Option<RowRules>,
    table: Vec<BlockId>,
}

impl FakeDevice {
    fn new(
        layout: TableLayout,
        tables: KvTables,
        params: SamplingParams,
        calls: Arc<Mutex<Vec<Call>>>,
    ) -> Self {
        Self {
            layout,
            words: vec![0; layout.num_words()],
            tokens: vec![0; layout.max_rows],
            model: FakeModel::with_tables(tables),
            sampler: sampler(params.clone()),
            params,
            calls,
            computed: None,
            num_begun: 0,
            num_read: 0,
        }
    }

    fn call(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn row(&self, idx: usize) -> Row {
        let layout = self.layout;
        let word = |start: usize| self.words[start + idx];
        let half = |nth: usize| u64::from(self.words[layout.sample_idxs() + 2 * idx + nth] as u32);
        let block = |table: usize, nth: usize| {
            let row = table * layout.max_rows + idx;
            self.words[layout.block_tables() + row * layout.max_blocks_per_seq + nth] as BlockId
        };
        let column = |nth| (0..layout.num_tables).map(move |table| block(table, nth));
        Row {
            owner: Owner {
                sample_idx: half(0) | half(1) << 32,
                response_idx: word(layout.response_idxs()) as u32,
            },
            num_generated: word(layout.num_generated()) as u32,
            position: usize::try_from(word(layout.positions())).ok(),
            own: layout.has_row_rules.then(|| self.own(idx)).flatten(),
            table: (0..layout.max_blocks_per_seq).flat_map(column).collect(),
        }
    }

    fn own(&self, idx: usize) -> Option<RowRules> {
        let start = self.layout.row_rules() + idx * ROW_RULE_WORDS;
        read_row_rules(self.words[start..start + ROW_RULE_WORDS].try_into().unwrap(), &self.params)
    }

    /// Attention reads the shared blocks of neighbours once, through the table of the first of them.
    fn check_prefix(&self, idx: usize) {
        let pair = self.layout.prefix_groups() + 2 * idx;
        let (first, num_shared) = (self.words[pair] as usize, self.words[pair + 1] as usize);
        assert!(first <= idx);
        let shared = |row: usize| {
            let first_table = self.row(row).table.into_iter().step_by(self.layout.num_tables);
            first_table.take(num_shared).collect::<Vec<_>>()
        };
        assert_eq!(shared(first), shared(idx));
    }

    fn draw(
        &mut self,
        histories: &[Vec<u32>],
        states: &[(Owner, u32, Option<RowRules>)],
        masks: &RowMasks,
    ) -> Result<Vec<SampledToken>, EngineError> {
        let logits: Vec<Vec<f32>> = histories.iter().map(|history| FakeModel::logits(history)).collect();
        let states: Vec<RowState<'_>> = histories
            .iter()
            .zip(states)
            .enumerate()
            .map(|(idx, (history, &(Owner { sample_idx, response_idx }, num_generated, ref own)))| RowState {
                sample_idx,
                response_idx,
                num_generated,
                history,
                own: own.as_ref(),
                allowed: masks.allowed(idx),
            })
            .collect();
        Ok(self.sampler.sample(&Tensor::from_slice2(&logits), &states)?)
    }
}

impl FakeDevice {
    /// Draws the tokens of the step that the model has computed, and moves the rows on.
    fn draw_computed(&mut self, masks: &RowMasks) -> Result<FakeRecords, EngineError> {
        let Computed { histories, states } = self.computed.take().unwrap();
        let tokens = self.draw(&histories, &states, masks)?;
        for (idx, sampled) in tokens.iter().enumerate() {
            self.tokens[idx] = sampled.token;
            self.words[self.layout.positions() + idx] += 1;
            self.words[self.layout.num_generated() + idx] += 1;
        }
        let tokens = states.into_iter().map(|(owner, ..)| owner).zip(tokens).collect();
        Ok(FakeRecords { tokens, step: self.num_begun })
    }
}

/// The tokens of a step, and which step it is.
struct FakeRecords {
    tokens: Vec<(Owner, SampledToken)>,
    step: usize,
}

impl StepDevice for FakeDevice {
    type KeptTokens = Vec<u32>;
    type Records = FakeRecords;

    fn reset(&mut self) -> Result<(), EngineError> {
        self.num_read = self.num_begun;
        self.computed = None;
        Ok(())
    }

    fn begin(&mut self, moves: &[BlockMove]) -> Result<(), EngineError> {
        self.num_begun += 1;
        assert!(
            self.num_begun - self.num_read <= RUN_AHEAD + 1,
            "events are used again before they are read"
        );
        self.model.move_blocks(moves)
    }

    fn prefill(
        &mut self,
        batch: &Batch,
        draws: &[FirstToken<'_>],
    ) -> Result<(Option<Vec<u32>>, FakeRecords), EngineError> {
        self.call(Call::Prefill);
        let logits = self.model.forward(batch, StepOf::Prompts)?;
        for draw in draws {
            let row = Vec::<f32>::try_from(logits.get(draw.logits_row as i64)).unwrap();
            assert_eq!(row, FakeModel::logits(draw.prompt), "the row is of another prompt");
        }
        if draws.is_empty() {
            return Ok((None, FakeRecords { tokens: Vec::new(), step: self.num_begun }));
        }
        let histories: Vec<Vec<u32>> = draws.iter().map(|draw| draw.prompt.to_vec()).collect();
        let states: Vec<_> = draws.iter().map(|draw| (draw.owner, 0, draw.own.cloned())).collect();
        let mut masks = RowMasks::default();
        draws.iter().for_each(|draw| masks.push(draw.allowed));
        let tokens = self.draw(&histories, &states, &masks)?;
        let first = tokens.iter().map(|sampled| sampled.token).collect();
        let tokens = draws.iter().map(|draw| draw.owner).zip(tokens).collect();
        Ok((Some(first), FakeRecords { tokens, step: self.num_begun }))
    }

    fn keep(&mut self, rows: &[i64]) -> Result<Vec<u32>, EngineError> {
        Ok(rows.iter().map(|&row| self.tokens[row as usize]).collect())
    }

    fn gather(&mut self, from: &[i64], waiting: &[&Vec<u32>]) -> Result<(), EngineError> {
        self.call(Call::Gather);
        let all: Vec<u32> = self.tokens.iter().chain(waiting.iter().copied().flatten()).copied().collect();
        for (token, &from) in self.tokens.iter_mut().zip(from) {
            *token = all[from as usize];
        }
        Ok(())
    }

    fn upload(&mut self, words: &[i32]) -> Result<(), EngineError> {
        self.call(Call::Upload);
        assert_eq!(words.len(), self.layout.num_words());
        self.words = words.to_vec();
        Ok(())
    }

    fn put_drafts(&mut self, drafts: &[&[u32]]) -> Result<(), EngineError> {
        self.call(Call::PutDrafts);
        for (token, drafts) in self.tokens.iter_mut().zip(drafts) {
            *token = drafts.last().copied().unwrap_or(*token);
        }
        Ok(())
    }

    fn decode(&mut self, step: DecodeStep) -> Result<FakeRecords, EngineError> {
        self.decode_model(step)?;
        self.draw_computed(&RowMasks::default())
    }

    fn decode_model(&mut self, step: DecodeStep) -> Result<(), EngineError> {
        self.call(Call::Decode(step));
        let DecodeStep { num_rows, num_used, has_drafts } = step;
        assert!(num_used <= num_rows && num_rows <= self.layout.max_rows);
        let Computed { mut histories, mut states } = Computed::default();
        for idx in 0..num_rows {
            let row = self.row(idx);
            assert_eq!(row.position.is_some(), idx < num_used, "row {idx} of {num_used}");
            let Some(position) = row.position else { continue };
            self.check_prefix(idx);
            // Rows of one sequence read what the others write, but only where all write first.
            let is_first = states.last().is_none_or(|&(owner, ..)| owner != row.owner);
            assert!(is_first || has_drafts, "row {idx} is of the sequence before it");
            self.model.write(&row.table, position, self.tokens[idx]);
            histories.push(self.model.history(&row.table, position + 1));
            states.push((row.owner, row.num_generated, row.own));
        }
        assert!(self.computed.replace(Computed { histories, states }).is_none(), "a step was not drawn");
        Ok(())
    }

    fn draw_masked(&mut self, step: DecodeStep, masks: &RowMasks) -> Result<FakeRecords, EngineError> {
        self.call(Call::DrawMasked);
        assert_eq!(masks.mask_of_row.len(), step.num_used);
        self.draw_computed(masks)
    }

    fn read(
        &mut self,
        records: FakeRecords,
        owners: &[Owner],
    ) -> Result<(Vec<DrawnToken>, StepTimes), EngineError> {
        self.call(Call::Read);
        self.num_read += 1;
        assert_eq!(records.step, self.num_read, "steps are read in their order");
        let (of, tokens): (Vec<_>, Vec<_>) = records.tokens.into_iter().unzip();
        assert_eq!(of, owners);
        Ok((tokens.into_iter().map(Ok).collect(), StepTimes::default()))
    }

    fn verifies_drafts(&self) -> bool {
        true
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}

struct Setup {
    params: SamplingParams,
    limits: EngineLimits,
    small_batch: usize,
    has_row_rules: bool,
}

impl Setup {
    fn executor(&self) -> (DeviceExecutor<FakeDevice>, Arc<Mutex<Vec<Call>>>) {
        let layout = TableLayout {
            max_rows: max_rows(self.limits.max_decode_tokens()),
            max_blocks_per_seq: blocks_for(MAX_SEQ_LEN_TOKENS, BLOCK_SIZE_TOKENS),
            num_tables: self.limits.tables.len(),
            has_row_rules: self.has_row_rules,
        };
        let calls = Arc::default();
        let device = FakeDevice::new(layout, self.limits.tables, self.params.clone(), Arc::clone(&calls));
        let shape = DeviceShape { layout, small_batch: self.small_batch, prompt_cut_tokens: Some(2) };
        (DeviceExecutor::new(device, shape), calls)
    }

    fn engine(&self, end_strings: &[&str]) -> (Engine, Arc<Mutex<Vec<Call>>>) {
        let (executor, calls) = self.executor();
        (engine_of(executor, end_strings, self.limits), calls)
    }
}

fn roomy_setup() -> Setup {
    Setup { params: params(), limits: roomy(), small_batch: 64, has_row_rules: false }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_device_gives_the_tokens_of_the_host(
        shapes in prop::collection::vec((1_usize..15, 0_u32..6, 0_u32..26), 1..14),
        (max_num_seqs, max_prefill_tokens, num_blocks) in (1_usize..40, 1_usize..50, 11_usize..90),
        num_host_blocks in 0_usize..60,
        small_batch in prop::sample::select(vec![0_usize, 4, 64]),
        use_greedy in any::<bool>(),
        has_row_rules in any::<bool>(),
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let requests: Vec<Request> = (0..)
            .zip(&shapes)
            // Numbers that need both words.
            .map(|(idx, &(prompt_len, num, max_new))| request(idx << 31 | idx, prompt_len, num, max_new))
            .map(|request| if has_row_rules { with_own_rules(request) } else { request })
            .collect();
        let params = SamplingParams { use_greedy, ..params() };
        let limits =
            EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let setup = Setup { params: params.clone(), limits, small_batch, has_row_rules };
        let (expect, on_host) =
            run(&mut engine_of(host_in(params, tables).with_run_ahead(RUN_AHEAD), &["ab", "xyz"], setup.limits), &requests);
        let (mut engine, calls) = setup.engine(&["ab", "xyz"]);
        let (actual, stats) = run(&mut engine, &requests);
        prop_assert_eq!(&actual, &expect);
        let counts = |stats: &crate::RunStats| {
            let steps = (stats.num_prefill_steps, stats.num_decode_steps, stats.peak_rows);
            (steps, stats.generated_tokens, stats.num_swapped_out_blocks, stats.num_swapped_in_blocks)
        };
        prop_assert_eq!(counts(&stats), counts(&on_host));
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        let count = |is: fn(&Call) -> bool| calls.iter().filter(|call| is(call)).count() as u64;
        prop_assert_eq!(count(|call| *call == Call::Prefill), stats.num_prefill_steps);
        prop_assert_eq!(count(|call| matches!(call, Call::Decode(_))), stats.num_decode_steps);
        // The same engine again: nothing is left over from the run before.
        prop_assert_eq!(&run(&mut engine, &requests).0, &expect);
        // Responses that are cancelled change nothing of the others, nor of the run after.
        let (delivered, _) = run_cancelling(&mut engine, &requests, num_blocks % 4);
        prop_assert!(delivered.iter().all(|(key, completion)| *completion == expect[key]));
        prop_assert_eq!(wanted(&delivered), wanted(&expect));
        prop_assert_eq!(&run(&mut engine, &requests).0, &expect);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn drafts_on_a_device_change_no_tokens(
        shapes in prop::collection::vec((1_usize..15, 0_u32..6, 0_u32..20), 1..10),
        (max_num_seqs, max_prefill_tokens, num_blocks) in (1_usize..40, 1_usize..50, 10_usize..80),
        small_batch in prop::sample::select(vec![0_usize, 4, 64]),
        use_greedy in any::<bool>(),
        right_percent in prop::sample::select(vec![0_u64, 50, 90, 100]),
        most_drafts in 0_u64..12,
        has_row_rules in any::<bool>(),
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let requests: Vec<Request> = (0..)
            .zip(&shapes)
            .map(|(idx, &(prompt_len, num, max_new))| request(idx, prompt_len, num, max_new))
            .map(|request| if has_row_rules { with_own_rules(request) } else { request })
            .collect();
        let params = SamplingParams { use_greedy, ..params() };
        let (expect, _) = run(&mut engine_of(host(params.clone()), &["ab", "xyz"], roomy()), &requests);
        let limits = EngineLimits { tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let setup = Setup { params, limits, small_batch, has_row_rules };
        let guesser = Guesser::new(&expect, &requests, right_percent, most_drafts);
        let (engine, calls) = setup.engine(&["ab", "xyz"]);
        let mut engine = engine.with_proposer(Box::new(guesser));
        for _ in 0..2 {
            prop_assert_eq!(&run(&mut engine, &requests).0, &expect);
        }
        let most_used = calls.lock().unwrap().iter().map(|call| match call {
            Call::Decode(step) => step.num_used,
            _ => 0,
        }).max();
        prop_assert!(most_used.unwrap_or(0) <= setup.limits.max_decode_tokens());
    }
}

#[test]
fn tables_are_uploaded_once_when_rows_change_and_not_else() {
    let (mut engine, calls) = roomy_setup().engine(&[]);
    let requests = [request(0, 5, 2, 4), request(1, 3, 1, 8), request(2, 6, 3, 1)];
    let greedy_length = |idx| requests[idx as usize].max_new_tokens as usize;
    let (completions, _) = run(&mut engine, &requests);
    assert!(completions.values().all(|done| done.token_ids.len() == greedy_length(done.sample_idx)));
    let decode = |num_used: usize| {
        let num_rows = num_used.next_power_of_two();
        Call::Decode(DecodeStep { num_rows, num_used, has_drafts: false })
    };
    calls.lock().unwrap().retain(|call| *call != Call::Read);
    let expect = [
        &[Call::Prefill, Call::Gather, Call::Upload][..],
        &[decode(3), decode(3), decode(3)],
        // Who has all its tokens has no row any more.
        &[Call::Gather, Call::Upload],
        &[decode(1), decode(1), decode(1), decode(1)],
    ];
    assert_eq!(*calls.lock().unwrap(), expect.concat());
}

/// The GPU computes the model while the host reads the tokens before and finds out what may follow them.
#[test]
fn a_step_with_structures_is_computed_before_the_tokens_before_it_are_read() {
    let (mut engine, calls) = Setup { has_row_rules: true, ..roomy_setup() }.engine(&[]);
    let requests = [0, 1].map(|idx| with_own_rules(request(idx, 4, 1, 4)));
    let has_structure =
        |request: &Request| request.own.as_ref().is_some_and(|own| own.row.structure.is_some());
    assert!(requests.iter().any(has_structure));
    run(&mut engine, &requests);
    let model = Call::Decode(DecodeStep { num_rows: 2, num_used: 2, has_drafts: false });
    let expect = [
        &[Call::Prefill, Call::Gather, Call::Upload, model.clone()][..],
        // The first tokens, then those of each step.
        &[Call::Read, Call::DrawMasked, model.clone()],
        &[Call::Read, Call::DrawMasked, model],
        &[Call::Read, Call::DrawMasked, Call::Read],
    ];
    assert_eq!(*calls.lock().unwrap(), expect.concat());
}

#[test]
fn rows_that_grow_are_uploaded_together_and_rarely() {
    let setup = roomy_setup();
    let (executor, calls) = setup.executor();
    let endless = StopConditions::resolve(&[], &[], |_| None).unwrap();
    let mut engine =
        Engine::with_executor(Box::new(executor), endless, Arc::new(Letters), setup.limits).unwrap();
    // Their blocks are full at different steps.
    let requests: Vec<Request> = (0..16).map(|idx| request(idx, 1 + idx as usize % 8, 1, 30)).collect();
    let (_, stats) = run(&mut engine, &requests);
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    let count = |wanted: &Call| calls.iter().filter(|call| *call == wanted).count();
    assert_eq!((stats.num_decode_steps, count(&Call::Gather)), (29, 1));
    // Two blocks of four tokens at a time.
    let num_grown = count(&Call::Upload) - 1;
    assert!(
        (2..=29_usize.div_ceil(8)).contains(&num_grown),
        "{num_grown} of {} steps",
        stats.num_decode_steps
    );
}

#[test]
fn first_tokens_are_dropped_when_their_responses_have_started_or_ended() {
    let (mut executor, _) = roomy_setup().executor();
    let id = |response_idx| SeqId { group_idx: 0, response_idx };
    let prompt =
        NewPrompt { group_idx: 0, sample_idx: 3, tokens: vec![1, 2, 3], own: None, block_table: vec![0] };
    let row = RowSpan { id: RowId::Prompt(0), context_len: 0, query_len: 3, draws: 3 };
    let tables = TableDelta { prompts: vec![prompt], ..TableDelta::default() };
    executor.start(StepPlan { tables, rows: vec![row], ..StepPlan::default() }).unwrap();
    executor.collect().unwrap();
    assert_eq!(executor.kept.num_kept(), 1);

    let decode = |response_idx| RowSpan {
        id: RowId::Response(id(response_idx)),
        context_len: 3,
        query_len: 1,
        draws: 1,
    };
    let started =
        vec![NewSeq { id: id(0), block_table: vec![0, 2] }, NewSeq { id: id(1), block_table: vec![1, 3] }];
    let tables = TableDelta { started, ..TableDelta::default() };
    let rows = vec![decode(0), decode(1)];
    let moves = vec![BlockMove::Copy { from: 0, to: 1 }];
    executor.start(StepPlan { tables, rows, moves, ..StepPlan::default() }).unwrap();
    executor.collect().unwrap();
    assert_eq!(executor.kept.num_kept(), 1, "the third has not started");
    let tables = TableDelta { ended: vec![id(2), id(0)], ..TableDelta::default() };
    let rows = vec![RowSpan { context_len: 4, ..decode(1) }];
    executor.start(StepPlan { tables, rows, ..StepPlan::default() }).unwrap();
    assert_eq!(executor.kept.num_kept(), 0);
    assert_eq!(executor.seqs.keys().collect::<Vec<_>>(), [&id(1)]);
    executor.reset().unwrap();
    assert!(executor.seqs.is_empty() && executor.in_flight.is_empty());
}

#[test]
fn prompts_come_in_parts() {
    let [long, short] = [(1, 10, &[0, 1, 2][..]), (2, 3, &[3])].map(|(group_idx, len, table)| {
        let Request { sample_idx, prompt: tokens, .. } = request(group_idx, len, 1, 1);
        NewPrompt { group_idx, sample_idx, tokens, own: None, block_table: table.to_vec() }
    });
    let part = |group_idx, context_len, query_len, draws| RowSpan {
        id: RowId::Prompt(group_idx),
        context_len,
        query_len,
        draws,
    };
    let (mut executor, _) = roomy_setup().executor();
    let mut step = |prompts: Vec<NewPrompt>, rows: Vec<RowSpan>| {
        let tables = TableDelta { prompts, ..TableDelta::default() };
        executor.start(StepPlan { tables, rows, ..StepPlan::default() }).unwrap();
        let of_rows = executor.collect().unwrap();
        of_rows.rows().map(<[SampledToken]>::to_vec).collect::<Vec<_>>()
    };
    let whole = step(vec![long.clone(), short.clone()], vec![part(1, 0, 10, 2), part(2, 0, 3, 1)]);
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    // The second prompt comes whole behind a part of the first.
    assert_eq!(step(vec![long.clone()], vec![part(1, 0, 4, 0)]), [vec![]]);
    assert_eq!(step(vec![short], vec![part(1, 4, 3, 0), part(2, 0, 3, 1)]), [vec![], whole[1].clone()]);
    assert_eq!(step(vec![], vec![part(1, 7, 3, 2)]), [whole[0].clone()]);
    // Its first tokens are cached already: only the others come.
    assert_eq!(step(vec![long], vec![part(1, 8, 2, 2)]), [whole[0].clone()]);
    assert!(executor.prompts.is_empty());
    assert_eq!(executor.kept.num_kept(), 4, "a step that draws nothing leaves none");
}

#[test]
fn prompts_that_begin_alike_give_the_tokens_of_the_host() {
    let prefixed = |idx| {
        let own = request(idx, 3, 2, 9);
        Request { prompt: (0..20).chain(own.prompt.iter().copied()).collect(), ..own }
    };
    let requests: Vec<Request> = (0..12).map(prefixed).collect();
    let (expect, _) = run(&mut engine_of(host(params()), &["ab"], roomy()), &requests);
    let setup = Setup { limits: limits(6, 30, 80), ..roomy_setup() };
    let (actual, stats) = run(&mut setup.engine(&["ab"]).0, &requests);
    assert_eq!(actual, expect);
    assert_eq!(stats.cached_prompt_tokens, 11 * 20);
}

#[test]
fn what_a_gpu_does_not_compute_is_refused() {
    let prompt = |group_idx| NewPrompt {
        own: None,
        group_idx,
        sample_idx: 0,
        tokens: vec![1, 2, 3, 4],
        block_table: vec![group_idx as BlockId],
    };
    let whole = |group_idx| RowSpan { id: RowId::Prompt(group_idx), context_len: 0, query_len: 4, draws: 1 };
    let id = SeqId { group_idx: 0, response_idx: 0 };
    let decode = RowSpan { id: RowId::Response(id), context_len: 4, query_len: 1, draws: 1 };
    let refused = |prompts: Vec<NewPrompt>, rows: Vec<RowSpan>| {
        let (mut executor, calls) = roomy_setup().executor();
        let tables = TableDelta { prompts, ..TableDelta::default() };
        let error = executor.start(StepPlan { tables, rows, ..StepPlan::default() }).unwrap_err();
        assert!(calls.lock().unwrap().is_empty(), "nothing was enqueued");
        error.to_string()
    };
    insta::assert_snapshot!(refused(vec![], vec![]), @"the GPU executor does not compute a step without rows");
    insta::assert_snapshot!(refused(vec![prompt(0)], vec![RowSpan { query_len: 3, ..whole(0) }]), @"the GPU executor does not compute a token drawn inside a prompt");
    insta::assert_snapshot!(refused(vec![prompt(0)], vec![RowSpan { context_len: 2, ..whole(0) }]), @"the GPU executor does not compute more tokens than a prompt has");
    insta::assert_snapshot!(refused(vec![prompt(0), prompt(1)], vec![whole(0)]), @"the GPU executor does not compute a prompt that is new before its step");
    insta::assert_snapshot!(refused(vec![prompt(0)], vec![whole(0), whole(1)]), @"no sequence for response 0 of request 1");
    insta::assert_snapshot!(refused(vec![prompt(0)], vec![whole(0), decode]), @"the GPU executor does not compute prompts and responses in one step");
    insta::assert_snapshot!(refused(vec![prompt(0)], vec![decode]), @"the GPU executor does not compute a prompt that is new before its step");
    insta::assert_snapshot!(refused(vec![], vec![RowSpan { query_len: 3, draws: 3, ..decode }]), @"the GPU executor does not compute a response with more or fewer draws or drafts than tokens");
    insta::assert_snapshot!(refused(vec![], vec![decode]), @"no sequence for response 0 of request 0");
}
