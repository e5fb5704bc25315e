//! The ranks that compute one model together: how they meet, what they send each other, and when one is lost.
//!
//! Each has a connection to every other ([`Mesh`]). All run one program over the same steps, so a rank knows what it is
//! sent next, and a message of another kind is an error. A rank that dies closes its connections, and one that stands
//! still falls silent: whoever waits for it learns that within [`Mesh`]'s limit, whatever it waits for.
//!
//! No libtorch, and nothing of models: bytes only.

mod meet;
mod mesh;
mod socket;

pub use meet::{Invitation, Meeting, Member, Patience};
pub use mesh::{Kind, Mesh};

/// Another rank is lost, or does not do what the ranks of one model do: a sentence that names it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MeshError(pub String);
