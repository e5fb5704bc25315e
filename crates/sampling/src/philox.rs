//! Philox4x32-10, the counter-based random generator, and the one uniform number each token needs.
//!
//! It holds no state: a number depends on its key and counter alone, so nothing has to be saved for a resume.
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11), and its Random123 test
//! vectors.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const NUM_ROUNDS: usize = 10;

/// Ten rounds of Philox4x32.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..NUM_ROUNDS {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            high(product1) ^ counter[1] ^ key[0],
            low(product1),
            high(product0) ^ counter[3] ^ key[1],
            low(product0),
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The uniform number in [0, 1), of 53 bits, that chooses one token.
///
/// Key: the low halves of `seed` and `sample_idx`; counter: `response_idx`, `token_idx` and the high halves.
/// Different arguments always give different inputs to Philox.
pub fn uniform(seed: u64, sample_idx: u64, response_idx: u32, token_idx: u32) -> f64 {
    let key = [low(seed), low(sample_idx)];
    let counter = [response_idx, token_idx, high(seed), high(sample_idx)];
    let [word0, word1, ..] = philox4x32_10(counter, key);
    let bits = (u64::from(word0) << 32 | u64::from(word1)) >> 11;
    bits as f64 * (1.0 / (1_u64 << 53) as f64)
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        let check = |counter, key, expect| assert_eq!(philox4x32_10(counter, key), expect);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn every_argument_changes_the_number() {
        let base = uniform(1, 2, 3, 4);
        let high_bit = 1 << 40;
        for other in [
            uniform(2, 2, 3, 4),
            uniform(1 | high_bit, 2, 3, 4),
            uniform(1, 3, 3, 4),
            uniform(1, 2 | high_bit, 3, 4),
            uniform(1, 2, 4, 4),
            uniform(1, 2, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn numbers_lie_in_the_unit_interval_and_average_to_a_half() {
        let numbers: Vec<f64> = (0..10_000).map(|token_idx| uniform(7, 0, 0, token_idx)).collect();
        assert!(numbers.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
