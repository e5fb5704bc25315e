//! Prompts that begin alike, and prompts in parts: the texts are those of prompts computed whole, each by itself.

use super::*;

/// A prompt: which of a few beginnings, how many tokens of it, and tokens of its own.
pub(super) fn prefixed(idx: u64, beginning: u32, num_shared: usize, shape: (usize, u32, u32)) -> Request {
    let (num_own, num_responses, max_new_tokens) = shape;
    let own = request(idx, num_own, num_responses, max_new_tokens);
    let shared = (0..num_shared as u32).map(|pos| (pos * 5 + beginning) % 38);
    Request { prompt: shared.chain(own.prompt.iter().copied()).collect(), ..own }
}

pub(super) fn requests_of(shapes: &[(u32, usize, (usize, u32, u32))]) -> Vec<Request> {
    let numbered = (0..).zip(shapes);
    numbered.map(|(idx, &(beginning, len, shape))| prefixed(idx, beginning, len, shape)).collect()
}

/// The texts of prompts computed whole.
fn whole(requests: &[Request]) -> Completions {
    let mut engine = engine(params(), &["ab", "xyz"], EngineLimits { max_prefill_tokens: 10_000, ..roomy() });
    engine.set_prefix_cache(false);
    let (completions, stats) = run(&mut engine, requests);
    assert_eq!(stats.cached_prompt_tokens, 0);
    completions
}

/// Tokens of the prompts that are computed at all.
fn num_prompt_tokens(requests: &[Request]) -> u64 {
    let computed = requests.iter().filter(|request| request.num_responses > 0 && request.max_new_tokens > 0);
    computed.map(|request| request.prompt.len() as u64).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn the_text_does_not_depend_on_what_is_shared_or_cut(
        shapes in prop::collection::vec((0_u32..3, 0_usize..30, (1_usize..9, 0_u32..4, 0_u32..12)), 1..14),
        (max_num_seqs, max_prefill_tokens) in (1_usize..16, 1_usize..60),
        (num_blocks, num_host_blocks) in (13_usize..60, 0_usize..30),
        run_ahead in 0_usize..4,
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let requests = requests_of(&shapes);
        let expect = whole(&requests);
        let tight = EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let mut engine = engine_ahead(params(), &["ab", "xyz"], tight, run_ahead);
        // Twice: nothing is left over from the run before.
        for _ in 0..2 {
            let (actual, stats) = run(&mut engine, &requests);
            prop_assert_eq!(&actual, &expect);
            prop_assert_eq!(stats.prompt_tokens + stats.cached_prompt_tokens, num_prompt_tokens(&requests));
        }
    }
}

#[test]
fn a_common_beginning_is_computed_once() {
    let requests: Vec<Request> = (0..30).map(|idx| prefixed(idx, 1, 24, (3, 2, 9))).collect();
    let expect = whole(&requests);
    // In steps of a few prompts, each of which finds what the first one left.
    let mut engine = engine(params(), &["ab", "xyz"], limits(8, 40, 200));
    let (actual, stats) = run(&mut engine, &requests);
    assert_eq!(actual, expect);
    assert_eq!(stats.cached_prompt_tokens, 29 * 24);
    // With room for little more than one of them, it is not found at times, but the text stays.
    let mut engine = super::engine(params(), &["ab", "xyz"], limits(1, 40, 11));
    assert_eq!(run(&mut engine, &requests).0, expect);
}

#[test]
fn a_prompt_longer_than_a_step_is_computed_in_parts() {
    let requests: Vec<Request> = (0..6).map(|idx| prefixed(idx, idx as u32, 25, (8, 2, 12))).collect();
    let expect = whole(&requests);
    let mut engine = engine(params(), &["ab", "xyz"], limits(16, 9, 300));
    let (actual, stats) = run(&mut engine, &requests);
    assert_eq!(actual, expect);
    assert!(stats.num_prefill_steps >= 6 * 4, "{} steps", stats.num_prefill_steps);
}
