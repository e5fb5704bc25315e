//! One step as attention sees it: which rows belong to which sequence, and where its keys and values lie.
//!
//! Whole prompts, chunks, decoded tokens and drafts differ only in numbers here and may be mixed. The context is built
//! once a step and serves all layers.

use std::ops::Range;

use model_spec::blocks_for;
use tch::Tensor;

use crate::batch::Span;
use crate::ids::Ids;
use crate::kv_cache::BLOCK_SIZE_TOKENS;
use crate::{Batch, BlockId, DeviceDecode, KvCache, ModelError};

/// The rows of one sequence in the step, and its place in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SequenceSpan {
    /// First row.
    pub(crate) query_start: usize,
    /// Number of rows.
    pub(crate) query_len: usize,
    /// Tokens already cached before the first row, which is also the first row's position.
    pub(crate) context_len: usize,
    /// Where its blocks lie in each of [`AttentionContext::tables`].
    pub(crate) blocks: Range<usize>,
}

impl SequenceSpan {
    /// Tokens in the cache after the step.
    pub(crate) fn num_keys(&self) -> usize {
        self.context_len + self.query_len
    }
}

/// What the step needs for all layers with a table of the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContextTable {
    /// Where each row's key and value go, `block * block_size + offset`: `[num_tokens]`.
    pub(crate) slots: Vec<u32>,
    /// The blocks of all sequences, one sequence after the other.
    blocks: Vec<BlockId>,
}

/// What the step needs for all layers.
#[derive(Debug)]
pub(crate) struct AttentionContext {
    /// Position of each row in its sequence: `[num_tokens]`.
    pub(crate) positions: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub(crate) sequences: Vec<SequenceSpan>,
    /// The tables of the cache.
    pub(crate) tables: Vec<ContextTable>,
    /// The same where kernels of another device read it; the host's lists are empty for steps planned there.
    pub(crate) device: Option<DeviceContext>,
}

/// A step on the device that computes it. All tensors are int32.
#[derive(Debug)]
pub(crate) struct DeviceContext {
    /// `[num_tokens]`.
    pub(crate) tokens: Tensor,
    /// `[num_tokens]`; negative where a row is not in use.
    pub(crate) positions: Tensor,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
    pub(crate) attention: DeviceAttention,
}

/// Which rows see which keys.
#[derive(Debug)]
pub(crate) enum DeviceAttention {
    /// Prompts.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
    Prefill(DevicePrompts),
    /// One token a row.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
    Decode {
        /// Of each table of the cache, `[num_rows, max_blocks_per_seq]`.
        block_tables: Vec<Tensor>,
        /// `[num_rows, 2]`: the first row of those that share a prompt with this one, and how many blocks they share.
        prefix_groups: Tensor,
        /// Whether some rows are consecutive tokens of one sequence.
        has_drafts: bool,
    },
}

/// Prompts or parts of them, one after the other.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
pub(crate) struct DevicePrompts {
    /// Of each table of the cache, where each row's key and value go: `[num_tokens]`.
    pub(crate) slots: Vec<Tensor>,
    /// Of the rows: `[num_seqs + 1]`.
    pub(crate) cu_seqlens: Tensor,
    pub(crate) max_len_tokens: usize,
    /// The keys of all sequences when some were cached before this step; None for whole prompts.
    pub(crate) cached: Option<CachedKeys>,
}

/// Keys of whole sequences in the cache, those of this step among them.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only the kernels of a GPU use it"))]
pub(crate) struct CachedKeys {
    /// Of each table of the cache, where each one lies: `[num_keys]`.
    pub(crate) slots: Vec<Tensor>,
    /// `[num_seqs + 1]`.
    pub(crate) cu_seqlens: Tensor,
    pub(crate) max_len_tokens: usize,
}

impl AttentionContext {
    /// A step that is planned on the device: one row for each of `rows`.
    pub(crate) fn on_device(rows: &DeviceDecode<'_>) -> Result<Self, ModelError> {
        let of_rows = |tensor: &Tensor| tensor.f_narrow(0, 0, rows.num_rows as i64);
        let (num_tables, ..) = rows.block_tables.size3()?;
        let block_tables = (0..num_tables).map(|table| of_rows(&rows.block_tables.f_select(0, table)?));
        Ok(Self {
            positions: Vec::new(),
            sequences: Vec::new(),
            tables: Vec::new(),
            device: Some(DeviceContext {
                tokens: of_rows(rows.tokens)?,
                positions: of_rows(rows.positions)?,
                attention: DeviceAttention::Decode {
                    block_tables: block_tables.collect::<Result<_, _>>()?,
                    prefix_groups: of_rows(rows.prefix_groups)?,
                    has_drafts: rows.has_drafts,
                },
            }),
        })
    }

    /// The token ids where the backend reads them.
    pub(crate) fn token_ids<'a>(&'a self, tokens: &'a [u32]) -> Ids<'a> {
        self.device.as_ref().map_or(Ids::Host(tokens), |device| Ids::Device(&device.tokens))
    }

    /// The positions where the backend reads them.
    pub(crate) fn position_ids(&self) -> Ids<'_> {
        self.device.as_ref().map_or(Ids::Host(&self.positions), |device| Ids::Device(&device.positions))
    }

    /// A step that the host describes.
    ///
    /// # Errors
    /// When the batch contradicts itself or the cache.
    pub(crate) fn new(batch: &Batch, cache: &KvCache) -> Result<Self, ModelError> {
        let mut context = Self {
            positions: Vec::with_capacity(batch.tokens.len()),
            sequences: Vec::with_capacity(batch.spans.len()),
            tables: vec![ContextTable::default(); cache.tables().len()],
            device: None,
        };
        let mut num_entries = 0;
        for span in &batch.spans {
            let tables_left = batch.block_tables.get(num_entries..).unwrap_or_default();
            let Some(entries) = tables_left.get(..span.num_blocks as usize) else {
                let expected = format!("at least {}", span.num_blocks);
                return Err(bad_batch("blocks left for a span", expected, tables_left.len()));
            };
            context.push(span, entries, cache)?;
            num_entries += entries.len();
        }
        check_len("number of tokens", context.positions.len(), batch.tokens.len())?;
        check_len("number of blocks of all spans", num_entries, batch.block_tables.len())?;
        if context.sequences.is_empty() {
            return Err(bad_batch("number of sequences", "at least 1".to_owned(), 0));
        }
        Ok(context)
    }

    /// Adds the rows of one span, whose `entries` are a block of every table for its first tokens, and so on.
    fn push(&mut self, span: &Span, entries: &[BlockId], cache: &KvCache) -> Result<(), ModelError> {
        let (context_len, query_len) = (span.context_len as usize, span.query_len as usize);
        if query_len == 0 {
            return Err(bad_batch("sequence length", "at least 1".to_owned(), 0));
        }
        if span.num_logits > span.query_len {
            let expected = format!("at most {query_len}");
            return Err(bad_batch("rows of logits of a span", expected, span.num_logits as usize));
        }
        let (num_blocks, num_tables) =
            (blocks_for(context_len + query_len, BLOCK_SIZE_TOKENS), cache.tables().len());
        let num_used = num_blocks * num_tables;
        let Some(used) = entries.get(..num_used) else {
            return Err(bad_batch("block table length", format!("at least {num_used}"), entries.len()));
        };
        for &block in used {
            cache.check_block(block)?;
        }
        let first_block = self.tables.first().map_or(0, |table| table.blocks.len());
        self.sequences.push(SequenceSpan {
            query_start: self.positions.len(),
            query_len,
            context_len,
            blocks: first_block..first_block + num_blocks,
        });
        let positions = context_len..context_len + query_len;
        self.positions.extend(positions.clone().map(|position| position as u32));
        for (first, table) in self.tables.iter_mut().enumerate() {
            table.blocks.extend(used.iter().skip(first).step_by(num_tables));
            let own = table.blocks.get(first_block..).unwrap_or_default();
            table.slots.extend(slots_of(own, positions.clone()));
        }
        Ok(())
    }

    /// The blocks of one sequence in a table, in the order of its tokens.
    pub(crate) fn blocks(&self, table: usize, sequence: &SequenceSpan) -> &[BlockId] {
        let blocks = self.tables.get(table).map(|table| table.blocks.as_slice()).unwrap_or_default();
        blocks.get(sequence.blocks.clone()).unwrap_or_default()
    }

    /// Where each row's key and value go in a table.
    pub(crate) fn slots(&self, table: usize) -> &[u32] {
        self.tables.get(table).map(|table| table.slots.as_slice()).unwrap_or_default()
    }

    /// The longest sequence after the step, in tokens.
    pub(crate) fn max_context_len(&self) -> usize {
        self.sequences.iter().map(SequenceSpan::num_keys).max().unwrap_or(0)
    }
}

/// Where the tokens at `positions` of a sequence with these blocks lie.
pub(crate) fn slots_of(blocks: &[BlockId], positions: Range<usize>) -> impl Iterator<Item = u32> {
    let block_size = BLOCK_SIZE_TOKENS as u32;
    positions.map(move |position| {
        let block = blocks.get(position / BLOCK_SIZE_TOKENS).copied().unwrap_or_default();
        block * block_size + position as u32 % block_size
    })
}

fn check_len(what: &'static str, expected: usize, actual: usize) -> Result<(), ModelError> {
    if expected == actual { Ok(()) } else { Err(bad_batch(what, expected.to_string(), actual)) }
}

fn bad_batch(what: &'static str, expected: String, actual: usize) -> ModelError {
    ModelError::BadBatch { what, expected, actual: actual.to_string() }
}
