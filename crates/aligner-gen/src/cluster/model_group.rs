//! The ranks of one replica, which compute one model together: how this rank meets the others of its own, and the ways
//! that the model, the engine and the sampler have to them.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::{EngineLimits, Followers, TokenPath};
use model_core::{LostRank, ModelRanks};
use model_parallel::{Invitation, Kind, Meeting, Member, Mesh, MeshError, Patience};
use torch_ext::store::Store;

use super::ranks::{Meeting as Rendezvous, RankPlace};
use super::topology::{Coordinates, Topology};
use crate::exit::{ExitStatus, Failure};

/// How long one look at the store waits.
const LOOK: Duration = Duration::from_secs(1);

/// A rank's connections to the other ranks of its replica. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ModelGroup {
    mesh: Arc<Mutex<Mesh>>,
    tensor: usize,
    pipeline: usize,
}

/// What a rank must know to meet the others.
pub(crate) struct Introduction<'a> {
    pub(crate) place: &'a RankPlace,
    pub(crate) topology: Topology,
    /// Where ranks leave word.
    pub(crate) store: &'a Store,
    pub(crate) patience: Patience,
    /// Asked while others are missing; its error ends the waiting.
    pub(crate) keep_waiting: &'a dyn Fn() -> Result<(), Failure>,
}

impl Introduction<'_> {
    /// Meets the other ranks of this rank's replica. `None` where it has no others.
    ///
    /// # Errors
    /// When one does not come in time, or the store is lost.
    pub(crate) fn meet(&self) -> Result<Option<ModelGroup>, Failure> {
        let [_, pipeline, tensor] = self.topology.sizes();
        let Some(at) = self.topology.coordinates(self.place.rank).filter(|_| pipeline * tensor > 1) else {
            return Ok(None);
        };
        let meeting = Meeting::open().map_err(failed)?;
        let invitation = meeting.invitation(&self.own_host()).map_err(failed)?;
        let uname = rustix::system::uname();
        let name = format!(
            "rank {} (process {} on {})",
            self.place.rank,
            std::process::id(),
            uname.nodename().to_string_lossy()
        );
        let word = format!("{invitation}\n{name}");
        self.store.set(&key_of(self.place.rank), word.as_bytes()).map_err(anyhow::Error::from)?;
        let started = Instant::now();
        let mut members = Vec::new();
        for idx in 0..pipeline * tensor {
            let (pipeline_rank, tensor_rank) = (idx / tensor, idx % tensor);
            let rank = self.topology.rank(Coordinates { replica: at.replica, pipeline_rank, tensor_rank });
            members.push(self.find(rank.unwrap_or(0), started)?);
        }
        let mine = (at.pipeline_rank * tensor + at.tensor_rank) as usize;
        let mut keep_waiting = || (self.keep_waiting)().map_err(|failure| MeshError(failure.sentence()));
        let mesh = meeting.join(mine, &members, self.patience, &mut keep_waiting).map_err(failed)?;
        Ok(Some(ModelGroup {
            mesh: Arc::new(Mutex::new(mesh)),
            tensor: tensor as usize,
            pipeline: pipeline as usize,
        }))
    }

    /// What another rank has left in the store.
    fn find(&self, rank: u32, started: Instant) -> Result<Member, Failure> {
        loop {
            if let Some(word) = self.store.get(&key_of(rank), LOOK).map_err(anyhow::Error::from)? {
                let word = String::from_utf8_lossy(&word);
                let member = word.split_once('\n').and_then(|(invitation, name)| {
                    Some(Member { name: name.to_owned(), invitation: Invitation::parse(invitation)? })
                });
                return member.ok_or_else(|| {
                    anyhow::anyhow!("what rank {rank} left in the store cannot be read: all ranks must run the same program")
                        .into()
                });
            }
            if started.elapsed() > self.patience.join {
                let message = format!(
                    "rank {rank}, which has a part of the model of rank {}, did not come within \
                     `trainer.generation.join_timeout_seconds` of {} s",
                    self.place.rank,
                    self.patience.join.as_secs()
                );
                return Err(Failure::of_another_rank(ExitStatus::Failed, message));
            }
            (self.keep_waiting)()?;
        }
    }

    /// The address of this machine for the others: the one from which rank 0 is reached.
    fn own_host(&self) -> String {
        const LOCAL: &str = "127.0.0.1";
        if self.place.local_size == self.place.world_size {
            return LOCAL.to_owned();
        }
        let (Rendezvous::Address { host, port } | Rendezvous::Agent { host, port, .. }) = &self.place.meeting;
        // Nothing is sent.
        let address = UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
            socket.connect((host.as_str(), (*port).max(1)))?;
            socket.local_addr()
        });
        match address {
            Ok(address) if self.place.rank > 0 && !address.ip().is_loopback() => address.ip().to_string(),
            _ if self.place.rank == 0 => host.clone(),
            _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }
}

fn key_of(rank: u32) -> String {
    format!("model/{rank}")
}

fn failed(error: MeshError) -> Failure {
    anyhow::Error::new(error).into()
}

fn lost(error: MeshError) -> LostRank {
    LostRank(error.0)
}

impl ModelGroup {
    fn mesh(&self) -> MutexGuard<'_, Mesh> {
        self.mesh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All ranks but this one.
    fn others(&self) -> Vec<usize> {
        let mine = self.mesh().mine();
        (0..self.tensor * self.pipeline).filter(|&idx| idx != mine).collect()
    }

    /// Whether this is the rank that schedules.
    pub(crate) fn leads(&self) -> bool {
        self.mesh().mine() == 0
    }

    /// Whether this rank draws tokens.
    pub(crate) fn is_in_last_stage(&self) -> bool {
        self.mesh().mine() / self.tensor + 1 == self.pipeline
    }

    /// Pipeline stages of the model.
    pub(crate) fn num_stages(&self) -> usize {
        self.pipeline
    }

    /// The limits that all ranks can keep: of each the least.
    ///
    /// # Errors
    /// When a rank is lost, or has other limits to agree on.
    pub(crate) fn agree(&self, limits: EngineLimits) -> Result<EngineLimits, Failure> {
        let EngineLimits {
            max_num_seqs,
            max_prefill_tokens,
            num_blocks,
            num_host_blocks,
            block_size_tokens,
            tables,
        } = limits;
        let mine = [max_num_seqs, max_prefill_tokens, num_blocks, num_host_blocks, block_size_tokens];
        let same = [tables.num_full, tables.num_windowed, tables.window_tokens];
        let words = mine.iter().chain(&same);
        let bytes: Vec<u8> = words.flat_map(|&limit| (limit as u64).to_le_bytes()).collect();
        let same_bytes = &bytes[8 * mine.len()..];
        let others = self.others();
        let theirs = self.mesh().exchange(Kind::Agree, &others, &bytes, &others).map_err(failed)?;
        let mut least = mine;
        for limits in theirs {
            if limits.len() != bytes.len() || !limits.ends_with(same_bytes) {
                return Err(anyhow::anyhow!(
                    "another rank of the model has other limits: all ranks must run the same program"
                )
                .into());
            }
            for (least, limit) in least.iter_mut().zip(limits.chunks_exact(8)) {
                let limit = u64::from_le_bytes(limit.try_into().unwrap_or_default());
                *least = (*least).min(usize::try_from(limit).unwrap_or(usize::MAX));
            }
        }
        let [max_num_seqs, max_prefill_tokens, num_blocks, num_host_blocks, block_size_tokens] = least;
        Ok(EngineLimits {
            max_num_seqs,
            max_prefill_tokens,
            num_blocks,
            num_host_blocks,
            block_size_tokens,
            tables,
        })
    }

    /// The next message of the leading rank.
    ///
    /// # Errors
    /// When that is lost.
    pub(crate) fn next_order(&self) -> Result<Vec<u8>, LostRank> {
        self.mesh().receive(0, Kind::Step).map_err(lost)
    }
}

impl Followers for ModelGroup {
    fn tell(&mut self, message: &[u8]) -> Result<(), LostRank> {
        let others = self.others();
        self.mesh().exchange(Kind::Step, &others, message, &[]).map(|_| ()).map_err(lost)
    }
}

impl ModelRanks for ModelGroup {
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, LostRank> {
        let mut mesh = self.mesh();
        let own = mesh.mine();
        let first = own / self.tensor * self.tensor;
        let others: Vec<usize> = (first..first + self.tensor).filter(|&idx| idx != own).collect();
        let mut parts = mesh.exchange(Kind::Gather, &others, mine, &others).map_err(lost)?;
        parts.insert(own - first, mine.to_vec());
        Ok(parts)
    }

    fn send_to_next_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank> {
        let mut mesh = self.mesh();
        let next = mesh.mine() + self.tensor;
        mesh.send(next, Kind::Residual, bytes).map_err(lost)
    }

    fn receive_from_previous_stage(&mut self) -> Result<Vec<u8>, LostRank> {
        let mut mesh = self.mesh();
        let Some(previous) = mesh.mine().checked_sub(self.tensor) else {
            return Err(LostRank("the first pipeline stage has none before it".to_owned()));
        };
        mesh.receive(previous, Kind::Residual).map_err(lost)
    }

    fn send_to_previous_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank> {
        let mut mesh = self.mesh();
        let Some(previous) = mesh.mine().checked_sub(self.tensor) else {
            return Err(LostRank("the first pipeline stage has none before it".to_owned()));
        };
        mesh.send(previous, Kind::Agree, bytes).map_err(lost)
    }

    fn receive_from_next_stage(&mut self) -> Result<Vec<u8>, LostRank> {
        let mut mesh = self.mesh();
        let next = mesh.mine() + self.tensor;
        mesh.receive(next, Kind::Agree).map_err(lost)
    }
}

impl TokenPath for ModelGroup {
    fn send(&mut self, message: &[u8]) -> Result<(), LostRank> {
        let mut mesh = self.mesh();
        let tensor_rank = mesh.mine() % self.tensor;
        let others: Vec<usize> =
            (0..self.pipeline - 1).map(|stage| stage * self.tensor + tensor_rank).collect();
        mesh.exchange(Kind::Tokens, &others, message, &[]).map(|_| ()).map_err(lost)
    }

    fn receive(&mut self) -> Result<Vec<u8>, LostRank> {
        let mut mesh = self.mesh();
        let drawing = (self.pipeline - 1) * self.tensor + mesh.mine() % self.tensor;
        mesh.receive(drawing, Kind::Tokens).map_err(lost)
    }
}
