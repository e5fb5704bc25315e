//! Every environment variable that the program reads, in one place.

use model_core::AttentionSwitches;

/// Set for rank 0: the socket to serve the store on.
pub(crate) const SOCKET_VARIABLE: &str = "ALIGNER_GEN_SOCKET";

/// `HYDRA_FULL_ERROR=1`: print the whole chain of causes.
pub(crate) fn full_error() -> bool {
    std::env::var("HYDRA_FULL_ERROR").is_ok_and(|value| value == "1")
}

/// TransformerEngine's switches of attention backends: on unless 0.
pub(crate) fn attention_switches() -> AttentionSwitches {
    let is_on = |name: &str| std::env::var(name).map_or(true, |value| value.trim() != "0");
    AttentionSwitches {
        flash: is_on("NVTE_FLASH_ATTN"),
        fused: is_on("NVTE_FUSED_ATTN"),
        unfused: is_on("NVTE_UNFUSED_ATTN"),
    }
}

/// A variable that a launcher of ranks sets.
pub(crate) fn of_launcher(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The socket that this program's own launcher has bound for rank 0.
pub(crate) fn launcher_socket() -> Option<i32> {
    std::env::var(SOCKET_VARIABLE).ok()?.parse().ok()
}

/// Whether the user has chosen how many threads libtorch takes.
pub(crate) fn has_thread_count() -> bool {
    thread_count().is_some()
}

/// Why the front of the Python package (`packaging/front.py`) has started the build for the CPU.
#[cfg(not(feature = "cuda"))]
pub(crate) fn why_cpu() -> Option<String> {
    std::env::var("ALIGNER_GEN_WHY_CPU").ok()
}

/// OMP_NUM_THREADS as it is.
pub(crate) fn thread_count() -> Option<String> {
    std::env::var("OMP_NUM_THREADS").ok()
}

/// A variable for `${oc.env:NAME}` in the configuration.
pub(crate) fn for_interpolation(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
