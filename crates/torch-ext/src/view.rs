//! Borrowed slices over the memory of CPU tensors.
#![expect(unsafe_code, reason = "a tensor's memory is reached through libtorch's raw pointer")]

use tch::{Device, Kind, Tensor};

use crate::ExtError;

fn check(tensor: &Tensor, what: &'static str, kind: Kind) -> Result<usize, ExtError> {
    if tensor.device() != Device::Cpu || tensor.kind() != kind || !tensor.is_contiguous() {
        return Err(ExtError::BadTensor {
            what,
            expected: format!("a contiguous {kind:?} tensor on the CPU"),
            actual: format!("{:?} on {:?}, contiguous: {}", tensor.kind(), tensor.device(), tensor.is_contiguous()),
        });
    }
    Ok(tensor.numel())
}

/// The elements of a contiguous float32 CPU tensor of any shape.
///
/// # Errors
/// When the tensor has another type or device, or is not contiguous.
pub fn f32_slice<'a>(tensor: &'a Tensor, what: &'static str) -> Result<&'a [f32], ExtError> {
    let num_elems = check(tensor, what, Kind::Float)?;
    if num_elems == 0 {
        return Ok(&[]);
    }
    // SAFETY: the tensor is contiguous float32 in host memory with `num_elems` elements (checked above), and the
    // borrow keeps its storage alive. Nothing writes through another alias while engine code holds the borrow.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), num_elems) })
}
