//! On odd shapes and every instruction set of this machine: each kernel equals a few lines of libtorch, and a row never
//! depends on the rows around it.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use cpu_kernels::{
    AttentionStep, BLOCK_TOKENS, CpuKernels, HeadShape, Isa, KvShape, Layout, NormParams, PackedBlock,
    PackedLinear, PagedSequence, RotaryTable, SourceDType, StoredLinear,
};
use model_spec::{HeadLayout, Nonlinearity, Normalization};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// Deterministic values in [-1, 1), exact in bfloat16.
fn random(rows: usize, columns: usize, seed: u64) -> Tensor {
    let values: Vec<f32> = (0..(rows * columns) as u64)
        .map(|i| {
            let mixed =
                (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93));
            ((mixed >> 40) % 256) as f32 / 128.0 - 1.0
        })
        .collect();
    Tensor::from_slice(&values).reshape([rows as i64, columns as i64])
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let values: Vec<f32> = Vec::try_from(tensor.reshape([-1])).unwrap();
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn pack(
    kernels: &mut CpuKernels,
    weight: &Tensor,
    bias: Option<&Tensor>,
    layout: Layout,
    kind: Kind,
) -> PackedLinear {
    let (weight_bytes, bias_bytes) = (bytes_of(weight), bias.map(bytes_of));
    let stored = StoredLinear {
        weight: &weight_bytes,
        bias: bias_bytes.as_deref(),
        dtype: SourceDType::F32,
        out_features: weight.size()[0] as usize,
        in_features: weight.size()[1] as usize,
    };
    kernels.pack(&stored, layout, kind).unwrap()
}

fn max_difference(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size());
    if actual.numel() == 0 {
        return 0.0;
    }
    (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[])
}

fn same_bits(left: &Tensor, right: &Tensor) -> bool {
    left.size() == right.size() && left.equal(right)
}

/// Relative rounding of one stored value: bfloat16 keeps 8 bits, float32 sums differ by their order.
fn tolerance(kind: Kind, magnitude: f64) -> f64 {
    if kind == Kind::Float { 4e-6 * magnitude.max(1.0) } else { magnitude.max(1.0) / 256.0 }
}

fn check_linear(isa: Isa, kind: Kind, (rows, out_features, in_features): (usize, usize, usize)) {
    let mut kernels = CpuKernels::with_isa(2, isa).unwrap();
    let (x, weight, bias) =
        (random(rows, in_features, 1), random(out_features, in_features, 2), random(1, out_features, 3));
    let packed = pack(&mut kernels, &weight, Some(&bias), Layout::Plain, kind);
    let x_typed = x.to_kind(kind);
    let expected = x.matmul(&weight.tr()) + &bias;
    let bound = tolerance(kind, in_features as f64 + 2.0);

    let actual = kernels.linear(&x_typed, &packed).unwrap();
    assert_eq!(actual.kind(), kind);
    assert!(
        max_difference(&actual, &expected) <= bound,
        "{isa:?} {kind:?} {rows}x{out_features}x{in_features}"
    );
    let logits = kernels.linear_f32(&x_typed, &packed).unwrap();
    assert!(max_difference(&logits, &expected) <= tolerance(Kind::Float, in_features as f64));
    let without_bias = pack(&mut kernels, &weight, None, Layout::Plain, kind);
    let sums = kernels.linear_f32(&x_typed, &without_bias).unwrap();
    assert!(max_difference(&sums, &(&expected - &bias)) <= tolerance(Kind::Float, in_features as f64));
    let mut residual = random(rows, out_features, 4).to_kind(kind);
    let before = residual.to_kind(Kind::Float).copy();
    kernels.linear_add(&x_typed, &packed, &mut residual).unwrap();
    let difference = max_difference(&residual, &(&expected + before));
    assert!(difference <= bound, "{isa:?} {kind:?} {rows}x{out_features}x{in_features}: {difference}");
    for row in [0, rows / 2, rows - 1] {
        let alone = kernels.linear(&x_typed.narrow(0, row as i64, 1).contiguous(), &packed).unwrap();
        assert!(same_bits(&alone, &actual.narrow(0, row as i64, 1)), "row {row} depends on its batch");
    }
}

#[test]
fn linear_equals_libtorch() {
    for isa in Isa::of_machine() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for shape in [
                (1, 1, 1),
                (1, 32, 64),
                (3, 33, 7),
                (15, 65, 31),
                (33, 65, 96),
                (64, 100, 96),
                (130, 40, 50),
                (300, 96, 160),
                (2, 31, 1),
            ] {
                check_linear(isa, kind, shape);
            }
        }
    }
}

#[test]
fn no_rows_are_no_error() {
    let mut kernels = CpuKernels::new(2).unwrap();
    let packed = pack(&mut kernels, &random(5, 8, 1), None, Layout::Plain, Kind::Float);
    assert_eq!(kernels.linear(&random(0, 8, 2), &packed).unwrap().size(), [0, 5]);
}

#[test]
fn wrong_shapes_are_errors() {
    let mut kernels = CpuKernels::new(1).unwrap();
    let packed = pack(&mut kernels, &random(5, 8, 1), None, Layout::Plain, Kind::Float);
    let error = kernels.linear(&random(2, 9, 2), &packed).unwrap_err();
    assert_eq!(error.to_string(), "`x` must be of shape [num_rows, 8], not [2, 9]");
    assert!(kernels.linear(&random(2, 8, 2).to_kind(Kind::BFloat16), &packed).is_err());
    assert!(kernels.linear(&random(8, 2, 2).tr(), &packed).is_err());
}

fn reference_activation(activation: Nonlinearity, x: &Tensor) -> Tensor {
    match activation {
        Nonlinearity::Gelu => x.gelu("none"),
        Nonlinearity::GeluTanh => x.gelu("tanh"),
        Nonlinearity::QuickGelu => x * (x * 1.702).sigmoid(),
        Nonlinearity::Silu => x.silu(),
        Nonlinearity::Relu => x.relu(),
        Nonlinearity::SquaredRelu => x.relu().square(),
        Nonlinearity::ClampedQuickGelu => {
            let x = x.clamp_max(7.0);
            &x * (&x * 1.702).sigmoid()
        }
    }
}

#[test]
fn activations_equal_libtorch_gated_and_not() {
    let all = [
        Nonlinearity::Gelu,
        Nonlinearity::GeluTanh,
        Nonlinearity::QuickGelu,
        Nonlinearity::Silu,
        Nonlinearity::Relu,
        Nonlinearity::SquaredRelu,
        Nonlinearity::ClampedQuickGelu,
    ];
    let (x, weight) = (random(9, 24, 1), random(70, 24, 2));
    for activation in all {
        let mut kernels = CpuKernels::new(2).unwrap();
        let product = x.matmul(&weight.tr());
        let plain = pack(&mut kernels, &weight, None, Layout::Plain, Kind::Float);
        let actual = kernels.linear_activate(&x, &plain, activation).unwrap();
        assert!(
            max_difference(&actual, &reference_activation(activation, &product)) < 2e-5,
            "{activation:?}"
        );
        let gated = pack(&mut kernels, &weight, None, Layout::Gated, Kind::Float);
        let actual = kernels.linear_activate(&x, &gated, activation).unwrap();
        let multiplied = match activation {
            Nonlinearity::ClampedQuickGelu => product.narrow(1, 35, 35).clamp(-7.0, 7.0) + 1.0,
            _ => product.narrow(1, 35, 35),
        };
        let expected = reference_activation(activation, &product.narrow(1, 0, 35)) * multiplied;
        assert!(max_difference(&actual, &expected) < 5e-5, "gated {activation:?}");
    }
}

#[test]
fn norms_equal_libtorch() {
    for isa in Isa::of_machine() {
        for (rows, hidden_size) in [(1, 1), (3, 17), (40, 64), (17, 576)] {
            let x = random(rows, hidden_size, 5);
            let (weight, bias) = (random(1, hidden_size, 6), random(1, hidden_size, 7));
            let values = |tensor: &Tensor| -> Vec<f32> { Vec::try_from(tensor.reshape([-1])).unwrap() };
            let (weights, biases) = (values(&weight), values(&bias));
            let mut params = NormParams {
                normalization: Normalization::LayerNorm,
                weight: &weights,
                bias: &biases,
                epsilon: 1e-5,
            };
            let mut kernels = CpuKernels::with_isa(2, isa).unwrap();
            let shape = [hidden_size as i64];
            let flat = (weight.reshape(shape), bias.reshape(shape));
            let expected = x.layer_norm(shape, Some(&flat.0), Some(&flat.1), 1e-5, false);
            assert!(max_difference(&kernels.norm(&x, &params).unwrap(), &expected) < 1e-5);
            params.normalization = Normalization::RmsNorm;
            params.bias = &[];
            let expected = &x * (x.square().mean_dim(1, true, Kind::Float) + 1e-5).rsqrt() * &weight;
            assert!(max_difference(&kernels.norm(&x, &params).unwrap(), &expected) < 1e-5);
            let rounded = kernels.norm(&x.to_kind(Kind::BFloat16), &params).unwrap();
            assert!(max_difference(&rounded, &expected) < 0.04);
        }
    }
}

#[test]
fn norms_of_heads_equal_libtorch_and_leave_values_alone() {
    for isa in Isa::of_machine() {
        for (rows, groups, queries, channels, is_of_each) in [
            (1, 1, 1, 2, false),
            (3, 2, 3, 20, false),
            (37, 2, 2, 128, false),
            (3, 2, 3, 20, true),
            (37, 3, 2, 128, true),
        ] {
            let heads = HeadLayout {
                num_attention_heads: groups * queries,
                num_query_groups: groups,
                kv_channels: channels,
            };
            let qkv = random(rows, heads.qkv_size(), 8);
            // Of each part, the gains of as many heads.
            let num_heads = |part: u64| match (is_of_each, part % 2) {
                (false, _) => [1, 1],
                (true, 0) => [groups, queries],
                (true, _) => [groups, 1],
            };
            let vectors: Vec<Vec<f32>> = (0..4)
                .map(|seed| num_heads(seed).iter().product::<usize>() * channels)
                .zip(0..)
                .map(|(len, seed)| Vec::try_from(random(1, len, seed).reshape([-1])).unwrap())
                .collect();
            let mut kernels = CpuKernels::with_isa(2, isa).unwrap();
            for normalization in [Normalization::RmsNorm, Normalization::LayerNorm] {
                let is_centred = normalization == Normalization::LayerNorm;
                let params = |part: usize| NormParams {
                    normalization,
                    weight: &vectors[part],
                    bias: if is_centred { &vectors[part + 2] } else { &[] },
                    epsilon: 1e-5,
                };
                let shape = [rows as i64, groups as i64, queries as i64 + 2, channels as i64];
                let expected = |part: usize, x: Tensor| {
                    let x = if is_centred { &x - x.mean_dim(3, true, Kind::Float) } else { x };
                    let normed = &x * (x.square().mean_dim(3, true, Kind::Float) + 1e-5).rsqrt();
                    let [of_groups, of_heads] = num_heads(part as u64);
                    let of = |part: usize| {
                        let shape = [of_groups as i64, of_heads as i64, channels as i64];
                        Tensor::from_slice(&vectors[part]).reshape(shape)
                    };
                    let normed = normed * of(part);
                    if is_centred { normed + of(part + 2) } else { normed }
                };
                let parts = qkv.reshape(shape).split_with_sizes([queries as i64, 1, 1], 2);
                let expected = Tensor::cat(
                    &[expected(0, parts[0].copy()), expected(1, parts[1].copy()), parts[2].copy()],
                    2,
                );
                for (kind, limit) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.04)] {
                    let mut actual = qkv.to_kind(kind).copy();
                    kernels.norm_heads(&mut actual, heads, &params(0), &params(1)).unwrap();
                    assert!(max_difference(&actual.reshape(shape), &expected) < limit, "{isa:?} {kind:?}");
                    let values = actual.reshape(shape).select(2, queries as i64 + 1);
                    assert!(same_bits(&values, &parts[2].squeeze_dim(2).to_kind(kind)));
                }
            }
            let short = NormParams {
                normalization: Normalization::RmsNorm,
                weight: &vectors[0][1..],
                bias: &[],
                epsilon: 1e-5,
            };
            assert!(kernels.norm_heads(&mut qkv.copy(), heads, &short, &short).is_err());
        }
    }
}

/// Causal attention of one sequence in float32, written out. `qkv`: `[num_tokens, groups, heads_per_group + 2, d]`.
fn reference_attention(
    qkv: &Tensor,
    heads: HeadShape,
    rotary: &RotaryTable<'_>,
    sinks: Option<&[f32]>,
) -> Tensor {
    let (num_tokens, groups, d) = (qkv.size()[0], heads.num_query_groups as i64, heads.head_dim as i64);
    let heads_per_group = heads.num_attention_heads as i64 / groups;
    let half = rotary.rotary_dim as i64 / 2;
    let table = |values: &[f32]| {
        Tensor::from_slice(&values[..(num_tokens * half) as usize]).reshape([num_tokens, 1, 1, half])
    };
    let (cos, sin) = (table(rotary.cos), table(rotary.sin));
    let rotate = |x: Tensor| {
        let (low, high) = (x.narrow(3, 0, half), x.narrow(3, half, half));
        let passed = x.narrow(3, 2 * half, d - 2 * half);
        Tensor::cat(&[&low * &cos - &high * &sin, &high * &cos + &low * &sin, passed], 3)
    };
    let qkv = qkv.to_kind(Kind::Float).reshape([num_tokens, groups, heads_per_group + 2, d]);
    let queries = rotate(qkv.narrow(2, 0, heads_per_group)).permute([1, 2, 0, 3]); // [groups, heads_per_group, tokens, d]
    let keys = rotate(qkv.narrow(2, heads_per_group, 1)).permute([1, 2, 0, 3]);
    let values = qkv.narrow(2, heads_per_group + 1, 1).permute([1, 2, 0, 3]);
    let mut mask = Tensor::ones([num_tokens, num_tokens], (Kind::Float, Device::Cpu)).tril(0);
    if let Some(window) = heads.window {
        mask = mask.triu(1 - window as i64);
    }
    let mut scores = queries.matmul(&keys.transpose(2, 3)) * f64::from(heads.scale);
    if let Some(softcap) = heads.softcap.map(f64::from) {
        scores = (scores / softcap).tanh() * softcap;
    }
    let scores = scores.masked_fill(&mask.eq(0.0), f64::NEG_INFINITY);
    let weights = match sinks {
        None => scores.softmax(-1, Kind::Float),
        Some(sinks) => {
            let sinks = Tensor::from_slice(sinks).reshape([groups, heads_per_group, 1, 1]);
            let sinks = sinks.expand([groups, heads_per_group, num_tokens, 1], false);
            Tensor::cat(&[scores, sinks], -1).softmax(-1, Kind::Float).narrow(3, 0, num_tokens)
        }
    };
    let out = weights.matmul(&values);
    out.permute([2, 0, 1, 3]).reshape([num_tokens, heads.num_attention_heads as i64 * d])
}

struct AttentionCase {
    heads: HeadShape,
    rotary_dim: usize,
    lengths: Vec<usize>,
    kind: Kind,
}

/// All sequences prefilled together; then each again alone, split into a prefill and single-token steps.
fn check_attention(isa: Isa, case: &AttentionCase) {
    check_attention_with(isa, case, None);
    // Far below all scores, among them, and far above.
    let of_head = |head: usize| [0.3, -60.0, 1.7, 9.0][head % 4];
    let sinks: Vec<f32> = (0..case.heads.num_attention_heads).map(of_head).collect();
    check_attention_with(isa, case, Some(&sinks));
}

fn check_attention_with(isa: Isa, case: &AttentionCase, sinks: Option<&[f32]>) {
    let heads = case.heads;
    let row_elems = (heads.num_attention_heads + 2 * heads.num_query_groups) * heads.head_dim;
    let num_tokens: usize = case.lengths.iter().sum();
    let qkv = random(num_tokens, row_elems, 11).to_kind(case.kind);
    let angles: Vec<f32> = (0..256 * case.rotary_dim / 2).map(|i| (i % 97) as f32 * 0.13).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    let rotary = RotaryTable { cos: &cos, sin: &sin, rotary_dim: case.rotary_dim };
    let mut kernels = CpuKernels::with_isa(3, isa).unwrap();
    let shape = KvShape {
        num_layers: 2,
        num_blocks: 64,
        num_query_groups: heads.num_query_groups,
        head_dim: heads.head_dim,
    };
    let mut cache = kernels.new_kv(shape, case.kind).unwrap();
    let mut next_block = 63;
    let tables: Vec<Vec<u32>> = case
        .lengths
        .iter()
        .map(|len| {
            (0..len.div_ceil(BLOCK_TOKENS))
                .map(|_| {
                    next_block -= 1;
                    next_block
                })
                .collect()
        })
        .collect();
    let mut query_start = 0;
    let sequences: Vec<PagedSequence<'_>> = case
        .lengths
        .iter()
        .zip(&tables)
        .map(|(&query_len, block_table)| {
            query_start += query_len;
            PagedSequence { query_start: query_start - query_len, query_len, context_len: 0, block_table }
        })
        .collect();
    let step = AttentionStep { heads, rotary, sequences: &sequences, layer_idx: 1, sinks };
    let together = kernels.attention(&qkv, &step, &mut cache).unwrap();
    for sequence in &sequences {
        let (start, len) = (sequence.query_start as i64, sequence.query_len as i64);
        let own = qkv.narrow(0, start, len).contiguous();
        let bound = if case.kind == Kind::Float { 2e-5 } else { 0.02 };
        let expected = reference_attention(&own, heads, &rotary, sinks);
        let actual = together.narrow(0, start, len);
        assert!(max_difference(&actual, &expected) < bound, "{isa:?} {:?}", case.kind);

        let mut cache = kernels.new_kv(shape, case.kind).unwrap();
        let prefilled = sequence.query_len / 2;
        let spans =
            std::iter::once((0, prefilled)).chain((prefilled..sequence.query_len).map(|token| (token, 1)));
        for (context_len, query_len) in spans.filter(|&(_, query_len)| query_len > 0) {
            let span =
                PagedSequence { query_start: 0, query_len, context_len, block_table: sequence.block_table };
            let step = AttentionStep { heads, rotary, sequences: &[span], layer_idx: 0, sinks };
            let rows = own.narrow(0, context_len as i64, query_len as i64).contiguous();
            let piece = kernels.attention(&rows, &step, &mut cache).unwrap();
            let whole = actual.narrow(0, context_len as i64, query_len as i64);
            assert!(
                same_bits(&piece, &whole),
                "{isa:?}: tokens from {context_len} differ from the whole prefill"
            );
        }
    }
}

#[test]
fn attention_equals_libtorch_and_itself_in_pieces() {
    for isa in Isa::of_machine() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (heads, groups, head_dim, rotary_dim) in
                [(4, 2, 16, 16), (9, 3, 64, 64), (2, 2, 24, 12), (3, 1, 7, 0), (20, 1, 32, 8)]
            {
                let heads = HeadShape {
                    num_attention_heads: heads,
                    num_query_groups: groups,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    softcap: None,
                    window: None,
                };
                check_attention(isa, &AttentionCase { heads, rotary_dim, lengths: vec![1, 33, 70, 2], kind });
            }
        }
    }
}

#[test]
fn caps_and_windows_equal_libtorch_and_themselves_in_pieces() {
    for isa in Isa::of_machine() {
        for kind in [Kind::Float, Kind::BFloat16] {
            // Within a block, as long as one, one longer, over several, and longer than any sequence.
            for (softcap, window) in [
                (Some(0.5), None),
                (None, Some(1)),
                (None, Some(5)),
                (Some(2.0), Some(32)),
                (None, Some(33)),
                (None, Some(70)),
                (None, Some(500)),
            ] {
                for (num_attention_heads, num_query_groups) in [(4, 2), (20, 1)] {
                    let (head_dim, scale) = (16, 0.4);
                    let heads =
                        HeadShape { num_attention_heads, num_query_groups, head_dim, scale, softcap, window };
                    check_attention(
                        isa,
                        &AttentionCase { heads, rotary_dim: 8, lengths: vec![1, 33, 130, 2], kind },
                    );
                }
            }
        }
    }
}

#[test]
fn blocks_copy_and_stale_infinities_stay_out() {
    let heads = HeadShape {
        num_attention_heads: 2,
        num_query_groups: 1,
        head_dim: 8,
        scale: 0.3,
        softcap: None,
        window: None,
    };
    let rotary = RotaryTable { cos: &[], sin: &[], rotary_dim: 0 };
    let mut kernels = CpuKernels::new(1).unwrap();
    let shape = KvShape { num_layers: 1, num_blocks: 3, num_query_groups: 1, head_dim: 8 };
    let mut cache = kernels.new_kv(shape, Kind::Float).unwrap();
    let run = |kernels: &mut CpuKernels, cache: &mut _, qkv: &Tensor, context_len: usize, table: &[u32]| {
        let span = PagedSequence {
            query_start: 0,
            query_len: qkv.size()[0] as usize,
            context_len,
            block_table: table,
        };
        kernels.attention(
            qkv,
            &AttentionStep { heads, rotary, sequences: &[span], layer_idx: 0, sinks: None },
            cache,
        )
    };
    let infinite = Tensor::full([20, 32], f64::INFINITY, (Kind::Float, Device::Cpu));
    let _ = run(&mut kernels, &mut cache, &infinite, 0, &[0]).unwrap();
    let qkv = random(6, 32, 1);
    let out = run(&mut kernels, &mut cache, &qkv, 0, &[0]).unwrap();
    assert!(max_difference(&out, &reference_attention(&qkv, heads, &rotary, None)) < 1e-5);
    cache.copy_blocks(&[(0, 2)]).unwrap();
    let next = random(1, 32, 9);
    let original = run(&mut kernels, &mut cache, &next, 6, &[0]).unwrap();
    assert!(same_bits(&original, &run(&mut kernels, &mut cache, &next, 6, &[2]).unwrap()));
    assert!(cache.copy_blocks(&[(0, 3)]).is_err());
    let stored = cache.read_block(2).unwrap();
    cache.copy_blocks(&[(1, 2)]).unwrap();
    assert!(!same_bits(&original, &run(&mut kernels, &mut cache, &next, 6, &[2]).unwrap()));
    cache.write_block(1, &stored).unwrap();
    assert!(same_bits(&original, &run(&mut kernels, &mut cache, &next, 6, &[1]).unwrap()));
    assert!(cache.read_block(3).is_err() && cache.write_block(3, &stored).is_err());
    assert!(cache.write_block(0, &PackedBlock::Bf16(Vec::new())).is_err());
    assert!(cache.write_block(0, &PackedBlock::F32(vec![0.0])).is_err());
    assert!(run(&mut kernels, &mut cache, &next, 32, &[0]).is_err(), "a position without a block");
    assert!(run(&mut kernels, &mut cache, &next, 0, &[3]).is_err(), "a block that does not exist");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn linear_equals_libtorch_on_any_shape(rows in 1_usize..40, out_features in 1_usize..80, in_features in 1_usize..70) {
        check_linear(Isa::detect(), Kind::BFloat16, (rows, out_features, in_features));
    }
}

#[test]
fn rows_of_a_packed_layer_come_back_bit_for_bit() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut kernels = CpuKernels::new(1).unwrap();
        // Neither size is a multiple of a panel or of a group.
        let weight = random(45, 37, 6);
        let packed = pack(&mut kernels, &weight, None, Layout::Plain, kind);
        let ids = [44_usize, 0, 31, 32, 0];
        let expected = weight.index_select(0, &Tensor::from_slice(&ids.map(|id| id as i64))).to_kind(kind);
        let rows = CpuKernels::select_outputs(&packed, ids.into_iter()).unwrap();
        assert!(rows.equal(&expected), "{kind:?}");
        assert!(CpuKernels::select_outputs(&packed, [45].into_iter()).is_err());
        let gated = pack(&mut kernels, &random(64, 4, 7), None, Layout::Gated, kind);
        assert!(CpuKernels::select_outputs(&gated, [0].into_iter()).is_err());
    }
}
