use super::*;
use crate::test_models::{ROWS, llama, mixed};
use crate::{AttentionRule, Float, LocalLayers, Numerics, ShardPlace, UniformSpec};

/// Layers of which these have a window.
fn with_windows(is_local: &[bool], tokens: usize) -> ModelSpec {
    let local = LocalLayers { tokens, is_local: is_local.to_vec(), rotary_base: None };
    let attention = AttentionRule { local: Some(local), ..AttentionRule::default() };
    UniformSpec { num_layers: is_local.len(), attention, ..llama() }.spec(ROWS)
}

/// Every sixth layer sees all, as in Gemma 3.
fn gemma3(num_layers: usize) -> ModelSpec {
    with_windows(&(1..=num_layers).map(|nth| nth % 6 > 0).collect::<Vec<_>>(), 1024)
}

fn counts(tables: KvTables) -> (usize, usize, usize) {
    (tables.num_full, tables.num_windowed, tables.window_tokens)
}

#[test]
fn blocks_are_counted_up() {
    assert_eq!([0, 1, 32, 33].map(|num_tokens| blocks_for(num_tokens, BLOCK_SIZE_TOKENS)), [0, 1, 1, 2]);
}

#[test]
fn layers_of_one_shape_are_one_group() {
    let groups = mixed().kv_groups();
    let layers = |group: &KvGroup| group.places.iter().map(|place| place.layer).collect::<Vec<_>>();
    let shown: Vec<_> = groups.iter().map(|group| (layers(group), group.num_query_groups)).collect();
    assert_eq!(shown, [(vec![0, 1], 2), (vec![3], 4)], "layer 2 has no attention");
    assert_eq!(llama().spec(ROWS).kv_groups().len(), 1);
    assert_eq!(mixed().kv_groups()[0], KvGroup::of_layers(&[0, 1], 2, 6));
}

#[test]
fn layers_are_divided_where_that_saves_memory() {
    let tables = |model: &ModelSpec, longest| counts(model.kv_tables(longest));
    let gemma2 = with_windows(&[true, false].repeat(21), 4096);
    assert_eq!(tables(&gemma2, 8192), (1, 1, 4096));
    let whole = counts(KvTables::ONE);
    assert_eq!([4096, 4200].map(|longest| tables(&gemma2, longest)), [whole; 2], "it is not worth it");
    // 62 layers: ten see all, 52 have a window.
    let gemma3_27b = gemma3(62);
    assert_eq!(tables(&gemma3_27b, 131_072), (1, 6, 1024));
    let groups = gemma3_27b.kv_groups_in(gemma3_27b.kv_tables(131_072));
    assert_eq!((groups.len(), groups[0].num_slots, groups[0].places.len()), (1, 10, 62));
    // Most layers see all.
    let qwen = with_windows(&(0..28).map(|layer| layer >= 21).collect::<Vec<_>>(), 1024);
    assert_eq!(tables(&qwen, 32_768), (3, 1, 1024));
    assert_eq!(tables(&with_windows(&[true; 32], 4096), 32_768), (0, 1, 4096));
    assert_eq!(tables(&llama().spec(ROWS), 1 << 20), whole);
}

#[test]
fn every_layer_has_a_place_of_its_own() {
    for model in
        [gemma3(62), with_windows(&[true, false].repeat(5), 64), with_windows(&[true; 3], 64), mixed()]
    {
        let tables = model.kv_tables(100_000);
        for group in model.kv_groups_in(tables) {
            let mut places: Vec<_> = group.places.iter().map(|place| (place.table, place.slot)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), group.places.len());
            for place in &group.places {
                let is_windowed =
                    model.layers[place.layer].attention.as_ref().unwrap().local_tokens.is_some();
                assert_eq!(place.table >= tables.num_full, is_windowed, "{place:?} of {tables:?}");
                assert!(place.table < tables.len() && place.slot < group.num_slots);
            }
        }
    }
    // A layer that sees all has no place among tables with a window.
    let none = KvTables { num_full: 0, num_windowed: 1, window_tokens: 8 };
    assert_eq!(llama().spec(ROWS).kv_groups_in(none)[0].places[0].table, 1);
}

#[test]
fn a_stage_has_the_tables_of_the_model() {
    let model = gemma3(12);
    let tables = model.kv_tables(100_000);
    assert_eq!(counts(tables), (1, 5, 1024));
    let at = |layers| ShardPlace { layers, ..ShardPlace::whole(&model) };
    let slots = |layers| {
        let footprint = model.footprint_in(&Numerics::uniform(Float::Fp32), &at(layers), tables).unwrap();
        footprint.kv.iter().map(|(group, _)| group.num_slots).collect::<Vec<_>>()
    };
    assert_eq!([0..12, 0..5, 5..6, 5..12, 3..3].map(slots), [vec![2], vec![1], vec![1], vec![2], vec![]]);
}

#[test]
fn what_a_window_has_passed_is_counted_in_whole_blocks() {
    let tables = KvTables { num_full: 1, num_windowed: 2, window_tokens: 6 };
    let passed: Vec<usize> = (0..16).map(|position| tables.num_passed(position, 4)).collect();
    assert_eq!(passed, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]);
    assert_eq!(KvTables::ONE.num_passed(1000, 4), 0);
    // The blocks of any so many tokens and of what they see.
    for num_tokens in 1..12 {
        let blocks = |first: usize| (first + num_tokens).div_ceil(4) - tables.num_passed(first, 4);
        assert_eq!((0..40).map(blocks).max(), Some(tables.window_blocks(num_tokens, 4)), "{num_tokens}");
    }
    assert_eq!((tables.num_blocks(10, 4), tables.num_blocks(3, 4)), (18, 9));
}
