//! The order in which `model.data.sample=true` draws samples: that of NeMo's `OnlineSampleMapping`
//! (`text_memmap_dataset.py`, v2.0.0), number for number, which takes it from numpy's `RandomState(1)`.
//!
//! The samples needed are divided into blocks, the blocks are shuffled, and then what is in each.

use crate::DataError;

/// NeMo's block size; a smaller dataset is one block.
const BLOCK_SIZE: usize = 1_000_000;
/// NeMo fixes it: `model.seed` has no part in the order.
const SEED: u32 = 1;

/// For each of `num_samples` positions, which of `num_records` records it is.
pub(crate) fn sample_order(num_records: usize, num_samples: usize) -> Result<Vec<u32>, DataError> {
    let Ok(dataset_size) = u32::try_from(num_records) else {
        return Err(DataError::TooManyRecords { num_records });
    };
    if dataset_size == 0 {
        return Err(DataError::NoSamples);
    }
    let block_size = num_records.min(BLOCK_SIZE);
    let num_required = num_samples.max(num_records);
    let num_blocks = num_required.div_ceil(block_size);
    let mut order = Vec::with_capacity(num_samples);
    for (block, seed) in RandomState::new(SEED).permutation(num_blocks).into_iter().zip(SEED..) {
        let start = block * block_size;
        // The last block may be short, wherever the shuffle puts it.
        let within = RandomState::new(seed).permutation(block_size.min(num_required - start));
        let left = num_samples - order.len();
        // A remainder of division by a 32-bit number is one.
        order.extend(within.into_iter().take(left).map(|at| ((start + at) % num_records) as u32));
        if order.len() == num_samples {
            break;
        }
    }
    Ok(order)
}

/// numpy's legacy generator: the Mersenne Twister MT19937, seeded with one number.
struct RandomState {
    state: [u32; Self::N],
    next: usize,
}

impl RandomState {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for at in 1..Self::N {
            let before = state[at - 1];
            state[at] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(at as u32);
        }
        Self { state, next: Self::N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == Self::N {
            for at in 0..Self::N {
                let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % Self::N] & 0x7fff_ffff);
                let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[at] = self.state[(at + Self::M) % Self::N] ^ (joined >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut value = self.state[self.next];
        self.next += 1;
        value ^= value >> 11;
        value ^= (value << 7) & 0x9d2c_5680;
        value ^= (value << 15) & 0xefc6_0000;
        value ^ (value >> 18)
    }

    /// A number from 0 to `max`, by rejection of larger ones (`random_interval`).
    fn interval(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// The numbers below `len`, shuffled.
    fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..len).collect();
        for at in (1..len).rev() {
            // Blocks, and numbers in one, are fewer than 2³².
            numbers.swap(at, self.interval(at as u32) as usize);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_nemos() {
        let golden = include_str!("../tests/golden/sample_order.json");
        let cases: Vec<(usize, usize, Vec<usize>, Vec<u32>)> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() > 10);
        for (num_records, num_samples, positions, expect) in cases {
            let order = sample_order(num_records, num_samples).unwrap();
            assert_eq!(order.len(), num_samples);
            let drawn: Vec<u32> = positions.into_iter().map(|position| order[position]).collect();
            assert_eq!(drawn, expect, "{num_samples} of {num_records}");
        }
        assert!(sample_order(5, 0).unwrap().is_empty());
        assert!(matches!(sample_order(0, 5), Err(DataError::NoSamples)));
    }
}
