//! What holds between instruction sets: those with the same arithmetic have bitwise identical results, and none wastes
//! what its machine can do.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::io::Write as _;
use std::time::Instant;

use cpu_kernels::{
    AttentionStep, CpuKernels, HeadShape, Isa, KvShape, Layout, NormParams, PackedLinear, PagedSequence,
    RotaryTable, SourceDType, StoredLinear, peak_flops,
};
use model_spec::{Nonlinearity, Normalization};
use tch::{Device, Kind, Tensor};

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

/// Values in [-1, 1) with all bits of float32.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor(rows: usize, columns: usize, seed: u32, kind: Kind) -> Tensor {
    Tensor::from_slice(&values(rows * columns, seed)).reshape([rows as i64, columns as i64]).to_kind(kind)
}

fn packed(kernels: &mut CpuKernels, outputs: usize, inputs: usize, kind: Kind) -> PackedLinear {
    let bytes = |len, seed| -> Vec<u8> {
        values(len, seed).into_iter().flat_map(|value| value.to_le_bytes()).collect()
    };
    let (weight, bias) = (bytes(outputs * inputs, 2), bytes(outputs, 3));
    let stored = StoredLinear {
        weight: &weight,
        bias: Some(&bias),
        dtype: SourceDType::F32,
        out_features: outputs,
        in_features: inputs,
    };
    kernels.pack(&stored, Layout::Gated, kind).unwrap()
}

/// One of every kernel: a norm, a gated layer, attention over two blocks.
fn results(isa: Isa, kind: Kind) -> Vec<Tensor> {
    const ROWS: usize = 37;
    let mut kernels = CpuKernels::with_isa(2, isa).unwrap();
    let x = tensor(ROWS, 75, 1, kind);
    let (weight, bias) = (values(75, 4), values(75, 5));
    let params =
        NormParams { normalization: Normalization::LayerNorm, weight: &weight, bias: &bias, epsilon: 1e-5 };
    let normed = kernels.norm(&x, &params).unwrap();
    let layer = packed(&mut kernels, 76, 75, kind);
    let activated = kernels.linear_activate(&normed, &layer, Nonlinearity::GeluTanh).unwrap();
    let plain = kernels.linear_f32(&normed, &layer).unwrap();
    let heads = HeadShape {
        num_attention_heads: 4,
        num_query_groups: 2,
        head_dim: 24,
        scale: 0.2,
        softcap: Some(3.0),
        window: None,
    };
    let shape = KvShape { num_layers: 1, num_blocks: 2, num_query_groups: 2, head_dim: 24 };
    let mut cache = kernels.new_kv(shape, kind).unwrap();
    let (cos, sin) = (values(ROWS * 8, 6), values(ROWS * 8, 7));
    let span = PagedSequence { query_start: 0, query_len: ROWS, context_len: 0, block_table: &[1, 0] };
    let step = AttentionStep {
        heads,
        rotary: RotaryTable { cos: &cos, sin: &sin, rotary_dim: 16 },
        sequences: &[span],
        layer_idx: 0,
        sinks: None,
    };
    let attended = kernels.attention(&tensor(ROWS, 192, 8, kind), &step, &mut cache).unwrap();
    vec![normed, activated, plain, attended]
}

/// FNV-1a of all bits.
fn digest(results: &[Tensor]) -> u64 {
    let values = results
        .iter()
        .flat_map(|result| Vec::<f32>::try_from(result.to_kind(Kind::Float).flatten(0, -1)).unwrap());
    let mix = |digest: u64, byte: u8| (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    values.flat_map(|value| value.to_bits().to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, mix)
}

#[test]
fn sets_of_one_arithmetic_have_the_same_bits() {
    for kind in KINDS {
        let all: Vec<_> = Isa::of_machine().map(|isa| (isa, results(isa, kind))).collect();
        for (isa, results) in &all {
            // For `cargo xtask arm-test`, which compares machines of two kinds.
            let digest = digest(results);
            writeln!(std::io::stderr(), "{}, {kind:?}: {digest:016x} ({isa})", isa.arithmetic(kind)).unwrap();
        }
        for ((isa, own), (other, others)) in all.iter().zip(&all[1..]) {
            if isa.arithmetic(kind) == other.arithmetic(kind) {
                let same = own.iter().zip(others).all(|(own, others)| own.equal(others));
                assert!(same, "{isa} and {other}, {kind:?}");
            }
        }
        // Norms are the same sums on all of them.
        assert!(all.iter().all(|(_, results)| results[0].equal(&all[0].1[0])), "{kind:?}");
    }
}

/// Both figures are the best of many rounds in turn, each shorter than a time slice, so other programs disturb neither. A
/// function that is not inlined or sums that are kept in memory cost several times as much.
#[test]
fn linear_layers_reach_a_third_of_the_peak() {
    const ROUNDS: usize = 40;
    let (rows, outputs, inputs) = (66_usize, 256_usize, 512_usize);
    let flops = (2 * rows * outputs * inputs) as f64;
    for isa in Isa::of_machine() {
        for kind in KINDS {
            let mut kernels = CpuKernels::with_isa(1, isa).unwrap();
            let layer = packed(&mut kernels, outputs, inputs, kind);
            let x = Tensor::zeros([rows as i64, inputs as i64], (kind, Device::Cpu));
            let (mut peak, mut reached) = (0.0_f64, 0.0_f64);
            for _ in 0..ROUNDS {
                peak = peak.max(peak_flops(isa, kind).unwrap());
                let started = Instant::now();
                let _ = kernels.linear(&x, &layer).unwrap();
                reached = reached.max(flops / started.elapsed().as_secs_f64());
            }
            let share = reached / peak;
            // Not through `println!`, which the test's harness keeps to itself.
            writeln!(
                std::io::stderr(),
                "{isa:<12} {kind:<9?} {:>6.1} of {:>6.1} GFLOP/s: {:.0} %",
                reached / 1e9,
                peak / 1e9,
                share * 100.0
            )
            .unwrap();
            // The compiler's own code has to shuffle more than it adds, for want of a broadcast.
            let least = if isa == Isa::Portable { 0.2 } else { 1.0 / 3.0 };
            assert!(share > least, "{isa} {kind:?} reaches {:.0} % of the peak", share * 100.0);
        }
    }
}
