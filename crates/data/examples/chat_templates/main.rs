//! Compares chat templates with the judge of `cargo xtask templates`, which runs this.
//!
//! `chat_templates JUDGED CONVERSATIONS EXCEPTIONS` prints the counts on standard output and the differences on standard error.
//! A rendering is equal when the text is, or when both sides refuse; what a template says with `raise_exception` must
//! be the same too.

use std::io::Write;
use std::process::ExitCode;

mod compare;
mod exceptions;
mod judged;

use compare::{Report, compare};
use exceptions::Exceptions;
use judged::Judged;

/// Less would mean that packages or conversations got lost on the way.
const MIN_RENDERINGS: usize = 1_500;
/// Of the templates that differ, how many are shown with both texts.
const MAX_SHOWN: usize = 10;

fn main() -> ExitCode {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    match run(&paths) {
        Ok((passed, failed)) => {
            // Standard output is closed: there is nowhere to report to.
            let _ = writeln!(std::io::stdout(), "{passed} passed, {failed} failed");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The counts: each template is a test, and so is each line of the exceptions that nothing needs.
fn run(paths: &[String]) -> Result<(usize, usize), String> {
    let [judged, conversations, exceptions] = paths else {
        return Err("give the judge's file, the conversations and the exceptions".to_owned());
    };
    let read = |path: &String| std::fs::read_to_string(path).map_err(|error| format!("`{path}`: {error}"));
    let judged = Judged::parse(&read(judged)?, &read(conversations)?)?;
    let mut exceptions = Exceptions::parse(&read(exceptions)?)?;
    let report = compare(&judged, &mut exceptions)?;
    if report.num_renderings < MIN_RENDERINGS {
        return Err(format!(
            "there are {} renderings, and {MIN_RENDERINGS} are needed",
            report.num_renderings
        ));
    }
    let stale = exceptions.stale(&judged.template_ids());
    tell(&report, &stale);
    Ok((report.num_templates - report.num_failed_templates, report.num_failed_templates + stale.len()))
}

/// The first difference of each template, the first few in full.
fn tell(report: &Report, stale: &[String]) {
    let mut num_shown = 0;
    for differences in report.differences.chunk_by(|a, b| a.template == b.template) {
        let [first, further @ ..] = differences else { continue };
        if num_shown < MAX_SHOWN {
            say(&first.to_string());
        } else {
            say(&format!("different: {} | {}", first.template, first.conversation));
        }
        num_shown += 1;
        if !further.is_empty() {
            say(&format!("  and {} more of its conversations", further.len()));
        }
    }
    for line in stale {
        say(&format!("exceptions.txt names what is equal now: {line}"));
    }
    let num_different = report.differences.len();
    say(&format!(
        "{} chat templates, {} renderings: {} equal, {} excepted, {num_different} different",
        report.num_templates,
        report.num_renderings,
        report.num_renderings - report.num_excepted - num_different,
        report.num_excepted,
    ));
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
