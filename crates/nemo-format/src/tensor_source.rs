//! The trait through which everything above this crate reads weights: names, shapes, bytes.

use model_spec::Region;

use crate::{DType, FormatError, Fp8Weights};

/// Element type and global shape of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMeta {
    /// The element type.
    pub dtype: DType,
    /// The global shape, outermost axis first.
    pub shape: Vec<u64>,
}

impl TensorMeta {
    /// Number of elements, or `None` when the product overflows.
    pub fn num_elems(&self) -> Option<u64> {
        self.shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim))
    }

    /// Size in bytes, or `None` when it overflows.
    pub fn size_bytes(&self) -> Option<u64> {
        self.num_elems()?.checked_mul(self.dtype.size_bytes() as u64)
    }

    /// Checks that `region` lies inside the tensor `name` and that a buffer of `dst_bytes` holds just its elements.
    ///
    /// # Errors
    /// When either is not so.
    pub fn check_region(&self, name: &str, region: &Region, dst_bytes: usize) -> Result<(), FormatError> {
        let inside = region.ranges.len() == self.shape.len()
            && region
                .ranges
                .iter()
                .zip(&self.shape)
                .all(|(range, &dim)| range.start <= range.end && range.end <= dim);
        if !inside {
            let (region, shape) = (region.ranges.clone(), self.shape.clone());
            return Err(FormatError::RegionOutside { name: name.to_owned(), region, shape });
        }
        let part = Self { dtype: self.dtype, shape: region.shape() };
        let expected_bytes = part.size_bytes().unwrap_or(u64::MAX);
        if expected_bytes != dst_bytes as u64 {
            let actual_bytes = dst_bytes as u64;
            return Err(FormatError::BufferSize { name: name.to_owned(), expected_bytes, actual_bytes });
        }
        Ok(())
    }
}

/// Where weights come from. Names are canonical Megatron-Core names with the layer number inside and
/// TransformerEngine's fused norm names (`model.decoder.layers.3.self_attention.linear_qkv.layer_norm_weight`),
/// whatever the file's own layout: stacked layers, tensor-parallel pieces and prefixes are undone by the reader.
pub trait TensorSource: Send + Sync {
    /// All tensor names, in a stable order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Element type and global shape, or `None` when there is no such tensor.
    fn meta(&self, name: &str) -> Option<&TensorMeta>;

    /// Fills `dst`, row-major and little endian, with the elements of `region`.
    ///
    /// # Errors
    /// When the tensor is missing, the region leaves it, `dst` has another size, or the bytes cannot be read.
    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError>;

    /// The whole tensor's bytes where they lie in a mapped file in one row-major piece, so that a loader can
    /// transform them without a copy between.
    fn mapped_bytes(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    /// The weights that are stored in FP8, where there are such; otherwise they are numbers like others.
    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        None
    }

    /// The whole tensor, copied.
    ///
    /// # Errors
    /// As [`TensorSource::read`].
    fn read_whole(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        let meta = self.meta(name).ok_or_else(|| FormatError::MissingTensor { name: name.to_owned() })?;
        let too_large =
            || FormatError::BadTensor { name: name.to_owned(), reason: "its size overflows".to_owned() };
        let size_bytes =
            meta.size_bytes().and_then(|size| usize::try_from(size).ok()).ok_or_else(too_large)?;
        let mut bytes = vec![0; size_bytes];
        self.read(name, &Region::whole(&meta.shape), &mut bytes)?;
        Ok(bytes)
    }
}

impl<S: TensorSource + ?Sized> TensorSource for Box<S> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        (**self).names()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        (**self).meta(name)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        (**self).read(name, region, dst)
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        (**self).mapped_bytes(name)
    }

    fn fp8(&self) -> Option<&dyn Fp8Weights> {
        (**self).fp8()
    }
}
