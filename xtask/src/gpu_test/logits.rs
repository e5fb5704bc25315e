//! Logits of every backend and precision, compared with the original software's in float32.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::build::ALIGNER_GEN;
use super::kit::Kit;
use super::models::{MODELS, Model};
use super::process::{self, Next};
use super::report::Report;

const LIMIT: Duration = Duration::from_secs(120);

/// Precisions, and the largest difference of a logit, in standard deviations of all logits.
const PRECISIONS: [(&str, f64); 2] = [("32", 2e-4), ("bf16", 0.35)];
const BACKENDS: [&str; 2] = ["plain", "fused"];

/// One result for each model, backend and precision.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn all(kit: &Kit, report: &mut Report<'_>) -> Result<()> {
    for model in MODELS {
        for backend in BACKENDS {
            for (precision, tolerance) in PRECISIONS {
                let outcome = check(kit, &model, backend, precision)
                    .and_then(|worst| {
                        let facts = format!("off by {worst:.2e} standard deviations, {tolerance} allowed");
                        if worst < tolerance { Ok(facts) } else { bail!("{facts}") }
                    })
                    .map_err(|error| format!("{error:#}"));
                report.record(&format!("logits, {}, {backend}, {precision}", model.name), &outcome)?;
            }
        }
    }
    Ok(())
}

/// The largest difference, in standard deviations of what is expected.
fn check(kit: &Kit, model: &Model, backend: &str, precision: &str) -> Result<f64> {
    let output = kit.scratch().join("logits.npy");
    // What an earlier run wrote must not be taken for this one's.
    if output.exists() {
        std::fs::remove_file(&output).context("cannot remove earlier logits")?;
    }
    let mut command = kit.command(ALIGNER_GEN)?;
    command.arg("logits").arg("--checkpoint").arg(kit.fixture(model.checkpoint));
    command.arg("--input-ids").arg(kit.fixture(model.input_ids)).arg("--output").arg(&output);
    command.args(["--device", kit.device.flag(), "--backend", backend, "--precision", precision]);
    let finished = process::run(&mut command, LIMIT, &mut |_| Ok(Next::GoOn))?;
    if let Some(problem) = finished.problem() {
        bail!("{problem}");
    }
    largest_difference(&Logits::read(&output)?, &Logits::read(&kit.fixture(model.logits))?)
}

/// Float32 of shape `[batch, seq, vocab]`.
#[derive(Debug)]
struct Logits {
    shape: [u64; 3],
    values: Vec<f32>,
}

impl Logits {
    fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let file = npyz::NpyFile::new(BufReader::new(File::open(path)?))?;
            let &[batch, seq, vocab] = file.shape() else { bail!("it has shape {:?}", file.shape()) };
            Ok(Self { shape: [batch, seq, vocab], values: file.into_vec::<f32>()? })
        };
        read().with_context(|| format!("cannot read `{}`", path.display()))
    }
}

/// Compares the columns that `expect` has: the program may pad the vocabulary further.
fn largest_difference(actual: &Logits, expect: &Logits) -> Result<f64> {
    let (padded, vocab) = (usize::try_from(actual.shape[2])?, usize::try_from(expect.shape[2])?);
    if actual.shape[..2] != expect.shape[..2] || padded < vocab || vocab == 0 {
        bail!("the logits have shape {:?}, expected {:?}", actual.shape, expect.shape);
    }
    let mut worst = 0.0_f64;
    for (actual, expect) in actual.values.chunks(padded).zip(expect.values.chunks(vocab)) {
        for (a, b) in actual.iter().zip(expect) {
            let difference = (f64::from(*a) - f64::from(*b)).abs();
            // `max` would drop a NaN.
            if difference.is_nan() {
                bail!("a logit is not a number");
            }
            worst = worst.max(difference);
        }
    }
    let deviation = standard_deviation(&expect.values);
    if deviation.is_nan() || deviation <= 0.0 {
        bail!("the expected logits are all the same");
    }
    Ok(worst / deviation)
}

fn standard_deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    (values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(vocab: u64, values: &[f32]) -> Logits {
        Logits { shape: [1, values.len() as u64 / vocab, vocab], values: values.to_vec() }
    }

    #[test]
    fn differences_are_told_in_standard_deviations() {
        let expect = logits(2, &[0.0, 2.0, 0.0, 2.0]);
        assert_eq!(largest_difference(&expect, &expect).unwrap(), 0.0);
        // Padding is not compared.
        let padded = logits(3, &[0.0, 2.5, 9.0, 0.0, 2.0, 9.0]);
        assert_eq!(largest_difference(&padded, &expect).unwrap(), 0.5);
    }

    #[test]
    fn what_does_not_compare_is_an_error() {
        let expect = logits(2, &[0.0, 2.0, 0.0, 2.0]);
        let problem =
            |actual: &[f32]| largest_difference(&logits(2, actual), &expect).unwrap_err().to_string();
        assert_eq!(problem(&[0.0, f32::NAN, 0.0, 2.0]), "a logit is not a number");
        assert!(problem(&[0.0, 2.0]).starts_with("the logits have shape"));
        assert!(largest_difference(&logits(1, &[0.0, 0.0]), &expect).is_err());
        let flat = logits(2, &[1.0; 4]);
        assert_eq!(
            largest_difference(&flat, &flat).unwrap_err().to_string(),
            "the expected logits are all the same"
        );
    }
}
