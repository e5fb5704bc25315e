//! Drafts of tokens: what a response goes on with, if it goes on as a text before it did.
//!
//! Texts are the prompts and the responses of a job (`texts`). A draft is what followed the longest context that the
//! response ends with and that stood somewhere before (`index`, `library`). How often such drafts are right is counted for
//! each kind of find (`acceptance`), and how long steps of how many tokens take is measured (`costs`); from the two follows
//! how many drafts pay (`choice`), and what was lost by them limits how many are tried (`account`).
//!
//! It knows neither models nor samplers. Its clock is its caller's, and nothing in it is random.

mod acceptance;
mod account;
mod choice;
mod costs;
mod index;
mod library;
mod proposer;
mod speculator;
mod texts;

pub use proposer::{Draftable, Goal, Pace, Proposer, StepTime};
pub use speculator::Speculator;
