//! `aligner-gen score`: log-probabilities of given responses, with the bits that a job would give them.
//!
//! The engine itself goes through the responses. A proposer drafts what is known to follow, so that steps compute many
//! tokens of each response where the kernels give several rows of a response the bits of single steps; a sampler accepts
//! all of it and says how likely it was. What prompts begin with in common is computed once.

mod chunks;
mod lines;
mod of_job;
mod scorer;

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Context;
use engine::{Completion, Engine, Foresight, Request, Supply};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nemo_format::Checkpoint;

use crate::config::cli::ScoreArgs;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::checkpoint::{OpenTokenizer, model_config};
use crate::model::known_texts::Texts;
use crate::output::{WholeFile, is_same_file};
use chunks::{Chunk, Chunks, Input};
use lines::{ScoredLine, Scoring};
use scorer::Scorer;

/// Scores a file.
pub(crate) fn run(arguments: &ScoreArgs) -> Result<(), Failure> {
    if is_same_file(&arguments.input, &arguments.output) {
        return Err(Failure::usage(format!(
            "`--output` is `--input`, `{}`: name another file",
            arguments.input.display()
        )));
    }
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let config = model_config(checkpoint.model_config())?;
    config.refuse_beyond_window()?;
    let opened = OpenTokenizer::open(&checkpoint, checkpoint.model_config())?;
    let scoring = Scoring::new(arguments, &opened, config.encoder_seq_length)?;
    let input = Input::read(&arguments.input, &scoring)?;
    let vocab_size = opened.tokenizer.vocab_size();
    let mut chunks = Chunks::open(&arguments.input, &scoring)?;
    let scorer = Scorer { arguments, checkpoint: &checkpoint, config, vocab_size, input };
    scorer.run(&mut chunks, |engine, texts, chunks| {
        score_file(arguments, &scoring, (engine, texts), chunks, input.num_responses)
    })
}

fn score_file(
    arguments: &ScoreArgs,
    scoring: &Scoring<'_>,
    (engine, texts): (&mut Engine, &Texts),
    chunks: &mut Chunks<'_>,
    num_responses: usize,
) -> Result<(), Failure> {
    let cannot_write = || format!("cannot write `{}`", arguments.output.display());
    let out = WholeFile::create(&arguments.output).with_context(cannot_write);
    let mut out = out.exit_with(ExitStatus::Failed)?;
    let bar =
        ProgressBar::with_draw_target(Some(num_responses as u64), ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {human_pos}/{human_len} responses ETA {eta}") {
        bar.set_style(style);
    }
    while let Some(chunk) = chunks.next()? {
        for line in score_chunk((engine, texts), &chunk, &bar)? {
            out.write_all(&line.to_json(scoring)?).with_context(cannot_write)?;
        }
    }
    bar.finish_and_clear();
    out.finish().with_context(cannot_write)?;
    Ok(())
}

/// Scores some lines. Every chunk is a run of the engine, also one with nothing to compute: ranks that are led count them.
fn score_chunk(
    (engine, texts): (&mut Engine, &Texts),
    chunk: &Chunk,
    bar: &ProgressBar,
) -> Result<Vec<ScoredLine>, Failure> {
    let lines = &chunk.lines;
    let mut scored: Vec<ScoredLine> = lines.iter().map(ScoredLine::new).collect();
    let places = chunk.places();
    texts.put(chunk.texts(&places))?;
    let mut requests = (0_u64..).zip(&places).map(|(sample_idx, &(line, response))| Request {
        sample_idx,
        prompt: lines[line].prompt.clone(),
        num_responses: 1,
        max_new_tokens: lines[line].responses[response].len() as u32,
        own: None,
        foresight: Foresight::default(),
    });
    engine.run(
        &mut |_| Supply::from(requests.next()),
        &mut |Completion { sample_idx, logprobs, top_logprobs, .. }| {
            bar.inc(1);
            if let Some(&(line, response)) = places.get(sample_idx as usize) {
                scored[line].take(response, logprobs.unwrap_or_default(), top_logprobs.unwrap_or_default());
            }
            ControlFlow::Continue(())
        },
        &|| false,
    )?;
    Ok(scored)
}
