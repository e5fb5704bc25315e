//! The most likely tokens of a raw row, found without sorting it.

use serde::{Deserialize, Serialize};

/// A token that might have been chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopToken {
    /// The token id.
    pub token: u32,
    /// Log-softmax of the raw logits at it.
    pub logprob: f32,
}

/// The `num_top` largest of `raw`, the largest first, equal ones by id; values of minus infinity are none.
pub(crate) fn top_tokens(raw: &[f32], num_top: usize, logprob: impl Fn(f32) -> f32) -> Vec<TopToken> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(num_top + 1);
    if num_top == 0 {
        return Vec::new();
    }
    for (id, &logit) in (0_u32..).zip(raw) {
        let is_better = match best.last() {
            Some(&(_, least)) if best.len() == num_top => logit > least,
            _ => logit > f32::NEG_INFINITY,
        };
        if is_better {
            let place = best.partition_point(|&(_, other)| other >= logit);
            best.insert(place, (id, logit));
            best.truncate(num_top);
        }
    }
    best.into_iter().map(|(token, logit)| TopToken { token, logprob: logprob(logit) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_by_id() {
        let ids = |raw: &[f32], k| -> Vec<u32> {
            top_tokens(raw, k, |logit| logit).into_iter().map(|top| top.token).collect()
        };
        let none = f32::NEG_INFINITY;
        assert_eq!(ids(&[1.0, 3.0, 3.0, none, 2.0], 3), [1, 2, 4]);
        assert_eq!(ids(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert_eq!(ids(&[none, 1.0, none], 3), [1]);
        assert_eq!(ids(&[1.0], 0), [0_u32; 0]);
    }
}
