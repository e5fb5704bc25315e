//! How the ranks of a model find each other: each waits at an address, which it tells the others by some other way.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::mesh::Peer;
use crate::socket::{Reading, Writing};
use crate::{Mesh, MeshError};

/// How long one try to connect takes at most.
const TRY: Duration = Duration::from_secs(2);
/// How long a connection has to say who it is.
const GREETING: Duration = Duration::from_secs(10);
/// How often one looks for connections while others are missing.
const LOOK: Duration = Duration::from_millis(2);
const GREETING_BYTES: usize = 12;

/// Where a rank waits for others, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    host: String,
    port: u16,
    /// What who comes must say: others may try this port.
    secret: u64,
}

impl Invitation {
    /// As it is written by [`std::fmt::Display`].
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, secret) = text.rsplit_once('/')?;
        let (host, port) = rest.rsplit_once(':')?;
        let secret = u64::from_str_radix(secret, 16).ok()?;
        Some(Self { host: host.to_owned(), port: port.parse().ok()?, secret })
    }
}

impl std::fmt::Display for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}/{:x}", self.host, self.port, self.secret)
    }
}

/// A rank of a model.
#[derive(Clone, Debug)]
pub struct Member {
    /// What messages call it.
    pub name: String,
    /// Where it waits.
    pub invitation: Invitation,
}

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a rank to come.
    pub join: Duration,
    /// For a sign of life, from then on.
    pub silence: Duration,
}

/// A rank that waits for the others.
#[derive(Debug)]
pub struct Meeting {
    listener: TcpListener,
    secret: u64,
}

impl Meeting {
    /// Opens a port.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self, MeshError> {
        let listener = TcpListener::bind(("::", 0)).or_else(|_| TcpListener::bind(("0.0.0.0", 0)));
        let problem =
            |error| MeshError(format!("cannot open a port for the other ranks of the model: {error}"));
        let listener = listener.map_err(problem)?;
        listener.set_nonblocking(true).map_err(problem)?;
        Ok(Self { listener, secret: RandomState::new().build_hasher().finish() })
    }

    /// What the others need to come here. `host`: the name or number of this machine for them.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn invitation(&self, host: &str) -> Result<Invitation, MeshError> {
        let address = self.listener.local_addr();
        let address =
            address.map_err(|error| MeshError(format!("the port for the other ranks is gone: {error}")))?;
        Ok(Invitation { host: host.to_owned(), port: address.port(), secret: self.secret })
    }

    /// Connects all ranks; this one is `members[mine]`. `keep_waiting` is asked again and again, and ends it with its error.
    ///
    /// # Errors
    /// When a rank cannot be reached, or does not come in time.
    pub fn join(
        self,
        mine: usize,
        members: &[Member],
        patience: Patience,
        keep_waiting: &mut dyn FnMut() -> Result<(), MeshError>,
    ) -> Result<Mesh, MeshError> {
        let deadline = Instant::now() + patience.join;
        let mut peers: Vec<Option<Peer>> = members.iter().map(|_| None).collect();
        // Those with smaller numbers wait for this one.
        for (slot, member) in peers.iter_mut().zip(members).take(mine) {
            let stream = loop {
                match connect(&member.invitation, mine) {
                    Ok(stream) => break stream,
                    Err(error) if Instant::now() > deadline => {
                        return Err(MeshError(format!("{} cannot be reached: {error}", member.name)));
                    }
                    Err(_) => keep_waiting()?,
                }
            };
            *slot = Some(peer(stream, &member.name)?);
        }
        while let Some(missing) = (mine + 1..members.len()).find(|&rank| peers[rank].is_none()) {
            match self.accept(mine) {
                Some((rank, stream)) if rank > mine && rank < members.len() => {
                    peers[rank] = Some(peer(stream, &members[rank].name)?);
                }
                Some(_) => {}
                None if Instant::now() > deadline => {
                    return Err(MeshError(format!(
                        "{} did not come within {} s",
                        members[missing].name,
                        patience.join.as_secs()
                    )));
                }
                None => {
                    keep_waiting()?;
                    std::thread::sleep(LOOK);
                }
            }
        }
        Ok(Mesh::new(mine, peers, patience.silence))
    }

    /// Somebody who knows the secret, with its number. Others are sent away.
    fn accept(&self, mine: usize) -> Option<(usize, TcpStream)> {
        let (mut stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(GREETING)).ok()?;
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting).ok()?;
        let (secret, rank) = greeting.split_at(8);
        let rank = u32::from_le_bytes(rank.try_into().ok()?);
        if secret != self.secret.to_le_bytes() {
            return None;
        }
        stream.write_all(&(mine as u32).to_le_bytes()).ok()?;
        Some((rank as usize, stream))
    }
}

fn connect(to: &Invitation, mine: usize) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, format!("`{}` is no host", to.host));
    for address in (to.host.as_str(), to.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TRY) {
            Ok(mut stream) => {
                stream.write_all(&to.secret.to_le_bytes())?;
                stream.write_all(&(mine as u32).to_le_bytes())?;
                stream.set_read_timeout(Some(GREETING))?;
                // It answers when it has seen who came.
                stream.read_exact(&mut [0; 4])?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    std::thread::sleep(LOOK);
    Err(last)
}

fn peer(stream: TcpStream, name: &str) -> Result<Peer, MeshError> {
    let problem = |error| MeshError(format!("the connection to {name} cannot be used: {error}"));
    stream.set_nonblocking(true).map_err(problem)?;
    // A step is many small messages, each of which somebody waits for.
    stream.set_nodelay(true).map_err(problem)?;
    let reading = Reading::new(stream.try_clone().map_err(problem)?);
    Ok(Peer { name: name.to_owned(), writing: Writing::new(stream), reading })
}
