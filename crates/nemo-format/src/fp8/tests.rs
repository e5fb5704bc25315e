use super::*;

#[test]
fn numbers_are_those_of_the_format() {
    assert_eq!(value_of(0x08), 1.0 / 64.0);
    assert_eq!((value_of(0x7e), value_of(0xfe)), (448.0, -448.0));
    assert!(value_of(0x7f).is_nan() && value_of(0xff).is_nan());
    let finite: Vec<f32> = (0..0x7f).map(value_of).collect();
    assert!(finite.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn the_nearest_number_is_found_between_any_two() {
    for bits in 0..0x7e_u8 {
        let (low, high) = (value_of(bits), value_of(bits + 1));
        let middle = low.midpoint(high);
        let even = bits + (bits & 1);
        for (value, expect) in [
            (low, bits),
            (high, bits + 1),
            (middle, even),
            (middle.next_down(), bits),
            (middle.next_up(), bits + 1),
        ] {
            assert_eq!(nearest(value), expect, "{value}");
            assert_eq!(nearest(-value), expect | 0x80, "-{value}");
        }
    }
    assert_eq!((nearest(463.9), nearest(f32::NAN) & 0x7f, nearest(f32::INFINITY)), (0x7e, NAN, NAN));
}

#[test]
fn a_row_is_scaled_by_its_largest() {
    let rows = [1.0_f32, 0.5, -1.0, 0.0, 3.0, 0.5, 0.0, -3.0];
    let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    let made = quantize_rows(&bytes, DType::F32, DType::F32, 4).unwrap();
    // The vectors of `crates/model-core/src/fp8.rs`.
    assert_eq!(made.numbers, [0x7e, 0x76, 0xfe, 0x00, 0x7e, 0x69, 0x00, 0xfe]);
    assert_eq!(made.scales, [1.0 / 448.0, 3.0 / 448.0]);
    assert!(quantize_rows(&bytes, DType::I32, DType::F32, 4).is_none());
    let bad: Vec<u8> = [f32::NAN, 1.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let made = quantize_rows(&bad, DType::F32, DType::BF16, 2).unwrap();
    assert!(made.scales[0].is_nan() && made.numbers.iter().all(|number| number & 0x7f == NAN));
}
