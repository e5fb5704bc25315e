//! `aligner-gen report`: what a folder of results holds, as one HTML file that needs nothing else, or as a table.
//!
//! It reads `generations.jsonl` line by line, `summary.json` and the TensorBoard events, and writes nothing but its page.
//! The same folder gives the same bytes.

mod chart;
mod figures;
mod page;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use data::{Json, JsonObject, parse_object};
use indicatif::MultiProgress;

use crate::config::cli::ReportArgs;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::job::progress::ReadingBar;
use crate::metrics::{self, SeriesPoint};
use crate::output::{OutputFolder, write_atomically};
use figures::{Figures, Sample};

/// The page, beside the results.
const PAGE: &str = "report.html";

/// What a folder holds.
struct Results {
    figures: Figures,
    series: Vec<SeriesPoint>,
    /// `summary.json`, of the last run on the folder.
    summary: Option<JsonObject>,
}

/// Writes the page, or prints the table.
pub(crate) fn run(arguments: &ReportArgs, stdout: &mut dyn Write) -> Result<(), Failure> {
    let (log_dir, jsonl) = find(&arguments.folder)?;
    let results = Results {
        figures: read_lines(&jsonl, arguments.samples)?,
        series: metrics::read_series(&log_dir)
            .with_context(|| format!("cannot read the TensorBoard events in `{}`", log_dir.display()))
            .exit_with(ExitStatus::Data)?,
        summary: read_summary(&log_dir)?,
    };
    if arguments.summary {
        stdout.write_all(results.figures.table(&results.series).as_bytes()).map_err(anyhow::Error::from)?;
        return Ok(());
    }
    let page = page::render(&log_dir, &results.figures, &results.series, results.summary.as_ref());
    let path = arguments.output.clone().unwrap_or_else(|| log_dir.join(PAGE));
    refuse_other_file(&path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(PAGE);
    write_atomically(folder, name, page.as_bytes())
        .with_context(|| format!("cannot write `{}`", path.display()))
        .exit_with(ExitStatus::Failed)?;
    writeln!(stdout, "{}", path.display()).map_err(anyhow::Error::from)?;
    Ok(())
}

/// Refuses to write over what is no page, such as the results themselves.
fn refuse_other_file(path: &Path) -> Result<(), Failure> {
    const BEGIN: &[u8] = b"<!doctype html";
    if !path.is_file() {
        return Ok(());
    }
    let mut begin = Vec::new();
    let file = File::open(path).and_then(|file| file.take(BEGIN.len() as u64).read_to_end(&mut begin));
    file.with_context(|| format!("cannot read `{}`", path.display())).exit_with(ExitStatus::Failed)?;
    if begin.is_empty() || begin.eq_ignore_ascii_case(BEGIN) {
        return Ok(());
    }
    Err(Failure::usage(format!("`{}` is there and is no page: name another file", path.display())))
}

/// The log folder and its `generations.jsonl`, of a log folder or of the folder of results in it.
fn find(folder: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let of_log_dir = folder.join("generations").join(OutputFolder::JSONL);
    if of_log_dir.is_file() {
        return Ok((folder.to_owned(), of_log_dir));
    }
    let inside = folder.join(OutputFolder::JSONL);
    if inside.is_file() {
        let log_dir = folder.parent().unwrap_or(folder).to_owned();
        return Ok((log_dir, inside));
    }
    Err(anyhow::anyhow!(
        "`{}` holds no results: there is neither `generations/{jsonl}` nor `{jsonl}` in it",
        folder.display(),
        jsonl = OutputFolder::JSONL
    ))
    .exit_with(ExitStatus::Data)
}

/// Reads all whole lines. What a run that goes on has not finished writing is left out.
fn read_lines(path: &Path, most_samples: usize) -> Result<Figures, Failure> {
    let cannot_read = || format!("cannot read `{}`", path.display());
    let file = File::open(path).with_context(cannot_read).exit_with(ExitStatus::Data)?;
    let mut input = BufReader::with_capacity(1 << 17, file);
    let mut figures = Figures::new(most_samples);
    let reading = ReadingBar::start(&MultiProgress::new());
    let mut line = 0_u64;
    loop {
        let mut bytes = Vec::new();
        input.read_until(b'\n', &mut bytes).with_context(cannot_read).exit_with(ExitStatus::Data)?;
        if bytes.pop() != Some(b'\n') {
            return Ok(figures);
        }
        line += 1;
        reading.record();
        let sample = parse_object(&bytes).map_err(|error| error.to_string()).and_then(Sample::read);
        let sample = sample
            .map_err(|reason| {
                anyhow::anyhow!("line {line} of `{}` is no line of results: {reason}", path.display())
            })
            .exit_with(ExitStatus::Data)?;
        figures.add(sample);
    }
}

fn read_summary(log_dir: &Path) -> Result<Option<JsonObject>, Failure> {
    let path = log_dir.join("summary.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let error = anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()));
            return Err(error).exit_with(ExitStatus::Data);
        }
    };
    let summary = parse_object(&bytes).with_context(|| format!("cannot read `{}`", path.display()));
    summary.map(Some).exit_with(ExitStatus::Data)
}

/// A number of a summary, such as `seconds.load`.
fn number_at(summary: &JsonObject, path: &[&str]) -> Option<f64> {
    let (first, rest) = path.split_first()?;
    match (summary.get(*first)?, rest) {
        (Json::Number(text), []) => text.parse().ok(),
        (Json::Object(inner), rest) => number_at(inner, rest),
        _ => None,
    }
}
