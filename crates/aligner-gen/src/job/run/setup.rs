//! What every rank of a job knows: its configuration, the checkpoint, its place and its device.

use std::path::PathBuf;
use std::sync::Arc;

use engine::{Engine, Executor, LeadingExecutor, OwnRules};
use hydra_config::Resolved;
use indicatif::MultiProgress;
use model_core::{CausalLm, LoadOptions, ModelConfig, ModelPart, ModelRanks, Reduction};
use model_parallel::Patience;
use model_spec::{ModelSpec, ShardPlace};
use nemo_format::Checkpoint;
use sampling::{SamplingRules, Vocabulary};
use torch_ext::store::Store;

use crate::cluster::model_group::{Introduction, ModelGroup};
use crate::cluster::ranks::{RankPlace, Role};
use crate::cluster::topology::Topology;
use crate::cluster::{cores, ranks, spawn};
use crate::config::devices::Devices;
use crate::config::plan::{GenerationPlan, RoomPlan, RowParamsMode, Speculation};
use crate::config::raw::RawConfig;
use crate::config::{self, UserConfig};
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::job::own_rules::{self, RowRulesMaker};
use crate::job::{identity, log_folder, structured};
use crate::logging::Logging;
use crate::model::checkpoint::{OpenTokenizer, TokenTable, load_part, model_config};
use crate::model::device::{self, LocalRanks, SharedDevice};
use crate::model::end_tokens::EndTokens;
use crate::model::memory::{self, Demand, MemoryPlan, Neighbours};
use crate::model::open_engine::{EngineSize, SamplingSetup, open_engine, open_executor};
use crate::model::structures::TokenStructures;
use crate::output::Identity;
use crate::output::identity::Inputs;

use super::layout;

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
    pub(crate) structures: Arc<TokenStructures>,
    pub(super) end_tokens: EndTokens,
    pub(super) role: Role,
    pub(crate) topology: Topology,
    /// What of the model this rank computes.
    place: ShardPlace,
    pub(super) reduction: Reduction,
    /// Where bars are shown.
    pub(super) bars: MultiProgress,
}

impl Setup {
    pub(super) fn new(
        user: &UserConfig,
        bars: &MultiProgress,
        find_role: impl FnOnce(Devices) -> Result<Role, Failure>,
    ) -> Result<Self, Failure> {
        let path = user.checkpoint_path()?.ok_or_else(|| {
            Failure::usage("`pretrained_checkpoint.restore_from_path` must be the path of a checkpoint")
        })?;
        let checkpoint = Checkpoint::open(&path)?.with_adapters(&user.adapter_paths()?)?;
        let resolved = config::resolve(&user.compose_with(checkpoint.model_config_text())?)?;
        let raw = RawConfig::extract(&resolved)?;
        let mut plan = GenerationPlan::new(raw)?;
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
        let structures = Arc::new(TokenStructures::new(Arc::clone(&tokenizer.tokenizer)));
        structured::prepare(&mut plan, &structures)?;
        let local = local_ranks(&role);
        let SharedDevice { device, num_ranks: num_on_device, fallback } =
            device::choose(&plan.accelerator, local)?;
        let options = LoadOptions {
            numerics: plan.numerics,
            backend: plan.backend,
            device,
            attention: env::attention_switches(),
            isa: env::isa()?,
        };
        let neighbours = Neighbours { num_on_device, num_on_host: local.local_size };
        let model = model_config.spec_of(checkpoint.tensors());
        let ranks = layout::Ranks { world_size: world_size(&role), local_size: local.local_size };
        let sizes = choose_sizes(&plan, &model, options, ranks, neighbours)?;
        let num_ranks = sizes.tensor * sizes.pipeline;
        let topology = Topology::new(ranks.world_size / num_ranks, sizes.pipeline, sizes.tensor)?;
        let places = layout::places(&model, sizes, &options.numerics);
        let rank = if let Role::Rank(place) = &role { place.rank } else { 0 };
        let place = layout::place_of(&places, topology, rank).unwrap_or_else(|| ShardPlace::whole(&model));
        let reduction = plan.parallel.reduction(sizes.tensor)?;
        Ok(Self {
            resolved,
            checkpoint,
            checkpoint_path: path,
            plan,
            options,
            neighbours,
            fallback,
            model_config,
            tokenizer,
            structures,
            end_tokens,
            role,
            topology,
            place,
            reduction,
            bars: bars.clone(),
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
        let files = data_files.iter().chain([&self.checkpoint_path]);
        let adapters = self.checkpoint.adapters().iter().map(nemo_format::AdapterSummary::path);
        let inputs = files.map(PathBuf::as_path).chain(adapters).collect();
        log_folder::Begin {
            inputs,
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
            identity::arithmetic(self.options),
            self.reduction,
        )?;
        identity.inputs = Inputs {
            checkpoint: self.checkpoint.fingerprint(),
            adapters: self
                .checkpoint
                .adapters()
                .iter()
                .map(|adapter| adapter.fingerprint().to_owned())
                .collect(),
            tokenizer: self.tokenizer.fingerprint.clone(),
            data: None,
        };
        Ok(identity)
    }

    pub(crate) fn memory(&self, demand: Demand) -> Result<MemoryPlan, Failure> {
        let part = (&self.place, self.reduction);
        MemoryPlan::new(&self.checkpoint, &self.model_config, self.options, part, demand)
            .map_err(|failure| self.with_layout_that_fits(failure, demand))
    }

    /// What each rank of a replica takes, where there are several and all have a device as this rank has.
    ///
    /// # Errors
    /// When one of them has not memory enough.
    pub(super) fn memory_of_ranks(&self, demand: Demand) -> Result<Vec<(ShardPlace, MemoryPlan)>, Failure> {
        let [_, pipeline, tensor] = self.topology.sizes();
        if pipeline * tensor == 1 {
            return Ok(Vec::new());
        }
        let model = self.model_config.spec_of(self.checkpoint.tensors());
        let places = layout::places(
            &model,
            layout::Sizes { tensor, pipeline, experts: self.plan.parallel.experts },
            &self.options.numerics,
        );
        let of_place = |(idx, place): (usize, ShardPlace)| {
            let part = (&place, self.reduction);
            let plan = MemoryPlan::new(&self.checkpoint, &self.model_config, self.options, part, demand);
            let plan = plan.map_err(|failure| Failure {
                error: failure.error.context(format!(
                    "pipeline stage {}, tensor-parallel rank {}",
                    idx / tensor as usize,
                    idx % tensor as usize
                )),
                ..failure
            });
            Ok((place, plan.map_err(|failure| self.with_layout_that_fits(failure, demand))?))
        };
        places.into_iter().enumerate().map(of_place).collect()
    }

    /// What makes the rules of rows.
    pub(crate) fn row_rules(&self) -> Result<RowRulesMaker<'_>, Failure> {
        RowRulesMaker::new(&self.plan, &self.tokenizer, self.end_tokens.ids())
    }

    /// A refusal for want of memory, with the layout of the fewest ranks that would do.
    fn with_layout_that_fits(&self, failure: Failure, demand: Demand) -> Failure {
        if failure.status != ExitStatus::Device {
            return failure;
        }
        let model = self.model_config.spec_of(self.checkpoint.tensors());
        let total_bytes = device::total_bytes(self.options.device).unwrap_or(0);
        let abilities = layout::Abilities::of(self.options);
        let fits = |sizes: layout::Sizes| {
            let places = layout::places(&model, sizes, &self.options.numerics);
            let reduction = if sizes.tensor > 1 { Reduction::Tree } else { self.reduction };
            places
                .iter()
                .all(|place| memory::fits(&model, self.options, (place, reduction), demand, total_bytes))
        };
        let experts = self.plan.parallel.experts;
        match layout::fewest_ranks(&model, experts, abilities, &fits) {
            Some(layout::Sizes { tensor, pipeline, .. }) if tensor * pipeline > 1 => Failure {
                status: failure.status,
                error: anyhow::anyhow!(
                    "{}; {} ranks with as much memory each would hold it: {}={tensor} {}={pipeline}",
                    failure.sentence(),
                    tensor * pipeline,
                    config::parallel::TENSOR,
                    config::parallel::PIPELINE
                ),
            },
            Some(_) => failure,
            None => {
                let tensor =
                    if abilities.tensor.is_ok() { model.tensor_parallel_sizes(experts) } else { vec![1] };
                let most_tensor = tensor.last().copied().unwrap_or(1);
                let stages = abilities.pipeline.err().map_or_else(String::new, |why| format!(" ({why})"));
                Failure {
                    status: failure.status,
                    error: anyhow::anyhow!(
                        "{}; no layout holds it with as much memory for each rank, at most {most_tensor} of which can share \
                         its layers{stages}",
                        failure.sentence()
                    ),
                }
            }
        }
    }

    /// The way to the other ranks of this rank's replica, where there are others.
    ///
    /// # Errors
    /// When one does not come.
    pub(crate) fn meet(
        &self,
        store: &Store,
        keep_waiting: &dyn Fn() -> Result<(), Failure>,
    ) -> Result<Option<ModelGroup>, Failure> {
        let patience = Patience { join: self.plan.join_timeout, silence: self.plan.lease };
        let place = &self.place();
        Introduction { place, topology: self.topology, store, patience, keep_waiting }.meet()
    }

    /// The engine of a rank that leads a replica, or is one.
    pub(crate) fn engine(
        &self,
        tokens: Arc<TokenTable>,
        memory: &MemoryPlan,
        group: Option<ModelGroup>,
    ) -> Result<Engine, Failure> {
        let plan = &self.plan;
        let mut size = engine_size(memory);
        let mut engine = match group {
            None => {
                let model = self.load(None)?;
                let setup = self.sampling(model.as_ref())?;
                open_engine(model, self.options, setup, tokens, size)?
            }
            Some(group) => {
                size.limits = group.agree(size.limits)?;
                let model = self.load(Some(&group))?;
                let setup = self.sampling(model.as_ref())?;
                let (stop, vocabulary) = (setup.stop.clone(), setup.vocabulary.clone());
                let own = open_executor(model, self.options, setup, size, &group)?;
                let executor = LeadingExecutor::new(own, Box::new(group));
                let engine = Engine::with_executor(Box::new(executor), stop, tokens, size.limits)?;
                match vocabulary {
                    Some(vocabulary) => engine.with_structures(vocabulary),
                    None => engine,
                }
            }
        };
        engine.set_prefix_cache(plan.prefix_cache);
        Ok(match plan.speculation {
            Speculation::On => engine.with_speculation(),
            Speculation::Off => engine,
        })
    }

    /// What carries out the steps of the rank that leads this rank's replica.
    pub(crate) fn following_executor(
        &self,
        memory: &MemoryPlan,
        group: &ModelGroup,
    ) -> Result<Box<dyn Executor>, Failure> {
        let mut size = engine_size(memory);
        size.limits = group.agree(size.limits)?;
        let model = self.load(Some(group))?;
        let setup = self.sampling(model.as_ref())?;
        open_executor(model, self.options, setup, size, group)
    }

    fn load(&self, group: Option<&ModelGroup>) -> Result<Box<dyn CausalLm>, Failure> {
        let ranks = group.map(|group| Box::new(group.clone()) as Box<dyn ModelRanks>);
        let part = ModelPart {
            place: self.place.clone(),
            reduction: self.reduction,
            ranks,
            exchange: env::exchange()?,
        };
        let [_, pipeline, tensor] = self.topology.sizes();
        let share = 1.0 / f64::from(pipeline * tensor);
        load_part(&self.checkpoint, self.model_config.clone(), self.options, part, (share, &self.bars))
    }

    /// What decides the tokens beside the model.
    fn sampling(&self, model: &dyn CausalLm) -> Result<SamplingSetup, Failure> {
        let plan = &self.plan;
        let vocab_size = self.tokenizer.tokenizer.vocab_size().min(model.padded_vocab_size());
        let OwnRules { mut row, stop } = self.row_rules()?.run().clone();
        // Requests bring theirs.
        row.structure = None;
        let bias = own_rules::token_bias(&plan.token_bias, &self.tokenizer, vocab_size)?;
        let banned = bias.iter().filter(|(_, bias)| *bias == f32::NEG_INFINITY).map(|(id, _)| *id).collect();
        let structures = Arc::<TokenStructures>::clone(&self.structures);
        let vocabulary =
            plan.may_have_structures().then(|| Arc::new(Vocabulary { structures, vocab_size, banned }));
        let row_params = if vocabulary.is_some() { RowParamsMode::Read } else { plan.row_params };
        Ok(SamplingSetup { rules: SamplingRules { row, vocab_size, bias }, stop, row_params, vocabulary })
    }
}

fn engine_size(memory: &MemoryPlan) -> EngineSize {
    EngineSize { limits: memory.limits, longest_sequence_tokens: memory.longest_sequence_tokens }
}

/// How many ranks share a model.
fn choose_sizes(
    plan: &GenerationPlan,
    model: &ModelSpec,
    options: LoadOptions,
    ranks: layout::Ranks,
    neighbours: Neighbours,
) -> Result<layout::Sizes, Failure> {
    let abilities = layout::Abilities::of(options);
    let total_bytes = device::total_bytes(options.device).unwrap_or(u64::MAX);
    // The prompts are not known yet: at the least the cache of one token.
    let demand = Demand {
        longest_sequence_tokens: 1,
        num_sequences: 1,
        neighbours,
        limits: RoomPlan::default(),
        structures: plan.row_structures(),
    };
    let fits = |sizes: layout::Sizes| {
        let places = layout::places(model, sizes, &options.numerics);
        let reduction = plan.parallel.reduction(sizes.tensor).unwrap_or_default();
        places.iter().all(|place| memory::fits(model, options, (place, reduction), demand, total_bytes))
    };
    layout::choose(&plan.parallel, ranks, model, abilities, &fits)
}

fn world_size(role: &Role) -> u32 {
    match role {
        Role::Rank(place) => place.world_size,
        Role::Alone => 1,
        Role::Launcher(launcher) => launcher.world_size,
    }
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
