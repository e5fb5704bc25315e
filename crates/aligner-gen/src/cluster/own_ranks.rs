//! The ranks of a command other than the main job, for a model that several of them share (`--tensor`, `--pipeline`):
//! processes of this program on this machine, which the first one starts with its own arguments.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use model_parallel::Patience;
use torch_ext::store::Store;

use super::cores;
use super::model_group::{Introduction, ModelGroup};
use super::ranks::{Meeting, RankPlace};
use super::spawn::LAUNCHER_VARIABLE;
use super::topology::Topology;
use crate::env;
use crate::exit::Failure;

/// For ranks but the first: their number and the port of the first one's store.
const RANK_VARIABLE: &str = "ALIGNER_GEN_OWN_RANK";
const PATIENCE: Patience = Patience { join: Duration::from_secs(120), silence: Duration::from_secs(60) };

/// This process among those that share the model.
pub(crate) struct OwnRanks {
    pub(crate) group: Option<ModelGroup>,
    pub(crate) rank: u32,
    pub(crate) topology: Topology,
    others: Vec<Child>,
}

impl OwnRanks {
    /// Starts the others, or joins them as the rank that this process was started as.
    pub(crate) fn start(tensor: u32, pipeline: u32) -> Result<Self, Failure> {
        let topology = Topology::new(1, pipeline, tensor)?;
        let started = env::of_launcher(RANK_VARIABLE);
        let started = started.as_deref().and_then(|text| {
            let (rank, port) = text.split_once(':')?;
            Some((rank.parse::<u32>().ok()?, port.parse::<u16>().ok()?))
        });
        let mut ranks =
            Self { group: None, rank: started.map_or(0, |(rank, _)| rank), topology, others: Vec::new() };
        if topology.num_ranks() == 1 {
            return Ok(ranks);
        }
        let (store, port) = match started {
            Some((_, port)) => (Store::connect("127.0.0.1", port, PATIENCE.join), port),
            None => {
                let socket =
                    TcpListener::bind("127.0.0.1:0").context("cannot open a socket for the ranks")?;
                let store = Store::serve(socket);
                let port = store.as_ref().map_or(0, Store::port);
                (store, port)
            }
        };
        let store = store.context("cannot reach the other ranks of the model")?;
        if started.is_none() {
            for rank in 1..topology.num_ranks() {
                ranks.others.push(start_rank(rank, topology.num_ranks(), port)?);
            }
        }
        let place = RankPlace {
            rank: ranks.rank,
            world_size: topology.num_ranks(),
            local_rank: ranks.rank,
            local_size: topology.num_ranks(),
            meeting: Meeting::Address { host: "127.0.0.1".to_owned(), port },
        };
        let keep_waiting = || Ok(());
        let introduction = Introduction {
            place: &place,
            topology,
            store: &store,
            patience: PATIENCE,
            keep_waiting: &keep_waiting,
        };
        ranks.group = introduction.meet()?;
        Ok(ranks)
    }

    /// Whether this process prints.
    pub(crate) fn is_first(&self) -> bool {
        self.rank == 0
    }
}

impl Drop for OwnRanks {
    fn drop(&mut self) {
        // They leave when this one does; whoever does not is killed with it.
        self.group = None;
        for child in &mut self.others {
            let _ = child.wait();
        }
    }
}

fn start_rank(rank: u32, num_ranks: u32, port: u16) -> Result<Child, Failure> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::null()).stdout(Stdio::null());
    command
        .env(RANK_VARIABLE, format!("{rank}:{port}"))
        .env(LAUNCHER_VARIABLE, std::process::id().to_string());
    Ok(cores::with_share(rank, num_ranks, || command.spawn())
        .with_context(|| format!("cannot start rank {rank}"))?)
}
