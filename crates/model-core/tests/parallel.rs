//! One model over several ranks has the bits of one rank: each rank is a thread here, and channels lie between them.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};

use common::tiny::{VOCAB_SIZE, config, weights};
use common::{MemorySource, rows};
use model_core::{
    AttentionSwitches, Backend, Batch, Exchange, Isa, LoadOptions, LostRank, ModelConfig, ModelError,
    ModelPart, ModelRanks, Reduction, load_part,
};
use model_spec::{Float, Numerics, ShardPlace};
use serde_json::{Value, json};

/// What one rank has of the channels: to and from each rank, in their order.
struct Channels {
    tensor_ranks: Vec<usize>,
    mine: usize,
    num_tensor_ranks: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl ModelRanks for Channels {
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, LostRank> {
        for &rank in self.tensor_ranks.iter().filter(|&&rank| rank != self.mine) {
            self.to[rank].send(mine.to_vec()).unwrap();
        }
        let of = |&rank: &usize| {
            if rank == self.mine { mine.to_vec() } else { self.from[rank].recv().unwrap() }
        };
        Ok(self.tensor_ranks.iter().map(of).collect())
    }

    fn send_to_next_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank> {
        self.to[self.mine + self.num_tensor_ranks].send(bytes.to_vec()).unwrap();
        Ok(())
    }

    fn receive_from_previous_stage(&mut self) -> Result<Vec<u8>, LostRank> {
        Ok(self.from[self.mine - self.num_tensor_ranks].recv().unwrap())
    }

    fn send_to_previous_stage(&mut self, _: &[u8]) -> Result<(), LostRank> {
        unreachable!("only GPUs ask for ways to the stage before")
    }

    fn receive_from_next_stage(&mut self) -> Result<Vec<u8>, LostRank> {
        unreachable!("only GPUs are asked for ways by the next stage")
    }
}

/// The ranks of a model, tensor rank first.
fn channels(tensor: usize, pipeline: usize) -> Vec<Channels> {
    let num_ranks = tensor * pipeline;
    let mut to: Vec<Vec<_>> = (0..num_ranks).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<_>> = (0..num_ranks).map(|_| Vec::new()).collect();
    for of_sender in &mut to {
        for of_receiver in &mut from {
            let (sender, receiver) = channel();
            of_sender.push(sender);
            of_receiver.push(receiver);
        }
    }
    let ends = to.into_iter().zip(from).enumerate();
    ends.map(|(mine, (to, from))| {
        let first = mine / tensor * tensor;
        Channels { tensor_ranks: (first..first + tensor).collect(), mine, num_tensor_ranks: tensor, to, from }
    })
    .collect()
}

fn options(float: Float, backend: Backend) -> LoadOptions {
    LoadOptions {
        numerics: Numerics::uniform(float),
        backend,
        device: tch::Device::Cpu,
        attention: AttentionSwitches::default(),
        isa: Isa::detect(),
    }
}

/// The logits of some steps, as the first rank of the last stage has them; all ranks of that stage have the same.
fn logits(
    config: &ModelConfig,
    source: &MemorySource,
    options: LoadOptions,
    (tensor, pipeline): (usize, usize),
    reduction: Reduction,
) -> Vec<Vec<u32>> {
    let num_layers = config.uniform.num_layers;
    let of_ranks: Vec<Vec<Vec<u32>>> = std::thread::scope(|scope| {
        let started: Vec<_> = channels(tensor, pipeline)
            .into_iter()
            .map(|ranks| {
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let (stage, tp_rank) = (ranks.mine / tensor, ranks.mine % tensor);
                    let layers = num_layers * stage / pipeline..num_layers * (stage + 1) / pipeline;
                    let place = ShardPlace { tp_rank: tp_rank as u32, tp_size: tensor as u32, layers };
                    let ranks: Option<Box<dyn ModelRanks>> =
                        if tensor * pipeline > 1 { Some(Box::new(ranks)) } else { None };
                    let part = ModelPart { place, reduction, ranks, exchange: Exchange::Auto };
                    steps(&mut *load_part(config.clone(), source, options, part).unwrap())
                })
            })
            .collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    let last_stage = &of_ranks[tensor * (pipeline - 1)..];
    assert!(last_stage.iter().all(|rank| *rank == last_stage[0]));
    assert!(of_ranks[..tensor * (pipeline - 1)].iter().all(Vec::is_empty));
    last_stage[0].clone()
}

/// Two prompts and some tokens behind them: the bits of their logits.
fn steps(model: &mut dyn model_core::CausalLm) -> Vec<Vec<u32>> {
    let mut cache = model.new_cache(8).unwrap();
    let prompts: [Vec<u32>; 2] =
        [(0..11).map(|idx| idx * 7 % 50).collect(), (0..5).map(|idx| 49 - idx).collect()];
    let tables = [[3, 5], [1, 0]];
    let mut seen = Vec::new();
    let mut run = |batch: &Batch| {
        let logits = model.forward(batch, &mut cache).unwrap();
        if logits.size()[1] == 0 {
            return;
        }
        let bits = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
        seen.extend(rows(&logits).into_iter().map(bits).collect::<Vec<Vec<u32>>>());
    };
    let mut batch = Batch::default();
    for (prompt, table) in prompts.iter().zip(&tables) {
        batch.push(prompt, 0, 2, table);
    }
    run(&batch);
    for step in 0..3_u32 {
        let mut batch = Batch::default();
        for (prompt, table) in prompts.iter().zip(&tables) {
            batch.push(&[step * 13 + 2], prompt.len() as u32 + step, 1, table);
        }
        run(&batch);
    }
    seen
}

fn wide(extra: &Value) -> ModelConfig {
    let mut keys = json!({
        "num_layers": 3, "num_attention_heads": 8, "num_query_groups": 2, "kv_channels": 6, "ffn_hidden_size": 48,
    });
    for (key, value) in extra.as_object().unwrap() {
        keys[key] = value.clone();
    }
    config(&keys)
}

#[test]
fn every_layout_has_the_bits_of_one_rank() {
    let kinds = [
        json!({ "normalization": "rmsnorm", "bias": false, "activation": "fast-swiglu", "position_embedding_type": "rope",
                "share_embeddings_and_output_weights": false }),
        json!({ "normalization": "rmsnorm", "bias": false, "qkv_bias": true, "qk_layernorm": true,
                "activation": "fast-swiglu", "position_embedding_type": "rope" }),
        json!({ "num_query_groups": 8, "position_embedding_type": "learned_absolute" }),
        json!({ "num_query_groups": 1, "name": "megatron_falcon_gpt", "bias": false, "position_embedding_type": "rope" }),
        json!({ "num_query_groups": 4, "position_embedding_type": "rope", "rotary_interleaved": true, "output_layer_bias": true,
                "share_embeddings_and_output_weights": false,
                "mcore_customization_config": { "parallel_attention": true, "new_decoder_architecture": true } }),
        json!({ "normalization": "rmsnorm", "bias": false, "activation": "fast-swiglu", "position_embedding_type": "rope",
                "num_moe_experts": 5, "moe_router_topk": 3, "moe_ffn_hidden_size": 24, "moe_layer_freq": [1, 0, 1],
                "moe_shared_expert_intermediate_size": 16, "moe_shared_expert_gate": true }),
    ];
    for kind in &kinds {
        let config = wide(kind);
        let source = weights(&config);
        for float in [Float::Fp32, Float::Bf16] {
            let options = options(float, Backend::Fused);
            let of = |layout| logits(&config, &source, options, layout, Reduction::Tree);
            let one_rank = of((1, 1));
            assert!(one_rank.iter().all(|row| row.len() == VOCAB_SIZE as usize));
            for layout in [(2, 1), (4, 1), (8, 1), (1, 2), (1, 3), (2, 3)] {
                assert_eq!(of(layout), one_rank, "{kind} {float:?} {layout:?}");
            }
        }
    }
}

#[test]
fn stages_of_the_plain_backend_have_the_bits_of_one_rank() {
    let config = wide(&json!({ "position_embedding_type": "rope" }));
    let source = weights(&config);
    let of =
        |layout| logits(&config, &source, options(Float::Fp32, Backend::Plain), layout, Reduction::Chain);
    assert_eq!(of((1, 3)), of((1, 1)));
}

#[test]
fn the_tree_differs_from_the_chain_by_rounding_only() {
    let config = wide(&json!({ "position_embedding_type": "rope" }));
    let source = weights(&config);
    let of = |reduction| logits(&config, &source, options(Float::Fp32, Backend::Fused), (1, 1), reduction);
    let (tree, chain) = (of(Reduction::Tree), of(Reduction::Chain));
    for (tree, chain) in tree.iter().flatten().zip(chain.iter().flatten()) {
        let (tree, chain) = (f32::from_bits(*tree), f32::from_bits(*chain));
        assert!((tree - chain).abs() <= 1e-5 * chain.abs().max(1.0), "{tree} {chain}");
    }
}

#[test]
fn parts_that_have_other_bits_are_refused() {
    let config = wide(&json!({ "position_embedding_type": "rope" }));
    let source = weights(&config);
    let refusal = |backend, reduction, tp_size| {
        let place = ShardPlace { tp_rank: 0, tp_size, layers: 0..3 };
        let part = ModelPart { place, reduction, ranks: None, exchange: Exchange::Auto };
        let error: ModelError =
            load_part(config.clone(), &source, options(Float::Fp32, backend), part).err().unwrap();
        error.to_string()
    };
    insta::assert_snapshot!(refusal(Backend::Plain, Reduction::Tree, 1), @"the plain backend is not available: libtorch's products have other bits for each number of tensor-parallel ranks (`trt_llm.enable: true` computes them)");
    insta::assert_snapshot!(refusal(Backend::Fused, Reduction::Chain, 2), @"the tensor-parallel backend is not available: ranks that share a layer add in a tree");
    insta::assert_snapshot!(refusal(Backend::Fused, Reduction::Tree, 16), @"16 ranks cannot share `model.decoder.layers.0.self_attention.linear_qkv.weight` evenly, whose 8 parts follow from `num_attention_heads: 8`, `num_query_groups: 2` and `kv_channels: 6`");
}

/// Three ranks can share these heads and this MLP, but not the pieces of their sums.
#[test]
fn ranks_that_do_not_share_the_pieces_are_refused() {
    let config = wide(&json!({
        "num_attention_heads": 6, "num_query_groups": 3, "position_embedding_type": "rope",
    }));
    let source = weights(&config);
    let place = ShardPlace { tp_rank: 0, tp_size: 3, layers: 0..3 };
    let part = ModelPart { place, reduction: Reduction::Tree, ranks: None, exchange: Exchange::Auto };
    let error = load_part(config, &source, options(Float::Fp32, Backend::Fused), part).err().unwrap();
    assert!(error.to_string().contains("so many ranks cannot share the pieces"), "{error}");
}
