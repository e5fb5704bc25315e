//! Where a context stood before: contexts of a few lengths, by a hash of their tokens, each with its newest place.
//!
//! The table has a fixed size, and a new place takes the slot of an old one. A place is only a hint: it is compared with the
//! text before it is used, so a slot of a dropped text or of another context does no harm.

use crate::texts::{TextId, Texts};

/// Lengths of the contexts, in tokens.
pub(crate) const CONTEXT_LENS: [usize; 6] = [1, 2, 3, 5, 9, 17];
/// The longest of them.
pub(crate) const MAX_CONTEXT_LEN: usize = CONTEXT_LENS[CONTEXT_LENS.len() - 1];
/// The first of [`CONTEXT_LENS`] that is looked for in the texts of other requests: shorter ones stand everywhere.
const FIRST_SHARED: usize = 2;

/// Where a context ended: behind this many tokens of a text, which has at least one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) text: TextId,
    pub(crate) end: u32,
}

/// A context that stood before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Find {
    /// The token that followed.
    pub(crate) token: u32,
    pub(crate) kind: Kind,
}

/// What kind of find: predictions of one kind are about equally often right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// The longest of [`CONTEXT_LENS`] that was found.
    pub(crate) len_idx: usize,
    /// In a text of another request.
    pub(crate) is_shared: bool,
    pub(crate) second: Second,
}

/// What followed a context at the second-best place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// There is no other place.
    None,
    Same,
    Other,
}

impl Kind {
    /// How many there are.
    pub(crate) const COUNT: usize = CONTEXT_LENS.len() * 2 * 3;

    /// Its number below [`Kind::COUNT`].
    pub(crate) fn idx(self) -> usize {
        (self.len_idx * 2 + usize::from(self.is_shared)) * 3 + self.second as usize
    }
}

/// The contexts of one request's texts, and of all texts.
#[derive(Clone, Copy, Debug)]
enum Scope {
    Request(u64),
    All,
}

/// The table.
pub(crate) struct Index {
    /// Text and end of a place plus one, so that 0 is none and untouched memory is never read.
    slots: Vec<u64>,
    /// What a hash is shifted by to become a slot.
    shift: u32,
}

impl Index {
    /// A table of 2 to the power of `slots_log2` slots, 8 bytes each.
    pub(crate) fn new(slots_log2: u32) -> Self {
        Self { slots: vec![0; 1 << slots_log2], shift: 64 - slots_log2 }
    }

    /// Takes in the contexts that end at a place, for a text of request `request`.
    pub(crate) fn insert(&mut self, texts: &Texts, place: Place, request: u64) {
        let Some(before) = texts.get(place.text).get(..place.end as usize) else { return };
        let packed = (u64::from(place.text) << 32 | u64::from(place.end)) + 1;
        for (len_idx, hash) in hashes(before) {
            for scope in scopes(len_idx, request) {
                let slot = self.slot(hash, scope);
                self.slots[slot] = packed;
            }
        }
    }

    /// What followed the longest context that `context` ends with, of those that stood before. `request`: whose texts come
    /// before others.
    pub(crate) fn find(&self, texts: &Texts, context: &[u32], request: u64) -> Option<Find> {
        let mut best: Option<(Place, Find)> = None;
        let mut hashes_by_len = [None; CONTEXT_LENS.len()];
        for (len_idx, hash) in hashes(context) {
            hashes_by_len[len_idx] = Some(hash);
        }
        for (len_idx, hash) in hashes_by_len.into_iter().enumerate().rev() {
            let Some(hash) = hash else { continue };
            let wanted = &context[context.len() - CONTEXT_LENS[len_idx]..];
            for scope in scopes(len_idx, request) {
                let Some((place, token)) = self.get(texts, wanted, self.slot(hash, scope)) else { continue };
                match best {
                    None => {
                        let is_shared = matches!(scope, Scope::All);
                        let kind = Kind { len_idx, is_shared, second: Second::None };
                        best = Some((place, Find { token, kind }));
                    }
                    Some((first, mut find)) if first != place => {
                        find.kind.second = if find.token == token { Second::Same } else { Second::Other };
                        return Some(find);
                    }
                    Some(_) => {}
                }
            }
        }
        best.map(|(_, find)| find)
    }

    /// The place in a slot and the token that follows it, if it is one of the wanted context.
    fn get(&self, texts: &Texts, wanted: &[u32], slot: usize) -> Option<(Place, u32)> {
        let packed = self.slots[slot].checked_sub(1)?;
        let place = Place { text: (packed >> 32) as TextId, end: packed as u32 };
        let text = texts.get(place.text);
        let end = place.end as usize;
        let token = *text.get(end)?;
        let start = end.checked_sub(wanted.len())?;
        (text[start..end] == *wanted).then_some((place, token))
    }

    fn slot(&self, hash: u64, scope: Scope) -> usize {
        let salt = match scope {
            Scope::All => 0,
            Scope::Request(request) => (request + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        (mix(hash ^ salt) >> self.shift) as usize
    }
}

/// Where contexts of one of the lengths are looked for, the better place first.
fn scopes(len_idx: usize, request: u64) -> impl Iterator<Item = Scope> {
    let shared = (len_idx >= FIRST_SHARED).then_some(Scope::All);
    std::iter::once(Scope::Request(request)).chain(shared)
}

/// The hashes of the contexts that these tokens end with, shortest first, with their numbers in [`CONTEXT_LENS`].
fn hashes(tokens: &[u32]) -> impl Iterator<Item = (usize, u64)> {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    let mut num_hashed = 0;
    CONTEXT_LENS.into_iter().enumerate().take_while(|&(_, len)| len <= tokens.len()).map(move |(idx, len)| {
        for &token in tokens[tokens.len() - len..tokens.len() - num_hashed].iter().rev() {
            hash = (hash.rotate_left(5) ^ u64::from(token)).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        num_hashed = len;
        (idx, hash)
    })
}

/// Spreads a hash over all bits.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests;
