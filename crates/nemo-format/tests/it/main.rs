//! The crate against checkpoints written by the original software.

mod fixtures;
mod writing;
