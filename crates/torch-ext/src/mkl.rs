//! MKL, of which libtorch's products on the CPU are made.
#![expect(unsafe_code, reason = "the shim has a C interface")]

use crate::ExtError;

unsafe extern "C" {
    fn te_mkl_mode() -> i32;
}

/// Makes sure that a product has the same bits on any number of threads, which MKL is told when the program starts;
/// `MKL_CBWR` in the environment goes before it. Does nothing where libtorch has no MKL.
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
