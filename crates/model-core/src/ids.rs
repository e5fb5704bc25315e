//! Token ids and positions, on the host or on the device.

use tch::Tensor;

use crate::ModelError;

/// Row numbers of an embedding table.
#[derive(Clone, Copy)]
pub(crate) enum Ids<'a> {
    /// Known to the host, checked against the table.
    Host(&'a [u32]),
    /// int32 `[num_tokens]` on the model's device, where a sampler that knows the table put them.
    Device(&'a Tensor),
}

impl Ids<'_> {
    /// How many there are.
    pub(crate) fn len(&self) -> Result<usize, ModelError> {
        match self {
            Self::Host(ids) => Ok(ids.len()),
            Self::Device(ids) => Ok(ids.size1()? as usize),
        }
    }

    /// The ids on the host, for backends that compute there.
    pub(crate) fn on_host(&self, backend: &'static str) -> Result<&[u32], ModelError> {
        match self {
            Self::Host(ids) => Ok(ids),
            Self::Device(_) => {
                Err(ModelError::NoBackend { backend, reason: "the token ids are on another device" })
            }
        }
    }
}
