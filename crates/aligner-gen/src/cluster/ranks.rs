//! Which rank this process is. Pure: the environment comes in as a function.
//!
//! The order is the original's: torchrun, Slurm, LSF, MPI, and last the program's own launcher
//! (`LightningEnvironment` and its siblings in PyTorch Lightning). The first complete set of variables wins, so torchrun
//! under srun is torchrun.

use crate::config::devices::Devices;
use crate::exit::Failure;

use super::hostlist::first_host;

/// Lightning's port where nothing sets one.
const DEFAULT_PORT: u16 = 12_910;

/// How ranks find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// Rank 0 serves the store at this address.
    Address { host: String, port: u16 },
    /// torchrun's agent serves a store of its own at this address, where rank 0 leaves the port of ours under `key`.
    Agent { host: String, port: u16, key: String },
}

/// Where rank 0 serves its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// One rank among several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RankPlace {
    pub(crate) rank: u32,
    pub(crate) world_size: u32,
    pub(crate) local_rank: u32,
    /// Ranks on this machine.
    pub(crate) local_size: u32,
    pub(crate) meeting: Meeting,
}

/// What this process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The only rank.
    Alone,
    /// A rank that something else started.
    Rank(RankPlace),
    /// Starts the ranks of this machine.
    Launcher(LauncherPlan),
}

/// The ranks of one machine, and where they meet the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LauncherPlan {
    pub(crate) first_rank: u32,
    pub(crate) num_ranks: u32,
    pub(crate) world_size: u32,
    /// `None` on one machine: the launcher takes a free port.
    pub(crate) address: Option<Address>,
}

/// Looks up an environment variable.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl RankPlace {
    /// The only rank.
    pub(crate) fn alone() -> Self {
        let meeting = Meeting::Address { host: String::new(), port: 0 };
        Self { rank: 0, world_size: 1, local_rank: 0, local_size: 1, meeting }
    }
}

impl Role {
    /// What a job of this size would be, wherever it is going to run.
    pub(crate) fn planned(devices: Devices) -> Self {
        let world_size = devices.world_size();
        if world_size == 1 {
            return Self::Alone;
        }
        let num_ranks = devices.per_node.unwrap_or(1);
        Self::Launcher(LauncherPlan { first_rank: 0, num_ranks, world_size, address: None })
    }

    /// Reads the environment and holds it against the configuration.
    ///
    /// # Errors
    /// When both contradict each other, or a variable that is needed is missing or no number.
    pub(crate) fn find(env: Env<'_>, devices: Devices) -> Result<Self, Failure> {
        match find(env)? {
            Some(found) => found.check(devices),
            None => own_launcher(env, devices),
        }
    }
}

/// The first launcher with a complete set of variables.
fn find(env: Env<'_>) -> Result<Option<Found>, Failure> {
    for of_launcher in [torchrun, slurm, lsf, mpi] {
        if let Some(found) = of_launcher(env)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What has started this process as a rank, as far as its variables can be read.
pub(crate) fn launcher(env: Env<'_>) -> Option<&'static str> {
    find(env).ok().flatten().map(|found| found.launcher)
}

/// What a launcher's variables say.
struct Found {
    /// For messages.
    launcher: &'static str,
    rank: (&'static str, u32),
    world_size: (&'static str, u32),
    local_rank: u32,
    local_size: Option<(&'static str, u32)>,
    num_nodes: Option<(&'static str, u32)>,
    meeting: Option<Meeting>,
}

impl Found {
    fn check(self, devices: Devices) -> Result<Role, Failure> {
        let Self { launcher, rank: (rank_name, rank), world_size: (world_name, world_size), .. } = self;
        if rank >= world_size || self.local_rank >= world_size {
            return Err(Failure::usage(format!(
                "{launcher} says `{rank_name}={rank}` with `{world_name}={world_size}`: a rank must be below the number of ranks"
            )));
        }
        let typed = match devices.per_node {
            Some(per_node) => format!("trainer.devices={per_node} trainer.num_nodes={}", devices.num_nodes),
            None => format!("trainer.devices=auto trainer.num_nodes={}", devices.num_nodes),
        };
        let contradiction = |name: &str, value: u32, expect: String| {
            Err(Failure::usage(format!(
                "{launcher} started `{name}={value}`, but `{typed}` {expect}; set both alike"
            )))
        };
        if let Some((name, num_nodes)) = self.num_nodes
            && num_nodes != devices.num_nodes
        {
            return contradiction(name, num_nodes, format!("is for {} machines", devices.num_nodes));
        }
        if let (Some((name, local_size)), Some(per_node)) = (self.local_size, devices.per_node)
            && local_size != per_node
        {
            return contradiction(name, local_size, format!("is for {per_node} ranks on each machine"));
        }
        if devices.per_node.is_some() && world_size != devices.world_size() {
            return contradiction(world_name, world_size, format!("makes {} ranks", devices.world_size()));
        }
        if world_size == 1 {
            return Ok(Role::Alone);
        }
        let Some(meeting) = self.meeting else {
            return Err(Failure::usage(format!(
                "{launcher} does not say where rank 0 runs: set MASTER_ADDR to its host and MASTER_PORT to a free port for all ranks"
            )));
        };
        let local_size =
            self.local_size.map_or(world_size / devices.num_nodes.max(1), |(_, size)| size).max(1);
        Ok(Role::Rank(RankPlace { rank, world_size, local_rank: self.local_rank, local_size, meeting }))
    }
}

/// Whether Slurm shows each task of a step GPUs of its own alone.
pub(crate) fn has_own_gpu(env: Env<'_>) -> bool {
    env("SLURM_STEP_ID").is_some()
        && (env("SLURM_GPUS_PER_TASK").is_some()
            || env("SLURM_GPU_BIND").is_some_and(|bind| !bind.starts_with("none")))
}

fn torchrun(env: Env<'_>) -> Result<Option<Found>, Failure> {
    let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK"];
    if names.iter().any(|name| env(name).is_none()) {
        return Ok(None);
    }
    let host = env("MASTER_ADDR").unwrap_or_else(|| "127.0.0.1".to_owned());
    let port = port(env, || DEFAULT_PORT)?;
    let meeting = match env("TORCHELASTIC_USE_AGENT_STORE").as_deref() {
        Some("True") => {
            let run = env("TORCHELASTIC_RUN_ID").unwrap_or_default();
            let restart = env("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
            Meeting::Agent { host, port, key: format!("aligner-gen/{run}/{restart}") }
        }
        _ => Meeting::Address { host, port },
    };
    Ok(Some(Found {
        launcher: "torchrun",
        rank: ("RANK", needed(env, "RANK")?),
        world_size: ("WORLD_SIZE", needed(env, "WORLD_SIZE")?),
        local_rank: needed(env, "LOCAL_RANK")?,
        local_size: number(env, "LOCAL_WORLD_SIZE")?.map(|size| ("LOCAL_WORLD_SIZE", size)),
        num_nodes: None,
        meeting: Some(meeting),
    }))
}

fn slurm(env: Env<'_>) -> Result<Option<Found>, Failure> {
    // A batch script and the shell of `salloc` have the job's variables, too; only in a step of srun does every task run.
    let needed_names = ["SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST"];
    // `srun --pty bash` is a step with a shell in it, which may start something of any size.
    let is_shell = matches!(env("SLURM_JOB_NAME").as_deref(), Some("bash" | "interactive"))
        && env("SLURM_NTASKS").as_deref() == Some("1");
    if is_shell || needed_names.iter().any(|name| env(name).is_none()) {
        return Ok(None);
    }
    let first = ["SLURM_STEP_NODELIST", "SLURM_NODELIST"]
        .iter()
        .find_map(|name| env(name))
        .and_then(|list| first_host(&list));
    let job_port = || {
        let id = env("SLURM_JOB_ID").unwrap_or_default();
        let digits = id.get(id.len().saturating_sub(4)..).and_then(|digits| digits.parse::<u16>().ok());
        digits.map_or(DEFAULT_PORT, |digits| 15_000 + digits)
    };
    let port = port(env, job_port)?;
    let num_nodes = ["SLURM_STEP_NUM_NODES", "SLURM_NNODES"].into_iter();
    let mut found_nodes = None;
    for name in num_nodes {
        found_nodes = found_nodes.or(number(env, name)?.map(|num_nodes| (name, num_nodes)));
    }
    Ok(Some(Found {
        launcher: "Slurm",
        rank: ("SLURM_PROCID", needed(env, "SLURM_PROCID")?),
        world_size: ("SLURM_NTASKS", needed(env, "SLURM_NTASKS")?),
        local_rank: number(env, "SLURM_LOCALID")?.unwrap_or(0),
        local_size: None,
        num_nodes: found_nodes,
        meeting: env("MASTER_ADDR").or(first).map(|host| Meeting::Address { host, port }),
    }))
}

/// IBM's LSF with jsrun. Its host list begins with the machine of the batch script, where no rank runs.
fn lsf(env: Env<'_>) -> Result<Option<Found>, Failure> {
    let names = ["LSB_JOBID", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"];
    if names.iter().any(|name| env(name).is_none()) {
        return Ok(None);
    }
    let first = env("LSB_HOSTS").and_then(|hosts| hosts.split_whitespace().nth(1).map(str::to_owned));
    let job_port = || {
        let id = env("LSB_JOBID").unwrap_or_default();
        let digits = id.get(id.len().saturating_sub(3)..).and_then(|digits| digits.parse::<u16>().ok());
        digits.map_or(DEFAULT_PORT, |digits| 10_000 + digits)
    };
    let port = port(env, job_port)?;
    Ok(Some(Found {
        launcher: "LSF",
        rank: ("JSM_NAMESPACE_RANK", needed(env, "JSM_NAMESPACE_RANK")?),
        world_size: ("JSM_NAMESPACE_SIZE", needed(env, "JSM_NAMESPACE_SIZE")?),
        local_rank: needed(env, "JSM_NAMESPACE_LOCAL_RANK")?,
        local_size: None,
        num_nodes: None,
        meeting: env("MASTER_ADDR").or(first).map(|host| Meeting::Address { host, port }),
    }))
}

/// Open MPI's mpirun, or a process manager that speaks PMI.
fn mpi(env: Env<'_>) -> Result<Option<Found>, Failure> {
    const SETS: [[&str; 4]; 2] = [
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
        ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ];
    let is_complete = |set: &&[&str; 4]| set.iter().take(3).all(|name| env(name).is_some());
    let Some(&[rank, size, local_rank, local_size]) = SETS.iter().find(is_complete) else { return Ok(None) };
    let world_size = needed(env, size)?;
    let local = number(env, local_size)?;
    // On one machine the address is known; several machines need to be told.
    let host = env("MASTER_ADDR").or_else(|| (local == Some(world_size)).then(|| "127.0.0.1".to_owned()));
    let job_port = || {
        let id = env("OMPI_MCA_ess_base_jobid").and_then(|id| id.parse::<u64>().ok());
        id.and_then(|id| u16::try_from((id >> 16) % 10_000).ok()).map_or(DEFAULT_PORT, |id| 15_000 + id)
    };
    let port = port(env, job_port)?;
    Ok(Some(Found {
        launcher: "mpirun",
        rank: (rank, needed(env, rank)?),
        world_size: (size, world_size),
        local_rank: needed(env, local_rank)?,
        local_size: local.map(|local| (local_size, local)),
        num_nodes: None,
        meeting: host.map(|host| Meeting::Address { host, port }),
    }))
}

/// What says which of several machines this is: Lightning's names, and that of Kubernetes' indexed Jobs.
const NODE_VARIABLES: [&str; 3] = ["NODE_RANK", "GROUP_RANK", "JOB_COMPLETION_INDEX"];

/// Nothing started the ranks: this process does. On several machines somebody starts it once on each, as Lightning
/// has it, with NODE_RANK, MASTER_ADDR and MASTER_PORT.
fn own_launcher(env: Env<'_>, devices: Devices) -> Result<Role, Failure> {
    if devices.num_nodes == 1 {
        return Ok(Role::planned(devices));
    }
    let num_ranks = devices.per_node.unwrap_or(1);
    let world_size = devices.world_size();
    let name = NODE_VARIABLES.into_iter().find(|name| env(name).is_some());
    let node = name.map(|name| needed(env, name).map(|node| (name, node))).transpose()?;
    let (Some((name, node)), Some(host), Some(_)) = (node, env("MASTER_ADDR"), env("MASTER_PORT")) else {
        return Err(Failure::usage(format!(
            "`trainer.num_nodes={}` is for {0} machines, and nothing has started this process on them: start it with srun, \
             torchrun or mpirun, or once on each machine with NODE_RANK (in an indexed Job of Kubernetes JOB_COMPLETION_INDEX \
             is there), MASTER_ADDR and MASTER_PORT set; for this machine alone set `trainer.num_nodes=1`",
            devices.num_nodes
        )));
    };
    if node >= devices.num_nodes {
        return Err(Failure::usage(format!(
            "`{name}={node}`, but `trainer.num_nodes={}`: it must be below",
            devices.num_nodes
        )));
    }
    let address = Some(Address { host, port: port(env, || DEFAULT_PORT)? });
    Ok(Role::Launcher(LauncherPlan { first_rank: node * num_ranks, num_ranks, world_size, address }))
}

fn number(env: Env<'_>, name: &str) -> Result<Option<u32>, Failure> {
    let Some(text) = env(name) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| {
        Failure::usage(format!("the environment variable {name} must be a whole number, found `{text}`"))
    })
}

fn needed(env: Env<'_>, name: &str) -> Result<u32, Failure> {
    number(env, name)?.ok_or_else(|| Failure::usage(format!("the environment variable {name} must be set")))
}

fn port(env: Env<'_>, default: impl FnOnce() -> u16) -> Result<u16, Failure> {
    let Some(port) = number(env, "MASTER_PORT")? else { return Ok(default()) };
    u16::try_from(port)
        .ok()
        .filter(|&port| port > 0)
        .ok_or_else(|| Failure::usage(format!("MASTER_PORT must be from 1 to 65535, found {port}")))
}

#[cfg(test)]
mod tests;
