//! Newest tokens of sequences that have no row, kept on the device in batches until the sequences have one or have ended.

use std::collections::HashMap;

/// Where the token of a sequence without a row stands: in which batch, and where in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    batch_idx: u64,
    row: usize,
}

/// Tokens that came to be kept together.
struct KeptBatch<T> {
    tokens: T,
    num_tokens: usize,
    /// Those whose sequences have neither a row nor ended.
    num_waiting: usize,
}

/// All batches, by number.
pub(super) struct KeptBatches<T> {
    batches: HashMap<u64, KeptBatch<T>>,
    /// How many there were; the number of the next.
    num_batches: u64,
}

impl<T> Default for KeptBatches<T> {
    fn default() -> Self {
        Self { batches: HashMap::new(), num_batches: 0 }
    }
}

impl<T> KeptBatches<T> {
    /// Where a token will stand that is at `row` of the next batch.
    pub(super) fn next_waiting(&self, row: usize) -> Waiting {
        Waiting { batch_idx: self.num_batches, row }
    }

    /// Keeps tokens as the next batch.
    pub(super) fn add(&mut self, tokens: T, num_tokens: usize) {
        let batch = KeptBatch { tokens, num_tokens, num_waiting: num_tokens };
        self.batches.insert(self.num_batches, batch);
        self.num_batches += 1;
    }

    /// This token is not waited for any more. Its batch stays until [`Self::drop_released`].
    pub(super) fn release(&mut self, waiting: Waiting) {
        if let Some(batch) = self.batches.get_mut(&waiting.batch_idx) {
            batch.num_waiting -= 1;
        }
    }

    /// Releases a token. Gives where it stands among the tokens of `order`, batch after batch, to which its own batch is
    /// added if it is not among them.
    pub(super) fn take(&mut self, waiting: Waiting, order: &mut Vec<u64>) -> usize {
        self.release(waiting);
        let Waiting { batch_idx, row } = waiting;
        if !order.contains(&batch_idx) {
            order.push(batch_idx);
        }
        let before = order.iter().take_while(|&&other| other != batch_idx);
        let num_before: usize = before.filter_map(|other| Some(self.batches.get(other)?.num_tokens)).sum();
        num_before + row
    }

    /// The tokens of these batches, in this order.
    pub(super) fn tokens_of(&self, order: &[u64]) -> Vec<&T> {
        order.iter().filter_map(|batch_idx| Some(&self.batches.get(batch_idx)?.tokens)).collect()
    }

    /// Gives up batches that nobody waits for.
    pub(super) fn drop_released(&mut self) {
        self.batches.retain(|_, batch| batch.num_waiting > 0);
    }

    /// How many batches there are.
    #[cfg(test)]
    pub(super) fn num_kept(&self) -> usize {
        self.batches.len()
    }

    /// Gives up all; numbers go on.
    pub(super) fn clear(&mut self) {
        self.batches.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_behind_those_of_earlier_batches() {
        let mut kept = KeptBatches::default();
        let [a, b] = [0, 1].map(|row| kept.next_waiting(row));
        kept.add("first", 2);
        let c = kept.next_waiting(0);
        kept.add("second", 1);
        let mut order = Vec::new();
        assert_eq!(kept.take(c, &mut order), 0);
        assert_eq!(kept.take(b, &mut order), 1 + 1);
        assert_eq!(kept.tokens_of(&order), [&"second", &"first"]);
        // The second has no token left, the first has one.
        kept.drop_released();
        let mut order = Vec::new();
        assert_eq!(kept.take(a, &mut order), 0);
        assert_eq!(kept.tokens_of(&order), [&"first"]);
        kept.drop_released();
        assert!(kept.tokens_of(&order).is_empty());
    }
}
