use proptest::prelude::*;

use super::*;
use crate::test_models::{ROWS, gpt, gpt_oss, llama, mixed, moe};
use crate::{Activation, HeadLayout, Part, TableRows, UniformSpec};

fn place(tp_rank: u32, tp_size: u32) -> ShardPlace {
    ShardPlace { tp_rank, tp_size, experts: ExpertSharing::Widths, layers: 0..2 }
}

fn regions(model: &ModelSpec, module: Module, part: Part, rank: u32) -> String {
    let tensor = model.tensor(TensorId::in_layer(0, module, part)).unwrap();
    let regions = tensor.regions(&place(rank, 2)).unwrap();
    format!("{:?}", regions.iter().map(|region| &region.ranges).collect::<Vec<_>>())
}

#[test]
fn linear_layers_are_cut_as_megatron_cuts_them() {
    let model = llama().spec(ROWS);
    // Of two groups, two query heads, a key and a value head each, of 6 dimensions.
    assert_eq!(regions(&model, Module::Qkv, Part::Weight, 1), "[[24..48, 0..16]]");
    assert_eq!(regions(&model, Module::Proj, Part::Weight, 1), "[[0..16, 12..24]]");
    assert_eq!(regions(&model, Module::Fc1, Part::Weight, 1), "[[12..24, 0..16], [36..48, 0..16]]");
    assert_eq!(regions(&model, Module::Fc2, Part::Weight, 0), "[[0..16, 0..12]]");
    assert_eq!(regions(&model, Module::InputNorm, Part::Weight, 1), "[[0..16]]");
    let model = gpt().spec(ROWS);
    assert_eq!(regions(&model, Module::Fc1, Part::Bias, 1), "[[12..24]]");
    assert_eq!(regions(&model, Module::Fc2, Part::Bias, 1), "[[0..16]]");
}

#[test]
fn groups_are_never_cut() {
    let error = |module, tp_size| {
        let tensor = llama().spec(ROWS).tensor(TensorId::in_layer(0, module, Part::Weight)).unwrap();
        tensor.regions(&place(0, tp_size)).unwrap_err().to_string()
    };
    insta::assert_snapshot!(error(Module::Qkv, 8), @"8 ranks cannot share `model.decoder.layers.0.self_attention.linear_qkv.weight` evenly, whose 4 parts follow from `num_attention_heads: 4`, `num_query_groups: 2` and `kv_channels: 6`");
    insta::assert_snapshot!(error(Module::Fc1, 5), @"5 ranks cannot share `model.decoder.layers.0.mlp.linear_fc1.weight` evenly, whose 24 parts follow from `ffn_hidden_size: 24` with a gated `activation`");
    assert!(llama().spec(ROWS).tensors().all(|tensor| tensor.shard == Shard::Replicated
        || tensor.regions(&place(2, 2)).is_err() && tensor.regions(&place(0, 0)).is_err()));
}

#[test]
fn more_ranks_than_groups_have_their_keys_and_values_several_times() {
    let model = llama().spec(ROWS);
    let regions = |module, tp_rank| {
        let tensor = model.tensor(TensorId::in_layer(0, module, Part::Weight)).unwrap();
        let regions = tensor.regions(&place(tp_rank, 4)).unwrap();
        format!("{:?}", regions.iter().map(|region| &region.ranges).collect::<Vec<_>>())
    };
    assert_eq!(regions(Module::Qkv, 1), "[[6..12, 0..16], [12..18, 0..16], [18..24, 0..16]]");
    assert_eq!(regions(Module::Qkv, 2), "[[24..30, 0..16], [36..42, 0..16], [42..48, 0..16]]");
    assert_eq!(regions(Module::Proj, 2), "[[0..16, 12..18]]");
    let part = place(2, 4).part_of(&model).unwrap();
    let heads = HeadLayout { num_attention_heads: 1, num_query_groups: 1, kv_channels: 6 };
    assert_eq!(part.layers[0].attention.as_ref().unwrap().heads, heads);
}

#[test]
fn a_part_is_a_model_of_the_shapes_of_its_regions() {
    for (model, sizes) in
        [llama().spec(ROWS), gpt().spec(ROWS), moe().spec(ROWS), gpt_oss().spec(ROWS), mixed()]
            .map(|model| (model, [1, 2, 4]))
    {
        for (tp_size, tp_rank) in sizes.into_iter().flat_map(|size| (0..size).map(move |rank| (size, rank))) {
            let at = ShardPlace { layers: 1..2, ..place(tp_rank, tp_size) };
            let part = at.part_of(&model).unwrap();
            assert_eq!(part.layers.len(), 1);
            for tensor in model.tensors().filter(|tensor| at.holds(&model, tensor.id)) {
                let id = TensorId { layer: tensor.id.layer.map(|idx| idx - 1), ..tensor.id };
                let regions = tensor.regions(&at).unwrap();
                let num_rows: u64 = regions.iter().map(|region| region.shape()[0]).sum();
                let shape = part.tensor(id).unwrap().shape();
                assert_eq!((num_rows, &regions[0].shape()[1..]), (shape[0], &shape[1..]), "{}", tensor.name);
            }
        }
    }
}

fn with_experts(num_experts: usize) -> ModelSpec {
    let mut uniform = moe();
    uniform.moe.as_mut().unwrap().experts.num_experts = num_experts;
    uniform.spec(ROWS)
}

#[test]
fn whole_experts_are_shared_by_their_numbers() {
    let model = with_experts(4);
    let at = |tp_rank, tp_size| ShardPlace { experts: ExpertSharing::Numbers, ..place(tp_rank, tp_size) };
    let held = |place: &ShardPlace| {
        let of_experts = model.tensors().filter(|tensor| tensor.id.expert.is_some());
        of_experts.filter(|tensor| place.holds(&model, tensor.id)).collect::<Vec<_>>()
    };
    for tensor in held(&at(1, 2)) {
        assert!(tensor.id.expert >= Some(2), "{}", tensor.name);
        assert_eq!(tensor.regions(&at(1, 2)).unwrap(), [Region::whole(&tensor.shape())]);
    }
    assert_eq!([held(&at(0, 1)).len(), held(&at(0, 2)).len(), held(&at(3, 4)).len()], [8, 4, 2]);
    assert_eq!(held(&place(1, 2)).len(), 8);
    // The router is whole, and a shared expert is cut.
    let part = at(1, 2).part_of(&model).unwrap();
    let moe = part.layers[1].moe().unwrap().experts;
    assert_eq!((moe.num_experts, moe.ffn_hidden_size, moe.shared.unwrap().ffn_hidden_size), (4, 12, 4));
    insta::assert_snapshot!(at(0, 2).part_of(&with_experts(3)).unwrap_err(), @"2 ranks cannot share `model.decoder.layers.1.mlp.experts.local_experts` evenly, whose 3 parts follow from `num_moe_experts: 3`");
}

#[test]
fn whole_experts_bind_ranks_to_their_number_and_not_to_their_width() {
    let sizes = |num_experts, sharing| with_experts(num_experts).tensor_parallel_sizes(sharing);
    assert_eq!(sizes(6, ExpertSharing::Widths), [1, 2, 4]);
    assert_eq!(sizes(6, ExpertSharing::Numbers), [1, 2]);
    assert_eq!(sizes(3, ExpertSharing::Numbers), [1]);
    assert_eq!(llama().spec(ROWS).tensor_parallel_sizes(ExpertSharing::Numbers), [1, 2, 4]);
}

#[test]
fn sizes_are_those_that_share_every_layer() {
    let sizes = |queries, groups, ffn_hidden_size| {
        let heads = HeadLayout { num_attention_heads: queries, num_query_groups: groups, kv_channels: 4 };
        UniformSpec { heads, ffn_hidden_size, ..llama() }
            .spec(ROWS)
            .tensor_parallel_sizes(ExpertSharing::Widths)
    };
    assert_eq!(sizes(32, 8, 14_336), [1, 2, 4, 8]);
    assert_eq!(sizes(32, 2, 14_336), [1, 2, 4, 8]);
    assert_eq!(sizes(12, 12, 3072), [1, 2, 4]);
    assert_eq!(sizes(9, 3, 1536), [1]);
    assert_eq!(sizes(24, 3, 1536), [1]);
    assert_eq!((reduction_pieces(32), reduction_pieces(12), reduction_pieces(9)), (8, 4, 1));
}

#[test]
fn norms_across_heads_are_not_shared() {
    let attention = crate::AttentionRule { norm_across_heads: true, ..Default::default() };
    let model = UniformSpec { qk_layernorm: true, attention, ..llama() }.spec(ROWS);
    assert_eq!(model.tensor_parallel_sizes(ExpertSharing::Widths), [1]);
    let widths = [Module::QNorm, Module::KNorm]
        .map(|module| model.tensor(TensorId::in_layer(0, module, Part::Weight)).unwrap().shape());
    assert_eq!(widths, [[24], [12]]);
    insta::assert_snapshot!(place(0, 2).part_of(&model).unwrap_err(), @"2 ranks cannot share `model.decoder.layers.0.self_attention.q_layernorm.weight` evenly, whose 1 parts follow from `qk_layernorm_across_heads: true`");
}

#[test]
fn ranks_share_rows_that_do_not_divide() {
    let model = llama().spec(TableRows { vocab: 50, positions: 0 });
    let table = model.tensor(TensorId::outside(Module::WordEmbeddings, Part::Weight)).unwrap();
    let rows = |rank| table.regions(&place(rank, 4)).unwrap()[0].ranges[0].clone();
    assert_eq!([0, 1, 2, 3].map(rows), [0..12, 12..25, 25..37, 37..50]);
}

#[test]
fn stages_hold_each_tensor_once_but_for_a_tied_table() {
    for (model, num_held_twice) in [(llama().spec(ROWS), 0), (gpt().spec(ROWS), 1)] {
        let stage = |layers| ShardPlace { layers, ..place(0, 1) };
        let held =
            |place: ShardPlace| model.tensors().filter(|tensor| place.holds(&model, tensor.id)).count();
        let total = model.tensors().count();
        assert_eq!(held(stage(0..1)) + held(stage(1..2)), total + num_held_twice);
        assert_eq!(held(ShardPlace::whole(&model)), total);
    }
    let model = mixed();
    let middle = ShardPlace { layers: 1..3, ..place(0, 1) };
    assert!(
        model
            .tensors()
            .filter(|tensor| middle.holds(&model, tensor.id))
            .all(|tensor| tensor.id.layer.is_some())
    );
}

/// The tensor that ranks' regions make when each is stacked along the rows and the ranks are merged again, as numbers of
/// the elements of the whole one.
fn merged(tensor: &TensorSpec, tp_size: u32) -> Vec<u64> {
    let shape = tensor.shape();
    let columns = shape.get(1).copied().unwrap_or(1);
    let elems = |region: &Region| {
        let across = region.ranges.get(1).cloned().unwrap_or(0..1);
        let rows = region.ranges[0].clone();
        rows.flat_map(|row| across.clone().map(move |column| row * columns + column)).collect::<Vec<_>>()
    };
    let ranks: Vec<Vec<Vec<u64>>> = (0..tp_size)
        .map(|rank| tensor.regions(&place(rank, tp_size)).unwrap().iter().map(elems).collect())
        .collect();
    match tensor.shard {
        Shard::Replicated => ranks[0][0].clone(),
        Shard::Rows => ranks.iter().flat_map(|parts| parts[0].clone()).collect(),
        Shard::RowsOfHalves => {
            [0, 1].iter().flat_map(|&half| ranks.iter().flat_map(move |parts| parts[half].clone())).collect()
        }
        Shard::Columns => {
            let rank_columns = columns as usize / tp_size as usize;
            (0..shape[0] as usize)
                .flat_map(|row| {
                    let row = row * rank_columns..(row + 1) * rank_columns;
                    ranks.iter().flat_map(move |parts| parts[0][row.clone()].to_vec())
                })
                .collect()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_ranks_tile_every_tensor_in_order(
        tp_size in 1_u32..5,
        (groups, queries, channels) in (1_usize..4, 1_usize..4, 1_usize..4),
        (hidden, ffn, vocab) in (1_usize..6, 1_usize..4, 1_u64..4),
        (gated, bias) in any::<(bool, bool)>(),
    ) {
        let (ranks, base) = (tp_size as usize, if bias { gpt() } else { llama() });
        let num_query_groups = groups * ranks;
        let heads = HeadLayout {
            num_attention_heads: num_query_groups * queries, num_query_groups, kv_channels: channels,
        };
        let activation = Activation { gated, ..base.activation };
        let spec = UniformSpec { heads, activation, hidden_size: hidden, ffn_hidden_size: ffn * ranks, ..base };
        for tensor in spec.spec(TableRows { vocab: vocab * u64::from(tp_size), positions: 3 }).tensors() {
            let whole: Vec<u64> = (0..tensor.num_elems()).collect();
            prop_assert_eq!(merged(&tensor, tp_size), whole, "{}", tensor.name);
        }
    }
}
