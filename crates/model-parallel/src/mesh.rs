//! Every rank's connections to the others.

use std::io::ErrorKind;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::MeshError;
use crate::socket::{Frame, Outgoing, Reading, Writing};

/// How often a rank shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What a message is for. A rank that gets another kind than it waits for is not where the others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Settings that the ranks agree on before they begin.
    Agree = 1,
    /// What the leading rank has the others do.
    Step,
    /// Partial sums or parts of a tensor.
    Gather,
    /// The residual stream between pipeline stages.
    Residual,
    /// Tokens that the last stage has drawn.
    Tokens,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Agree => "settings",
            Self::Step => "a step",
            Self::Gather => "a part of a tensor",
            Self::Residual => "the residual stream",
            Self::Tokens => "tokens",
        }
    }
}

/// A connection to another rank.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) writing: Writing,
    pub(crate) reading: Reading,
}

/// The connections of one rank to all others of its model.
#[derive(Debug)]
pub struct Mesh {
    mine: usize,
    /// By rank; none for this one.
    peers: Vec<Option<Peer>>,
    /// How long a rank may be silent.
    limit: Duration,
    /// Goes on until the mesh is dropped.
    _heartbeat: Heartbeat,
}

impl Mesh {
    /// Shows this rank's life from now on.
    pub(crate) fn new(mine: usize, peers: Vec<Option<Peer>>, limit: Duration) -> Self {
        let writing = peers.iter().flatten().map(|peer| peer.writing.clone()).collect();
        Self { mine, peers, limit, _heartbeat: Heartbeat::start(writing) }
    }

    /// This rank's number.
    pub fn mine(&self) -> usize {
        self.mine
    }

    /// How many ranks there are, this one included.
    pub fn num_ranks(&self) -> usize {
        self.peers.len()
    }

    /// Sends to a rank.
    ///
    /// # Errors
    /// When it is lost.
    pub fn send(&mut self, to: usize, kind: Kind, content: &[u8]) -> Result<(), MeshError> {
        self.exchange(kind, &[to], content, &[]).map(|_| ())
    }

    /// What a rank sends next.
    ///
    /// # Errors
    /// When it is lost, or sends something of another kind.
    pub fn receive(&mut self, from: usize, kind: Kind) -> Result<Vec<u8>, MeshError> {
        let mut came = self.exchange(kind, &[], &[], &[from])?;
        came.pop().ok_or_else(|| MeshError("nothing was received".to_owned()))
    }

    /// Sends `content` to some ranks and receives what others send, both at once. The result has the order of `from`.
    ///
    /// # Errors
    /// When one is lost, or sends something of another kind.
    pub fn exchange(
        &mut self,
        kind: Kind,
        to: &[usize],
        content: &[u8],
        from: &[usize],
    ) -> Result<Vec<Vec<u8>>, MeshError> {
        let mut outgoing: Vec<(usize, Outgoing<'_>)> =
            to.iter().map(|&rank| (rank, Outgoing::new(kind as u8, content))).collect();
        let mut came: Vec<Option<Vec<u8>>> = from.iter().map(|_| None).collect();
        let mut silence = Silence::new(self.peers.len(), self.limit);
        loop {
            let mut awaited = Vec::new();
            for (rank, frame) in &mut outgoing {
                let peer = peer_of(&mut self.peers, *rank)?;
                let written = frame.advance(&mut peer.writing.lock());
                if written.map_err(|error| lost(&peer.name, &error))? {
                    silence.ends(*rank);
                }
                if !frame.is_out() {
                    awaited.push((*rank, PollFlags::IN | PollFlags::OUT));
                }
            }
            for (slot, &rank) in came.iter_mut().zip(from) {
                let peer = peer_of(&mut self.peers, rank)?;
                if slot.is_none() {
                    *slot = peer.next(kind, &mut silence, rank)?;
                }
                if slot.is_none() {
                    awaited.push((rank, PollFlags::IN));
                }
            }
            if awaited.is_empty() {
                return Ok(came.into_iter().flatten().collect());
            }
            for &(rank, _) in &awaited {
                let peer = peer_of(&mut self.peers, rank)?;
                if !from.contains(&rank)
                    && peer.reading.advance().map_err(|error| lost(&peer.name, &error))?
                {
                    silence.ends(rank);
                }
                silence.check(rank, &peer.name)?;
            }
            self.wait_for(&awaited)?;
            silence.goes_on();
        }
    }

    /// Waits until something can be read or written, or for a moment.
    fn wait_for(&self, awaited: &[(usize, PollFlags)]) -> Result<(), MeshError> {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        let streams = awaited.iter().filter_map(|&(rank, flags)| {
            Some(PollFd::new(&self.peers.get(rank)?.as_ref()?.reading.stream, flags))
        });
        match poll(&mut streams.collect::<Vec<_>>(), Some(&MOMENT)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => {
                Err(MeshError(format!("the connections to the other ranks cannot be waited for: {error}")))
            }
        }
    }
}

impl Peer {
    /// The next frame, where it has come.
    fn next(&mut self, kind: Kind, silence: &mut Silence, rank: usize) -> Result<Option<Vec<u8>>, MeshError> {
        let mut frame = self.reading.take();
        if frame.is_none() {
            let read = self.reading.advance();
            frame = self.reading.take();
            match read {
                Ok(true) => silence.ends(rank),
                Ok(false) => {}
                // What it said before it ended is there.
                Err(_) if frame.is_some() => {}
                Err(error) => return Err(lost(&self.name, &error)),
            }
        }
        match frame {
            None => Ok(None),
            Some(Frame { kind: actual, content }) if actual == kind as u8 => Ok(Some(content)),
            Some(Frame { kind: actual, .. }) => Err(MeshError(format!(
                "{} sent message {actual} where {} belongs: all ranks must run the same program with the same settings",
                self.name,
                kind.name()
            ))),
        }
    }
}

/// How long ranks have been silent, counted while this process ran: one that was suspended itself does not blame others.
struct Silence {
    of_ranks: Vec<Duration>,
    limit: Duration,
    last_look: Instant,
}

impl Silence {
    fn new(num_ranks: usize, limit: Duration) -> Self {
        Self { of_ranks: vec![Duration::ZERO; num_ranks], limit, last_look: Instant::now() }
    }

    fn ends(&mut self, rank: usize) {
        if let Some(silence) = self.of_ranks.get_mut(rank) {
            *silence = Duration::ZERO;
        }
    }

    fn goes_on(&mut self) {
        const MOST: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let passed = now.duration_since(self.last_look).min(MOST);
        self.last_look = now;
        self.of_ranks.iter_mut().for_each(|silence| *silence += passed);
    }

    fn check(&self, rank: usize, name: &str) -> Result<(), MeshError> {
        match self.of_ranks.get(rank) {
            Some(silence) if *silence > self.limit => Err(MeshError(format!(
                "{name} computes a part of the model, and was not heard from for {} s: it stands still, or cannot be reached",
                self.limit.as_secs()
            ))),
            _ => Ok(()),
        }
    }
}

fn peer_of(peers: &mut [Option<Peer>], rank: usize) -> Result<&mut Peer, MeshError> {
    let peer = peers.get_mut(rank).and_then(Option::as_mut);
    peer.ok_or_else(|| MeshError(format!("there is no connection to rank {rank} of the model")))
}

fn lost(name: &str, error: &std::io::Error) -> MeshError {
    let how = match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "has ended".to_owned()
        }
        _ => format!("cannot be reached any more: {error}"),
    };
    MeshError(format!("{name} computes a part of the model, and {how}"))
}

/// A thread that shows this process's life to the others.
#[derive(Debug)]
struct Heartbeat {
    ends: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    fn start(writing: Vec<Writing>) -> Self {
        let (ends, ended) = channel();
        let thread = std::thread::spawn(move || {
            while ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                writing.iter().for_each(Writing::show_life);
            }
        });
        Self { ends, thread: Some(thread) }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        let _ = self.ends.send(());
        if let Some(thread) = self.thread.take() {
            // It does nothing that could fail.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
