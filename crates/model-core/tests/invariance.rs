//! A row's bits must not depend on the batch, at the widths of a real model and with libtorch on two threads.
//!
//! Apart from the other tests because the number of threads is the process's.

mod common;

use common::{BACKENDS, MemorySource, Runner, bits, config_of};
use model_core::{LogitsRows, Precision};

/// One layer of SmolLM2-135M's shape, with a small vocabulary.
const CONFIG: &str = "
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

fn weights() -> MemorySource {
    let shapes: [(&str, &[u64]); 8] = [
        ("model.embedding.word_embeddings.weight", &[500, 576]),
        ("model.decoder.final_layernorm.weight", &[576]),
        ("model.decoder.layers.0.self_attention.linear_qkv.weight", &[960, 576]),
        ("model.decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", &[576]),
        ("model.decoder.layers.0.self_attention.linear_proj.weight", &[576, 576]),
        ("model.decoder.layers.0.mlp.linear_fc1.weight", &[3072, 576]),
        ("model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight", &[576]),
        ("model.decoder.layers.0.mlp.linear_fc2.weight", &[576, 1536]),
    ];
    let mut source = MemorySource::default();
    let mut state = 1_u64;
    for (name, shape) in shapes {
        let values = (0..shape.iter().product::<u64>())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.2
            })
            .collect::<Vec<_>>();
        source.insert(name, shape, &values);
    }
    source
}

#[test]
fn bits_do_not_depend_on_the_batch_at_real_widths() {
    let source = weights();
    let sequence = |len: u32, seed: u32| (0..len).map(|idx| (idx * 37 + seed) % 500).collect::<Vec<_>>();
    let probe = sequence(45, 3);
    let cases = BACKENDS.iter().flat_map(|&backend| [(Precision::Fp32, backend), (Precision::Bf16, backend)]);
    for (precision, backend) in cases {
        let mut runner = Runner::new(config_of(CONFIG), &source, precision, backend).unwrap();
        tch::set_num_threads(2);
        let table = runner.blocks(probe.len() + 1);
        let alone = runner.prefill(&[&probe], vec![table.clone()], LogitsRows::Last);
        let alone_next = runner.decode(&[(5, probe.len() as u32, table)]);
        for place in 0..5 {
            let mut batch = [31, 1, 64, 17].map(|len| sequence(len, len)).to_vec();
            batch.insert(place, probe.clone());
            let tables = batch.iter().map(|tokens| runner.blocks(tokens.len() + 1)).collect::<Vec<_>>();
            let sequences = batch.iter().map(Vec::as_slice).collect::<Vec<_>>();
            let logits = runner.prefill(&sequences, tables.clone(), LogitsRows::Last);
            assert_eq!(
                bits(&logits[place..=place]),
                bits(&alone),
                "{backend:?} {precision:?} prefill {place}"
            );
            let steps = batch
                .iter()
                .zip(tables)
                .map(|(tokens, table)| (5, tokens.len() as u32, table))
                .collect::<Vec<_>>();
            let logits = runner.decode(&steps);
            assert_eq!(
                bits(&logits[place..=place]),
                bits(&alone_next),
                "{backend:?} {precision:?} decode {place}"
            );
        }
    }
}
