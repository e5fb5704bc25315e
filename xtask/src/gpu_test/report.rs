//! The report of `cargo xtask gpu-test`: a line for each result as it comes, and the counts at the end.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::counts::Counts;

/// What a check found: facts to be shown, or why it failed.
pub(super) type Outcome = Result<String, String>;

/// A run's hash, if it is that of the run it is compared with.
pub(super) fn compare(own: Outcome, first: &Outcome) -> Outcome {
    match (own, first) {
        (Ok(own), Ok(first)) if own == *first => Ok(own),
        (Ok(own), Ok(first)) => Err(format!("its hash is {own}, that of the first run {first}")),
        (Ok(own), Err(_)) => Err(format!("its hash is {own}, and the first run has none")),
        (Err(reason), _) => Err(reason),
    }
}

/// Results so far, and where their lines go.
pub(super) struct Report<'a> {
    out: &'a mut dyn Write,
    counts: Counts,
    failed: Vec<String>,
    /// When the last result came.
    since: Instant,
}

impl<'a> Report<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, counts: Counts::default(), failed: Vec::new(), since: Instant::now() }
    }

    /// Prints one result, with the time since the one before.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn record(&mut self, name: &str, outcome: &Outcome) -> Result<()> {
        let now = Instant::now();
        let line = line(name, now.duration_since(self.since), outcome);
        self.since = now;
        match outcome {
            Ok(_) => self.counts.passed += 1,
            Err(_) => {
                self.counts.failed += 1;
                self.failed.push(name.to_owned());
            }
        }
        self.print(&line)
    }

    /// Prints a line that is no result.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn print(&mut self, line: &str) -> Result<()> {
        writeln!(self.out, "{line}").and_then(|()| self.out.flush()).context("cannot write the report")
    }

    /// Prints what failed, and the counts as the last line.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn finish(mut self) -> Result<Counts> {
        if self.counts == Counts::default() {
            // Nothing passes without having checked something.
            self.counts.failed = 1;
            self.failed.push("nothing was checked".to_owned());
        }
        for name in std::mem::take(&mut self.failed) {
            self.print(&format!("failed: {name}"))?;
        }
        let counts = self.counts;
        self.print(&counts.to_string())?;
        Ok(counts)
    }
}

fn line(name: &str, took: Duration, outcome: &Outcome) -> String {
    let (verdict, text) = match outcome {
        Ok(facts) => ("ok", facts),
        Err(reason) => ("FAILED", reason),
    };
    let line = format!("{verdict:<6} {:>6.1} s  {name}: {text}", took.as_secs_f64());
    line.trim_end_matches([':', ' ']).to_owned()
}

/// A report as a test can compare it.
#[cfg(test)]
pub(super) fn without_times(report: &[u8]) -> String {
    let line = |line: &str| match line.split_once(" s  ") {
        Some((verdict, rest)) => format!("{} {rest}\n", verdict.split(' ').next().unwrap_or_default()),
        None => format!("{line}\n"),
    };
    String::from_utf8_lossy(report).lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_verdict_the_time_the_name_and_the_reason() {
        let took = Duration::from_millis(1234);
        assert_eq!(line("graph", took, &Ok("3 replays".into())), "ok        1.2 s  graph: 3 replays");
        assert_eq!(line("graph", took, &Ok(String::new())), "ok        1.2 s  graph");
        assert_eq!(line("graph", took, &Err("crashed".into())), "FAILED    1.2 s  graph: crashed");
    }

    #[test]
    fn no_run_passes_without_a_hash_to_be_equal_to() {
        let (a, b, crashed) = (Ok("a".to_owned()), Ok("b".to_owned()), Err("crashed".to_owned()));
        let check = |own: &Outcome, first: &Outcome, expect: Outcome| {
            assert_eq!(compare(own.clone(), first), expect);
        };
        check(&a, &a, a.clone());
        check(&b, &a, Err("its hash is b, that of the first run a".into()));
        check(&a, &crashed, Err("its hash is a, and the first run has none".into()));
        check(&crashed, &a, crashed.clone());
        check(&crashed, &crashed, crashed.clone());
    }

    #[test]
    fn the_counts_come_last_and_nothing_checked_is_a_failure() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out);
        for (name, outcome) in [("a", Ok("fine".into())), ("b", Err("bad".into())), ("c", Ok("fine".into()))]
        {
            report.record(name, &outcome).unwrap();
        }
        assert_eq!(report.finish().unwrap(), Counts { passed: 2, failed: 1 });
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("failed: b\n2 passed, 1 failed\n"), "{text}");
        let mut out = Vec::new();
        assert_eq!(Report::new(&mut out).finish().unwrap().failed, 1);
    }
}
