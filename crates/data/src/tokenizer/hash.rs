//! A fast hash for tables of a vocabulary. The keys come from one file, so collisions cannot be provoked by an attacker.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table keyed by the strings or bytes of a vocabulary.
pub(crate) type VocabMap<K, V> = HashMap<K, V, BuildHasherDefault<VocabHasher>>;

const MULTIPLIER: u64 = 0xf135_7aea_2e62_a9c5;

/// Multiply and rotate, eight bytes at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VocabHasher(u64);

impl VocabHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(MULTIPLIER);
    }
}

impl Hasher for VocabHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.add(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 59));
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(u64::from(byte));
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn short_keys_spread_over_the_low_bits() {
        let map = VocabMap::<String, u32>::default();
        let hashes = (0..4096u32).map(|n| map.hasher().hash_one(format!("▁{n}")) & 0xffff);
        // As many as random values would leave different, 3,970, less some slack.
        assert!(hashes.collect::<HashSet<_>>().len() > 3800);
    }
}
