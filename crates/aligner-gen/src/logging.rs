//! Log lines: on stderr for people or as JSON, and into the log folder under the original software's file names.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::cli::LogArgs;

/// Handles to what log lines go through.
#[derive(Clone, Default)]
pub(crate) struct Logging {
    /// Bars drawn through it are not torn by log lines.
    pub(crate) bars: MultiProgress,
    file: LogFile,
}

impl Logging {
    /// Installs the subscriber.
    pub(crate) fn start(arguments: LogArgs) -> Self {
        let logging = Self::default();
        let filter = || {
            let default = if arguments.quiet { "warn" } else { "info" };
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
        };
        let stderr = Stderr { bars: logging.bars.clone() };
        let screen = if arguments.json_logs {
            tracing_subscriber::fmt::layer().json().with_writer(stderr).boxed()
        } else {
            tracing_subscriber::fmt::layer()
                .with_target(false)
                // Colour would leak into redirected output otherwise.
                .with_ansi(io::stderr().is_terminal())
                .with_writer(stderr)
                .boxed()
        };
        let file = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_target(false)
            .with_writer(logging.file.clone());
        // A second start in one process keeps the first subscriber.
        let _ = tracing_subscriber::registry()
            .with(screen.with_filter(filter()))
            .with(file.with_filter(EnvFilter::new("info")))
            .try_init();
        logging
    }

    /// From now on log lines also go to the file of this rank in `log_dir`, such as
    /// `nemo_log_globalrank-0_localrank-0.txt`; rank 0 leaves the command line in `cmd-args.log`.
    pub(crate) fn attach(
        &self,
        log_dir: &Path,
        (rank, local_rank): (u32, u32),
        command_line: &str,
    ) -> io::Result<()> {
        std::fs::create_dir_all(log_dir)?;
        let path = log_dir.join(format!("nemo_log_globalrank-{rank}_localrank-{local_rank}.txt"));
        let file = File::options().create(true).append(true).open(path)?;
        *self.file.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        if rank > 0 {
            return Ok(());
        }
        std::fs::write(log_dir.join("cmd-args.log"), command_line)
    }
}

#[derive(Clone)]
struct Stderr {
    bars: MultiProgress,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The log file, once the log folder is known.
#[derive(Clone, Default)]
struct LogFile(Arc<Mutex<Option<File>>>);

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(file) => file.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
