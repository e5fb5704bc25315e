//! Linear layers of cuBLAS, and for which batch sizes results are bitwise identical.

use cuda_runtime::Device;
use tch::{Kind, Tensor};
use torch_ext::ExtError;
use torch_ext::cuda::blas;

use crate::cases::{Outcome, ensure};

pub(crate) fn all(device: &Device) -> Outcome {
    let bf16 = (Kind::BFloat16, device.tch());
    let (x, weight) = (Tensor::f_randn([256, 1024], bf16)?, Tensor::f_randn([640, 1024], bf16)?);
    let bias = Tensor::f_randn([640], bf16)?;
    let exact = x.f_to_kind(Kind::Double)?.f_matmul(&weight.f_to_kind(Kind::Double)?.f_transpose(0, 1)?)?;
    let error_of = |out: &Tensor, exact: &Tensor| -> Result<f64, ExtError> {
        let error = out.f_to_kind(Kind::Double)?.f_sub(exact)?;
        Ok(error.f_norm()?.f_double_value(&[])? / exact.f_norm()?.f_double_value(&[])?)
    };
    let mut facts = Vec::new();
    for (name, switch) in
        [("invariant", blas::prefer_invariant as fn() -> _), ("unconstrained", blas::unconstrained)]
    {
        switch()?;
        let mut out = Tensor::f_zeros([256, 640], bf16)?;
        blas::linear_out(&mut out, &x, &weight, None)?;
        let plain = error_of(&out, &exact)?;
        let mut biased = out.f_zeros_like()?;
        blas::linear_out(&mut biased, &x, &weight, Some(&bias))?;
        let biased = error_of(&biased, &exact.f_add(&bias)?)?;
        let mut sum = out.f_ones_like()?;
        blas::linear_add_out(&mut sum, &x, &weight)?;
        let sum = error_of(&sum, &exact.f_add_scalar(1.0)?)?;
        let mut logits = Tensor::f_zeros([256, 640], (Kind::Float, device.tch()))?;
        blas::linear_f32_out(&mut logits, &x, &weight)?;
        let logits = error_of(&logits, &exact)?;
        ensure(plain.max(biased).max(sum) < 4e-3 && logits < 1e-5, || {
            format!("errors {plain} {biased} {sum} {logits}")
        })?;
        let mut num_different = 0;
        for num_rows in [32, 64, 96, 128, 192] {
            let mut part = Tensor::f_zeros([num_rows, 640], bf16)?;
            blas::linear_out(&mut part, &x.f_narrow(0, 0, num_rows)?, &weight, None)?;
            num_different += i32::from(!part.f_equal(&out.f_narrow(0, 0, num_rows)?)?);
        }
        ensure(name != "invariant" || num_different == 0, || format!("{num_different} batch sizes differ"))?;
        facts.push(format!("{name}: relative error {plain:.1e}, float32 logits {logits:.1e}, {num_different} of 5 batch sizes differ"));
    }
    let refused = blas::linear_out(&mut Tensor::f_zeros([4, 4], bf16)?, &x, &weight, None);
    ensure(matches!(refused, Err(ExtError::BadTensor { .. })), || format!("a wrong shape: {refused:?}"))?;
    Ok(facts.join("; "))
}
