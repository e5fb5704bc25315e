//! What the tests of engines share: a model and a device that are simulated, down to the slot of the cache.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use model_core::{Batch, BlockId, BlockMove, HostBlockId};
use model_spec::KvTables;
use proptest::prelude::*;
use sampling::{
    CpuSampler, RowRules, SamplingParams, SamplingRules, StopConditions, Structures, TextFollower,
    TokenBytes, Vocabulary,
};
use tch::Tensor;

use crate::{
    Completion, Engine, EngineError, EngineLimits, Executor, Foresight, OwnRules, Request, RunEnd, RunStats,
    executor::host::{BatchModel, HostExecutor, StepOf},
};

mod cancelling;
mod guesser;

pub(crate) use cancelling::{run_cancelling, wanted};
pub(crate) use guesser::Guesser;

pub(crate) const BLOCK_SIZE_TOKENS: usize = 4;
pub(crate) const VOCAB_SIZE: usize = 40;
pub(crate) const EOS: u32 = 39;
const PADDED_VOCAB_SIZE: usize = 48;

/// Logits are a hash of the token history, which it reads back from its cache through the block tables.
#[derive(Debug, Default)]
pub(crate) struct FakeModel {
    tables: KvTables,
    cache: HashMap<(BlockId, usize), Slot>,
    host: HashMap<HostBlockId, [Option<Slot>; BLOCK_SIZE_TOKENS]>,
}

/// A token, where it stands in its sequence, and of which table it is.
type Slot = (u32, usize, usize);

impl FakeModel {
    pub(crate) fn with_tables(tables: KvTables) -> Self {
        Self { tables, ..Self::default() }
    }

    /// The slot of a token in one of the tables.
    fn place(&self, blocks: &[BlockId], table: usize, pos: usize) -> (BlockId, usize) {
        (blocks[pos / BLOCK_SIZE_TOKENS * self.tables.len() + table], pos % BLOCK_SIZE_TOKENS)
    }

    pub(crate) fn write(&mut self, blocks: &[BlockId], pos: usize, token: u32) {
        for table in 0..self.tables.len() {
            let place = self.place(blocks, table, pos);
            self.cache.insert(place, (token, pos, table));
        }
    }

    /// The first `len_tokens` tokens of a sequence. All that layers of other tables see must be there, too.
    pub(crate) fn history(&self, blocks: &[BlockId], len_tokens: usize) -> Vec<u32> {
        let read = |table: usize, pos: usize| {
            let (token, of_pos, of_table) = self.cache[&self.place(blocks, table, pos)];
            assert_eq!((of_pos, of_table), (pos, table), "another token is read, of {len_tokens}");
            token
        };
        let history: Vec<u32> = (0..len_tokens).map(|pos| read(0, pos)).collect();
        for table in 1..self.tables.len() {
            let is_windowed = table >= self.tables.num_full;
            let first = if is_windowed { len_tokens.saturating_sub(self.tables.window_tokens) } else { 0 };
            (first..len_tokens)
                .for_each(|pos| assert_eq!(read(table, pos), history[pos], "in table {table}"));
        }
        history
    }

    fn block(&self, block: BlockId) -> [Option<Slot>; BLOCK_SIZE_TOKENS] {
        std::array::from_fn(|offset| self.cache.get(&(block, offset)).copied())
    }

    fn set_block(&mut self, block: BlockId, tokens: [Option<Slot>; BLOCK_SIZE_TOKENS]) {
        for (offset, token) in tokens.into_iter().enumerate() {
            match token {
                Some(token) => self.cache.insert((block, offset), token),
                None => self.cache.remove(&(block, offset)),
            };
        }
    }

    pub(crate) fn logits(history: &[u32]) -> Vec<f32> {
        (0..PADDED_VOCAB_SIZE)
            .map(|id| {
                let mut hasher = DefaultHasher::new();
                (history, id).hash(&mut hasher);
                (hasher.finish() % 1000) as f32 * 0.004
            })
            .collect()
    }
}

impl BatchModel for FakeModel {
    fn forward(&mut self, batch: &Batch, _: StepOf) -> Result<Tensor, EngineError> {
        let (mut tokens, mut blocks) = (batch.tokens.as_slice(), batch.block_tables.as_slice());
        let mut rows = Vec::new();
        for span in &batch.spans {
            let (query, table);
            (query, tokens) = tokens.split_at(span.query_len as usize);
            (table, blocks) = blocks.split_at(span.num_blocks as usize);
            let context_len = span.context_len as usize;
            for (pos, &token) in (context_len..).zip(query) {
                self.write(table, pos, token);
            }
            let end = context_len + query.len();
            let with_logits = end - span.num_logits as usize + 1..=end;
            rows.extend(with_logits.map(|len| Self::logits(&self.history(table, len))));
        }
        assert!(tokens.is_empty() && blocks.is_empty());
        if rows.is_empty() {
            return Ok(Tensor::f_zeros([0, PADDED_VOCAB_SIZE as i64], (tch::Kind::Float, tch::Device::Cpu))?);
        }
        Ok(Tensor::from_slice2(&rows))
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        Some(2)
    }

    fn verifies_drafts(&self) -> bool {
        true
    }

    fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<(), EngineError> {
        for &block_move in moves {
            match block_move {
                BlockMove::Copy { from, to } => {
                    let block = self.block(from);
                    self.set_block(to, block);
                }
                BlockMove::SwapOut { from, to } => {
                    let block = self.block(from);
                    self.host.insert(to, block);
                    // Whoever reads it before it is written again reads garbage.
                    self.set_block(from, [Some((u32::MAX, usize::MAX, 0)); BLOCK_SIZE_TOKENS]);
                }
                BlockMove::SwapIn { from, to } => {
                    let block = self.host.remove(&from).unwrap();
                    self.set_block(to, block);
                }
            }
        }
        Ok(())
    }
}

/// Token `id` spells the letter at `id % 26`.
pub(crate) struct Letters;

impl TokenBytes for Letters {
    fn bytes(&self, id: u32) -> &[u8] {
        let idx = id as usize % 26;
        &b"abcdefghijklmnopqrstuvwxyz"[idx..=idx]
    }
}

pub(crate) fn limits(max_num_seqs: usize, max_prefill_tokens: usize, num_blocks: usize) -> EngineLimits {
    EngineLimits {
        max_num_seqs,
        max_prefill_tokens,
        num_blocks,
        num_host_blocks: 0,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        tables: KvTables::ONE,
    }
}

pub(crate) fn roomy() -> EngineLimits {
    limits(64, 1000, 1000)
}

pub(crate) fn params() -> SamplingParams {
    SamplingParams {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: Some(0.9),
        repetition_penalty: 1.2,
        min_p: None,
        compute_logprob: true,
        top_logprobs: 2,
    }
}

pub(crate) fn stop(end_strings: &[&str]) -> StopConditions {
    let end_strings: Vec<String> = end_strings.iter().map(|&string| string.to_owned()).collect();
    StopConditions::resolve(&end_strings, &[EOS], |_| None).unwrap()
}

pub(crate) fn sampler(params: SamplingParams) -> CpuSampler {
    let row = RowRules { params, seed: 99, end_token_ids: vec![EOS], min_length: 0, structure: None };
    CpuSampler::new(SamplingRules { row, vocab_size: VOCAB_SIZE, bias: vec![] }).unwrap()
}

pub(crate) fn host(params: SamplingParams) -> HostExecutor {
    host_in(params, KvTables::ONE)
}

/// The same with these tables.
pub(crate) fn host_in(params: SamplingParams, tables: KvTables) -> HostExecutor {
    staged_in(params, tables, crate::Stage::ONLY)
}

/// Tables of a cache.
pub(crate) fn tables() -> impl Strategy<Value = KvTables> {
    let of_window = (1_usize..3, 1_usize..4, 1_usize..20);
    let several = of_window.prop_map(|(num_full, num_windowed, window_tokens)| KvTables {
        num_full,
        num_windowed,
        window_tokens,
    });
    prop_oneof![1 => Just(KvTables::ONE), 3 => several]
}

/// The same as a pipeline stage.
pub(crate) fn staged_in(params: SamplingParams, tables: KvTables, stage: crate::Stage) -> HostExecutor {
    HostExecutor::new(Box::new(FakeModel::with_tables(tables)), Box::new(sampler(params)), stage)
}

pub(crate) fn engine_of(
    executor: impl Executor + 'static,
    end_strings: &[&str],
    limits: EngineLimits,
) -> Engine {
    let engine = Engine::with_executor(Box::new(executor), stop(end_strings), Arc::new(Letters), limits);
    engine.unwrap().with_structures(vocabulary())
}

/// Texts in which a token and its successor have no multiple of three for their sum. They may end after five tokens, must
/// after fifteen, and are stuck behind some of the tokens that they allow.
struct Zigzag {
    last: u32,
    num_tokens: u32,
}

impl TextFollower for Zigzag {
    fn allowed(&mut self, bits: &mut [u32]) -> Result<bool, String> {
        bits.fill(0);
        if self.num_tokens > 6 && self.last % 13 == 3 {
            return Err(format!("stuck behind {}", self.last));
        }
        let is_allowed = |token: &u32| !(token + self.last).is_multiple_of(3) && self.num_tokens < 15;
        (0..VOCAB_SIZE as u32)
            .filter(is_allowed)
            .for_each(|token| bits[token as usize / 32] |= 1 << (token % 32));
        Ok(self.num_tokens >= 5)
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        assert!(!(token + self.last).is_multiple_of(3) && self.num_tokens < 15, "{token} was not allowed");
        (self.last, self.num_tokens) = (token, self.num_tokens + 1);
        Ok(())
    }
}

struct Zigzags;

impl Structures for Zigzags {
    fn begin(&self, structure: &str) -> Result<Box<dyn TextFollower>, String> {
        let last = structure.parse().map_err(|_| format!("no structure `{structure}`"))?;
        Ok(Box::new(Zigzag { last, num_tokens: 0 }))
    }
}

/// What structures are followed with.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(Vocabulary { structures: Arc::new(Zigzags), vocab_size: VOCAB_SIZE, banned: vec![7] })
}

pub(crate) fn request(
    sample_idx: u64,
    prompt_len: usize,
    num_responses: u32,
    max_new_tokens: u32,
) -> Request {
    let prompt = (0..prompt_len as u64).map(|pos| ((pos * 7 + sample_idx * 3) % 38) as u32).collect();
    Request { sample_idx, prompt, num_responses, max_new_tokens, own: None, foresight: Foresight::default() }
}

/// Two requests of three with rules of their own: greedy ones, and ones with another seed, end and filters. Some of both
/// have a structure, too.
pub(crate) fn with_own_rules(request: Request) -> Request {
    let kind = request.sample_idx % 3;
    // One is bad from its start.
    let structure = match request.sample_idx % 7 {
        0 => Some("bad".to_owned()),
        1..4 => Some((request.sample_idx % 5).to_string()),
        _ => None,
    };
    let params = SamplingParams { use_greedy: kind == 1, temperature: 0.7, min_p: Some(0.05), ..params() };
    let row = RowRules { params, seed: 1 << 40 | kind, end_token_ids: vec![EOS], min_length: 2, structure };
    let own = OwnRules { row, stop: stop(&["c"]).with_min_length(2) };
    Request { own: (kind > 0).then(|| Box::new(own)), ..request }
}

/// A completion for each sample and response.
pub(crate) type Completions = std::collections::BTreeMap<(u64, u32), Completion>;

pub(crate) fn run(engine: &mut Engine, requests: &[Request]) -> (Completions, RunStats) {
    let mut input = requests.iter().cloned();
    let mut completions = Completions::new();
    let stats = engine
        .run(
            &mut |_| input.next().into(),
            &mut |completion| {
                let key = (completion.sample_idx, completion.response_idx);
                assert!(completions.insert(key, completion).is_none(), "{key:?} came twice");
                std::ops::ControlFlow::Continue(())
            },
            &|| false,
        )
        .unwrap();
    assert_eq!(stats.end, RunEnd::Finished);
    (completions, stats)
}
