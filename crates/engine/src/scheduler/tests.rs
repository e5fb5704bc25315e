use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

const BLOCK_SIZE_TOKENS: usize = 4;

fn limits(max_num_seqs: usize, max_prefill_tokens: usize, num_blocks: usize) -> EngineLimits {
    EngineLimits { max_num_seqs, max_prefill_tokens, num_blocks, block_size_tokens: BLOCK_SIZE_TOKENS }
}

fn group(group_idx: u64, prompt_len_tokens: usize, num_seqs: u32, max_new_tokens: u32) -> SeqGroup {
    SeqGroup { group_idx, sample_idx: group_idx, prompt_len_tokens, num_seqs, max_new_tokens }
}

/// A group and how many tokens each of its responses really makes.
#[derive(Clone, Debug)]
struct Case {
    group: SeqGroup,
    lens: Vec<u32>,
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    let case = (1_usize..20, 1_u32..14).prop_flat_map(|(prompt_len, max_new)| {
        prop::collection::vec(1..=max_new, 1..6)
            .prop_map(move |lens| Case { group: group(0, prompt_len, lens.len() as u32, max_new), lens })
    });
    prop::collection::vec(case, 0..14).prop_map(|mut cases| {
        for (idx, case) in cases.iter_mut().enumerate() {
            case.group.group_idx = idx as u64;
        }
        cases
    })
}

/// What one slot of the cache holds: the group, the response (none for the prompt) and the position.
type Slot = (u64, Option<u32>, usize);

/// Plays the device: writes and reads slots through block tables and checks every rule on the way.
struct Sim {
    scheduler: Scheduler,
    lens: HashMap<u64, (usize, Vec<u32>)>,
    cache: HashMap<(BlockId, usize), Slot>,
    num_generated: HashMap<SeqId, u32>,
    prefill_order: Vec<u64>,
    start_order: Vec<SeqId>,
    finished: HashSet<SeqId>,
    /// Who ended in each step whose end the scheduler has not been told.
    untold: VecDeque<Vec<SeqId>>,
    run_ahead: usize,
}

impl Sim {
    fn run(cases: &[Case], limits: EngineLimits, run_ahead: usize) -> Self {
        let mut sim = Self {
            scheduler: Scheduler::new(limits).unwrap(),
            lens: cases
                .iter()
                .map(|case| (case.group.group_idx, (case.group.prompt_len_tokens, case.lens.clone())))
                .collect(),
            cache: HashMap::new(),
            num_generated: HashMap::new(),
            prefill_order: Vec::new(),
            start_order: Vec::new(),
            finished: HashSet::new(),
            untold: VecDeque::new(),
            run_ahead,
        };
        let mut input = cases.iter();
        let mut input_ended = false;
        loop {
            while sim.scheduler.has_room() {
                match input.next() {
                    Some(case) => sim.scheduler.add(case.group).unwrap(),
                    None => {
                        input_ended = true;
                        sim.scheduler.end_input();
                    }
                }
            }
            let num_untold = match sim.scheduler.next_step() {
                Step::Prefill { copies, groups } => {
                    sim.copy(&copies);
                    sim.prefill(&groups);
                    sim.run_ahead
                }
                Step::Decode { copies, seqs } => {
                    sim.copy(&copies);
                    sim.decode(&seqs);
                    sim.run_ahead
                }
                Step::Wait => {
                    assert!(!sim.untold.is_empty(), "waits for nothing");
                    0
                }
                Step::Done => {
                    assert!(input_ended, "idle although there is input");
                    return sim;
                }
            };
            while sim.untold.len() > num_untold {
                let ended = sim.untold.pop_front().unwrap();
                sim.scheduler.end(&ended);
            }
        }
    }

    fn write(&mut self, table: &[BlockId], pos: usize, slot: Slot) {
        self.cache.insert((table[pos / BLOCK_SIZE_TOKENS], pos % BLOCK_SIZE_TOKENS), slot);
    }

    fn end_or_go_on(&mut self, id: SeqId, ended: &mut Vec<SeqId>) {
        let num_generated = self.num_generated.entry(id).or_insert(0);
        *num_generated += 1;
        if *num_generated == self.lens[&id.group_idx].1[id.response_idx as usize] {
            assert!(self.finished.insert(id), "{id:?} finished twice");
            ended.push(id);
        }
    }

    fn prefill(&mut self, groups: &[PrefillGroup]) {
        let num_tokens: usize = groups.iter().map(|group| self.lens[&group.group_idx].0).sum();
        assert!(!groups.is_empty());
        assert!(groups.len() == 1 || num_tokens <= self.scheduler.limits.max_prefill_tokens);
        let mut ended = Vec::new();
        for group in groups {
            self.prefill_order.push(group.group_idx);
            let prompt_len = self.lens[&group.group_idx].0;
            assert_eq!(group.block_table.len(), prompt_len.div_ceil(BLOCK_SIZE_TOKENS));
            for pos in 0..prompt_len {
                self.write(&group.block_table, pos, (group.group_idx, None, pos));
            }
            for response_idx in 0..group.num_seqs {
                self.end_or_go_on(SeqId { group_idx: group.group_idx, response_idx }, &mut ended);
            }
        }
        self.untold.push_back(ended);
    }

    fn copy(&mut self, copies: &[BlockCopy]) {
        for &(src, dst) in copies {
            for offset in 0..BLOCK_SIZE_TOKENS {
                if let Some(&slot) = self.cache.get(&(src, offset)) {
                    self.cache.insert((dst, offset), slot);
                }
            }
        }
    }

    fn decode(&mut self, seqs: &[DecodeSeq]) {
        assert!(seqs.len() <= self.scheduler.limits.max_num_seqs);
        let mut written = HashSet::new();
        for seq in seqs {
            if self.finished.contains(&seq.id) {
                // Started before its end was told: it writes, and nobody reads it.
                assert!(self.run_ahead > 0, "{:?} goes on after its end", seq.id);
                self.write(&seq.block_table, seq.context_len as usize, (u64::MAX, None, 0));
                continue;
            }
            if self.num_generated[&seq.id] == 1 {
                self.start_order.push(seq.id);
            }
            let pos = seq.context_len as usize;
            assert!(written.insert(seq.block_table[pos / BLOCK_SIZE_TOKENS]), "a shared block is written");
            self.write(&seq.block_table, pos, (seq.id.group_idx, Some(seq.id.response_idx), pos));
        }
        let mut ended = Vec::new();
        for seq in seqs.iter().filter(|seq| !self.finished.contains(&seq.id)).cloned().collect::<Vec<_>>() {
            let prompt_len = self.lens[&seq.id.group_idx].0;
            assert_eq!(seq.context_len as usize, prompt_len + self.num_generated[&seq.id] as usize - 1);
            for pos in 0..=seq.context_len as usize {
                let response = (pos >= prompt_len).then_some(seq.id.response_idx);
                let slot = self.cache[&(seq.block_table[pos / BLOCK_SIZE_TOKENS], pos % BLOCK_SIZE_TOKENS)];
                assert_eq!(slot, (seq.id.group_idx, response, pos), "read by {:?}", seq.id);
            }
            self.end_or_go_on(seq.id, &mut ended);
        }
        self.untold.push_back(ended);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_response_finishes_in_order_and_no_block_leaks(
        cases in cases(),
        max_num_seqs in 1_usize..20,
        max_prefill_tokens in 1_usize..60,
        // 9 blocks hold the largest single response with its prompt's partial block.
        num_blocks in 9_usize..60,
        run_ahead in 0_usize..4,
    ) {
        let sim = Sim::run(&cases, limits(max_num_seqs, max_prefill_tokens, num_blocks), run_ahead);
        prop_assert_eq!(sim.finished.len(), cases.iter().map(|case| case.lens.len()).sum::<usize>());
        prop_assert_eq!(sim.scheduler.allocator.num_free(), num_blocks);
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
    while let Step::Prefill { groups, .. } = scheduler.next_step() {
        packs.push(groups.iter().map(|group| group.group_idx).collect::<Vec<_>>());
        scheduler.end(&[]);
    }
    assert_eq!(packs, [vec![0, 1], vec![2], vec![3], vec![4]]);
}

#[test]
fn a_prefill_waits_until_it_is_worth_the_pause() {
    let mut scheduler = Scheduler::new(limits(32, 1000, 1000)).unwrap();
    for idx in 0..32 {
        scheduler.add(group(idx, 4, 1, 9)).unwrap();
    }
    assert!(!scheduler.has_room());
    assert!(matches!(scheduler.next_step(), Step::Prefill { groups, .. } if groups.len() == 32));
    scheduler.end(&[]);
    let mut end_one = |group_idx| {
        assert!(matches!(scheduler.next_step(), Step::Decode { .. }));
        scheduler.end(&[SeqId { group_idx, response_idx: 0 }]);
        assert!(scheduler.has_room());
        scheduler.add(group(100 + group_idx, 4, 1, 9)).unwrap();
    };
    // An eighth of those that run; 29 run when three have ended.
    end_one(0);
    end_one(1);
    end_one(2);
    assert!(matches!(scheduler.next_step(), Step::Prefill { groups, .. } if groups.len() == 3));
}

#[test]
fn a_prefill_that_leaves_seats_is_followed_by_another() {
    let mut scheduler = Scheduler::new(limits(33, 4 * 32, 1000)).unwrap();
    for idx in 0..33 {
        scheduler.add(group(idx, 4, 1, 9)).unwrap();
    }
    // 32 prompts fill the first one; the last does not wait until one of the others has ended.
    assert!(matches!(scheduler.next_step(), Step::Prefill { groups, .. } if groups.len() == 32));
    scheduler.end(&[]);
    assert!(!scheduler.has_room());
    assert!(matches!(scheduler.next_step(), Step::Prefill { groups, .. } if groups.len() == 1));
    scheduler.end(&[]);
    assert!(matches!(scheduler.next_step(), Step::Decode { seqs, .. } if seqs.len() == 33));
}

#[test]
fn a_request_for_more_responses_than_seats_runs_in_parts() {
    let case = Case { group: group(0, 6, 5, 3), lens: vec![3; 5] };
    let sim = Sim::run(&[case], limits(2, 100, 7), 0);
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
