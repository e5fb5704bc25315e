//! The program that checks responses, as a process: questions into its stdin, lines out of its stdout, its stderr logged.
//!
//! Each pipe has a thread of its own, so that a program that does not read, or does not answer, keeps nobody waiting but
//! those who want its answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus as ChildStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process_group};

use super::Responder;
use crate::exit::{ExitStatus, Failure, ResultExt};

/// How a program ends that has nothing to complain of.
pub(super) const WELL: &str = "ended with exit code 0";

/// The longest line that is read.
const MAX_LINE_BYTES: usize = 1 << 20;
/// What messages show of the program's last words.
const MAX_WORDS_CHARS: usize = 300;
const POLL: Duration = Duration::from_millis(10);
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is heard from a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A line of its stdout, without the newline.
    Line(String),
    /// A line that is too long or no text.
    BadLine(&'static str),
    /// It says nothing more.
    End,
}

/// A running program. It and what it has started are ended with this value.
pub(super) struct Program {
    child: Child,
    /// To the thread that writes; gone when there is nothing more to ask.
    questions: Option<Sender<Vec<u8>>>,
    last_words: Arc<Mutex<String>>,
    /// Reads its stderr.
    words: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts a command of the shell. What it says goes to `said`, until its end.
    ///
    /// # Errors
    /// When there is no shell, or no thread can be started.
    pub(super) fn start(
        command: &str,
        said: impl Fn(Said) -> Result<(), ()> + Send + 'static,
    ) -> Result<Self, Failure> {
        // Of its own group: an interrupt from the terminal is for the job, which still wants answers then.
        let mut child = Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Python holds back what it prints into a pipe, otherwise.
            .env("PYTHONUNBUFFERED", "1")
            .process_group(0)
            .spawn()
            .context("cannot start `/bin/sh` for `model.generation.on_response`")
            .exit_with(ExitStatus::Usage)?;
        let (questions, to_write) = channel::<Vec<u8>>();
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read any more is found out by its answers.
            std::thread::spawn(move || to_write.iter().try_for_each(|line| write(&mut stdin, &line)));
        }
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || read_lines(stdout, &said));
        }
        let last_words = Arc::new(Mutex::new(String::new()));
        let words = child.stderr.take().map(|stderr| {
            let last_words = Arc::clone(&last_words);
            std::thread::spawn(move || {
                read_lines(stderr, &|said| {
                    if let Said::Line(line) = said {
                        tracing::info!("on_response: {line}");
                        *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
                    }
                    Ok(())
                });
            })
        });
        Ok(Self { child, questions: Some(questions), last_words, words })
    }
}

impl Program {
    /// What it wrote before its end may not have been read; what it has started may go on writing.
    fn hear_last_words(&self) {
        let started = Instant::now();
        while self.words.as_ref().is_some_and(|words| !words.is_finished()) && started.elapsed() < LAST_WORDS
        {
            std::thread::sleep(POLL);
        }
    }
}

impl Responder for Program {
    fn ask(&self, line: Vec<u8>) {
        if let Some(questions) = &self.questions {
            let _ = questions.send(line);
        }
    }

    fn ask_no_more(&mut self) {
        self.questions = None;
    }

    fn ended(&mut self, within: Duration) -> Option<String> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.hear_last_words();
                    return Some(describe(status));
                }
                Ok(None) if started.elapsed() < within => std::thread::sleep(POLL),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    fn last_words(&self) -> Option<String> {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: String = words.trim().chars().take(MAX_WORDS_CHARS).collect();
        (!shown.is_empty()).then_some(shown)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.questions = None;
        if let (Ok(None), Some(group)) =
            (self.child.try_wait(), i32::try_from(self.child.id()).ok().and_then(Pid::from_raw))
        {
            // It may have ended since.
            let _ = kill_process_group(group, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// How a program ended, for a message.
fn describe(status: ChildStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => WELL.to_owned(),
        (Some(127), _) => {
            "ended with exit code 127, which a shell gives when a command is not found".to_owned()
        }
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn write(stdin: &mut ChildStdin, line: &[u8]) -> std::io::Result<()> {
    stdin.write_all(line)?;
    stdin.flush()
}

/// Passes lines on until there are no more, or nobody wants them.
fn read_lines(pipe: impl Read, said: &dyn Fn(Said) -> Result<(), ()>) {
    let mut reader = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line);
        let heard = match read {
            Ok(0) | Err(_) => Said::End,
            Ok(_) if line.len() > MAX_LINE_BYTES => Said::BadLine("a line of more than 1 MiB"),
            Ok(_) => match String::from_utf8(line) {
                Ok(text) => Said::Line(text.trim_end_matches(['\n', '\r']).to_owned()),
                Err(_) => Said::BadLine("a line that is not UTF-8"),
            },
        };
        let is_last = heard == Said::End;
        if said(heard).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(command: &str) -> (Program, std::sync::mpsc::Receiver<Said>) {
        let (said, heard) = channel();
        (Program::start(command, move |line| said.send(line).map_err(drop)).unwrap(), heard)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn lines_go_in_and_out() {
        let (mut program, heard) = start("cat; echo bye >&2; exit 3");
        program.ask(b"one\n".to_vec());
        assert_eq!(heard.recv_timeout(SOON), Ok(Said::Line("one".to_owned())));
        program.ask(b"two\n".to_vec());
        program.ask_no_more();
        assert_eq!(heard.recv_timeout(SOON), Ok(Said::Line("two".to_owned())));
        assert_eq!(heard.recv_timeout(SOON), Ok(Said::End));
        assert_eq!(program.ended(SOON).as_deref(), Some("ended with exit code 3"));
        assert_eq!(program.last_words().as_deref(), Some("bye"));
    }

    #[test]
    fn what_hangs_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let command = format!("sleep 1000 & echo $! > {}; echo ready; wait", pid_file.display());
        let (mut program, heard) = start(&command);
        // More than a pipe holds: nobody waits for it to be read.
        (0..100).for_each(|_| program.ask(vec![b'x'; 10_000]));
        assert_eq!(heard.recv_timeout(SOON), Ok(Said::Line("ready".to_owned())));
        assert_eq!(program.ended(Duration::ZERO), None);
        drop(program);
        assert_eq!(heard.recv_timeout(SOON), Ok(Said::End));
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let started = Instant::now();
        while !stat().is_empty() && !stat().contains(") Z ") {
            assert!(started.elapsed() < SOON, "{}", stat());
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn lines_have_a_limit() {
        let (_program, heard) = start("head -c 2000000 /dev/zero | tr '\\0' x");
        assert_eq!(heard.recv_timeout(SOON), Ok(Said::BadLine("a line of more than 1 MiB")));
    }
}
