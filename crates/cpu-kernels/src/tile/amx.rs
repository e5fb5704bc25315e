//! The micro-kernel on Intel's matrix units (AMX): up to 32 rows times a panel, 32 summed elements at a time.
//!
//! The units multiply a tile of 16 rows x 32 bfloat16 with one of 16 groups x 16 columns, which is how a panel lies in
//! memory anyway, and add to 16 x 16 sums in float32. A row's sums do not depend on the other rows of a tile, so the
//! promise of the module above holds: one sequence of operations an output. What is left of the summed axis past the last 32
//! elements goes through the vector units.
//!
//! Two registers of rows and two of columns, with their four of sums, fill the eight that there are: 32 rows.
#![expect(
    unsafe_code,
    reason = "matrix instructions have no intrinsics in stable Rust, and take raw pointers"
)]

use std::arch::asm;

use half::bf16;

use super::{BF16_DOT, Init, MAX_ROWS, PANEL, Panel, Rows, VECTOR_ROWS};

/// Rows of one matrix register.
const TILE_ROWS: usize = 16;
/// Groups of two elements that one instruction sums.
const TILE_GROUPS: usize = 16;
const TILE_ROW_BYTES: u16 = 64;

/// What `ldtilecfg` reads: rows and bytes a row of each of the eight registers.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    num_rows: [u8; 16],
}

/// Registers 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
static CONFIGS: [TileConfig; MAX_ROWS] = {
    let mut configs = [const {
        TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], num_rows: [0; 16] }
    }; MAX_ROWS];
    let mut len = 1;
    while len <= MAX_ROWS {
        let low = if len < TILE_ROWS { len } else { TILE_ROWS };
        let num_rows = [low, low, len - low, len - low, low, len - low, TILE_GROUPS, TILE_GROUPS];
        let mut register = 0;
        while register < num_rows.len() {
            configs[len - 1].num_rows[register] = num_rows[register] as u8;
            configs[len - 1].row_bytes[register] = if num_rows[register] > 0 { TILE_ROW_BYTES } else { 0 };
            register += 1;
        }
        len += 1;
    }
    configs
};

/// Sets the registers of this thread up for tiles of `num_rows` rows, from 1 to [`MAX_ROWS`].
///
/// # Safety
/// On a machine whose instruction set is [`Isa::Amx`](crate::Isa::Amx).
pub(super) unsafe fn configure(num_rows: usize) {
    // SAFETY: the configuration is one of a static table; nothing else in the process keeps values in these registers.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGS[num_rows - 1], options(nostack, readonly)) }
}

/// As [`Tiles::run`](super::Tiles::run), after [`configure`] with `rows.len`.
///
/// # Safety
/// As there, on a machine whose instruction set is [`Isa::Amx`](crate::Isa::Amx).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn tile_bf16_amx(rows: Rows<bf16>, panel: Panel<bf16>, init: Init, acc: *mut [f32; PANEL]) {
    let num_steps = panel.num_groups / TILE_GROUPS;
    // SAFETY: rows, panel, `init` and `acc` reach as far as is read and written by the caller's promise: the
    // registers have `rows.len` rows of 32 elements and 16 groups of a panel, and no step passes `num_groups`.
    unsafe {
        // Sums that were just stored cannot be loaded into a matrix register at once.
        let clear = init.is_zero() && num_steps > 0;
        if !clear {
            for row in 0..rows.len {
                acc.add(row).write(init.read_row(row));
            }
        }
        if num_steps > 0 {
            if rows.len > TILE_ROWS {
                two_by_two(rows, panel, num_steps, clear, acc);
            } else {
                one_by_two(rows, panel, num_steps, clear, acc);
            }
        }
        let num_groups = panel.num_groups - num_steps * TILE_GROUPS;
        if num_groups > 0 {
            rest(rows, panel, num_steps, num_groups, acc);
        }
    }
}

/// The last `num_groups` groups, fewer than a step has, with the vector units.
///
/// # Safety
/// As [`tile_bf16_amx`], with the sums in `acc`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rest(
    rows: Rows<bf16>,
    panel: Panel<bf16>,
    num_steps: usize,
    num_groups: usize,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: guaranteed by the caller; a row's groups are pairs of elements, each of which is a word.
    unsafe {
        let start = rows.start.add(num_steps * TILE_GROUPS * 2);
        let first_group = panel.start.add(num_steps * TILE_GROUPS * panel.stride_elems);
        let panel = Panel { start: first_group, num_groups, ..panel };
        for first in (0..rows.len).step_by(VECTOR_ROWS) {
            let len = VECTOR_ROWS.min(rows.len - first);
            let mut words = [0_u32; TILE_GROUPS * VECTOR_ROWS];
            for row in 0..len {
                let row_start = start.add((first + row) * rows.stride_elems).cast::<u32>();
                for group in 0..num_groups {
                    words[group * len + row] = row_start.add(group).read_unaligned();
                }
            }
            let acc = acc.add(first);
            BF16_DOT[len - 1](words.as_ptr(), panel, Init::sums(acc), acc);
        }
    }
}

/// Brings a step's share of what is fetched ahead into the second-level cache, 512 bytes at a time.
macro_rules! fetch_step {
    () => {
        "mov {count:e}, {chunks:e}
         test {count:e}, {count:e}
         jz 4f
         3:
         prefetcht1 [{fetch}]
         prefetcht1 [{fetch} + 64]
         prefetcht1 [{fetch} + 128]
         prefetcht1 [{fetch} + 192]
         prefetcht1 [{fetch} + 256]
         prefetcht1 [{fetch} + 320]
         prefetcht1 [{fetch} + 384]
         prefetcht1 [{fetch} + 448]
         add {fetch}, 512
         dec {count:e}
         jnz 3b
         4:"
    };
}

/// Up to 16 rows.
///
/// # Safety
/// As [`tile_bf16_amx`], after `ldtilecfg`, with `num_steps > 0` whole steps and the sums in `acc`.
unsafe fn one_by_two(
    rows: Rows<bf16>,
    panel: Panel<bf16>,
    num_steps: usize,
    clear: bool,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: guaranteed by the caller. The block loads the sums it adds to and stores them, so it leaves nothing in
    // a register that the next one needs.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "test {count:e}, {count:e}",
            "jnz 2f",
            "tileloadd tmm0, [{acc} + {acc_stride}]",
            "tileloadd tmm1, [{acc} + {acc_stride} + 64]",
            "2:",
            "tileloadd tmm6, [{b} + {b_stride}]",
            "tileloadd tmm4, [{a} + {a_stride}]",
            "tileloadd tmm7, [{b} + {b_stride} + 64]",
            fetch_step!(),
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 64",
            "add {b}, {b_step}",
            "dec {num_steps}",
            "jnz 2b",
            "tilestored [{acc} + {acc_stride}], tmm0",
            "tilestored [{acc} + {acc_stride} + 64], tmm1",
            acc = in(reg) acc,
            acc_stride = in(reg) PANEL * size_of::<f32>(),
            a = inout(reg) rows.start => _,
            a_stride = in(reg) rows.stride_elems * size_of::<bf16>(),
            b = inout(reg) panel.start => _,
            b_stride = in(reg) panel.stride_elems * size_of::<bf16>(),
            b_step = in(reg) panel.stride_elems * size_of::<bf16>() * TILE_GROUPS,
            num_steps = inout(reg) num_steps => _,
            fetch = inout(reg) panel.prefetch => _,
            chunks = in(reg) panel.prefetch_share.chunks(),
            count = inout(reg) u64::from(clear) => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 17 to 32 rows: each register is used twice in a step.
///
/// # Safety
/// As [`one_by_two`].
unsafe fn two_by_two(
    rows: Rows<bf16>,
    panel: Panel<bf16>,
    num_steps: usize,
    clear: bool,
    acc: *mut [f32; PANEL],
) {
    // SAFETY: as above; the second half of the rows and of the sums starts 16 rows on.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {count:e}, {count:e}",
            "jnz 2f",
            "tileloadd tmm0, [{acc} + {acc_stride}]",
            "tileloadd tmm1, [{acc} + {acc_stride} + 64]",
            "tileloadd tmm2, [{acc} + {acc_stride} + 2048]",
            "tileloadd tmm3, [{acc} + {acc_stride} + 2112]",
            "2:",
            "tileloadd tmm6, [{b} + {b_stride}]",
            "tileloadd tmm4, [{a} + {a_stride}]",
            "tileloadd tmm7, [{b} + {b_stride} + 64]",
            "tileloadd tmm5, [{a_high} + {a_stride}]",
            fetch_step!(),
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {a_high}, 64",
            "add {b}, {b_step}",
            "dec {num_steps}",
            "jnz 2b",
            "tilestored [{acc} + {acc_stride}], tmm0",
            "tilestored [{acc} + {acc_stride} + 64], tmm1",
            "tilestored [{acc} + {acc_stride} + 2048], tmm2",
            "tilestored [{acc} + {acc_stride} + 2112], tmm3",
            acc = in(reg) acc,
            acc_stride = in(reg) PANEL * size_of::<f32>(),
            a = inout(reg) rows.start => _,
            a_high = inout(reg) rows.start.add(TILE_ROWS * rows.stride_elems) => _,
            a_stride = in(reg) rows.stride_elems * size_of::<bf16>(),
            b = inout(reg) panel.start => _,
            b_stride = in(reg) panel.stride_elems * size_of::<bf16>(),
            b_step = in(reg) panel.stride_elems * size_of::<bf16>() * TILE_GROUPS,
            num_steps = inout(reg) num_steps => _,
            fetch = inout(reg) panel.prefetch => _,
            chunks = in(reg) panel.prefetch_share.chunks(),
            count = inout(reg) u64::from(clear) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Multiplies registers `num_rounds` times, and returns the floating-point operations of a round.
///
/// # Safety
/// On a machine whose instruction set is [`Isa::Amx`](crate::Isa::Amx).
pub(crate) unsafe fn peak(num_rounds: usize) -> usize {
    // SAFETY: the machine has the units, which are set up for 32 rows; no memory is touched.
    unsafe {
        configure(MAX_ROWS);
        asm!(
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) num_rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
    2 * MAX_ROWS * PANEL * TILE_GROUPS * 2
}
