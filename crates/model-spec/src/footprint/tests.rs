use super::*;
use crate::test_models::{ROWS, llama, moe};
use crate::{ExpertSharing, Float};

#[test]
fn bytes_are_those_of_the_tensors() {
    let model = llama().spec(ROWS);
    let elems: u64 = model.tensors().map(|tensor| tensor.num_elems()).sum();
    let whole = ShardPlace::whole(&model);
    let fp32 = model.footprint(&Numerics::uniform(Float::Fp32), &whole).unwrap();
    assert_eq!((fp32.weight_bytes, fp32.lookup_bytes), (4 * elems, 4 * ROWS.vocab * 16));
    let mut tied = model.clone();
    tied.output.tied = true;
    assert_eq!(tied.footprint(&Numerics::uniform(Float::Fp32), &whole).unwrap().lookup_bytes, 0);
    // Keys and values of 2 layers, 2 groups of 6 dimensions.
    assert_eq!(fp32.bytes_per_block(), 2 * 2 * 2 * 6 * 32 * 4);
    let bf16 = model.footprint(&Numerics::uniform(Float::Bf16), &whole).unwrap();
    let norms = 5 * 16;
    assert_eq!(
        (bf16.weight_bytes, bf16.bytes_per_block()),
        (2 * (elems + norms), fp32.bytes_per_block() / 2)
    );
    // A byte a number, and one for each key and value.
    let fp8 = model.footprint(&Numerics::uniform(Float::Bf16).with_fp8_kv(), &whole).unwrap();
    assert_eq!((fp8.weight_bytes, fp8.bytes_per_block()), (bf16.weight_bytes, 2 * 2 * 2 * (6 + 1) * 32));
}

#[test]
fn ranks_take_their_share() {
    let model = llama().spec(ROWS);
    let numerics = Numerics::uniform(Float::Fp32);
    let at = |tp_rank| ShardPlace { tp_rank, tp_size: 2, layers: 0..1, ..ShardPlace::whole(&model) };
    let [first, second] = [0, 1].map(|rank| model.footprint(&numerics, &at(rank)).unwrap());
    assert_eq!(first, second);
    assert_eq!(first.kv, [(KvGroup::of_layers(&[0], 1, 6), 2 * 6 * 32 * 4)]);
    assert!(model.footprint(&numerics, &ShardPlace { tp_size: 8, ..ShardPlace::whole(&model) }).is_err());
}

#[test]
fn every_expert_counts_and_the_router_is_held_in_float32() {
    let model = moe().spec(ROWS);
    let bytes = |numerics| model.footprint(&numerics, &ShardPlace::whole(&model)).unwrap().weight_bytes;
    let elems: u64 = model.tensors().map(|tensor| tensor.num_elems()).sum();
    let (norms, router, gate) = (5 * 16, 3 * 16 + 3, 16);
    assert_eq!(bytes(Numerics::uniform(Float::Bf16)), 2 * (elems + norms + router + gate));
    let dense = llama().spec(ROWS).tensors().map(|tensor| tensor.num_elems()).sum::<u64>();
    let (experts, shared, mlp) = (3 * 3 * 12 * 16, 3 * 8 * 16, 3 * 24 * 16);
    assert_eq!(elems, dense - mlp + experts + shared + router + gate);
    assert_eq!(model.tensor_parallel_sizes(ExpertSharing::Widths), [1, 2, 4]);
}

#[test]
fn ranks_of_whole_experts_take_these_and_their_part_of_the_rest() {
    let mut uniform = moe();
    uniform.moe.as_mut().unwrap().experts.num_experts = 4;
    let model = uniform.spec(ROWS);
    let numerics = Numerics::uniform(Float::Fp32);
    let bytes = |experts, tp_rank| {
        let at = ShardPlace { tp_rank, tp_size: 2, experts, ..ShardPlace::whole(&model) };
        model.footprint(&numerics, &at).unwrap().weight_bytes
    };
    // Two whole experts are as much as half of four.
    let of_ranks = [0, 1].map(|rank| bytes(ExpertSharing::Numbers, rank));
    assert_eq!(of_ranks, [bytes(ExpertSharing::Widths, 0); 2]);
}
