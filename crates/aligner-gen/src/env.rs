//! Every environment variable that the program reads, in one place.

use anyhow::Context;
use model_core::{AttentionSwitches, Exchange, Isa};

use crate::exit::{ExitStatus, Failure, ResultExt as _};

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

/// The instruction set of the fused kernels on a CPU: the best of the machine, or a lesser one by its name.
pub(crate) const ISA_VARIABLE: &str = "ALIGNER_GEN_ISA";

/// # Errors
/// When there is no such instruction set, or the machine lacks it.
pub(crate) fn isa() -> Result<Isa, Failure> {
    std::env::var_os(ISA_VARIABLE).map_or(Ok(Isa::detect()), |name| isa_named(&name.to_string_lossy()))
}

fn isa_named(name: &str) -> Result<Isa, Failure> {
    let names = Isa::ALL.map(Isa::name).join("`, `");
    let isa = Isa::ALL
        .into_iter()
        .find(|isa| isa.name() == name)
        .ok_or_else(|| Failure::usage(format!("`{ISA_VARIABLE}` must be one of `{names}`, not `{name}`")))?;
    isa.check().context(format!("`{ISA_VARIABLE}={name}`")).exit_with(ExitStatus::Device)?;
    Ok(isa)
}

/// What GPUs of one model exchange through, for tests: `host` and `messages`, where they would find a better way.
const EXCHANGE_VARIABLE: &str = "ALIGNER_GEN_EXCHANGE";

/// # Errors
/// When there is no such way.
pub(crate) fn exchange() -> Result<Exchange, Failure> {
    exchange_named(std::env::var(EXCHANGE_VARIABLE).ok().as_deref())
}

fn exchange_named(name: Option<&str>) -> Result<Exchange, Failure> {
    match name {
        None => Ok(Exchange::Auto),
        Some("host") => Ok(Exchange::HostMemory),
        Some("messages") => Ok(Exchange::Messages),
        Some(other) => Err(Failure::usage(format!(
            "`{EXCHANGE_VARIABLE}` must be `host` or `messages`, or not be set, not `{other}`"
        ))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_sets_are_chosen_by_name() {
        assert_eq!(isa_named("portable").unwrap(), Isa::Portable);
        assert_eq!(isa_named(Isa::detect().name()).unwrap(), Isa::detect());
        let error = isa_named("avx").unwrap_err();
        assert_eq!(error.status, ExitStatus::Usage);
        insta::assert_snapshot!(error.sentence(), @"`ALIGNER_GEN_ISA` must be one of `portable`, `neon`, `avx2`, `avx512`, `avx512-bf16`, `amx`, not `avx`");
        // No machine of ours has all of them and is the best that there is.
        if let Err(error) = isa_named("amx") {
            assert_eq!(error.status, ExitStatus::Device);
            assert!(error.sentence().starts_with("`ALIGNER_GEN_ISA=amx`: this machine does not have"));
        }
    }
}
