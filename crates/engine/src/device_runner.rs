//! The runner for a GPU: one CUDA graph a decode step, and one step under way while the host reads the last.
//!
//! Rows, tokens and positions live on the device; the sampler at the end of a graph moves them on, so that the next
//! replay needs nothing from the host. The host writes the tables only when the set of sequences changes. Rows follow
//! the scheduler's order, which keeps the responses to one prompt together, so that attention can read their shared
//! blocks once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use cuda_runtime::{Device, Event, Graph, Stream};
use model_core::{CausalLm, DecodeRows, KvCache, PrefillBatch};
use sampling::{DeviceSampler, FirstDraw, RECORD_WORDS, SamplerRows};
use tch::{Kind, Tensor};
use torch_ext::cuda::send;

mod graphs;
mod rows;

pub(crate) use graphs::max_rows;
use graphs::{Graphs, bucket};
use rows::{Change, RowTable, TableLayout, TokenSource};

use crate::{
    EngineError, EngineLimits,
    block_table::BlockCopy,
    runner::{FirstToken, Runner, StepOutput},
    scheduler::{DecodeSeq, SeqId},
};

/// Steps that may be under way while the host reads the one before.
const RUN_AHEAD: usize = 1;

/// What the runner needs to know of the engine beside its limits.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSizes {
    /// Which GPU of this process.
    pub device_idx: usize,
    /// Most tokens of one sequence, prompt and response.
    pub max_seq_len_tokens: usize,
}

/// A sequence the runner knows.
struct DeviceSeq {
    facts: rows::SeqFacts,
    /// Its first token, until it starts: the batch it was drawn in, and which row of that.
    waiting: Option<(usize, usize)>,
}

/// First tokens that were drawn together and stay on the device until all their sequences have started or ended.
struct FirstTokens {
    rows: SamplerRows,
    num_waiting: usize,
}

/// A step on the device that the host has not read.
struct Pending {
    /// int32 `[at least num_rows, RECORD_WORDS]` in page-locked memory, there when the step has ended.
    records: Tensor,
    rows: Vec<(SeqId, u64)>,
    /// Which pair of events.
    step: usize,
}

/// When a step ran.
struct StepEvents {
    started: Event,
    ended: Event,
}

/// A model and a sampler on a GPU.
pub(crate) struct DeviceRunner {
    model: Box<dyn CausalLm>,
    cache: KvCache,
    sampler: DeviceSampler,
    stream: Stream,
    layout: TableLayout,
    /// int32, laid out by `layout`.
    tables: Tensor,
    rows: SamplerRows,
    row_table: RowTable,
    /// int32 `[max_rows, RECORD_WORDS]`: where the graphs leave their records.
    records: Tensor,
    graphs: Graphs,
    seqs: HashMap<SeqId, DeviceSeq>,
    /// By number of the batch.
    first_tokens: HashMap<usize, FirstTokens>,
    events: Vec<StepEvents>,
    /// The model has the same bits with up to so many rows.
    few_rows: usize,
    num_started: usize,
    pending: VecDeque<Pending>,
}

impl DeviceRunner {
    pub(crate) fn new(
        mut model: Box<dyn CausalLm>,
        sampler: DeviceSampler,
        limits: EngineLimits,
        sizes: DeviceSizes,
    ) -> Result<Self, EngineError> {
        let device = Device::open(sizes.device_idx)?;
        let on_device = tch::Device::Cuda(sizes.device_idx);
        let layout = TableLayout {
            max_rows: max_rows(limits.max_num_seqs),
            max_blocks_per_seq: sizes.max_seq_len_tokens.div_ceil(limits.block_size_tokens).max(1),
        };
        let few_rows = model.reserve_rows(layout.max_rows, layout.max_blocks_per_seq)?;
        let cache = model.new_cache(limits.num_blocks)?;
        let num_rows = layout.max_rows as i64;
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Int, on_device));
        let tables = zeros(&[layout.num_words() as i64])?;
        let of_tables = |start: usize, len: i64| tables.f_narrow(0, start as i64, len);
        let rows = SamplerRows {
            tokens: zeros(&[num_rows])?,
            positions: of_tables(layout.positions(), num_rows)?,
            num_generated: of_tables(layout.num_generated(), num_rows)?,
            sample_idxs: of_tables(layout.sample_idxs(), 2 * num_rows)?.f_view_dtype(Kind::Int64)?,
            response_idxs: of_tables(layout.response_idxs(), num_rows)?,
            seen: match sampler.keeps_seen() {
                true => Some(zeros(&[num_rows, sampler.seen_words() as i64])?),
                false => None,
            },
        };
        let records = zeros(&[num_rows, RECORD_WORDS as i64])?;
        let events = (0..RUN_AHEAD + 2)
            .map(|_| Ok(StepEvents { started: Event::new(&device)?, ended: Event::new(&device)? }))
            .collect::<Result<_, EngineError>>()?;
        // Weights and tables were written on another stream than the steps run on.
        device.synchronize()?;
        Ok(Self {
            model,
            cache,
            sampler,
            stream: Stream::new(&device)?,
            layout,
            tables,
            rows,
            row_table: RowTable::new(layout),
            records,
            graphs: Graphs::new()?,
            seqs: HashMap::new(),
            first_tokens: HashMap::new(),
            events,
            few_rows,
            num_started: 0,
            pending: VecDeque::new(),
        })
    }

    /// Writes the tables of the next step and brings the newest tokens into the order of its rows.
    fn apply(&mut self, change: &Change) -> Result<(), EngineError> {
        let device_idx = self.stream.device().index();
        let num_rows = change.sources.len() as i64;
        let mut batches = Vec::new();
        let mut from = Vec::with_capacity(change.sources.len());
        for source in &change.sources {
            from.push(match *source {
                TokenSource::Row(row) => row as i64,
                TokenSource::Waiting(id) => self.waiting_row(id, &mut batches)?,
            });
        }
        let from = send(&from, device_idx)?;
        let bring = |rows: &Tensor, others: Vec<&Tensor>| -> Result<(), EngineError> {
            let all = Tensor::f_cat(&[vec![rows], others].concat(), 0)?;
            rows.f_narrow(0, 0, num_rows)?.f_copy_(&all.f_index_select(0, &from)?)?;
            Ok(())
        };
        let waiting: Vec<&SamplerRows> =
            batches.iter().filter_map(|batch| Some(&self.first_tokens.get(batch)?.rows)).collect();
        bring(&self.rows.tokens, waiting.iter().map(|rows| &rows.tokens).collect())?;
        if let Some(seen) = &self.rows.seen {
            bring(seen, waiting.iter().filter_map(|rows| rows.seen.as_ref()).collect())?;
        }
        self.tables.f_copy_(&send(&change.words, device_idx)?)?;
        self.first_tokens.retain(|_, batch| batch.num_waiting > 0);
        Ok(())
    }

    /// Where the first token of a sequence stands behind the rows and the batches, to which its own is added.
    fn waiting_row(&mut self, id: SeqId, batches: &mut Vec<usize>) -> Result<i64, EngineError> {
        let seq = self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?;
        let (batch, row) = seq.waiting.take().ok_or_else(|| unknown(id))?;
        self.first_tokens.get_mut(&batch).ok_or_else(|| unknown(id))?.num_waiting -= 1;
        if !batches.contains(&batch) {
            batches.push(batch);
        }
        let before = batches.iter().take_while(|&&other| other != batch);
        let num_before: usize =
            before.filter_map(|other| Some(num_rows(&self.first_tokens.get(other)?.rows))).sum();
        Ok((self.layout.max_rows + num_before + row) as i64)
    }

    /// Enqueues one step of `num_rows` rows: the model, and the sampler, which moves the rows on.
    fn enqueue(&mut self, num_rows: usize) -> Result<(), EngineError> {
        let logits = self.enqueue_model(num_rows)?;
        let records = self.records.f_narrow(0, 0, num_rows as i64)?;
        Ok(self.sampler.draw(&logits, &self.rows.first(num_rows)?, &records)?)
    }

    /// Enqueues the model alone: float32 `[num_rows, padded_vocab_size]`. Done twice it writes the same keys and values
    /// to the same places.
    fn enqueue_model(&mut self, num_rows: usize) -> Result<Tensor, EngineError> {
        let layout = self.layout;
        let tables = |start: usize| {
            let len = (layout.num_words() - start) as i64;
            self.tables.f_narrow(0, start as i64, len)
        };
        let max_rows = layout.max_rows as i64;
        let prefix_groups =
            tables(layout.prefix_groups())?.f_narrow(0, 0, 2 * max_rows)?.f_view([max_rows, 2])?;
        let block_tables =
            tables(layout.block_tables())?.f_view([max_rows, layout.max_blocks_per_seq as i64])?;
        let rows = DecodeRows {
            num_rows,
            tokens: &self.rows.tokens,
            positions: &self.rows.positions,
            block_tables: &block_tables,
            prefix_groups: &prefix_groups,
        };
        Ok(self.model.decode_rows(&rows, &mut self.cache)?)
    }

    /// Runs the next step of these many sequences.
    fn step(&mut self, num_seqs: usize) -> Result<(), EngineError> {
        let stream = self.stream;
        let num_rows = bucket(num_seqs, self.few_rows);
        if let Some(graph) = self.graphs.steps.get(&num_rows) {
            return Ok(graph.replay(&stream)?);
        }
        // What libraries set up at their first use cannot be recorded, so the first time the model runs as it is.
        let _ = self.enqueue_model(num_rows)?;
        let pool = self.graphs.pool;
        let graph = Graph::capture_in(pool, &stream, || self.enqueue(num_rows))?;
        graph.replay(&stream)?;
        self.graphs.steps.insert(num_rows, graph);
        Ok(())
    }

    fn start(&mut self) -> Result<usize, EngineError> {
        let step = self.num_started % self.events.len();
        self.num_started += 1;
        self.events[step].started.record(&self.stream)?;
        Ok(step)
    }

    /// Lets the step's records come to the host.
    fn end(&mut self, step: usize, records: &Tensor, rows: Vec<(SeqId, u64)>) -> Result<(), EngineError> {
        // A copy that does not wait goes to page-locked memory.
        let records = records.f_to_device_(tch::Device::Cpu, Kind::Int, true, true)?;
        self.events[step].ended.record(&self.stream)?;
        self.pending.push_back(Pending { records, rows, step });
        Ok(())
    }
}

impl Runner for DeviceRunner {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.stream.synchronize()?;
        self.pending.clear();
        self.seqs.clear();
        self.first_tokens.clear();
        self.row_table.clear();
        Ok(())
    }

    fn prefill(
        &mut self,
        copies: &[BlockCopy],
        batch: PrefillBatch,
        rows: &[FirstToken],
    ) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        let step = self.start()?;
        if !copies.is_empty() {
            self.cache.copy_blocks(copies)?;
        }
        let logits = self.model.prefill(&batch, &mut self.cache)?; // [num_prompts, padded_vocab_size]
        let draws: Vec<FirstDraw<'_>> = rows
            .iter()
            .map(|row| FirstDraw {
                logits_row: row.prompt_idx,
                sample_idx: row.sample_idx,
                response_idx: row.id.response_idx,
                prompt: batch.prompt(row.prompt_idx).unwrap_or_default(),
            })
            .collect();
        let (first, records) = self.sampler.draw_first(&logits, &draws)?;
        let batch_no = self.num_started;
        self.first_tokens.insert(batch_no, FirstTokens { rows: first, num_waiting: rows.len() });
        for (nth, (row, draw)) in rows.iter().zip(&draws).enumerate() {
            let facts =
                rows::SeqFacts { sample_idx: row.sample_idx, prompt_len_tokens: draw.prompt.len() as u32 };
            self.seqs.insert(row.id, DeviceSeq { facts, waiting: Some((batch_no, nth)) });
        }
        self.end(step, &records, rows.iter().map(|row| (row.id, row.sample_idx)).collect())
    }

    fn decode(&mut self, copies: &[BlockCopy], seqs: &[DecodeSeq]) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        let step = self.start()?;
        if !copies.is_empty() {
            self.cache.copy_blocks(copies)?;
        }
        let facts = |id| self.seqs.get(&id).map(|seq| seq.facts);
        if let Some(change) = self.row_table.update(seqs, facts) {
            self.apply(&change)?;
        }
        self.step(seqs.len())?;
        let records = self.records.f_narrow(0, 0, seqs.len() as i64)?;
        let sample_idx = |id| self.seqs.get(&id).map_or(0, |seq| seq.facts.sample_idx);
        let rows = seqs.iter().map(|seq| (seq.id, sample_idx(seq.id))).collect();
        self.end(step, &records, rows)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let Some(Pending { records, rows, step }) = self.pending.pop_front() else {
            return Ok(StepOutput::default());
        };
        let StepEvents { started, ended } = &self.events[step];
        ended.synchronize()?;
        let forward_time = Duration::from_secs_f32(started.elapsed_ms(ended)?.max(0.0) / 1000.0);
        let words = Vec::<i32>::try_from(&records.f_view([-1])?)?;
        let (records, _) = words.as_chunks::<RECORD_WORDS>();
        let sampled = records
            .iter()
            .zip(&rows)
            .map(|(record, &(id, sample_idx))| self.sampler.read_record(*record, sample_idx, id.response_idx))
            .collect::<Result<_, _>>()?;
        Ok(StepOutput { sampled, forward_time, sample_time: Duration::ZERO })
    }

    fn release(&mut self, ended: &[SeqId]) {
        for id in ended {
            let waiting = self.seqs.remove(id).and_then(|seq| seq.waiting);
            if let Some(batch) = waiting.and_then(|(batch, _)| self.first_tokens.get_mut(&batch)) {
                batch.num_waiting -= 1;
            }
        }
        self.first_tokens.retain(|_, batch| batch.num_waiting > 0);
    }

    fn min_rows(&self) -> usize {
        bucket(1, self.few_rows)
    }

    fn run_ahead(&self) -> usize {
        RUN_AHEAD
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}

fn unknown(id: SeqId) -> EngineError {
    EngineError::UnknownSequence { group_idx: id.group_idx, response_idx: id.response_idx }
}

fn num_rows(rows: &SamplerRows) -> usize {
    rows.tokens.size().first().map_or(0, |&rows| rows as usize)
}
