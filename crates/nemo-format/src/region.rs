//! Copying a box out of a row-major tensor that lies in memory.
//!
//! Plain index arithmetic, shared by every reader that maps its file.

use crate::{FormatError, Region, TensorMeta};

/// Copies `region` of the row-major tensor in `bytes` to `dst`.
pub(crate) fn copy_region(
    name: &str,
    meta: &TensorMeta,
    bytes: &[u8],
    region: &Region,
    dst: &mut [u8],
) -> Result<(), FormatError> {
    region.check(name, meta, dst.len())?;
    if meta.size_bytes() != Some(bytes.len() as u64) {
        return Err(FormatError::bad_tensor(
            name,
            format!("its shape does not fit its {} bytes", bytes.len()),
        ));
    }
    if dst.is_empty() {
        return Ok(());
    }
    // The innermost axes that are taken whole form one run with the first one that is cut.
    let num_axes = meta.shape.len();
    let mut run_axis = num_axes;
    let mut run_bytes = meta.dtype.size_bytes();
    while run_axis > 0 {
        run_axis -= 1;
        let range = &region.ranges[run_axis];
        run_bytes *= (range.end - range.start) as usize;
        if range.end - range.start != meta.shape[run_axis] {
            break;
        }
    }
    let mut strides_bytes = vec![meta.dtype.size_bytes(); num_axes];
    for axis in (1..num_axes).rev() {
        strides_bytes[axis - 1] = strides_bytes[axis] * meta.shape[axis] as usize;
    }
    let mut position: Vec<u64> = region.ranges.iter().map(|range| range.start).collect();
    for run in dst.chunks_exact_mut(run_bytes) {
        let start: usize =
            position.iter().zip(&strides_bytes).map(|(&at, &stride)| at as usize * stride).sum();
        run.copy_from_slice(&bytes[start..start + run_bytes]);
        for axis in (0..run_axis).rev() {
            position[axis] += 1;
            if position[axis] < region.ranges[axis].end {
                break;
            }
            position[axis] = region.ranges[axis].start;
        }
    }
    Ok(())
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
