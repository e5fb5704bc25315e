//! A program that may crash, hang or print anything: run with a limit, with everything that it started.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::workspace::shell_line;

/// How often a program without output is looked at.
const TICK: Duration = Duration::from_millis(5);
/// Longer lines are cut into several.
const MAX_LINE_BYTES: u64 = 16 * 1024;
/// Lines of standard error that are kept: the last ones.
const KEPT_LINES: usize = 200;
/// How long the last words of a program that has ended may take to arrive.
const GRACE: Duration = Duration::from_secs(1);

/// What the program did just now.
pub(super) enum Event<'a> {
    /// It wrote a line to standard output.
    Line(&'a str),
    /// Nothing.
    Tick,
}

/// What is to be done about it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    Kill,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exited(i32),
    Signalled(i32),
    /// Killed because it took longer than this.
    TimedOut(Duration),
    /// Killed because the caller wanted it.
    Killed,
}

/// A program that has ended.
pub(super) struct Finished {
    pub(super) end: End,
    /// The end of standard error.
    pub(super) stderr: String,
}

impl Finished {
    /// Why this is not a success, with the program's own last words, or `None`.
    pub(super) fn problem(&self) -> Option<String> {
        let what = match self.end {
            End::Exited(0) => return None,
            End::Exited(code) => format!("ended with exit code {code}"),
            End::Signalled(signal) => format!("was killed by signal {signal}"),
            End::TimedOut(limit) => format!("did not end within {} s and was killed", limit.as_secs_f64()),
            End::Killed => "was killed".to_owned(),
        };
        let words = last_words(&self.stderr);
        Some(if words.is_empty() { what } else { format!("{what}: {words}") })
    }
}

/// The end of a text on one line, short enough for a report.
pub(super) fn last_words(text: &str) -> String {
    const MAX_CHARS: usize = 400;
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).collect();
    let num_chars = line.chars().count();
    if num_chars <= MAX_CHARS {
        return line;
    }
    "...".chars().chain(line.chars().skip(num_chars - MAX_CHARS)).collect()
}

/// Runs `command` to its end, and not longer than `limit`: the program and its children are killed then.
///
/// It has ended when its standard output is closed too, so a child that it left behind counts as a part of it.
///
/// # Errors
/// When it cannot be started or waited for.
pub(super) fn run(
    command: &mut Command,
    limit: Duration,
    watch: &mut dyn FnMut(Event<'_>) -> Result<Next>,
) -> Result<Finished> {
    let mut child = Group::start(command)?;
    let (sender, lines) = mpsc::sync_channel::<String>(256);
    if let Some(stdout) = child.leader.stdout.take() {
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            while let Some(line) = read_line(&mut reader) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    let stderr = child.leader.stderr.take().map(|stderr| std::thread::spawn(move || read_tail(stderr)));
    let end = wait(&mut child, &lines, limit, watch)?;
    // Whatever is left of the group keeps no pipe open.
    child.kill();
    Ok(Finished { end, stderr: stderr.map_or_else(String::new, collect) })
}

/// A program and what it starts, killed when this goes away.
struct Group {
    leader: Child,
}

impl Group {
    fn start(command: &mut Command) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let leader = command.spawn().with_context(|| format!("cannot start `{}`", shell_line(command)))?;
        Ok(Self { leader })
    }

    fn kill(&self) {
        let group = i32::try_from(self.leader.id()).ok().and_then(Pid::from_raw);
        // An error says that nothing is left of it.
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        let _ = self.leader.wait();
    }
}

fn wait(
    child: &mut Group,
    lines: &Receiver<String>,
    limit: Duration,
    watch: &mut dyn FnMut(Event<'_>) -> Result<Next>,
) -> Result<End> {
    let deadline = Instant::now() + limit;
    loop {
        let next = match lines.recv_timeout(TICK) {
            Ok(line) => watch(Event::Line(&line))?,
            Err(RecvTimeoutError::Timeout) => watch(Event::Tick)?,
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(status) = child.leader.try_wait().context("cannot wait for the program")? {
                    return Ok(end_of(status));
                }
                std::thread::sleep(TICK);
                watch(Event::Tick)?
            }
        };
        let end = match next {
            Next::Kill => End::Killed,
            Next::GoOn if Instant::now() >= deadline => End::TimedOut(limit),
            Next::GoOn => continue,
        };
        child.kill();
        child.leader.wait().context("cannot wait for the program")?;
        return Ok(end);
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, Some(signal)) => End::Signalled(signal),
        (None, None) => End::Signalled(0),
    }
}

/// The next line without its end, whatever its bytes are; `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut bytes = Vec::new();
    let num_read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes).ok()?;
    (num_read > 0).then(|| String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn read_tail(stderr: impl Read) -> String {
    let mut reader = BufReader::new(stderr);
    let mut tail = VecDeque::new();
    while let Some(line) = read_line(&mut reader) {
        if tail.len() == KEPT_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    Vec::from(tail).join("\n")
}

/// What a thread has read, unless somebody outside the group keeps the stream open.
fn collect(reader: JoinHandle<String>) -> String {
    let deadline = Instant::now() + GRACE;
    while !reader.is_finished() && Instant::now() < deadline {
        std::thread::sleep(TICK);
    }
    if reader.is_finished() { reader.join().unwrap_or_default() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_script(script: &str, limit: Duration) -> (Finished, Vec<String>) {
        let mut lines = Vec::new();
        let mut keep = |event: Event<'_>| {
            if let Event::Line(line) = event {
                lines.push(line.to_owned());
            }
            Ok(Next::GoOn)
        };
        let finished = run(Command::new("sh").args(["-c", script]), limit, &mut keep).unwrap();
        (finished, lines)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_ends_as_it_says() {
        let (finished, lines) = run_script("echo a; echo b >&2; printf c", LONG);
        assert_eq!((finished.end, finished.problem()), (End::Exited(0), None));
        assert_eq!((lines, finished.stderr.as_str()), (vec!["a".to_owned(), "c".to_owned()], "b"));
        let (finished, _) = run_script("echo no  luck >&2; exit 3", LONG);
        assert_eq!(finished.problem().unwrap(), "ended with exit code 3: no luck");
        let (finished, _) = run_script("kill -SEGV $$", LONG);
        assert_eq!(finished.problem().unwrap(), "was killed by signal 11");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let limit = Duration::from_millis(300);
        let started = Instant::now();
        // The child in the background holds standard output open.
        let (finished, lines) = run_script("echo started; sleep 600 & sleep 600", limit);
        assert_eq!(finished.problem().unwrap(), "did not end within 0.3 s and was killed");
        assert_eq!(lines, ["started"]);
        let (finished, _) = run_script("sleep 600 & exit 0", limit);
        assert_eq!(finished.end, End::TimedOut(limit));
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn endless_garbage_is_cut_off() {
        let limit = Duration::from_millis(300);
        let (finished, lines) = run_script("cat /dev/zero", limit);
        assert_eq!(finished.end, End::TimedOut(limit));
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE_BYTES as usize));
        let (finished, lines) = run_script(r"printf '\377\376\n'; yes 1>&2", limit);
        assert_eq!(lines, ["\u{fffd}\u{fffd}"]);
        assert!(finished.stderr.lines().count() <= KEPT_LINES);
    }

    #[test]
    fn the_caller_can_kill() {
        let mut kill =
            |event: Event<'_>| Ok(if matches!(event, Event::Line("now")) { Next::Kill } else { Next::GoOn });
        let script = "echo then; echo now; sleep 600";
        let finished = run(Command::new("sh").args(["-c", script]), LONG, &mut kill).unwrap();
        assert_eq!(finished.end, End::Killed);
        assert!(run(&mut Command::new("/no/such/program"), LONG, &mut kill).is_err());
    }

    #[test]
    fn last_words_are_short_and_on_one_line() {
        assert_eq!(last_words("  a\n\u{1b}b\t c "), "a b c");
        let long = last_words(&"word ".repeat(1000));
        assert!(long.starts_with("...") && long.ends_with("word") && long.chars().count() == 403);
    }
}
