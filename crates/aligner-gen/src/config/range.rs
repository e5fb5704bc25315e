//! Numbers and words of the configuration that must lie in a range.

use crate::exit::Failure;

/// A number from 1.
pub(crate) fn positive(key: &str, value: i64) -> Result<usize, Failure> {
    usize::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| out_of_range(key, "at least 1", &value.to_string()))
}

/// The same of 32 bits.
pub(crate) fn count(key: &str, value: i64) -> Result<u32, Failure> {
    u32::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| out_of_range(key, "at least 1", &value.to_string()))
}

/// The message that a value is none of what is expected.
pub(crate) fn out_of_range(key: &str, expected: &str, actual: &str) -> Failure {
    Failure::usage(format!("`{key}` must be {expected}, found {actual}"))
}
