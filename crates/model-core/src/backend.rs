//! The kernel sets.

pub(crate) mod plain;
