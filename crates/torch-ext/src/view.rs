//! Borrowed slices over the memory of CPU tensors.
#![expect(unsafe_code, reason = "a tensor's memory is reached through libtorch's raw pointer")]

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::{BadTensor, ExtError};

fn check(tensor: &Tensor, what: &'static str, kind: Kind) -> Result<usize, ExtError> {
    if tensor.device() != Device::Cpu || tensor.kind() != kind || !tensor.is_contiguous() {
        return Err(ExtError::BadTensor(BadTensor {
            what,
            expected: format!("a contiguous {kind:?} tensor on the CPU"),
            actual: format!(
                "{:?} on {:?}, contiguous: {}",
                tensor.kind(),
                tensor.device(),
                tensor.is_contiguous()
            ),
        }));
    }
    Ok(tensor.numel())
}

macro_rules! views {
    ($elem:ty, $kind:ident, $name:ident, $name_mut:ident, $type_name:literal) => {
        #[doc = concat!("The elements of a contiguous ", $type_name, " CPU tensor of any shape.")]
        ///
        /// # Errors
        /// When the tensor has another type or device, or is not contiguous.
        pub fn $name<'a>(tensor: &'a Tensor, what: &'static str) -> Result<&'a [$elem], ExtError> {
            let num_elems = check(tensor, what, Kind::$kind)?;
            if num_elems == 0 {
                return Ok(&[]);
            }
            // SAFETY: the tensor is contiguous, of this type, in host memory, with `num_elems` elements (checked
            // above), and the borrow keeps its storage alive. Tensors that share a storage are never written to
            // while one of them is borrowed: only `f32_slice_mut` and `bf16_slice_mut` write, to fresh tensors.
            Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<$elem>(), num_elems) })
        }

        #[doc = concat!("The same for writing, of a ", $type_name, " tensor that shares its storage with no other.")]
        ///
        /// # Errors
        /// When the tensor has another type or device, or is not contiguous.
        pub fn $name_mut<'a>(tensor: &'a mut Tensor, what: &'static str) -> Result<&'a mut [$elem], ExtError> {
            let num_elems = check(tensor, what, Kind::$kind)?;
            if num_elems == 0 {
                return Ok(&mut []);
            }
            // SAFETY: as above, and the borrow is exclusive.
            Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<$elem>(), num_elems) })
        }
    };
}
views!(f32, Float, f32_slice, f32_slice_mut, "float32");
views!(bf16, BFloat16, bf16_slice, bf16_slice_mut, "bfloat16");

/// The bytes of a contiguous float32 or bfloat16 CPU tensor, little endian as the machine is.
///
/// # Errors
/// When the tensor has another type or device, or is not contiguous.
pub fn bytes<'a>(tensor: &'a Tensor, what: &'static str) -> Result<&'a [u8], ExtError> {
    let num_bytes = match tensor.kind() {
        Kind::BFloat16 => check(tensor, what, Kind::BFloat16)? * 2,
        _ => check(tensor, what, Kind::Float)? * 4,
    };
    if num_bytes == 0 {
        return Ok(&[]);
    }
    // SAFETY: the tensor is contiguous in host memory with `num_bytes` bytes (checked above), any bytes are valid
    // `u8`, and the borrow keeps the storage alive.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), num_bytes) })
}
