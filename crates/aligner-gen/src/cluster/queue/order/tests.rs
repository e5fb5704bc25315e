use proptest::prelude::*;

use super::*;

const FIRST: Replica = Replica(0);

fn work(known_tokens: u32, prefix: Option<u32>) -> Work {
    Work { known_tokens: Some(known_tokens), budget_tokens: 1000, prefix, same_as: None }
}

fn order(works: &[Work]) -> WorkOrder<'_> {
    WorkOrder::new(0..works.len(), 2, Box::new(|position| works[position]))
}

/// All samples in the order in which one replica gets them.
fn taken(works: &[Work], window: usize) -> Vec<usize> {
    let mut order = order(works);
    std::iter::from_fn(|| order.take(FIRST, window, usize::MAX)).collect()
}

#[test]
fn the_longest_of_the_window_goes_first() {
    let works = [5, 80, 9, 300, 2, 1000, 81].map(|tokens| work(tokens, None));
    assert_eq!(taken(&works, 100), [5, 3, 6, 1, 2, 0, 4]);
    assert_eq!(taken(&works, 1), [0, 1, 2, 3, 4, 5, 6]);
    // When three went before the first one, it is next.
    assert_eq!(taken(&works, 3), [1, 3, 2, 0, 5, 6, 4]);
}

#[test]
fn what_is_not_known_keeps_its_order_and_counts_as_long_as_it_may_be() {
    let unknown = |budget_tokens| Work { budget_tokens, ..Work::default() };
    assert_eq!(taken(&[unknown(50); 6], 4), [0, 1, 2, 3, 4, 5]);
    let mixed = [work(30, None), unknown(50), work(70, None), unknown(50), unknown(20)];
    assert_eq!(taken(&mixed, 5), [2, 1, 3, 0, 4]);
    // More than it may have is not expected.
    let too_much = Work { known_tokens: Some(900), budget_tokens: 10, ..Work::default() };
    assert_eq!(taken(&[too_much, unknown(11)], 5), [1, 0]);
}

#[test]
fn within_a_class_prompts_that_begin_alike_follow_each_other() {
    let (a, b) = (Some(7), Some(8));
    let works = [
        work(70, a),
        work(127, b),
        work(126, a),
        work(64, b),
        work(100, None),
        work(63, b),
        work(200, None),
        work(60, a),
        work(90, b),
    ];
    // 200 is of another class than 127 to 64, and so is what is shorter.
    assert_eq!(taken(&works, 100), [6, 1, 8, 3, 2, 0, 4, 5, 7]);
    let mut order = order(&works);
    let mut take = |replica| order.take(Replica(replica), 100, usize::MAX).unwrap();
    // Each replica goes on with its own.
    assert_eq!([take(0), take(0), take(1), take(0), take(1), take(0)], [6, 1, 2, 8, 0, 3]);
}

#[test]
fn a_longer_sample_that_comes_into_the_window_goes_first() {
    let works = [work(70, Some(1)), work(60, Some(1)), work(62, Some(1)), work(500, None), work(61, Some(1))];
    assert_eq!(taken(&works, 3), [0, 3, 2, 4, 1]);
}

#[test]
fn samples_are_as_long_as_others_of_the_same_prompt_were() {
    let of_prompt = |same_as| Work { budget_tokens: 100, same_as: Some(same_as), ..Work::default() };
    let works = [of_prompt(1), of_prompt(2), of_prompt(3), of_prompt(2), of_prompt(1), of_prompt(3)];
    let mut order = order(&works);
    let take = |order: &mut WorkOrder<'_>| order.take(FIRST, 100, usize::MAX).unwrap();
    assert_eq!([take(&mut order), take(&mut order)], [0, 1]);
    assert_eq!(order.foresight(4), Foresight::default());
    order.learn(0, 10);
    order.learn(1, 30);
    // Nothing is known of prompt 3.
    assert_eq!([take(&mut order), take(&mut order), take(&mut order)], [2, 5, 3]);
    assert_eq!([4, 3].map(|position| order.foresight(position).expected_tokens), [Some(10), Some(30)]);
    assert_eq!(take(&mut order), 4);
}

#[test]
fn the_engine_is_told_how_many_are_still_to_come() {
    let works = [work(9, Some(4)), work(9, None), work(9, Some(4)), work(9, Some(4)), work(9, Some(4))];
    let mut order = order(&works);
    let mut told = Vec::new();
    while let Some(position) = order.take(FIRST, 4, usize::MAX) {
        let prefix =
            order.foresight(position).prefix.map(|planned| (planned.id, planned.num_later, planned.within));
        told.push((position, prefix));
    }
    let expect =
        [(0, Some((4, 2, 3))), (2, Some((4, 2, 3))), (3, Some((4, 1, 2))), (4, Some((4, 0, 1))), (1, None)];
    assert_eq!(told, expect);
}

#[test]
fn a_limit_that_comes_closer_holds() {
    let works = [5, 80, 9, 300, 2].map(|tokens| work(tokens, None));
    let mut order = order(&works);
    assert_eq!(order.take(FIRST, 100, usize::MAX), Some(3));
    assert_eq!(order.take(FIRST, 100, 3), Some(0));
    assert_eq!([order.take(FIRST, 100, 1), order.take(FIRST, 100, 2)], [None, Some(1)]);
    assert_eq!(order.num_left(), 2);
    assert_eq!(order.take(FIRST, 100, 9), Some(2));
}

#[test]
fn lengths_of_many_prompts_take_bounded_memory() {
    let mut lengths = PromptLengths::default();
    for same_as in 0..(3 * MAX_PROMPTS) as u32 {
        assert_eq!(lengths.add(same_as, 7), Some(7));
    }
    assert!(lengths.recent.len() + lengths.older.len() <= 2 * MAX_PROMPTS);
    assert_eq!([lengths.of(Some(1)), lengths.of(Some((3 * MAX_PROMPTS) as u32 - 1))], [None, Some(7)]);
    // A little longer is no news.
    let mut one = PromptLengths::default();
    assert_eq!([80, 84, 79, 160].map(|num_tokens| one.add(1, num_tokens)), [Some(80), None, None, Some(101)]);
}

fn any_work() -> impl Strategy<Value = Work> {
    let some = prop::option::of;
    (some(0_u32..300), 0_u32..200, some(0_u32..3), some(0_u32..4)).prop_map(
        |(known_tokens, budget_tokens, prefix, same_as)| Work {
            known_tokens,
            budget_tokens,
            prefix,
            same_as,
        },
    )
}

proptest! {
    #[test]
    fn every_sample_comes_once_and_none_is_passed_over_by_more_than_a_window(
        works in prop::collection::vec(any_work(), 0..60),
        window in 1_usize..20,
        steps in prop::collection::vec((0_u32..3, 0_usize..40, 0_u32..300), 0..80),
    ) {
        let mut order = order(&works);
        let mut left: BTreeSet<usize> = (0..works.len()).collect();
        // In the end there is no limit any more.
        let rest = std::iter::repeat_n((0, usize::MAX, 5), works.len() + 1);
        for (replica, ahead, num_tokens) in steps.into_iter().chain(rest) {
            prop_assert_eq!(order.num_left(), left.len());
            let Some(&oldest) = left.first() else { break };
            let limit = oldest.saturating_add(ahead);
            let Some(position) = order.take(Replica(replica), window, limit) else {
                prop_assert!(ahead == 0, "nothing is given out although {oldest} may be");
                continue;
            };
            prop_assert!(left.remove(&position), "{position} comes twice");
            prop_assert!(position < limit && position < oldest + 2 * window, "{position}, {oldest} waits");
            let num_left_before = left.range(..position).count();
            // Others of the file after it that were given out.
            let num_passed = |waiting: usize| (waiting + 1..works.len()).filter(|later| !left.contains(later)).count();
            prop_assert!(num_left_before == 0 || num_passed(oldest) <= window, "{oldest} is passed over");
            let before = order.foresight(position);
            prop_assert!(before.prefix.is_none_or(|planned| planned.num_later <= planned.within));
            order.learn(position, num_tokens);
        }
        prop_assert!(left.is_empty(), "{left:?} never came");
    }

    #[test]
    fn nothing_goes_before_what_is_of_a_longer_class(works in prop::collection::vec(any_work(), 0..40)) {
        let classes: Vec<u32> = taken(&works, 100).into_iter().map(|position| works[position].class()).collect();
        prop_assert!(classes.is_sorted_by(|a, b| a >= b), "{classes:?}");
    }
}
