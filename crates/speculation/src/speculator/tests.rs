//! Whole runs on machines that are made up: no workload is slower by more than a fiftieth, and copies are faster.

use proptest::prelude::*;

use super::*;
use machine::{Machine, Outcome, Work};

mod machine;

/// Numbers that repeat nothing where there are many.
fn random(seed: u64, len: usize, num_tokens: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % num_tokens
    };
    (0..len).map(|_| next()).collect()
}

/// A text of which about `percent` in a hundred tokens go on as in `source`.
fn copied(source: &[u32], seed: u64, len: usize, percent: u32) -> Vec<u32> {
    let mut place = 0;
    let numbers = random(seed, 2 * len, 100_000);
    let text = numbers.chunks(2).map(|numbers| {
        place = if numbers[0] % 100 < percent { place + 1 } else { numbers[1] as usize };
        source[place % source.len()]
    });
    text.collect()
}

/// What a response is like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// All of it, so many of a hundred tokens.
    Copied(u32),
    /// Nothing repeats.
    Fresh,
    /// Of few tokens, so that short contexts stand everywhere, and say nothing.
    Babble,
    /// Fresh, and from the middle on copied.
    Later,
}

const LEN: usize = 384;

fn work(kinds: &[Kind]) -> Work {
    let prompts: Vec<Vec<u32>> =
        (0..kinds.len() as u64).map(|row| random(row + 1_000_001, 400, 50_000)).collect();
    let response = |(kind, (prompt, seed)): (&Kind, (&Vec<u32>, u64))| match *kind {
        Kind::Copied(percent) => copied(prompt, seed, LEN, percent),
        Kind::Fresh => random(seed, LEN, 50_000),
        Kind::Babble => random(seed, LEN, 20),
        Kind::Later => [random(seed, LEN / 2, 50_000), copied(prompt, seed, LEN / 2, 90)].concat(),
    };
    let responses = kinds.iter().zip(prompts.iter().zip(100..)).map(response).collect();
    Work { prompts, responses }
}

/// Of a device that reads weights for a millisecond, and then computes each token past `free` for `per_token`.
fn knee(free: usize, per_token: f64) -> impl Fn(usize) -> f64 {
    move |num_tokens| 1e-3 + num_tokens.saturating_sub(free) as f64 * per_token
}

/// A GPU, whose host needs a tenth of a millisecond for a step.
fn gpu(device: &dyn Fn(usize) -> f64) -> Machine<'_> {
    Machine { device, host_per_step: 1e-4, host_per_row: 1e-6, per_op: OP_SECONDS, run_ahead: 1 }
}

/// The host computes itself.
fn cpu(device: &dyn Fn(usize) -> f64) -> Machine<'_> {
    Machine { host_per_step: 1e-5, run_ahead: 0, ..gpu(device) }
}

/// How many times as fast as without drafts.
fn speedup(machine: Machine<'_>, work: &Work) -> (f64, Outcome) {
    let plain = machine.run(work, None);
    let drafted = machine.run(work, Some(&mut Speculator::default()));
    (plain.seconds / drafted.seconds, drafted)
}

#[test]
fn copied_text_is_drafted_where_tokens_are_nearly_free() {
    let check = |machine: Machine<'_>, num_rows, percent, least: f64| {
        let (speedup, outcome) = speedup(machine, &work(&vec![Kind::Copied(percent); num_rows]));
        assert!(speedup > least, "{num_rows} rows, {percent} %: {speedup} {outcome:?}");
    };
    for machine in [gpu, cpu] {
        check(machine(&knee(64, 1e-4)), 1, 90, 4.0);
        check(machine(&knee(64, 1e-4)), 8, 90, 2.5);
        check(machine(&knee(1, 5e-5)), 1, 90, 2.5);
        check(machine(&knee(64, 1e-4)), 1, 50, 1.3);
    }
    // Where 64 responses have a step of a millisecond, it matters how long the host takes for their drafts.
    check(cpu(&knee(1024, 0.0)), 64, 90, 1.8);
    check(cpu(&knee(64, 5e-6)), 64, 90, 1.2);
    // As a model of seven billion parameters on an H200: a few milliseconds, more tokens for little.
    for (num_rows, ms, ms_per_token, least) in
        [(1_u8, 3.9, 0.01, 4.5), (8, 4.7, 0.02, 3.0), (64, 12.4, 0.03, 1.8)]
    {
        let device = |num_tokens: usize| {
            1e-3 * (ms * f64::from(num_rows).min(num_tokens as f64) / f64::from(num_rows)).max(3.9)
                + 1e-3 * ms_per_token * (num_tokens as f64 - f64::from(num_rows)).max(0.0)
        };
        check(gpu(&device), usize::from(num_rows), 90, least);
    }
}

#[test]
fn no_work_is_slower_by_more_than_a_fiftieth() {
    let free = knee(1024, 0.0);
    let proportional = |num_tokens: usize| num_tokens as f64 * 1e-3;
    let steep = |num_tokens: usize| 1e-4 + num_tokens as f64 * 1e-3;
    let (slope, late) = (knee(1, 5e-4), knee(64, 1e-5));
    let devices: [&dyn Fn(usize) -> f64; 5] = [&free, &proportional, &steep, &slope, &late];
    let kinds =
        [Kind::Fresh, Kind::Babble, Kind::Later, Kind::Copied(10), Kind::Copied(50), Kind::Copied(90)];
    for device in devices {
        let slow_host = Machine { host_per_step: 8e-4, ..gpu(device) };
        for machine in [gpu(device), cpu(device), slow_host] {
            for num_rows in [1, 3, 8, 64] {
                for kind in kinds {
                    let (speedup, outcome) = speedup(machine, &work(&vec![kind; num_rows]));
                    assert!(speedup > 1.0 / 1.02, "{num_rows} rows, {kind:?}: {speedup} {outcome:?}");
                }
                // A few of many.
                let few =
                    [vec![Kind::Copied(90); num_rows.div_ceil(16)], vec![Kind::Fresh; num_rows]].concat();
                let (speedup, outcome) = speedup(machine, &work(&few));
                assert!(speedup > 1.0 / 1.02, "few of {num_rows} rows: {speedup} {outcome:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_machine_and_no_text_make_it_slower_by_more_than_a_twentieth(
        kinds in prop::collection::vec(prop_oneof![
            (0_u32..100).prop_map(Kind::Copied), Just(Kind::Fresh), Just(Kind::Babble), Just(Kind::Later),
        ], 1..20),
        fixed_us in 100_u64..2000,
        per_token_us in 0_u64..1000,
        free in 0_usize..40,
        host_us in 0_u64..1500,
        run_ahead in 0_usize..2,
    ) {
        // Twice the tokens never take more than twice as long: they could be computed in two steps.
        let device = |num_tokens: usize| {
            (fixed_us + per_token_us * num_tokens.max(free) as u64) as f64 * 1e-6
        };
        let machine = Machine { host_per_step: host_us as f64 * 1e-6, run_ahead, ..gpu(&device) };
        // Some hundred steps have hardly time to earn what trials cost: about one case in 300 loses more than a fiftieth,
        // and none of 4,000 a twentieth.
        let (speedup, outcome) = speedup(machine, &work(&kinds));
        prop_assert!(speedup > 1.0 / 1.05, "{} {:?}", speedup, outcome);
    }
}

#[test]
fn a_machine_with_hiccups_is_not_taken_for_a_slow_one() {
    for (first, run_ahead) in [(3, 0), (5, 1), (9, 1), (11, 0)] {
        let steps = std::cell::Cell::new(0);
        let hiccups = |num_tokens: usize| {
            steps.set(steps.get() + 1);
            knee(64, 1e-4)(num_tokens) * if steps.get() % 17 == first { 20.0 } else { 1.0 }
        };
        let machine = Machine { run_ahead, ..gpu(&hiccups) };
        let outcome = machine.run(&work(&[Kind::Copied(90)]), Some(&mut Speculator::default()));
        assert!(outcome.num_accepted > 150, "{outcome:?}");
    }
}

#[test]
fn responses_of_other_requests_and_of_other_runs_are_drawn_on() {
    let device = knee(64, 1e-4);
    let prompts: Vec<Vec<u32>> = (0..2).map(|row| random(row + 1, 50, 50_000)).collect();
    let of = |idx: usize, len: usize| Work {
        prompts: vec![prompts[idx].clone()],
        responses: vec![random(9, 300, 50_000)[..len].to_vec()],
    };
    let mut speculator = Speculator::default();
    assert_eq!(gpu(&device).run(&of(0, 300), Some(&mut speculator)).num_accepted, 0);
    let outcome = gpu(&device).run(&of(1, 200), Some(&mut speculator));
    assert!(outcome.num_accepted > 150, "{outcome:?}");
}

#[test]
fn siblings_are_drawn_on() {
    let mut speculator = Speculator::default();
    speculator.prompt(&[1, 2, 3], &["a", "b"]);
    speculator.append("a", &[7, 8, 9, 10, 11]);
    let tokens_of_b = |speculator: &mut Speculator<&str>| {
        speculator.look_at("a", 0, &mut PORTION.clone());
        speculator.look_at("b", 3, &mut PORTION.clone()).iter().map(|of| of.token).collect::<Vec<_>>()
    };
    assert_eq!(tokens_of_b(&mut speculator)[..2], [7, 8]);
    speculator.append("b", &[7, 8]);
    assert_eq!(tokens_of_b(&mut speculator)[..2], [9, 10]);
    speculator.end("a");
    speculator.end("b");
    assert!(speculator.requests.is_empty() && speculator.responses.is_empty() && speculator.order.is_empty());
    assert!(speculator.look_at("b", 3, &mut PORTION.clone()).is_empty());
}

fn plain_step(num_rows: usize, us: u64) -> StepTime {
    StepTime { num_rows, num_tokens: num_rows, pace: Pace::Ahead, time: Duration::from_micros(us) }
}

#[test]
fn a_token_costs_next_to_nothing_while_none_are_drafted() {
    let num_rows = 256;
    let mut speculator = Speculator::default();
    for row in 0..num_rows {
        speculator.prompt(&random(row as u64 + 1, 400, 50_000), &[row]);
    }
    let num_steps = 400;
    let responses: Vec<Vec<u32>> =
        (0..num_rows as u64).map(|row| random(900 + row, num_steps, 1 << 31)).collect();
    let (mut most_ops, mut num_ops) = (0, 0);
    for step in 0..num_steps {
        for (row, response) in responses.iter().enumerate() {
            speculator.append(row, &response[step..=step]);
        }
        speculator.measured(plain_step(num_rows, 12_000));
        assert_eq!(speculator.library.num_ops(), num_ops, "tokens are only stored");
        assert!(!speculator.wants_drafts(1, Goal::Throughput));
        most_ops = most_ops.max(speculator.library.num_ops() - num_ops);
        num_ops = speculator.library.num_ops();
    }
    let share = num_ops as f64 * OP_SECONDS / (num_steps as f64 * 12e-3);
    assert!((0.003..0.0052).contains(&share), "{share}");
    // 60 microseconds' worth, and a portion more.
    assert!(most_ops < 3000 + 10 * PORTION as u64, "{most_ops}");
}

#[test]
fn the_pauses_after_looks_that_found_nothing_grow() {
    let mut speculator = Speculator::default();
    speculator.prompt(&[1, 2, 3], &[0]);
    speculator.measured(plain_step(1, 1000));
    let mut pauses = Vec::new();
    for _ in 0..12 {
        assert!(speculator.propose(&[Draftable { id: 0, max_drafts: 9 }]).concat().is_empty());
        pauses.push(speculator.pause);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
}

#[test]
fn the_slowest_response_counts_where_nothing_waits() {
    let settle = |goal: Goal| {
        let mut speculator = Speculator::default();
        speculator.prompt(&[1, 2, 3], &[0, 1]);
        speculator.measured(plain_step(2, 1000));
        let before = speculator.account.seconds().unwrap();
        // Of the first four tokens are expected and come, of the second only one.
        speculator.num_new_tokens = 5;
        let step = StepTime { num_tokens: 5, pace: Pace::Alone, ..plain_step(2, 1500) };
        speculator.goal = goal;
        speculator.settle(&Proposed { plain_seconds: 1e-3, rows: vec![(0, 4.0), (1, 1.0)] }, step);
        ((speculator.account.seconds().unwrap() - before) * 1e6).round()
    };
    assert_eq!(settle(Goal::Throughput), 1000.0);
    assert_eq!(settle(Goal::Finish), -500.0);
}
