//! The kernel sets.

pub(crate) mod fused;
pub(crate) mod plain;
