//! Mailboxes on the store. A queue of the store for each rank, one for rank 0; a value is gone once it is taken.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use torch_ext::store::Store;

use crate::exit::{ExitStatus, Failure, ResultExt};

use super::message::{FromZero, ToZero};
use super::{Heard, Mailbox};
use crate::cluster::ranks::{Meeting, RankPlace};
use crate::cluster::topology::Rank;

const TO_ZERO: &str = "0";
/// How long a listener waits before it looks whether it is still wanted.
const LISTEN: Duration = Duration::from_millis(250);
/// Samples in one message; more wait for the next.
const MAX_SAMPLES: usize = 64;

fn queue_of(rank: Rank) -> String {
    format!("rank/{rank}")
}

/// The store of rank 0.
pub(crate) struct Server {
    store: Arc<Store>,
    listening: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the store where the ranks look for it. `socket` is one that the launcher has bound.
    pub(crate) fn start(place: &RankPlace, socket: Option<i32>) -> Result<Self, Failure> {
        let store = match (&place.meeting, socket) {
            (Meeting::Address { port, .. }, Some(socket)) => Store::serve_on(socket, *port)
                .context("cannot serve the ranks on the launcher's socket")
                .exit_with(ExitStatus::Failed)?,
            (Meeting::Address { port, .. }, None) => serve(*port)?,
            (Meeting::Agent { host, port, key }, _) => {
                let store = serve(0)?;
                let agent = Store::connect(host, *port, Duration::from_secs(60))
                    .with_context(|| format!("cannot reach torchrun's store at `{host}:{port}`"))?;
                agent
                    .set(key, store.port().to_string().as_bytes())
                    .with_context(|| format!("cannot write to torchrun's store at `{host}:{port}`"))?;
                store
            }
        };
        Ok(Self { store: Arc::new(store), listening: Arc::new(AtomicBool::new(true)), listener: None })
    }

    /// From now on what ranks say comes out of the other end of `events`.
    pub(crate) fn listen<E: Send + 'static>(
        &mut self,
        events: Sender<E>,
        wrap: fn(Result<(Rank, ToZero), String>) -> E,
    ) -> Result<(), Failure> {
        let ear = Store::connect("127.0.0.1", self.store.port(), Duration::from_secs(60))
            .context("cannot reach this rank's own store")?;
        let listening = Arc::clone(&self.listening);
        self.listener = Some(std::thread::spawn(move || {
            while listening.load(Ordering::Relaxed) {
                let event = match ear.pop(TO_ZERO, LISTEN) {
                    Ok(None) => continue,
                    Ok(Some(bytes)) => ToZero::decode(&bytes).map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let is_lost = event.is_err();
                if events.send(wrap(event)).is_err() || is_lost {
                    return;
                }
            }
        }));
        Ok(())
    }

    /// Says something to a rank.
    pub(crate) fn send(&self, rank: Rank, message: &FromZero) -> Result<(), String> {
        self.store.push(&queue_of(rank), &message.encode()).map_err(|error| error.to_string())
    }
}

impl Server {
    /// Another connection to the store.
    pub(crate) fn board(&self) -> Result<Store, Failure> {
        Ok(Store::connect("127.0.0.1", self.store.port(), Duration::from_secs(60))
            .context("cannot reach this rank's own store")?)
    }
}

/// A connection to the store of rank 0, which has been reached before.
pub(crate) fn board(place: &RankPlace) -> Result<Store, Failure> {
    Ok(reach(&place.meeting).context("cannot reach the store of rank 0 again")?)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.store(false, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            // It ends soon, whatever it heard.
            let _ = listener.join();
        }
    }
}

fn serve(port: u16) -> Result<Store, Failure> {
    // Both families of addresses, or the older one where the machine has no other.
    TcpListener::bind(("::", port))
        .or_else(|error| match error.kind() {
            ErrorKind::AddrInUse => Err(error),
            _ => TcpListener::bind(("0.0.0.0", port)),
        })
        .map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow!(
                "port {port} of this machine is in use, by another job perhaps: set MASTER_PORT to a free one for all ranks"
            ),
            _ => anyhow::Error::new(error).context(format!("cannot open port {port} for the other ranks")),
        })
        .and_then(|socket| Ok(Store::serve(socket)?))
        .exit_with(ExitStatus::Failed)
}

/// The two threads of a rank's line.
pub(crate) struct Line {
    speaker: JoinHandle<()>,
    listener: JoinHandle<()>,
    hung_up: Arc<AtomicBool>,
}

/// Reaches rank 0. `keep_trying` is asked every few seconds.
pub(crate) fn connect(
    place: &RankPlace,
    alive_every: Duration,
    keep_trying: &dyn Fn(Duration) -> Result<(), Failure>,
) -> Result<(Mailbox, Line), Failure> {
    let started = Instant::now();
    let reach = || loop {
        match reach(&place.meeting) {
            Ok(store) => return Ok::<Store, Failure>(store),
            Err(error) => {
                keep_trying(started.elapsed())?;
                tracing::debug!("rank 0 is not there yet: {error:#}");
            }
        }
    };
    let (speaking, listening) = (reach()?, reach()?);
    let (to_zero, outbox) = channel();
    let (inbox, from_zero) = channel();
    let rank = place.rank;
    let hung_up = Arc::new(AtomicBool::new(false));
    let stop_listening = Arc::clone(&hung_up);
    let speaker = std::thread::spawn(move || speak(&speaking, &outbox, rank, alive_every));
    let listener = std::thread::spawn(move || listen(&listening, &inbox, rank, &stop_listening));
    let say = Box::new(move |message| {
        // The speaker ends early only when the line is lost.
        let _ = to_zero.send(message);
    });
    Ok((Mailbox { say, from_zero }, Line { speaker, listener, hung_up }))
}

impl Line {
    /// Waits until the last words are out. The mailbox must be gone.
    pub(crate) fn hang_up(self) {
        // They catch their own failures.
        let _ = self.speaker.join();
        self.hung_up.store(true, Ordering::Relaxed);
        let _ = self.listener.join();
    }
}

fn reach(meeting: &Meeting) -> Result<Store, anyhow::Error> {
    const TRY: Duration = Duration::from_secs(2);
    match meeting {
        Meeting::Address { host, port } => Ok(Store::connect(host, *port, TRY)?),
        Meeting::Agent { host, port, key } => {
            let agent = Store::connect(host, *port, TRY)?;
            let text = agent.get(key, TRY)?.context("rank 0 has not said its port yet")?;
            let port =
                String::from_utf8_lossy(&text).parse().context("rank 0 left no port in torchrun's store")?;
            Ok(Store::connect(host, port, TRY)?)
        }
    }
}

/// Passes on what the rank says, several finished samples in one message, and shows that it lives when it says nothing.
fn speak(store: &Store, outbox: &Receiver<ToZero>, rank: Rank, alive_every: Duration) {
    let mut held_back = None;
    let mut last_said = Instant::now();
    loop {
        let next = match held_back.take() {
            Some(message) => Ok(message),
            None => outbox.recv_timeout(alive_every.saturating_sub(last_said.elapsed())),
        };
        let message = match next {
            Ok(ToZero::Done(mut samples)) => {
                while samples.len() < MAX_SAMPLES {
                    match outbox.try_recv() {
                        Ok(ToZero::Done(more)) => samples.extend(more),
                        Ok(other) => {
                            held_back = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                ToZero::Done(samples)
            }
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => ToZero::Alive,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        // A line that is lost is told by the listener.
        if store.push(TO_ZERO, &message.encode(rank)).is_err() {
            return;
        }
        last_said = Instant::now();
    }
    // Words are not answered, a question is: it comes back after everything before it has arrived.
    let _ = store.queue_len(TO_ZERO);
}

fn listen(store: &Store, inbox: &Sender<Heard>, rank: Rank, hung_up: &AtomicBool) {
    let queue = queue_of(rank);
    while !hung_up.load(Ordering::Relaxed) {
        let heard = match store.pop(&queue, LISTEN) {
            Ok(None) => continue,
            Ok(Some(bytes)) => FromZero::decode(&bytes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let is_last = matches!(heard, Err(_) | Ok(FromZero::Stop(_)));
        if inbox.send(heard).is_err() || is_last {
            return;
        }
    }
}
