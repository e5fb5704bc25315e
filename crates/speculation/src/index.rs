//! Where a context stood before: contexts of a few lengths, by a hash of their tokens, each with its newest place.
//!
//! The table has a fixed size, and a new place takes the slot of an old one. A place is only a hint: it is compared with the
//! text before it is used, so a slot of a dropped text or of another context does no harm. The comparison also says how
//! much longer the context is there, so that few lengths are enough.
//!
//! What costs time are the misses of caches, so the contexts of one request stand near each other in the table.

use crate::texts::{TextId, Texts};

/// Lengths that finds are told apart by, in tokens.
const LENS: [usize; 6] = [1, 2, 3, 5, 9, 17];
/// The longest context that is compared.
pub(crate) const MAX_CONTEXT_LEN: usize = LENS[LENS.len() - 1];
/// Lengths of the contexts that have slots, and those that also have one for the texts of all requests: shorter ones stand
/// everywhere.
const OWN_LENS: [usize; 3] = [1, 3, 9];
const SHARED_LENS: [usize; 2] = [3, 9];
/// Slots that the contexts of one request are spread over, where there are more.
const WINDOW_LOG2: u32 = 14;
/// What a look takes beside the slots, and what each text takes that is compared, in slots written.
const OPS_PER_LOOK: u64 = 16;
const OPS_PER_TEXT: u64 = 4;

/// Where a context ended: behind this many tokens of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) text: TextId,
    pub(crate) end: usize,
}

/// A context that stood before, with at least one more token behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Find {
    pub(crate) place: Place,
    /// Tokens that are the same before it, of [`MAX_CONTEXT_LEN`] at most.
    pub(crate) len: usize,
    /// In a text of another request.
    pub(crate) is_shared: bool,
}

/// What kind of find: predictions of one kind are about equally often right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    len_idx: usize,
    is_shared: bool,
}

impl Kind {
    /// How many there are.
    pub(crate) const COUNT: usize = LENS.len() * 2;

    /// Of a context of so many tokens, at least one.
    pub(crate) fn new(len: usize, is_shared: bool) -> Self {
        Self { len_idx: LENS.partition_point(|&of| of <= len).saturating_sub(1), is_shared }
    }

    /// Its number below [`Kind::COUNT`].
    pub(crate) fn idx(self) -> usize {
        self.len_idx * 2 + usize::from(self.is_shared)
    }
}

/// The table.
pub(crate) struct Index {
    /// Text and end of a place plus one, so that 0 is none and untouched memory is never read.
    slots: Vec<u64>,
    slots_log2: u32,
    num_ops: u64,
}

impl Index {
    /// A table of 2 to the power of `slots_log2` slots, 8 bytes each.
    pub(crate) fn new(slots_log2: u32) -> Self {
        Self { slots: vec![0; 1 << slots_log2], slots_log2, num_ops: 0 }
    }

    /// Slots that were read or written, and texts that were read, as much as they cost.
    pub(crate) fn num_ops(&self) -> u64 {
        self.num_ops
    }

    /// Takes in the contexts that end at a place of a text of request `request`.
    pub(crate) fn insert(&mut self, text: &[u32], place: Place, request: u64) {
        let Some(before) = text.get(..place.end) else { return };
        let packed = (u64::from(place.text) << 32 | place.end as u64) + 1;
        let hashes = Hashes::of(before);
        for (len, hash) in hashes.known() {
            let slot = self.own_slot(hash, request);
            self.slots[slot] = packed;
            self.num_ops += 1;
            if SHARED_LENS.contains(&len) {
                let slot = self.shared_slot(hash);
                self.slots[slot] = packed;
                self.num_ops += 1;
            }
        }
    }

    /// Where what `context` ends with stood before: the longest of what is found, and of equally long ones that in a text of
    /// `request`.
    ///
    /// Where a context does not stand, no longer one does: what stands nowhere is settled by a read of two slots, and
    /// everything else by at most five.
    pub(crate) fn find(&mut self, texts: &Texts, context: &[u32], request: u64) -> Option<Find> {
        self.num_ops += OPS_PER_LOOK;
        let hashes = Hashes::of(context);
        let mut best: Option<Find> = None;
        for (len, hash) in hashes.known() {
            let slot = self.own_slot(hash, request);
            let Some(find) = self.get(texts, context, len, slot, request) else { break };
            best = Some(find);
            if find.len >= OWN_LENS[OWN_LENS.len() - 1] {
                return best;
            }
        }
        for (len, hash) in hashes.known().filter(|(len, _)| SHARED_LENS.contains(len)) {
            let slot = self.shared_slot(hash);
            let Some(find) = self.get(texts, context, len, slot, request) else { break };
            if best.is_none_or(|best| best.len < find.len) {
                best = Some(find);
            }
        }
        best
    }

    /// The place in a slot, if what `context` ends with stands there with this length at least.
    fn get(
        &mut self,
        texts: &Texts,
        context: &[u32],
        least_len: usize,
        slot: usize,
        request: u64,
    ) -> Option<Find> {
        self.num_ops += 1;
        let packed = self.slots[slot].checked_sub(1)?;
        let place = Place { text: (packed >> 32) as TextId, end: packed as u32 as usize };
        self.num_ops += OPS_PER_TEXT;
        let text = texts.text(place.text)?;
        let before = text.tokens.get(..place.end).filter(|_| place.end < text.tokens.len())?;
        let pairs = before.iter().rev().zip(context.iter().rev()).take(MAX_CONTEXT_LEN);
        let len = pairs.take_while(|(there, here)| there == here).count();
        (len >= least_len).then_some(Find { place, len, is_shared: text.scope != request })
    }

    fn own_slot(&self, hash: u64, request: u64) -> usize {
        let salt = (request + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let window_log2 = WINDOW_LOG2.min(self.slots_log2);
        let window = mix(salt) >> (64 - self.slots_log2) >> window_log2 << window_log2;
        (window | mix(hash ^ salt) >> (64 - window_log2)) as usize
    }

    fn shared_slot(&self, hash: u64) -> usize {
        (mix(hash) >> (64 - self.slots_log2)) as usize
    }
}

/// The hashes of the contexts of [`OWN_LENS`] that a text ends with.
#[derive(Clone, Copy, Debug)]
struct Hashes {
    by_len: [u64; OWN_LENS.len()],
    /// For how many of the lengths there are tokens.
    num_known: usize,
}

impl Hashes {
    fn of(tokens: &[u32]) -> Self {
        let mut hashes = Self { by_len: [0; OWN_LENS.len()], num_known: 0 };
        let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
        let mut num_hashed = 0;
        for (of_len, len) in hashes.by_len.iter_mut().zip(OWN_LENS) {
            let Some(start) = tokens.len().checked_sub(len) else { break };
            for &token in tokens[start..tokens.len() - num_hashed].iter().rev() {
                hash = (hash.rotate_left(5) ^ u64::from(token)).wrapping_mul(0x517c_c1b7_2722_0a95);
            }
            num_hashed = len;
            *of_len = hash;
            hashes.num_known += 1;
        }
        hashes
    }

    /// Lengths and hashes, shortest first.
    fn known(self) -> impl Iterator<Item = (usize, u64)> {
        OWN_LENS.into_iter().zip(self.by_len).take(self.num_known)
    }
}

/// Spreads a hash over all bits.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests;
