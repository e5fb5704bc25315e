//! Requests in, completions out: in-flight batching, admission, KV blocks, prompt sharing.
//!
//! The scheduler itself holds no tensor. It knows no tokenizers, files or ranks.

mod backend;
mod block_table;
mod error;
mod request;
mod scheduler;
mod step;

use std::{ops::ControlFlow, sync::Arc};

use backend::{Backend, CachedModel};
use model_core::CausalLm;
use sampling::{StopConditions, TokenBytes, TokenSampler};
use scheduler::Step;
use step::Run;

pub use error::EngineError;
pub use request::{Completion, EngineLimits, Request, RunEnd, RunStats};

/// A model, its KV cache and a sampler, ready for runs.
pub struct Engine {
    backend: Box<dyn Backend>,
    sampler: Box<dyn TokenSampler>,
    stop: StopConditions,
    token_bytes: Arc<dyn TokenBytes + Send + Sync>,
    limits: EngineLimits,
}

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
        let limits = limits.check()?;
        let cache = model.new_cache(limits.num_blocks)?;
        if cache.block_size_tokens() != limits.block_size_tokens {
            return Err(EngineError::BadLimit {
                limit: "block_size_tokens",
                expected: format!("{}, as in the model's cache", cache.block_size_tokens()),
                actual: limits.block_size_tokens,
            });
        }
        Ok(Self { backend: Box::new(CachedModel { model, cache }), sampler, stop, token_bytes, limits })
    }

    /// Answers requests until there are no more.
    ///
    /// `next_request` is asked only when its request could start soon, and never again after `None`.
    /// Completions come in the order in which they end. `should_stop` is asked before every step; it, or a
    /// break from `on_completion`, ends the run and abandons what is in flight. What a request gets depends
    /// on the request alone, not on what else runs, nor on the limits.
    ///
    /// # Errors
    /// When a request can never fit, or the model or the sampler fails.
    pub fn run(
        &mut self,
        next_request: &mut dyn FnMut() -> Option<Request>,
        on_completion: &mut dyn FnMut(Completion) -> ControlFlow<()>,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<RunStats, EngineError> {
        let mut run = Run::new(self, on_completion)?;
        let mut input_ended = false;
        loop {
            let mut flow = ControlFlow::Continue(());
            while flow.is_continue() && !should_stop() && run.scheduler.has_room() {
                match next_request() {
                    Some(request) => flow = run.submit(request)?,
                    None => {
                        input_ended = true;
                        run.scheduler.end_input();
                    }
                }
            }
            if flow.is_continue() && !should_stop() {
                flow = match run.scheduler.next_step() {
                    Step::Prefill(groups) => run.prefill(&groups)?,
                    Step::Decode { copies, seqs } => run.decode(&copies, seqs)?,
                    Step::Done if input_ended => return Ok(run.stats),
                    Step::Done => continue,
                };
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

#[cfg(test)]
mod tests;
