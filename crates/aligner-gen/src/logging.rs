//! Log lines: on stderr for people or as JSON, and into the log folder under the original software's file names.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::MultiProgress;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::cli::LogArgs;

/// Handles to what log lines go through.
#[derive(Clone, Default)]
pub(crate) struct Logging {
    /// Bars drawn through it are not torn by log lines.
    pub(crate) bars: MultiProgress,
    log: LogFile,
    error_log: LogFile,
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
        // A second start in one process keeps the first subscriber.
        let _ = tracing_subscriber::registry()
            .with(screen.with_filter(filter()))
            .with(file_layer(&logging.log, "info"))
            .with(file_layer(&logging.error_log, "warn"))
            .try_init();
        logging
    }

    /// From now on log lines go into files in `log_dir`, those since the start too: all of them into the file of this rank,
    /// such as `nemo_log_globalrank-0_localrank-0.txt`; warnings and errors of rank 0 also into `nemo_error_log.txt`.
    pub(crate) fn attach(&self, log_dir: &Path, rank: u32, local_rank: u32) -> io::Result<()> {
        std::fs::create_dir_all(log_dir)?;
        self.log.open(&log_dir.join(format!("nemo_log_globalrank-{rank}_localrank-{local_rank}.txt")))?;
        if rank == 0 { self.error_log.open(&log_dir.join("nemo_error_log.txt")) } else { Ok(()) }
    }

    /// What stands on stderr by other means than a log line.
    pub(crate) fn write_to_files(&self, text: &str) {
        for file in [&self.log, &self.error_log] {
            // With the disk full there is nothing to be done: stderr has it.
            let _ = file.clone().write_all(text.as_bytes());
        }
    }
}

/// Lines of this level and above into a file.
fn file_layer<S>(file: &LogFile, level: &str) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(file.clone())
        .with_filter(EnvFilter::new(level))
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

/// A log file. Until its folder is known the lines are kept.
#[derive(Clone)]
struct LogFile(Arc<Mutex<LogTarget>>);

enum LogTarget {
    Kept(Vec<u8>),
    File(File),
}

impl Default for LogFile {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LogTarget::Kept(Vec::new()))))
    }
}

impl LogFile {
    /// Far more than a start writes; what is past it is not kept.
    const MAX_KEPT_BYTES: usize = 1 << 20;

    fn open(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let LogTarget::Kept(lines) = &*target {
            file.write_all(lines)?;
        }
        *target = LogTarget::File(file);
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            LogTarget::File(file) => file.write(bytes),
            LogTarget::Kept(lines) => {
                if lines.len() + bytes.len() <= Self::MAX_KEPT_BYTES {
                    lines.extend_from_slice(bytes);
                }
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_before_the_folder_is_known_are_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.txt");
        let mut log = LogFile::default();
        log.write_all(b"early\n").unwrap();
        log.open(&path).unwrap();
        log.write_all(b"late\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "early\nlate\n");
    }
}
