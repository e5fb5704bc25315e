//! Which vector instructions the machine has, and the macro that compiles a loop once for each of them.

#[cfg(target_arch = "x86_64")]
mod amx;

use tch::Kind;

/// The instruction sets the kernels are compiled for; those of one architecture the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the target's baseline offers.
    Portable,
    /// 64-bit Arm's vectors of 128 bits.
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with the bfloat16 dot product.
    Avx512Bf16,
    /// The same with Intel's matrix units for bfloat16.
    Amx,
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return if amx::is_available() { Self::Amx } else { Self::Avx512Bf16 };
            }
            if avx512 {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        if cfg!(target_arch = "aarch64") { Self::Neon } else { Self::Portable }
    }

    /// All of them, those of one architecture the least first.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The name that a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// The name of the arithmetic for elements of `kind`: with the same name results are bitwise identical.
    pub fn arithmetic(self, kind: Kind) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx512Bf16 | Self::Amx if kind == Kind::BFloat16 => self.name(),
            Self::Neon | Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 | Self::Amx => "fused multiply-add",
        }
    }

    /// Those that this machine has, the least first.
    pub fn of_machine() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.check().is_ok())
    }

    /// # Errors
    /// When this machine lacks it.
    pub fn check(self) -> Result<(), NoIsa> {
        let best = Self::detect();
        let is_of_architecture = self != Self::Neon || cfg!(target_arch = "aarch64");
        if self <= best && is_of_architecture { Ok(()) } else { Err(NoIsa { wanted: self, best }) }
    }
}

/// An instruction set that this machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this machine does not have the instruction set `{wanted}`; its best is `{best}`")]
pub struct NoIsa {
    /// What was asked for.
    pub wanted: Isa,
    /// The best of this machine.
    pub best: Isa,
}

impl std::fmt::Display for Isa {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.name())
    }
}

/// Defines `fn name(isa: Isa, args…)` whose body is compiled for every instruction set; the compiler vectorises it.
/// The arithmetic is the same in all of them: Rust never fuses a multiplication with an addition by itself.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$generic: $bound>)? (isa: $crate::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn body $(<$generic: $bound>)? ($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$generic: $bound>)? ($($arg: $ty),*) {
                body($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$generic: $bound>)? ($($arg: $ty),*) {
                body($($arg),*);
            }

            match isa {
                // SAFETY: an `Isa` of this value is only made by `Isa::detect` (or lowered from it in tests), which
                // has seen the processor report these features.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 | $crate::Isa::Amx => unsafe {
                    avx512($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_sets_of_its_architecture_up_to_its_best() {
        let all: Vec<Isa> = Isa::of_machine().collect();
        assert_eq!((all.first(), all.last()), (Some(&Isa::Portable), Some(&Isa::detect())));
        assert!(all.is_sorted());
        assert_eq!(all.contains(&Isa::Neon), cfg!(target_arch = "aarch64"));
        assert_eq!(Isa::Neon.check().is_ok(), cfg!(target_arch = "aarch64"));
    }
}
