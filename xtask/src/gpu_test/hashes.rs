//! Hashes of the tokens that `aligner-gen bench` draws with dummy weights of known shapes: every run has the same.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::build::ALIGNER_GEN;
use super::kit::{Gpus, Kit};
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

/// A model over several ranks.
struct Ranks {
    name: &'static str,
    options: &'static [&'static str],
    /// Another way than from GPU to GPU.
    exchange: Option<&'static str>,
    /// Which of the two base runs it must equal.
    sums: Sums,
}

/// How sums over inputs are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sums {
    Chain,
    Tree,
}

const fn ranks(name: &'static str, options: &'static [&'static str], sums: Sums) -> Ranks {
    Ranks { name, options, exchange: None, sums }
}

const LAYOUTS: [Ranks; 8] = [
    ranks("2 tensor-parallel ranks", &["--tensor", "2"], Sums::Tree),
    ranks("4 tensor-parallel ranks", &["--tensor", "4"], Sums::Tree),
    ranks("2 stages", &["--pipeline", "2"], Sums::Chain),
    ranks("2 stages, sums in a tree", &["--pipeline", "2", "--tree"], Sums::Tree),
    ranks("2 tensor-parallel ranks x 2 stages", &["--tensor", "2", "--pipeline", "2"], Sums::Tree),
    Ranks { exchange: Some("host"), ..ranks("2 ranks through the host", &["--tensor", "2"], Sums::Tree) },
    Ranks { exchange: Some("host"), ..ranks("2 stages through the host", &["--pipeline", "2"], Sums::Chain) },
    Ranks { exchange: Some("messages"), ..ranks("2 stages by messages", &["--pipeline", "2"], Sums::Chain) },
];

/// The hashes of one shape on several ranks: on one GPU, which they share, and on a GPU each where there are several.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn check_ranks(kit: &Kit, report: &mut Report<'_>, shape: &str) -> Result<()> {
    const RAGGED: &str = "ragged";
    let mut bases = Vec::new();
    for (sums, name, options) in
        [(Sums::Chain, "sums in a chain", &[][..]), (Sums::Tree, "sums in a tree", &["--tree"][..])]
    {
        let base = of_measure(&run(kit, shape, &[RAGGED], options), RAGGED);
        report.record(&format!("bench, {shape}, {RAGGED}, {name}"), &base)?;
        bases.push((sums, base));
    }
    for (place, gpus) in [("one GPU", Gpus::First), ("a GPU each", Gpus::All)] {
        if gpus == Gpus::All && !kit.has_several_gpus() {
            continue;
        }
        for layout in &LAYOUTS {
            let mut command = kit.command_on(ALIGNER_GEN, gpus)?;
            if let Some(exchange) = layout.exchange {
                command.env("ALIGNER_GEN_EXCHANGE", exchange);
            }
            let hashes = run_as(command, kit, shape, &[RAGGED], layout.options);
            let Some((_, base)) = bases.iter().find(|(sums, _)| *sums == layout.sums) else { continue };
            let outcome = compare(of_measure(&hashes, RAGGED), base);
            report.record(&format!("bench, {shape}, {RAGGED}, {}, {place}", layout.name), &outcome)?;
        }
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
    run_as(kit.command(ALIGNER_GEN)?, kit, shape, measures, options)
}

/// The same of a program that is prepared.
fn run_as(
    mut command: Command,
    kit: &Kit,
    shape: &str,
    measures: &[&str],
    options: &[&str],
) -> Result<BTreeMap<String, String>> {
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
