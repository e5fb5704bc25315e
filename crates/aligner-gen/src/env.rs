//! Every environment variable that the program reads, in one place.

/// `HYDRA_FULL_ERROR=1`: print the whole chain of causes.
pub(crate) fn full_error() -> bool {
    std::env::var("HYDRA_FULL_ERROR").is_ok_and(|value| value == "1")
}

/// A variable for `${oc.env:NAME}` in the configuration.
pub(crate) fn for_interpolation(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
