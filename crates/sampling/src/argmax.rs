//! The largest value of a row and where it first stands, in loops the compiler can vectorise.

const LANES: usize = 16;
const BLOCK: usize = 1024;

/// The largest value, or what is wrong with the row: a NaN, an infinity, or nothing above minus infinity.
pub(crate) fn checked_max(values: &[f32]) -> Result<f32, &'static str> {
    let mut max = f32::NEG_INFINITY;
    let mut has_nan = false;
    for block in values.chunks(BLOCK) {
        let (block_max, block_has_nan) = scan_block(block);
        max = if block_max > max { block_max } else { max };
        has_nan |= block_has_nan;
    }
    match max {
        _ if has_nan => Err("a NaN"),
        f32::INFINITY => Err("an infinite value"),
        f32::NEG_INFINITY => Err("no token that may be chosen"),
        _ => Ok(max),
    }
}

/// Position of the largest value, the first one if there are several; the same checks as [`checked_max`].
pub(crate) fn argmax(values: &[f32]) -> Result<usize, &'static str> {
    let max = checked_max(values)?;
    values.iter().position(|&value| value == max).ok_or("a NaN")
}

fn scan_block(block: &[f32]) -> (f32, bool) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut nans = [0_u32; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let value = chunk[lane];
            maxima[lane] = if value > maxima[lane] { value } else { maxima[lane] };
            nans[lane] |= u32::from(value.is_nan());
        }
    }
    let max = maxima
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max });
    (max, nans.iter().any(|&nan| nan != 0) || rest.iter().any(|value| value.is_nan()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_maxima_wins_wherever_it_stands() {
        for len in [1, 15, 16, 17, 1023, 1024, 1025, 3000] {
            for first in [0, len / 2, len - 1] {
                let mut values = vec![-1.0; len];
                values[first] = 2.0;
                values[len - 1] = 2.0;
                assert_eq!(argmax(&values), Ok(first));
            }
        }
    }

    #[test]
    fn unusable_rows_are_told_apart() {
        assert_eq!(argmax(&[0.0, f32::NAN]), Err("a NaN"));
        assert_eq!(argmax(&[0.0, f32::INFINITY]), Err("an infinite value"));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Err("no token that may be chosen"));
        assert_eq!(argmax(&[]), Err("no token that may be chosen"));
    }
}
