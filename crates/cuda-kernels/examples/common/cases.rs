//! What the programs that try things on a GPU share: cases with a name, of which each gets a line.

use std::error::Error;
use std::io::Write;

/// Facts to be shown, or what is wrong.
pub(crate) type Outcome = Result<String, Box<dyn Error>>;

/// A name and what is tried.
pub(crate) type Case<G> = (&'static str, fn(&G) -> Outcome);

/// Runs the cases and says how many passed; returns whether all did.
pub(crate) fn run<G>(gpu: &G, cases: &[Case<G>]) -> bool {
    let mut num_failed = 0;
    for (name, case) in cases {
        match case(gpu) {
            Ok(facts) => say(&format!("ok      {name}: {facts}")),
            Err(error) => {
                num_failed += 1;
                say(&format!("FAILED  {name}: {error}"));
            }
        }
    }
    say(&format!("{} passed, {num_failed} failed", cases.len() - num_failed));
    num_failed == 0
}

pub(crate) fn say(line: &str) {
    // Nobody reads a closed stdout.
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(what().into()) }
}
