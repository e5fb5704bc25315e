//! What the arithmetic units of one core do at most: the measure of the micro-kernels.
#![expect(unsafe_code, reason = "instructions that a caller has checked the machine for")]

use std::hint::black_box;
use std::time::Instant;

use tch::Kind;

use super::isa::Isa;
use crate::CpuKernelError;

/// Rounds of one measurement: some tenths of a millisecond.
const NUM_ROUNDS: usize = 40_000;
/// Independent sums: more than instructions in flight, and no more than registers.
const NUM_SUMS: usize = 12;

/// Floating-point operations a second of multiply-adds on registers alone, as the kernels of `isa` use them for elements
/// of `kind` (float32 or bfloat16), on the calling thread. It takes some tenths of a millisecond; the best of several
/// calls is the machine's.
///
/// # Errors
/// When the machine lacks the instruction set, or there are no kernels for `kind`.
pub fn peak_flops(isa: Isa, kind: Kind) -> Result<f64, CpuKernelError> {
    isa.check()?;
    let started = Instant::now();
    let flops_per_round = match (isa, kind) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the machine has the instruction set, as was checked; so below.
        (Isa::Neon, Kind::Float | Kind::BFloat16) => unsafe { arm::neon() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx2, Kind::Float | Kind::BFloat16) => unsafe { x86::avx2() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx512, Kind::Float | Kind::BFloat16) => unsafe { x86::avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx512Bf16 | Isa::Amx, Kind::Float) => unsafe { x86::avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx512Bf16, Kind::BFloat16) => unsafe { x86::dot() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Amx, Kind::BFloat16) => unsafe { super::tile::amx_peak(NUM_ROUNDS) },
        (_, Kind::Float | Kind::BFloat16) => portable(),
        (_, other) => return Err(super::kernels::no_kind(other)),
    };
    Ok((NUM_ROUNDS * flops_per_round) as f64 / started.elapsed().as_secs_f64())
}

fn portable() -> usize {
    const LANES: usize = 4;
    let (mut sums, factor) = ([[1.0_f32; LANES]; NUM_SUMS], black_box([0.5_f32; LANES]));
    for _ in 0..NUM_ROUNDS {
        for sum in &mut sums {
            sum.iter_mut().zip(factor).for_each(|(sum, factor)| *sum = *sum * factor + factor);
        }
    }
    black_box(sums);
    2 * LANES * NUM_SUMS
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
    use std::hint::black_box;

    use super::NUM_ROUNDS;

    /// Up to four pipes with a latency of four.
    const NUM_SUMS: usize = 24;

    #[target_feature(enable = "neon")]
    pub(super) fn neon() -> usize {
        let (mut sums, factor) = ([vdupq_n_f32(1.0); NUM_SUMS], black_box(vdupq_n_f32(0.5)));
        for _ in 0..NUM_ROUNDS {
            for sum in &mut sums {
                *sum = vfmaq_f32(factor, *sum, factor);
            }
        }
        black_box(sums);
        2 * 4 * NUM_SUMS
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps,
        _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::{NUM_ROUNDS, NUM_SUMS};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() -> usize {
        let (mut sums, factor) = ([_mm256_set1_ps(1.0); NUM_SUMS], black_box(_mm256_set1_ps(0.5)));
        for _ in 0..NUM_ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        2 * 8 * NUM_SUMS
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() -> usize {
        let (mut sums, factor) = ([_mm512_set1_ps(1.0); NUM_SUMS], black_box(_mm512_set1_ps(0.5)));
        for _ in 0..NUM_ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        2 * 16 * NUM_SUMS
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot() -> usize {
        // SAFETY: both are 512 bits without invalid values.
        let pairs =
            black_box(unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f00_3f00)) });
        let mut sums = [_mm512_set1_ps(1.0); NUM_SUMS];
        for _ in 0..NUM_ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
            }
        }
        black_box(sums);
        2 * 32 * NUM_SUMS
    }
}
