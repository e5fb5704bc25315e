//! A program of several cases, each with a line of its own: `ok NAME: FACTS` or `FAILED NAME: REASON`, the counts last.
//!
//! A line `refused NAME: SENTENCE` is of a case that is not there for such a device, and counts as neither.
//!
//! Its lines become results. Its report is not believed unless its counts and its exit code agree with them.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::process::{self, End, Event, Next, last_words};
use super::report::{Outcome, Report};
use crate::counts::Counts;

/// Runs the program, and records each of its cases as `PART, CASE` and what is wrong with the whole as `PART`.
///
/// # Errors
/// When the report cannot be written.
pub(super) fn run(report: &mut Report<'_>, part: &str, command: &mut Command, limit: Duration) -> Result<()> {
    let mut seen = Seen::default();
    let mut watch = |event: Event<'_>| {
        let Event::Line(line) = event else { return Ok(Next::GoOn) };
        if let Some((case, outcome)) = seen.line(line) {
            report.record(&format!("{part}, {case}"), &outcome)?;
        } else if let Some(refused) = line.strip_prefix("refused ") {
            report.print(&format!("refused {part}, {}", last_words(refused)))?;
        }
        Ok(Next::GoOn)
    };
    let problem = match process::run(command, limit, &mut watch) {
        Ok(finished) => seen.problem(finished.end).map(|problem| {
            let words = last_words(&finished.stderr);
            if words.is_empty() { problem } else { format!("{problem}: {words}") }
        }),
        Err(error) => Some(format!("{error:#}")),
    };
    problem.map_or(Ok(()), |problem| report.record(part, &Err(problem)))
}

/// What a program has printed so far.
#[derive(Debug, Default)]
struct Seen {
    counts: Counts,
    last_case: String,
    last_line: String,
}

impl Seen {
    /// Takes a line of output; the case, if it is the line of one.
    fn line(&mut self, line: &str) -> Option<(String, Outcome)> {
        if !line.trim().is_empty() {
            line.clone_into(&mut self.last_line);
        }
        let (verdict, rest) = line.split_once(' ')?;
        let (case, text) = rest.trim_start().split_once(':').unwrap_or((rest.trim_start(), ""));
        let text = last_words(text);
        let outcome = match verdict {
            "ok" => Ok(text),
            "FAILED" => Err(text),
            _ => return None,
        };
        match outcome {
            Ok(_) => self.counts.passed += 1,
            Err(_) => self.counts.failed += 1,
        }
        self.last_case = last_words(case);
        Some((self.last_case.clone(), outcome))
    }

    /// What is wrong besides the cases that failed.
    fn problem(&self, end: End) -> Option<String> {
        let after = match self.last_case.as_str() {
            "" => "before its first case".to_owned(),
            case => format!("after the case `{case}`"),
        };
        let code = match end {
            End::Exited(code) => code,
            End::Signalled(signal) => return Some(format!("was killed by signal {signal} {after}")),
            End::TimedOut(limit) => {
                return Some(format!("did not end within {} s and was killed {after}", limit.as_secs_f64()));
            }
            End::Killed => return Some(format!("was killed {after}")),
        };
        let expect = i32::from(self.counts.failed > 0);
        match Counts::parse(&self.last_line) {
            None => {
                let line = last_words(&self.last_line);
                Some(format!(
                    "ended with exit code {code} {after}, its last line is `{line}` and not its counts"
                ))
            }
            Some(told) if told != self.counts => {
                Some(format!("reports `{told}`, but its lines are `{}`", self.counts))
            }
            Some(_) if code != expect => Some(format!("ended with exit code {code} after `{}`", self.counts)),
            Some(told) if told == Counts::default() => Some("checked nothing".to_owned()),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::without_times;
    use super::*;

    /// The report on a script, without the times.
    fn check(script: &str, expect: &[&str]) {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out);
        let limit = Duration::from_secs(2);
        run(&mut report, "part", Command::new("sh").args(["-c", script]), limit).unwrap();
        report.finish().unwrap();
        let text = without_times(&out);
        assert_eq!(text.lines().collect::<Vec<_>>(), expect, "{script}");
    }

    #[test]
    fn cases_become_results() {
        check(
            "echo 'ok      a b: 1, 2: 3'; echo noise; echo 'refused d: no'; echo 'ok c'; echo '2 passed, 0 failed'",
            &["ok part, a b: 1, 2: 3", "refused part, d: no", "ok part, c", "2 passed, 0 failed"],
        );
        check(
            "echo 'ok a: 1'; echo 'FAILED  b: off by 3'; echo '1 passed, 1 failed'; exit 1",
            &["ok part, a: 1", "FAILED part, b: off by 3", "failed: part, b", "1 passed, 1 failed"],
        );
    }

    #[test]
    fn a_part_that_crashes_has_failed() {
        check(
            "echo 'ok a: 1'; echo oh >&2; kill -SEGV $$",
            &[
                "ok part, a: 1",
                "FAILED part: was killed by signal 11 after the case `a`: oh",
                "failed: part",
                "1 passed, 1 failed",
            ],
        );
        check(
            "echo 'libtorch_cuda.so: cannot open shared object file' >&2; exit 127",
            &[
                "FAILED part: ended with exit code 127 before its first case, its last line is `` and not its counts: \
                 libtorch_cuda.so: cannot open shared object file",
                "failed: part",
                "0 passed, 1 failed",
            ],
        );
    }

    #[test]
    fn a_part_that_hangs_has_failed() {
        check(
            "echo 'ok a: 1'; sleep 600",
            &[
                "ok part, a: 1",
                "FAILED part: did not end within 2 s and was killed after the case `a`",
                "failed: part",
                "1 passed, 1 failed",
            ],
        );
    }

    #[test]
    fn a_part_is_not_believed_when_it_contradicts_itself() {
        let failed = |script: &str, problem: &str| {
            let mut seen = Seen::default();
            let mut keep = |event: Event<'_>| {
                if let Event::Line(line) = event {
                    seen.line(line);
                }
                Ok(Next::GoOn)
            };
            let limit = Duration::from_secs(60);
            let finished = process::run(Command::new("sh").args(["-c", script]), limit, &mut keep).unwrap();
            assert_eq!(seen.problem(finished.end).as_deref(), Some(problem), "{script}");
        };
        failed("echo '0 passed, 0 failed'", "checked nothing");
        failed(
            "echo 'ok a: 1'; echo '2 passed, 0 failed'",
            "reports `2 passed, 0 failed`, but its lines are `1 passed, 0 failed`",
        );
        failed(
            "echo 'ok a: 1'; echo '1 passed, 0 failed'; exit 1",
            "ended with exit code 1 after `1 passed, 0 failed`",
        );
        failed(
            "echo 'FAILED a: 1'; echo '0 passed, 1 failed'",
            "ended with exit code 0 after `0 passed, 1 failed`",
        );
        failed(
            "echo 'ok a: 1'; printf '\\377\\000garbage'",
            "ended with exit code 0 after the case `a`, its last line is `\u{fffd}garbage` and not its counts",
        );
    }
}
