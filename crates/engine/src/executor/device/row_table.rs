//! The tables of a decode step, as the host writes them: pure, no tensors.
//!
//! A row is a sequence; rows stand in the scheduler's order without gaps. Between changes the device moves the rows on
//! by itself and nothing is written.

use std::collections::HashMap;

use model_core::BlockId;
use sampling::{ROW_RULE_WORDS, RowRules, row_rule_words};

use crate::{
    EngineError,
    plan::{BLOCKS_PER_SPLIT, SeqId},
};

/// Where the newest token of a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenSource {
    /// A row of the step before.
    Row(usize),
    /// A first token that waits on the device.
    Waiting(SeqId),
}

/// What the device must learn before a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// For each row, where its token is.
    pub(crate) sources: Vec<TokenSource>,
    /// The tables, laid out by [`TableLayout`].
    pub(crate) words: Vec<i32>,
}

/// A row of the next step, as the host knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableRow<'a> {
    pub(crate) id: SeqId,
    /// Tokens in the cache.
    pub(crate) context_len: u32,
    /// Tokens that may follow the newest one: each has a row behind this.
    pub(crate) num_drafts: usize,
    /// Position of the sample in the input file.
    pub(crate) sample_idx: u64,
    pub(crate) prompt_len_tokens: u32,
    /// Where the run's rules do not hold.
    pub(crate) own: Option<&'a RowRules>,
    /// A block of every table for the first tokens, and so on.
    pub(crate) block_table: &'a [BlockId],
}

/// One int32 tensor that holds all tables, so that one copy brings them over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableLayout {
    pub(crate) max_rows: usize,
    pub(crate) max_blocks_per_seq: usize,
    /// Block tables of a sequence.
    pub(crate) num_tables: usize,
    /// Rows may have rules of their own.
    pub(crate) has_row_rules: bool,
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

    /// `[max_rows, ROW_RULE_WORDS]`, where rows may have rules of their own.
    pub(crate) fn row_rules(self) -> usize {
        7 * self.max_rows
    }

    /// `[num_tables, max_rows, max_blocks_per_seq]`.
    pub(crate) fn block_tables(self) -> usize {
        let words_of_row = if self.has_row_rules { ROW_RULE_WORDS } else { 0 };
        self.row_rules() + words_of_row * self.max_rows
    }

    pub(crate) fn num_words(self) -> usize {
        self.block_tables() + self.num_tables * self.max_rows * self.max_blocks_per_seq
    }
}

/// A sequence of the last step.
#[derive(Clone, Copy, Debug)]
struct Placed {
    /// None where it has left.
    id: Option<SeqId>,
    /// Its rows follow each other.
    first_row: usize,
    /// The row that has its newest token, when the step has ended.
    newest_row: usize,
}

/// Which sequence has which rows.
#[derive(Debug)]
pub(crate) struct RowTable {
    layout: TableLayout,
    placed: Vec<Placed>,
    /// Some sequence of the last step had more than one row.
    had_drafts: bool,
}

impl RowTable {
    pub(crate) fn new(layout: TableLayout) -> Self {
        Self { layout, placed: Vec::new(), had_drafts: false }
    }

    pub(crate) fn clear(&mut self) {
        self.placed.clear();
        self.had_drafts = false;
    }

    /// Whether the next step has the rows of the last one, one a sequence: the device has moved them on already.
    pub(crate) fn has(&self, ids: impl ExactSizeIterator<Item = SeqId>) -> bool {
        !self.had_drafts
            && ids.len() == self.placed.len()
            && ids.zip(&self.placed).all(|(id, placed)| Some(id) == placed.id)
    }

    /// The row with the newest token of a sequence, whose rows are not its own any more.
    pub(crate) fn leave(&mut self, id: SeqId) -> Option<usize> {
        let placed = self.placed.iter_mut().find(|placed| placed.id == Some(id))?;
        placed.id = None;
        Some(placed.newest_row)
    }

    /// Of the tokens that the last step drew for a sequence, the first `num_accepted` stay.
    pub(crate) fn accept(&mut self, id: SeqId, num_accepted: usize) {
        if let Some(placed) = self.placed.iter_mut().find(|placed| placed.id == Some(id)) {
            placed.newest_row = placed.first_row + num_accepted.saturating_sub(1);
        }
    }

    /// Takes the rows of the next step: each of `rows` with those of its drafts behind it.
    ///
    /// # Errors
    /// When there are more rows, or more blocks in one, than the tables hold.
    pub(crate) fn update(&mut self, rows: &[TableRow<'_>]) -> Result<Change, EngineError> {
        let words = self.words(rows)?;
        let row_of: HashMap<SeqId, usize> =
            self.placed.iter().filter_map(|placed| Some((placed.id?, placed.newest_row))).collect();
        let mut sources = Vec::with_capacity(rows.len());
        self.placed.clear();
        for row in rows {
            let first_row = sources.len();
            let source =
                row_of.get(&row.id).map_or(TokenSource::Waiting(row.id), |&row| TokenSource::Row(row));
            sources.extend(std::iter::repeat_n(source, 1 + row.num_drafts));
            self.placed.push(Placed { id: Some(row.id), first_row, newest_row: first_row });
        }
        self.had_drafts = sources.len() > rows.len();
        Ok(Change { sources, words })
    }

    fn words(&self, rows: &[TableRow<'_>]) -> Result<Vec<i32>, EngineError> {
        let layout = self.layout;
        let num_rows = rows.iter().map(|row| 1 + row.num_drafts).sum();
        check_room("rows of a step", num_rows, layout.max_rows)?;
        let mut words = vec![0; layout.num_words()];
        words[layout.positions()..layout.num_generated()].fill(-1);
        let shared = shared_prefixes(rows, layout.num_tables);
        let each = rows.iter().flat_map(|row| (0..=row.num_drafts as u32).map(move |offset| (row, offset)));
        for (idx, ((row, offset), (first_row, num_shared))) in each.zip(shared).enumerate() {
            let num_blocks = row.block_table.len() / layout.num_tables;
            check_room("blocks of a sequence", num_blocks, layout.max_blocks_per_seq)?;
            words[layout.sample_idxs() + 2 * idx] = row.sample_idx as u32 as i32;
            words[layout.sample_idxs() + 2 * idx + 1] = (row.sample_idx >> 32) as u32 as i32;
            let position = row.context_len + offset;
            words[layout.positions() + idx] = position as i32;
            // The first token is drawn from the prompt: the newest one stands right behind it.
            let num_generated = (position + 1).saturating_sub(row.prompt_len_tokens);
            words[layout.num_generated() + idx] = num_generated as i32;
            words[layout.response_idxs() + idx] = row.id.response_idx as i32;
            words[layout.prefix_groups() + 2 * idx] = first_row as i32;
            words[layout.prefix_groups() + 2 * idx + 1] = num_shared as i32;
            if let (Some(own), true) = (row.own, layout.has_row_rules) {
                let start = layout.row_rules() + idx * ROW_RULE_WORDS;
                words[start..start + ROW_RULE_WORDS].copy_from_slice(&row_rule_words(own)?);
            }
            for table in 0..layout.num_tables {
                let row_of_table = table * layout.max_rows + idx;
                let start = layout.block_tables() + row_of_table * layout.max_blocks_per_seq;
                let words = &mut words[start..start + layout.max_blocks_per_seq];
                let blocks = row.block_table.iter().skip(table).step_by(layout.num_tables);
                for (word, &block) in words.iter_mut().zip(blocks) {
                    *word = block as i32;
                }
            }
        }
        Ok(words)
    }
}

pub(super) fn check_room(what: &'static str, actual: usize, limit: usize) -> Result<(), EngineError> {
    if actual <= limit { Ok(()) } else { Err(EngineError::TablesTooSmall { what, actual, limit }) }
}

/// For each row, those of drafts included, the first row of the neighbours that it shares first blocks with, and how many
/// blocks they share. Attention stops before the tokens of the step by itself. The first of the tables says so for all that
/// keep all tokens; attention in those with a window shares no reads.
pub(super) fn shared_prefixes(rows: &[TableRow<'_>], num_tables: usize) -> Vec<(usize, usize)> {
    if num_tables > 1 {
        let first_table = |row: &TableRow<'_>| row.block_table.iter().step_by(num_tables).copied().collect();
        let tables: Vec<Vec<BlockId>> = rows.iter().map(first_table).collect();
        let of_first = rows.iter().zip(&tables).map(|(row, block_table)| TableRow { block_table, ..*row });
        return shared_in_table(&of_first.collect::<Vec<_>>());
    }
    shared_in_table(rows)
}

fn shared_in_table(rows: &[TableRow<'_>]) -> Vec<(usize, usize)> {
    let mut groups: Vec<PrefixGroup<'_>> = Vec::new();
    for rows in rows.chunk_by(|a, b| a.id.group_idx == b.id.group_idx) {
        for next in PrefixGroup::of_request(rows) {
            match groups.last_mut().and_then(|last| Some((last.joined(&next)?, last))) {
                Some((num_shared, last)) => {
                    last.num_shared = num_shared;
                    last.num_rows += next.num_rows;
                }
                None => groups.push(next),
            }
        }
    }
    let mut shared = Vec::with_capacity(rows.len());
    for group in groups {
        let first_row = shared.len();
        shared.extend(std::iter::repeat_n((first_row, group.num_shared), group.num_rows));
    }
    shared
}

/// Neighbours that share their first blocks.
struct PrefixGroup<'a> {
    first: &'a [BlockId],
    num_rows: usize,
    num_shared: usize,
}

impl<'a> PrefixGroup<'a> {
    /// All rows of a request, which share what they have in common; or those of each response, which share all they have,
    /// where fewer blocks are read so.
    fn of_request(rows: &[TableRow<'a>]) -> Vec<Self> {
        let of_request = common_blocks(rows);
        let blocks = |row: &TableRow<'_>| row.block_table.len();
        let own = |row: &TableRow<'_>| (1 + row.num_drafts) * (blocks(row) - of_request.min(blocks(row)));
        let together = of_request + rows.iter().map(own).sum::<usize>();
        let apart: usize = rows.iter().map(blocks).sum();
        let group = |rows: &[TableRow<'a>], num_shared: usize| {
            let first = rows.first().map_or(&[][..], |row| row.block_table);
            let num_rows = rows.iter().map(|row| 1 + row.num_drafts).sum();
            Self { first, num_rows, num_shared: if num_rows > 1 { num_shared } else { 0 } }
        };
        match apart < together {
            true => rows.chunks(1).map(|row| group(row, common_blocks(row))).collect(),
            false => vec![group(rows, of_request)],
        }
    }

    /// How many blocks both share, if they are better off as one: no split is read more often than by each of them.
    fn joined(&self, next: &Self) -> Option<usize> {
        let of_group = |group: &Self| if group.num_rows > 1 { group.num_shared } else { group.first.len() };
        let common = common_of(self.first, next.first).min(of_group(self)).min(of_group(next));
        let num_splits = |num_blocks: usize| num_blocks / BLOCKS_PER_SPLIT;
        let best = num_splits(self.num_shared).max(num_splits(next.num_shared)).max(1);
        (num_splits(common) >= best).then_some(common)
    }
}

/// How many first blocks all of these rows have in common.
fn common_blocks(rows: &[TableRow<'_>]) -> usize {
    let Some((first, others)) = rows.split_first() else { return 0 };
    let common = |other: &TableRow<'_>| common_of(first.block_table, other.block_table);
    others.iter().map(common).min().unwrap_or(first.block_table.len())
}

fn common_of(a: &[BlockId], b: &[BlockId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: TableLayout =
        TableLayout { max_rows: 4, max_blocks_per_seq: 3, num_tables: 1, has_row_rules: false };

    fn row(group_idx: u64, response_idx: u32, context_len: u32, block_table: &[BlockId]) -> TableRow<'_> {
        let id = SeqId { group_idx, response_idx };
        let sample_idx = group_idx | 1 << 40;
        TableRow { id, context_len, num_drafts: 0, sample_idx, prompt_len_tokens: 4, own: None, block_table }
    }

    #[test]
    fn rows_stay_while_the_sequences_do() {
        let mut table = RowTable::new(LAYOUT);
        let rows = [row(1, 0, 4, &[5]), row(2, 0, 9, &[6])];
        let ids = rows.map(|row| row.id);
        assert!(!table.has(ids.into_iter()));
        table.update(&rows).unwrap();
        assert!(table.has(ids.into_iter()));
        assert!(!table.has(ids[1..].iter().copied()));
        let change = table.update(&rows[1..]).unwrap();
        assert_eq!(change.sources, [TokenSource::Row(1)]);
        assert_eq!([table.leave(ids[0]), table.leave(ids[1])], [None, Some(0)]);
        assert!(!table.has(ids[1..].iter().copied()));
        let change = table.update(&rows[1..]).unwrap();
        assert_eq!(change.sources, [TokenSource::Waiting(ids[1])]);
    }

    #[test]
    fn tables_say_what_the_host_knows() {
        let mut table = RowTable::new(LAYOUT);
        let rows = [row(7, 2, 6, &[5, 9])];
        let Change { sources, words } = table.update(&rows).unwrap();
        assert_eq!(sources, [TokenSource::Waiting(rows[0].id)]);
        assert_eq!(words.len(), LAYOUT.num_words());
        assert_eq!(words[..2], [7, 1 << 8]);
        assert_eq!(words[LAYOUT.positions()..LAYOUT.num_generated()], [6, -1, -1, -1]);
        assert_eq!(words[LAYOUT.num_generated()], 3);
        assert_eq!(words[LAYOUT.response_idxs()], 2);
        assert_eq!(words[LAYOUT.block_tables()..][..3], [5, 9, 0]);
    }

    #[test]
    fn each_table_has_its_blocks_and_the_first_says_what_is_shared() {
        let layout = TableLayout { num_tables: 2, max_rows: 2, ..LAYOUT };
        let rows = [row(1, 0, 70, &[3, 9, 4, 8]), row(1, 1, 70, &[3, 7, 4, 8, 5, 6])];
        let words = RowTable::new(layout).words(&rows).unwrap();
        assert_eq!(words.len(), layout.num_words());
        assert_eq!(words[layout.block_tables()..], [3, 4, 0, 3, 4, 5, 9, 8, 0, 7, 8, 6]);
        assert_eq!(words[layout.prefix_groups()..layout.row_rules()], [0, 2, 0, 2]);
    }

    #[test]
    fn neighbours_of_one_request_share_their_common_blocks() {
        let rows =
            [row(1, 0, 70, &[3, 4, 5]), row(1, 1, 70, &[3, 4, 6]), row(2, 0, 8, &[7]), row(3, 0, 8, &[8])];
        assert_eq!(shared_in_table(&rows), [(0, 2), (0, 2), (2, 0), (3, 0)]);
    }

    #[test]
    fn neighbours_of_several_requests_share_whole_splits() {
        let table = |num_shared: BlockId, own: &[BlockId]| -> Vec<BlockId> {
            (0..num_shared).chain(own.iter().copied()).collect()
        };
        let tables = [
            table(40, &[70]),
            table(40, &[71]),
            // As many splits are shared with those before.
            table(33, &[80, 90]),
            // Less than a split.
            table(9, &[81, 91]),
            // More is shared with each other than with those before.
            table(50, &[]),
            table(50, &[92]),
        ];
        let requests = [1, 2, 3, 4, 5, 5];
        let rows: Vec<_> = (0..)
            .zip(requests.iter().zip(&tables))
            .map(|(idx, (&group_idx, table))| row(group_idx, idx, 8, table))
            .collect();
        assert_eq!(shared_in_table(&rows), [(0, 33), (0, 33), (0, 33), (3, 0), (4, 50), (4, 50)]);
        assert_eq!(shared_in_table(&rows[2..5]), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(shared_in_table(&rows[..2]), [(0, 40), (0, 40)]);
    }

    #[test]
    fn drafts_have_rows_behind_their_sequence() {
        let mut table = RowTable::new(LAYOUT);
        let drafting = TableRow { num_drafts: 2, ..row(2, 0, 7, &[6, 3]) };
        let Change { sources, words } = table.update(&[row(1, 0, 4, &[5]), drafting]).unwrap();
        let waiting = |group_idx| TokenSource::Waiting(SeqId { group_idx, response_idx: 0 });
        assert_eq!(sources, [waiting(1), waiting(2), waiting(2), waiting(2)]);
        assert_eq!(words[LAYOUT.positions()..LAYOUT.num_generated()], [4, 7, 8, 9]);
        assert_eq!(words[LAYOUT.num_generated()..LAYOUT.response_idxs()], [1, 4, 5, 6]);
        assert_eq!(words[LAYOUT.prefix_groups()..LAYOUT.row_rules()], [0, 0, 1, 2, 1, 2, 1, 2]);
        assert_eq!(words[LAYOUT.block_tables()..], [5, 0, 0, 6, 3, 0, 6, 3, 0, 6, 3, 0]);
        table.accept(drafting.id, 2);
        let ids = [row(1, 0, 4, &[5]).id, drafting.id];
        assert!(!table.has(ids.into_iter()), "rows that are no more are taken for those of the next step");
        let next = [row(1, 0, 5, &[5]), row(2, 0, 9, &[6, 3])];
        assert_eq!(table.update(&next).unwrap().sources, [TokenSource::Row(0), TokenSource::Row(2)]);
        assert!(table.has(ids.into_iter()));
    }

    #[test]
    fn rows_share_where_it_saves_the_most_reads() {
        let (long, short) = ([1, 2, 3, 4, 5, 6, 7], [1, 9]);
        let drafting = |num_drafts| TableRow { num_drafts, ..row(1, 0, 70, &long) };
        // Six rows would read six blocks each beside the one that they share with the other response.
        let shared = shared_in_table(&[drafting(5), row(1, 1, 70, &short)]);
        assert_eq!(shared, [[(0, 7); 6].as_slice(), &[(6, 0)]].concat());
        let siblings = [&[1, 2, 3, 4, 5, 6, 8][..], &[1, 2, 3, 4, 5, 6, 9], &[1, 2, 3, 4, 5, 6, 10]];
        let mut rows = siblings.map(|table| row(1, 0, 70, table)).to_vec();
        rows[1].num_drafts = 1;
        assert_eq!(shared_in_table(&rows), [(0, 6); 4]);
        assert_eq!(shared_in_table(&[drafting(0)]), [(0, 0)]);
    }

    #[test]
    fn what_the_tables_cannot_hold_is_refused() {
        let refused = |rows: &[TableRow<'_>]| RowTable::new(LAYOUT).update(rows).unwrap_err().to_string();
        insta::assert_snapshot!(refused(&[row(1, 0, 4, &[5]); 5]), @"the GPU's tables hold 4 rows of a step, not 5");
        insta::assert_snapshot!(refused(&[row(1, 0, 4, &[5, 6, 7, 8])]), @"the GPU's tables hold 3 blocks of a sequence, not 4");
    }
}
