//! The engine of `score`: that of a job, with samplers that draw the tokens of known texts. On one rank, or on those that
//! share a model.

use std::sync::Arc;

use engine::{Engine, Executor, LeadingExecutor, StepOutput, StepPlan};
use indicatif::{MultiProgress, ProgressDrawTarget};
use model_core::{LoadOptions, ModelConfig, ModelPart, ModelRanks, Reduction};
use model_spec::{ExpertSharing, ShardPlace};
use nemo_format::Checkpoint;
use sampling::{SamplingError, StopConditions, Vocabulary};

use super::chunks::{Chunks, Input};
use crate::cluster::model_group::ModelGroup;
use crate::cluster::own_ranks::OwnRanks;
use crate::config::cli::ScoreArgs;
use crate::config::parallel::ParallelPlan;
use crate::config::plan::{RoomPlan, RowStructures};
use crate::env;
use crate::exit::Failure;
use crate::job::run::layout::{self, Abilities, Ranks};
use crate::model::checkpoint::{TokenTable, load_part};
use crate::model::device;
use crate::model::known_texts::{KnowingModel, Known, Texts};
use crate::model::memory::{Demand, MemoryPlan, Neighbours};

/// Sequences that there is room for where there are fewer responses, so that steps have many tokens of each.
const LEAST_SEQS: usize = 64;

/// A model that responses are scored with.
pub(super) struct Scorer<'a> {
    pub(super) arguments: &'a ScoreArgs,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: ModelConfig,
    /// Of the tokenizer.
    pub(super) vocab_size: usize,
    pub(super) input: Input,
}

impl Scorer<'_> {
    /// Loads the model and scores with it: `lead` is given the engine and its texts where this process leads. Another one
    /// follows, with the same chunks.
    pub(super) fn run(
        self,
        chunks: &mut Chunks<'_>,
        lead: impl FnOnce(&mut Engine, &Texts, &mut Chunks<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let ScoreArgs { tensor, pipeline, tree, .. } = *self.arguments;
        let options = LoadOptions {
            numerics: self.arguments.numbers.numerics()?,
            backend: self.arguments.backend.into(),
            device: self.arguments.device.open()?,
            attention: env::attention_switches(),
            isa: env::isa()?,
        };
        let spec = self.config.spec_of(self.checkpoint.tensors());
        let wish = ParallelPlan {
            tensor: Some(tensor),
            pipeline: Some(pipeline),
            experts: ExpertSharing::Widths,
            reduction: tree.then_some(Reduction::Tree),
        };
        let num_ranks = tensor.saturating_mul(pipeline);
        let there_are = Ranks { world_size: num_ranks, local_size: num_ranks };
        let sizes = layout::choose(&wish, there_are, &spec, Abilities::of(options), &|_| true)?;
        let ranks = OwnRanks::start(sizes.tensor, sizes.pipeline)?;
        let places = layout::places(&spec, sizes, &options.numerics);
        let place =
            layout::place_of(&places, ranks.topology, ranks.rank).unwrap_or_else(|| ShardPlace::whole(&spec));
        let own = LoadOptions { device: device::of_own_rank(options.device, ranks.rank), ..options };
        let part = self.load(own, place, wish.reduction(tensor)?, ranks.group.as_ref())?;
        let limits = part.limits;
        let (own, texts) = part.executor(self.input.sizes, ranks.group.as_ref())?;
        let tokens = Arc::new(TokenTable::unknown());
        let Some(group) = &ranks.group else {
            let engine = Engine::with_executor(own, StopConditions::default(), tokens, limits)?;
            return lead(&mut engine.with_proposer(Box::new(Known::new(&texts))), &texts, chunks);
        };
        if !group.leads() {
            let mut failure = None;
            let mut following = Following { own, texts, chunks, failure: &mut failure };
            let followed = engine::follow(&mut following, &mut || group.next_order());
            return match failure {
                Some(failure) => Err(failure),
                None => Ok(followed?),
            };
        }
        let executor = Box::new(LeadingExecutor::new(own, Box::new(group.clone())));
        let engine = Engine::with_executor(executor, StopConditions::default(), tokens, limits)?;
        lead(&mut engine.with_proposer(Box::new(Known::new(&texts))), &texts, chunks)
    }

    /// Loads a rank's part of the model.
    fn load(
        &self,
        options: LoadOptions,
        place: ShardPlace,
        reduction: Reduction,
        group: Option<&ModelGroup>,
    ) -> Result<KnowingModel, Failure> {
        let num_ranks = self.arguments.tensor * self.arguments.pipeline;
        let demand = Demand {
            longest_sequence_tokens: self.input.longest_tokens.max(1),
            num_sequences: self.input.num_responses.max(LEAST_SEQS),
            neighbours: Neighbours {
                num_on_device: device::num_own_ranks_on(options.device, num_ranks),
                num_on_host: num_ranks,
            },
            limits: RoomPlan::default(),
            structures: RowStructures::None,
        };
        let memory = MemoryPlan::new(self.checkpoint, &self.config, options, (&place, reduction), demand)?;
        let limits = match group {
            Some(group) => group.agree(memory.limits)?,
            None => memory.limits,
        };
        let others = group.map(|group| Box::new(group.clone()) as Box<dyn ModelRanks>);
        let part = ModelPart { place, reduction, ranks: others, exchange: env::exchange()? };
        let share = 1.0 / f64::from(num_ranks);
        let bars = MultiProgress::with_draw_target(match group.is_none_or(ModelGroup::leads) {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        });
        let model = load_part(self.checkpoint, self.config.clone(), options, part, (share, &bars))?;
        let vocab_size = self.vocab_size.min(model.padded_vocab_size());
        let (num_top, longest_tokens) = (self.arguments.top_logprobs, self.input.longest_tokens);
        Ok(KnowingModel { model, options, limits, vocab_size, num_top, longest_tokens })
    }
}

/// The executor of a rank that another one leads: it goes on to the next texts when that one does.
struct Following<'a, 'c> {
    own: Box<dyn Executor>,
    texts: Texts,
    chunks: &'a mut Chunks<'c>,
    failure: &'a mut Option<Failure>,
}

impl Executor for Following<'_, '_> {
    fn reset(&mut self) -> Result<(), engine::EngineError> {
        self.own.reset()?;
        let next = self.chunks.next().and_then(|chunk| {
            let chunk = chunk.unwrap_or_default();
            self.texts.put(chunk.texts(&chunk.places()))
        });
        next.map_err(|failure| {
            let sentence = failure.sentence();
            *self.failure = Some(failure);
            SamplingError::OtherRank(sentence).into()
        })
    }

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.own.set_vocabulary(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), engine::EngineError> {
        self.own.start(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, engine::EngineError> {
        self.own.collect()
    }

    fn run_ahead(&self) -> usize {
        self.own.run_ahead()
    }

    fn is_greedy(&self) -> bool {
        self.own.is_greedy()
    }
}
