use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Texts of requests, each in the index up to its last token.
fn indexed(texts: &[(u64, Vec<u32>)], slots_log2: u32) -> (Texts, Index) {
    let mut index = Index::new(slots_log2);
    let mut held = Texts::default();
    for (request, tokens) in texts {
        let text = held.begin(tokens.clone());
        for end in 1..tokens.len() as u32 {
            index.insert(&held, Place { text, end }, *request);
        }
    }
    (held, index)
}

/// The longest of [`CONTEXT_LENS`] that `context` ends with and that another token follows in one of the texts.
fn longest_by_search(texts: &[(u64, Vec<u32>)], context: &[u32], request: u64) -> Option<usize> {
    let stands = |len_idx: usize| {
        let wanted = context.len().checked_sub(CONTEXT_LENS[len_idx]).map(|start| &context[start..]);
        wanted.is_some_and(|wanted| {
            texts.iter().any(|(of, tokens)| {
                let is_searched = *of == request || len_idx >= FIRST_SHARED;
                let before_last = &tokens[..tokens.len().saturating_sub(1)];
                is_searched && before_last.windows(wanted.len()).any(|window| window == wanted)
            })
        })
    };
    (0..CONTEXT_LENS.len()).rev().find(|&len_idx| stands(len_idx))
}

/// Whether two contexts of these texts have the same slot.
fn is_crowded(texts: &[(u64, Vec<u32>)], index: &Index) -> bool {
    let mut holders = HashMap::new();
    let contexts = texts.iter().flat_map(|(request, tokens)| {
        (1..tokens.len()).flat_map(move |end| {
            hashes(&tokens[..end]).flat_map(move |(len_idx, hash)| {
                let context = &tokens[end - CONTEXT_LENS[len_idx]..end];
                scopes(len_idx, *request).map(move |scope| (hash, scope, context))
            })
        })
    });
    contexts.into_iter().any(|(hash, scope, context)| {
        let holder = (context, matches!(scope, Scope::Request(_)).then_some(format!("{scope:?}")));
        holders.entry(index.slot(hash, scope)).or_insert_with(|| holder.clone()) != &holder
    })
}

fn texts() -> impl Strategy<Value = Vec<(u64, Vec<u32>)>> {
    prop::collection::vec((0_u64..3, prop::collection::vec(0_u32..3, 0..40)), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_longest_context_is_found(
        texts in texts(),
        context in prop::collection::vec(0_u32..3, 0..25),
        request in 0_u64..3,
    ) {
        let (held, index) = indexed(&texts, 20);
        prop_assume!(!is_crowded(&texts, &index));
        let find = index.find(&held, &context, request);
        let expect = longest_by_search(&texts, &context, request);
        prop_assert_eq!(find.map(|find| find.kind.len_idx), expect);
        let Some(Find { token, kind }) = find else { return Ok(()) };
        let wanted = [&context[context.len() - CONTEXT_LENS[kind.len_idx]..], &[token]].concat();
        let follows = |(of, tokens): &(u64, Vec<u32>)| {
            (*of == request || kind.is_shared) && tokens.windows(wanted.len()).any(|window| window == wanted)
        };
        prop_assert!(texts.iter().any(follows));
    }

    #[test]
    fn a_crowded_table_finds_only_what_stands_there(
        texts in texts(),
        context in prop::collection::vec(0_u32..3, 0..25),
    ) {
        let (held, index) = indexed(&texts, 3);
        if let Some(Find { token, kind }) = index.find(&held, &context, 0) {
            let wanted = [&context[context.len() - CONTEXT_LENS[kind.len_idx]..], &[token]].concat();
            prop_assert!(texts.iter().any(|(_, tokens)| tokens.windows(wanted.len()).any(|window| window == wanted)));
        }
    }
}

#[test]
fn the_newest_place_wins_and_another_is_a_second_opinion() {
    let check = |texts: &[(u64, Vec<u32>)], context: &[u32], expect: Option<(u32, usize, bool, Second)>| {
        let (held, index) = indexed(texts, 16);
        let find = index.find(&held, context, 0);
        let actual =
            find.map(|Find { token, kind }| (token, CONTEXT_LENS[kind.len_idx], kind.is_shared, kind.second));
        assert_eq!(actual, expect, "{texts:?}");
    };
    check(&[(0, vec![1, 2, 7])], &[1, 2], Some((7, 2, false, Second::None)));
    check(&[(0, vec![1, 2, 7, 5, 2, 8])], &[1, 2], Some((7, 2, false, Second::Other)));
    check(&[(0, vec![1, 2, 7, 5, 2, 7])], &[1, 2], Some((7, 2, false, Second::Same)));
    check(&[(0, vec![1, 2, 7]), (0, vec![1, 2, 8])], &[1, 2], Some((8, 2, false, Second::None)));
    // Of other requests only three tokens and more.
    check(&[(1, vec![1, 2, 7])], &[1, 2], None);
    check(&[(1, vec![3, 1, 2, 7])], &[3, 1, 2], Some((7, 3, true, Second::None)));
    check(&[(1, vec![3, 1, 2, 7]), (0, vec![9, 1, 2, 8])], &[3, 1, 2], Some((7, 3, true, Second::Other)));
    check(&[(0, vec![1, 2])], &[1, 2], None);
}

#[test]
fn kinds_have_numbers_of_their_own() {
    let mut seen = [false; Kind::COUNT];
    for len_idx in 0..CONTEXT_LENS.len() {
        for is_shared in [false, true] {
            for second in [Second::None, Second::Same, Second::Other] {
                let idx = Kind { len_idx, is_shared, second }.idx();
                assert!(!std::mem::replace(&mut seen[idx], true));
            }
        }
    }
    assert!(seen.iter().all(|&seen| seen));
}

#[test]
fn a_text_that_took_another_ones_number_is_not_taken_for_it() {
    let (mut held, index) = indexed(&[(0, vec![1, 2, 7])], 16);
    held.end(0, 0);
    assert_eq!(index.find(&held, &[1, 2], 0), None);
    assert_eq!(held.begin(vec![4, 4, 4]), 0);
    assert_eq!(index.find(&held, &[1, 2], 0), None);
}
