//! Requests in, completions out: in-flight batching, admission, KV blocks, prompt sharing.
//!
//! The scheduler itself holds no tensor. It knows no tokenizers, files or ranks.

mod block_pool;
mod block_table;
mod error;
mod executor;
mod live;
mod plan;
mod prefix_cache;
mod replica;
mod request;
mod run;
mod scheduler;
mod stage_tokens;

use std::{ops::ControlFlow, sync::Arc, time::Instant};

#[cfg(feature = "cuda")]
use executor::device;
use executor::host::{CachedModel, HostExecutor};
use model_core::CausalLm;
use run::{EngineParts, Run};
use sampling::{StopConditions, TokenBytes, TokenSampler, Vocabulary};
use scheduler::Step;

#[cfg(feature = "cuda")]
pub use device::cuda::DeviceSizes;
pub use error::EngineError;
pub use executor::Executor;
pub use executor::host::Stage;
pub use live::{Cancellation, Cancellations, LiveCounts};
pub use plan::{
    Draftable, FailedToken, GrownSeq, NewPrompt, NewSeq, RowId, RowSpan, SeqId, StepOutput, StepPlan,
    TableDelta,
};
pub use replica::{Followers, LeadingExecutor, follow};
pub use request::{
    Activity, Completion, EngineLimits, Foresight, MAX_NUM_SEQS_ON_GPU, OwnRules, PlannedPrefix, Request,
    RunEnd, RunStats, Supply,
};
pub use speculation::{Goal, Pace, Proposer, StepTime};
pub use stage_tokens::{ReceivingSampler, SendingSampler, TokenPath};

/// A model, its KV cache and a sampler, ready for runs.
pub struct Engine(EngineParts);

impl Engine {
    /// Allocates the KV cache.
    ///
    /// # Errors
    /// When a limit is 0, differs from what the model's cache has, or the cache does not fit the device.
    pub fn new(
        model: Box<dyn CausalLm>,
        sampler: Box<dyn TokenSampler>,
        stop: StopConditions,
        token_bytes: Arc<dyn TokenBytes + Send + Sync>,
        limits: EngineLimits,
    ) -> Result<Self, EngineError> {
        Self::with_executor(host_executor(model, sampler, limits, Stage::ONLY)?, stop, token_bytes, limits)
    }

    /// The same for an executor, whose cache must have the blocks of `limits`.
    ///
    /// # Errors
    /// When a limit is 0.
    pub fn with_executor(
        executor: Box<dyn Executor>,
        stop: StopConditions,
        token_bytes: Arc<dyn TokenBytes + Send + Sync>,
        limits: EngineLimits,
    ) -> Result<Self, EngineError> {
        let limits = limits.check()?;
        let start = Instant::now();
        Ok(Self(EngineParts {
            executor,
            proposer: None,
            clock: Box::new(move || start.elapsed()),
            stop,
            token_bytes,
            limits,
            shares_prefixes: true,
            live: Arc::default(),
            cancellations: Arc::default(),
        }))
    }

    /// Whether what prompts begin with in common is computed once: it is, unless this says otherwise. No text depends on it.
    pub fn set_prefix_cache(&mut self, is_on: bool) {
        self.0.shares_prefixes = is_on;
    }

    /// How far this engine is, which another thread may ask while it runs.
    pub fn live(&self) -> Arc<LiveCounts> {
        Arc::clone(&self.0.live)
    }

    /// Where responses in flight can be cancelled while it runs.
    pub fn cancellations(&self) -> Arc<Cancellations> {
        Arc::clone(&self.0.cancellations)
    }

    /// Whether several tokens of a response can be computed in one step, with the bits that they get one by one.
    pub fn verifies_drafts(&self) -> bool {
        self.0.executor.verifies_drafts()
    }

    /// The same engine, whose responses may have structures.
    #[must_use]
    pub fn with_structures(mut self, vocabulary: Arc<Vocabulary>) -> Self {
        self.0.executor.set_vocabulary(vocabulary);
        self
    }

    /// The same engine, which drafts what responses go on with from prompts and from responses before them, as far as that
    /// is faster.
    pub fn with_speculation(self) -> Self {
        self.with_proposer(Box::new(speculation::Speculator::<SeqId>::default()))
    }

    /// The same engine, which computes what `proposer` drafts beside the newest tokens; no text changes by it. One that
    /// [`Engine::verifies_drafts`] does not hold for stays as it is.
    pub fn with_proposer(mut self, proposer: Box<dyn Proposer<SeqId>>) -> Self {
        self.0.proposer = self.verifies_drafts().then_some(proposer);
        self
    }

    /// The same engine with another clock.
    #[cfg(test)]
    pub(crate) fn with_clock(mut self, clock: run::Clock) -> Self {
        self.0.clock = clock;
        self
    }

    /// Rows that a step on a GPU may have under these limits, which the sampler must be made for.
    #[cfg(feature = "cuda")]
    pub fn device_rows(limits: EngineLimits) -> usize {
        device::max_rows(limits.max_decode_tokens())
    }

    /// The same for a model and a sampler on a GPU.
    ///
    /// # Errors
    /// When a limit is 0, or the GPU fails or has no memory left.
    #[cfg(feature = "cuda")]
    pub fn on_device(
        model: Box<dyn CausalLm>,
        sampler: sampling::DeviceSampler,
        stop: StopConditions,
        token_bytes: Arc<dyn TokenBytes + Send + Sync>,
        limits: EngineLimits,
        sizes: DeviceSizes,
    ) -> Result<Self, EngineError> {
        Self::with_executor(device_executor(model, sampler, limits, sizes)?, stop, token_bytes, limits)
    }

    /// Rows that a step of one sequence is padded to: more than one on a GPU that would give other text with fewer.
    pub fn min_rows(&self) -> usize {
        self.0.executor.min_rows()
    }

    /// Answers requests until there are no more.
    ///
    /// `next_request` is asked only when its request could start soon, and never again after [`Supply::End`].
    /// Completions come in the order in which they end. `should_stop` is asked before every step; it, or a
    /// break from `on_completion`, ends the run and abandons what is in flight. What a request gets depends
    /// on the request alone, not on what else runs, nor on the limits.
    ///
    /// # Errors
    /// When a request can never fit, or the model or the sampler fails.
    pub fn run(
        &mut self,
        next_request: &mut dyn FnMut(Activity) -> Supply,
        on_completion: &mut dyn FnMut(Completion) -> ControlFlow<()>,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<RunStats, EngineError> {
        let mut run = Run::new(&mut self.0, on_completion)?;
        loop {
            let mut flow = ControlFlow::Continue(());
            while flow.is_continue() && !should_stop() && run.scheduler.has_room() {
                match next_request(run.activity()) {
                    Supply::Request(request) => flow = run.submit(request)?,
                    Supply::Later => {
                        run.scheduler.pause_input();
                        break;
                    }
                    Supply::End => run.scheduler.end_input(),
                }
            }
            if flow.is_continue() && !should_stop() {
                run.cancel_unwanted();
                let max_in_flight = match run.scheduler.next_step() {
                    Step::Run(plan) => run.start(plan)?,
                    Step::Wait => run.num_to_wait_with(),
                    Step::Done if run.scheduler.has_ended_input() => return Ok(run.stats),
                    // The caller has nothing at the moment.
                    Step::Done => 0,
                };
                flow = run.collect_down_to(max_in_flight)?;
                if flow.is_continue() {
                    let may_stay = run.may_stay();
                    flow = run.collect_down_to(may_stay)?;
                }
            } else {
                flow = ControlFlow::Break(());
            }
            if flow.is_break() {
                run.stats.end = RunEnd::Stopped;
                return Ok(run.stats);
            }
        }
    }
}

/// What carries out steps with a model and a sampler that the host drives. Allocates the KV cache.
///
/// # Errors
/// As [`Engine::new`].
pub fn host_executor(
    mut model: Box<dyn CausalLm>,
    sampler: Box<dyn TokenSampler>,
    limits: EngineLimits,
    stage: Stage,
) -> Result<Box<dyn Executor>, EngineError> {
    let limits = limits.check()?;
    let cache =
        model.new_cache_in(limits.num_blocks, limits.tables)?.with_host_blocks(limits.num_host_blocks);
    if cache.block_size_tokens() != limits.block_size_tokens {
        return Err(EngineError::BadLimit {
            limit: "block_size_tokens",
            expected: format!("{}, as in the model's cache", cache.block_size_tokens()),
            actual: limits.block_size_tokens,
        });
    }
    Ok(Box::new(HostExecutor::new(Box::new(CachedModel { model, cache }), sampler, stage)))
}

/// The same with a model and a sampler on a GPU.
///
/// # Errors
/// As [`Engine::on_device`].
#[cfg(feature = "cuda")]
pub fn device_executor(
    model: Box<dyn CausalLm>,
    sampler: sampling::DeviceSampler,
    limits: EngineLimits,
    sizes: DeviceSizes,
) -> Result<Box<dyn Executor>, EngineError> {
    let limits = limits.check()?;
    Ok(Box::new(device::cuda::executor(model, sampler, limits, sizes)?))
}

/// The same for a pipeline stage on a GPU, where tokens come along `path`, or leave by it.
///
/// # Errors
/// As [`Engine::on_device`].
#[cfg(feature = "cuda")]
pub fn staged_executor(
    model: Box<dyn CausalLm>,
    sampler: (sampling::DeviceSampler, Box<dyn TokenPath>),
    limits: EngineLimits,
    sizes: DeviceSizes,
    stage: Stage,
) -> Result<Box<dyn Executor>, EngineError> {
    let limits = limits.check()?;
    Ok(Box::new(device::staged::executor(model, sampler, limits, sizes, stage)?))
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
