//! Which tokens may follow in a response that has a structure: a JSON schema, a regular expression, a list of choices or a
//! grammar.
//!
//! [`Compiler`] knows the bytes of a vocabulary's tokens and makes a [`Matcher`] of a [`Structure`]; the matcher follows the
//! tokens of one response. What llguidance computes is behind these three. No model, no logits, no files.

mod compiler;
mod error;
mod matcher;
mod spec;

pub use compiler::{Compiler, MAX_TEXT_BYTES};
pub use error::StructureError;
pub use matcher::Matcher;
pub use spec::Structure;
