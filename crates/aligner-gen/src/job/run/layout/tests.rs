use model_spec::{NamedShape, TableRows};

use super::*;

const ALL: Abilities = Abilities { tensor: Ok(()), pipeline: Ok(()), experts: Ok(()) };

fn model() -> ModelSpec {
    let shape = NamedShape::Llama3_8b.shape();
    shape.uniform.spec(TableRows { vocab: shape.padded_vocab_size, positions: 0 })
}

fn wish(tensor: Option<u32>, pipeline: Option<u32>) -> ParallelPlan {
    ParallelPlan { tensor, pipeline, ..ParallelPlan::default() }
}

fn sizes(
    wish: ParallelPlan,
    (world_size, local_size): (u32, u32),
    needed: u32,
) -> Result<(u32, u32), String> {
    let fits = |sizes: Sizes| sizes.tensor * sizes.pipeline >= needed;
    choose(&wish, Ranks { world_size, local_size }, &model(), ALL, &fits)
        .map(|sizes| (sizes.tensor, sizes.pipeline))
        .map_err(|failure| failure.sentence())
}

#[test]
fn the_smallest_that_fits_is_chosen() {
    let auto = wish(None, None);
    assert_eq!(sizes(auto, (8, 8), 1), Ok((1, 1)));
    assert_eq!(sizes(auto, (8, 8), 2), Ok((2, 1)));
    assert_eq!(sizes(auto, (8, 8), 3), Ok((4, 1)));
    // Stages only past a machine, or where heads do not divide.
    assert_eq!(sizes(auto, (16, 8), 9), Ok((8, 2)));
    assert_eq!(sizes(auto, (3, 3), 2), Ok((1, 3)));
    assert_eq!(sizes(auto, (1, 1), 2), Ok((1, 1)));
    assert_eq!(sizes(wish(Some(1), None), (4, 4), 2), Ok((1, 2)));
    assert_eq!(sizes(wish(None, Some(2)), (8, 8), 4), Ok((2, 2)));
    assert_eq!(sizes(wish(Some(2), Some(2)), (8, 8), 1), Ok((2, 2)));
}

#[test]
fn contradictions_print_all_numbers() {
    let refusal = |wish, ranks| sizes(wish, ranks, 1).unwrap_err();
    insta::assert_snapshot!(refusal(wish(Some(3), None), (6, 6)), @"`model.tensor_model_parallel_size=3`: so many ranks cannot share the heads and the MLP of this model; 1, 2, 4, 8 can");
    insta::assert_snapshot!(refusal(wish(Some(2), None), (6, 3)), @"`model.tensor_model_parallel_size=2`: the ranks that share a layer are on one machine, and there are 3 on each: set `trainer.devices` to a multiple of 2");
    insta::assert_snapshot!(refusal(wish(Some(2), Some(2)), (6, 6)), @"there are 6 ranks (`trainer.devices` x `trainer.num_nodes`), and a model takes 4, `model.tensor_model_parallel_size=2` x `model.pipeline_model_parallel_size=2`: the ranks must be a multiple of that, 8 for example");
    insta::assert_snapshot!(refusal(wish(None, Some(33)), (66, 66)), @"`model.pipeline_model_parallel_size=33`: the model has 32 layers, and each stage needs one");
    let cannot =
        Abilities { tensor: Err("not here"), pipeline: Err("nor here"), experts: Err("least of all") };
    let ranks = Ranks { world_size: 4, local_size: 4 };
    let refusal =
        |wish: ParallelPlan| choose(&wish, ranks, &model(), cannot, &|_| true).unwrap_err().sentence();
    insta::assert_snapshot!(refusal(wish(Some(2), None)), @"`model.tensor_model_parallel_size=2`: not here");
    insta::assert_snapshot!(refusal(wish(None, Some(2))), @"`model.pipeline_model_parallel_size=2`: nor here");
    assert_eq!(
        choose(&wish(None, None), ranks, &model(), cannot, &|_| false).unwrap(),
        Sizes { tensor: 1, pipeline: 1, experts: ExpertSharing::Widths }
    );
}

#[test]
fn ranks_have_the_parts_of_their_places() {
    let topology = Topology::new(2, 2, 2).unwrap();
    let numerics = Numerics::uniform(model_spec::Float::Bf16);
    let places =
        places(&model(), Sizes { tensor: 2, pipeline: 2, experts: ExpertSharing::Widths }, &numerics);
    let of = |rank| {
        let place = place_of(&places, topology, rank).unwrap();
        (place.tp_rank, place.layers)
    };
    assert_eq!([0, 1, 2, 3].map(of), [(0, 0..16), (1, 0..16), (0, 0..16), (1, 0..16)]);
    assert_eq!([4, 7].map(of), [(0, 16..32), (1, 16..32)]);
    assert_eq!(place_of(&places, topology, 8), None);
}

#[test]
fn whole_experts_need_a_model_that_has_so_many() {
    let shape = NamedShape::Qwen3_30bA3b.shape();
    let rows = TableRows { vocab: shape.padded_vocab_size, positions: 0 };
    let mixture = |num_experts| {
        let mut uniform = shape.uniform.clone();
        uniform.moe.as_mut().unwrap().experts.num_experts = num_experts;
        uniform.spec(rows)
    };
    let numerics = Numerics::uniform(model_spec::Float::Bf16);
    let choose = |model: &ModelSpec, abilities, tensor| {
        let wish = ParallelPlan { experts: ExpertSharing::Numbers, ..wish(Some(tensor), None) };
        let ranks = Ranks { world_size: 8, local_size: 8 };
        choose(&wish, ranks, model, abilities, &|_| true).map_err(|failure| failure.sentence())
    };
    let sizes = choose(&mixture(128), ALL, 4).unwrap();
    assert_eq!(sizes, Sizes { tensor: 4, pipeline: 1, experts: ExpertSharing::Numbers });
    let places = places(&mixture(128), sizes, &numerics);
    assert!(places.iter().all(ShardPlace::has_some_experts));
    let on_gpus = Abilities { experts: Err("not there"), ..ALL };
    insta::assert_snapshot!(choose(&mixture(128), on_gpus, 4).unwrap_err(), @"`model.expert_model_parallel_size=4`: not there");
    insta::assert_snapshot!(choose(&mixture(6), ALL, 4).unwrap_err(), @"`model.expert_model_parallel_size=4`: so many ranks cannot have as many of 6 experts each (`num_moe_experts`)");
    insta::assert_snapshot!(choose(&model(), ALL, 4).unwrap_err(), @"`model.expert_model_parallel_size=4`: the model has no experts; leave it out");
}
