//! The program as its own launcher: starts the ranks of this machine, shows their lines with the rank in front, hands
//! signals on, and ends all when one fails. It is no rank itself.
//!
//! Ranks die with it, even by `kill -9`: each asks the system for that when it starts.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus as ChildStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::config::cli::LogArgs;
use crate::env::SOCKET_VARIABLE;
use crate::exit::{ExitStatus, Failure};
use crate::signals::StopWatch;

use super::cores;
use super::ranks::{Address, LauncherPlan};

/// Set for the ranks: the process that started them.
pub(crate) const LAUNCHER_VARIABLE: &str = "ALIGNER_GEN_LAUNCHER";

/// The exit code by which a rank tells its launcher that another one is to blame.
pub(crate) const BY_ANOTHER_RANK: u8 = 70;

/// How many of a rank's last lines the message of its failure has.
const NUM_LAST_LINES: usize = 12;
const POLL: Duration = Duration::from_millis(20);
/// Time for the others to save after one has failed.
const SAVE: Duration = Duration::from_secs(20);
/// How long the rank that is to blame may take to end after those that ended because of it.
const CAUSE: Duration = Duration::from_secs(5);
/// Time for the others to leave after rank 0 has: it has what they did.
const LEAVE: Duration = Duration::from_secs(5);

/// Called first in every process: a rank follows its launcher into death.
pub(crate) fn follow_launcher(launcher: Option<&str>) -> io::Result<()> {
    let Some(launcher) = launcher.and_then(|text| text.parse::<i32>().ok()) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that.
    if getppid().map(Pid::as_raw_pid) != Some(launcher) {
        return Err(io::Error::other("the launcher of this rank is gone"));
    }
    Ok(())
}

/// A rank and what it last said.
struct RankProcess {
    rank: u32,
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
    ended: Option<ChildStatus>,
}

/// Starts the ranks and stays until all have ended.
pub(crate) fn run(plan: &LauncherPlan, log: LogArgs, watch: &StopWatch) -> Result<ExitStatus, Failure> {
    let mut group = Group { ranks: Vec::new() };
    let (address, mut socket) = match &plan.address {
        Some(address) => (address.clone(), None),
        None => {
            let bound =
                TcpListener::bind("127.0.0.1:0").and_then(|socket| Ok((socket.local_addr()?, socket)));
            let (address, socket) = bound.context("cannot open a socket for the ranks")?;
            (Address { host: address.ip().to_string(), port: address.port() }, Some(socket))
        }
    };
    tracing::info!(
        "starting {} of {} ranks on this machine; rank 0 is at {}:{}",
        plan.num_ranks,
        plan.world_size,
        address.host,
        address.port
    );
    for local_rank in 0..plan.num_ranks {
        // Only the first rank gets the socket, which it serves.
        let socket = if local_rank == 0 { socket.take() } else { None };
        group.ranks.push(start(plan, local_rank, &address, socket.as_ref(), log)?);
    }
    group.watch(watch)
}

fn start(
    plan: &LauncherPlan,
    local_rank: u32,
    address: &Address,
    socket: Option<&TcpListener>,
    log: LogArgs,
) -> Result<RankProcess, Failure> {
    let rank = plan.first_rank + local_rank;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let numbers = [
        ("RANK", rank),
        ("WORLD_SIZE", plan.world_size),
        ("LOCAL_RANK", local_rank),
        ("LOCAL_WORLD_SIZE", plan.num_ranks),
        ("MASTER_PORT", u32::from(address.port)),
        (LAUNCHER_VARIABLE, std::process::id()),
    ];
    command.envs(numbers.map(|(name, value)| (name, value.to_string()))).env("MASTER_ADDR", &address.host);
    if let Some(socket) = socket {
        fcntl_setfd(socket, FdFlags::empty()).context("cannot hand the socket to rank 0")?;
        command.env(SOCKET_VARIABLE, socket.as_raw_fd().to_string());
    }
    // Of its own group: an interrupt from the terminal comes to the launcher alone, which hands it on once.
    command.process_group(0);
    // The bar of rank 0 needs the terminal itself.
    let shows_bar = rank == 0 && io::stderr().is_terminal();
    if !shows_bar {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut child = cores::with_share(local_rank, plan.num_ranks, || command.spawn())
        .with_context(|| format!("cannot start rank {rank}"))?;
    let lines = Arc::new(Mutex::new(VecDeque::new()));
    let reader = child.stderr.take().map(|stderr| {
        let lines = Arc::clone(&lines);
        std::thread::spawn(move || show_lines(rank, stderr, log, &lines))
    });
    Ok(RankProcess { rank, child, lines, reader, ended: None })
}

/// Shows a rank's lines and keeps the last ones.
fn show_lines(rank: u32, stderr: impl io::Read, log: LogArgs, last: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        // With stderr gone there is nobody to tell; the rank's own log has the line.
        let _ = writeln!(io::stderr(), "{}", labelled(rank, &text, log));
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == NUM_LAST_LINES {
            last.pop_front();
        }
        last.push_back(text);
        line.clear();
    }
}

/// A line with its rank: in front, or as a field where lines are JSON.
fn labelled(rank: u32, line: &str, log: LogArgs) -> String {
    match line.strip_prefix('{') {
        Some(rest) if log.json_logs => format!("{{\"rank\":{rank},{rest}"),
        _ => format!("[rank {rank}] {line}"),
    }
}

/// Whether a rank that has failed is the one to blame: the first of these that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blame {
    Killed,
    Failed,
    /// It ended because of another one.
    Another,
}

impl Blame {
    /// Of a rank that has failed.
    fn of(ended: ChildStatus) -> Option<Self> {
        match (ended.signal(), ended.code()) {
            (Some(_), _) => Some(Self::Killed),
            (_, Some(0)) => None,
            (_, Some(code)) if code == i32::from(BY_ANOTHER_RANK) => Some(Self::Another),
            _ => Some(Self::Failed),
        }
    }
}

/// The ranks that were started; those still running are killed when it is dropped.
struct Group {
    ranks: Vec<RankProcess>,
}

impl Group {
    fn watch(&mut self, watch: &StopWatch) -> Result<ExitStatus, Failure> {
        let mut told = false;
        loop {
            self.poll()?;
            if self.first_failure().is_some() {
                if told {
                    break;
                }
                return self.fail();
            }
            if self.ranks.iter().all(|rank| rank.ended.is_some()) {
                break;
            }
            if let Some(signal) = watch.signal().filter(|_| !told) {
                told = true;
                self.signal(signal);
            }
            let first = self.ranks.first().is_some_and(|rank| rank.rank == 0 && rank.ended.is_some());
            if first {
                self.let_leave()?;
                break;
            }
            std::thread::sleep(POLL);
        }
        if told {
            self.let_leave()?;
        }
        self.finish_output();
        let codes = self.ranks.iter().filter_map(|rank| u8::try_from(rank.ended?.code()?).ok());
        let worst = codes.map(|code| ExitStatus::from_code(code).code()).max().unwrap_or(0);
        Ok(ExitStatus::from_code(worst))
    }

    fn poll(&mut self) -> Result<(), Failure> {
        for rank in self.ranks.iter_mut().filter(|rank| rank.ended.is_none()) {
            rank.ended =
                rank.child.try_wait().with_context(|| format!("cannot wait for rank {}", rank.rank))?;
        }
        Ok(())
    }

    /// The rank to blame, and whether it is that.
    fn first_failure(&self) -> Option<(usize, Blame)> {
        let ended = self.ranks.iter().map(|rank| rank.ended);
        ended.enumerate().filter_map(|(index, ended)| Some((index, Blame::of(ended?)?))).min_by_key(|of| of.1)
    }

    /// Hands a signal to all ranks that run.
    fn signal(&self, signal: Signal) {
        for rank in self.ranks.iter().filter(|rank| rank.ended.is_none()) {
            // It may have ended since.
            let _ = kill_process(Pid::from_child(&rank.child), signal);
        }
    }

    /// Waits for ranks that are about to end by themselves, and kills those that do not.
    fn let_leave(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        while self.ranks.iter().any(|rank| rank.ended.is_none()) && started.elapsed() < LEAVE {
            std::thread::sleep(POLL);
            self.poll()?;
        }
        for rank in self.ranks.iter_mut().filter(|rank| rank.ended.is_none()) {
            tracing::warn!(
                "rank {} has not ended within {} s after rank 0: it is killed; nothing of it is missing",
                rank.rank,
                LEAVE.as_secs()
            );
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
        Ok(())
    }

    fn fail(&mut self) -> Result<ExitStatus, Failure> {
        // Ranks that end because of the same thing have a moment to say so, and the culprit to be told from them.
        std::thread::sleep(POLL * 10);
        self.poll()?;
        let started = Instant::now();
        while self.first_failure().is_none_or(|(_, blame)| blame == Blame::Another)
            && self.ranks.iter().any(|rank| rank.ended.is_none())
            && started.elapsed() < CAUSE
        {
            std::thread::sleep(POLL);
            self.poll()?;
        }
        let culprit = self.first_failure();
        self.signal(Signal::TERM);
        let started = Instant::now();
        while self.ranks.iter().any(|rank| rank.ended.is_none()) && started.elapsed() < SAVE {
            std::thread::sleep(POLL);
            self.poll()?;
        }
        self.kill();
        self.finish_output();
        let Some(culprit) = culprit.and_then(|(index, _)| self.ranks.get(index)) else {
            return Ok(ExitStatus::Failed);
        };
        let Some(ended) = culprit.ended else { return Ok(ExitStatus::Failed) };
        let status =
            ExitStatus::from_code(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        let how = match ended.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("ended with exit code {}", status.code()),
        };
        let lines = culprit.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = format!(
            "rank {} {how}, so the job was ended; finished steps are saved, the same command continues after them",
            culprit.rank
        );
        if !lines.is_empty() {
            text.push_str("; its last lines:");
            lines.iter().for_each(|line| text.push_str(&format!("\n  {line}")));
        }
        Err(Failure { status, error: anyhow!(text) })
    }

    /// Waits for the last lines.
    fn finish_output(&mut self) {
        for rank in &mut self.ranks {
            if let Some(reader) = rank.reader.take() {
                // It ends with the pipe, whatever it read.
                let _ = reader.join();
            }
        }
    }

    fn kill(&mut self) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.ended.is_none()) {
            let _ = rank.child.kill();
            rank.ended = rank.child.wait().ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_end_because_of_another_are_not_to_blame() {
        let exited = |code: u8| ChildStatus::from_raw(i32::from(code) << 8);
        let blames = [exited(0), exited(BY_ANOTHER_RANK), exited(2), exited(143), ChildStatus::from_raw(9)];
        let blames = blames.map(Blame::of);
        assert_eq!(
            blames,
            [None, Some(Blame::Another), Some(Blame::Failed), Some(Blame::Failed), Some(Blame::Killed)]
        );
        assert!(Blame::Killed < Blame::Failed && Blame::Failed < Blame::Another);
        assert_eq!(ExitStatus::from_code(BY_ANOTHER_RANK), ExitStatus::Failed);
    }
}
