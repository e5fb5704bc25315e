//! A pipeline stage on a GPU. The host describes every row of every step, as it does for a CPU: several steps are under way
//! at once, each of other responses, and what the rows of one need comes through other ranks anyway.
//!
//! A decode step is a CUDA graph for each number of rows; what goes from stage to stage is enqueued around its replay.

use std::collections::HashMap;
use std::sync::Arc;

use cuda_runtime::{Device, Graph, GraphPool, Stream};
use model_core::{Batch, BlockId, BlockMove, CausalLm, DeviceDecode, KvCache, RankCheck};
use model_spec::blocks_for;
use sampling::{DeviceSampler, DrivenSampler, TokenSampler, Vocabulary};
use tch::{Kind, Tensor};
use torch_ext::cuda::send;

use super::buckets::{bucket, check_num_seqs, max_rows};
use super::cuda::DeviceSizes;
use super::row_table::{TableRow, check_room, shared_prefixes};
use super::step_kind::{PROMPTS_AND_RESPONSES, unsupported};
use crate::executor::Executor;
use crate::executor::host::{BatchModel, HostExecutor, Stage, StepOf};
use crate::plan::{SeqId, StepOutput, StepPlan};
use crate::stage_tokens::{ReceivingSampler, SendingSampler, TokenPath};
use crate::{EngineError, EngineLimits};

/// The executor of a stage. `sampler` draws on the last one, whose tokens go along `path`.
///
/// # Errors
/// When the GPU fails or has no memory left.
pub(crate) fn executor(
    mut model: Box<dyn CausalLm>,
    (sampler, path): (DeviceSampler, Box<dyn TokenPath>),
    limits: EngineLimits,
    sizes: DeviceSizes,
    stage: Stage,
) -> Result<impl Executor + use<>, EngineError> {
    check_num_seqs(limits.max_num_seqs)?;
    let layout = StepLayout {
        max_rows: max_rows(limits.max_decode_tokens()),
        max_blocks_per_seq: blocks_for(sizes.max_seq_len_tokens, limits.block_size_tokens).max(1),
        num_tables: limits.tables.len(),
    };
    let small_batch = model.reserve_decode(layout.max_rows, layout.max_blocks_per_seq)?;
    let cache =
        model.new_cache_in(limits.num_blocks, limits.tables)?.with_host_blocks(limits.num_host_blocks);
    let device = Device::open(sizes.device_idx)?;
    let on_device = tch::Device::Cuda(sizes.device_idx);
    let words = Tensor::f_zeros([layout.num_words() as i64], (Kind::Int, on_device))?;
    let stream = Stream::new(&device)?;
    let is_greedy = sampler.is_greedy();
    let check = model.rank_check();
    let sampler: Box<dyn TokenSampler> = if stage.is_last {
        let of_draw = model.rank_check();
        let check = Box::new(move || of_draw().map_err(|lost| lost.to_string()));
        Box::new(SendingSampler { own: Box::new(DrivenSampler::new(sampler, stream, check)), path })
    } else {
        Box::new(ReceivingSampler { path, is_greedy })
    };
    // Weights and tables were written on another stream than the steps run on.
    device.synchronize()?;
    let model = StagedModel {
        model,
        cache,
        check,
        stream,
        is_last: stage.is_last,
        layout,
        words,
        small_batch,
        pool: GraphPool::new()?,
        graphs: HashMap::new(),
        logits: None,
    };
    let min_rows = bucket(1, small_batch);
    Ok(StagedExecutor { host: HostExecutor::new(Box::new(model), sampler, stage), stream, min_rows })
}

/// A host's executor all of whose work goes onto one stream.
struct StagedExecutor {
    host: HostExecutor,
    stream: Stream,
    min_rows: usize,
}

impl Executor for StagedExecutor {
    fn reset(&mut self) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        self.host.reset()?;
        Ok(self.stream.synchronize()?)
    }

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.host.set_vocabulary(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        self.host.start(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let _current = self.stream.as_current()?;
        self.host.collect()
    }

    fn min_rows(&self) -> usize {
        self.min_rows
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.host.prompt_cut_tokens()
    }

    fn run_ahead(&self) -> usize {
        self.host.run_ahead()
    }

    fn num_sets(&self) -> usize {
        self.host.num_sets()
    }

    fn verifies_drafts(&self) -> bool {
        self.host.verifies_drafts()
    }

    fn is_greedy(&self) -> bool {
        self.host.is_greedy()
    }
}

/// The words that describe a decode step, one int32 tensor.
#[derive(Clone, Copy, Debug)]
struct StepLayout {
    max_rows: usize,
    max_blocks_per_seq: usize,
    /// Block tables of a sequence.
    num_tables: usize,
}

impl StepLayout {
    fn tokens(self) -> usize {
        0
    }

    fn positions(self) -> usize {
        self.max_rows
    }

    /// `[max_rows, 2]`.
    fn prefix_groups(self) -> usize {
        2 * self.max_rows
    }

    /// `[num_tables, max_rows, max_blocks_per_seq]`.
    fn block_tables(self) -> usize {
        4 * self.max_rows
    }

    fn num_words(self) -> usize {
        self.block_tables() + self.num_tables * self.max_rows * self.max_blocks_per_seq
    }

    /// A row for each token of the batch.
    fn words(self, batch: &Batch) -> Result<Vec<i32>, EngineError> {
        check_room("rows of a step", batch.tokens.len(), self.max_rows)?;
        let mut words = vec![0; self.num_words()];
        words[self.positions()..self.prefix_groups()].fill(-1);
        for (word, &token) in words[self.tokens()..].iter_mut().zip(&batch.tokens) {
            *word = token.cast_signed();
        }
        let mut tables = batch.block_tables.as_slice();
        let mut rows = Vec::with_capacity(batch.spans.len());
        let mut idx = 0;
        for (group_idx, span) in (0..).zip(&batch.spans) {
            let (table, rest) = tables.split_at(tables.len().min(span.num_blocks as usize));
            tables = rest;
            check_room("blocks of a sequence", table.len() / self.num_tables, self.max_blocks_per_seq)?;
            for offset in 0..span.query_len {
                words[self.positions() + idx] = (span.context_len + offset).cast_signed();
                self.write_table(&mut words, idx, table);
                idx += 1;
            }
            rows.push(TableRow {
                // Who it is does not matter: those that share blocks are found by their blocks.
                id: SeqId { group_idx, response_idx: 0 },
                context_len: span.context_len,
                num_drafts: (span.query_len as usize).saturating_sub(1),
                sample_idx: 0,
                prompt_len_tokens: 0,
                own: None,
                block_table: table,
            });
        }
        for (idx, (first_row, num_shared)) in shared_prefixes(&rows, self.num_tables).into_iter().enumerate()
        {
            words[self.prefix_groups() + 2 * idx] = first_row as i32;
            words[self.prefix_groups() + 2 * idx + 1] = num_shared as i32;
        }
        Ok(words)
    }

    fn write_table(self, words: &mut [i32], idx: usize, table: &[BlockId]) {
        let tables = &mut words[self.block_tables()..];
        for (of_table, tables) in tables.chunks_mut(self.max_rows * self.max_blocks_per_seq).enumerate() {
            let blocks = table.iter().skip(of_table).step_by(self.num_tables);
            for (word, &block) in tables[idx * self.max_blocks_per_seq..].iter_mut().zip(blocks) {
                *word = block.cast_signed();
            }
        }
    }
}

/// The model of a stage.
struct StagedModel {
    model: Box<dyn CausalLm>,
    cache: KvCache,
    check: RankCheck,
    stream: Stream,
    is_last: bool,
    layout: StepLayout,
    /// int32, laid out by `layout`.
    words: Tensor,
    small_batch: usize,
    /// The graphs run one after the other and share their memory.
    pool: GraphPool,
    /// By number of rows, and whether some are drafts.
    graphs: HashMap<(usize, bool), Graph>,
    /// Where the graphs of the last stage leave their logits: float32 `[max_rows, padded_vocab_size]`, once there was one.
    logits: Option<Tensor>,
}

impl StagedModel {
    fn decode(&mut self, batch: &Batch) -> Result<Tensor, EngineError> {
        let num_used = batch.tokens.len();
        let has_drafts = batch.spans.iter().any(|span| span.query_len > 1);
        let num_rows = bucket(num_used, self.small_batch);
        let words = self.layout.words(batch)?;
        self.words.f_copy_(&send(&words, self.stream.device().index())?)?;
        self.model.begin_decode(num_rows)?;
        let stream = self.stream;
        if let Some(graph) = self.graphs.get(&(num_rows, has_drafts)) {
            graph.replay(&stream)?;
        } else {
            // What libraries set up at their first use cannot be recorded, so the first time the model runs as it is.
            let logits = self.enqueue(num_rows, has_drafts)?;
            if self.is_last && self.logits.is_none() {
                let shape = [self.layout.max_rows as i64, logits.size2()?.1];
                self.logits = Some(Tensor::f_zeros(shape, (Kind::Float, logits.device()))?);
            }
            let graph = Graph::capture_in(self.pool, &stream, || {
                let logits = self.enqueue(num_rows, has_drafts)?;
                if let Some(kept) = &self.logits {
                    kept.f_narrow(0, 0, num_rows as i64)?.f_copy_(&logits)?;
                }
                Ok::<_, EngineError>(())
            })?;
            graph.replay(&stream)?;
            self.graphs.insert((num_rows, has_drafts), graph);
        }
        self.model.end_decode(num_rows)?;
        match &self.logits {
            Some(logits) => Ok(logits.f_narrow(0, 0, num_used as i64)?),
            None => Ok(no_logits(num_used)?),
        }
    }

    /// Enqueues the model alone. Done twice it writes the same keys and values to the same places.
    fn enqueue(&mut self, num_rows: usize, has_drafts: bool) -> Result<Tensor, EngineError> {
        let layout = self.layout;
        let (max_rows, max_blocks) = (layout.max_rows as i64, layout.max_blocks_per_seq as i64);
        let part = |start: usize, shape: &[i64]| {
            self.words.f_narrow(0, start as i64, shape.iter().product())?.f_view(shape)
        };
        let rows = DeviceDecode {
            num_rows,
            tokens: &part(layout.tokens(), &[max_rows])?,
            positions: &part(layout.positions(), &[max_rows])?,
            block_tables: &part(layout.block_tables(), &[layout.num_tables as i64, max_rows, max_blocks])?,
            prefix_groups: &part(layout.prefix_groups(), &[max_rows, 2])?,
            has_drafts,
        };
        Ok(self.model.decode_on_device(&rows, &mut self.cache)?)
    }
}

impl BatchModel for StagedModel {
    fn forward(&mut self, batch: &Batch, of: StepOf) -> Result<Tensor, EngineError> {
        match of {
            StepOf::Responses => self.decode(batch),
            StepOf::Prompts => {
                let logits = self.model.forward(batch, &mut self.cache)?;
                match self.is_last {
                    true => Ok(logits),
                    false => Ok(no_logits(batch.logits_rows().len())?),
                }
            }
            StepOf::Both => Err(unsupported(PROMPTS_AND_RESPONSES)),
        }
    }

    fn check_ranks(&self) -> Result<(), EngineError> {
        (self.check)().map_err(|lost| model_core::ModelError::from(lost).into())
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.model.prompt_cut_tokens()
    }

    fn verifies_drafts(&self) -> bool {
        self.model.verifies_drafts()
    }

    fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<(), EngineError> {
        Ok(self.cache.move_blocks(moves)?)
    }
}

/// What a stage has of logits that draws no tokens.
fn no_logits(num_rows: usize) -> Result<Tensor, tch::TchError> {
    Tensor::f_empty([num_rows as i64, 0], (Kind::Float, tch::Device::Cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_where_each_token_is() {
        let layout = StepLayout { max_rows: 4, max_blocks_per_seq: 2, num_tables: 1 };
        let mut batch = Batch::default();
        batch.push(&[7], 40, 1, &[5, 9]);
        batch.push(&[8, 3], 6, 2, &[2]);
        let words = layout.words(&batch).unwrap();
        assert_eq!(words.len(), layout.num_words());
        assert_eq!(words[layout.tokens()..layout.positions()], [7, 8, 3, 0]);
        assert_eq!(words[layout.positions()..layout.prefix_groups()], [40, 6, 7, -1]);
        // The rows of one sequence share all of it.
        assert_eq!(words[layout.prefix_groups()..layout.block_tables()], [0, 0, 1, 1, 1, 1, 0, 0]);
        assert_eq!(words[layout.block_tables()..], [5, 9, 2, 0, 2, 0, 0, 0]);
        batch.push(&[1, 1], 0, 1, &[3]);
        layout.words(&batch).unwrap_err();
    }

    #[test]
    fn each_table_has_its_blocks() {
        let layout = StepLayout { max_rows: 2, max_blocks_per_seq: 2, num_tables: 2 };
        let mut batch = Batch::default();
        batch.push(&[7], 40, 1, &[5, 8, 6, 9]);
        batch.push(&[7], 20, 1, &[1, 2]);
        let words = layout.words(&batch).unwrap();
        assert_eq!(words[layout.block_tables()..], [5, 6, 1, 0, 8, 9, 2, 0]);
    }
}
