//! Hashes of the tokens that `aligner-gen bench` draws with dummy weights of known shapes: every run has the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::build::ALIGNER_GEN;
use super::kit::Kit;
use super::process::{self, Event, Next};
use super::report::{Outcome, Report, compare};

/// The largest shape with few rows at once takes a minute.
const LIMIT: Duration = Duration::from_secs(300);

/// More sequences than the base run has at once.
const MANY: &str = "fixed:24:12:1024";

/// Measures of the base run.
const MEASURES: [&str; 4] = ["bulk", "ragged", "shared", MANY];

/// A run that must have the hashes of the base run.
struct Variant {
    name: &'static str,
    options: &'static [&'static str],
    /// Its measures, and which ones of the base run they must equal.
    measures: &'static [(&'static str, &'static str)],
}

const VARIANTS: [Variant; 6] = [
    Variant { name: "again", options: &[], measures: &[("bulk", "bulk")] },
    Variant { name: "in another order", options: &[], measures: &[("order", "bulk")] },
    Variant {
        name: "12 sequences at once",
        options: &["--max-num-seqs", "12"],
        measures: &[("ragged", "ragged"), ("shared", "shared")],
    },
    // Some 40 of the 256 have room.
    Variant {
        name: "a small cache and the host",
        options: &["--num-blocks", "400", "--num-host-blocks", "4000"],
        measures: &[("ragged", "ragged")],
    },
    Variant {
        name: "1,000 sequences at once",
        options: &["--max-num-seqs", "1000"],
        measures: &[(MANY, MANY)],
    },
    Variant {
        name: "1,024 sequences at once",
        options: &["--max-num-seqs", "1024"],
        measures: &[(MANY, MANY)],
    },
];

/// The hashes of one shape, a result for each measure and run.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn check(kit: &Kit, report: &mut Report<'_>, shape: &str) -> Result<()> {
    let base = run(kit, shape, &MEASURES, &[]);
    for measure in MEASURES {
        report.record(&format!("bench, {shape}, {measure}"), &of_measure(&base, measure))?;
    }
    for variant in &VARIANTS {
        let measures: Vec<&str> = variant.measures.iter().map(|(measure, _)| *measure).collect();
        let hashes = run(kit, shape, &measures, variant.options);
        for (measure, expect) in variant.measures {
            let outcome = compare(of_measure(&hashes, measure), &of_measure(&base, expect));
            report.record(&format!("bench, {shape}, {measure}, {}", variant.name), &outcome)?;
        }
    }
    Ok(())
}

/// Numbers of tensor-parallel ranks that must have the hashes of one rank with the same tree of sums.
const TENSOR_SIZES: [&str; 2] = ["2", "4"];

/// The hashes of one shape on several ranks, which share a GPU where there are too few.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn check_ranks(kit: &Kit, report: &mut Report<'_>, shape: &str) -> Result<()> {
    const RAGGED: &str = "ragged";
    let base = run(kit, shape, &[RAGGED], &["--tree"]);
    report.record(&format!("bench, {shape}, {RAGGED}, sums in a tree"), &of_measure(&base, RAGGED))?;
    for size in TENSOR_SIZES {
        let hashes = run(kit, shape, &[RAGGED], &["--tensor", size]);
        let outcome = compare(of_measure(&hashes, RAGGED), &of_measure(&base, RAGGED));
        report.record(&format!("bench, {shape}, {RAGGED}, {size} tensor-parallel ranks"), &outcome)?;
    }
    Ok(())
}

fn of_measure(hashes: &Result<BTreeMap<String, String>>, measure: &str) -> Outcome {
    match hashes {
        Ok(hashes) => hashes.get(measure).cloned().ok_or_else(|| "no line tells its hash".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// A line of the benchmark, as far as it is compared.
#[derive(Deserialize)]
struct Line {
    case: String,
    tokens: u64,
    hash: String,
}

/// The hashes by the names of the measures.
fn run(kit: &Kit, shape: &str, measures: &[&str], options: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut command = kit.command(ALIGNER_GEN)?;
    command.args(["bench", "--device", kit.device.flag(), "--shape", shape]);
    command.arg("--measures").arg(measures.join(",")).args(options);
    let mut hashes = BTreeMap::new();
    let mut problem = None;
    let mut watch = |event: Event<'_>| {
        if let Event::Line(line) = event {
            match parse(line) {
                Ok(line) => drop(hashes.insert(line.case, line.hash)),
                Err(error) => problem = Some(error),
            }
        }
        Ok(Next::GoOn)
    };
    let finished = process::run(&mut command, LIMIT, &mut watch)?;
    if let Some(problem) = finished.problem() {
        bail!("{problem}");
    }
    problem.map_or(Ok(hashes), Err)
}

fn parse(line: &str) -> Result<Line> {
    let parsed: Line = serde_json::from_str(line)
        .with_context(|| format!("not a line of the benchmark: `{}`", process::last_words(line)))?;
    if parsed.tokens == 0 {
        bail!("`{}` has drawn no token", parsed.case);
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_tokens_or_hash_is_an_error() {
        assert_eq!(parse(r#"{"case": "bulk", "tokens": 5, "hash": "ab", "wall_s": 1}"#).unwrap().hash, "ab");
        for line in
            [r#"{"case": "bulk", "tokens": 0, "hash": "ab"}"#, r#"{"case": "bulk", "tokens": 5}"#, "noise"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_measure_without_a_line_has_no_hash() {
        assert!(of_measure(&Ok(BTreeMap::new()), "bulk").is_err());
    }
}
