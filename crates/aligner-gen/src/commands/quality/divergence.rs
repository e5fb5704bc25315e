//! How far the predictions of two models are apart, position by position.

use tch::{Kind, Tensor};

/// Rows whose distributions exist in float64 at once.
const ROWS_PER_CHUNK: i64 = 64;

/// Two models' predictions of the same tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Divergence {
    /// Kullback-Leibler divergence of each position, of the candidate from the reference, in nats.
    kl: Vec<f64>,
    num_equal_greedy: u64,
    /// Sums over positions, of minus the log-probability of the token that follows.
    reference_nll: f64,
    candidate_nll: f64,
    /// Sums over positions, of the variance of logits over the vocabulary: of the reference, and of the difference.
    reference_variance: f64,
    difference_variance: f64,
}

/// The figures of all positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) num_predictions: u64,
    pub(super) reference_perplexity: f64,
    pub(super) candidate_perplexity: f64,
    pub(super) mean_kl: f64,
    /// Nearest ranks.
    pub(super) median_kl: f64,
    pub(super) p99_kl: f64,
    pub(super) max_kl: f64,
    /// Of the positions where both find the same token the most likely one.
    pub(super) equal_greedy: f64,
    /// Root mean square of the logits' differences, in standard deviations of the reference's logits. A difference that all
    /// tokens of a position share changes no probability and does not count.
    pub(super) logit_error: f64,
}

impl Divergence {
    /// Takes positions: float32 `[rows, columns]` of each model, of which the first `vocab_size` columns are tokens, and for
    /// each row the token that follows.
    ///
    /// # Errors
    /// When libtorch has no memory.
    pub(super) fn add(
        &mut self,
        [reference, candidate]: [&Tensor; 2],
        following: &[u32],
        vocab_size: usize,
    ) -> Result<(), tch::TchError> {
        let following: Vec<i64> = following.iter().map(|&token| i64::from(token)).collect();
        for (chunk, start) in
            following.chunks(ROWS_PER_CHUNK as usize).zip((0..).step_by(ROWS_PER_CHUNK as usize))
        {
            let rows = |logits: &Tensor| {
                let rows =
                    logits.f_narrow(0, start, chunk.len() as i64)?.f_narrow(1, 0, vocab_size as i64)?;
                rows.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)
            };
            self.add_chunk(&rows(reference)?, &rows(candidate)?, &Tensor::f_from_slice(chunk)?)?;
        }
        Ok(())
    }

    fn add_chunk(
        &mut self,
        reference: &Tensor,
        candidate: &Tensor,
        following: &Tensor,
    ) -> Result<(), tch::TchError> {
        let [of_reference, of_candidate] =
            [reference.f_log_softmax(-1, Kind::Double)?, candidate.f_log_softmax(-1, Kind::Double)?];
        let kl = of_reference.f_exp()?.f_mul(&of_reference.f_sub(&of_candidate)?)?;
        let kl = kl.f_sum_dim_intlist(-1, false, Kind::Double)?;
        self.kl.extend(Vec::<f64>::try_from(&kl)?);
        let equal = reference.f_argmax(-1, false)?.f_eq_tensor(&candidate.f_argmax(-1, false)?)?;
        self.num_equal_greedy += equal.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64;
        let following = following.f_unsqueeze(1)?;
        let nll = |logprobs: &Tensor| {
            logprobs.f_gather(1, &following, false)?.f_sum(Kind::Double)?.f_neg()?.f_double_value(&[])
        };
        self.reference_nll += nll(&of_reference)?;
        self.candidate_nll += nll(&of_candidate)?;
        let variance =
            |values: &Tensor| values.f_var_dim(-1, false, false)?.f_sum(Kind::Double)?.f_double_value(&[]);
        self.reference_variance += variance(reference)?;
        self.difference_variance += variance(&candidate.f_sub(reference)?)?;
        Ok(())
    }

    /// `None` where there is no position, or a number that is not finite.
    pub(super) fn figures(&self) -> Option<Figures> {
        let num_predictions = self.kl.len();
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            sorted.get(((share * num_predictions as f64).ceil() as usize).saturating_sub(1)).copied()
        };
        let mean = |sum: f64| sum / num_predictions as f64;
        let figures = Figures {
            num_predictions: num_predictions as u64,
            reference_perplexity: mean(self.reference_nll).exp(),
            candidate_perplexity: mean(self.candidate_nll).exp(),
            // What is below 0 is rounding.
            mean_kl: mean(sorted.iter().map(|kl| kl.max(0.0)).sum()),
            median_kl: rank(0.5)?.max(0.0),
            p99_kl: rank(0.99)?.max(0.0),
            max_kl: rank(1.0)?.max(0.0),
            equal_greedy: mean(self.num_equal_greedy as f64),
            logit_error: (self.difference_variance / self.reference_variance).sqrt(),
        };
        let all = [
            figures.reference_perplexity,
            figures.candidate_perplexity,
            figures.mean_kl,
            figures.logit_error,
        ];
        all.iter().all(|figure| figure.is_finite()).then_some(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(reference: &[f32], candidate: &[f32], following: &[u32], columns: i64) -> Option<Figures> {
        let mut divergence = Divergence::default();
        let [reference, candidate] =
            [reference, candidate].map(|logits| Tensor::from_slice(logits).view([-1, columns]));
        divergence.add([&reference, &candidate], following, 2).unwrap();
        divergence.figures()
    }

    #[test]
    fn a_model_is_not_apart_from_itself() {
        // The third column is padding of the vocabulary.
        let logits = [0.5, -1.0, 9.0, 2.0, 1.0, -9.0];
        let same = figures(&logits, &logits, &[0, 1], 3).unwrap();
        assert_eq!((same.mean_kl, same.p99_kl, same.equal_greedy, same.logit_error), (0.0, 0.0, 1.0, 0.0));
        assert_eq!(same.reference_perplexity, same.candidate_perplexity);
        // What all tokens have more changes nothing.
        let shifted: Vec<f32> = logits.iter().map(|logit| logit + 4.0).collect();
        let shifted = figures(&logits, &shifted, &[0, 1], 3).unwrap();
        assert!(shifted.mean_kl < 1e-12 && shifted.logit_error < 1e-6, "{shifted:?}");
    }

    #[test]
    fn figures_are_those_of_the_definitions() {
        // Even chances, against 3 to 1, for two positions; then the other way round for the second.
        let third = 3_f32.ln();
        let apart = figures(&[0.0, 0.0, 0.0, third], &[third, 0.0, third, 0.0], &[0, 1], 2).unwrap();
        let first = 0.5 * (0.5_f64 / 0.75).ln() + 0.5 * (0.5_f64 / 0.25).ln();
        let second = 0.75 * 3_f64.ln() - 0.25 * 3_f64.ln();
        assert!((apart.mean_kl - (first + second) / 2.0).abs() < 1e-6, "{apart:?}");
        assert!((apart.median_kl - first).abs() < 1e-6 && (apart.max_kl - second).abs() < 1e-6, "{apart:?}");
        assert!((apart.reference_perplexity - (0.5_f64 * 0.75).powf(-0.5)).abs() < 1e-6, "{apart:?}");
        assert!((apart.candidate_perplexity - (0.75_f64 * 0.25).powf(-0.5)).abs() < 1e-6, "{apart:?}");
        assert_eq!((apart.num_predictions, apart.equal_greedy), (2, 0.5));
    }

    #[test]
    fn what_is_not_finite_gives_no_figures() {
        assert_eq!(figures(&[0.0, 0.0], &[f32::NAN, 0.0], &[0], 2), None);
        assert_eq!(Divergence::default().figures(), None);
    }
}
