//! Checks of the tensors that a kernel is given.

use cuda_runtime::{DeviceAddress, Stream};
use tch::{Kind, Tensor};
use torch_ext::BadTensor;

use crate::KernelError;

/// An address in the memory of a GPU, 0 for what is left out.
pub(crate) type Address = DeviceAddress;

/// Checks against the GPU of a stream.
pub(crate) struct Tensors<'a> {
    stream: &'a Stream,
}

impl<'a> Tensors<'a> {
    pub(crate) fn on(stream: &'a Stream) -> Self {
        Self { stream }
    }

    /// The address of a contiguous tensor of this type and shape on the stream's GPU.
    pub(crate) fn address(
        &self,
        tensor: &Tensor,
        what: &'static str,
        kind: Kind,
        shape: &[i64],
    ) -> Result<Address, KernelError> {
        if tensor.kind() != kind || tensor.size() != shape {
            return Err(KernelError::BadTensor(BadTensor {
                what,
                expected: format!("of type {kind:?} and shape {shape:?}"),
                actual: format!("{:?} {:?}", tensor.kind(), tensor.size()),
            }));
        }
        Ok(cuda_runtime::address(tensor, self.stream.device(), what)?)
    }

    /// The same for one that may be left out.
    pub(crate) fn optional(
        &self,
        tensor: Option<&Tensor>,
        what: &'static str,
        kind: Kind,
        shape: &[i64],
    ) -> Result<Address, KernelError> {
        tensor.map_or(Ok(0), |tensor| self.address(tensor, what, kind, shape))
    }
}

/// The sizes of a tensor of `N` dimensions.
pub(crate) fn shape_of<const N: usize>(tensor: &Tensor, what: &'static str) -> Result<[i64; N], KernelError> {
    tensor.size().try_into().map_err(|shape: Vec<i64>| {
        KernelError::BadTensor(BadTensor {
            what,
            expected: format!("a tensor of {N} dimensions"),
            actual: format!("of shape {shape:?}"),
        })
    })
}

/// A size as kernels take it.
pub(crate) fn int(size: i64, what: &'static str) -> Result<i32, KernelError> {
    i32::try_from(size).map_err(|_| bad(what, "smaller than 2^31", size))
}

/// A number of blocks or threads.
pub(crate) fn count(size: i64, what: &'static str) -> Result<u32, KernelError> {
    int(size, what)
        .and_then(|size| u32::try_from(size).map_err(|_| bad(what, "not negative", i64::from(size))))
}

/// Says that a size is not what a kernel takes.
pub(crate) fn bad(what: &'static str, expected: &str, actual: i64) -> KernelError {
    KernelError::BadTensor(BadTensor { what, expected: expected.to_owned(), actual: actual.to_string() })
}
