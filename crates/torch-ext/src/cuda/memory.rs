//! The current GPU, its memory that libtorch keeps in reserve, and uploads of small lists.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use std::ffi::c_void;

use tch::Tensor;
use tch::kind::Element;

use super::ffi;
use crate::ExtError;

/// `values` as a tensor of one dimension on GPU `device_idx`, through page-locked memory. The upload is asynchronous: what
/// is enqueued on the current stream afterwards finds it there.
///
/// # Errors
/// When there is no memory, or earlier work on the GPU failed.
pub fn send<T: Element>(values: &[T], device_idx: usize) -> Result<Tensor, ExtError> {
    let (start, num_bytes) = (values.as_ptr().cast::<c_void>(), size_of_val(values) as i64);
    let mut out = std::ptr::null_mut();
    // SAFETY: the slice lives over the call, which reads `num_bytes` bytes, and the pointer is valid for it.
    let code = unsafe { ffi::te_cuda_send(start, num_bytes, device_idx as i64, &mut out) };
    ffi::check("empty", code)?;
    // SAFETY: the shim made a tensor of its own for us.
    let bytes = unsafe { Tensor::from_ptr(out.cast()) };
    Ok(bytes.f_view_dtype(T::KIND)?)
}

/// Makes a GPU the calling thread's current one, and libtorch ready to use it.
///
/// # Errors
/// When there is no such GPU, or libtorch cannot use it.
pub fn set_device(device_idx: usize) -> Result<(), ExtError> {
    // SAFETY: the entry takes any number; libtorch refuses one that no GPU has.
    ffi::check("c10::cuda::set_device", unsafe { ffi::te_cuda_set_device(device_idx as i64) })
}

/// Hands the memory that libtorch keeps in reserve back to the GPUs.
///
/// # Errors
/// When libtorch cannot.
pub fn empty_cache() -> Result<(), ExtError> {
    // SAFETY: the entry has no arguments.
    ffi::check("emptyCache", unsafe { ffi::te_cuda_empty_cache() })
}
