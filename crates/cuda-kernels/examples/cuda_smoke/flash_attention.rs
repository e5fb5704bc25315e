//! Flash attention of packed sequences against attention written out.

use std::error::Error;

use cuda_runtime::Device;
use tch::{Kind, Tensor};
use torch_ext::ExtError;
use torch_ext::cuda::flash::{self, Mask, PackedRows, Varlen};

use crate::cases::{Outcome, ensure};

/// Attention of one sequence written out, in float32.
fn plain_attention(qkv: [&Tensor; 3], scale: f64, is_causal: bool) -> Result<Tensor, ExtError> {
    let [q, k, v] =
        qkv.map(|tensor| tensor.f_to_kind(Kind::Float).and_then(|tensor| tensor.f_transpose(0, 1)));
    let (q, k, v) = (q?, k?, v?);
    // [heads, tokens, d]
    let repeats = q.size()[0] / k.size()[0];
    let (k, v) = (
        k.f_repeat_interleave_self_int(repeats, 0, None)?,
        v.f_repeat_interleave_self_int(repeats, 0, None)?,
    );
    let mut scores = q.f_matmul(&k.f_transpose(1, 2)?)?.f_mul_scalar(scale)?;
    if is_causal {
        let later = scores.f_ones_like()?.f_triu(1 + k.size()[1] - q.size()[1])?;
        scores = scores.f_masked_fill(&later.f_to_kind(Kind::Bool)?, f64::NEG_INFINITY)?;
    }
    Ok(scores.f_softmax(-1, Kind::Float)?.f_matmul(&v)?.f_transpose(0, 1)?)
}

pub(crate) fn all(device: &Device) -> Outcome {
    let lens = [1_i64, 77, 128, 300];
    let starts: Vec<i32> = lens
        .iter()
        .scan(0, |at, len| {
            *at += *len as i32;
            Some(*at)
        })
        .collect();
    let starts = [&[0], starts.as_slice()].concat();
    let total: i64 = lens.iter().sum();
    let cu_seqlens = Tensor::f_from_slice(&starts)?.f_to_device(device.tch())?;
    let mut worst = 0.0_f64;
    for (kind, heads, groups, d) in [
        (Kind::BFloat16, 8, 8, 128),
        (Kind::BFloat16, 8, 2, 64),
        (Kind::Half, 4, 1, 96),
        (Kind::BFloat16, 2, 2, 256),
    ] {
        let make = |num: i64| Tensor::f_randn([total, num, d], (kind, device.tch()));
        let (q, k, v) = (make(heads)?, make(groups)?, make(groups)?);
        let scale = 1.0 / (d as f64).sqrt();
        let out = flash::varlen([&q, &k, &v], PackedRows { cu_seqlens: &cu_seqlens, max_len: 300 }, scale)?;
        ensure(out.size() == [total, heads, d] && out.kind() == kind, || format!("{out:?}"))?;
        for (seq_idx, len) in lens.iter().enumerate() {
            let part = |tensor: &Tensor| tensor.f_narrow(0, i64::from(starts[seq_idx]), *len);
            let exact = plain_attention([&part(&q)?, &part(&k)?, &part(&v)?], scale, true)?;
            let difference =
                part(&out)?.f_to_kind(Kind::Float)?.f_sub(&exact)?.f_abs()?.f_max()?.f_double_value(&[])?;
            worst = worst.max(difference);
        }
    }
    ensure(worst < 2e-2, || format!("differs by {worst}"))?;
    let used = used_keys(device)?;
    ensure(used < 2e-2, || format!("with used lengths of keys it differs by {used}"))?;
    let rows = PackedRows { cu_seqlens: &cu_seqlens, max_len: 300 };
    let bad = flash::varlen([&cu_seqlens, &cu_seqlens, &cu_seqlens], rows, 1.0);
    ensure(matches!(bad, Err(ExtError::BadTensor { .. })), || format!("a wrong type: {bad:?}"))?;
    Ok(format!("largest difference from plain float32 attention {worst:.1e}, with used lengths {used:.1e}"))
}

/// One query a sequence against slots of 64 keys of which some are used, as decoding does.
fn used_keys(device: &Device) -> Result<f64, Box<dyn Error>> {
    let used = [3_i32, 64, 17];
    let bf16 = (Kind::BFloat16, device.tch());
    let (q, k, v) = (
        Tensor::f_randn([3, 4, 64], bf16)?,
        Tensor::f_randn([192, 4, 64], bf16)?,
        Tensor::f_randn([192, 4, 64], bf16)?,
    );
    let on_device = |values: &[i32]| Tensor::f_from_slice(values)?.f_to_device(device.tch());
    let out = flash::varlen_with(&Varlen {
        q: &q,
        k: &k,
        v: &v,
        queries: PackedRows { cu_seqlens: &on_device(&[0, 1, 2, 3])?, max_len: 1 },
        keys: PackedRows { cu_seqlens: &on_device(&[0, 64, 128, 192])?, max_len: 64 },
        used_keys: Some(&on_device(&used)?),
        scale: 0.125,
        mask: Mask::Full,
    })?;
    let mut worst = 0.0_f64;
    for (seq_idx, len) in (0..).zip(used) {
        let part = |tensor: &Tensor| tensor.f_narrow(0, 64 * seq_idx, i64::from(len));
        let exact = plain_attention([&q.f_narrow(0, seq_idx, 1)?, &part(&k)?, &part(&v)?], 0.125, false)?;
        let ours = out.f_narrow(0, seq_idx, 1)?.f_to_kind(Kind::Float)?;
        worst = worst.max(ours.f_sub(&exact)?.f_abs()?.f_max()?.f_double_value(&[])?);
    }
    Ok(worst)
}
