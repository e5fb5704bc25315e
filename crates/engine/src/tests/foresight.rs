//! What is foreseen of requests, right or wrong, decides when they are computed and never their texts.

use super::*;

fn foresight() -> impl Strategy<Value = Foresight> {
    let expected_tokens = prop::option::of(prop_oneof![0_u32..40, Just(u32::MAX)]);
    let planned = (0_u32..3, 0_u32..4, prop_oneof![0_u32..9, Just(u32::MAX)])
        .prop_map(|(id, num_later, within)| PlannedPrefix { id, num_later, within });
    (expected_tokens, prop::option::of(planned))
        .prop_map(|(expected_tokens, prefix)| Foresight { expected_tokens, prefix })
}

/// A prompt of which so many tokens are one of a few beginnings, and the length of its responses.
fn shape() -> impl Strategy<Value = (u32, usize, (usize, u32, u32))> {
    (0_u32..3, 0_usize..30, (1_usize..9, 0_u32..4, 0_u32..30))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn the_text_does_not_depend_on_what_is_foreseen(
        cases in prop::collection::vec((shape(), foresight()), 1..14),
        (max_num_seqs, max_prefill_tokens) in (1_usize..16, 1_usize..60),
        (num_blocks, num_host_blocks) in (18_usize..60, 0_usize..60),
        run_ahead in 0_usize..4,
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let shapes: Vec<_> = cases.iter().map(|&(shape, _)| shape).collect();
        let requests = prefixes::requests_of(&shapes);
        let (expect, _) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
        let foreseen: Vec<Request> = requests
            .iter()
            .zip(&cases)
            .map(|(request, &(_, foresight))| Request { foresight, ..request.clone() })
            .collect();
        let tight = EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let mut engine = engine_ahead(params(), &["ab", "xyz"], tight, run_ahead);
        for _ in 0..2 {
            prop_assert_eq!(&run(&mut engine, &foreseen).0, &expect);
        }
    }
}

/// Requests of one response each, most of which end long before their budget.
fn early() -> Vec<Request> {
    (0..80).map(|idx| request(idx, 3, 1, 60)).collect()
}

#[test]
fn what_is_known_of_lengths_fills_the_cache_from_the_start() {
    let limits = EngineLimits { num_host_blocks: 2000, ..limits(80, 1000, 200) };
    let (expect, blind) = run(&mut engine(params(), &["ab"], limits), &early());
    let foreseen: Vec<Request> = early()
        .into_iter()
        .map(|request| {
            let num_tokens = expect[&(request.sample_idx, 0)].token_ids.len() as u32;
            let foresight = Foresight { expected_tokens: Some(num_tokens), prefix: None };
            Request { foresight, ..request }
        })
        .collect();
    let (actual, knowing) = run(&mut engine(params(), &["ab"], limits), &foreseen);
    assert_eq!(actual, expect);
    assert!(knowing.peak_rows > blind.peak_rows, "{knowing:?}, {blind:?}");
    assert!(knowing.num_decode_steps < blind.num_decode_steps, "{knowing:?}, {blind:?}");
}

#[test]
fn a_planned_prefix_is_computed_once_though_others_come_between() {
    // Every fourth prompt begins with the same 24 tokens; each of the others is longer than what is left of the cache.
    let requests = |is_planned: bool| -> Vec<Request> {
        let num = 24_u32;
        let one = |idx: u32| match idx % 4 {
            0 => {
                let planned = PlannedPrefix { id: 9, num_later: (num - 1 - idx) / 4, within: num - 1 - idx };
                let prefix = is_planned.then_some(planned);
                let request = prefixes::prefixed(u64::from(idx), 1, 24, (3, 1, 4));
                Request { foresight: Foresight { prefix, ..Foresight::default() }, ..request }
            }
            _ => request(u64::from(idx), 30, 1, 4),
        };
        (0..num).map(one).collect()
    };
    let tight = limits(1, 40, 18);
    let (expect, blind) = run(&mut engine(params(), &["ab"], tight), &requests(false));
    let (actual, planned) = run(&mut engine(params(), &["ab"], tight), &requests(true));
    assert_eq!(actual, expect);
    assert_eq!([blind.cached_prompt_tokens, planned.cached_prompt_tokens], [0, 5 * 24]);
}
