//! The bytes of a rank's part of a stored tensor.

use std::borrow::Cow;

use nemo_format::{FormatError, Region};

use crate::ModelError;
use crate::columns::columns;

/// The regions of a tensor one under the other, read out of the checkpoint.
pub(super) fn read_regions(
    name: &str,
    elem_bytes: usize,
    regions: &[Region],
    read: impl Fn(&Region, &mut [u8]) -> Result<(), FormatError>,
) -> Result<Vec<u8>, ModelError> {
    let regions = joined(regions);
    let sizes = regions.iter().map(|region| size_bytes(region, elem_bytes));
    let num_bytes = sizes.fold(0, usize::saturating_add);
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(num_bytes).map_err(|_| {
        ModelError::OutOfMemory(tch::TchError::Torch(format!("a buffer of {num_bytes} bytes for `{name}`")))
    })?;
    buffer.resize(num_bytes, 0);
    let mut rest = buffer.as_mut_slice();
    for region in &regions {
        let (dst, behind) = rest.split_at_mut(size_bytes(region, elem_bytes));
        read(region, dst)?;
        rest = behind;
    }
    Ok(buffer)
}

/// The same of a tensor whose bytes lie in memory: not copied where they follow each other there.
pub(super) fn take_regions<'a>(
    whole: &'a [u8],
    shape: &[u64],
    elem_bytes: usize,
    regions: &[Region],
) -> Cow<'a, [u8]> {
    let row_bytes = shape.iter().skip(1).fold(elem_bytes, |bytes, &dim| bytes.saturating_mul(dim as usize));
    let take = |region: &Region| {
        let rows = region
            .ranges
            .first()
            .map_or(0..0, |rows| rows.start as usize * row_bytes..rows.end as usize * row_bytes);
        let of_rows = whole.get(rows).unwrap_or_default();
        match (shape, region.ranges.as_slice()) {
            (&[_, num_columns], [_, across]) if *across != (0..num_columns) => {
                let across = across.start as usize * elem_bytes..across.end as usize * elem_bytes;
                Cow::Owned(columns(of_rows, row_bytes, across))
            }
            _ => Cow::Borrowed(of_rows),
        }
    };
    match joined(regions).as_slice() {
        [] => Cow::Borrowed(&[]),
        [region] => take(region),
        several => Cow::Owned(several.iter().map(take).collect::<Vec<_>>().concat()),
    }
}

/// What the rows of regions, one under the other, have in `of_rows`.
pub(super) fn take_rows(of_rows: &[f32], regions: &[Region]) -> Vec<f32> {
    let rows = regions.iter().filter_map(|region| region.ranges.first());
    let taken = rows.filter_map(|rows| of_rows.get(rows.start as usize..rows.end as usize));
    taken.flatten().copied().collect()
}

/// The same rows in as few regions as they are: the halves of a gated layer that no ranks share are one.
fn joined(regions: &[Region]) -> Vec<Region> {
    let mut joined: Vec<Region> = Vec::with_capacity(regions.len());
    for region in regions {
        let before = joined.last_mut().map(|before| before.ranges.as_mut_slice());
        match (before, region.ranges.as_slice()) {
            (Some([rows, across @ ..]), [next, next_across @ ..])
                if rows.end == next.start && across == next_across =>
            {
                rows.end = next.end;
            }
            _ => joined.push(region.clone()),
        }
    }
    joined
}

fn size_bytes(region: &Region, elem_bytes: usize) -> usize {
    usize::try_from(region.num_elems()).unwrap_or(usize::MAX).saturating_mul(elem_bytes)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn rows_are_borrowed_and_columns_copied() {
        let whole: Vec<u8> = (0..24).collect();
        let take = |ranges: &[[Range<u64>; 2]]| {
            let regions: Vec<Region> =
                ranges.iter().map(|ranges| Region { ranges: ranges.to_vec() }).collect();
            take_regions(&whole, &[4, 3], 2, &regions)
        };
        let rows = take(&[[1..3, 0..3]]);
        assert!(matches!(rows, Cow::Borrowed(_)));
        assert_eq!(*rows, whole[6..18]);
        assert_eq!(*take(&[[1..3, 1..2]]), [8, 9, 14, 15]);
        let halves = take(&[[0..2, 0..3], [2..4, 0..3]]);
        assert!(matches!(halves, Cow::Borrowed(_)));
        assert_eq!(*halves, *whole);
        assert_eq!(*take(&[[0..1, 0..3], [3..4, 0..3]]), [&whole[..6], &whole[18..]].concat());
    }
}
