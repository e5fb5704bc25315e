//! `aligner-gen bench --shape SHAPE --measures scored:ROWS`: how fast given responses are scored, beside prompts of the same
//! length.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use engine::{Engine, Request};
use model_spec::NamedShape;
use sampling::StopConditions;
use serde_json::{Value, json};

use super::cases::{Opened, round};
use super::workload::{prompt, request};
use crate::config::cli::BenchArgs;
use crate::exit::Failure;
use crate::model::checkpoint::TokenTable;
use crate::model::known_texts::{KnowingModel, Known, TextSizes, Texts};

const PROMPT_TOKENS: usize = 128;
const RESPONSE_TOKENS: usize = 384;
/// The first of which warms up.
const REPEATS: usize = 4;

/// How many responses the measure of this name has; `None` for other measures.
pub(super) fn num_rows_of(measure: &str) -> Option<usize> {
    measure.strip_prefix("scored:")?.parse().ok().filter(|&num_rows| num_rows > 0)
}

/// Measures both.
pub(super) fn run(arguments: &BenchArgs, shape: NamedShape, num_rows: usize) -> Result<Value, Failure> {
    let vocab_size = shape.shape().padded_vocab_size as usize;
    let of = |prompt_tokens, response_tokens: usize| -> Vec<Request> {
        (0..num_rows as u64)
            .map(|idx| request(idx, prompt_tokens, response_tokens as u32, vocab_size))
            .collect()
    };
    let scored = of(PROMPT_TOKENS, RESPONSE_TOKENS);
    let prompts = of(PROMPT_TOKENS + RESPONSE_TOKENS - 1, 1);
    let opened = Opened { arguments, shape, requests: &scored, max_num_seqs: num_rows };
    let (model, options, limits) = opened.load()?;
    let longest_tokens = PROMPT_TOKENS + RESPONSE_TOKENS;
    let knowing = KnowingModel { model, options, limits, vocab_size, num_top: 0, longest_tokens };
    let sizes = TextSizes { most_texts: num_rows, most_tokens: num_rows * RESPONSE_TOKENS };
    let (executor, texts) = knowing.executor(sizes, None)?;
    let tokens = Arc::new(TokenTable::unknown());
    let engine = Engine::with_executor(executor, StopConditions::default(), tokens, limits)?;
    let mut engine = engine.with_proposer(Box::new(Known::new(&texts)));
    let [mut best_scored, mut best_prompts] = [0.0_f64; 2];
    for repeat in 0..REPEATS {
        let of_scored = tokens_per_s(&mut engine, &texts, &scored, vocab_size)?;
        let of_prompts = tokens_per_s(&mut engine, &texts, &prompts, vocab_size)?;
        if repeat > 0 {
            (best_scored, best_prompts) = (best_scored.max(of_scored), best_prompts.max(of_prompts));
        }
    }
    Ok(json!({
        "case": format!("scored:{num_rows}"),
        "tokens": num_rows * longest_tokens,
        "tokens_per_s": round(best_scored),
        "prompt_tokens_per_s": round(best_prompts),
        "percent_of_prompts": round(100.0 * best_scored / best_prompts),
    }))
}

/// Of prompts and responses.
fn tokens_per_s(
    engine: &mut Engine,
    texts: &Texts,
    requests: &[Request],
    vocab_size: usize,
) -> Result<f64, Failure> {
    let text = |request: &Request| {
        prompt(request.sample_idx + (1 << 20), request.max_new_tokens as usize, vocab_size)
    };
    texts.put(requests.iter().map(text).collect())?;
    let num_tokens: usize =
        requests.iter().map(|request| request.prompt.len() + request.max_new_tokens as usize).sum();
    let started = Instant::now();
    let mut left = requests.iter().cloned();
    let mut num_scored = 0;
    engine.run(
        &mut |_| left.next().into(),
        &mut |completion| {
            num_scored += completion.logprobs.map_or(0, |logprobs| logprobs.len());
            ControlFlow::Continue(())
        },
        &|| false,
    )?;
    let wanted: usize = requests.iter().map(|request| request.max_new_tokens as usize).sum();
    if num_scored != wanted {
        return Err(anyhow::anyhow!("{num_scored} tokens were scored of {wanted}").into());
    }
    Ok(num_tokens as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_have_names() {
        assert_eq!(
            ["scored:64", "scored:0", "scored", "bulk"].map(num_rows_of),
            [Some(64), None, None, None]
        );
    }
}
