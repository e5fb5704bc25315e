//! Responses that nobody wants any more.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_wanted_is_the_same_and_nothing_is_left_over(
        shapes in prop::collection::vec((1_usize..15, 0_u32..7, 0_u32..40), 1..10),
        max_num_seqs in 1_usize..16,
        num_blocks in 14_usize..80,
        num_host_blocks in 0_usize..60,
        run_ahead in 0_usize..5,
        late in 0_usize..4,
        drafts in any::<bool>(),
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let shaped = |(idx, &(prompt_len, num, max_new))| request(idx as u64, prompt_len, num, max_new);
        let requests: Vec<Request> = shapes.iter().enumerate().map(shaped).collect();
        let (all, _) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
        let limits = EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, 1000, num_blocks) };
        let mut tight = engine_ahead(params(), &["ab", "xyz"], limits, run_ahead);
        if drafts {
            tight = tight.with_proposer(Box::new(Guesser::new(&all, &requests, 80, 4).with_cancelling()));
        }
        let (delivered, _) = run_cancelling(&mut tight, &requests, late);
        for (key, completion) in &delivered {
            prop_assert_eq!(completion, &all[key]);
        }
        prop_assert_eq!(wanted(&delivered), wanted(&all));
        // Nothing is left over from the run before, its last cancellations included.
        prop_assert_eq!(&run(&mut tight, &requests).0, &all);
    }
}

#[test]
fn work_is_saved() {
    let requests: Vec<Request> = (0..20).map(|idx| request(idx, 5, 8, 40)).collect();
    let (_, whole) = run(&mut engine(params(), &["ab"], roomy()), &requests);
    let (_, stats) = run_cancelling(&mut engine(params(), &["ab"], roomy()), &requests, 0);
    assert!(stats.num_cancelled > 40, "{stats:?}");
    assert!(stats.decode_rows < whole.decode_rows * 3 / 4, "{} of {}", stats.decode_rows, whole.decode_rows);
}
