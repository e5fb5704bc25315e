use std::collections::HashMap;

use super::super::{SeqGroup, Step};
use super::*;
use crate::{EngineLimits, Foresight, plan::SeqId, testing::roomy};

fn scheduler(max_prefill_tokens: usize, num_blocks: usize) -> Scheduler {
    let limits = EngineLimits { max_prefill_tokens, num_blocks, ..roomy() };
    let parts = PromptParts { cut_tokens: Some(2), shares_prefixes: true };
    Scheduler::new(limits).unwrap().with_parts(parts)
}

fn group(prompt: Vec<u32>, max_new_tokens: u32) -> SeqGroup {
    SeqGroup {
        sample_idx: 0,
        prompt,
        num_seqs: 1,
        max_new_tokens,
        own: None,
        foresight: Foresight::default(),
    }
}

/// The steps until all is done, each response with all its tokens: prompts as `(context_len, query_len, draws)`, and how
/// many responses decode.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Prompts(Vec<(u32, u32, u32)>),
    Decode(usize),
}

fn run(scheduler: &mut Scheduler, max_new_tokens: u32) -> Vec<Seen> {
    scheduler.end_input();
    let mut num_generated: HashMap<SeqId, u32> = HashMap::new();
    let mut seen = Vec::new();
    while let Step::Run(plan) = scheduler.next_step() {
        let mut ended = Vec::new();
        let mut generate = |id: SeqId| {
            let count = num_generated.entry(id).or_default();
            *count += 1;
            ended.extend((*count == max_new_tokens).then_some(id));
        };
        for row in &plan.rows {
            match row.id {
                RowId::Prompt(group_idx) => {
                    (0..row.draws).for_each(|response_idx| generate(SeqId { group_idx, response_idx }));
                }
                RowId::Response(id) => {
                    scheduler.accept(id, row.query_len, 1);
                    generate(id);
                }
            }
        }
        scheduler.end(&ended);
        let is_prompt = |row: &&RowSpan| row.id.prompt().is_some();
        let prompts: Vec<_> = plan.rows.iter().filter(is_prompt).collect();
        seen.push(match prompts.is_empty() {
            true => Seen::Decode(plan.rows.len()),
            false => {
                Seen::Prompts(prompts.iter().map(|row| (row.context_len, row.query_len, row.draws)).collect())
            }
        });
    }
    assert_eq!((scheduler.pool.num_held(), scheduler.num_promised_blocks), (0, 0));
    assert_eq!(scheduler.pool.num_free(), scheduler.limits.num_blocks);
    seen
}

#[test]
fn a_long_prompt_comes_in_parts_between_which_what_runs_goes_on() {
    let mut scheduler = scheduler(7, 100);
    scheduler.add(group(vec![9, 9], 5)).unwrap();
    scheduler.add(group((0..15).collect(), 5)).unwrap();
    let seen = run(&mut scheduler, 5);
    let expect = [
        Seen::Prompts(vec![(0, 2, 1)]),
        Seen::Prompts(vec![(0, 6, 0)]),
        Seen::Decode(1),
        Seen::Prompts(vec![(6, 6, 0)]),
        Seen::Decode(1),
        Seen::Prompts(vec![(12, 3, 1)]),
        Seen::Decode(2),
        Seen::Decode(2),
        Seen::Decode(1),
        Seen::Decode(1),
    ];
    assert_eq!(seen[..3], expect[..3]);
    let parts: Vec<_> = seen.iter().filter(|step| matches!(step, Seen::Prompts(_))).collect();
    assert_eq!(parts, expect.iter().filter(|step| matches!(step, Seen::Prompts(_))).collect::<Vec<_>>());
    let in_a_row = |pair: &[Seen]| pair.iter().all(|step| matches!(step, Seen::Prompts(_)));
    assert!(!seen[1..].windows(2).any(in_a_row), "{seen:?}");
}

#[test]
fn prompts_of_one_step_share_what_the_first_of_them_computes() {
    let mut scheduler = scheduler(30, 100);
    let prompt = |last: u32| -> Vec<u32> { (0..13).chain([last]).collect() };
    for last in [20, 21, 22, 23] {
        scheduler.add(group(prompt(last), 2)).unwrap();
    }
    // Four prompts of 14 tokens, of which 20 are computed and 36 read.
    assert_eq!(
        run(&mut scheduler, 2),
        [Seen::Prompts(vec![(0, 14, 1), (12, 2, 1), (12, 2, 1), (12, 2, 1)]), Seen::Decode(4),]
    );
}

#[test]
fn what_was_computed_is_found_while_there_is_room() {
    let mut scheduler = scheduler(100, 8);
    let prompt: Vec<u32> = (0..16).collect();
    scheduler.add(group(prompt.clone(), 2)).unwrap();
    assert_eq!(run(&mut scheduler, 2)[0], Seen::Prompts(vec![(0, 16, 1)]));
    scheduler.add(group(prompt.clone(), 2)).unwrap();
    // The last token is computed for its logits, and with it its whole piece.
    assert_eq!(run(&mut scheduler, 2)[0], Seen::Prompts(vec![(12, 4, 1)]));
    scheduler.add(group((50..74).collect(), 2)).unwrap();
    assert_eq!(run(&mut scheduler, 2)[0], Seen::Prompts(vec![(0, 24, 1)]));
    scheduler.add(group(prompt, 2)).unwrap();
    let again = run(&mut scheduler, 2);
    assert!(matches!(again[0], Seen::Prompts(ref parts) if parts[0].0 < 12), "{again:?}");
}

#[test]
fn nothing_is_shared_or_cut_unless_it_may_be() {
    for parts in [
        PromptParts { cut_tokens: None, shares_prefixes: true },
        PromptParts { cut_tokens: Some(2), shares_prefixes: false },
    ] {
        let limits = EngineLimits { max_prefill_tokens: 12, ..roomy() };
        let mut scheduler = Scheduler::new(limits).unwrap().with_parts(parts);
        for _ in 0..2 {
            scheduler.add(group((0..14).collect(), 1)).unwrap();
        }
        let whole = || Seen::Prompts(vec![(0, 14, 1)]);
        let cut = || [Seen::Prompts(vec![(0, 12, 0)]), Seen::Prompts(vec![(12, 2, 1)])];
        let expect: Vec<Seen> = match parts.cut_tokens {
            None => vec![whole(), whole()],
            Some(_) => cut().into_iter().chain(cut()).collect(),
        };
        assert_eq!(run(&mut scheduler, 1), expect);
    }
}
