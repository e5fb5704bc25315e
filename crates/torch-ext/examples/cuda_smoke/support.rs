//! What the cases share.

use std::error::Error;
use std::io::Write;

pub(crate) type Outcome = Result<String, Box<dyn Error>>;

pub(crate) fn say(line: &str) {
    // Nobody reads a closed stdout.
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(what().into()) }
}
