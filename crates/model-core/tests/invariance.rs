//! A row's bits must not depend on the batch, at the widths of a real model and with libtorch on two threads.
//!
//! Apart from the other tests because the number of threads is the process's.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::tiny::made_up_weights;
use common::{BACKENDS, Runner, bits, config_of};
use model_spec::{Float, Numerics};

const VOCAB_SIZE: u64 = 500;

/// One layer of SmolLM2-135M's shape, with a small vocabulary.
const LLAMA: &str = "
num_layers: 1
hidden_size: 576
ffn_hidden_size: 1536
num_attention_heads: 9
num_query_groups: 3
encoder_seq_length: 256
normalization: rmsnorm
bias: false
activation: fast-swiglu
position_embedding_type: rope
";

/// The same sizes as Falcon-7B has its layers: one norm, one key-value head.
const FALCON: &str = "
name: megatron_falcon_gpt
num_layers: 1
hidden_size: 576
ffn_hidden_size: 2304
num_attention_heads: 9
num_query_groups: 1
encoder_seq_length: 256
bias: false
position_embedding_type: rope
";

/// As GPT-J, whose pairs are interleaved and whose output layer has a bias, but with two norms like GPT-NeoX.
const GPTJ: &str = "
num_layers: 1
hidden_size: 576
num_attention_heads: 3
encoder_seq_length: 256
activation: gelu
openai_gelu: true
position_embedding_type: rope
rotary_interleaved: true
rotary_percentage: 0.25
share_embeddings_and_output_weights: false
output_layer_bias: true
mcore_customization_config:
  parallel_attention: true
  new_decoder_architecture: true
";

/// Heads as wide as those of Qwen3, with its norms, and the biases that Qwen2 has instead.
const QWEN: &str = "
num_layers: 1
hidden_size: 576
ffn_hidden_size: 1536
num_attention_heads: 6
num_query_groups: 2
kv_channels: 128
encoder_seq_length: 256
normalization: rmsnorm
bias: false
qkv_bias: true
qk_layernorm: true
activation: fast-swiglu
position_embedding_type: rope
";

/// Experts of a width that no vector divides, beside a shared one.
const EXPERTS: &str = "
num_layers: 1
hidden_size: 576
ffn_hidden_size: 1536
num_attention_heads: 9
num_query_groups: 3
encoder_seq_length: 256
normalization: rmsnorm
bias: false
activation: fast-swiglu
position_embedding_type: rope
num_moe_experts: 8
moe_router_topk: 3
moe_router_pre_softmax: true
moe_ffn_hidden_size: 200
moe_shared_expert_intermediate_size: 328
moe_shared_expert_gate: true
";

#[test]
fn bits_do_not_depend_on_the_batch_at_real_widths() {
    for yaml in [LLAMA, FALCON, GPTJ, QWEN, EXPERTS] {
        assert_bits_do_not_depend_on_the_batch(yaml);
    }
}

fn assert_bits_do_not_depend_on_the_batch(yaml: &str) {
    let source = made_up_weights(&config_of(yaml), VOCAB_SIZE, 0.2);
    let sequence =
        |len: u32, seed: u32| (0..len).map(|idx| (idx * 37 + seed) % VOCAB_SIZE as u32).collect::<Vec<_>>();
    let probe = sequence(45, 3);
    let [fp32, bf16] = [Float::Fp32, Float::Bf16].map(Numerics::uniform);
    let quantized =
        [fp32.with_fp8_weights(), bf16.with_fp8_weights(), fp32.with_fp8_kv(), bf16.with_fp8_kv()];
    // One shape has all that FP8 meets: biases, grouped heads, a gated MLP; another has experts.
    let is_quantized = [QWEN, EXPERTS].contains(&yaml);
    let formats = [fp32, bf16].into_iter().chain(quantized.into_iter().filter(|_| is_quantized));
    let formats: Vec<Numerics> = formats.collect();
    let cases = BACKENDS.iter().flat_map(|&backend| formats.iter().map(move |&numerics| (numerics, backend)));
    for (numerics, backend) in cases {
        let mut runner = Runner::with_numerics(config_of(yaml), &source, numerics, backend).unwrap();
        tch::set_num_threads(2);
        let table = runner.blocks(probe.len() + 1);
        let alone = runner.prefill(&[&probe], std::slice::from_ref(&table));
        let alone_next = runner.decode(&[(5, probe.len() as u32, table.clone())]);
        // Ranks that share a machine share its cores.
        tch::set_num_threads(1);
        let on_one = runner.prefill(&[&probe], std::slice::from_ref(&table));
        assert_eq!(bits(&on_one), bits(&alone), "{backend:?} {numerics} prefill on one thread");
        let on_one = runner.decode(&[(5, probe.len() as u32, table)]);
        assert_eq!(bits(&on_one), bits(&alone_next), "{backend:?} {numerics} decode on one thread");
        tch::set_num_threads(2);
        for place in 0..5 {
            let mut batch = [31, 1, 64, 17].map(|len| sequence(len, len)).to_vec();
            batch.insert(place, probe.clone());
            let tables = batch.iter().map(|tokens| runner.blocks(tokens.len() + 1)).collect::<Vec<_>>();
            let sequences = batch.iter().map(Vec::as_slice).collect::<Vec<_>>();
            let logits = runner.prefill(&sequences, &tables);
            assert_eq!(bits(&logits[place..=place]), bits(&alone), "{backend:?} {numerics} prefill {place}");
            let steps = batch
                .iter()
                .zip(tables)
                .map(|(tokens, table)| (5, tokens.len() as u32, table))
                .collect::<Vec<_>>();
            let logits = runner.decode(&steps);
            assert_eq!(
                bits(&logits[place..=place]),
                bits(&alone_next),
                "{backend:?} {numerics} decode {place}"
            );
        }
    }
}
