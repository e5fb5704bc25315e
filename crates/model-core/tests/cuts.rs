//! A prompt that is computed in parts has the bits of one that is computed whole, in its logits and in its cache.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::tiny::made_up_weights;
use common::{BACKENDS, EXPERTS, LEARNED, ROTARY, Runner, bits, config_of};
use model_core::{Backend, Batch, BlockId};
use model_spec::Float;

const VOCAB_SIZE: u64 = 300;
/// Tokens behind the prompt, which read its whole cache.
const NUM_BEHIND: usize = 3;

fn tokens(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|idx| (idx * 37 + seed * 11) % VOCAB_SIZE as u32).collect()
}

/// The bits of the logits after every token, computed in parts that end at `ends`; the last part is behind the prompt.
fn in_parts(runner: &mut Runner, sequence: &[u32], ends: &[usize]) -> Vec<Vec<u32>> {
    let table = runner.blocks(sequence.len());
    let neighbour = runner.blocks(sequence.len());
    let (mut start, mut logits) = (0, Vec::new());
    for &end in ends {
        let mut batch = Batch::default();
        // Another prompt before it, so that its rows do not stand where they stand alone.
        batch.push(&tokens(5, 2), 0, 0, &neighbour);
        push(&mut batch, sequence, start..end, &table);
        logits.extend(runner.forward(&batch));
        start = end;
    }
    bits(&logits)
}

fn push(batch: &mut Batch, sequence: &[u32], part: std::ops::Range<usize>, table: &[BlockId]) {
    batch.push(&sequence[part.clone()], part.start as u32, part.len() as u32, table);
}

fn check_every_cut(yaml: &str, backend: Backend, float: Float) {
    let source = made_up_weights(&config_of(yaml), VOCAB_SIZE, 0.2);
    let mut runner = Runner::new(config_of(yaml), &source, float, backend).unwrap();
    let cut_tokens = runner.model.prompt_cut_tokens().unwrap();
    let prompt_len = if cut_tokens < 32 { 71 } else { 2 * cut_tokens + 33 };
    let len = prompt_len + NUM_BEHIND;
    let sequence = tokens(len, 5);
    let whole = in_parts(&mut runner, &sequence, &[prompt_len, len]);
    for cut in (cut_tokens..prompt_len).step_by(cut_tokens) {
        let parts = in_parts(&mut runner, &sequence, &[cut, prompt_len, len]);
        assert_eq!(parts, whole, "{backend:?} {float:?}, cut at {cut}");
    }
    let ends = (cut_tokens..prompt_len).step_by(cut_tokens).chain([prompt_len, len]);
    let parts = in_parts(&mut runner, &sequence, &ends.collect::<Vec<_>>());
    assert_eq!(parts, whole, "{backend:?} {float:?}, cut everywhere");
}

#[test]
fn a_prompt_in_parts_has_the_bits_of_the_whole_at_every_cut() {
    for yaml in [ROTARY, LEARNED, EXPERTS] {
        for backend in BACKENDS {
            for float in [Float::Fp32, Float::Bf16] {
                check_every_cut(yaml, backend, float);
            }
        }
    }
}
