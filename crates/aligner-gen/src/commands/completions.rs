//! `aligner-gen completions SHELL` and `aligner-gen man`: made from the definition of the command line.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::config::cli::Cli;
use crate::exit::Failure;

const NAME: &str = "aligner-gen";

/// Prints a script that the shell reads.
pub(crate) fn run(shell: Shell, out: &mut impl Write) -> Result<(), Failure> {
    // The generator panics when its target fails, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    Ok(out.write_all(&script).map_err(anyhow::Error::from)?)
}

/// Prints the manual page, as troff.
pub(crate) fn man(out: &mut impl Write) -> Result<(), Failure> {
    Ok(clap_mangen::Man::new(Cli::command()).render(out).map_err(anyhow::Error::from)?)
}
