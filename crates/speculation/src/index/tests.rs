use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::texts::Text;

fn text(scope: u64, tokens: &[u32]) -> Text {
    Text { tokens: tokens.to_vec(), scope, next_end: tokens.len() }
}

/// Texts of requests, each in the index up to its last token.
fn indexed(texts: &[(u64, Vec<u32>)], slots_log2: u32) -> (Texts, Index) {
    let mut index = Index::new(slots_log2);
    let mut held = Texts::default();
    for (request, tokens) in texts {
        let id = held.begin(text(*request, tokens));
        for end in 1..tokens.len() {
            index.insert(tokens, Place { text: id, end }, *request);
        }
    }
    (held, index)
}

/// The longest context with a slot that `context` ends with and that another token follows in one of the texts.
fn longest_by_search(texts: &[(u64, Vec<u32>)], context: &[u32], request: u64) -> Option<usize> {
    let stands = |&len: &usize| {
        let wanted = context.len().checked_sub(len).map(|start| &context[start..]);
        wanted.is_some_and(|wanted| {
            texts.iter().any(|(of, tokens)| {
                let is_searched = *of == request || SHARED_LENS.contains(&len);
                let before_last = &tokens[..tokens.len().saturating_sub(1)];
                is_searched && before_last.windows(wanted.len()).any(|window| window == wanted)
            })
        })
    };
    OWN_LENS.into_iter().rev().find(stands)
}

/// Whether two contexts of these texts have the same slot.
fn is_crowded(texts: &[(u64, Vec<u32>)], index: &Index) -> bool {
    let mut holders = HashMap::new();
    let contexts = texts.iter().flat_map(|(request, tokens)| {
        (1..tokens.len()).flat_map(move |end| {
            let contexts = Hashes::of(&tokens[..end]).known();
            contexts.flat_map(move |(len, hash)| {
                let context = &tokens[end - len..end];
                [
                    (index.own_slot(hash, *request), context, Some(*request)),
                    (index.shared_slot(hash), context, None),
                ]
            })
        })
    });
    contexts.into_iter().any(|(slot, context, request)| {
        let holder = (context, request);
        *holders.entry(slot).or_insert(holder) != holder
    })
}

fn texts() -> impl Strategy<Value = Vec<(u64, Vec<u32>)>> {
    prop::collection::vec((0_u64..3, prop::collection::vec(0_u32..3, 0..40)), 0..5)
}

/// Whether a find is what stands in the texts.
fn is_true(texts: &[(u64, Vec<u32>)], context: &[u32], request: u64, find: Find) -> bool {
    let Find { place, len, is_shared } = find;
    let (of, tokens) = &texts[place.text as usize];
    let there = &tokens[..place.end];
    let is_longest = len == MAX_CONTEXT_LEN
        || len == there.len()
        || len == context.len()
        || there[there.len() - len - 1] != context[context.len() - len - 1];
    place.end < tokens.len()
        && there.ends_with(&context[context.len() - len..])
        && is_longest
        && is_shared == (*of != request)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_stands_somewhere_is_found(
        texts in texts(),
        context in prop::collection::vec(0_u32..3, 0..25),
        request in 0_u64..3,
    ) {
        let (held, mut index) = indexed(&texts, 20);
        prop_assume!(!is_crowded(&texts, &index));
        let find = index.find(&held, &context, request);
        let expect = longest_by_search(&texts, &context, request);
        prop_assert_eq!(find.is_some(), expect.is_some());
        if let (Some(find), Some(len)) = (find, expect) {
            prop_assert!(find.len >= len, "{:?} {}", find, len);
            prop_assert!(is_true(&texts, &context, request, find), "{:?}", find);
        }
    }

    #[test]
    fn a_crowded_table_finds_only_what_stands_there(
        texts in texts(),
        context in prop::collection::vec(0_u32..3, 0..25),
    ) {
        let (held, mut index) = indexed(&texts, 3);
        if let Some(find) = index.find(&held, &context, 0) {
            prop_assert!(is_true(&texts, &context, 0, find), "{:?}", find);
        }
    }
}

#[test]
fn the_newest_place_wins_and_a_longer_context_of_another_request() {
    let check = |texts: &[(u64, Vec<u32>)], context: &[u32], expect: Option<(u32, usize, bool)>| {
        let (held, mut index) = indexed(texts, 16);
        let find = index.find(&held, context, 0);
        let actual = find.map(|find| (held.get(find.place.text)[find.place.end], find.len, find.is_shared));
        assert_eq!(actual, expect, "{texts:?}");
    };
    check(&[(0, vec![1, 2, 7])], &[1, 2], Some((7, 2, false)));
    check(&[(0, vec![1, 2, 7, 5, 2, 8])], &[1, 2], Some((8, 1, false)));
    check(&[(0, vec![1, 2, 7]), (0, vec![1, 2, 8])], &[1, 2], Some((8, 2, false)));
    // Of other requests only three tokens and more.
    check(&[(1, vec![1, 2, 7])], &[1, 2], None);
    check(&[(1, vec![3, 1, 2, 7])], &[3, 1, 2], Some((7, 3, true)));
    check(&[(1, vec![3, 1, 2, 7]), (0, vec![9, 1, 2, 8])], &[3, 1, 2], Some((7, 3, true)));
    check(&[(1, vec![3, 1, 2, 7]), (0, vec![3, 1, 2, 8])], &[3, 1, 2], Some((8, 3, false)));
    check(&[(0, vec![1, 2])], &[1, 2], None);
}

#[test]
fn a_look_reads_few_slots() {
    let own: Vec<u32> = (0..40).collect();
    let (held, mut index) = indexed(&[(0, own.clone()), (1, own.clone())], 16);
    let mut look = |context: &[u32], request: u64| {
        let before = index.num_ops();
        let find = index.find(&held, context, request);
        (find.map(|find| find.len), index.num_ops() - before - OPS_PER_LOOK)
    };
    // Nothing: one read in each scope, and in no text.
    assert_eq!(look(&[[77; 20].as_slice(), &[50]].concat(), 0), (None, 2));
    // All of it, at the first read of a slot and a text; in another request's text behind the miss of an own one.
    assert_eq!(look(&own[..30], 0), (Some(17), 1 + OPS_PER_TEXT));
    let (found, num_ops) = look(&own[..30], 5);
    assert_eq!(found, Some(17));
    assert!(num_ops <= 3 + 2 * OPS_PER_TEXT, "{num_ops}");
    for len in 1..17 {
        let (found, num_ops) = look(&[&[77; 20], &own[20..20 + len]].concat(), 0);
        assert_eq!(found, Some(len));
        assert!(num_ops <= 5 + 5 * OPS_PER_TEXT, "{len}: {num_ops}");
    }
}

#[test]
fn the_contexts_of_a_request_stand_near_each_other() {
    let index = Index::new(20);
    for request in 0..50 {
        let slots = (0..1000_u64).map(|hash| index.own_slot(mix(hash + 1), request));
        let (least, most) = (slots.clone().min().unwrap(), slots.max().unwrap());
        assert!(least >> WINDOW_LOG2 == most >> WINDOW_LOG2 && most - least > 10_000);
    }
}

#[test]
fn kinds_have_numbers_of_their_own() {
    let mut seen = [false; Kind::COUNT];
    for len in LENS {
        for is_shared in [false, true] {
            let idx = Kind::new(len, is_shared).idx();
            assert!(!std::mem::replace(&mut seen[idx], true));
        }
    }
    assert!(seen.iter().all(|&seen| seen));
    assert_eq!(Kind::new(8, false), Kind::new(5, false));
    assert_eq!(Kind::new(99, true), Kind::new(17, true));
}

#[test]
fn a_text_that_took_another_ones_number_is_not_taken_for_it() {
    let (mut held, mut index) = indexed(&[(0, vec![1, 2, 7])], 16);
    held.end(0, 0);
    assert_eq!(index.find(&held, &[1, 2], 0), None);
    assert_eq!(held.begin(text(0, &[4, 4, 4])), 0);
    assert_eq!(index.find(&held, &[1, 2], 0), None);
}
