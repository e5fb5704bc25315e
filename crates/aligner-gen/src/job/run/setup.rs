//! What every rank of a job knows: its configuration, the checkpoint, its place and its device.

use std::path::PathBuf;
use std::sync::Arc;

use engine::{Engine, OwnRules};
use hydra_config::Resolved;
use model_core::{LoadOptions, ModelConfig};
use nemo_format::Checkpoint;
use sampling::SamplingRules;

use crate::cluster::ranks::{RankPlace, Role};
use crate::cluster::topology::Topology;
use crate::cluster::{cores, ranks, spawn};
use crate::config::devices::Devices;
use crate::config::plan::{GenerationPlan, Speculation};
use crate::config::raw::RawConfig;
use crate::config::{self, UserConfig};
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::job::own_rules::{self, RowRulesMaker};
use crate::job::{identity, log_folder};
use crate::logging::Logging;
use crate::model::checkpoint::{OpenTokenizer, TokenTable, load_model, model_config};
use crate::model::device::{self, LocalRanks, SharedDevice};
use crate::model::end_tokens::EndTokens;
use crate::model::memory::{Demand, MemoryPlan, Neighbours};
use crate::model::open_engine::{EngineSize, SamplingSetup, open_engine};
use crate::output::Identity;
use crate::output::identity::Inputs;

/// What every rank knows: all but the data.
pub(crate) struct Setup {
    pub(crate) resolved: Resolved,
    pub(crate) checkpoint: Checkpoint,
    checkpoint_path: PathBuf,
    pub(crate) plan: GenerationPlan,
    pub(super) options: LoadOptions,
    pub(crate) neighbours: Neighbours,
    /// Why it computes on the CPU, where a GPU was asked for.
    pub(crate) fallback: Option<String>,
    pub(crate) model_config: ModelConfig,
    pub(crate) tokenizer: OpenTokenizer,
    pub(super) end_tokens: EndTokens,
    pub(super) role: Role,
    pub(crate) topology: Topology,
}

impl Setup {
    pub(super) fn new(
        user: &UserConfig,
        find_role: impl FnOnce(Devices) -> Result<Role, Failure>,
    ) -> Result<Self, Failure> {
        let path = user.checkpoint_path()?.ok_or_else(|| {
            Failure::usage("`pretrained_checkpoint.restore_from_path` must be the path of a checkpoint")
        })?;
        let checkpoint = Checkpoint::open(&path)?;
        let resolved = config::resolve(&user.compose_with(checkpoint.model_config_text())?)?;
        let raw = RawConfig::extract(&resolved)?;
        let plan = GenerationPlan::new(raw)?;
        let role = find_role(plan.devices)?;
        if let Role::Rank(place) = &role {
            take_cores(place)?;
        }
        let model = resolved.node().get("model").ok_or_else(|| Failure::usage("there is no key `model`"))?;
        let model_config = model_config(model)?;
        model_config.refuse_beyond_window()?;
        if let Some(model_type) = plan.model_type {
            model_type.check(&model_config)?;
        }
        let tokenizer = OpenTokenizer::open(&checkpoint, model)?;
        let end_tokens = EndTokens::of(&checkpoint, &tokenizer)?;
        let topology = topology(&role)?;
        let local = local_ranks(&role);
        let SharedDevice { device, num_ranks: num_on_device, fallback } =
            device::choose(&plan.accelerator, local)?;
        let options = LoadOptions {
            numerics: plan.numerics,
            backend: plan.backend,
            device,
            attention: env::attention_switches(),
        };
        Ok(Self {
            resolved,
            checkpoint,
            checkpoint_path: path,
            plan,
            options,
            neighbours: Neighbours { num_on_device, num_on_host: local.local_size },
            fallback,
            model_config,
            tokenizer,
            end_tokens,
            role,
            topology,
        })
    }

    /// This rank among all.
    pub(super) fn place(&self) -> RankPlace {
        match &self.role {
            Role::Rank(place) => place.clone(),
            Role::Alone | Role::Launcher(_) => RankPlace::alone(),
        }
    }

    /// What the start in the log folder has to know of this rank.
    pub(super) fn begin<'a>(&'a self, data_files: &'a [PathBuf]) -> log_folder::Begin<'a> {
        log_folder::Begin {
            inputs: data_files.iter().map(PathBuf::as_path).chain([self.checkpoint_path.as_path()]).collect(),
            local_rank: self.place().local_rank,
            world_size: self.topology.num_ranks(),
        }
    }

    /// From now on what this rank, which is not the first, says also stands in its log file.
    pub(super) fn attach(&self, logging: &Logging, place: &RankPlace) -> Result<(), Failure> {
        let log_dir = &self.plan.exp_manager.log_dir;
        logging
            .attach(log_dir, place.rank, place.local_rank)
            .map_err(|error| {
                anyhow::Error::new(error).context(format!("cannot write to `{}`", log_dir.display()))
            })
            .exit_with(ExitStatus::Failed)
    }

    /// What decides the texts, data apart. Only for a rank: a GPU is opened for it.
    ///
    /// # Errors
    /// When the device cannot be used, or no attention backend is left.
    pub(crate) fn identity(&self) -> Result<Identity, Failure> {
        let mut identity = self.plan.identity();
        identity.settings.end_token_ids = self.end_tokens.ids();
        identity.model = identity::model_fields(&self.model_config);
        let device = device::class(self.options.device)?;
        identity.compute = identity::compute(
            self.options,
            self.model_config.uniform.heads.kv_channels,
            device,
            self.topology,
        )?;
        identity.inputs = Inputs {
            checkpoint: self.checkpoint.fingerprint(),
            tokenizer: self.tokenizer.fingerprint.clone(),
            data: None,
        };
        Ok(identity)
    }

    pub(crate) fn memory(&self, demand: Demand) -> Result<MemoryPlan, Failure> {
        MemoryPlan::new(&self.checkpoint, &self.model_config, self.options, demand)
    }

    /// What makes the rules of rows.
    pub(crate) fn row_rules(&self) -> Result<RowRulesMaker<'_>, Failure> {
        RowRulesMaker::new(&self.plan, &self.tokenizer, self.end_tokens.ids())
    }

    pub(crate) fn engine(&self, tokens: Arc<TokenTable>, memory: &MemoryPlan) -> Result<Engine, Failure> {
        let plan = &self.plan;
        let model = load_model(&self.checkpoint, self.model_config.clone(), self.options)?;
        let vocab_size = self.tokenizer.tokenizer.vocab_size().min(model.padded_vocab_size());
        let OwnRules { row, stop } = self.row_rules()?.run().clone();
        let bias = own_rules::token_bias(&plan.token_bias, &self.tokenizer, vocab_size)?;
        let setup = SamplingSetup {
            rules: SamplingRules { row, vocab_size, bias },
            stop,
            row_params: plan.row_params,
        };
        let size =
            EngineSize { limits: memory.limits, longest_sequence_tokens: memory.longest_sequence_tokens };
        let mut engine = open_engine(model, self.options, setup, tokens, size)?;
        engine.set_prefix_cache(plan.prefix_cache);
        Ok(match plan.speculation {
            Speculation::On => engine.with_speculation(),
            Speculation::Off => engine,
        })
    }
}

/// How the job's ranks are arranged: each holds the whole model.
fn topology(role: &Role) -> Result<Topology, Failure> {
    Topology::data_parallel(match role {
        Role::Rank(place) => place.world_size,
        Role::Alone => 1,
        Role::Launcher(launcher) => launcher.world_size,
    })
}

/// This rank among those of its machine.
fn local_ranks(role: &Role) -> LocalRanks {
    let (local_rank, local_size) = match role {
        Role::Alone => (0, 1),
        Role::Rank(place) => (place.local_rank, place.local_size),
        Role::Launcher(launcher) => (0, launcher.num_ranks),
    };
    LocalRanks { local_rank, local_size, has_own_gpu: ranks::has_own_gpu(&env::of_launcher) }
}

/// The part of the machine's cores that is this rank's, unless its launcher has seen to that.
fn take_cores(place: &RankPlace) -> Result<(), Failure> {
    let is_own = env::of_launcher(spawn::LAUNCHER_VARIABLE).is_some();
    if is_own || place.local_size == 1 || cores::are_bound(&env::of_launcher) {
        return Ok(());
    }
    let num_cores = cores::take_share(place.local_rank, place.local_size)
        .map_err(|error| anyhow::Error::new(error).context("cannot bind this rank to its part of the cores"))
        .exit_with(ExitStatus::Failed)?;
    if !env::has_thread_count() {
        tch::set_num_threads(i32::try_from(num_cores).unwrap_or(1));
    }
    Ok(())
}
