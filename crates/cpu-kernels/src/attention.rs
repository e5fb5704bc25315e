//! Causal attention over the paged KV cache, prefill and decode alike, with rotary positions and the cache write.
//!
//! A query head's result is a fixed sequence of operations over the key blocks of its own sequence (online softmax,
//! one block of 32 keys at a time, ascending): it is bitwise identical in a prefill, in a decode step, and in any batch.
#![expect(unsafe_code, reason = "tasks of one loop write disjoint rows and cache heads through one pointer")]

use std::ops::Range;

use super::buffer::SharedPtr;
use super::elem::Elem;
use super::isa::{Isa, multiversion};
use super::kv::{BLOCK_TOKENS, KvLayer, MAX_HEAD_DIM};
use super::math::{exp, sum_lanes, tanh};
use super::pool::Pool;
use super::tile::{Acc, Init, Left, MAX_ROWS, PANEL, Panel, Rows, Share, Tiles, Units, VECTOR_ROWS};

const MAX_CHUNKS: usize = MAX_HEAD_DIM / PANEL;
/// Tiles that one task takes, so that what comes next is known and can be fetched ahead.
const TASK_TILES: usize = 4;

/// The new tokens of one sequence, and the blocks of its cache.
#[derive(Clone, Copy, Debug)]
pub struct PagedSequence<'a> {
    /// The first new token among the step's tokens.
    pub query_start: usize,
    /// How many new tokens.
    pub query_len: usize,
    /// Tokens already in the cache.
    pub context_len: usize,
    /// The sequence's blocks, enough for `context_len + query_len` tokens.
    pub block_table: &'a [u32],
}

/// Cosines and sines of the rotary positions, `[num_positions, rotary_dim / 2]`.
#[derive(Clone, Copy, Debug)]
pub struct RotaryTable<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Rotated elements, the first of each head; 0 for none.
    pub rotary_dim: usize,
}

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads.
    pub num_query_groups: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// How many tokens a token sees, itself among them; at least 1. All before it where there is none.
    pub window: Option<usize>,
}

impl HeadShape {
    pub(crate) fn heads_per_group(&self) -> usize {
        self.num_attention_heads / self.num_query_groups
    }
}

/// One attention layer on the new tokens of many sequences. Sizes, blocks and positions are checked by the caller.
pub(crate) struct AttentionCall<'a, E: Elem> {
    pub(crate) heads: HeadShape,
    pub(crate) rotary: RotaryTable<'a>,
    pub(crate) sequences: &'a [PagedSequence<'a>],
    /// `[num_tokens, num_query_groups, heads_per_group + 2, head_dim]`.
    pub(crate) qkv: &'a [E],
    pub(crate) num_tokens: usize,
    /// Room for the rotated queries.
    pub(crate) queries: &'a mut Vec<E>,
    pub(crate) layer: KvLayer<E>,
    /// Of each query head.
    pub(crate) sinks: Option<&'a [f32]>,
    /// `[num_tokens, num_attention_heads, head_dim]`.
    pub(crate) out: &'a mut [E],
}

/// Rotates, stores keys and values, attends.
pub(crate) fn attention<E: Elem>(pool: &mut Pool, isa: Isa, tiles: &Tiles<E>, call: AttentionCall<'_, E>) {
    let AttentionCall { heads, rotary, sequences, qkv, num_tokens, queries, layer, sinks, out } = call;
    let query_elems = heads.head_dim.next_multiple_of(E::GROUP);
    queries.resize(heads.num_attention_heads * num_tokens * query_elems, E::default());
    let queries = SharedPtr::new(queries.as_mut_ptr());
    let step = Step {
        heads,
        rotary,
        qkv,
        num_tokens,
        query_elems,
        queries,
        layer,
        sinks,
        out: SharedPtr::new(out.as_mut_ptr()),
    };

    let groups = heads.num_query_groups;
    let blocks: Vec<(&PagedSequence<'_>, usize)> = sequences
        .iter()
        .flat_map(|sequence| block_range(sequence).map(move |block| (sequence, block)))
        .collect();
    pool.run(blocks.len() * groups, &|task_idx| {
        let (sequence, block) = blocks[task_idx / groups];
        store_block(isa, &step, sequence, block, task_idx % groups);
    });

    let tile_rows = tiles.max_rows();
    let mut tile_starts: Vec<(&PagedSequence<'_>, usize)> = Vec::new();
    for sequence in sequences {
        let num_rows = sequence.query_len * heads.heads_per_group();
        // Long contexts first: the last tasks of the loop are then short ones.
        tile_starts.extend((0..num_rows).step_by(tile_rows).rev().map(|first_row| (sequence, first_row)));
    }
    let num_tiles = tile_starts.len() * groups;
    let tile_at = |tile_idx: usize| {
        let (sequence, first_row) = tile_starts[tile_idx / groups];
        let num_rows = sequence.query_len * heads.heads_per_group();
        Tile { sequence, group: tile_idx % groups, first_row, len: tile_rows.min(num_rows - first_row) }
    };
    pool.run(num_tiles.div_ceil(TASK_TILES), &|task_idx| {
        for tile_idx in task_idx * TASK_TILES..((task_idx + 1) * TASK_TILES).min(num_tiles) {
            let (tile, next) = (tile_at(tile_idx), tile_at((tile_idx + 1).min(num_tiles - 1)));
            // Head sizes have few widths; each gets a kernel that clears only what it uses.
            match heads.head_dim.div_ceil(PANEL) {
                0..=2 => attend_tile::<E, 2>(isa, tiles, &step, tile, next),
                3..=4 => attend_tile::<E, 4>(isa, tiles, &step, tile, next),
                _ => attend_tile::<E, MAX_CHUNKS>(isa, tiles, &step, tile, next),
            }
        }
    });
}

struct Step<'a, E: Elem> {
    heads: HeadShape,
    rotary: RotaryTable<'a>,
    qkv: &'a [E],
    num_tokens: usize,
    query_elems: usize,
    /// `[num_query_groups, num_tokens, heads_per_group, query_elems]`: the rows of a group follow one another.
    queries: SharedPtr<E>,
    layer: KvLayer<E>,
    sinks: Option<&'a [f32]>,
    out: SharedPtr<E>,
}

/// The cache blocks that a sequence's new tokens fall into, as indices into its block table.
fn block_range(sequence: &PagedSequence<'_>) -> Range<usize> {
    let end = sequence.context_len + sequence.query_len;
    sequence.context_len / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS)
}

multiversion! {
    /// Rotates the queries and keys of the new tokens in one block and group, and stores keys and values. One task
    /// has a whole block, since its first token clears it.
    fn store_block<E: Elem>(step: &Step<'_, E>, sequence: &PagedSequence<'_>, block: usize, group: usize) {
        let HeadShape { num_query_groups, head_dim, .. } = step.heads;
        let heads_per_group = step.heads.heads_per_group();
        let group_elems = (heads_per_group + 2) * head_dim;
        let mut rotated_key = [E::default(); MAX_HEAD_DIM];
        let first = sequence.context_len.max(block * BLOCK_TOKENS);
        let end = (sequence.context_len + sequence.query_len).min((block + 1) * BLOCK_TOKENS);
        for position in first..end {
            let token = sequence.query_start + position - sequence.context_len;
            let at = (token * num_query_groups + group) * group_elems;
            let (query_heads, key_value) = step.qkv[at..at + group_elems].split_at(heads_per_group * head_dim);
            let (key, value) = key_value.split_at(head_dim);
            let row = (group * step.num_tokens + token) * heads_per_group;
            for (head, query) in query_heads.chunks_exact(head_dim).enumerate() {
                // SAFETY: `queries` has room for every token and head, and this task alone has this token's group.
                let out = unsafe { step.queries.slice((row + head) * step.query_elems, step.query_elems) };
                rotate(&step.rotary, position, query, out);
            }
            rotate(&step.rotary, position, key, &mut rotated_key);
            let (kv_block, slot) = (sequence.block_table[block], position % BLOCK_TOKENS);
            // SAFETY: blocks and heads were checked by the caller; no two tasks have the same block and group.
            unsafe { step.layer.write(kv_block, slot, group, &rotated_key[..head_dim], value) };
        }
    }
}

/// Half-split rotation of the first `rotary_dim` elements: pairs (i, i + rotary_dim / 2). The rest passes through.
#[inline(always)]
fn rotate<E: Elem>(rotary: &RotaryTable<'_>, position: usize, head: &[E], out: &mut [E]) {
    let half = rotary.rotary_dim / 2;
    let cos = &rotary.cos[position * half..(position + 1) * half];
    let sin = &rotary.sin[position * half..(position + 1) * half];
    let (low, rest) = head.split_at(half);
    let (high, passed) = rest.split_at(half);
    let (out_low, out_rest) = out.split_at_mut(half);
    let (out_high, out_passed) = out_rest.split_at_mut(half);
    for i in 0..half {
        let (x, y) = (low[i].to_f32(), high[i].to_f32());
        out_low[i] = E::from_f32(x * cos[i] - y * sin[i]);
        out_high[i] = E::from_f32(y * cos[i] + x * sin[i]);
    }
    out_passed[..passed.len()].copy_from_slice(passed);
}

/// Some consecutive query rows (token, head in group) of one sequence and group.
#[derive(Clone, Copy)]
struct Tile<'a> {
    sequence: &'a PagedSequence<'a>,
    group: usize,
    first_row: usize,
    len: usize,
}

/// The running state of the softmax of each row.
struct Softmax {
    max: [f32; MAX_ROWS],
    sum: [f32; MAX_ROWS],
    /// What earlier sums and outputs must be multiplied with since the maximum has grown.
    correction: [f32; MAX_ROWS],
}

impl Softmax {
    /// Before the first key: of a row with a sink the sum begins with it, as if it were the score of a key without a value.
    fn new(num_rows: usize, sink_of: impl Fn(usize) -> Option<f32>) -> Self {
        let mut softmax =
            Self { max: [f32::NEG_INFINITY; MAX_ROWS], sum: [0.0; MAX_ROWS], correction: [0.0; MAX_ROWS] };
        for row in 0..num_rows {
            if let Some(sink) = sink_of(row) {
                (softmax.max[row], softmax.sum[row]) = (sink, 1.0);
            }
        }
        softmax
    }
}

/// The keys of one block that each row sees.
struct Seen {
    first: [usize; MAX_ROWS],
    end: [usize; MAX_ROWS],
}

impl Seen {
    /// Of the positions that each of the first `num_rows` rows sees in all blocks.
    fn of(block_idx: usize, num_rows: usize, positions: impl Fn(usize) -> Range<usize>) -> Self {
        let in_block = |position: usize| position.saturating_sub(block_idx * BLOCK_TOKENS).min(BLOCK_TOKENS);
        let mut seen = Self { first: [0; MAX_ROWS], end: [0; MAX_ROWS] };
        for row in 0..num_rows {
            let Range { start, end } = positions(row);
            (seen.first[row], seen.end[row]) = (in_block(start), in_block(end));
        }
        seen
    }
}

/// `next`: what the same thread will most likely do after, for fetching ahead.
fn attend_tile<E: Elem, const CHUNKS: usize>(
    isa: Isa,
    tiles: &Tiles<E>,
    step: &Step<'_, E>,
    tile: Tile<'_>,
    next: Tile<'_>,
) {
    let sequence = tile.sequence;
    let heads_per_group = step.heads.heads_per_group();
    let head_dim = step.heads.head_dim;
    let num_chunks = head_dim.div_ceil(PANEL);
    let first_row = (tile.group * step.num_tokens + sequence.query_start) * heads_per_group + tile.first_row;
    let position_of = |row: usize| sequence.context_len + (tile.first_row + row) / heads_per_group;
    let head_of = |row: usize| tile.group * heads_per_group + (tile.first_row + row) % heads_per_group;
    let mut softmax = Softmax::new(tile.len, |row| step.sinks.map(|sinks| sinks[head_of(row)]));
    let mut units = Units::default();
    let mut scores: Acc = [[0.0; PANEL]; MAX_ROWS];
    let mut outputs: [Acc; CHUNKS] = [[[0.0; PANEL]; MAX_ROWS]; CHUNKS];
    let mut probs = [[E::default(); BLOCK_TOKENS]; MAX_ROWS];
    let mut query_words = [[0_u32; PANEL * VECTOR_ROWS]; CHUNKS];
    let mut prob_words = [0_u32; BLOCK_TOKENS * VECTOR_ROWS];
    // SAFETY: the rows lie in `queries`, written by the loop before.
    let queries = unsafe {
        let start = step.queries.at(first_row * step.query_elems).cast_const();
        let rows = Rows { start, stride_elems: step.query_elems, len: tile.len };
        tiles.pack(isa, rows, step.query_elems, query_words.as_flattened_mut());
        Left { rows, words: query_words.as_ptr().cast() }
    };
    let num_blocks = position_of(tile.len - 1) / BLOCK_TOKENS + 1;
    let first_seen = |row: usize| match step.heads.window {
        Some(window) => (position_of(row) + 1).saturating_sub(window),
        None => 0,
    };
    // Blocks that no row sees would change no bit of any.
    let first_block = first_seen(0) / BLOCK_TOKENS;
    for (block_idx, &block) in sequence.block_table[..num_blocks].iter().enumerate().skip(first_block) {
        let (next_block, next_group) = match sequence.block_table[..num_blocks].get(block_idx + 1) {
            Some(&next_block) => (next_block, tile.group),
            None => (next.sequence.block_table[0], next.group),
        };
        // SAFETY: blocks and groups exist.
        let next_keys = unsafe { step.layer.keys(next_block, next_group) };
        let seen = Seen::of(block_idx, tile.len, |row| first_seen(row)..position_of(row) + 1);
        // SAFETY: the block and group exist, and a key panel has as many groups as a query row; `tile.len` is at most
        // `max_rows`.
        unsafe {
            let panel = Panel {
                start: step.layer.keys(block, tile.group),
                stride_elems: BLOCK_TOKENS * E::GROUP,
                num_groups: head_dim.div_ceil(E::GROUP),
                prefetch: step.layer.values(block, tile.group),
                prefetch_share: Share::All,
            };
            tiles.run(&mut units, queries, panel, Init::zero(), &mut scores);
        }
        softmax_block(isa, &mut scores[..tile.len], &seen, step.heads, &mut softmax, &mut probs);
        // Tokens that no row sees have a probability of 0; adding their products one by one would change no bit.
        let num_tokens = if tiles.sums_whole_blocks() { BLOCK_TOKENS } else { seen.end[tile.len - 1] };
        let rows = Rows { start: probs.as_ptr().cast(), stride_elems: BLOCK_TOKENS, len: tile.len };
        // SAFETY: `probs` has MAX_ROWS rows of BLOCK_TOKENS.
        unsafe { tiles.pack(isa, rows, num_tokens, &mut prob_words) };
        let probs = Left { rows, words: prob_words.as_ptr() };
        for (chunk, output) in outputs[..num_chunks].iter_mut().enumerate() {
            // SAFETY: a value panel is padded to whole chunks of PANEL columns and has BLOCK_TOKENS / GROUP groups.
            unsafe {
                let panel = Panel {
                    start: step.layer.values(block, tile.group).add(chunk * PANEL * E::GROUP),
                    stride_elems: step.layer.value_stride_elems(),
                    num_groups: num_tokens.div_ceil(E::GROUP),
                    prefetch: next_keys.wrapping_add(chunk * PANEL * BLOCK_TOKENS),
                    prefetch_share: Share::All,
                };
                tiles.run(&mut units, probs, panel, Init::scaled(output, &softmax.correction), output);
            }
        }
    }
    for row in 0..tile.len {
        let token = sequence.query_start + (tile.first_row + row) / heads_per_group;
        let at = (token * step.heads.num_attention_heads + head_of(row)) * head_dim;
        // SAFETY: `out` holds every token and head, and this task alone has this row.
        let out = unsafe { step.out.slice(at, head_dim) };
        let scale = 1.0 / softmax.sum[row];
        for (out, output) in out.chunks_mut(PANEL).zip(&outputs) {
            scale_into(isa, out, &output[row], scale);
        }
    }
}

multiversion! {
    fn scale_into<E: Elem>(out: &mut [E], values: &[f32; PANEL], factor: f32) {
        out.iter_mut().zip(values).for_each(|(out, value)| *out = E::from_f32(value * factor));
    }
}

multiversion! {
    /// Turns one block's scores into unnormalised probabilities, and updates the running maximum and sum.
    fn softmax_block<E: Elem>(
        scores: &mut [[f32; PANEL]],
        seen: &Seen,
        heads: HeadShape,
        softmax: &mut Softmax,
        probs: &mut [[E; BLOCK_TOKENS]; MAX_ROWS],
    ) {
        for (row, scores) in scores.iter_mut().enumerate() {
            let mut lanes = [f32::NEG_INFINITY; 16];
            if let Some(softcap) = heads.softcap {
                for score in scores.iter_mut() {
                    *score = softcap * tanh(*score * heads.scale / softcap);
                }
            } else {
                for score in scores.iter_mut() {
                    *score *= heads.scale;
                }
            }
            let (first, end) = (seen.first[row], seen.end[row]);
            for (key, score) in scores.iter_mut().enumerate() {
                *score = if key >= first && key < end { *score } else { f32::NEG_INFINITY };
            }
            for (lane, max) in lanes.iter_mut().enumerate() {
                *max = if scores[lane] > scores[lane + 16] { scores[lane] } else { scores[lane + 16] };
            }
            let block_max = lanes.iter().fold(f32::NEG_INFINITY, |max, &lane| if lane > max { lane } else { max });
            let max = if block_max > softmax.max[row] { block_max } else { softmax.max[row] };
            if max == f32::NEG_INFINITY {
                // Its window begins behind this block, which another row of the tile sees.
                probs[row] = [E::default(); BLOCK_TOKENS];
                softmax.correction[row] = 1.0;
                continue;
            }
            let mut sums = [0.0_f32; 16];
            for (score, prob) in scores.iter_mut().zip(probs[row].iter_mut()) {
                *score = exp(*score - max);
                *prob = E::from_f32(*score);
            }
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = scores[lane] + scores[lane + 16];
            }
            softmax.correction[row] = exp(softmax.max[row] - max);
            softmax.sum[row] = softmax.sum[row] * softmax.correction[row] + sum_lanes(sums);
            softmax.max[row] = max;
        }
    }
}
