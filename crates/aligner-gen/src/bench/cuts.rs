//! `aligner-gen bench --shape SHAPE --measures cuts`: prompts computed in parts are bitwise identical to prompts computed
//! whole.
//!
//! Prompts of several lengths are cut at every place at which the model says they may be, all in one batch, beside a
//! prompt that comes whole. Compared are the logits after every token, and after some tokens behind the prompts, which
//! read the whole cache.

use std::ops::Range;

use model_core::{BLOCK_SIZE_TOKENS, Batch, BlockId, CausalLm, KvCache};
use model_spec::blocks_for;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::workload::prompt;
use crate::exit::Failure;

/// The name of the measure.
pub(super) const MEASURE: &str = "cuts";

const PROMPT_LENS: [usize; 3] = [97, 421, 1061];
/// Tokens behind each prompt.
const NUM_BEHIND: usize = 3;
/// The prompt that comes whole beside the parts.
const NEIGHBOUR_LEN: usize = 45;
/// Cuts are no closer than this: more places would show no more.
const MIN_CUT_TOKENS: usize = 32;
/// Rows of a decode step that the model is made ready for, so that small parts take the path that they take in an engine.
const DECODE_ROWS: usize = 64;

/// A sequence and its place in the cache.
struct Sequence {
    tokens: Vec<u32>,
    table: Vec<BlockId>,
}

/// Compares, and says how much.
///
/// # Errors
/// When a bit differs, when the model's prompts may not be cut, or when the model fails.
pub(super) fn run(model: &mut dyn CausalLm, vocab_size: usize, is_device: bool) -> Result<Value, Failure> {
    let Some(cut_tokens) = model.prompt_cut_tokens() else {
        return Err(Failure::usage("this attention computes prompts whole: there is nothing to compare"));
    };
    if is_device {
        let longest = PROMPT_LENS.into_iter().max().unwrap_or(0) + NUM_BEHIND;
        model.reserve_decode(DECODE_ROWS, blocks_for(longest, BLOCK_SIZE_TOKENS))?;
    }
    let sequences = sequences(vocab_size);
    let step = cut_tokens.max(MIN_CUT_TOKENS);
    let longest = PROMPT_LENS.into_iter().max().unwrap_or(0);
    let whole = in_parts(model, &sequences, None)?;
    let cuts: Vec<usize> = (step..longest).step_by(step).collect();
    let mut differing = Vec::new();
    for &cut in &cuts {
        let parts = in_parts(model, &sequences, Some(cut))?;
        for (len, (part, whole)) in PROMPT_LENS.iter().zip(parts.iter().zip(&whole)) {
            let bits = |logits: &Tensor| logits.f_view_dtype(Kind::Int);
            let is_same = bits(part).and_then(|part| part.f_equal(&bits(whole)?));
            if !is_same.map_err(anyhow::Error::from)? {
                differing.push(format!("{len} tokens at {cut}"));
            }
        }
    }
    if !differing.is_empty() {
        let list = differing.join(", ");
        return Err(
            anyhow::anyhow!("prompts in parts are not bitwise identical to whole ones: {list}").into()
        );
    }
    Ok(json!({
        "case": MEASURE,
        "cut_tokens": cut_tokens,
        "cuts": cuts.len(),
        "prompts": PROMPT_LENS,
        "differing": 0,
    }))
}

/// The prompts with what comes behind them, and last the neighbour. Blocks of one are not neighbours in the cache.
fn sequences(vocab_size: usize) -> Vec<Sequence> {
    let lens = PROMPT_LENS.map(|len| len + NUM_BEHIND).into_iter().chain([NEIGHBOUR_LEN]);
    let mut end = 0;
    let sequences = (0..).zip(lens).map(|(idx, len)| {
        let start = end;
        end += blocks_for(len, BLOCK_SIZE_TOKENS) as BlockId;
        Sequence { tokens: prompt(idx, len, vocab_size), table: (start..end).rev().collect() }
    });
    sequences.collect()
}

/// The logits after every token of each prompt and behind it, computed whole or with this cut, in a fresh cache.
fn in_parts(
    model: &mut dyn CausalLm,
    sequences: &[Sequence],
    cut: Option<usize>,
) -> Result<Vec<Tensor>, Failure> {
    let num_blocks = sequences.iter().map(|sequence| sequence.table.len()).sum();
    let mut cache = model.new_cache(num_blocks)?;
    let mut logits: Vec<Vec<Tensor>> = PROMPT_LENS.iter().map(|_| Vec::new()).collect();
    let mut forward = |part_of: &dyn Fn(usize) -> Range<usize>, neighbour: Option<&Sequence>| {
        let parts = PROMPT_LENS.iter().map(|&len| part_of(len)).collect::<Vec<_>>();
        add_logits(model, &mut cache, sequences, &parts, neighbour, &mut logits)
    };
    match cut {
        None => forward(&|len| 0..len, None)?,
        Some(cut) => {
            forward(&|len| 0..cut.min(len), None)?;
            forward(&|len| cut.min(len)..len, sequences.last())?;
        }
    }
    forward(&|len| len..len + NUM_BEHIND, None)?;
    let joined = logits.iter().map(|parts| Ok(Tensor::f_cat(parts, 0).map_err(anyhow::Error::from)?));
    joined.collect()
}

/// Computes a part of each prompt, if it has one, and keeps the logits after all its tokens.
fn add_logits(
    model: &mut dyn CausalLm,
    cache: &mut KvCache,
    sequences: &[Sequence],
    parts: &[Range<usize>],
    neighbour: Option<&Sequence>,
    logits: &mut [Vec<Tensor>],
) -> Result<(), Failure> {
    let mut batch = Batch::default();
    if let Some(Sequence { tokens, table }) = neighbour {
        batch.push(tokens, 0, 0, table);
    }
    for (sequence, part) in sequences.iter().zip(parts).filter(|(_, part)| !part.is_empty()) {
        let tokens = sequence.tokens.get(part.clone()).unwrap_or_default();
        batch.push(tokens, part.start as u32, part.len() as u32, &sequence.table);
    }
    let all = model.forward(&batch, cache)?; // [num_tokens of the prompts, padded_vocab_size]
    let mut start = 0;
    for (logits, part) in logits.iter_mut().zip(parts).filter(|(_, part)| !part.is_empty()) {
        let rows = all.f_narrow(0, start, part.len() as i64).map_err(anyhow::Error::from)?;
        logits.push(rows);
        start += part.len() as i64;
    }
    Ok(())
}
