//! The CPU kernels against libtorch's own operations on odd shapes and every instruction set of this machine, and the store.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod kernels;
mod store;
