//! Llama 3.1's frequency rule, found again in what llama.cpp stores of it.
//!
//! llama.cpp's converter (`convert_hf_to_gguf.py`) writes no constants but `rope_freqs.weight`: by what each frequency is
//! divided. The constants are solved for, and the tensor computed from them must be the stored one. Several sets of
//! constants can have the same tensor: only that counts, and the low frequency factor is taken to be 1.

use model_spec::RopeScaling;

use super::arch::RopeExtension;

/// Rounding of the stored float32 values and of the powers behind them; a different constant shows far above it.
const TOLERANCE: f64 = 2e-5;
/// Lengths to try before solving: those that models were trained with.
const LENGTH_POWERS: std::ops::Range<i32> = 8..21;

/// The scaling whose division of the frequencies is `stored`, if there is one.
pub(super) fn scaling(stored: &[f32], head_dim: u64, rotary_base: f64) -> Option<RopeExtension> {
    let stored: Vec<f64> = stored.iter().map(|&value| f64::from(value)).collect();
    if stored.len() as u64 != head_dim / 2 || stored.iter().any(|value| !(value.is_finite() && *value > 0.0))
    {
        return None;
    }
    let last = *stored.last()?;
    let is_all = |wanted: f64| stored.iter().all(|value| (value / wanted - 1.0).abs() < TOLERANCE);
    if is_all(1.0) {
        return Some(RopeExtension::None);
    }
    if is_all(last) {
        return Some(RopeExtension::Linear(tidied(last)));
    }
    let wavelengths = wavelengths(head_dim, rotary_base);
    let fits = |rule: &RopeScaling| {
        let is_rule = rule.values().iter().all(|value| value.is_finite() && *value > 0.0)
            && rule.low_freq_factor < rule.high_freq_factor
            && rule.factor > 1.0;
        is_rule
            && stored
                .iter()
                .zip(&wavelengths)
                .all(|(stored, &wavelength)| (stored / divisor(rule, wavelength) - 1.0).abs() < TOLERANCE)
    };
    candidates(&stored, &wavelengths).into_iter().find(fits).map(RopeExtension::Llama3)
}

/// `2 pi` over each frequency, in the float32 of the original.
fn wavelengths(head_dim: u64, rotary_base: f64) -> Vec<f64> {
    let exponent = |i: u64| 2.0 * i as f64 / head_dim as f64;
    (0..head_dim / 2).map(|i| std::f64::consts::TAU * rotary_base.powf(exponent(i))).collect()
}

/// By what the rule divides a frequency.
fn divisor(rule: &RopeScaling, wavelength: f64) -> f64 {
    let [factor, low, high, length] = rule.values();
    if wavelength < length / high {
        1.0
    } else if wavelength > length / low {
        factor
    } else {
        let smooth = (length / wavelength - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

/// Constants to try, the likely ones first.
fn candidates(stored: &[f64], wavelengths: &[f64]) -> Vec<RopeScaling> {
    let [_, low, high, usual_length] = RopeScaling::LLAMA_3_1.values();
    let last = stored.last().copied().unwrap_or(1.0);
    let factor = tidied(last);
    let mut found = vec![[factor, low, high, usual_length]];
    found.extend(LENGTH_POWERS.map(|power| [factor, low, high, 2.0_f64.powi(power)]));
    // Between the two lengths 1 / divisor is a straight line over 1 / wavelength: its ends give the constants.
    let is_between = |value: &&f64| **value > 1.0 + TOLERANCE && **value < last * (1.0 - TOLERANCE);
    let first_between = stored.iter().position(|value| is_between(&value));
    let points = |is_wanted: &dyn Fn(&&f64) -> bool| -> Vec<(f64, f64)> {
        let pairs = stored.iter().zip(wavelengths).filter(|(value, _)| is_wanted(value));
        pairs.map(|(value, wavelength)| (1.0 / wavelength, 1.0 / value)).collect()
    };
    let between = points(&is_between);
    if let [(x0, y0), .., (x1, y1)] = between.as_slice() {
        let smooth = |y: f64| (y - 1.0 / factor) / (1.0 - 1.0 / factor);
        let slope = (smooth(*y0) - smooth(*y1)) / (x0 - x1);
        let offset = smooth(*y0) - slope * x0;
        let high = 1.0 - 1.0 / offset;
        for (high, length) in
            [(tidied(high), tidied(slope * (tidied(high) - 1.0))), (high, slope * (high - 1.0))]
        {
            found.push([factor, low, high, length]);
        }
    }
    if let [(x, y)] = between.as_slice() {
        let smooth = (y - 1.0 / factor) / (1.0 - 1.0 / factor);
        found.push([factor, low, high, tidied((smooth * (high - low) + low) / x)]);
    }
    // No frequency between: any lengths that part the same two neighbours.
    if first_between.is_none()
        && let Some(first_low) = stored.iter().position(|value| *value > 1.0 + TOLERANCE)
        && let (Some(short), Some(long)) =
            (first_low.checked_sub(1).and_then(|i| wavelengths.get(i)), wavelengths.get(first_low))
    {
        let length = long * 0.999;
        found.push([factor, low, high.min(length / (short * 1.001)), length]);
    }
    // The longest wavelength is not long enough to show the whole factor: it lies on the line as well.
    let sloping = points(&|value: &&f64| **value > 1.0 + TOLERANCE);
    if let [(x0, y0), .., (x1, y1)] = sloping.as_slice() {
        let slope = (y0 - y1) / (x0 - x1);
        let offset = y0 - slope * x0;
        let factor = tidied((high / low) / ((high - low) * offset + 1.0));
        let length = tidied(slope * (high - low) / (1.0 - 1.0 / factor));
        found.push([factor, low, high, length]);
    }
    found.into_iter().map(RopeScaling::from_values).collect()
}

/// The whole number or quarter that a solved value stands for, or the value.
fn tidied(value: f64) -> f64 {
    let quarters = (value * 4.0).round() / 4.0;
    if (quarters / value - 1.0).abs() < 1e-4 { quarters } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What llama.cpp's converter would store.
    fn stored(rule: &RopeScaling, head_dim: u64, base: f64) -> Vec<f32> {
        wavelengths(head_dim, base).into_iter().map(|wavelength| divisor(rule, wavelength) as f32).collect()
    }

    #[test]
    fn constants_are_found_from_the_tensor() {
        for (constants, head_dim, base) in [
            (RopeScaling::LLAMA_3_1.values(), 128, 500_000.0),
            ([32.0, 1.0, 4.0, 8192.0], 64, 500_000.0),
            ([32.0, 1.0, 4.0, 8192.0], 128, 500_000.0),
            ([16.0, 1.0, 4.0, 2048.0], 64, 10_000.0),
            ([8.0, 1.0, 8.0, 8192.0], 128, 500_000.0),
            ([4.0, 1.0, 2.5, 6000.0], 128, 1_000_000.0),
            ([32.0, 1.0, 4.0, 8192.0], 8, 500_000.0),
            ([12.5, 1.0, 4.0, 4096.0], 16, 10_000.0),
        ] {
            let constants = RopeScaling::from_values(constants);
            let found = scaling(&stored(&constants, head_dim, base), head_dim, base);
            let Some(RopeExtension::Llama3(found)) = found else { panic!("{constants:?}: {found:?}") };
            assert_eq!(found.factor, constants.factor, "{constants:?}: {found:?}");
            for wavelength in wavelengths(head_dim, base) {
                let (found, wanted) = (divisor(&found, wavelength), divisor(&constants, wavelength));
                assert!((found / wanted - 1.0).abs() < TOLERANCE, "{constants:?}");
            }
            if head_dim > 16 {
                assert_eq!(found, constants);
            }
        }
    }

    #[test]
    fn a_low_factor_other_than_1_is_the_same_rule_scaled() {
        let rule = RopeScaling::from_values([8.0, 2.0, 8.0, 16_384.0]);
        let found = scaling(&stored(&rule, 128, 500_000.0), 128, 500_000.0);
        assert_eq!(found, Some(RopeExtension::Llama3(RopeScaling::LLAMA_3_1)));
    }

    #[test]
    fn other_tensors_are_not_the_rule() {
        let check = |values: &[f32], expect| assert_eq!(scaling(values, 8, 10_000.0), expect, "{values:?}");
        check(&[1.0; 4], Some(RopeExtension::None));
        check(&[4.0; 4], Some(RopeExtension::Linear(4.0)));
        check(&[1.0; 3], None);
        check(&[1.0, 8.0, 2.0, 8.0], None);
        check(&[1.0, 0.5, 0.5, 0.5], None);
        check(&[1.0, f32::NAN, 8.0, 8.0], None);
        check(&[0.0; 4], None);
        check(&[1.0, 1.7, 3.9, 60.0], None);
    }
}
