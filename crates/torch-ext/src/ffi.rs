//! What every entry of the C++ shim shares: a code, and the text of the exception behind it.
#![expect(unsafe_code, reason = "the text of a failure lies in C++ memory")]

use std::ffi::{CStr, c_char};

use crate::ExtError;

unsafe extern "C" {
    fn te_last_error() -> *const c_char;
}

/// Turns the code of an entry into a result. The codes are those of `csrc/guard.h`.
pub(crate) fn check(code: i32) -> Result<(), ExtError> {
    if code == 0 { Ok(()) } else { Err(ExtError::Libtorch(last_error().trim_end().to_owned())) }
}

/// The text of the exception behind the last code that was not 0.
pub(crate) fn last_error() -> String {
    // SAFETY: the shim returns a text that ends in zero and lives until this thread's next call of an entry.
    let text = unsafe { CStr::from_ptr(te_last_error()) };
    text.to_string_lossy().into_owned()
}
