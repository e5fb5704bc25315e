//! What the programs that try things on a GPU share: cases with a name.
//!
//! Each case prints one line, `ok NAME: FACTS` or `FAILED NAME: REASON`, and the last line is `N passed, N failed`.
//! `cargo xtask gpu-test` reads both.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

/// Exit codes, the same as `aligner-gen`'s.
const USAGE: u8 = 2;
const NO_DEVICE: u8 = 5;

/// Facts to be shown, or what is wrong.
pub(crate) type Outcome = Result<String, Box<dyn Error>>;

/// A name and what is tried.
pub(crate) type Case<G> = (&'static str, fn(&G) -> Outcome);

/// Runs the cases that the command line names, or all.
///
/// The exit code is 0 when all passed, 1 when one failed, 2 for a name that no case has and 5 when `gpu` is an error.
pub(crate) fn run<G>(gpu: Result<G, impl Display>, cases: &[Case<G>]) -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !cases.iter().any(|(known, _)| known == name)) {
        say(&format!("no case is called `{unknown}`"));
        return ExitCode::from(USAGE);
    }
    let gpu = match gpu {
        Ok(gpu) => gpu,
        Err(error) => {
            say(&format!("cannot open the GPU: {error}"));
            return ExitCode::from(NO_DEVICE);
        }
    };
    let (mut num_passed, mut num_failed) = (0, 0);
    for (name, case) in cases {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        match case(&gpu) {
            Ok(facts) => {
                num_passed += 1;
                say(&format!("ok      {name}: {facts}"));
            }
            Err(error) => {
                num_failed += 1;
                say(&format!("FAILED  {name}: {error}"));
            }
        }
    }
    say(&format!("{num_passed} passed, {num_failed} failed"));
    if num_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(crate) fn say(line: &str) {
    // Nobody reads a closed stdout.
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(what().into()) }
}
