//! Whole runs on machines that are made up: what a step costs is a function, and so is the text.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// How a run goes: seconds of a step by its tokens, and each response's tokens behind its prompt.
struct Machine<'a> {
    seconds: &'a dyn Fn(usize) -> f64,
    prompts: &'a [Vec<u32>],
    responses: &'a [Vec<u32>],
}

/// What a run took, and what it would have taken without drafts.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    seconds: f64,
    plain_seconds: f64,
    num_drafted: usize,
    num_accepted: usize,
}

impl Outcome {
    fn speedup(&self) -> f64 {
        self.plain_seconds / self.seconds
    }
}

/// All responses at once, each to a prompt of its own.
fn run(speculator: &mut Speculator, machine: &Machine<'_>) -> Outcome {
    let id = |idx: usize| ResponseId { request: idx as u64, response: 0 };
    let mut lens: BTreeMap<usize, usize> = BTreeMap::new();
    speculator.reset();
    for (idx, prompt) in machine.prompts.iter().enumerate() {
        speculator.prompt(idx as u64, prompt, 1);
    }
    for (idx, response) in machine.responses.iter().enumerate() {
        speculator.append(id(idx), &response[..1]);
        lens.insert(idx, 1);
    }
    let longest = machine.responses.iter().map(Vec::len).max().unwrap_or(0);
    let rows_at = |len: usize| machine.responses.iter().filter(|response| response.len() > len).count();
    let plain_seconds = (1..longest).map(|len| (machine.seconds)(rows_at(len))).sum();
    let mut outcome = Outcome { seconds: 0.0, plain_seconds, num_drafted: 0, num_accepted: 0 };
    loop {
        lens.retain(|&idx, len| {
            let goes_on = *len < machine.responses[idx].len();
            if !goes_on {
                speculator.end(id(idx));
            }
            goes_on
        });
        if lens.is_empty() {
            return outcome;
        }
        let left = |idx: usize, len: usize| machine.responses[idx].len() - len;
        let wanted: Vec<Draftable> = lens
            .iter()
            .map(|(&idx, &len)| Draftable { id: id(idx), max_drafts: left(idx, len) - 1 })
            .collect();
        let drafts = speculator.propose(&wanted);
        assert_eq!(drafts.len(), wanted.len());
        let num_drafts: usize = drafts.iter().map(Vec::len).sum();
        let seconds = (machine.seconds)(wanted.len() + num_drafts);
        outcome.seconds += seconds;
        outcome.num_drafted += num_drafts;
        speculator.measured(wanted.len() + num_drafts, Duration::from_secs_f64(seconds));
        for ((drafts, wanted), (&idx, len)) in drafts.iter().zip(&wanted).zip(&mut lens) {
            assert!(drafts.len() <= wanted.max_drafts);
            let rest = &machine.responses[idx][*len..];
            let num_right = drafts.iter().zip(rest).take_while(|(draft, token)| draft == token).count();
            outcome.num_accepted += num_right;
            speculator.append(id(idx), &rest[..=num_right]);
            *len += num_right + 1;
        }
    }
}

/// Numbers that repeat nothing.
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

/// Of a machine that reads weights for a millisecond, and then computes each token past `free` for `per_token`.
fn knee(free: usize, per_token: f64) -> impl Fn(usize) -> f64 {
    move |num_tokens| 1e-3 + num_tokens.saturating_sub(free) as f64 * per_token
}

fn outcome(num_rows: usize, percent: u32, seconds: &dyn Fn(usize) -> f64) -> Outcome {
    let prompts: Vec<Vec<u32>> = (0..num_rows as u64).map(|row| random(row + 1, 400, 50_000)).collect();
    let responses: Vec<Vec<u32>> =
        prompts.iter().zip(0..).map(|(prompt, row)| copied(prompt, 100 + row, 256, percent)).collect();
    let machine = Machine { seconds, prompts: &prompts, responses: &responses };
    run(&mut Speculator::default(), &machine)
}

#[test]
fn copied_text_is_drafted_where_tokens_are_nearly_free() {
    let check = |num_rows, percent, seconds: &dyn Fn(usize) -> f64, least: f64| {
        let outcome = outcome(num_rows, percent, seconds);
        assert!(outcome.speedup() > least, "{num_rows} rows, {percent} %: {outcome:?}");
    };
    check(1, 90, &knee(64, 1e-4), 4.0);
    check(8, 90, &knee(64, 1e-4), 3.0);
    check(1, 90, &knee(1, 5e-5), 2.5);
    check(1, 50, &knee(64, 1e-4), 1.3);
    // A token more costs two thirds of its share of the step.
    check(64, 90, &knee(64, 1e-5), 1.05);
}

#[test]
fn little_is_lost_where_drafts_do_not_pay() {
    let free = knee(1024, 0.0);
    let proportional = |num_tokens: usize| num_tokens as f64 * 1e-3;
    let steep = |num_tokens: usize| 1e-4 + num_tokens as f64 * 1e-3;
    let slope = knee(1, 5e-4);
    let machines: [&dyn Fn(usize) -> f64; 4] = [&free, &proportional, &steep, &slope];
    for seconds in machines {
        for num_rows in [1, 3, 8, 64] {
            for percent in [0, 10, 50, 90] {
                let outcome = outcome(num_rows, percent, seconds);
                assert!(outcome.speedup() > 0.98, "{num_rows} rows, {percent} %: {outcome:?}");
            }
        }
    }
}

#[test]
fn a_machine_with_hiccups_is_not_taken_for_a_slow_one() {
    let steps = std::cell::Cell::new(0);
    let hiccups = |num_tokens: usize| {
        steps.set(steps.get() + 1);
        knee(64, 1e-4)(num_tokens) * if steps.get() % 17 == 3 { 20.0 } else { 1.0 }
    };
    let prompts = [random(5, 400, 50_000)];
    let responses = [copied(&prompts[0], 6, 256, 90)];
    let machine = Machine { seconds: &hiccups, prompts: &prompts, responses: &responses };
    let outcome = run(&mut Speculator::default(), &machine);
    assert!(outcome.num_accepted > 100, "{outcome:?}");
}

#[test]
fn responses_of_other_requests_and_of_other_runs_are_drawn_on() {
    let prompts: Vec<Vec<u32>> = (0..2).map(|row| random(row + 1, 50, 50_000)).collect();
    let responses = [random(9, 300, 50_000), random(9, 300, 50_000)[..200].to_vec()];
    let mut speculator = Speculator::default();
    let seconds = knee(64, 1e-4);
    let alone = Machine { seconds: &seconds, prompts: &prompts[..1], responses: &responses[..1] };
    assert_eq!(run(&mut speculator, &alone).num_accepted, 0);
    let outcome =
        run(&mut speculator, &Machine { prompts: &prompts[1..], responses: &responses[1..], ..alone });
    assert!(outcome.num_accepted > 150, "{outcome:?}");
}

#[test]
fn the_pauses_between_looks_for_drafts_grow() {
    let mut speculator = Speculator::default();
    speculator.prompt(0, &[1, 2, 3], 1);
    let response = Draftable { id: ResponseId { request: 0, response: 0 }, max_drafts: 9 };
    let mut looks = Vec::new();
    for step in 0..200 {
        if speculator.is_drafting() {
            looks.push(step);
            assert!(speculator.propose(&[response]).concat().is_empty());
        }
        speculator.measured(1, Duration::from_millis(1));
    }
    assert_eq!(looks, [0, 1, 3, 7, 15, 31, 63, 127, 191]);
}

#[test]
fn siblings_are_drawn_on() {
    let mut speculator = Speculator::default();
    speculator.prompt(4, &[1, 2, 3], 2);
    let id = |response| ResponseId { request: 4, response };
    speculator.measured(2, Duration::from_millis(1));
    speculator.append(id(0), &[7, 8, 9, 10, 11]);
    let of_other = Draftable { id: id(1), max_drafts: 3 };
    let tokens = |likely: Vec<(u32, f64)>| likely.into_iter().map(|(token, _)| token).collect::<Vec<_>>();
    assert_eq!(tokens(speculator.continuation(&of_other)), [7, 8]);
    speculator.append(id(1), &[7, 8]);
    assert_eq!(tokens(speculator.continuation(&of_other)), [9, 10]);
    speculator.end(id(0));
    speculator.end(id(1));
    assert!(speculator.requests.is_empty() && speculator.responses.is_empty());
    assert!(speculator.continuation(&of_other).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn no_machine_and_no_text_make_it_much_slower(
        num_rows in 1_usize..20,
        percent in 0_u32..100,
        fixed_us in 1_u64..2000,
        per_token_us in 0_u64..1000,
        free in 0_usize..40,
    ) {
        // Twice the tokens never take more than twice as long: they could be computed in two steps.
        let seconds = |num_tokens: usize| {
            (fixed_us + per_token_us * num_tokens.max(free) as u64) as f64 * 1e-6
        };
        let outcome = outcome(num_rows, percent, &seconds);
        // All responses are equally long, and nothing follows them: the slowest alone counts, whatever the others gain.
        prop_assert!(outcome.speedup() > 0.96, "{:?}", outcome);
    }
}
