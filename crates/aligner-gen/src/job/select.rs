//! Which responses of a sample are written, and what is estimated from all of them.

use std::collections::BTreeMap;

use sampling::FinishReason;
use serde::Serialize;

use crate::config::checks::{BestOf, ChecksPlan};
use crate::config::plan::Unfinished;
use crate::output::ResponseOutput;

/// The rules of a job.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) unfinished: Unfinished,
    best_of: Option<BestOf>,
    pass_at_k: Vec<u32>,
}

impl Selection {
    pub(crate) fn new(unfinished: Unfinished, checks: &ChecksPlan) -> Self {
        Self { unfinished, best_of: checks.best_of, pass_at_k: checks.pass_at_k.clone() }
    }

    /// Everything is kept, but for unfinished responses where they are dropped.
    #[cfg(test)]
    pub(crate) fn only(unfinished: Unfinished) -> Self {
        Self { unfinished, best_of: None, pass_at_k: Vec::new() }
    }

    /// Leaves out what is not written of all responses of a sample.
    pub(crate) fn keep(&self, responses: &mut Vec<ResponseOutput>) {
        if self.unfinished == Unfinished::Drop {
            responses.retain(|response| response.finish_reason != FinishReason::Length);
        }
        let Some(by) = self.best_of else { return };
        // One that failed is no answer, however likely it is. Where all failed, the first one says why.
        if responses.iter().any(|response| !response.has_failed()) {
            responses.retain(|response| !response.has_failed());
        } else {
            return responses.truncate(1);
        }
        let values = responses.iter().map(|response| value(by, response)).enumerate();
        // Of equal ones the first.
        let best = values.reduce(|best, other| if other.1 > best.1 { other } else { best });
        if let Some((best, _)) = best {
            responses.swap(0, best);
            responses.truncate(1);
        }
    }

    /// pass@k of a sample, from all of its responses.
    ///
    /// Where one stopped those behind it, how many there are depends on what they are, and the share that passes would be
    /// wrong for it. What the first `k` of them did is not: whether a response is among those does not depend on any
    /// response. Those that were left out were given up, and do not pass: to leave their rows out of the mean would leave
    /// out rows that fail.
    pub(crate) fn pass_at_k(&self, responses: &[ResponseOutput]) -> BTreeMap<u32, Option<f64>> {
        let passed: Vec<bool> = responses.iter().map(|response| response.checked.is_passed()).collect();
        let num = passed.len() as u32;
        let num_passed = passed.iter().filter(|&&passed| passed).count() as u32;
        let is_stopped = responses.iter().any(|response| response.checked.stops());
        let of_k = |k| if is_stopped { Some(first_k(&passed, k)) } else { pass_at_k(num, num_passed, k) };
        self.pass_at_k.iter().map(|&k| (k, of_k(k))).collect()
    }
}

/// How good a response is. What has no value is worse than anything.
fn value(by: BestOf, response: &ResponseOutput) -> f64 {
    let sum = |logprobs: &Vec<f32>| logprobs.iter().map(|&logprob| f64::from(logprob)).sum::<f64>();
    let value = match by {
        BestOf::Score => response.checked.score,
        BestOf::SumLogprob => response.logprobs.as_ref().map(sum),
        BestOf::MeanLogprob => {
            response.logprobs.as_ref().map(|logprobs| sum(logprobs) / logprobs.len().max(1) as f64)
        }
    };
    value.unwrap_or(f64::NEG_INFINITY)
}

/// Whether one of the first `k` responses passes.
fn first_k(passed: &[bool], k: u32) -> f64 {
    let first = passed.get(..k as usize).unwrap_or(passed);
    if first.contains(&true) { 1.0 } else { 0.0 }
}

/// The unbiased estimate that one of `k` responses passes, where `num_passed` of `num` did: one minus the share of the
/// choices of `k` among which none has. As a product, as in the evaluation of HumanEval (Chen et al. 2021), because the
/// binomial coefficients would overflow. None where there are fewer than `k`.
fn pass_at_k(num: u32, num_passed: u32, k: u32) -> Option<f64> {
    if k > num {
        return None;
    }
    let num_failed = num - num_passed;
    if num_failed < k {
        return Some(1.0);
    }
    let none_passes: f64 = (num_failed + 1..=num).map(|i| 1.0 - f64::from(k) / f64::from(i)).product();
    Some(1.0 - none_passes)
}

/// pass@k over the rows of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct PassTotals {
    /// The mean over the rows that have enough responses.
    pass_at_k: BTreeMap<u32, f64>,
    /// How many those are.
    #[serde(rename = "pass_at_k_rows")]
    rows: BTreeMap<u32, u64>,
    #[serde(skip)]
    sums: BTreeMap<u32, f64>,
}

impl PassTotals {
    /// Counts in a row, in the order of the output: sums of floats depend on it.
    pub(crate) fn add(&mut self, row: &BTreeMap<u32, Option<f64>>) {
        for (&k, &value) in row {
            let Some(value) = value else { continue };
            let (sum, rows) = (self.sums.entry(k).or_default(), self.rows.entry(k).or_default());
            *sum += value;
            *rows += 1;
            self.pass_at_k.insert(k, *sum / *rows as f64);
        }
    }

    /// For the table, if there is anything to say.
    pub(crate) fn text(&self) -> Option<String> {
        let of_k = |(k, value): (&u32, &f64)| format!("pass@{k} {value:.4}");
        let values: Vec<String> = self.pass_at_k.iter().map(of_k).collect();
        let most_rows = self.rows.values().max()?;
        Some(format!("{} over {most_rows} rows", values.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Checked, CleanResponse, Verdict};

    fn response(response_idx: u32, logprobs: &[f32], verdict: Verdict, score: f64) -> ResponseOutput {
        ResponseOutput {
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: (!logprobs.is_empty()).then(|| logprobs.to_vec()),
            top_logprobs: None,
            finish_reason: if response_idx == 3 { FinishReason::Length } else { FinishReason::Eos },
            error: None,
            clean: CleanResponse::default(),
            response_idx,
            checked: Checked { verdict: Some(verdict), score: Some(score) },
        }
    }

    fn responses() -> Vec<ResponseOutput> {
        vec![
            response(0, &[-1.0], Verdict::Fail, 0.5),
            response(1, &[-0.5, -0.75], Verdict::Pass, 0.75),
            response(2, &[], Verdict::Fail, 0.75),
            response(3, &[-0.25], Verdict::Pass, 1.0),
        ]
    }

    #[test]
    fn a_failed_response_is_not_the_best() {
        let failed = |idx: u32| ResponseOutput {
            finish_reason: FinishReason::Error,
            error: Some("no token may be next".to_owned()),
            ..response(idx, &[-0.001], Verdict::Pass, 9.0)
        };
        for by in [BestOf::Score, BestOf::SumLogprob, BestOf::MeanLogprob] {
            let selection = Selection { best_of: Some(by), ..Selection::only(Unfinished::Keep) };
            let kept = |mut responses: Vec<ResponseOutput>| {
                selection.keep(&mut responses);
                responses.iter().map(|response| response.response_idx).collect::<Vec<_>>()
            };
            assert_eq!(kept(vec![failed(0), response(1, &[-7.0], Verdict::Fail, 0.0)]), [1], "{by:?}");
            assert_eq!(kept(vec![failed(0), failed(1)]), [0], "{by:?}");
            assert_eq!(kept(Vec::new()), [0; 0]);
        }
    }

    #[test]
    fn the_best_is_kept_and_of_equal_ones_the_first() {
        let check = |unfinished, best_of, expect: &[u32]| {
            let mut kept = responses();
            Selection { best_of, ..Selection::only(unfinished) }.keep(&mut kept);
            let idxs: Vec<u32> = kept.iter().map(|response| response.response_idx).collect();
            assert_eq!(idxs, expect, "{best_of:?}");
        };
        check(Unfinished::Keep, None, &[0, 1, 2, 3]);
        check(Unfinished::Drop, None, &[0, 1, 2]);
        check(Unfinished::Keep, Some(BestOf::SumLogprob), &[3]);
        check(Unfinished::Drop, Some(BestOf::SumLogprob), &[0]);
        check(Unfinished::Drop, Some(BestOf::MeanLogprob), &[1]);
        check(Unfinished::Drop, Some(BestOf::Score), &[1]);
        check(Unfinished::Keep, Some(BestOf::Score), &[3]);
    }

    /// By `estimate_pass_at_k` of OpenAI's human-eval (`tests/fixtures/scripts/make_pass_at_k.py`), all digits.
    #[test]
    fn estimates_are_those_of_human_eval() {
        let golden = include_str!("select/pass_at_k.txt");
        let mut num = 0;
        for line in golden.lines() {
            let fields: Vec<f64> = line.split(' ').map(|field| field.parse().unwrap()).collect();
            let [n, c, k, expect] = fields[..] else { panic!("{line}") };
            let actual = pass_at_k(n as u32, c as u32, k as u32).unwrap();
            assert!((actual - expect).abs() < 1e-14, "{line}: {actual}");
            num += 1;
        }
        assert!(num > 150);
        assert_eq!(pass_at_k(3, 3, 4), None);
    }

    #[test]
    fn rows_that_were_stopped_tell_of_their_first_responses() {
        let selection = Selection { pass_at_k: vec![1, 2, 3], ..Selection::only(Unfinished::Keep) };
        let check = |verdicts: &[Verdict], expect: [Option<f64>; 3]| {
            let responses = (0..).zip(verdicts).map(|(idx, &verdict)| response(idx, &[], verdict, 0.0));
            let row = selection.pass_at_k(&responses.collect::<Vec<_>>());
            assert_eq!(row.into_values().collect::<Vec<_>>(), expect, "{verdicts:?}");
        };
        use Verdict::{Fail, FailAndStop, Pass, PassAndStop, Stop};
        check(&[PassAndStop], [Some(1.0); 3]);
        check(&[Fail, PassAndStop], [Some(0.0), Some(1.0), Some(1.0)]);
        check(&[Fail, Fail, PassAndStop], [Some(0.0), Some(0.0), Some(1.0)]);
        check(&[FailAndStop], [Some(0.0); 3]);
        check(&[Fail, Stop], [Some(0.0); 3]);
        check(&[Pass, FailAndStop], [Some(1.0); 3]);
        check(&[Pass, Stop], [Some(1.0); 3]);
    }

    /// Over all texts of three responses that a prompt may have, weighted by their probability: the mean of the estimates
    /// is the probability that one of `k` passes, whatever the program stops at.
    #[test]
    fn estimates_are_unbiased_however_a_program_stops() {
        use Verdict::{Fail, Pass, PassAndStop};
        const OF_PASS: f64 = 0.3;
        let selection = Selection { pass_at_k: vec![1, 2, 3], ..Selection::only(Unfinished::Keep) };
        for stops in [false, true] {
            let mut means = [0.0; 3];
            for texts in 0..8_u32 {
                let passes = |idx: u32| texts >> idx & 1 == 1;
                let probability: f64 =
                    (0..3).map(|idx| if passes(idx) { OF_PASS } else { 1.0 - OF_PASS }).product();
                let verdict = |idx| match (passes(idx), stops) {
                    (false, _) => Fail,
                    (true, false) => Pass,
                    (true, true) => PassAndStop,
                };
                let stop = (0..3).find(|&idx| verdict(idx).stops()).unwrap_or(2);
                let kept: Vec<_> = (0..=stop).map(|idx| response(idx, &[], verdict(idx), 0.0)).collect();
                for (mean, estimate) in means.iter_mut().zip(selection.pass_at_k(&kept).into_values()) {
                    *mean += probability * estimate.unwrap();
                }
            }
            for (k, mean) in (1..).zip(means) {
                let truth = 1.0 - (1.0 - OF_PASS).powi(k);
                assert!((mean - truth).abs() < 1e-12, "{k}: {mean}, not {truth}");
            }
        }
    }

    #[test]
    fn totals_are_means_over_rows_with_enough_responses() {
        let selection = Selection { pass_at_k: vec![1, 4, 5], ..Selection::only(Unfinished::Keep) };
        let row = selection.pass_at_k(&responses());
        assert_eq!(row, BTreeMap::from([(1, Some(0.5)), (4, Some(1.0)), (5, None)]));
        let mut totals = PassTotals::default();
        assert_eq!(totals.text(), None);
        totals.add(&row);
        totals.add(&BTreeMap::from([(1, Some(0.25)), (4, None), (5, None)]));
        assert_eq!(totals.text().unwrap(), "pass@1 0.3750, pass@4 1.0000 over 2 rows");
        insta::assert_snapshot!(serde_json::to_string(&totals).unwrap(), @r#"{"pass_at_k":{"1":0.375,"4":1.0},"pass_at_k_rows":{"1":2,"4":1}}"#);
    }
}
