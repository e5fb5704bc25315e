//! MKL, which computes libtorch's GEMMs on the CPU.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use crate::ExtError;

unsafe extern "C" {
    fn te_mkl_mode() -> i32;
}

/// Checks that MKL's CNR mode was set when the program started, as it must be before the first GEMM: it makes results
/// independent of the number of threads. `MKL_CBWR` in the environment takes precedence. Does nothing where libtorch has
/// no MKL.
///
/// # Errors
/// When MKL refused.
pub fn check_mode() -> Result<(), ExtError> {
    // SAFETY: the entry takes nothing and reads a number that was set before `main`.
    match unsafe { te_mkl_mode() } {
        0 => Ok(()),
        code => Err(ExtError::Libtorch(format!("MKL_CBWR cannot be set to AUTO: mkl_cbwr_set gave {code}"))),
    }
}
