//! `aligner-gen quality`: what another checkpoint or other number formats change of a model's predictions on a text.

mod divergence;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use model_core::{Backend, Batch, BlockId, CausalLm, LoadOptions};
use model_spec::{BLOCK_SIZE_TOKENS, Numerics, blocks_for};
use nemo_format::Checkpoint;
use serde_json::json;

use self::divergence::{Divergence, Figures};
use crate::config::cli::QualityArgs;
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::checkpoint::{OpenTokenizer, load_model, model_config};
use crate::table::{thousands, two_columns};

/// Where a model takes as many.
const DEFAULT_WINDOW_TOKENS: usize = 512;

/// Compares two models, and prints what is found.
pub(crate) fn run(arguments: &QualityArgs) -> Result<(), Failure> {
    let reference_numerics: Numerics = arguments.reference_precision.parse()?;
    let candidate_numerics = arguments.numbers.numerics()?;
    let [reference, candidate] =
        [&arguments.checkpoint, candidate_path(arguments)].map(|path| Checkpoint::open(path));
    let (reference, candidate) = (reference?, candidate?);
    let windows = windows(arguments, &reference, &candidate)?;
    let mut reference = Model::load(arguments, &reference, reference_numerics)?;
    let mut candidate = Model::load(arguments, &candidate, candidate_numerics)?;
    let vocab_size = windows.vocab_size;
    for model in [&reference, &candidate] {
        let padded = model.model.padded_vocab_size();
        if padded < vocab_size {
            return Err(anyhow!("the tokenizer has {vocab_size} tokens, the model {padded}"))
                .exit_with(ExitStatus::Checkpoint);
        }
    }
    let mut divergence = Divergence::default();
    for window in &windows.tokens {
        let logits = [reference.logits(window)?, candidate.logits(window)?];
        // The last position predicts what the text does not tell.
        let following = window.get(1..).unwrap_or_default();
        divergence
            .add([&logits[0], &logits[1]], following, vocab_size)
            .context("cannot compare logits")
            .exit_with(ExitStatus::Failed)?;
    }
    let figures = divergence
        .figures()
        .ok_or_else(|| anyhow!("the logits of one of the models are not finite numbers"))
        .exit_with(ExitStatus::Failed)?;
    print(arguments, &figures, [reference.numerics, candidate.numerics])
}

fn candidate_path(arguments: &QualityArgs) -> &PathBuf {
    arguments.candidate.as_ref().unwrap_or(&arguments.checkpoint)
}

/// A loaded model.
struct Model {
    model: Box<dyn CausalLm>,
    numerics: Numerics,
}

impl Model {
    fn load(arguments: &QualityArgs, checkpoint: &Checkpoint, numerics: Numerics) -> Result<Self, Failure> {
        let config = model_config(checkpoint.model_config())?;
        let backend: Backend = arguments.backend.into();
        let device = arguments.device.open()?;
        let options =
            LoadOptions { numerics, backend, device, attention: env::attention_switches(), isa: env::isa()? };
        Ok(Self { model: load_model(checkpoint, config, options)?, numerics })
    }

    /// float32 `[tokens, padded_vocab_size]`, of one sequence.
    fn logits(&mut self, tokens: &[u32]) -> Result<tch::Tensor, Failure> {
        let num_blocks = blocks_for(tokens.len(), BLOCK_SIZE_TOKENS).max(1);
        let mut cache = self.model.new_cache(num_blocks)?;
        let table: Vec<BlockId> = (0..num_blocks as BlockId).collect();
        let mut batch = Batch::default();
        batch.push(tokens, 0, tokens.len() as u32, &table);
        Ok(self.model.forward(&batch, &mut cache)?)
    }
}

/// The text as sequences that do not overlap.
struct Windows {
    tokens: Vec<Vec<u32>>,
    vocab_size: usize,
}

fn windows(
    arguments: &QualityArgs,
    reference: &Checkpoint,
    candidate: &Checkpoint,
) -> Result<Windows, Failure> {
    /// A window predicts all of its tokens but the first.
    const LEAST_TOKENS: usize = 2;
    let configs = [model_config(reference.model_config())?, model_config(candidate.model_config())?];
    let most = configs.iter().map(|config| config.encoder_seq_length).min().unwrap_or(0);
    let window_tokens = arguments.window_tokens.unwrap_or(DEFAULT_WINDOW_TOKENS.min(most));
    configs.iter().try_for_each(|config| config.refuse_longer(window_tokens))?;
    let cannot_read = || format!("cannot read `{}`", arguments.text.display());
    let text =
        std::fs::read_to_string(&arguments.text).with_context(cannot_read).exit_with(ExitStatus::Data)?;
    if window_tokens < LEAST_TOKENS {
        return Err(Failure::usage(format!("`--window-tokens` must be at least {LEAST_TOKENS}")));
    }
    let opened = OpenTokenizer::open(reference, reference.model_config())?;
    let encoded = opened.tokenizer.encode(&text)?;
    if arguments.candidate.is_some() {
        let other = OpenTokenizer::open(candidate, candidate.model_config())?;
        if other.tokenizer.encode(&text)? != encoded {
            return Err(anyhow!(
                "the two checkpoints have different tokenizers: `{}` becomes other tokens with each, and their predictions \
                 cannot be compared",
                arguments.text.display()
            ))
            .exit_with(ExitStatus::Checkpoint);
        }
    }
    let bos = opened.tokenizer.special().bos.filter(|_| arguments.add_bos);
    if arguments.add_bos && bos.is_none() {
        return Err(data::DataError::NoBosToken.into());
    }
    let per_window = window_tokens - usize::from(bos.is_some());
    let most = if arguments.max_tokens == 0 { usize::MAX } else { arguments.max_tokens };
    let tokens: Vec<Vec<u32>> = encoded
        .get(..encoded.len().min(most))
        .unwrap_or_default()
        .chunks(per_window)
        .map(|chunk| bos.into_iter().chain(chunk.iter().copied()).collect::<Vec<u32>>())
        .filter(|window| window.len() >= LEAST_TOKENS)
        .collect();
    if tokens.is_empty() {
        return Err(anyhow!(
            "`{}` has {} tokens, at least {LEAST_TOKENS} are needed",
            arguments.text.display(),
            encoded.len()
        ))
        .exit_with(ExitStatus::Data);
    }
    Ok(Windows { tokens, vocab_size: opened.tokenizer.vocab_size() })
}

fn print(
    arguments: &QualityArgs,
    figures: &Figures,
    [reference, candidate]: [Numerics; 2],
) -> Result<(), Failure> {
    let candidate_path = candidate_path(arguments);
    let shown = if arguments.json {
        let line = json!({
            "reference": { "checkpoint": arguments.checkpoint, "numbers": reference.to_string() },
            "candidate": { "checkpoint": candidate_path, "numbers": candidate.to_string() },
            "predictions": figures.num_predictions,
            "reference_perplexity": figures.reference_perplexity,
            "candidate_perplexity": figures.candidate_perplexity,
            "kl_mean": figures.mean_kl,
            "kl_median": figures.median_kl,
            "kl_p99": figures.p99_kl,
            "kl_max": figures.max_kl,
            "equal_greedy_tokens": figures.equal_greedy,
            "logit_error": figures.logit_error,
        });
        format!("{line}\n")
    } else {
        two_columns(&[
            ("reference", format!("{} in {reference}", arguments.checkpoint.display())),
            ("candidate", format!("{} in {candidate}", candidate_path.display())),
            ("predictions", thousands(figures.num_predictions)),
            (
                "perplexity",
                format!(
                    "{:.4}, of the reference {:.4}",
                    figures.candidate_perplexity, figures.reference_perplexity
                ),
            ),
            (
                "KL divergence",
                format!(
                    "mean {:.6}, median {:.6}, 99th percentile {:.6}, largest {:.6} nats",
                    figures.mean_kl, figures.median_kl, figures.p99_kl, figures.max_kl
                ),
            ),
            ("equal greedy tokens", format!("{:.2} %", figures.equal_greedy * 100.0)),
            ("logit error", format!("{:.5} standard deviations", figures.logit_error)),
        ])
    };
    std::io::stdout().write_all(shown.as_bytes()).map_err(anyhow::Error::from)?;
    Ok(())
}
