//! The kernel sets.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod fused;
pub(crate) mod plain;
