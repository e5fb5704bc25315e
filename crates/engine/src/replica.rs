//! An engine over several processes: one leads, and the others carry out the same steps on their parts of the model.
//!
//! The leading rank has the scheduler. It tells every [`Order`] to the others before it carries it out itself, so all ranks
//! compute the same steps in the same order; what they exchange inside of a step is between their models.

use std::sync::Arc;

use model_core::{LostRank, ModelError};
use sampling::Vocabulary;
use serde::{Deserialize, Serialize};

use crate::EngineError;
use crate::executor::Executor;
use crate::plan::{StepOutput, StepPlan};

/// What the leading rank has the others do.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// [`Executor::reset`].
    Reset,
    /// So many times [`Executor::collect`], and then [`Executor::start`]: as the leading rank has done.
    Step { num_collected: u32, plan: StepPlan },
    /// Nothing more.
    End,
}

/// The way from the leading rank to all others of its replica.
pub trait Followers: Send {
    /// Sends the same to all of them, in order.
    ///
    /// # Errors
    /// When one is lost.
    fn tell(&mut self, message: &[u8]) -> Result<(), LostRank>;
}

/// The executor of the leading rank.
pub struct LeadingExecutor {
    own: Box<dyn Executor>,
    followers: Box<dyn Followers>,
    /// Steps whose tokens were taken since the last order.
    num_collected: u32,
}

impl LeadingExecutor {
    /// Leads `followers` in what `own` does.
    pub fn new(own: Box<dyn Executor>, followers: Box<dyn Followers>) -> Self {
        Self { own, followers, num_collected: 0 }
    }

    fn tell(&mut self, order: &Order) -> Result<(), EngineError> {
        let message = serde_json::to_vec(order).map_err(|error| strange(&error))?;
        self.followers.tell(&message).map_err(|lost| ModelError::from(lost).into())
    }
}

impl Executor for LeadingExecutor {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.num_collected = 0;
        self.tell(&Order::Reset)?;
        self.own.reset()
    }

    /// Of this rank; the others are given theirs where they are made.
    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.own.set_vocabulary(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let order = Order::Step { num_collected: std::mem::take(&mut self.num_collected), plan };
        self.tell(&order)?;
        match order {
            Order::Step { plan, .. } => self.own.start(plan),
            Order::Reset | Order::End => Ok(()),
        }
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        self.num_collected += 1;
        self.own.collect()
    }

    fn min_rows(&self) -> usize {
        self.own.min_rows()
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.own.prompt_cut_tokens()
    }

    fn run_ahead(&self) -> usize {
        self.own.run_ahead()
    }

    fn num_sets(&self) -> usize {
        self.own.num_sets()
    }

    fn verifies_drafts(&self) -> bool {
        self.own.verifies_drafts()
    }

    fn is_greedy(&self) -> bool {
        self.own.is_greedy()
    }
}

impl Drop for LeadingExecutor {
    fn drop(&mut self) {
        // Who is lost needs no word.
        let _ = self.tell(&Order::End);
    }
}

/// Carries out the steps of the leading rank until that ends. `next` waits for its next message.
///
/// # Errors
/// When another rank is lost, or a step fails.
pub fn follow(
    executor: &mut dyn Executor,
    next: &mut dyn FnMut() -> Result<Vec<u8>, LostRank>,
) -> Result<(), EngineError> {
    loop {
        let message = next().map_err(ModelError::from)?;
        match serde_json::from_slice(&message).map_err(|error| strange(&error))? {
            Order::Reset => executor.reset()?,
            Order::Step { num_collected, plan } => {
                for _ in 0..num_collected {
                    executor.collect()?;
                }
                executor.start(plan)?;
            }
            Order::End => return Ok(()),
        }
    }
}

fn strange(error: &serde_json::Error) -> EngineError {
    ModelError::from(LostRank(format!(
        "a step from another rank cannot be read ({error}): all ranks must run the same program"
    )))
    .into()
}
