//! Drafts of tokens: what a response goes on with, if it goes on as a text before it did.
//!
//! Texts are the prompts and the responses of a job (`texts`). A draft is what followed the longest context that the
//! response ends with and that stood somewhere before (`index`). How often such drafts are right is counted for each kind
//! of find (`acceptance`), and how long steps of how many tokens take is measured (`costs`); from the two follows how
//! many drafts pay (`choice`).
//!
//! It knows neither models nor samplers. Its clock is its caller's, and nothing in it is random.

mod acceptance;
mod choice;
mod costs;
mod index;
mod speculator;
mod texts;

pub use speculator::{Draftable, ResponseId, Speculator};
