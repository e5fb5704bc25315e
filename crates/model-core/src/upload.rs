//! Small tables from the host to the device that computes.

use tch::kind::Element;
use tch::{Device, Tensor};

use crate::ModelError;

/// A list of the host on `device`; a GPU is not waited for.
pub(crate) fn to_device<T: Element>(values: &[T], device: Device) -> Result<Tensor, ModelError> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => Ok(torch_ext::cuda::send(values, index)?),
        _ => Ok(Tensor::f_from_slice(values)?.f_to_device(device)?),
    }
}
