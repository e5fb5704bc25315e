//! The arguments of a kernel, as the driver wants them.

use bytemuck::Pod;
use tch::{Kind, Tensor};
use torch_ext::BadTensor;

use super::Device;
use super::driver::DeviceAddress;
use crate::CudaError;

/// One argument of a kernel. It borrows the tensor whose address it is.
#[derive(Clone, Debug)]
pub struct Arg<'a>(Value<'a>);

#[derive(Clone, Debug)]
enum Value<'a> {
    Tensor {
        tensor: &'a Tensor,
        what: &'static str,
    },
    /// Up to 8 bytes, in as many as the type has.
    Small {
        bytes: [u8; 8],
        size_bytes: usize,
    },
    Large(Box<[u8]>),
}

impl<'a> Arg<'a> {
    /// The address of a contiguous tensor of type `kind`; its GPU is checked at the launch. `what` names it in errors.
    ///
    /// # Errors
    /// When the tensor has another type or is not contiguous.
    pub fn tensor(tensor: &'a Tensor, kind: Kind, what: &'static str) -> Result<Self, CudaError> {
        if tensor.kind() != kind || !tensor.is_contiguous() {
            return Err(CudaError::BadTensor(BadTensor {
                what,
                expected: format!("a contiguous tensor of type {kind:?}"),
                actual: format!("{:?}, contiguous: {}", tensor.kind(), tensor.is_contiguous()),
            }));
        }
        Ok(Self(Value::Tensor { tensor, what }))
    }

    /// The same for an argument that may be left out: the null address then.
    ///
    /// # Errors
    /// When the tensor has another type or is not contiguous.
    pub fn optional(tensor: Option<&'a Tensor>, kind: Kind, what: &'static str) -> Result<Self, CudaError> {
        tensor.map_or_else(|| Ok(Self::null()), |tensor| Self::tensor(tensor, kind, what))
    }

    /// The null address.
    pub fn null() -> Self {
        Self::value(&0_u64)
    }

    /// A plain value: a number, or a structure that a kernel takes by value, laid out as in C.
    pub fn value<T: Pod>(value: &T) -> Self {
        let from = bytemuck::bytes_of(value);
        let mut bytes = [0; 8];
        match bytes.get_mut(..from.len()) {
            Some(to) => {
                to.copy_from_slice(from);
                Self(Value::Small { bytes, size_bytes: from.len() })
            }
            None => Self(Value::Large(from.into())),
        }
    }

    /// The bytes that the driver copies for this argument.
    pub(super) fn bytes(&self, device: &Device) -> Result<Bytes<'_>, CudaError> {
        Ok(match &self.0 {
            Value::Tensor { tensor, what } => Bytes::Small(address(tensor, device, what)?.to_ne_bytes(), 8),
            Value::Small { bytes, size_bytes } => Bytes::Small(*bytes, *size_bytes),
            Value::Large(bytes) => Bytes::Large(bytes),
        })
    }
}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(impl From<$number> for Arg<'_> {
            fn from(number: $number) -> Self {
                Self::value(&number)
            }
        })*
    };
}
numbers!(i32 u32 i64 u64 f32);

/// An argument's bytes, at an address that stays while this lives unmoved.
pub(super) enum Bytes<'a> {
    Small([u8; 8], usize),
    Large(&'a [u8]),
}

impl Bytes<'_> {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Small(bytes, size_bytes) => &bytes[..*size_bytes],
            Self::Large(bytes) => bytes,
        }
    }
}

/// The address of a contiguous tensor on `device`; `what` names it in errors.
///
/// # Errors
/// When it is on another device or not contiguous.
pub fn address(tensor: &Tensor, device: &Device, what: &'static str) -> Result<DeviceAddress, CudaError> {
    if tensor.device() != device.tch() || !tensor.is_contiguous() {
        return Err(CudaError::BadTensor(BadTensor {
            what,
            expected: format!("a contiguous tensor on {:?}", device.tch()),
            actual: format!("on {:?}, contiguous: {}", tensor.device(), tensor.is_contiguous()),
        }));
    }
    Ok(tensor.data_ptr() as DeviceAddress)
}
