//! Rank 0's desk: deals samples out by the lease table, takes answers, and ends the job.
//!
//! It runs on a thread of its own and never waits for the disk or for a rank. Whatever a rank does, the job ends: all
//! samples are finished, or one message says why not.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use engine::Request;

use crate::exit::{ExitStatus, Failure};
use crate::output::Identity;
use crate::signals::StopWatch;

use super::Heard;
use super::lease::{Completion, LeaseTable, Rank};
use super::link::Server;
use super::message::{FromZero, Hello, Leaving, SampleDone, Stop, ToZero, Why};

/// How often what hangs on the time is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long ranks have to say their last word after the end: they may be in the middle of a step.
const FAREWELL: Duration = Duration::from_secs(60);
/// A rank that was not heard from for so long will not say a last word.
const QUIET: Duration = Duration::from_secs(6);

/// What happens to the desk.
pub(crate) enum Event {
    /// A rank says something.
    From(Rank, ToZero),
    /// The store does not work any more.
    StoreLost(String),
    /// All positions before this one are on disk.
    Committed(usize),
    /// Nothing can be written any more, for this reason.
    WriterFailed(String),
}

/// What the desk works on.
pub(crate) struct Desk<'a> {
    /// The sample at a position.
    pub(crate) request: Box<dyn Fn(usize) -> Option<Request> + Send + 'a>,
    /// The position of a sample, by its number in the input file.
    pub(crate) position_of: Box<dyn Fn(u64) -> Option<usize> + Send + 'a>,
    pub(crate) lease: Duration,
    pub(crate) join_timeout: Duration,
    pub(crate) watch: &'a StopWatch,
    /// What decides the texts, data apart; must be the same for every rank.
    pub(crate) identity: &'a Identity,
    pub(crate) welcome: FromZero,
    /// To rank 0 itself.
    pub(crate) local: Sender<Heard>,
    /// To all others, where there are any.
    pub(crate) server: Option<&'a Server>,
    /// Takes each finished sample once, with its position.
    pub(crate) finished: Box<dyn Fn(usize, SampleDone) + Send + 'a>,
}

/// How the job ended.
#[derive(Debug)]
pub(crate) struct DeskReport {
    /// The failure of another rank, with its exit code.
    pub(crate) failure: Option<Failure>,
    /// Prompt tokens that the other ranks computed.
    pub(crate) prompt_tokens: u64,
    /// Samples by rank, in order.
    pub(crate) samples_by_rank: Vec<u64>,
}

/// What is known of a rank.
#[derive(Clone, Debug, Default)]
struct Peer {
    hello: Option<Hello>,
    left: bool,
    heard: Option<Instant>,
    num_samples: u64,
}

struct State<'a, 'b> {
    desk: &'b Desk<'a>,
    table: LeaseTable,
    peers: Vec<Peer>,
    started: Instant,
    stop: Option<Stop>,
    stopped_at: Option<Instant>,
    failure: Option<Failure>,
    prompt_tokens: u64,
    missing_told: bool,
}

impl Desk<'_> {
    /// Works until the job has ended and every rank that can has said so.
    pub(crate) fn run(&self, table: LeaseTable, world_size: u32, events: &Receiver<Event>) -> DeskReport {
        let mut state = State {
            desk: self,
            table,
            peers: vec![Peer::default(); world_size as usize],
            started: Instant::now(),
            stop: None,
            stopped_at: None,
            failure: None,
            prompt_tokens: 0,
            missing_told: false,
        };
        let mut last_look = Instant::now();
        while !state.is_over() {
            match events.recv_timeout(TICK) {
                Ok(event) => state.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
            }
            if last_look.elapsed() >= TICK {
                last_look = Instant::now();
                state.look_around();
            }
        }
        DeskReport {
            failure: state.failure,
            prompt_tokens: state.prompt_tokens,
            samples_by_rank: state.peers.iter().map(|peer| peer.num_samples).collect(),
        }
    }
}

impl State<'_, '_> {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Over when everybody who came has left, or has had the time to.
    fn is_over(&self) -> bool {
        let Some(stopped_at) = self.stopped_at else { return false };
        let is_here = |(rank, peer): (usize, &Peer)| {
            let is_quiet = rank > 0 && peer.heard.is_none_or(|heard| heard.elapsed() > QUIET);
            peer.hello.is_some() && !peer.left && !is_quiet
        };
        !self.peers.iter().enumerate().any(is_here) || stopped_at.elapsed() > FAREWELL
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::From(rank, message) if (rank as usize) < self.peers.len() => self.hear(rank, message),
            Event::From(rank, _) => {
                let world_size = self.peers.len();
                self.fail(
                    format!(
                        "rank {rank} came to a job of {world_size} ranks: is another job using this port?"
                    ),
                    1,
                );
            }
            Event::StoreLost(reason) => {
                self.fail(format!("the store of rank 0 does not work any more: {reason}"), 1);
            }
            Event::Committed(end) => {
                self.table.commit(end);
                self.deal_to_all();
            }
            // The writer itself ends rank 0 with it.
            Event::WriterFailed(message) => self.begin_stop(&Stop::Failed { message }),
        }
    }

    fn hear(&mut self, rank: Rank, message: ToZero) {
        let now = self.now();
        if self.table.hear(rank, now) {
            tracing::info!("rank {rank} is back");
        }
        if let Some(peer) = self.peers.get_mut(rank as usize) {
            peer.heard = Some(Instant::now());
        }
        match message {
            ToZero::Hello(hello) => self.greet(rank, hello),
            ToZero::Ready { capacity } => {
                self.table.join(rank, capacity as usize, now);
                self.deal(rank);
            }
            ToZero::Alive => {}
            ToZero::Done(samples) => {
                samples.into_iter().for_each(|sample| self.accept(rank, sample));
                if self.table.num_unfinished() == 0 {
                    self.begin_stop(&Stop::Finished);
                }
                self.deal(rank);
            }
            ToZero::Leaving(Leaving { why, prompt_tokens }) => {
                self.prompt_tokens += prompt_tokens;
                self.table.leave(rank);
                if let Some(peer) = self.peers.get_mut(rank as usize) {
                    peer.left = true;
                }
                match why {
                    Why::Told => {}
                    Why::Signal(signal) => self.desk.watch.raise(signal),
                    Why::Failed { code, message } => {
                        let name = self.name(rank);
                        self.fail(format!("{name} failed: {message}"), code);
                    }
                }
                self.deal_to_all();
            }
        }
    }

    fn greet(&mut self, rank: Rank, hello: Hello) {
        let (mine, name) = (self.desk.identity, self.name(rank));
        let Some(peer) = self.peers.get_mut(rank as usize) else { return };
        if let Some(other) = peer.hello.as_ref().filter(|other| **other != hello) {
            let message = format!(
                "rank {rank} came twice, as process {} on {} and as process {} on {}: is another job using this port? set \
                 MASTER_PORT to a free one for all ranks",
                other.process, other.host, hello.process, hello.host
            );
            self.fail(message, 1);
            return;
        }
        let changes = match serde_json::from_str::<Identity>(&hello.identity) {
            Ok(theirs) => mine.changes(&theirs),
            Err(_) => vec!["everything".to_owned()],
        };
        tracing::debug!("rank {rank} is process {} on {}", hello.process, hello.host);
        peer.hello = Some(hello);
        if changes.is_empty() {
            self.send(rank, self.desk.welcome.clone());
            if let Some(stop) = self.stop.clone() {
                self.send(rank, FromZero::Stop(stop));
            }
        } else {
            self.fail(
                format!("{name} was started with other settings than rank 0: {}", changes.join(", ")),
                2,
            );
        }
    }

    fn accept(&mut self, rank: Rank, sample: SampleDone) {
        let Some(position) = (self.desk.position_of)(sample.sample_idx) else {
            tracing::error!("rank {rank} computed sample {}, which was not asked for", sample.sample_idx);
            return;
        };
        let longest = sample.responses.iter().map(|response| response.token_ids.len()).max().unwrap_or(0);
        let num_tokens: usize = sample.responses.iter().map(|response| response.token_ids.len()).sum();
        // Ids, log-probabilities and the text, roughly.
        let num_bytes = 12 * num_tokens + 128;
        if self.table.complete(rank, position, (longest, num_bytes), self.now()) == Completion::First {
            if let Some(peer) = self.peers.get_mut(rank as usize) {
                peer.num_samples += 1;
            }
            (self.desk.finished)(position, sample);
        }
    }

    /// What hangs on the time.
    fn look_around(&mut self) {
        // It shares this process: when it lives, so does rank 0.
        self.table.hear(0, self.now());
        for (rank, num_samples) in self.table.expire(self.now()) {
            let name = self.name(rank);
            tracing::warn!(
                "{name} has not been heard from for {} s: its {num_samples} samples are given to others",
                self.desk.lease.as_secs()
            );
        }
        if self.stop.is_none()
            && let Some(reason) = self.desk.watch.reason()
        {
            self.begin_stop(&Stop::Early { code: reason.exit_status().code(), reason: reason.to_string() });
        }
        let missing: Vec<String> = self
            .peers
            .iter()
            .zip(0_u32..)
            .filter(|(peer, _)| peer.hello.is_none())
            .map(|(_, rank)| rank.to_string())
            .collect();
        if !self.missing_told && !missing.is_empty() && self.now() > self.desk.join_timeout {
            self.missing_told = true;
            tracing::warn!(
                "nothing was heard from rank {} within {} s: the job goes on without",
                missing.join(", "),
                self.desk.join_timeout.as_secs()
            );
        }
        self.deal_to_all();
    }

    fn deal_to_all(&mut self) {
        for rank in 0..self.peers.len() {
            self.deal(rank as Rank);
        }
    }

    /// Gives a rank what it may have.
    fn deal(&mut self, rank: Rank) {
        if self.stop.is_some() {
            return;
        }
        let now = self.now();
        let granted = self.table.grant(rank, now);
        if !granted.is_empty() {
            let requests = granted.into_iter().filter_map(|position| (self.desk.request)(position)).collect();
            self.send(rank, FromZero::Grant(requests));
        }
    }

    fn send(&mut self, rank: Rank, message: FromZero) {
        if rank == 0 {
            // Gone only after its own last word.
            let _ = self.desk.local.send(Ok(message));
            return;
        }
        let Some(server) = self.desk.server else { return };
        if let Err(reason) = server.send(rank, &message) {
            self.fail(format!("the store of rank 0 does not work any more: {reason}"), 1);
        }
    }

    fn fail(&mut self, message: String, code: u8) {
        if self.failure.is_none() && !matches!(self.stop, Some(Stop::Finished)) {
            self.failure =
                Some(Failure { status: ExitStatus::from_code(code), error: anyhow::anyhow!("{message}") });
        }
        self.begin_stop(&Stop::Failed { message });
    }

    fn begin_stop(&mut self, stop: &Stop) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(stop.clone());
        self.stopped_at = Some(Instant::now());
        for rank in 0..self.peers.len() {
            if self.peers.get(rank).is_some_and(|peer| rank == 0 || peer.hello.is_some() && !peer.left) {
                self.send(rank as Rank, FromZero::Stop(stop.clone()));
            }
        }
    }

    fn name(&self, rank: Rank) -> String {
        match self.peers.get(rank as usize).and_then(|peer| peer.hello.as_ref()) {
            Some(hello) => format!("rank {rank} (process {} on {})", hello.process, hello.host),
            None => format!("rank {rank}"),
        }
    }
}
