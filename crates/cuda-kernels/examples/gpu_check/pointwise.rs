//! The pointwise kernels against references in float64.

use cuda_kernels::{Activate, Embed, Gating, LayerKv, NormHeads, Normalize, RopeAndCache, RotaryArrays};
use model_spec::{Nonlinearity, Normalization};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::support::{Checked, Gpu, Heads, KINDS, double, relative_error, same, tolerance};

pub(crate) fn embedding(gpu: &Gpu) -> Outcome {
    let width = 1032;
    for kind in KINDS {
        let kernels = gpu.kernels(kind, 64, 1)?;
        let table = gpu.random(&[77, width], kind)?;
        let tokens = gpu.ints(&[0, 76, 5, 77, -1], &[5])?;
        let out = gpu.unset(&[5, width], kind)?;
        kernels.embed(&gpu.stream, &Embed { tokens: &tokens, table: &table, out: &out })?;
        for (row, token) in [(0, 0), (1, 76), (2, 5)] {
            let is_right = same(&out.f_get(row)?, &table.f_get(token)?)?;
            ensure(is_right, || format!("{kind:?}, row {row}"))?;
        }
        let num_nan = out.f_narrow(0, 3, 2)?.f_isnan()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        ensure(num_nan == 2 * width, || format!("{kind:?}: rows out of range are not all NaN"))?;
    }
    Ok("three types, rows out of range".to_owned())
}

pub(crate) fn norms(gpu: &Gpu) -> Outcome {
    let mut worst: f64 = 0.0;
    for kind in KINDS {
        for (num_rows, width) in [(1, 64), (3, 4544), (5, 8192), (2, 16_384), (7, 2056)] {
            for norm in [Normalization::RmsNorm, Normalization::LayerNorm] {
                for has_bias in [false, true] {
                    let error = check_norm(gpu, kind, norm, [num_rows, width], has_bias)?;
                    ensure(error < tolerance(kind), || {
                        format!(
                            "{norm:?} {kind:?} [{num_rows}, {width}], bias: {has_bias}: off by {error:.1e}"
                        )
                    })?;
                    worst = worst.max(error);
                }
            }
        }
    }
    Ok(format!("off by at most {worst:.1e}"))
}

fn check_norm(
    gpu: &Gpu,
    kind: Kind,
    norm: Normalization,
    shape: [i64; 2],
    has_bias: bool,
) -> Result<f64, Box<dyn std::error::Error>> {
    let kernels = gpu.kernels(kind, 64, 1)?;
    let x = gpu.random(&shape, kind)?;
    let (gain, bias) = (gpu.random(&shape[1..], Kind::Float)?, gpu.random(&shape[1..], Kind::Float)?);
    let out = gpu.unset(&shape, kind)?;
    kernels.norm(
        &gpu.stream,
        &Normalize {
            normalization: norm,
            x: &x,
            gain: &gain,
            bias: has_bias.then_some(&bias),
            eps: 1e-5,
            out: &out,
        },
    )?;
    let x = double(&x)?;
    let centred = match norm {
        Normalization::RmsNorm => x,
        Normalization::LayerNorm => x.f_sub(&x.f_mean_dim(1, true, Kind::Double)?)?,
    };
    let square = centred.f_square()?.f_mean_dim(1, true, Kind::Double)?;
    let mut expect = centred.f_mul(&square.f_add_scalar(1e-5)?.f_rsqrt()?)?.f_mul(&gain)?;
    if has_bias {
        expect = expect.f_add(&bias)?;
    }
    relative_error(&out, &expect)
}

pub(crate) fn norms_of_heads(gpu: &Gpu) -> Outcome {
    let mut worst: f64 = 0.0;
    for (kind, d, q) in
        [(Kind::Float, 128, 1), (Kind::BFloat16, 128, 4), (Kind::Half, 80, 7), (Kind::BFloat16, 256, 2)]
    {
        for normalization in [Normalization::RmsNorm, Normalization::LayerNorm] {
            for (groups, num_rows) in [(1, 1), (8, 5), (3, 700)] {
                let heads = Heads::new(kind, d, q, groups);
                for is_of_each in [false, true] {
                    let error = check_norm_of_heads(gpu, &heads, normalization, (num_rows, is_of_each))?;
                    ensure(error < tolerance(kind), || {
                        format!(
                            "{normalization:?} {kind:?} {d} elements, {q} queries, {groups} groups, of each head \
                             {is_of_each}: off by {error:.1e}"
                        )
                    })?;
                    worst = worst.max(error);
                }
            }
        }
    }
    Ok(format!("off by at most {worst:.1e}"))
}

/// A LayerNorm with biases, a root mean square without; values keep their bits.
fn check_norm_of_heads(
    gpu: &Gpu,
    heads: &Heads,
    normalization: Normalization,
    (n, is_of_each): (i64, bool),
) -> Result<f64, Box<dyn std::error::Error>> {
    let &Heads { kind, head_dim: d, queries: q, groups: g, .. } = heads;
    let kernels = gpu.kernels(kind, d as u32, q as u32)?;
    let qkv = gpu.random(&[n, g, q + 2, d], kind)?;
    let vector = |num_heads: i64| match is_of_each {
        true => gpu.random(&[g * num_heads, d], Kind::Float),
        false => gpu.random(&[d], Kind::Float),
    };
    let (gains, biases) = ([vector(q)?, vector(1)?], [vector(q)?, vector(1)?]);
    // Of the heads of a group, or of all.
    let of_heads = |values: &Tensor| match is_of_each {
        true => values.f_view([g, -1, d]),
        false => values.f_view([1, 1, d]),
    };
    let is_centred = normalization == Normalization::LayerNorm;
    let out = qkv.f_detach_copy()?.f_reshape([n, g * (q + 2) * d])?;
    let launch = NormHeads {
        normalization,
        qkv: &out,
        gains: [&gains[0], &gains[1]],
        biases: [0, 1].map(|part: usize| is_centred.then_some(&biases[part])),
        eps: 1e-5,
    };
    kernels.norm_heads(&gpu.stream, &launch)?;
    let out = out.f_reshape([n, g, q + 2, d])?;
    ensure(same(&out.f_select(2, q + 1)?, &qkv.f_select(2, q + 1)?)?, || "values were changed".to_owned())?;
    let mut worst: f64 = 0.0;
    for (part, (start, len)) in [(0, q), (q, 1)].into_iter().enumerate() {
        let x = double(&qkv.f_narrow(2, start, len)?)?;
        let x = if is_centred { x.f_sub(&x.f_mean_dim(3, true, Kind::Double)?)? } else { x };
        let square = x.f_square()?.f_mean_dim(3, true, Kind::Double)?;
        let mut expect = x.f_mul(&square.f_add_scalar(1e-5)?.f_rsqrt()?)?.f_mul(&of_heads(&gains[part])?)?;
        if is_centred {
            expect = expect.f_add(&of_heads(&biases[part])?)?;
        }
        worst = worst.max(relative_error(&out.f_narrow(2, start, len)?, &expect)?);
    }
    Ok(worst)
}

pub(crate) const NONLINEARITIES: [Nonlinearity; 6] = [
    Nonlinearity::Gelu,
    Nonlinearity::GeluTanh,
    Nonlinearity::QuickGelu,
    Nonlinearity::Silu,
    Nonlinearity::Relu,
    Nonlinearity::SquaredRelu,
];

pub(crate) fn activations(gpu: &Gpu) -> Outcome {
    for kind in KINDS {
        let kernels = gpu.kernels(kind, 64, 1)?;
        for (num_rows, width) in [(1, 11_008), (3, 5440), (5, 77)] {
            for gating in [Gating::Plain, Gating::Gated] {
                let halves = if gating == Gating::Gated { 2 } else { 1 };
                let x = gpu.random(&[num_rows, halves * width], kind)?.f_mul_scalar(2.0)?;
                let out = gpu.unset(&[num_rows, width], kind)?;
                for activation in NONLINEARITIES {
                    kernels.activate(&gpu.stream, &Activate { activation, gating, x: &x, out: &out })?;
                    let mut expect = activated(&double(&x.f_narrow(1, 0, width)?)?, activation)?;
                    if gating == Gating::Gated {
                        expect = expect.f_mul(&double(&x.f_narrow(1, width, width)?)?)?;
                    }
                    let error = relative_error(&out, &expect)?;
                    ensure(error < tolerance(kind), || {
                        format!(
                            "{activation:?} {gating:?} {kind:?} [{num_rows}, {width}] is off by {error:.1e}"
                        )
                    })?;
                }
            }
        }
    }
    Ok("six functions, plain and gated".to_owned())
}

fn activated(x: &Tensor, activation: Nonlinearity) -> Result<Tensor, Box<dyn std::error::Error>> {
    Ok(match activation {
        Nonlinearity::Gelu => x.f_gelu("none")?,
        Nonlinearity::GeluTanh => x.f_gelu("tanh")?,
        // No kernel has it.
        Nonlinearity::ClampedQuickGelu => return Err("an MLP with limits is not computed".into()),
        Nonlinearity::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
        Nonlinearity::Silu => x.f_silu()?,
        Nonlinearity::Relu => x.f_relu()?,
        Nonlinearity::SquaredRelu => x.f_relu()?.f_square()?,
    })
}

/// The tables that a model makes: cos and sin of position * base^(-i / half).
pub(crate) fn rotary_tables(
    gpu: &Gpu,
    max_positions: i64,
    rotary_dim: i64,
) -> Result<[Tensor; 2], Box<dyn std::error::Error>> {
    let half = rotary_dim / 2;
    let angle = |position: i64, i: i64| position as f64 * 1e4_f64.powf(-(i as f64) / half as f64);
    let angles: Vec<f64> = (0..max_positions).flat_map(|p| (0..half).map(move |i| angle(p, i))).collect();
    let angles = Tensor::f_from_slice(&angles)?.f_reshape([max_positions, half])?;
    let table = |values: Tensor| gpu.put(&values.f_to_kind(Kind::Float)?);
    Ok([table(angles.f_cos()?)?, table(angles.f_sin()?)?])
}

/// Rotated heads, `x`: `[n, .., d]`, in float64.
pub(crate) fn rotated(
    x: &Tensor,
    tables: &[Tensor; 2],
    positions: &Tensor,
) -> Result<Tensor, Box<dyn std::error::Error>> {
    let half = tables[0].size()[1];
    let row = |table: &Tensor| -> Result<Tensor, tch::TchError> {
        let row = table.f_index_select(0, &positions.f_clamp_min(0)?)?.f_to_kind(Kind::Double)?;
        row.f_unsqueeze(1)?.f_unsqueeze(1) // [n, 1, 1, half]
    };
    let (cos, sin) = (row(&tables[0])?, row(&tables[1])?);
    let x = double(x)?;
    let width = x.size()[3];
    let (a, b) = (x.f_narrow(3, 0, half)?, x.f_narrow(3, half, half)?);
    let first = a.f_mul(&cos)?.f_sub(&b.f_mul(&sin)?)?;
    let second = b.f_mul(&cos)?.f_add(&a.f_mul(&sin)?)?;
    Ok(Tensor::f_cat(&[first, second, x.f_narrow(3, 2 * half, width - 2 * half)?], 3)?)
}

pub(crate) fn rope(gpu: &Gpu) -> Outcome {
    let mut num_cases = 0;
    for (kind, d, q) in [(Kind::Float, 128, 1), (Kind::BFloat16, 64, 4), (Kind::Half, 80, 1)] {
        for rotary_dim in [d, d / 4, d / 2, 0] {
            for (num_groups, num_rows) in [(1, 1), (3, 5)] {
                let heads = Heads::new(kind, d, q, num_groups);
                for heads in [heads, heads.with_fp8_kv()] {
                    check_rope(gpu, &heads, rotary_dim, num_rows).map_err(|error| {
                        let fp8 = heads.has_fp8_kv;
                        format!(
                            "{kind:?}, {d} elements, {q} queries, {rotary_dim} rotated, FP8 {fp8}: {error}"
                        )
                    })?;
                    num_cases += 1;
                }
            }
        }
    }
    Ok(format!("{num_cases} shapes"))
}

fn check_rope(gpu: &Gpu, heads: &Heads, rotary_dim: i64, n: i64) -> Checked {
    let &Heads { kind, head_dim: d, queries: q, groups: g, .. } = heads;
    let kernels = gpu.kernels_for(heads)?;
    let qkv = gpu.random(&[n, g, q + 2, d], kind)?;
    let positions = gpu.ints(&[3, -1, 49, 0, 7][..n as usize], &[n])?;
    let slots = gpu.ints(&[40, 1, 287, -1, 64][..n as usize], &[n])?;
    let empty = gpu.zeros(&[9, g, 32, d], kind)?;
    let (keys, values) = (heads.cached(&empty)?, heads.cached(&empty)?);
    let (q_out, k_out) = (gpu.unset(&[n, g * q, d], kind)?, gpu.unset(&[n, g, d], kind)?);
    let v_out = gpu.unset(&[n, g, d], kind)?;
    let tables = rotary_tables(gpu, 50, rotary_dim)?;
    let flat = qkv.f_reshape([n, g * (q + 2) * d])?;
    kernels.rope_and_cache(
        &gpu.stream,
        &RopeAndCache {
            qkv: &flat,
            positions: &positions,
            slots: &slots,
            rotary: (rotary_dim > 0).then_some(RotaryArrays { cos: &tables[0], sin: &tables[1] }),
            cache: LayerKv { keys: &keys, values: &values },
            q_out: &q_out,
            kv_out: Some((&k_out, &v_out)),
        },
    )?;
    let mut expect = double(&qkv.f_narrow(2, 0, q + 1)?)?;
    if rotary_dim > 0 {
        expect = rotated(&expect, &tables, &positions)?;
    }
    for row in (0..n).filter(|&row| row != 1) {
        let queries = expect.f_get(row)?.f_narrow(1, 0, q)?.f_reshape([g * q, d])?;
        let error = relative_error(&q_out.f_get(row)?, &queries)?;
        ensure(error < tolerance(kind), || format!("row {row} is off by {error:.1e}"))?;
        let error = relative_error(&k_out.f_get(row)?, &expect.f_get(row)?.f_select(1, q)?)?;
        // Three bits of a mantissa are off by up to a 16th.
        let limit = if heads.has_fp8_kv { 0.04 } else { tolerance(kind) };
        ensure(error < limit, || format!("the key of row {row} is off by {error:.1e}"))?;
        let value = heads.rounded(&qkv.f_get(row)?.f_select(1, q + 1)?)?;
        ensure(same(&v_out.f_get(row)?, &value)?, || format!("values of row {row}"))?;
        let slot = slots.f_int64_value(&[row])?;
        if slot >= 0 {
            let at = |cache: &Tensor| -> Result<Tensor, Box<dyn std::error::Error>> {
                Ok(heads.uncached(cache)?.f_get(slot / 32)?.f_select(1, slot % 32)?.f_to_kind(kind)?)
            };
            let is_cached =
                same(&at(&keys)?, &k_out.f_get(row)?)? && same(&at(&values)?, &v_out.f_get(row)?)?;
            ensure(is_cached, || format!("slot {slot} does not hold row {row}"))?;
        }
    }
    let num_used =
        heads.uncached(&values)?.f_count_nonzero_dim_intlist([1, 2, 3])?.f_gt(0)?.f_sum(Kind::Int64)?;
    let num_cached = if n == 1 { 1 } else { 3 };
    ensure(num_used.f_int64_value(&[])? == num_cached, || "other blocks were written to".to_owned())
}
