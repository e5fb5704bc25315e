//! Pearson's chi-square test: its statistic, its critical value and its power.
//!
//! The distribution functions follow Abramowitz and Stegun, 6.5.29 (series of the incomplete gamma function) and 26.4.25
//! (noncentral chi-square as a Poisson mixture).

/// The statistic of `counts` against `probabilities`. What is impossible must not have been drawn.
pub(crate) fn statistic(probabilities: &[f64], counts: &[f64]) -> f64 {
    let num_draws: f64 = counts.iter().sum();
    let term = |(&probability, &count): (&f64, &f64)| {
        let expected = num_draws * probability;
        match probability > 0.0 {
            true => (count - expected).powi(2) / expected,
            false if count == 0.0 => 0.0,
            false => f64::INFINITY,
        }
    };
    probabilities.iter().zip(counts).map(term).sum()
}

fn degrees_of_freedom(probabilities: &[f64]) -> f64 {
    probabilities.iter().filter(|&&probability| probability > 0.0).count() as f64 - 1.0
}

/// What the statistic exceeds with a probability of `level` only.
pub(crate) fn critical_value(probabilities: &[f64], level: f64) -> f64 {
    let freedom = degrees_of_freedom(probabilities);
    let (mut low, mut high) = (0.0, 10.0 * freedom + 100.0);
    while high - low > 1e-9 * high {
        let middle = (low + high) / 2.0;
        if distribution(middle, freedom) < 1.0 - level { low = middle } else { high = middle }
    }
    high
}

/// The probability that `num_draws` draws that follow `fault` exceed `critical`.
pub(crate) fn power(probabilities: &[f64], fault: &[f64], num_draws: usize, critical: f64) -> f64 {
    let pairs = || probabilities.iter().zip(fault);
    if pairs().any(|(&exact, &fault)| exact == 0.0 && fault * num_draws as f64 > 100.0) {
        // An impossible token that is drawn is found at once.
        return 1.0;
    }
    let possible = pairs().filter(|(exact, _)| **exact > 0.0);
    let distance: f64 = possible.map(|(exact, fault)| (fault - exact).powi(2) / exact).sum();
    let half = num_draws as f64 * distance / 2.0;
    let freedom = degrees_of_freedom(probabilities);
    let (mean, deviation) = (freedom + 2.0 * half, (2.0 * freedom + 8.0 * half).sqrt());
    if mean - 30.0 * deviation > critical {
        return 1.0;
    }
    let mut missed = 0.0;
    for j in 0..(2.0 * half + 200.0) as u32 {
        let log_poisson = f64::from(j) * half.ln() - half - log_gamma(f64::from(j) + 1.0);
        missed += log_poisson.exp() * distribution(critical, freedom + 2.0 * f64::from(j));
    }
    1.0 - missed
}

/// The chi-square distribution function.
fn distribution(x: f64, freedom: f64) -> f64 {
    let (a, x) = (freedom / 2.0, x / 2.0);
    let mut term = (a * x.ln() - x - log_gamma(a + 1.0)).exp();
    let mut sum = term;
    for n in 1..10_000 {
        term *= x / (a + f64::from(n));
        sum += term;
        if term < sum * 1e-16 {
            break;
        }
    }
    if x > 0.0 { sum.min(1.0) } else { 0.0 }
}

/// Stirling's series after shifting the argument past 10.
fn log_gamma(x: f64) -> f64 {
    if x < 10.0 {
        return log_gamma(x + 1.0) - x.ln();
    }
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1260.0 * x.powi(5));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

#[test]
fn tables_of_the_distribution() {
    for (freedom, level, expect) in
        [(1, 0.05, 3.841_459), (6, 0.001, 22.457_744), (39, 0.001, 72.054_663), (24, 0.5, 23.336_726)]
    {
        let value = critical_value(&vec![1.0; freedom + 1], level);
        assert!((value - expect).abs() < 1e-4, "{freedom} degrees at {level}: {value}");
    }
}
