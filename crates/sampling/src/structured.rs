//! Which tokens may be next in responses whose text has a structure.
//!
//! How a structure is read and followed is behind [`Structures`]. Here is what holds beside it: which tokens end the
//! response, how many it has at least, and which are banned.

use std::sync::Arc;

use rayon::prelude::*;

use crate::RowRules;

/// Follows the text of one response.
pub trait TextFollower: Send {
    /// Sets the bits of the tokens that may be next, and of no others, in `bits`, `[ceil(vocab_size / 32)]`. Says whether
    /// the text may end here.
    ///
    /// # Errors
    /// Why that cannot be found out.
    fn allowed(&mut self, bits: &mut [u32]) -> Result<bool, String>;

    /// Takes the next token.
    ///
    /// # Errors
    /// Why it cannot be next.
    fn push(&mut self, token: u32) -> Result<(), String>;
}

/// Makes what follows texts. Shared by threads.
pub trait Structures: Send + Sync {
    /// Follows a text with this structure from its first token on.
    ///
    /// # Errors
    /// Why there is none.
    fn begin(&self, structure: &str) -> Result<Box<dyn TextFollower>, String>;
}

/// The tokens of a run that structures are followed with.
#[derive(Clone)]
pub struct Vocabulary {
    /// What follows texts.
    pub structures: Arc<dyn Structures>,
    /// The tokenizer's.
    pub vocab_size: usize,
    /// Tokens that are never chosen.
    pub banned: Vec<u32>,
}

/// How far a text is.
enum State {
    Open(Box<dyn TextFollower>),
    Ended,
    Failed(String),
}

/// One response with a structure.
pub struct StructuredRow {
    state: State,
    vocabulary: Arc<Vocabulary>,
    end_token_ids: Vec<u32>,
    min_length: u32,
    num_generated: u32,
    /// Drawn, and not followed yet.
    drawn: Vec<u32>,
    /// Of the next token, where `has_bits`; kept, so that no step makes new ones.
    bits: Vec<u32>,
    has_bits: bool,
}

impl StructuredRow {
    /// A response that `rules` hold for, before its first token; none where they ask for no structure.
    pub fn begin(vocabulary: Option<&Arc<Vocabulary>>, rules: &RowRules) -> Option<Self> {
        let RowRules { structure, end_token_ids, min_length, .. } = rules;
        let (structure, vocabulary) = (structure.as_deref()?, Arc::clone(vocabulary?));
        let state = vocabulary.structures.begin(structure).map_or_else(State::Failed, State::Open);
        let (end_token_ids, min_length) = (end_token_ids.clone(), *min_length);
        let (drawn, bits) = (Vec::new(), vec![0; vocabulary.vocab_size.div_ceil(u32::BITS as usize)]);
        let (num_generated, has_bits) = (0, false);
        Some(Self { state, vocabulary, end_token_ids, min_length, num_generated, drawn, bits, has_bits })
    }

    /// The tokens that may be chosen next, once [`prepare_all`] has found them; none where all may, because the response has
    /// ended or has failed.
    pub fn allowed(&self) -> Option<&[u32]> {
        self.has_bits.then_some(&self.bits)
    }

    /// Why no token can be next, once [`prepare_all`] has found it. What is drawn then is no part of the response.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Failed(reason) => Some(reason),
            State::Open(_) | State::Ended => None,
        }
    }

    /// Takes the token that was drawn. It is followed with the work of all rows, in [`prepare_all`].
    pub fn push(&mut self, token: u32) {
        self.num_generated += 1;
        self.has_bits = false;
        if matches!(self.state, State::Open(_)) {
            self.drawn.push(token);
        }
    }

    /// Follows the tokens that were drawn, as far as they are text.
    fn follow(&mut self) {
        for token in std::mem::take(&mut self.drawn) {
            let State::Open(follower) = &mut self.state else { return };
            if self.end_token_ids.contains(&token) {
                self.state = State::Ended;
            } else if let Err(reason) = follower.push(token) {
                self.state = State::Failed(reason);
            }
        }
    }

    /// Finds out what may be next, unless it is known.
    fn prepare(&mut self) {
        self.follow();
        let State::Open(follower) = &mut self.state else { return };
        if self.has_bits {
            return;
        }
        let bits = self.bits.as_mut_slice();
        let may_end = match follower.allowed(bits) {
            Ok(may_end) => may_end,
            Err(reason) => {
                self.state = State::Failed(reason);
                return;
            }
        };
        // Where they are text, too, they do not end a response in the middle of its structure.
        clear(bits, &self.end_token_ids);
        clear(bits, &self.vocabulary.banned);
        clear_past(bits, self.vocabulary.vocab_size);
        let can_go_on = bits.iter().any(|&word| word != 0);
        // A text that must end ends, whatever `min_length` says.
        if may_end && (!can_go_on || self.num_generated >= self.min_length) {
            set(bits, &self.end_token_ids);
            clear(bits, &self.vocabulary.banned);
            clear_past(bits, self.vocabulary.vocab_size);
        }
        match bits.iter().any(|&word| word != 0) {
            true => self.has_bits = true,
            false => self.state = State::Failed(self.nothing_left(may_end)),
        }
    }

    fn nothing_left(&self, may_end: bool) -> String {
        let num_generated = self.num_generated;
        match may_end {
            true => format!(
                "the structure ends after {num_generated} tokens, and no token that ends a response may be chosen"
            ),
            false => {
                format!("no token that is not banned goes on with the structure after {num_generated} tokens")
            }
        }
    }
}

/// Follows what was drawn and finds out what may be next in all of these, in parallel. A row takes from microseconds to
/// milliseconds, so that each is a task of its own.
pub fn prepare_all(rows: &mut [&mut StructuredRow]) {
    rows.par_iter_mut().with_max_len(1).for_each(|row| row.prepare());
}

/// The masks of a step's rows, as a GPU's sampler reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowMasks {
    /// Of each row: which of the masks it has, or -1 where every token may be chosen.
    pub mask_of_row: Vec<i32>,
    /// One mask behind the other.
    pub bits: Vec<u32>,
    num_masks: i32,
}

impl RowMasks {
    /// Without rows, with the memory of those that it had.
    pub fn clear(&mut self) {
        self.mask_of_row.clear();
        self.bits.clear();
        self.num_masks = 0;
    }

    /// Adds a row.
    pub fn push(&mut self, allowed: Option<&[u32]>) {
        self.mask_of_row.push(allowed.map_or(-1, |_| self.num_masks));
        self.bits.extend(allowed.unwrap_or_default());
        self.num_masks += i32::from(allowed.is_some());
    }

    /// How many masks there are.
    pub fn num_masks(&self) -> usize {
        self.num_masks as usize
    }

    /// The tokens that a row may be given; none where all may.
    pub fn allowed(&self, row: usize) -> Option<&[u32]> {
        let idx = usize::try_from(*self.mask_of_row.get(row)?).ok()?;
        let words = self.bits.len() / self.num_masks();
        self.bits.get(idx * words..(idx + 1) * words)
    }
}

fn clear(bits: &mut [u32], tokens: &[u32]) {
    for token in tokens {
        if let Some(word) = bits.get_mut(*token as usize / 32) {
            *word &= !(1 << (token % 32));
        }
    }
}

fn set(bits: &mut [u32], tokens: &[u32]) {
    for token in tokens {
        if let Some(word) = bits.get_mut(*token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }
}

/// Of the last word only the tokens that there are.
fn clear_past(bits: &mut [u32], vocab_size: usize) {
    if let (Some(last), rest @ 1..) = (bits.last_mut(), vocab_size % 32) {
        *last &= (1 << rest) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingParams;

    /// Texts of exactly so many tokens, of those below 40 that are no multiples of three; 33 may be anywhere.
    struct Counted(usize);

    impl TextFollower for Counted {
        fn allowed(&mut self, bits: &mut [u32]) -> Result<bool, String> {
            bits.fill(0);
            if self.0 > 0 {
                set(bits, &(0..40).filter(|token| token % 3 != 0 || *token == 33).collect::<Vec<_>>());
            }
            // As far as it knows there are more tokens.
            bits.iter_mut().skip(1).for_each(|word| *word |= 1 << 31);
            Ok(self.0 == 0)
        }

        fn push(&mut self, token: u32) -> Result<(), String> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| format!("{token} is too much"))?;
            Ok(())
        }
    }

    struct Counting;

    impl Structures for Counting {
        fn begin(&self, structure: &str) -> Result<Box<dyn TextFollower>, String> {
            let num_tokens = structure.parse().map_err(|_| format!("`{structure}` is no number"))?;
            Ok(Box::new(Counted(num_tokens)))
        }
    }

    fn row(structure: &str, end_token_ids: &[u32], banned: &[u32], min_length: u32) -> StructuredRow {
        let params = SamplingParams {
            use_greedy: true,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            min_p: None,
            compute_logprob: false,
            top_logprobs: 0,
        };
        let (structure, end_token_ids) = (Some(structure.to_owned()), end_token_ids.to_vec());
        let rules = RowRules { params, seed: 1, end_token_ids, min_length, structure };
        let structures = Arc::new(Counting);
        let vocabulary = Arc::new(Vocabulary { structures, vocab_size: 40, banned: banned.to_vec() });
        StructuredRow::begin(Some(&vocabulary), &rules).unwrap()
    }

    fn next(row: &mut StructuredRow) -> Vec<u32> {
        prepare_all(&mut [row]);
        let bits = row.allowed().unwrap_or_default();
        (0..32 * bits.len() as u32)
            .filter(|token| bits[*token as usize / 32] >> (token % 32) & 1 == 1)
            .collect()
    }

    #[test]
    fn a_text_ends_where_its_structure_does() {
        let mut row = row("1", &[33, 7], &[1, 2], 0);
        let first = next(&mut row);
        assert!(first.starts_with(&[4, 5, 8]) && first.ends_with(&[37, 38]), "{first:?}");
        assert_eq!(first, next(&mut row));
        row.push(4);
        assert!(row.allowed().is_none());
        assert_eq!(next(&mut row), [7, 33]);
        row.push(33);
        assert!(next(&mut row).is_empty() && row.failure().is_none());
    }

    #[test]
    fn a_text_that_must_end_ends_before_its_least_length() {
        let mut row = row("0", &[7], &[], 5);
        assert_eq!(next(&mut row), [7]);
    }

    #[test]
    fn where_nothing_is_left_the_reason_is_told() {
        let all: Vec<u32> = (0..40).collect();
        let failure = |mut row: StructuredRow| {
            assert!(next(&mut row).is_empty());
            row.failure().unwrap().to_owned()
        };
        insta::assert_snapshot!(failure(row("3", &[7], &all, 0)), @"no token that is not banned goes on with the structure after 0 tokens");
        insta::assert_snapshot!(failure(row("0", &[7], &[7], 0)), @"the structure ends after 0 tokens, and no token that ends a response may be chosen");
        insta::assert_snapshot!(failure(row("0", &[99], &[], 0)), @"the structure ends after 0 tokens, and no token that ends a response may be chosen");
        insta::assert_snapshot!(failure(row("x", &[7], &[], 0)), @"`x` is no number");
        let mut wrong = row("0", &[7], &[], 0);
        wrong.push(3);
        // Another one behind it changes nothing.
        wrong.push(4);
        insta::assert_snapshot!(failure(wrong), @"3 is too much");
    }
}
