//! Dummy weights whose text is mostly copied from its prompt, at temperature 1, for measurements of speculation.
//!
//! The first [`CYCLE_TOKENS`] tokens form a cycle, and every other token is embedded as one of them. Embeddings are so large
//! that what the layers add to them, whose weights are random as ever, hardly turns them; the output layer points from
//! each token of the cycle to the next. So a drawn token is the next of the cycle with a probability of about 0.9, and any
//! other token else, behind which the text goes on at the token of the cycle that the drawn one is embedded as. A prompt is
//! more than one round of the cycle: nine tokens in ten are those that follow the last one in the prompt.
//!
//! Everything is computed as with other weights, none is 0, so a step takes as long.

use half::bf16;
use model_spec::Module;
use rayon::prelude::*;

/// Tokens of the cycle: fewer than a prompt has.
const CYCLE_TOKENS: usize = 448;
/// By how much an embedding is larger than random weights.
const EMBEDDING_SCALE: f32 = 8192.0;
/// The probability with which a token is to be copied.
const COPIED: f64 = 0.9;

/// The token that `token` is embedded as.
fn in_cycle(token: usize) -> usize {
    token % CYCLE_TOKENS
}

/// The token that copies the prompt behind `token`.
pub(super) fn next(token: u32) -> u32 {
    ((in_cycle(token as usize) + 1) % CYCLE_TOKENS) as u32
}

/// A prompt that goes round the cycle, from a place that the sample decides.
pub(super) fn prompt(sample_idx: u64, len: usize) -> Vec<u32> {
    let start = sample_idx as usize * 37 % CYCLE_TOKENS;
    (start..start + len).map(|position| in_cycle(position) as u32).collect()
}

/// The embedding table and the output layer, `[vocab_size, hidden_size]` each.
#[derive(Debug)]
pub(super) struct Tables {
    embedding: Vec<bf16>,
    output: Vec<bf16>,
}

impl Tables {
    /// Out of random numbers of standard deviation `std`.
    ///
    /// # Errors
    /// When the vocabulary is no larger than the cycle.
    pub(super) fn new(
        random: &[bf16],
        std: f32,
        vocab_size: usize,
        hidden_size: usize,
    ) -> Result<Self, &'static str> {
        if vocab_size <= CYCLE_TOKENS || random.len() < (CYCLE_TOKENS + 1) * hidden_size {
            return Err("its vocabulary is too small");
        }
        let scaled = |row: usize, scale: f32| {
            let row = &random[row * hidden_size..(row + 1) * hidden_size];
            row.iter().map(move |elem| bf16::from_f32(elem.to_f32() * scale))
        };
        // What the final norm gives has elements of variance 1, so the logit of the next token is the sum of their products
        // with its row: `scale * std * hidden_size`. All others are near 0.
        let odds = COPIED / (1.0 - COPIED) * vocab_size as f64;
        let scale = odds.ln() as f32 / (std * hidden_size as f32);
        let embedding_row = |token| scaled(in_cycle(token), EMBEDDING_SCALE);
        let output_row = |token| match token < CYCLE_TOKENS {
            true => scaled((token + CYCLE_TOKENS - 1) % CYCLE_TOKENS, scale),
            // Rows that no embedding is along.
            false => scaled(CYCLE_TOKENS, scale),
        };
        Ok(Self {
            embedding: (0..vocab_size).into_par_iter().flat_map_iter(embedding_row).collect(),
            output: (0..vocab_size).into_par_iter().flat_map_iter(output_row).collect(),
        })
    }

    /// The tensor of a module, where it is one of these.
    pub(super) fn of(&self, module: Module) -> Option<&[bf16]> {
        match module {
            Module::WordEmbeddings => Some(&self.embedding),
            Module::Output => Some(&self.output),
            _ => None,
        }
    }
}

/// Which part of a response's tokens copy the prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    num_tokens: usize,
    num_copied: usize,
}

impl Copied {
    /// Counts a response's tokens, the first one aside.
    pub(super) fn count(&mut self, response: &[u32]) {
        self.num_tokens += response.len().saturating_sub(1);
        self.num_copied += response.windows(2).filter(|pair| pair[1] == next(pair[0])).count();
    }

    pub(super) fn percent(self) -> f64 {
        100.0 * self.num_copied as f64 / self.num_tokens.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::shapes::{WEIGHT_STD, random_weights};
    use super::*;

    #[test]
    fn the_next_token_of_the_cycle_has_the_odds_it_should() {
        let hidden_size = 1024;
        let vocab_size = 1000;
        let random = random_weights((CYCLE_TOKENS + 1) * hidden_size);
        let tables = Tables::new(&random, WEIGHT_STD, vocab_size, hidden_size).unwrap();
        let row = |table: &[bf16], token: usize| -> Vec<f64> {
            table[token * hidden_size..][..hidden_size].iter().map(|elem| elem.to_f64()).collect()
        };
        for token in [0_u32, 447, 700] {
            let embedded = row(&tables.embedding, token as usize);
            let rms = (embedded.iter().map(|x| x * x).sum::<f64>() / hidden_size as f64).sqrt();
            let logit = |other: usize| -> f64 {
                row(&tables.output, other).iter().zip(&embedded).map(|(w, x)| w * x / rms).sum()
            };
            let weights: Vec<f64> = (0..vocab_size).map(|other| logit(other).exp()).collect();
            let part = weights[next(token) as usize] / weights.iter().sum::<f64>();
            assert!((0.8..0.97).contains(&part), "{token}: {part}");
        }
    }

    #[test]
    fn a_prompt_is_copied_from_itself() {
        let prompt = prompt(3, 512);
        let mut copied = Copied::default();
        copied.count(&prompt);
        assert!((copied.percent() - 100.0).abs() < 1e-9);
        copied.count(&[5, 6, 9]);
        assert_eq!((copied.num_tokens, copied.num_copied), (513, 512));
        assert_eq!(prompt[CYCLE_TOKENS], prompt[0]);
    }

    #[test]
    fn a_vocabulary_without_room_is_refused() {
        assert!(Tables::new(&[bf16::ONE; 4096], 0.02, 448, 4).is_err());
    }
}
