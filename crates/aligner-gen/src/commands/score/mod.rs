//! `aligner-gen score`: log-probabilities of given responses, with the bits that a job would give them.
//!
//! The engine itself goes through the responses. A proposer drafts what is known to follow, so that steps compute many
//! tokens of each response where the kernels give several rows of a response the bits of single steps; a sampler accepts
//! all of it and says how likely it was. What prompts begin with in common is computed once.

mod lines;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use engine::{Completion, Draftable, Engine, Foresight, Goal, Proposer, Request, SeqId, StepTime, Supply};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_core::{Backend, LoadOptions, Reduction};
use model_spec::ShardPlace;
use nemo_format::Checkpoint;
use sampling::{ForcedSampler, ForcedTexts, StopConditions};

use crate::config::cli::{BackendArg, DeviceArg, ScoreArgs};
use crate::config::plan::RoomPlan;
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::checkpoint::{OpenTokenizer, TokenTable, load_model, model_config};
use crate::model::memory::{Demand, MemoryPlan, Neighbours};
use lines::{ScoredLine, Scoring, TokenizedLine};

/// Responses that are scored in one run of the engine.
const CHUNK_RESPONSES: usize = 4096;

/// Scores a file.
pub(crate) fn run(arguments: &ScoreArgs) -> Result<(), Failure> {
    if arguments.device == DeviceArg::Cuda && arguments.backend == BackendArg::Fused {
        return Err(Failure::usage(
            "`score` does not run with the fused kernels of a GPU yet, whose sampler takes no given tokens: use `--backend \
             plain`, or `--device cpu`",
        ));
    }
    let numerics = arguments.numbers.numerics()?;
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let config = model_config(checkpoint.model_config())?;
    config.refuse_beyond_window()?;
    let opened = OpenTokenizer::open(&checkpoint, checkpoint.model_config())?;
    let scoring = Scoring::new(arguments, &opened, config.encoder_seq_length)?;
    let input = read_input(&arguments.input, &scoring)?;
    let device = arguments.device.open()?;
    let backend: Backend = arguments.backend.into();
    let options =
        LoadOptions { numerics, backend, device, attention: env::attention_switches(), isa: env::isa()? };
    let demand = Demand {
        longest_sequence_tokens: input.longest_tokens.max(1),
        num_sequences: input.num_responses.max(1),
        neighbours: Neighbours { num_on_device: 1, num_on_host: 1 },
        limits: RoomPlan::default(),
    };
    let whole = ShardPlace::whole(&config.spec_of(checkpoint.tensors()));
    let memory = MemoryPlan::new(&checkpoint, &config, options, (&whole, Reduction::Chain), demand)?;
    let model = load_model(&checkpoint, config, options)?;
    let vocab_size = opened.tokenizer.vocab_size().min(model.padded_vocab_size());
    let texts = ForcedTexts::default();
    let sampler = ForcedSampler::new(Arc::clone(&texts), vocab_size, arguments.top_logprobs)?;
    let tokens = Arc::new(TokenTable::unknown());
    let engine = Engine::new(model, Box::new(sampler), StopConditions::default(), tokens, memory.limits)?;
    let mut engine = engine.with_proposer(Box::new(Known::new(Arc::clone(&texts))));
    score_file(arguments, &scoring, &mut engine, &texts, input.num_responses)
}

/// What is known of the input before anything is computed.
struct Input {
    num_responses: usize,
    longest_tokens: usize,
}

/// Reads and checks the whole file, so that nothing is computed for one that has a fault in its last line.
fn read_input(path: &Path, scoring: &Scoring<'_>) -> Result<Input, Failure> {
    let mut input = Input { num_responses: 0, longest_tokens: 0 };
    for_each_line(path, scoring, |line| {
        let lengths = line.responses.iter().map(|response| line.prompt.len() + response.len());
        input.longest_tokens = lengths.chain([input.longest_tokens]).max().unwrap_or(0);
        input.num_responses += line.responses.len();
        Ok(())
    })?;
    if input.num_responses == 0 {
        return Err(anyhow!("`{}` holds no responses to score", path.display())).exit_with(ExitStatus::Data);
    }
    Ok(input)
}

fn for_each_line(
    path: &Path,
    scoring: &Scoring<'_>,
    mut consume: impl FnMut(TokenizedLine) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cannot_read = || format!("cannot read `{}`", path.display());
    let file = File::open(path).with_context(cannot_read).exit_with(ExitStatus::Data)?;
    for (number, bytes) in (1_u64..).zip(BufReader::new(file).split(b'\n')) {
        let bytes = bytes.with_context(cannot_read).exit_with(ExitStatus::Data)?;
        let line = scoring
            .tokenized(&bytes)
            .map_err(|reason| anyhow!("line {number} of `{}`: {reason}", path.display()))
            .exit_with(ExitStatus::Data)?;
        consume(line)?;
    }
    Ok(())
}

fn score_file(
    arguments: &ScoreArgs,
    scoring: &Scoring<'_>,
    engine: &mut Engine,
    texts: &ForcedTexts,
    num_responses: usize,
) -> Result<(), Failure> {
    let cannot_write = || format!("cannot write `{}`", arguments.output.display());
    let file = File::create(&arguments.output).with_context(cannot_write).exit_with(ExitStatus::Failed)?;
    let mut out = BufWriter::new(file);
    let mut chunk: Vec<TokenizedLine> = Vec::new();
    let mut index = 0;
    let bar =
        ProgressBar::with_draw_target(Some(num_responses as u64), ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {human_pos}/{human_len} responses ETA {eta}") {
        bar.set_style(style);
    }
    let mut flush = |chunk: &mut Vec<TokenizedLine>| -> Result<(), Failure> {
        for line in score_chunk(engine, texts, chunk, index, &bar)? {
            out.write_all(&line.to_json(scoring)?).with_context(cannot_write)?;
        }
        index += chunk.len() as u64;
        chunk.clear();
        Ok(())
    };
    let mut num_waiting = 0;
    for_each_line(&arguments.input, scoring, |line| {
        num_waiting += line.responses.len();
        chunk.push(line);
        if num_waiting >= CHUNK_RESPONSES {
            num_waiting = 0;
            flush(&mut chunk)?;
        }
        Ok(())
    })?;
    flush(&mut chunk)?;
    bar.finish_and_clear();
    out.flush().with_context(cannot_write)?;
    Ok(())
}

/// Scores some lines; `first_index`: how many came before.
fn score_chunk(
    engine: &mut Engine,
    texts: &ForcedTexts,
    lines: &[TokenizedLine],
    first_index: u64,
    bar: &ProgressBar,
) -> Result<Vec<ScoredLine>, Failure> {
    let mut scored: Vec<ScoredLine> =
        (first_index..).zip(lines).map(|(index, line)| ScoredLine::new(index, line)).collect();
    // An empty response has nothing to compute.
    let places: Vec<(usize, usize)> = lines
        .iter()
        .enumerate()
        .flat_map(|(line, tokenized)| (0..tokenized.responses.len()).map(move |response| (line, response)))
        .filter(|&(line, response)| !lines[line].responses[response].is_empty())
        .collect();
    *texts.lock().unwrap_or_else(PoisonError::into_inner) =
        places.iter().map(|&(line, response)| lines[line].responses[response].clone()).collect();
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

/// Drafts what is known to follow.
struct Known {
    texts: ForcedTexts,
    /// Tokens that each response has, by its request's number.
    num_drawn: Vec<usize>,
}

impl Known {
    fn new(texts: ForcedTexts) -> Self {
        Self { texts, num_drawn: Vec::new() }
    }
}

impl Proposer<SeqId> for Known {
    fn reset(&mut self) {
        self.num_drawn.clear();
    }

    fn prompt(&mut self, _tokens: &[u32], _responses: &[SeqId]) {}

    fn append(&mut self, id: SeqId, tokens: &[u32]) {
        let idx = id.group_idx as usize;
        if self.num_drawn.len() <= idx {
            self.num_drawn.resize(idx + 1, 0);
        }
        self.num_drawn[idx] += tokens.len();
    }

    fn end(&mut self, _id: SeqId) {}

    fn wants_drafts(&mut self, _num_in_flight: usize, _goal: Goal) -> bool {
        true
    }

    /// Requests are numbered as their texts are: each has one response that is not empty.
    fn propose(&mut self, responses: &[Draftable]) -> Vec<Vec<u32>> {
        let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let drafts = responses.iter().map(|response| {
            let idx = response.id.group_idx as usize;
            let start = self.num_drawn.get(idx).copied().unwrap_or(0);
            let text = texts.get(idx).and_then(|text| text.get(start..)).unwrap_or_default();
            text.iter().copied().take(response.max_drafts).collect()
        });
        drafts.collect()
    }

    fn measured(&mut self, _step: StepTime) {}

    fn not_comparable(&mut self, _time: Duration) {}
}
