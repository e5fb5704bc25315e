//! Whether this process may use Intel's matrix units (AMX).
#![expect(unsafe_code, reason = "the system is asked by a call that the standard library does not have")]

use std::arch::asm;
use std::sync::OnceLock;

/// Whether processor and system let this process use the matrix units. The system wants to be asked, once, because
/// their registers make a thread's saved state larger by 8 KiB.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && ask_system())
}

/// CPUID leaf 7: bit 22 of EDX is AMX-BF16, bit 24 AMX-TILE.
fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & AMX == AMX
}

#[cfg(target_os = "linux")]
fn ask_system() -> bool {
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory of this process; a system that does not know it says
    // so. `syscall` itself overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_system() -> bool {
    false
}
