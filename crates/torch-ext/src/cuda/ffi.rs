//! The C++ shim (`crates/torch-ext/csrc/cuda.cpp`) as Rust sees it, and its codes as errors.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use std::ffi::c_void;

use super::TorchStream;
use crate::ExtError;
use crate::ffi::last_error;

/// The arguments of flash attention that are not tensors.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct TeVarlen {
    pub(super) max_q: i64,
    pub(super) max_k: i64,
    pub(super) scale: f64,
    pub(super) is_causal: i32,
    pub(super) window_left: i32,
}

unsafe extern "C" {
    pub(super) fn te_cuda_set_device(device_idx: i64) -> i32;
    pub(super) fn te_cuda_new_stream(device_idx: i64, out: *mut TorchStream) -> i32;
    pub(super) fn te_cuda_current_stream(device_idx: i64, out: *mut TorchStream) -> i32;
    pub(super) fn te_cuda_set_current_stream(stream: *const TorchStream) -> i32;
    pub(super) fn te_cuda_empty_cache() -> i32;
    pub(super) fn te_cuda_graph_pool(out: *mut u64) -> i32;
    pub(super) fn te_cuda_graph_begin(pool: *const u64, out: *mut *mut c_void) -> i32;
    pub(super) fn te_cuda_graph_end(graph: *mut c_void, exec: *mut *mut c_void) -> i32;
    pub(super) fn te_cuda_graph_free(graph: *mut c_void) -> i32;
    pub(super) fn te_blas_set_invariant(invariant: i32) -> i32;
    pub(super) fn te_cuda_send(
        bytes: *const c_void,
        num_bytes: i64,
        device_idx: i64,
        out: *mut *mut c_void,
    ) -> i32;
    pub(super) fn te_flash_varlen(
        tensors: *const *const c_void,
        varlen: *const TeVarlen,
        out: *mut *mut c_void,
    ) -> i32;
}

const OK: i32 = 0;
const OUT_OF_MEMORY: i32 = 2;

/// Turns a code of the shim into an error.
pub(super) fn check(call: &'static str, code: i32) -> Result<(), ExtError> {
    if code == OK {
        return Ok(());
    }
    let reason = last_error();
    if code == OUT_OF_MEMORY {
        return Err(ExtError::device_memory(&reason));
    }
    Err(ExtError::Cuda { call, reason })
}
