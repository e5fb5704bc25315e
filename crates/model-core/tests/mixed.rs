//! Spans of every kind in one batch: each gets the bits that it gets in a step of its own.

mod common;

use common::tiny::made_up_weights;
use common::{BACKENDS, LEARNED, ROTARY, Runner, bits, config_of, max_difference};
use model_core::{Backend, Batch, BlockId};
use model_spec::Float;

const VOCAB_SIZE: u64 = 300;
/// Rounding of sums whose parts are cut at other places.
const TOLERANCE: f32 = 2e-4;

fn tokens(len: u32, seed: u32) -> Vec<u32> {
    (0..len).map(|idx| (idx * 37 + seed * 11) % VOCAB_SIZE as u32).collect()
}

/// A span: its tokens, how many are cached before them, how many of them get logits.
struct Part {
    tokens: Vec<u32>,
    context_len: u32,
    num_logits: u32,
    table: Vec<BlockId>,
}

/// A prompt, a chunk in the middle of one, its last chunk, a decoded token and four tokens to verify, each of a sequence
/// whose tokens before them are cached.
fn parts(runner: &mut Runner) -> Vec<Part> {
    let sequence = tokens(90, 5);
    [(0, 41, 1), (33, 20, 0), (53, 37, 1), (64, 1, 1), (70, 4, 4)]
        .into_iter()
        .map(|(context_len, query_len, num_logits)| {
            let table = runner.blocks(sequence.len());
            if context_len > 0 {
                let _ = runner.prefill(&[&sequence[..context_len]], std::slice::from_ref(&table));
            }
            let tokens = sequence[context_len..context_len + query_len].to_vec();
            Part { tokens, context_len: context_len as u32, num_logits, table }
        })
        .collect()
}

fn batch<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Batch {
    let mut batch = Batch::default();
    for part in parts {
        batch.push(&part.tokens, part.context_len, part.num_logits, &part.table);
    }
    batch
}

#[test]
fn a_mixed_batch_has_the_bits_of_separate_steps() {
    for yaml in [ROTARY, LEARNED] {
        let source = made_up_weights(&config_of(yaml), VOCAB_SIZE, 0.2);
        for backend in BACKENDS {
            for float in [Float::Fp32, Float::Bf16] {
                let mut runner = Runner::new(config_of(yaml), &source, float, backend).unwrap();
                let mut parts = parts(&mut runner);
                let separate: Vec<_> = parts.iter().map(|part| runner.forward(&batch([part]))).collect();
                assert_eq!(separate.iter().map(Vec::len).collect::<Vec<_>>(), [1, 0, 1, 1, 4]);
                let mixed = runner.forward(&batch(&parts));
                assert_eq!(bits(&mixed), bits(&separate.concat()), "{backend:?} {float:?}");
                parts.reverse();
                let reversed: Vec<_> = separate.iter().rev().flatten().cloned().collect();
                let mixed = runner.forward(&batch(&parts));
                assert_eq!(bits(&mixed), bits(&reversed), "{backend:?} {float:?}, reversed");
            }
        }
    }
}

#[test]
fn chunks_and_verified_tokens_are_those_of_the_whole_sequence() {
    for yaml in [ROTARY, LEARNED] {
        let source = made_up_weights(&config_of(yaml), VOCAB_SIZE, 0.2);
        for backend in BACKENDS {
            let mut runner = Runner::new(config_of(yaml), &source, Float::Fp32, backend).unwrap();
            let sequence = tokens(90, 5);
            let whole = runner.all_logits(&sequence);
            let parts = parts(&mut runner);
            for part in parts.iter().filter(|part| part.num_logits > 0) {
                let end = part.context_len as usize + part.tokens.len();
                let logits = runner.forward(&batch([part]));
                let expect = &whole[end - part.num_logits as usize..end];
                let difference = max_difference(&logits, expect);
                assert!(difference < TOLERANCE, "{backend:?} at {}: {difference}", part.context_len);
            }
        }
    }
}

/// The logits behind each of `num_tokens` tokens: computed at once, and one after the other.
fn together_and_alone(runner: &mut Runner, context_len: usize, num_tokens: usize) -> [Vec<Vec<f32>>; 2] {
    let sequence = tokens((context_len + num_tokens) as u32, 5);
    [num_tokens, 1].map(|query_len| {
        let table = runner.blocks(sequence.len());
        let _ = runner.prefill(&[&sequence[..context_len]], std::slice::from_ref(&table));
        let starts = (context_len..sequence.len()).step_by(query_len);
        let mut logits = Vec::new();
        for start in starts {
            let mut batch = Batch::default();
            batch.push(&sequence[start..start + query_len], start as u32, query_len as u32, &table);
            logits.extend(runner.forward(&batch));
        }
        logits
    })
}

#[test]
fn drafts_are_verified_where_they_have_the_bits_of_decoded_tokens() {
    for backend in BACKENDS {
        let mut num_different = 0;
        for yaml in [ROTARY, LEARNED] {
            let source = made_up_weights(&config_of(yaml), VOCAB_SIZE, 0.2);
            for float in [Float::Fp32, Float::Bf16] {
                let mut runner = Runner::new(config_of(yaml), &source, float, backend).unwrap();
                assert_eq!(runner.model.verifies_drafts(), backend == Backend::Fused);
                for (context_len, num_tokens) in [(1, 2), (31, 3), (40, 8), (60, 17), (64, 33)] {
                    let [together, alone] = together_and_alone(&mut runner, context_len, num_tokens);
                    assert!(
                        max_difference(&together, &alone)
                            < if float == Float::Fp32 { TOLERANCE } else { 0.2 }
                    );
                    num_different += usize::from(bits(&together) != bits(&alone));
                }
            }
        }
        // libtorch chooses another sum for other numbers of rows.
        assert_eq!(num_different == 0, backend == Backend::Fused, "{backend:?}: {num_different}");
    }
}
