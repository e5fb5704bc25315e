use std::collections::{HashMap, HashSet, VecDeque};

use model_core::{BlockId, BlockMove, HostBlockId};
use model_spec::KvTables;
use proptest::prelude::*;

use super::*;
use crate::plan::{GrownSeq, NewPrompt, NewSeq, RowId};
use crate::testing::{BLOCK_SIZE_TOKENS, limits, tables};

fn group(sample_idx: u64, prompt_len_tokens: usize, num_seqs: u32, max_new_tokens: u32) -> SeqGroup {
    let foresight = Foresight::default();
    SeqGroup {
        sample_idx,
        prompt: vec![0; prompt_len_tokens],
        num_seqs,
        max_new_tokens,
        own: None,
        foresight,
    }
}

/// A group and how many tokens each of its responses really makes.
#[derive(Clone, Debug)]
struct Case {
    group: SeqGroup,
    lens: Vec<u32>,
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let case = (1_usize..20, 1_u32..40).prop_flat_map(|(prompt_len, max_new)| {
        prop::collection::vec(1..=max_new, 1..6)
            .prop_map(move |lens| Case { group: group(0, prompt_len, lens.len() as u32, max_new), lens })
    });
    prop::collection::vec(case, 0..14)
}

/// What one slot of the cache holds: the group, the response (none for the prompt) and the position.
type Slot = (u64, Option<u32>, usize);

/// Plays the device: writes and reads slots through block tables and checks every rule on the way.
struct Sim {
    scheduler: Scheduler,
    lens: HashMap<u64, (usize, Vec<u32>)>,
    tables: HashMap<SeqId, Vec<BlockId>>,
    /// With the table.
    cache: HashMap<(BlockId, usize), (usize, Slot)>,
    host: HashMap<HostBlockId, [Option<(usize, Slot)>; BLOCK_SIZE_TOKENS]>,
    num_generated: HashMap<SeqId, u32>,
    prefill_order: Vec<u64>,
    start_order: Vec<SeqId>,
    finished: HashSet<SeqId>,
    /// The rows of each step whose tokens have not been reported to the scheduler, and who ended with it.
    in_flight: VecDeque<(Vec<RowSpan>, Vec<SeqId>)>,
    run_ahead: usize,
    /// The end of some responses cancels those behind them.
    cancels: bool,
}

impl Sim {
    fn run(cases: &[Case], limits: EngineLimits, run_ahead: usize, cancels: bool) -> Self {
        let mut sim = Self {
            scheduler: Scheduler::new(limits).unwrap(),
            lens: (0..)
                .zip(cases)
                .map(|(idx, case)| (idx, (case.group.prompt.len(), case.lens.clone())))
                .collect(),
            tables: HashMap::new(),
            cache: HashMap::new(),
            host: HashMap::new(),
            num_generated: HashMap::new(),
            prefill_order: Vec::new(),
            start_order: Vec::new(),
            finished: HashSet::new(),
            in_flight: VecDeque::new(),
            run_ahead,
            cancels,
        };
        let mut input = cases.iter();
        let mut input_ended = false;
        loop {
            while sim.has_room() {
                match input.next() {
                    Some(case) => {
                        sim.scheduler.add(case.group.clone()).unwrap();
                    }
                    None => {
                        input_ended = true;
                        sim.scheduler.end_input();
                    }
                }
            }
            let max_in_flight = match sim.scheduler.next_step() {
                Step::Run(plan) => {
                    sim.run_step(plan);
                    sim.run_ahead
                }
                Step::Wait => {
                    assert!(!sim.in_flight.is_empty(), "waits for nothing");
                    0
                }
                Step::Done => {
                    assert!(input_ended, "idle although there is input");
                    return sim;
                }
            };
            while sim.in_flight.len() > max_in_flight {
                let (rows, ended) = sim.in_flight.pop_front().unwrap();
                for row in rows {
                    if let RowId::Response(id) = row.id {
                        sim.scheduler.accept(id, row.query_len, 1);
                    }
                }
                sim.scheduler.end(&ended);
                for id in ended {
                    if sim.cancels && (id.group_idx + 1) % 3 > 0 {
                        sim.cancel_behind(id);
                    }
                }
            }
        }
    }

    /// Cancels the responses behind one that have not ended.
    fn cancel_behind(&mut self, id: SeqId) {
        let num_seqs = self.lens[&id.group_idx].1.len() as u32;
        let behind = (id.response_idx + 1..num_seqs).map(|response_idx| SeqId { response_idx, ..id });
        let cancelled: Vec<SeqId> = behind.filter(|&id| self.finished.insert(id)).collect();
        self.scheduler.cancel(&cancelled);
    }

    /// Whether there is room, by what is known from earlier prompts as by a look at all of them.
    fn has_room(&mut self) -> bool {
        let has_room = self.scheduler.has_room();
        let known = self.scheduler.admissible();
        assert_eq!(known, self.scheduler.admissible_anew());
        has_room
    }

    /// The slots of a token in all tables.
    fn places(&self, blocks: &[BlockId], pos: usize) -> Vec<(BlockId, usize)> {
        let num_tables = self.scheduler.limits.tables.len();
        let column = &blocks[pos / BLOCK_SIZE_TOKENS * num_tables..][..num_tables];
        column.iter().map(|&block| (block, pos % BLOCK_SIZE_TOKENS)).collect()
    }

    fn write(&mut self, blocks: &[BlockId], pos: usize, slot: Slot) {
        for (table, place) in self.places(blocks, pos).into_iter().enumerate() {
            self.cache.insert(place, (table, slot));
        }
    }

    /// What the token at `last` sees of all tables is what was written there.
    fn check_read(&self, blocks: &[BlockId], last: usize, slot_of: impl Fn(usize) -> Slot) {
        let tables = self.scheduler.limits.tables;
        for pos in 0..=last {
            let is_seen = last - pos < tables.window_tokens;
            let num_read = if is_seen { tables.len() } else { tables.num_full };
            for (table, place) in self.places(blocks, pos).into_iter().enumerate().take(num_read) {
                assert_eq!(self.cache[&place], (table, slot_of(pos)), "position {pos} read by {last}");
            }
        }
    }

    fn end_or_go_on(&mut self, id: SeqId, ended: &mut Vec<SeqId>) {
        let num_generated = self.num_generated.entry(id).or_insert(0);
        *num_generated += 1;
        if *num_generated == self.lens[&id.group_idx].1[id.response_idx as usize] {
            assert!(self.finished.insert(id), "{id:?} finished twice");
            ended.push(id);
        }
    }

    fn run_step(&mut self, plan: StepPlan) {
        let StepPlan { tables, moves, rows, .. } = plan;
        for id in &tables.preempted {
            assert!(self.tables.remove(id).is_some(), "{id:?} has not started");
        }
        for NewSeq { id, block_table } in tables.started {
            assert!(self.tables.insert(id, block_table).is_none(), "{id:?} starts twice");
        }
        for GrownSeq { id, new_blocks } in tables.grown {
            assert!(!new_blocks.is_empty());
            self.tables.get_mut(&id).unwrap().extend(new_blocks);
        }
        for id in &tables.ended {
            self.tables.remove(id);
        }
        self.move_blocks(&moves);
        let ended =
            if tables.prompts.is_empty() { self.decode(&rows) } else { self.prefill(&tables.prompts, &rows) };
        self.in_flight.push_back((rows, ended));
    }

    fn prefill(&mut self, prompts: &[NewPrompt], rows: &[RowSpan]) -> Vec<SeqId> {
        assert_eq!(prompts.len(), rows.len());
        let num_tokens: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        assert!(prompts.len() == 1 || num_tokens <= self.scheduler.limits.max_prefill_tokens);
        let mut ended = Vec::new();
        for (&NewPrompt { group_idx, ref tokens, ref block_table, .. }, row) in prompts.iter().zip(rows) {
            self.prefill_order.push(group_idx);
            let query_len = tokens.len() as u32;
            let draws = self.lens[&group_idx].1.len() as u32;
            assert_eq!(*row, RowSpan { id: RowId::Prompt(group_idx), context_len: 0, query_len, draws });
            let num_columns = tokens.len().div_ceil(BLOCK_SIZE_TOKENS);
            assert_eq!(block_table.len(), num_columns * self.scheduler.limits.tables.len());
            for pos in 0..tokens.len() {
                self.write(block_table, pos, (group_idx, None, pos));
            }
            for response_idx in 0..draws {
                self.end_or_go_on(SeqId { group_idx, response_idx }, &mut ended);
            }
        }
        ended
    }

    fn move_blocks(&mut self, moves: &[BlockMove]) {
        for &block_move in moves {
            match block_move {
                BlockMove::Copy { from, to } => {
                    let block = self.take_block(from);
                    self.set_block(from, block);
                    self.set_block(to, block);
                }
                BlockMove::SwapOut { from, to } => {
                    assert!((to as usize) < self.scheduler.limits.num_host_blocks);
                    let block = self.take_block(from);
                    self.host.insert(to, block);
                }
                BlockMove::SwapIn { from, to } => {
                    let block = self.host.remove(&from).unwrap();
                    self.set_block(to, block);
                }
            }
        }
    }

    fn take_block(&mut self, block: BlockId) -> [Option<(usize, Slot)>; BLOCK_SIZE_TOKENS] {
        std::array::from_fn(|offset| self.cache.remove(&(block, offset)))
    }

    fn set_block(&mut self, block: BlockId, slots: [Option<(usize, Slot)>; BLOCK_SIZE_TOKENS]) {
        assert!((block as usize) < self.scheduler.limits.num_blocks);
        let _ = self.take_block(block);
        let slots = (0..).zip(slots).filter_map(|(offset, slot)| Some(((block, offset), slot?)));
        self.cache.extend(slots);
    }

    fn decode(&mut self, rows: &[RowSpan]) -> Vec<SeqId> {
        assert!(rows.len() <= self.scheduler.limits.max_num_seqs);
        let seqs: Vec<(SeqId, usize, Vec<BlockId>)> = rows
            .iter()
            .map(|row| match *row {
                RowSpan { id: RowId::Response(id), context_len, query_len: 1, draws: 1 } => {
                    (id, context_len as usize, self.tables[&id].clone())
                }
                _ => panic!("{row:?} among the rows of a decode step"),
            })
            .collect();
        let mut written = HashSet::new();
        for &(id, pos, ref table) in &seqs {
            if self.finished.contains(&id) {
                // Started before its end was known: it writes, and nobody reads it.
                assert!(self.run_ahead > 0, "{id:?} goes on after its end");
                self.write(table, pos, (u64::MAX, None, 0));
                continue;
            }
            if self.num_generated[&id] == 1 {
                self.start_order.push(id);
            }
            for (block, _) in self.places(table, pos) {
                assert!(written.insert(block), "a shared block is written");
            }
            self.write(table, pos, (id.group_idx, Some(id.response_idx), pos));
        }
        let mut ended = Vec::new();
        for (id, context_len, table) in seqs {
            if self.finished.contains(&id) {
                continue;
            }
            let prompt_len = self.lens[&id.group_idx].0;
            assert_eq!(context_len, prompt_len + self.num_generated[&id] as usize - 1);
            self.check_read(&table, context_len, |pos| {
                (id.group_idx, (pos >= prompt_len).then_some(id.response_idx), pos)
            });
            self.end_or_go_on(id, &mut ended);
        }
        ended
    }
}

/// The rows of the next step.
fn next_rows(scheduler: &mut Scheduler) -> Option<Vec<RowSpan>> {
    if let Step::Run(plan) = scheduler.next_step() { Some(plan.rows) } else { None }
}

/// How many rows of prompts the next step has, and how many of responses.
fn next_counts(scheduler: &mut Scheduler) -> (usize, usize) {
    let rows = next_rows(scheduler).unwrap_or_default();
    let num_prompts = rows.iter().filter(|row| matches!(row.id, RowId::Prompt(_))).count();
    (num_prompts, rows.len() - num_prompts)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_response_finishes_in_order_and_no_block_leaks(
        cases in cases(),
        max_num_seqs in 1_usize..20,
        max_prefill_tokens in 1_usize..60,
        // 16 blocks hold the largest single response with its prompt's partial block.
        num_blocks in 16_usize..90,
        num_host_blocks in prop_oneof![Just(0_usize), 1_usize..5, 5_usize..90],
        run_ahead in 0_usize..5,
        cancels in any::<bool>(),
        tables in prop_oneof![
            3 => tables(),
            1 => (1_usize..3, 1_usize..20).prop_map(|(num_windowed, window_tokens)| KvTables {
                num_full: 0,
                num_windowed,
                window_tokens,
            }),
        ],
    ) {
        let num_blocks = num_blocks * tables.len();
        let limits = EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let sim = Sim::run(&cases, limits, run_ahead, cancels);
        prop_assert_eq!(sim.finished.len(), cases.iter().map(|case| case.lens.len()).sum::<usize>());
        let Scheduler { pool, num_promised_blocks, siblings, .. } = &sim.scheduler;
        prop_assert_eq!((pool.num_free(), pool.num_held(), *num_promised_blocks), (num_blocks, 0, 0));
        prop_assert_eq!(siblings.len(), 0);
        prop_assert!(sim.prefill_order.is_sorted(), "prompts are computed first in, first out");
        prop_assert!(sim.start_order.is_sorted(), "responses start first in, first out");
    }
}

#[test]
fn prompts_are_packed_up_to_the_limit_and_a_longer_one_goes_alone() {
    let mut scheduler = Scheduler::new(limits(8, 10, 100)).unwrap();
    for (idx, len) in [4, 5, 2, 30, 1].into_iter().enumerate() {
        scheduler.add(group(idx as u64, len, 1, 4)).unwrap();
    }
    scheduler.end_input();
    let mut packs = Vec::new();
    while packs.len() < 4 {
        packs.push(next_rows(&mut scheduler).unwrap().iter().map(|row| row.id).collect::<Vec<_>>());
        scheduler.end(&[]);
    }
    let prompts = [vec![0, 1], vec![2], vec![3], vec![4]];
    assert_eq!(packs, prompts.map(|idxs| idxs.into_iter().map(RowId::Prompt).collect::<Vec<_>>()));
}

#[test]
fn a_prefill_waits_until_it_is_worth_the_pause() {
    let mut scheduler = Scheduler::new(limits(32, 1000, 1000)).unwrap();
    for idx in 0..32 {
        scheduler.add(group(idx, 4, 1, 9)).unwrap();
    }
    assert!(!scheduler.has_room());
    assert_eq!(next_counts(&mut scheduler), (32, 0));
    scheduler.end(&[]);
    let mut end_one = |group_idx| {
        assert_eq!(next_counts(&mut scheduler).0, 0);
        scheduler.end(&[SeqId { group_idx, response_idx: 0 }]);
        assert!(scheduler.has_room());
        scheduler.add(group(100 + group_idx, 4, 1, 9)).unwrap();
    };
    // An eighth of those that run; 29 run when three have ended.
    end_one(0);
    end_one(1);
    end_one(2);
    assert_eq!(next_counts(&mut scheduler), (3, 0));
}

#[test]
fn a_prefill_that_leaves_seats_is_followed_by_another() {
    let mut scheduler = Scheduler::new(limits(33, 4 * 32, 1000)).unwrap();
    for idx in 0..33 {
        scheduler.add(group(idx, 4, 1, 9)).unwrap();
    }
    // 32 prompts fill the first one; the last does not wait until one of the others has ended.
    assert_eq!(next_counts(&mut scheduler), (32, 0));
    scheduler.end(&[]);
    assert!(!scheduler.has_room());
    assert_eq!(next_counts(&mut scheduler), (1, 0));
    scheduler.end(&[]);
    assert_eq!(next_counts(&mut scheduler), (0, 33));
}

#[test]
fn a_request_for_more_responses_than_seats_runs_in_parts() {
    let case = Case { group: group(0, 6, 5, 3), lens: vec![3; 5] };
    let sim = Sim::run(&[case], limits(2, 100, 7), 0, false);
    assert_eq!(sim.finished.len(), 5);
    assert_eq!(sim.prefill_order, [0], "the prompt is computed once");
}

#[test]
fn a_request_that_never_fits_is_refused_with_the_numbers() {
    let mut scheduler = Scheduler::new(limits(8, 100, 5)).unwrap();
    let check = |error: EngineError, expect: &str| assert_eq!(error.to_string(), expect);
    check(
        scheduler.add(group(7, 10, 2, 13)).unwrap_err(),
        "sample 7 needs 7 KV blocks of 4 tokens (10 prompt and up to 13 new tokens), the cache has 5",
    );
    check(scheduler.add(group(8, 0, 1, 1)).unwrap_err(), "sample 8 has an empty prompt");
    check(Scheduler::new(limits(0, 1, 1)).unwrap_err(), "`max_num_seqs` must be at least 1, got 0");
    // Alone, the response takes the partial block over.
    scheduler.add(group(9, 10, 1, 10)).unwrap();
}
