//! Copying a box between arrays that lie in memory.
//!
//! Plain index arithmetic, shared by every reader that maps its file. Bounds are checked where bytes are touched.

use crate::{FormatError, Region, TensorMeta};

/// Strides, in elements, of a row-major array. Products that overflow saturate: such an array has no bytes.
pub(crate) fn row_major_strides_elems(shape: &[u64]) -> Vec<u64> {
    let mut strides_elems = vec![1_u64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides_elems[axis - 1] = strides_elems[axis].saturating_mul(shape[axis]);
    }
    strides_elems
}

/// A box to copy from one array to another, each with its own strides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StridedCopy<'a> {
    pub(crate) sizes: &'a [u64],
    pub(crate) from_strides_elems: &'a [u64],
    pub(crate) to_strides_elems: &'a [u64],
    pub(crate) elem_bytes: usize,
}

impl StridedCopy<'_> {
    /// Copies the box whose first element is the first of `from` and of `to`. `None` when it leaves either.
    pub(crate) fn copy(&self, from: &[u8], to: &mut [u8]) -> Option<()> {
        if self.sizes.contains(&0) {
            return Some(());
        }
        let (num_outer_axes, run_elems) = self.run()?;
        let run_bytes = usize::try_from(run_elems).ok()?.checked_mul(self.elem_bytes)?;
        let mut index = vec![0_u64; num_outer_axes];
        loop {
            let from_start = self.byte_of(&index, self.from_strides_elems)?;
            let to_start = self.byte_of(&index, self.to_strides_elems)?;
            let run = from.get(from_start..)?.get(..run_bytes)?;
            to.get_mut(to_start..)?.get_mut(..run_bytes)?.copy_from_slice(run);
            let mut axis = num_outer_axes;
            loop {
                if axis == 0 {
                    return Some(());
                }
                axis -= 1;
                index[axis] += 1;
                if index[axis] < self.sizes[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }

    /// How many outer axes are stepped through, and the elements of a step, which lie in one piece on both sides.
    fn run(&self) -> Option<(usize, u64)> {
        let mut run_elems = 1_u64;
        let mut axis = self.sizes.len();
        while let Some(inner) = axis.checked_sub(1) {
            let strides = (*self.from_strides_elems.get(inner)?, *self.to_strides_elems.get(inner)?);
            if self.sizes[inner] != 1 && strides != (run_elems, run_elems) {
                break;
            }
            run_elems = run_elems.checked_mul(self.sizes[inner])?;
            axis = inner;
        }
        Some((axis, run_elems))
    }

    fn byte_of(&self, index: &[u64], strides_elems: &[u64]) -> Option<usize> {
        let elem = index
            .iter()
            .zip(strides_elems)
            .try_fold(0_u64, |elem, (&at, &stride)| elem.checked_add(at.checked_mul(stride)?))?;
        usize::try_from(elem).ok()?.checked_mul(self.elem_bytes)
    }
}

/// Copies `region` of the row-major tensor in `bytes` to `dst`.
pub(crate) fn copy_region(
    name: &str,
    meta: &TensorMeta,
    bytes: &[u8],
    region: &Region,
    dst: &mut [u8],
) -> Result<(), FormatError> {
    meta.check_region(name, region, dst.len())?;
    let misfit =
        || FormatError::bad_tensor(name, format!("its shape does not fit its {} bytes", bytes.len()));
    if meta.size_bytes() != Some(bytes.len() as u64) {
        return Err(misfit());
    }
    let sizes = region.shape();
    let from_strides_elems = row_major_strides_elems(&meta.shape);
    let first_elem: u64 =
        region.ranges.iter().zip(&from_strides_elems).map(|(range, &stride)| range.start * stride).sum();
    let copy = StridedCopy {
        sizes: &sizes,
        from_strides_elems: &from_strides_elems,
        to_strides_elems: &row_major_strides_elems(&sizes),
        elem_bytes: meta.dtype.size_bytes(),
    };
    let first_byte = (first_elem as usize).saturating_mul(meta.dtype.size_bytes());
    copy.copy(bytes.get(first_byte..).unwrap_or_default(), dst).ok_or_else(misfit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::DType;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn equals_the_element_by_element_copy(
            dims in prop::collection::vec(1_u64..5, 0..4),
            cuts in prop::collection::vec((0_u64..5, 0_u64..5), 4),
        ) {
            let meta = TensorMeta { dtype: DType::U8, shape: dims.clone() };
            let bytes: Vec<u8> = (0..meta.num_elems().unwrap()).map(|value| value as u8).collect();
            let ranges: Vec<_> = dims.iter().zip(&cuts).map(|(&dim, &(a, b))| {
                let (a, b) = (a.min(dim), b.min(dim));
                a.min(b)..a.max(b)
            }).collect();
            let region = Region { ranges };
            let mut expected = Vec::new();
            for (index, &byte) in bytes.iter().enumerate() {
                let mut rest = index as u64;
                let mut inside = true;
                for (axis, &dim) in dims.iter().enumerate().rev() {
                    inside &= region.ranges[axis].contains(&(rest % dim));
                    rest /= dim;
                }
                if inside {
                    expected.push(byte);
                }
            }
            let mut dst = vec![0; expected.len()];
            copy_region("t", &meta, &bytes, &region, &mut dst).unwrap();
            prop_assert_eq!(dst, expected);
        }
    }
}
