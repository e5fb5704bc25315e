//! Rank 0's desk: deals samples out by the lease table, takes answers, and ends the job.
//!
//! It runs on a thread of its own and never waits for the disk or for a rank. Whatever a rank does, the job ends: all
//! samples are finished, or one message says why not.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use engine::{Cancellation, Request};

use crate::cluster::topology::{Rank, Replica, Topology};
use crate::exit::{ExitStatus, Failure};
use crate::output::Identity;
use crate::signals::StopWatch;

use super::Heard;
use super::lease::{Arrival, Grant, LeaseTable, SampleSize};
use super::link::Server;
use super::message::{FromZero, Hello, Leaving, ResponseDone, SampleDone, Stop, ToZero, Why, Worked};

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
    /// A rank need not compute these.
    Cancel(Rank, Cancellation),
}

/// What the desk works on.
pub(crate) struct Desk<'a> {
    /// The sample at a position; what is foreseen of it is added.
    pub(crate) request: Box<dyn Fn(usize) -> Option<Request> + Send + 'a>,
    /// The position of a sample, by its number in the input file.
    pub(crate) position_of: Box<dyn Fn(u64) -> Option<usize> + Send + 'a>,
    pub(crate) lease: Duration,
    pub(crate) join_timeout: Duration,
    pub(crate) watch: &'a StopWatch,
    pub(crate) topology: Topology,
    /// What decides the texts, data apart; must be the same for every rank.
    pub(crate) identity: &'a Identity,
    /// Why rank 0 computes on the CPU, where a GPU was asked for.
    pub(crate) fallback: Option<&'a str>,
    pub(crate) welcome: FromZero,
    /// To rank 0 itself.
    pub(crate) local: Sender<Heard>,
    /// To all others, where there are any.
    pub(crate) server: Option<&'a Server>,
    /// Takes each finished sample once, with its position.
    pub(crate) finished: Box<dyn Fn(usize, SampleDone) + Send + 'a>,
    /// Takes each response of a sample that is not finished, with the rank that computed it, the sample's position and the
    /// response's number. It may come from several ranks.
    pub(crate) responded: Box<dyn Fn(Rank, usize, u32, ResponseDone) + Send + 'a>,
}

/// How the job ended.
#[derive(Debug)]
pub(crate) struct DeskReport {
    /// Why it ended.
    pub(crate) stop: Option<Stop>,
    /// The failure of another rank, with its exit code.
    pub(crate) failure: Option<Failure>,
    /// What a rank says that cannot go on without another one: all there is where that one said nothing.
    pub(crate) lost: Option<Failure>,
    /// What the other ranks computed, those that said so.
    pub(crate) others_worked: Vec<Worked>,
    /// Samples of each rank that leads a replica, in order.
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
    table: LeaseTable<'b>,
    peers: Vec<Peer>,
    started: Instant,
    stop: Option<Stop>,
    stopped_at: Option<Instant>,
    failure: Option<Failure>,
    lost: Option<Failure>,
    others_worked: Vec<Worked>,
    missing_told: bool,
}

impl Desk<'_> {
    /// Works until the job has ended and every rank that can has said so.
    pub(crate) fn run(&self, table: LeaseTable<'_>, events: &Receiver<Event>) -> DeskReport {
        let mut state = State {
            desk: self,
            table,
            peers: vec![Peer::default(); self.topology.num_ranks() as usize],
            started: Instant::now(),
            stop: None,
            stopped_at: None,
            failure: None,
            lost: None,
            others_worked: Vec::new(),
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
            stop: state.stop.clone(),
            samples_by_rank: state.samples_by_rank(),
            failure: state.failure,
            lost: state.lost,
            others_worked: state.others_worked,
        }
    }
}

impl State<'_, '_> {
    fn samples_by_rank(&self) -> Vec<u64> {
        let leads = |rank| self.desk.topology.leases_for(rank).is_some();
        let leaders = self.peers.iter().zip(0..).filter(|&(_, rank)| leads(rank));
        leaders.map(|(peer, _)| peer.num_samples).collect()
    }

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
            Event::Cancel(rank, cancellation) => {
                if self.peers.get(rank as usize).is_some_and(|peer| !peer.left) {
                    self.send(rank, FromZero::Cancel(cancellation));
                }
            }
        }
    }

    fn hear(&mut self, rank: Rank, message: ToZero) {
        let now = self.now();
        let topology = self.desk.topology;
        if topology.leases_for(rank).is_some_and(|replica| self.table.hear(replica, now)) {
            tracing::info!("rank {rank} is back");
        }
        if let Some(peer) = self.peers.get_mut(rank as usize) {
            peer.heard = Some(Instant::now());
        }
        match message {
            ToZero::Hello(hello) => self.greet(rank, &hello),
            ToZero::Ready { capacity } => {
                if let Some(replica) = self.leased_by(rank) {
                    self.table.join(replica, capacity as usize, now);
                    self.deal(replica);
                }
            }
            ToZero::Alive => {}
            ToZero::Done(samples) => {
                let Some(replica) = self.leased_by(rank) else { return };
                samples.into_iter().for_each(|sample| self.accept(rank, replica, sample));
                if self.table.num_unfinished() == 0 {
                    self.begin_stop(&Stop::Finished);
                }
                self.deal(replica);
            }
            ToZero::Response { sample_idx, response_idx, response } => {
                let position = (self.desk.position_of)(sample_idx);
                if let Some(position) = position.filter(|&position| self.table.is_open(position)) {
                    (self.desk.responded)(rank, position, response_idx, response);
                }
            }
            ToZero::Leaving(Leaving { why, worked }) => {
                self.others_worked.push(worked);
                // Without one of its ranks a replica cannot go on.
                if let Some(at) = topology.coordinates(rank) {
                    self.table.leave(at.replica);
                }
                if let Some(peer) = self.peers.get_mut(rank as usize) {
                    peer.left = true;
                }
                match why {
                    Why::Told => {}
                    Why::Signal(signal) => self.desk.watch.raise(signal),
                    Why::Failed { code, message } => {
                        let message = format!("{} failed: {message}", self.name(rank));
                        self.end(Failure::of_another_rank(ExitStatus::from_code(code), message));
                    }
                    Why::Lost { message } => {
                        let message = format!("{} ended: {message}", self.name(rank));
                        if !matches!(self.stop, Some(Stop::Finished)) {
                            let lost = || Failure::of_another_rank(ExitStatus::Failed, &message);
                            self.lost.get_or_insert_with(lost);
                        }
                        self.begin_stop(&Stop::Failed { message });
                    }
                }
                self.deal_to_all();
            }
        }
    }

    fn greet(&mut self, rank: Rank, hello: &Hello) {
        let Some(peer) = self.peers.get_mut(rank as usize) else { return };
        if let Some(other) = peer.hello.as_ref().filter(|other| *other != hello) {
            let message = format!(
                "rank {rank} came twice, as process {} on {} and as process {} on {}: is another job using this port? set \
                 MASTER_PORT to a free one for all ranks",
                other.process, other.host, hello.process, hello.host
            );
            self.fail(message, 1);
            return;
        }
        tracing::debug!("rank {rank} is process {} on {}", hello.process, hello.host);
        peer.hello = Some(hello.clone());
        if let Some((message, status)) = refusal(self.desk, &self.name(rank), hello) {
            self.fail(message, status.code());
            return;
        }
        self.send(rank, self.desk.welcome.clone());
        if let Some(stop) = self.stop.clone() {
            self.send(rank, FromZero::Stop(stop));
        }
    }

    /// The replica that a rank gets samples for. One that gets none has no business with them.
    fn leased_by(&mut self, rank: Rank) -> Option<Replica> {
        let replica = self.desk.topology.leases_for(rank);
        if replica.is_none() {
            let name = self.name(rank);
            self.fail(format!("{name} wants to compute samples that are another rank's of its replica"), 1);
        }
        replica
    }

    fn accept(&mut self, rank: Rank, replica: Replica, sample: SampleDone) {
        let Some(position) = (self.desk.position_of)(sample.sample_idx) else {
            tracing::error!("rank {rank} computed sample {}, which was not asked for", sample.sample_idx);
            return;
        };
        let longest = sample.responses.iter().map(|response| response.token_ids.len()).max().unwrap_or(0);
        let num_tokens: usize = sample.responses.iter().map(|response| response.token_ids.len()).sum();
        // Ids, log-probabilities and the text, roughly.
        let mean_tokens = num_tokens / sample.responses.len().max(1);
        let of_top =
            |response: &ResponseDone| response.top_logprobs.iter().flatten().map(Vec::len).sum::<usize>();
        let num_top: usize = sample.responses.iter().map(of_top).sum();
        let size = SampleSize {
            longest_tokens: longest,
            mean_tokens: u32::try_from(mean_tokens).unwrap_or(u32::MAX),
            num_bytes: 12 * num_tokens + 40 * num_top + 128,
        };
        if self.table.complete(replica, position, size, self.now()) == Arrival::First {
            if let Some(peer) = self.peers.get_mut(rank as usize) {
                peer.num_samples += 1;
            }
            (self.desk.finished)(position, sample);
        }
    }

    /// What hangs on the time.
    fn look_around(&mut self) {
        // It shares this process: when it lives, so does rank 0.
        if let Some(replica) = self.desk.topology.leases_for(0) {
            self.table.hear(replica, self.now());
        }
        for (replica, num_samples) in self.table.expire(self.now()) {
            let Some(rank) = self.desk.topology.leader(replica) else { continue };
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
                "nothing was heard from rank {} within {} s: the job continues without",
                missing.join(", "),
                self.desk.join_timeout.as_secs()
            );
        }
        self.deal_to_all();
    }

    fn deal_to_all(&mut self) {
        for replica in self.desk.topology.replicas() {
            self.deal(replica);
        }
    }

    /// Gives a replica what it may have.
    fn deal(&mut self, replica: Replica) {
        if self.stop.is_some() {
            return;
        }
        let now = self.now();
        let granted = self.table.grant(replica, now);
        if let Some(rank) = self.desk.topology.leader(replica)
            && !granted.is_empty()
        {
            let request =
                |Grant { position, foresight }| Some(Request { foresight, ..(self.desk.request)(position)? });
            let requests = granted.into_iter().filter_map(request).collect();
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
        self.end(Failure { status: ExitStatus::from_code(code), error: anyhow::anyhow!(message) });
    }

    fn end(&mut self, failure: Failure) {
        let message = failure.sentence();
        if self.failure.is_none() && !matches!(self.stop, Some(Stop::Finished)) {
            self.failure = Some(failure);
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

/// Why a rank cannot join: it belongs to another job, or its texts would not be those of rank 0.
fn refusal(desk: &Desk<'_>, name: &str, hello: &Hello) -> Option<(String, ExitStatus)> {
    if hello.topology != desk.topology {
        let message = format!(
            "{name} belongs to a job of {}, rank 0 to one of {}: start all ranks with the same settings, or set MASTER_PORT \
             to a free port for all ranks of this job",
            hello.topology, desk.topology
        );
        return Some((message, ExitStatus::Usage));
    }
    let mine = desk.identity;
    let theirs = serde_json::from_str(&hello.identity)
        .map_err(|error| error.to_string())
        .and_then(|recorded| Identity::read(&recorded).map_err(|error| error.to_string()));
    let theirs = match theirs {
        Ok(theirs) => theirs,
        Err(reason) => {
            let message = format!("{name} and rank 0 cannot compare their settings: {reason}");
            return Some((message, ExitStatus::Usage));
        }
    };
    let devices = [(name, &theirs, hello.fallback.as_deref()), ("rank 0", mine, desk.fallback)];
    let [theirs_on, mine_on] = devices.map(|(name, identity, fallback)| {
        let why = fallback.map_or_else(String::new, |reason| format!(" ({reason})"));
        format!("{name} computes on device `{}`{why}", identity.compute.device)
    });
    if theirs.compute.device != mine.compute.device {
        let message = format!(
            "{theirs_on}, {mine_on}: their texts would differ; mend the device, leave that machine out of the job, or set \
             `trainer.accelerator=cpu` for all ranks"
        );
        return Some((message, ExitStatus::Device));
    }
    let changes = mine.changes(&theirs);
    let message = || format!("{name} was started with other settings than rank 0: {}", changes.join(", "));
    (!changes.is_empty()).then(|| (message(), ExitStatus::Usage))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::lease::LeaseLimits;
    use super::*;

    fn topology() -> Topology {
        Topology::data_parallel(2).unwrap()
    }

    fn on(device: &str) -> Identity {
        let mut identity = Identity::default();
        identity.compute.device = device.to_owned();
        identity
    }

    fn hello(identity: &Identity, fallback: Option<&str>) -> Hello {
        Hello {
            host: "node7".to_owned(),
            process: 5,
            topology: topology(),
            identity: identity.record().unwrap().to_string(),
            fallback: fallback.map(str::to_owned),
        }
    }

    /// How rank 0 ends a job that this rank comes to.
    fn refused(rank_0: (&Identity, Option<&str>), hello: Hello) -> Option<Failure> {
        let (events, incoming) = channel();
        let (local, _from_zero) = channel();
        let watch = StopWatch::install(Instant::now()).unwrap();
        let desk = Desk {
            request: Box::new(|_| None),
            position_of: Box::new(|_| None),
            lease: Duration::from_secs(60),
            join_timeout: Duration::from_secs(60),
            watch: &watch,
            topology: topology(),
            identity: rank_0.0,
            fallback: rank_0.1,
            welcome: FromZero::Welcome { longest_sequence_tokens: 1, num_sequences: 1 },
            local,
            server: None,
            finished: Box::new(|_, _| {}),
            responded: Box::new(|_, _, _, _| {}),
        };
        let leaving = || ToZero::Leaving(Leaving { why: Why::Told, worked: Worked::default() });
        events.send(Event::From(1, ToZero::Hello(hello))).unwrap();
        events.send(Event::From(1, leaving())).unwrap();
        // Ends the job where nobody was refused.
        events.send(Event::WriterFailed("the end".to_owned())).unwrap();
        let limits = LeaseLimits {
            step_samples: 1,
            run_ahead_samples: 1,
            window_samples: 1,
            max_waiting_bytes: 1,
            lease: Duration::from_secs(60),
        };
        desk.run(LeaseTable::new(0..1, 2, limits), &incoming).failure
    }

    #[test]
    fn a_rank_on_another_device_is_refused() {
        let (cpu, gpu) = (on("cpu"), on("gpu sm_90"));
        assert!(refused((&gpu, None), hello(&gpu, None)).is_none());
        let fell_back = refused((&gpu, None), hello(&cpu, Some("there is no GPU"))).unwrap();
        assert_eq!(fell_back.status, ExitStatus::Device);
        insta::assert_snapshot!(fell_back.sentence(), @"rank 1 (process 5 on node7) computes on device `cpu` (there is no GPU), rank 0 computes on device `gpu sm_90`: their texts would differ; mend the device, leave that machine out of the job, or set `trainer.accelerator=cpu` for all ranks");
        let first_fell_back = refused((&cpu, Some("no driver")), hello(&gpu, None)).unwrap();
        assert_eq!(first_fell_back.status, ExitStatus::Device);
        insta::assert_snapshot!(first_fell_back.sentence(), @"rank 1 (process 5 on node7) computes on device `gpu sm_90`, rank 0 computes on device `cpu` (no driver): their texts would differ; mend the device, leave that machine out of the job, or set `trainer.accelerator=cpu` for all ranks");
        // All alike, as the user was warned at the start.
        assert!(refused((&cpu, Some("no driver")), hello(&cpu, Some("no driver"))).is_none());
        let other_gpu = refused((&gpu, None), hello(&on("gpu sm_80"), None)).unwrap();
        assert_eq!(other_gpu.status, ExitStatus::Device);
    }

    #[test]
    fn a_rank_of_a_job_of_another_size_is_refused() {
        let cpu = on("cpu");
        let mut theirs = hello(&cpu, None);
        theirs.topology = Topology::new(2, 1, 2).unwrap();
        let failure = refused((&cpu, None), theirs).unwrap();
        assert_eq!(failure.status, ExitStatus::Usage);
        insta::assert_snapshot!(failure.sentence(), @"rank 1 (process 5 on node7) belongs to a job of 2 x 1 x 2 ranks (data x pipeline x tensor), rank 0 to one of 2 x 1 x 1 ranks (data x pipeline x tensor): start all ranks with the same settings, or set MASTER_PORT to a free port for all ranks of this job");
    }

    #[test]
    fn a_rank_with_other_settings_is_refused() {
        let mine = on("cpu");
        let mut theirs = on("cpu");
        theirs.settings.seed = 7;
        theirs.compute.fused = true;
        let failure = refused((&mine, None), hello(&theirs, None)).unwrap();
        assert_eq!(failure.status, ExitStatus::Usage);
        insta::assert_snapshot!(failure.sentence(), @"rank 1 (process 5 on node7) was started with other settings than rank 0: `model.seed` (was 0, now 7), `trainer.generation.trt_llm.enable` (was false, now true)");
        let mut of_another_version = hello(&mine, None);
        of_another_version.identity = "{\"version\": 3}".to_owned();
        let failure = refused((&mine, None), of_another_version).unwrap();
        insta::assert_snapshot!(failure.sentence(), @"rank 1 (process 5 on node7) and rank 0 cannot compare their settings: it has version 3 of what decides the texts, this program has version 2");
    }
}
