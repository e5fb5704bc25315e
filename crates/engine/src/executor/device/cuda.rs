//! A real GPU behind [`StepDevice`]: its tables, the model, the sampler and a CUDA graph for each number of rows.

use std::collections::HashMap;
use std::time::Duration;

use cuda_runtime::{Device, Event, Graph, GraphPool, Stream};
use model_core::{Batch, BlockMove, CausalLm, DeviceDecode, KvCache, RankCheck};
use model_spec::blocks_for;
use sampling::{DeviceSampler, DrawRecords, FirstDraw, RECORD_WORDS, ROW_RULE_WORDS, RowMasks, SamplerRows};
use tch::{Kind, Tensor};
use torch_ext::cuda::send;

use super::{
    DecodeStep, DeviceExecutor, DeviceShape, DrawnToken, FirstToken, Owner, RUN_AHEAD, StepDevice, StepTimes,
    TableLayout,
    buckets::{check_num_seqs, max_rows},
    step_kind::unsupported,
};
use crate::{EngineError, EngineLimits};

/// What the executor needs to know of the engine beside its limits.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSizes {
    /// Which GPU of this process.
    pub device_idx: usize,
    /// Most tokens of one sequence, prompt and response.
    pub max_seq_len_tokens: usize,
}

/// When a step ran.
#[derive(Debug)]
struct StepEvents {
    started: Event,
    moved: Event,
    ended: Event,
}

/// Records on their way to the host.
#[derive(Debug)]
pub(crate) struct Records {
    /// int32 `[at least num_rows, RECORD_WORDS]` in page-locked memory, there when the step has ended.
    words: Tensor,
    /// int32 `[at least num_rows, top_words]` there, where the most likely tokens are asked for.
    top: Option<Tensor>,
    /// Which pair of events.
    events_idx: usize,
    /// Whether a graph was made for the step.
    has_new_graph: bool,
}

/// What of a decode step a graph has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Whole,
    /// All but the sampler.
    Model,
}

/// A model and a sampler on a GPU.
pub(crate) struct CudaDevice {
    model: Box<dyn CausalLm>,
    /// Whether the other ranks of the model came to what was computed.
    check: RankCheck,
    cache: KvCache,
    sampler: DeviceSampler,
    stream: Stream,
    layout: TableLayout,
    /// int32, laid out by `layout`.
    tables: Tensor,
    rows: SamplerRows,
    /// Of `max_rows`: where the graphs leave their records.
    records: DrawRecords,
    /// The graphs run one after the other and share their memory.
    pool: GraphPool,
    /// Decode steps by number of rows, whether some are drafts, and what of the step is in them.
    graphs: HashMap<(usize, bool, Part), Graph>,
    /// Where the model leaves the logits of steps whose tokens are drawn later: float32 `[max_rows, padded_vocab_size]`,
    /// once there was one.
    logits: Option<Tensor>,
    /// Whether a graph was made for the step whose tokens are drawn later.
    has_new_graph: bool,
    events: Vec<StepEvents>,
    num_started: usize,
}

/// The executor for a model and a sampler on a GPU.
///
/// # Errors
/// When the GPU fails or has no memory left.
pub(crate) fn executor(
    mut model: Box<dyn CausalLm>,
    sampler: DeviceSampler,
    limits: EngineLimits,
    sizes: DeviceSizes,
) -> Result<DeviceExecutor<CudaDevice>, EngineError> {
    check_num_seqs(limits.max_num_seqs)?;
    let layout = TableLayout {
        max_rows: max_rows(limits.max_decode_tokens()),
        max_blocks_per_seq: blocks_for(sizes.max_seq_len_tokens, limits.block_size_tokens).max(1),
        num_tables: limits.tables.len(),
        has_row_rules: sampler.takes_row_rules(),
    };
    let small_batch = model.reserve_decode(layout.max_rows, layout.max_blocks_per_seq)?;
    let cache =
        model.new_cache_in(limits.num_blocks, limits.tables)?.with_host_blocks(limits.num_host_blocks);
    let prompt_cut_tokens = model.prompt_cut_tokens();
    let device = CudaDevice::new(model, cache, sampler, layout, sizes.device_idx)?;
    Ok(DeviceExecutor::new(device, DeviceShape { layout, small_batch, prompt_cut_tokens }))
}

impl CudaDevice {
    fn new(
        model: Box<dyn CausalLm>,
        cache: KvCache,
        sampler: DeviceSampler,
        layout: TableLayout,
        device_idx: usize,
    ) -> Result<Self, EngineError> {
        let device = Device::open(device_idx)?;
        let on_device = tch::Device::Cuda(device_idx);
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
            row_rules: match layout.has_row_rules {
                true => {
                    let words = ROW_RULE_WORDS as i64;
                    let rules = of_tables(layout.row_rules(), num_rows * words)?;
                    Some(rules.f_view([num_rows, words])?)
                }
                false => None,
            },
        };
        let records = sampler.new_records(layout.max_rows)?;
        let events = (0..RUN_AHEAD + 2)
            .map(|_| {
                let event = || Event::new(&device);
                Ok(StepEvents { started: event()?, moved: event()?, ended: event()? })
            })
            .collect::<Result<_, EngineError>>()?;
        // Weights and tables were written on another stream than the steps run on.
        device.synchronize()?;
        Ok(Self {
            check: model.rank_check(),
            model,
            cache,
            sampler,
            stream: Stream::new(&device)?,
            layout,
            tables,
            rows,
            records,
            pool: GraphPool::new()?,
            graphs: HashMap::new(),
            logits: None,
            has_new_graph: false,
            events,
            num_started: 0,
        })
    }

    /// Enqueues one step of `num_rows` rows: the model, and the sampler, which moves the rows on.
    fn enqueue(&mut self, num_rows: usize, has_drafts: bool) -> Result<(), EngineError> {
        let logits = self.enqueue_model(num_rows, has_drafts)?;
        let records = self.records.first(num_rows)?;
        Ok(self.sampler.draw(&logits, &self.rows.first(num_rows)?, &records)?)
    }

    /// Enqueues the model alone: float32 `[num_rows, padded_vocab_size]`. Done twice it writes the same keys and values
    /// to the same places.
    fn enqueue_model(&mut self, num_rows: usize, has_drafts: bool) -> Result<Tensor, EngineError> {
        let layout = self.layout;
        let tables = |start: usize| {
            let len = (layout.num_words() - start) as i64;
            self.tables.f_narrow(0, start as i64, len)
        };
        let max_rows = layout.max_rows as i64;
        let prefix_groups =
            tables(layout.prefix_groups())?.f_narrow(0, 0, 2 * max_rows)?.f_view([max_rows, 2])?;
        let block_tables = tables(layout.block_tables())?.f_view([
            layout.num_tables as i64,
            max_rows,
            layout.max_blocks_per_seq as i64,
        ])?;
        let rows = DeviceDecode {
            num_rows,
            tokens: &self.rows.tokens,
            positions: &self.rows.positions,
            block_tables: &block_tables,
            prefix_groups: &prefix_groups,
            has_drafts,
        };
        Ok(self.model.decode_on_device(&rows, &mut self.cache)?)
    }

    /// The same, with the logits left for a sampler that runs later. They are copied: a graph's own memory is that of all.
    fn enqueue_until_logits(&mut self, num_rows: usize, has_drafts: bool) -> Result<(), EngineError> {
        let logits = self.enqueue_model(num_rows, has_drafts)?;
        if let Some(kept) = &self.logits {
            kept.f_narrow(0, 0, num_rows as i64)?.f_copy_(&logits)?;
        }
        Ok(())
    }

    /// Copies the records of the latest step to the host.
    fn end(&self, records: &DrawRecords, has_new_graph: bool) -> Result<Records, EngineError> {
        // A copy that does not wait goes to page-locked memory.
        let copy = |words: &Tensor| words.f_to_device_(tch::Device::Cpu, Kind::Int, true, true);
        let (words, top) = (copy(&records.tokens)?, records.top.as_ref().map(copy).transpose()?);
        let events_idx = (self.num_started + self.events.len() - 1) % self.events.len();
        self.events[events_idx].ended.record(&self.stream)?;
        Ok(Records { words, top, events_idx, has_new_graph })
    }
}

impl StepDevice for CudaDevice {
    type KeptTokens = SamplerRows;
    type Records = Records;

    fn reset(&mut self) -> Result<(), EngineError> {
        Ok(self.stream.synchronize()?)
    }

    fn begin(&mut self, moves: &[BlockMove]) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        let events_idx = self.num_started % self.events.len();
        self.num_started += 1;
        self.events[events_idx].started.record(&self.stream)?;
        if !moves.is_empty() {
            self.cache.move_blocks(moves)?;
        }
        Ok(self.events[events_idx].moved.record(&self.stream)?)
    }

    fn prefill(
        &mut self,
        batch: &Batch,
        draws: &[FirstToken<'_>],
    ) -> Result<(Option<SamplerRows>, Records), EngineError> {
        let _current = self.stream.as_current()?;
        let logits = self.model.forward(batch, &mut self.cache)?; // [num_complete, padded_vocab_size]
        if draws.is_empty() {
            // Nobody reads them, but they tell when the step has ended.
            return Ok((None, self.end(&self.records.first(1)?, false)?));
        }
        let draws: Vec<FirstDraw<'_>> = draws
            .iter()
            .map(|&FirstToken { logits_row, owner, prompt, own, allowed }| {
                let Owner { sample_idx, response_idx } = owner;
                FirstDraw { logits_row, sample_idx, response_idx, prompt, own, allowed }
            })
            .collect();
        let (rows, records) = self.sampler.draw_first(&logits, &draws)?;
        Ok((Some(rows), self.end(&records, false)?))
    }

    fn keep(&mut self, rows: &[i64]) -> Result<SamplerRows, EngineError> {
        let _current = self.stream.as_current()?;
        Ok(self.rows.select(&send(rows, self.stream.device().index())?)?)
    }

    fn gather(&mut self, from: &[i64], waiting: &[&SamplerRows]) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        let num_rows = from.len() as i64;
        let from = send(from, self.stream.device().index())?;
        let bring = |rows: &Tensor, others: Vec<&Tensor>| -> Result<(), EngineError> {
            let all = Tensor::f_cat(&[vec![rows], others].concat(), 0)?;
            rows.f_narrow(0, 0, num_rows)?.f_copy_(&all.f_index_select(0, &from)?)?;
            Ok(())
        };
        bring(&self.rows.tokens, waiting.iter().map(|rows| &rows.tokens).collect())?;
        if let Some(seen) = &self.rows.seen {
            bring(seen, waiting.iter().filter_map(|rows| rows.seen.as_ref()).collect())?;
        }
        Ok(())
    }

    fn upload(&mut self, words: &[i32]) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        self.tables.f_copy_(&send(words, self.stream.device().index())?)?;
        Ok(())
    }

    fn put_drafts(&mut self, drafts: &[&[u32]]) -> Result<(), EngineError> {
        let _current = self.stream.as_current()?;
        Ok(self.sampler.put_drafts(&self.rows.first(drafts.len())?, drafts)?)
    }

    fn decode(&mut self, step: DecodeStep) -> Result<Records, EngineError> {
        let DecodeStep { num_rows, num_used, has_drafts } = step;
        let _current = self.stream.as_current()?;
        let stream = self.stream;
        let known = self.graphs.get(&(num_rows, has_drafts, Part::Whole));
        let has_new_graph = known.is_none();
        if let Some(graph) = known {
            graph.replay(&stream)?;
        } else {
            // What libraries set up at their first use cannot be recorded, so the first time the model runs as it is.
            let _ = self.enqueue_model(num_rows, has_drafts)?;
            let graph = Graph::capture_in(self.pool, &stream, || self.enqueue(num_rows, has_drafts))?;
            graph.replay(&stream)?;
            self.graphs.insert((num_rows, has_drafts, Part::Whole), graph);
        }
        self.end(&self.records.first(num_used)?, has_new_graph)
    }

    fn decode_model(&mut self, step: DecodeStep) -> Result<(), EngineError> {
        let DecodeStep { num_rows, num_used: _, has_drafts } = step;
        let _current = self.stream.as_current()?;
        let stream = self.stream;
        let known = self.graphs.get(&(num_rows, has_drafts, Part::Model));
        self.has_new_graph = known.is_none();
        if let Some(graph) = known {
            graph.replay(&stream)?;
            return Ok(());
        }
        let logits = self.enqueue_model(num_rows, has_drafts)?;
        if self.logits.is_none() {
            let shape = [self.layout.max_rows as i64, logits.size2()?.1];
            self.logits = Some(Tensor::f_zeros(shape, (Kind::Float, logits.device()))?);
        }
        let graph =
            Graph::capture_in(self.pool, &stream, || self.enqueue_until_logits(num_rows, has_drafts))?;
        graph.replay(&stream)?;
        self.graphs.insert((num_rows, has_drafts, Part::Model), graph);
        Ok(())
    }

    fn draw_masked(&mut self, step: DecodeStep, masks: &RowMasks) -> Result<Records, EngineError> {
        let DecodeStep { num_rows, num_used, has_drafts: _ } = step;
        let _current = self.stream.as_current()?;
        let logits =
            self.logits.as_ref().ok_or_else(|| unsupported("tokens of a step that was not computed"))?;
        let logits = logits.f_narrow(0, 0, num_rows as i64)?;
        let (rows, records) = (self.rows.first(num_rows)?, self.records.first(num_rows)?);
        self.sampler.draw_masked(&logits, &rows, masks, &records)?;
        self.end(&self.records.first(num_used)?, self.has_new_graph)
    }

    fn read(
        &mut self,
        records: Records,
        owners: &[Owner],
    ) -> Result<(Vec<DrawnToken>, StepTimes), EngineError> {
        let StepEvents { started, moved, ended } = &self.events[records.events_idx];
        ended.synchronize()?;
        (self.check)().map_err(model_core::ModelError::from)?;
        let since_start = |event: &Event| -> Result<Duration, EngineError> {
            Ok(Duration::from_secs_f32(started.elapsed_ms(event)?.max(0.0) / 1000.0))
        };
        let times = StepTimes {
            whole: since_start(ended)?,
            moves: since_start(moved)?,
            has_new_graph: records.has_new_graph,
        };
        let words = Vec::<i32>::try_from(&records.words.f_view([-1])?)?;
        let top = match &records.top {
            Some(top) => Vec::<i32>::try_from(&top.f_view([-1])?)?,
            None => Vec::new(),
        };
        // Without words of any the tokens of all rows are none.
        let of_rows = top.chunks(self.sampler.top_words().max(1)).chain(std::iter::repeat(&[][..]));
        let (records, _) = words.as_chunks::<RECORD_WORDS>();
        let tokens = records
            .iter()
            .zip(of_rows)
            .zip(owners)
            .map(|((&record, top), owner)| {
                Ok(self.sampler.read_record(record, top, owner.sample_idx, owner.response_idx)?)
            })
            .collect();
        Ok((tokens, times))
    }

    fn verifies_drafts(&self) -> bool {
        self.model.verifies_drafts()
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}
