//! `aligner-gen bench --shape SHAPE --measures structured:ROWS,own:ROWS`: what a wish of rows costs, beside the same rows
//! without it.
//!
//! Two engines with a copy of the weights each answer the same requests in turn, so that both see the same machine. The
//! weights are random and so is what is drawn: a structure sees texts that nobody would write, which go through its whole
//! vocabulary of strings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Engine, OwnRules, Request};
use model_spec::NamedShape;
use sampling::{
    RowMasks, RowRules, SamplingParams, StopConditions, StructuredRow, Vocabulary, prepare_all, uniform,
};
use serde_json::{Value, json};

use super::cases::{Opened, Sampled, answer, round};
use super::workload::request;
use crate::config::cli::BenchArgs;
use crate::config::plan::RowParamsMode;
use crate::exit::Failure;
use crate::model::structures::TokenStructures;

/// Times that each engine answers, of which the best counts.
const REPEATS: usize = 5;
const PROMPT_TOKENS: usize = 128;
const NEW_TOKENS: u32 = 128;
/// Of which a response has more than it has tokens.
const LEAST_ITEMS: u32 = NEW_TOKENS;

/// What rows wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A JSON schema with objects, an enumeration, numbers and strings.
    Structured,
    /// Parameters of their own, and log-probabilities in the output.
    Own,
}

/// A wish and how many rows have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) wish: Wish,
    pub(super) num_rows: usize,
}

impl Beside {
    /// Of a measure's name; `None` for other measures.
    pub(super) fn of(measure: &str) -> Option<Self> {
        let (name, num_rows) = measure.split_once(':')?;
        let wish = match name {
            "structured" => Wish::Structured,
            "own" => Wish::Own,
            _ => return None,
        };
        Some(Self { wish, num_rows: num_rows.parse().ok().filter(|&num_rows| num_rows > 0)? })
    }

    /// Measures both, and says what the wish costs.
    pub(super) fn run(self, arguments: &BenchArgs, shape: NamedShape) -> Result<Value, Failure> {
        let vocab_size = shape.shape().padded_vocab_size as usize;
        let requests: Vec<Request> = (0..self.num_rows as u64)
            .map(|idx| request(idx, PROMPT_TOKENS, NEW_TOKENS, vocab_size))
            .collect();
        let wishing: Vec<Request> = requests
            .iter()
            .map(|request| Request { own: Some(Box::new(self.rules(request.sample_idx))), ..request.clone() })
            .collect();
        let opened = Opened { arguments, shape, requests: &requests, max_num_seqs: self.num_rows };
        let without = Sampled { params: self.params(), row_params: RowParamsMode::Ignore, vocabulary: None };
        let vocabulary = (self.wish == Wish::Structured).then(|| vocabulary(vocab_size));
        let masks_ms = vocabulary.as_ref().map(|vocabulary| self.masks_ms(vocabulary));
        let params = SamplingParams { compute_logprob: self.wish == Wish::Own, ..self.params() };
        let with = Sampled { params, row_params: RowParamsMode::Read, vocabulary };
        let mut engines = [opened.engine(without)?, opened.engine(with)?];
        let [mut off, mut on] = [Vec::new(), Vec::new()];
        // The first ones warm up: kernels are compiled, graphs recorded, the structure compiled.
        for _ in 0..=REPEATS {
            off.push(tokens_per_s(&mut engines[0], &requests)?);
            on.push(tokens_per_s(&mut engines[1], &wishing)?);
        }
        let best = |speeds: &[f64]| speeds.iter().skip(1).copied().fold(0.0, f64::max);
        let (off, on) = (best(&off), best(&on));
        Ok(json!({
            "case": match self.wish {
                Wish::Structured => format!("structured:{}", self.num_rows),
                Wish::Own => format!("own:{}", self.num_rows),
            },
            "tokens": self.num_rows as u64 * u64::from(NEW_TOKENS),
            "tokens_per_s_without": round(off),
            "tokens_per_s": round(on),
            "cost_percent": round(100.0 * (1.0 - on / off)),
            "masks_ms_a_step": masks_ms,
        }))
    }

    /// What the host alone takes in a step to find the masks of all rows, in milliseconds: a model that takes longer hides
    /// it.
    fn masks_ms(self, vocabulary: &Arc<Vocabulary>) -> f64 {
        let begin = |row| StructuredRow::begin(Some(vocabulary), &self.rules(row).row);
        let mut rows: Vec<StructuredRow> = (0..self.num_rows as u64).filter_map(begin).collect();
        let mut masks = RowMasks::default();
        let mut time = Duration::ZERO;
        for step in 0..NEW_TOKENS {
            let started = Instant::now();
            prepare_all(&mut rows.iter_mut().collect::<Vec<_>>());
            masks.clear();
            rows.iter().for_each(|row| masks.push(row.allowed()));
            time += started.elapsed();
            for (idx, row) in (0..).zip(&mut rows) {
                let allowed = row.allowed().unwrap_or_default();
                let num_allowed: u32 = allowed.iter().map(|word| word.count_ones()).sum();
                let nth = (uniform(9, idx, 0, step) * f64::from(num_allowed)) as usize;
                let is_allowed = |token: &u32| allowed[*token as usize / 32] >> (token % 32) & 1 == 1;
                if let Some(token) = (0..32 * allowed.len() as u32).filter(is_allowed).nth(nth) {
                    row.push(token);
                }
            }
        }
        round(1000.0 * time.as_secs_f64() / f64::from(NEW_TOKENS))
    }

    /// The run's.
    fn params(self) -> SamplingParams {
        let has_filters = self.wish == Wish::Own;
        SamplingParams {
            use_greedy: false,
            temperature: 0.8,
            top_k: None,
            top_p: has_filters.then_some(0.95),
            repetition_penalty: 1.0,
            min_p: None,
            compute_logprob: false,
            top_logprobs: 0,
        }
    }

    /// Those of a row.
    fn rules(self, row: u64) -> OwnRules {
        let spread = |from: f64, to: f64| (from + (to - from) * uniform(3, row, 0, 0)) as f32;
        let run = self.params();
        let (params, structure) = match self.wish {
            Wish::Structured => (run, Some(schema())),
            Wish::Own => {
                let own =
                    SamplingParams { temperature: spread(0.5, 1.2), top_p: Some(spread(0.8, 0.99)), ..run };
                (SamplingParams { compute_logprob: true, ..own }, None)
            }
        };
        let seed = 1 + row;
        let row = RowRules { params, seed, end_token_ids: Vec::new(), min_length: 0, structure };
        OwnRules { row, stop: StopConditions::default() }
    }
}

fn tokens_per_s(engine: &mut Engine, requests: &[Request]) -> Result<f64, Failure> {
    let started = Instant::now();
    let (stats, responses) = answer(engine, requests.to_vec())?;
    let wall_s = started.elapsed().as_secs_f64();
    let shortest = responses.values().map(Vec::len).min().unwrap_or(0);
    if shortest < NEW_TOKENS as usize {
        return Err(anyhow::anyhow!("a response ended after {shortest} of {NEW_TOKENS} tokens").into());
    }
    Ok(stats.generated_tokens as f64 / wall_s)
}

fn schema() -> String {
    json!({"json": {
        "type": "array",
        "minItems": LEAST_ITEMS,
        "items": {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "minimum": 0, "maximum": 9999},
                "kind": {"enum": ["river", "hill", "bridge", "house"]},
                "name": {"type": "string", "minLength": 3, "maxLength": 40},
                "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,8}$"}, "maxItems": 3},
            },
            "required": ["id", "kind", "name", "tags"],
            "additionalProperties": false,
        },
    }, "disable_any_whitespace": true})
    .to_string()
}

/// A vocabulary as large as the shape's: every byte, and strings of letters with and without a blank before them, of
/// digits, and of what JSON has between its parts.
fn vocabulary(vocab_size: usize) -> Arc<Vocabulary> {
    let structures = Arc::new(TokenStructures::of_texts(vocab_size, move || texts(vocab_size)));
    Arc::new(Vocabulary { structures, vocab_size, banned: Vec::new() })
}

fn texts(vocab_size: usize) -> Vec<Vec<u8>> {
    const PARTS: [&str; 12] = [
        "\",\"", "\":\"", "\":", "},{\"", "[{\"", "[\"", "\"],\"", "\"]},{\"", "[]", "[]},{\"", "\"}", ",\"",
    ];
    const LETTERS: &[u8] = b"etaoinshrdlucmfwypvbgkjqxz";
    let number =
        |token: usize, place: u32, below: usize| (uniform(5, token as u64, 0, place) * below as f64) as usize;
    let text = |token: usize| -> Vec<u8> {
        if let Ok(byte) = u8::try_from(token) {
            return vec![byte];
        }
        if let Some(part) = PARTS.get(token - 256) {
            return part.as_bytes().to_vec();
        }
        let len = 2 + number(token, 0, 7);
        match number(token, 1, 20) {
            0 => (0..len.min(3) as u32).map(|place| b'0' + number(token, 2 + place, 10) as u8).collect(),
            kind => {
                let blank = (kind % 2 == 0).then_some(b' ');
                // Common letters are drawn more often.
                let letter = |place: u32| {
                    let idx = number(token, 2 + 2 * place, LETTERS.len()).min(number(
                        token,
                        3 + 2 * place,
                        LETTERS.len(),
                    ));
                    LETTERS.get(idx).copied().unwrap_or(b'e')
                };
                blank.into_iter().chain((0..len as u32).map(letter)).collect()
            }
        }
    };
    (0..vocab_size).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_have_names() {
        let of = |measure| Beside::of(measure).map(|beside| (beside.wish, beside.num_rows));
        assert_eq!(of("structured:64"), Some((Wish::Structured, 64)));
        assert_eq!(of("own:256"), Some((Wish::Own, 256)));
        assert_eq!([of("own:0"), of("own"), of("bulk"), of("decode:64:512")], [None; 4]);
    }

    /// Whatever is drawn of the vocabulary, the structure goes on.
    #[test]
    fn a_response_has_a_structure_that_is_longer() {
        let vocab_size = 5000;
        let vocabulary = vocabulary(vocab_size);
        let mut follower = vocabulary.structures.begin(&schema()).unwrap();
        let mut text = Vec::new();
        let texts = texts(vocab_size);
        for nth in 0..NEW_TOKENS {
            let mut bits = vec![0_u32; vocab_size.div_ceil(32)];
            assert!(!follower.allowed(&mut bits).unwrap(), "{}", String::from_utf8_lossy(&text));
            let allowed: Vec<u32> =
                (0..vocab_size as u32).filter(|&id| bits[id as usize / 32] >> (id % 32) & 1 == 1).collect();
            let token = allowed[(uniform(9, 0, 0, nth) * allowed.len() as f64) as usize];
            follower.push(token).unwrap();
            text.extend(&texts[token as usize]);
        }
        assert!(text.starts_with(b"[{\"id\":"), "{}", String::from_utf8_lossy(&text));
    }
}
