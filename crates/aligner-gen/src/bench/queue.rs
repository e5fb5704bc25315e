//! `aligner-gen bench-queue`: the queue without a model. Jobs in simulated time beside the ideal and the original's static
//! slices, and the real desk on a real store with ranks that answer at once: messages a second, bytes, memory.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use engine::{Foresight, Request};
use sampling::FinishReason;

use crate::config::cli::BenchQueueArgs;
use crate::exit::Failure;
use crate::job::generate::{RUN_AHEAD, WINDOW};
use crate::output::Identity;
use crate::signals::StopWatch;
use crate::table::thousands;

use super::simulate::{Simulation, long_tail};
use crate::cluster::queue::dispatch::{Desk, Event};
use crate::cluster::queue::lease::{LeaseLimits, LeaseTable};
use crate::cluster::queue::link::{Server, connect};
use crate::cluster::queue::message::{
    FromZero, Hello, Leaving, ResponseDone, SampleDone, ToZero, Why, Worked,
};
use crate::cluster::ranks::{Meeting, RankPlace};
use crate::cluster::topology::Topology;

const PROMPT_TOKENS: usize = 200;
const RESPONSE_TOKENS: usize = 300;
const STEP_SAMPLES: usize = 256;

/// Prints both tables.
pub(crate) fn run(arguments: &BenchQueueArgs, out: &mut impl Write) -> Result<(), Failure> {
    let written = simulate(out).map_err(anyhow::Error::from);
    written?;
    for num_ranks in &arguments.ranks {
        let through = through_store(*num_ranks, arguments.samples)?;
        writeln!(out, "{through}").map_err(anyhow::Error::from)?;
    }
    Ok(())
}

fn simulate(out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "simulated time; lengths log-normal, median 200 tokens, sigma 1, at most 4,096; 64 responses at once, 50 tokens/s each"
    )?;
    writeln!(
        out,
        "ranks  slow  samples   ideal s  queue s  over ideal  static s  static/queue  twice  waiting  messages/s  MB/s"
    )?;
    for (num_ranks, num_slow, num_samples) in [
        (1, 0, 25_000),
        (4, 0, 100_000),
        (4, 1, 100_000),
        (32, 8, 400_000),
        (256, 0, 2_000_000),
        (256, 64, 2_000_000),
    ] {
        let mut speeds = vec![50.0; num_ranks];
        speeds.iter_mut().rev().take(num_slow).for_each(|speed| *speed /= 4.0);
        let simulation = Simulation {
            lengths: long_tail(num_samples, 200.0, 1.0, 4096),
            speeds,
            seats: 64,
            latency: Duration::from_millis(2),
            global_batch_size: 64 * num_ranks,
            knows_lengths: false,
        };
        let (ideal, outcome, fixed) =
            (simulation.ideal_seconds(), simulation.run(), simulation.static_seconds());
        let num_tokens: f64 = simulation.lengths.iter().map(|&length| f64::from(length)).sum();
        let num_bytes =
            4.0 * (num_tokens + (PROMPT_TOKENS * num_samples) as f64) + 40.0 * outcome.num_messages as f64;
        writeln!(
            out,
            "{num_ranks:>5} {num_slow:>5} {:>9} {ideal:>9.1} {:>8.1} {:>10.1}% {fixed:>9.1} {:>13.2} {:>6} {:>8} {:>11.0} {:>5.2}",
            thousands(num_samples as u64),
            outcome.seconds,
            (outcome.seconds / ideal - 1.0) * 100.0,
            fixed / outcome.seconds,
            outcome.num_repeated,
            thousands(outcome.peak_waiting as u64),
            outcome.num_messages as f64 / outcome.seconds,
            num_bytes / outcome.seconds / 1e6,
        )?;
    }
    Ok(())
}

/// What went through the store.
struct Through {
    num_ranks: u32,
    num_samples: usize,
    seconds: f64,
    num_messages: u64,
    num_bytes: u64,
    /// Resident memory after each quarter, in MiB.
    resident_mib: Vec<u64>,
}

impl std::fmt::Display for Through {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let resident: Vec<String> = self.resident_mib.iter().map(u64::to_string).collect();
        write!(
            f,
            "real store, {} ranks that answer at once: {} samples in {:.1} s = {} samples/s, {} messages/s, {:.1} MB/s; \
             memory of rank 0 after each quarter {} MiB",
            self.num_ranks,
            thousands(self.num_samples as u64),
            self.seconds,
            thousands((self.num_samples as f64 / self.seconds) as u64),
            thousands((self.num_messages as f64 / self.seconds) as u64),
            self.num_bytes as f64 / self.seconds / 1e6,
            resident.join(", ")
        )
    }
}

fn through_store(num_ranks: u32, num_samples: usize) -> Result<Through, Failure> {
    let port = free_port().map_err(anyhow::Error::from)?;
    // Rank 0 itself computes nothing here.
    let topology = Topology::data_parallel(num_ranks.saturating_add(1))?;
    let place = |rank| place_of(rank, topology, port);
    let mut server = Server::start(&place(0), None)?;
    let (events, incoming) = channel();
    let num_messages = AtomicU64::new(0);
    server.listen(events.clone(), |heard| match heard {
        Ok((rank, message)) => Event::From(rank, message),
        Err(reason) => Event::StoreLost(reason),
    })?;
    let (to_local, _from_zero) = channel();
    let watch = StopWatch::install(Instant::now()).map_err(anyhow::Error::from)?;
    let identity = Identity::default();
    let limits = LeaseLimits {
        step_samples: STEP_SAMPLES,
        run_ahead_samples: 72 * RUN_AHEAD * num_ranks as usize,
        window_samples: 72 * WINDOW * num_ranks as usize,
        max_waiting_bytes: 1 << 30,
        lease: Duration::from_secs(60),
    };
    let table = LeaseTable::new(0..num_samples, topology.num_replicas(), limits);
    let (finished, positions) = channel();
    let desk = Desk {
        request: Box::new(|position| Some(request(position))),
        position_of: Box::new(|sample_idx| usize::try_from(sample_idx).ok()),
        lease: limits.lease,
        join_timeout: Duration::from_secs(60),
        watch: &watch,
        topology,
        identity: &identity,
        fallback: None,
        welcome: FromZero::Welcome { longest_sequence_tokens: 500, num_sequences: num_samples as u64 },
        local: to_local,
        server: Some(&server),
        finished: Box::new(move |position, sample| {
            let _ = finished.send((position, sample.responses.len()));
        }),
        responded: Box::new(|_, _, _, _| {}),
    };
    let started = Instant::now();
    let mut resident_mib = Vec::new();
    std::thread::scope(|scope| {
        let desk = scope.spawn(move || desk.run(table, &incoming));
        let num_messages = &num_messages;
        let workers: Vec<_> = (1..=num_ranks)
            .map(|rank| {
                let place = place(rank);
                let identity = &identity;
                scope.spawn(move || answer(&place, topology, identity, num_messages))
            })
            .collect();
        let (mut open, mut committed, mut num_done) = (BTreeSet::new(), 0, 0);
        for (position, _) in &positions {
            open.insert(position);
            num_done += 1;
            let end = (committed + STEP_SAMPLES).min(num_samples);
            if open.range(committed..end).count() == end - committed {
                open = open.split_off(&end);
                committed = end;
                let _ = events.send(Event::Committed(end));
            }
            if num_done % (num_samples / 4).max(1) == 0 {
                resident_mib.push(own_resident_mib());
            }
        }
        workers.into_iter().try_for_each(join)?;
        join_value(desk);
        Ok::<(), Failure>(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let num_messages = num_messages.load(Ordering::Relaxed);
    let num_bytes = num_bytes_of(num_samples);
    Ok(Through { num_ranks, num_samples, seconds, num_messages, num_bytes, resident_mib })
}

fn place_of(rank: u32, topology: Topology, port: u16) -> RankPlace {
    let (world_size, meeting) =
        (topology.num_ranks(), Meeting::Address { host: "127.0.0.1".to_owned(), port });
    RankPlace { rank, world_size, local_rank: 0, local_size: 1, meeting }
}

/// Of all messages about samples.
fn num_bytes_of(num_samples: usize) -> u64 {
    (num_samples * (request_bytes() + done_bytes())) as u64
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn join(worker: std::thread::ScopedJoinHandle<'_, Result<(), Failure>>) -> Result<(), Failure> {
    join_value(worker)
}

fn join_value<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn request(position: usize) -> Request {
    Request {
        sample_idx: position as u64,
        prompt: vec![7; PROMPT_TOKENS],
        num_responses: 1,
        max_new_tokens: RESPONSE_TOKENS as u32,
        own: None,
        foresight: Foresight::default(),
    }
}

fn done(sample_idx: u64) -> SampleDone {
    let token_ids = vec![7; RESPONSE_TOKENS];
    let eos = FinishReason::Eos;
    let response =
        ResponseDone { token_ids, finish_reason: eos, error: None, logprobs: None, top_logprobs: None };
    SampleDone { sample_idx, responses: vec![response] }
}

fn request_bytes() -> usize {
    FromZero::Grant(vec![request(0)]).encode().len()
}

fn done_bytes() -> usize {
    ToZero::Done(vec![done(0)]).encode(1).len()
}

/// A rank whose model takes no time.
fn answer(
    place: &RankPlace,
    topology: Topology,
    identity: &Identity,
    num_messages: &AtomicU64,
) -> Result<(), Failure> {
    let (mailbox, line) = connect(place, Duration::from_secs(12), &|_| Ok(()))?;
    (mailbox.say)(ToZero::Hello(Hello::of_this_process(identity, topology, None)?));
    (mailbox.say)(ToZero::Ready { capacity: 72 });
    while let Ok(heard) = mailbox.from_zero.recv() {
        num_messages.fetch_add(1, Ordering::Relaxed);
        match heard {
            Ok(FromZero::Grant(requests)) => {
                let samples: Vec<SampleDone> =
                    requests.iter().map(|request| done(request.sample_idx)).collect();
                num_messages.fetch_add(1, Ordering::Relaxed);
                (mailbox.say)(ToZero::Done(samples));
            }
            Ok(FromZero::Welcome { .. } | FromZero::Cancel(_)) => {}
            Ok(FromZero::Stop(_)) => break,
            Err(reason) => return Err(anyhow::anyhow!("{reason}").into()),
        }
    }
    (mailbox.say)(ToZero::Leaving(Leaving { why: Why::Told, worked: Worked::default() }));
    drop(mailbox);
    line.hang_up();
    Ok(())
}

fn own_resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) / 1024
}
