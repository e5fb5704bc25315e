//! Which command runs, and how a failure or a panic is told.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::commands::inspect::ReportFormat;
use crate::commands::{completions, doctor, inspect, logits, quality, report, score, tokenize};
use crate::config;
use crate::config::cli::{Cli, CliError, Command};
use crate::exit::{ExitStatus, Failure};
use crate::job::run;
use crate::logging::Logging;
use crate::signals::StopWatch;
use crate::{bench, env};

/// Standard output, whose reader may have had enough, as `head` has: what it does not read is nobody's loss.
struct Stdout(io::StdoutLock<'static>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

/// Runs the command.
pub(crate) fn dispatch(cli: &Cli, logging: &Logging, started: Instant) -> Result<ExitStatus, Failure> {
    let mut stdout = Stdout(io::stdout().lock());
    match &cli.command {
        None => {
            if let Some(kind) = cli.job.cfg {
                let model_config =
                    |path: &Path| Ok(nemo_format::Checkpoint::open(path)?.model_config_text().to_owned());
                let text = config::show(&cli.job, kind, model_config)?;
                stdout.write_all(text.as_bytes()).map_err(anyhow::Error::from)?;
                return Ok(ExitStatus::Done);
            }
            let watch = StopWatch::install(started).map_err(anyhow::Error::from)?;
            return run::run(&cli.job, logging, watch);
        }
        Some(Command::Inspect(arguments)) => {
            let format = if arguments.json { ReportFormat::Json } else { ReportFormat::Text };
            inspect::run(arguments, &mut stdout, format)?;
        }
        Some(Command::Logits(arguments)) => logits::run(arguments)?,
        Some(Command::Tokenize(arguments)) => tokenize::run(arguments, io::stdin().lock(), &mut stdout)?,
        Some(Command::Score(arguments)) => score::run(arguments)?,
        Some(Command::Quality(arguments)) => quality::run(arguments)?,
        Some(Command::Report(arguments)) => report::run(arguments, &mut stdout)?,
        Some(Command::ConvertCheckpoint(arguments)) => convert_cli::run(arguments)?,
        Some(Command::Doctor(arguments)) => doctor::run(arguments, &mut stdout)?,
        Some(Command::Completions(arguments)) => completions::run(arguments.shell, &mut stdout)?,
        Some(Command::Man) => completions::man(&mut stdout)?,
        Some(Command::Bench(arguments)) => bench::run(arguments, &mut stdout)?,
        Some(Command::BenchQueue(arguments)) => bench::queue::run(arguments, &mut stdout)?,
    }
    Ok(ExitStatus::Done)
}

/// One sentence on stderr and in the log files; with `HYDRA_FULL_ERROR=1` also every cause on its own line.
pub(crate) fn show(failure: &Failure, logging: &Logging) {
    let mut text = format!("error: {}\n", failure.sentence());
    if env::full_error() {
        for (depth, cause) in failure.error.chain().enumerate() {
            text.push_str(&format!("  {depth}: {cause}\n"));
        }
    }
    // With stderr gone there is nobody to tell; the exit code still says it.
    let _ = io::stderr().write_all(text.as_bytes());
    logging.write_to_files(&text);
}

/// The same for a command line that cannot be read. Help is printed here, too.
pub(crate) fn refuse(error: CliError) -> ExitCode {
    match error {
        CliError::Clap(error) => error.exit(),
        CliError::KeyAsFlag(failure) => {
            let _ = writeln!(io::stderr(), "error: {}", failure.sentence());
            failure.status.into()
        }
    }
}

/// A panic is never the user's fault, and must not look like it.
pub(crate) fn hook_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |location| format!(" at {location}"));
        let message = panic.payload_as_str().unwrap_or("no message");
        let _ = writeln!(
            io::stderr(),
            "error: this is a bug in aligner-gen {}{place}: {message}\n\
             finished steps are saved; please report it together with `manifest.json` of the output folder",
            env!("CARGO_PKG_VERSION")
        );
    }));
}
