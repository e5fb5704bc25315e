//! Repetition penalty over prompt and generated tokens: positive logits are divided, negative ones
//! multiplied.
//!
//! NeMo divides whatever the sign, and only while it computes log-probabilities; TensorRT-LLM does it this
//! way.

/// A set of token ids that is cheap to empty.
#[derive(Debug, Default)]
pub(crate) struct SeenTokens {
    words: Vec<u64>,
}

impl SeenTokens {
    /// True when `id` was not in the set.
    fn insert(&mut self, id: u32) -> bool {
        let (word_idx, mask) = (id as usize / 64, 1 << (id % 64));
        if self.words.len() <= word_idx {
            self.words.resize(word_idx + 1, 0);
        }
        let is_new = self.words[word_idx] & mask == 0;
        self.words[word_idx] |= mask;
        is_new
    }
}

/// Penalises each distinct token of `history` once in `row`, `[vocab_size]`. `seen` is scratch.
pub(crate) fn apply(row: &mut [f32], history: &[u32], penalty: f32, seen: &mut SeenTokens) {
    seen.words.fill(0);
    for &id in history {
        let Some(logit) = row.get_mut(id as usize) else { continue };
        if seen.insert(id) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_used_token_once_by_its_sign() {
        let mut row = [4.0, -4.0, 4.0, f32::NEG_INFINITY, 0.0];
        let mut seen = SeenTokens::default();
        apply(&mut row, &[0, 1, 0, 3, 4, 99], 2.0, &mut seen);
        assert_eq!(row, [2.0, -8.0, 4.0, f32::NEG_INFINITY, 0.0]);
        let mut next_row = [4.0];
        apply(&mut next_row, &[0], 2.0, &mut seen);
        assert_eq!(next_row, [2.0], "nothing is left over from the row before");
    }
}
