//! The tables of a decode step, as the host writes them: pure, no tensors.
//!
//! A row is a sequence; rows stand in the scheduler's order without gaps. Between changes the device moves the rows on
//! by itself and nothing is written.

use std::collections::HashMap;

use crate::scheduler::{DecodeSeq, SeqId};

/// Where the newest token of a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenSource {
    /// A row of the step before.
    Row(usize),
    /// A first token that waits on the device.
    Waiting(SeqId),
}

/// What the device must be told before a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// For each row, where its token is.
    pub(crate) sources: Vec<TokenSource>,
    /// The tables, laid out by [`TableLayout`].
    pub(crate) words: Vec<i32>,
}

/// What the host knows of a sequence beside its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeqFacts {
    /// Position of the sample in the input file.
    pub(crate) sample_idx: u64,
    pub(crate) prompt_len_tokens: u32,
}

/// One int32 tensor that holds all tables, so that one copy brings them over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableLayout {
    pub(crate) max_rows: usize,
    pub(crate) max_blocks_per_seq: usize,
}

impl TableLayout {
    /// Two words a row, first because the numbers take eight bytes.
    pub(crate) fn sample_idxs(self) -> usize {
        0
    }

    pub(crate) fn positions(self) -> usize {
        2 * self.max_rows
    }

    pub(crate) fn num_generated(self) -> usize {
        3 * self.max_rows
    }

    pub(crate) fn response_idxs(self) -> usize {
        4 * self.max_rows
    }

    /// `[max_rows, 2]`.
    pub(crate) fn prefix_groups(self) -> usize {
        5 * self.max_rows
    }

    /// `[max_rows, max_blocks_per_seq]`.
    pub(crate) fn block_tables(self) -> usize {
        7 * self.max_rows
    }

    pub(crate) fn num_words(self) -> usize {
        self.block_tables() + self.max_rows * self.max_blocks_per_seq
    }
}

/// Which sequence has which row.
#[derive(Debug)]
pub(crate) struct RowTable {
    layout: TableLayout,
    rows: Vec<SeqId>,
}

impl RowTable {
    pub(crate) fn new(layout: TableLayout) -> Self {
        Self { layout, rows: Vec::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
    }

    /// Takes the sequences of the next step. `None` when they are those of the last one: the device has moved their
    /// rows on already.
    pub(crate) fn update(
        &mut self,
        seqs: &[DecodeSeq],
        facts: impl Fn(SeqId) -> Option<SeqFacts>,
    ) -> Option<Change> {
        if seqs.len() == self.rows.len() && seqs.iter().zip(&self.rows).all(|(seq, row)| seq.id == *row) {
            return None;
        }
        let row_of: HashMap<SeqId, usize> = self.rows.iter().copied().zip(0..).collect();
        let source = |seq: &DecodeSeq| {
            row_of.get(&seq.id).map_or(TokenSource::Waiting(seq.id), |&row| TokenSource::Row(row))
        };
        let sources = seqs.iter().map(source).collect();
        self.rows = seqs.iter().map(|seq| seq.id).collect();
        Some(Change { sources, words: self.words(seqs, facts) })
    }

    fn words(&self, seqs: &[DecodeSeq], facts: impl Fn(SeqId) -> Option<SeqFacts>) -> Vec<i32> {
        let layout = self.layout;
        let mut words = vec![0; layout.num_words()];
        words[layout.positions()..layout.num_generated()].fill(-1);
        let shared = shared_prefixes(seqs);
        for (row, seq) in seqs.iter().enumerate().take(layout.max_rows) {
            let facts = facts(seq.id).unwrap_or(SeqFacts { sample_idx: 0, prompt_len_tokens: 0 });
            words[layout.sample_idxs() + 2 * row] = facts.sample_idx as u32 as i32;
            words[layout.sample_idxs() + 2 * row + 1] = (facts.sample_idx >> 32) as u32 as i32;
            words[layout.positions() + row] = seq.context_len as i32;
            // The first token is drawn from the prompt: the newest one stands right behind it.
            let num_generated = (seq.context_len + 1).saturating_sub(facts.prompt_len_tokens);
            words[layout.num_generated() + row] = num_generated as i32;
            words[layout.response_idxs() + row] = seq.id.response_idx as i32;
            let (first_row, num_shared) = shared[row];
            words[layout.prefix_groups() + 2 * row] = first_row as i32;
            words[layout.prefix_groups() + 2 * row + 1] = num_shared as i32;
            let start = layout.block_tables() + row * layout.max_blocks_per_seq;
            let table = &mut words[start..start + layout.max_blocks_per_seq];
            for (word, &block) in table.iter_mut().zip(&seq.block_table) {
                *word = block as i32;
            }
        }
        words
    }
}

/// For each row, the first row of its neighbours of one request and how many first blocks all of them share.
fn shared_prefixes(seqs: &[DecodeSeq]) -> Vec<(usize, usize)> {
    let mut shared = Vec::with_capacity(seqs.len());
    for group in seqs.chunk_by(|a, b| a.id.group_idx == b.id.group_idx) {
        let first_row = shared.len();
        if let [first, others @ ..] = group
            && !others.is_empty()
        {
            let common = |other: &DecodeSeq| {
                first.block_table.iter().zip(&other.block_table).take_while(|(a, b)| a == b).count()
            };
            let num_shared = others.iter().map(common).min().unwrap_or(0);
            shared.extend(group.iter().map(|_| (first_row, num_shared)));
        } else {
            shared.push((first_row, 0));
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use model_core::BlockId;

    use super::*;

    const LAYOUT: TableLayout = TableLayout { max_rows: 4, max_blocks_per_seq: 3 };

    fn seq(group_idx: u64, response_idx: u32, context_len: u32, block_table: &[BlockId]) -> DecodeSeq {
        DecodeSeq { id: SeqId { group_idx, response_idx }, context_len, block_table: block_table.to_vec() }
    }

    fn facts(id: SeqId) -> Option<SeqFacts> {
        Some(SeqFacts { sample_idx: id.group_idx | 1 << 40, prompt_len_tokens: 4 })
    }

    #[test]
    fn nothing_is_written_while_the_sequences_stay() {
        let mut table = RowTable::new(LAYOUT);
        let mut seqs = vec![seq(1, 0, 4, &[5]), seq(2, 0, 9, &[6])];
        assert!(table.update(&seqs, facts).is_some());
        for seq in &mut seqs {
            seq.context_len += 1;
        }
        assert_eq!(table.update(&seqs, facts), None);
        seqs.remove(0);
        let change = table.update(&seqs, facts).unwrap();
        assert_eq!(change.sources, [TokenSource::Row(1)]);
    }

    #[test]
    fn tables_say_what_the_host_knows() {
        let mut table = RowTable::new(LAYOUT);
        let seqs = [seq(7, 2, 6, &[5, 9])];
        let Change { sources, words } = table.update(&seqs, facts).unwrap();
        assert_eq!(sources, [TokenSource::Waiting(seqs[0].id)]);
        assert_eq!(words.len(), LAYOUT.num_words());
        assert_eq!(words[..2], [7, 1 << 8]);
        assert_eq!(words[LAYOUT.positions()..LAYOUT.num_generated()], [6, -1, -1, -1]);
        assert_eq!(words[LAYOUT.num_generated()], 3);
        assert_eq!(words[LAYOUT.response_idxs()], 2);
        assert_eq!(words[LAYOUT.block_tables()..][..3], [5, 9, 0]);
    }

    #[test]
    fn neighbours_of_one_request_share_their_common_blocks() {
        let seqs =
            [seq(1, 0, 70, &[3, 4, 5]), seq(1, 1, 70, &[3, 4, 6]), seq(2, 0, 8, &[7]), seq(3, 0, 8, &[8])];
        assert_eq!(shared_prefixes(&seqs), [(0, 2), (0, 2), (2, 0), (3, 0)]);
    }
}
