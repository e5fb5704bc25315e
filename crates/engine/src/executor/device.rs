//! The executor for a GPU: one CUDA graph a decode step, and one step in flight while the host reads the last.
//!
//! Rows, tokens and positions live on the device; the sampler at the end of a graph moves them on, so that the next
//! replay needs nothing from the host. The host writes the tables only when the set of sequences or
//! their blocks change. Rows follow the scheduler's order, which keeps the responses to one prompt together, so that
//! attention can read their shared blocks once.
//!
//! What is here is bookkeeping; what touches a GPU is behind [`StepDevice`], and tests put a simulated one there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use model_core::{Batch, BlockId, BlockMove};
use sampling::SampledToken;

mod buckets;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod row_table;

use buckets::bucket;
pub(crate) use buckets::max_rows;
pub(crate) use row_table::TableLayout;
use row_table::{Change, RowTable, TableRow, TokenSource};

use super::{Executor, unknown, unknown_prompt};
use crate::{
    EngineError,
    plan::{GrownSeq, NewPrompt, NewSeq, RowId, RowSpan, SeqId, StepOutput, StepPlan, TableDelta, ends_of},
};

const NAME: &str = "GPU";
const PROMPTS_AND_RESPONSES: &str = "prompts and responses in one step";

/// Steps that may be in flight while the host reads the one before.
const RUN_AHEAD: usize = 1;

/// One first token to draw, behind a prompt that the batch completes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstToken<'a> {
    /// Which of those prompts.
    pub(crate) logits_row: usize,
    pub(crate) owner: Owner,
    /// The prompt, for the repetition penalty.
    pub(crate) prompt: &'a [u32],
}

/// Whose token a record holds: part of the random key, and of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Position of the sample in the input file.
    pub(crate) sample_idx: u64,
    pub(crate) response_idx: u32,
}

/// What the bookkeeping asks of a GPU. Everything is enqueued in the order of the calls; only `reset` and `read` wait.
pub(crate) trait StepDevice: Send {
    /// Newest tokens of sequences without a row, kept on the device until they have one: the first ones of a prefill, or
    /// those of preempted responses.
    type KeptTokens: Send;
    /// The records of a step on their way to the host.
    type Records: Send;

    /// Waits for everything that was enqueued.
    fn reset(&mut self) -> Result<(), EngineError>;

    /// Starts a step with the moves of blocks.
    fn begin(&mut self, moves: &[BlockMove]) -> Result<(), EngineError>;

    /// Computes prompts or parts of them, draws first tokens behind those that are complete and ends the step. Without a
    /// draw there are no first tokens.
    fn prefill(
        &mut self,
        batch: &Batch,
        draws: &[FirstToken<'_>],
    ) -> Result<(Option<Self::KeptTokens>, Self::Records), EngineError>;

    /// Keeps the newest tokens of some rows.
    fn keep(&mut self, rows: &[i64]) -> Result<Self::KeptTokens, EngineError>;

    /// Brings newest tokens into the order of the rows: row i takes over number `from[i]` among all rows of the tables and,
    /// behind them, those of each of `waiting`.
    fn gather(&mut self, from: &[i64], waiting: &[&Self::KeptTokens]) -> Result<(), EngineError>;

    /// Writes the tables, laid out by [`TableLayout`].
    fn upload(&mut self, words: &[i32]) -> Result<(), EngineError>;

    /// Runs the decode step of `num_rows` rows, which moves the rows in use on by a token, and ends the step; only the
    /// records of the first `num_seqs` are wanted.
    fn decode(&mut self, num_rows: usize, num_seqs: usize) -> Result<Self::Records, EngineError>;

    /// Waits for a step, the oldest that was not read: its tokens, one for each owner, and how long it took.
    fn read(
        &mut self,
        records: Self::Records,
        owners: &[Owner],
    ) -> Result<(Vec<SampledToken>, StepTimes), EngineError>;

    /// Whether the responses of one sample are all the same.
    fn is_greedy(&self) -> bool;
}

/// How long a step took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepTimes {
    pub(crate) whole: Duration,
    /// The part of it that blocks were moved in.
    pub(crate) moves: Duration,
}

/// A sequence whose first token was drawn.
#[derive(Debug)]
struct DeviceSeq {
    sample_idx: u64,
    prompt_len_tokens: u32,
    /// None until it decodes.
    block_table: Vec<BlockId>,
    /// Its newest token while it has no row.
    waiting: Option<Waiting>,
}

/// Where the token of a sequence without a row stands: among which, and which of them it is.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    batch_idx: u64,
    row: usize,
}

/// Tokens that are kept together on the device until all their sequences have a row or have ended.
struct KeptBatch<T> {
    tokens: T,
    num_tokens: usize,
    num_waiting: usize,
}

/// A step on the device that the host has not read.
struct InFlight<R> {
    records: R,
    owners: Vec<Owner>,
    ends: Vec<u32>,
}

/// The sizes that a device is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceShape {
    pub(crate) layout: TableLayout,
    /// Results are bitwise identical for any batch of at most this many rows, or at least 32.
    pub(crate) small_batch: usize,
    /// [`model_core::CausalLm::prompt_cut_tokens`].
    pub(crate) prompt_cut_tokens: Option<usize>,
}

/// A device and what it holds.
pub(crate) struct DeviceExecutor<D: StepDevice> {
    device: D,
    shape: DeviceShape,
    row_table: RowTable,
    /// Those whose first tokens are not drawn, by request.
    prompts: HashMap<u64, NewPrompt>,
    seqs: HashMap<SeqId, DeviceSeq>,
    /// Responses have blocks that the device's tables do not.
    has_grown: bool,
    /// By number.
    kept: HashMap<u64, KeptBatch<D::KeptTokens>>,
    num_batches: u64,
    in_flight: VecDeque<InFlight<D::Records>>,
}

impl<D: StepDevice> DeviceExecutor<D> {
    pub(crate) fn new(device: D, shape: DeviceShape) -> Self {
        Self {
            device,
            shape,
            row_table: RowTable::new(shape.layout),
            prompts: HashMap::new(),
            seqs: HashMap::new(),
            has_grown: false,
            kept: HashMap::new(),
            num_batches: 0,
            in_flight: VecDeque::new(),
        }
    }

    /// Takes in who ended, who starts and who has more blocks, and new prompts, which stay until their first tokens are
    /// drawn.
    fn learn(&mut self, tables: TableDelta) -> Result<(), EngineError> {
        self.prompts.extend(tables.prompts.into_iter().map(|prompt| (prompt.group_idx, prompt)));
        for id in &tables.ended {
            if let Some(Waiting { batch_idx, .. }) = self.seqs.remove(id).and_then(|seq| seq.waiting) {
                self.start_waiting(batch_idx);
            }
        }
        self.keep_tokens(&tables.preempted)?;
        self.drop_started();
        for NewSeq { id, block_table } in tables.started {
            self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?.block_table = block_table;
        }
        self.has_grown |= !tables.grown.is_empty();
        for GrownSeq { id, new_blocks } in tables.grown {
            self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?.block_table.extend(new_blocks);
        }
        Ok(())
    }

    /// Keeps the newest tokens of responses that lose their rows. One that never had a row has its token kept already.
    fn keep_tokens(&mut self, preempted: &[SeqId]) -> Result<(), EngineError> {
        let mut rows = Vec::new();
        for &id in preempted {
            let Some(row) = self.row_table.leave(id) else { continue };
            let seq = self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?;
            seq.waiting = Some(Waiting { batch_idx: self.num_batches, row: rows.len() });
            rows.push(row as i64);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let tokens = self.device.keep(&rows)?;
        self.add_tokens(tokens, rows.len());
        Ok(())
    }

    /// Keeps tokens as the batch of the next number.
    fn add_tokens(&mut self, tokens: D::KeptTokens, num_tokens: usize) {
        let batch = KeptBatch { tokens, num_tokens, num_waiting: num_tokens };
        self.kept.insert(self.num_batches, batch);
        self.num_batches += 1;
    }

    /// One token of this batch is not waited for any more.
    fn start_waiting(&mut self, batch_idx: u64) {
        if let Some(batch) = self.kept.get_mut(&batch_idx) {
            batch.num_waiting -= 1;
        }
    }

    fn drop_started(&mut self) {
        self.kept.retain(|_, batch| batch.num_waiting > 0);
    }

    /// # Errors
    /// When a row is not a part of a prompt that is known, or draws inside one.
    fn check_prompts(&self, rows: &[RowSpan]) -> Result<(), EngineError> {
        for row in rows {
            let prompt = prompt_of(&self.prompts, row)?;
            let end = row.context_len as usize + row.query_len as usize;
            if row.query_len == 0 || end > prompt.tokens.len() {
                return Err(unsupported("more tokens than a prompt has"));
            }
            if row.draws > 0 && end != prompt.tokens.len() {
                return Err(unsupported("a token drawn inside a prompt"));
            }
        }
        Ok(())
    }

    fn prefill(&mut self, rows: &[RowSpan]) -> Result<(), EngineError> {
        let mut batch = Batch::default();
        let mut draws = Vec::new();
        let mut seqs = Vec::new();
        let batch_idx = self.num_batches;
        let mut num_complete = 0;
        for row in rows {
            let prompt = prompt_of(&self.prompts, row)?;
            let part = row.context_len as usize..row.context_len as usize + row.query_len as usize;
            let tokens = prompt.tokens.get(part).unwrap_or_default();
            batch.push(tokens, row.context_len, row.draws.min(1), &prompt.block_table);
            for response_idx in 0..row.draws {
                let seq = DeviceSeq {
                    sample_idx: prompt.sample_idx,
                    prompt_len_tokens: prompt.tokens.len() as u32,
                    block_table: Vec::new(),
                    waiting: Some(Waiting { batch_idx, row: draws.len() }),
                };
                seqs.push((SeqId { group_idx: prompt.group_idx, response_idx }, seq));
                let owner = Owner { sample_idx: prompt.sample_idx, response_idx };
                draws.push(FirstToken { logits_row: num_complete, owner, prompt: &prompt.tokens });
            }
            num_complete += row.draws.min(1) as usize;
        }
        let (tokens, records) = self.device.prefill(&batch, &draws)?;
        let owners: Vec<Owner> = draws.iter().map(|draw| draw.owner).collect();
        if let Some(tokens) = tokens {
            self.add_tokens(tokens, owners.len());
        }
        for (id, seq) in seqs {
            self.prompts.remove(&id.group_idx);
            self.seqs.insert(id, seq);
        }
        self.in_flight.push_back(InFlight { records, owners, ends: ends_of(rows) });
        Ok(())
    }

    fn decode(&mut self, seqs: &[(SeqId, u32)], rows: &[RowSpan]) -> Result<(), EngineError> {
        let has_moved = !self.row_table.has(seqs.iter().map(|&(id, _)| id));
        if has_moved || self.has_grown {
            let change = self.change_rows(seqs)?;
            if has_moved {
                self.bring_tokens(&change.sources)?;
            }
            self.device.upload(&change.words)?;
            self.has_grown = false;
        }
        let records = self.device.decode(bucket(seqs.len(), self.shape.small_batch), seqs.len())?;
        let owners = seqs
            .iter()
            .map(|&(id, _)| {
                let seq = self.seqs.get(&id).ok_or_else(|| unknown(id))?;
                Ok(Owner { sample_idx: seq.sample_idx, response_idx: id.response_idx })
            })
            .collect::<Result<_, EngineError>>()?;
        self.in_flight.push_back(InFlight { records, owners, ends: ends_of(rows) });
        Ok(())
    }

    /// The tables of the next step, and where the newest tokens of its rows are.
    fn change_rows(&mut self, seqs: &[(SeqId, u32)]) -> Result<Change, EngineError> {
        let rows = seqs
            .iter()
            .map(|&(id, context_len)| {
                let seq = self.seqs.get(&id).ok_or_else(|| unknown(id))?;
                let DeviceSeq { sample_idx, prompt_len_tokens, ref block_table, .. } = *seq;
                Ok(TableRow { id, context_len, sample_idx, prompt_len_tokens, block_table })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        self.row_table.update(&rows)
    }

    /// Brings the newest tokens into the order of the rows.
    fn bring_tokens(&mut self, sources: &[TokenSource]) -> Result<(), EngineError> {
        let mut batches = Vec::new();
        let mut from = Vec::with_capacity(sources.len());
        for source in sources {
            from.push(match *source {
                TokenSource::Row(row) => row as i64,
                TokenSource::Waiting(id) => self.waiting_row(id, &mut batches)?,
            });
        }
        let waiting: Vec<&D::KeptTokens> =
            batches.iter().filter_map(|idx| Some(&self.kept.get(idx)?.tokens)).collect();
        self.device.gather(&from, &waiting)?;
        self.drop_started();
        Ok(())
    }

    /// Where the token of a sequence without a row stands behind the rows and the tokens of `batches`, to which its own is
    /// added.
    fn waiting_row(&mut self, id: SeqId, batches: &mut Vec<u64>) -> Result<i64, EngineError> {
        let seq = self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?;
        let Waiting { batch_idx, row } = seq.waiting.take().ok_or_else(|| unknown(id))?;
        self.start_waiting(batch_idx);
        if !batches.contains(&batch_idx) {
            batches.push(batch_idx);
        }
        let before = batches.iter().take_while(|&&other| other != batch_idx);
        let num_before: usize = before.filter_map(|other| Some(self.kept.get(other)?.num_tokens)).sum();
        Ok((self.shape.layout.max_rows + num_before + row) as i64)
    }
}

impl<D: StepDevice> Executor for DeviceExecutor<D> {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.device.reset()?;
        self.in_flight.clear();
        self.prompts.clear();
        self.seqs.clear();
        self.kept.clear();
        self.row_table.clear();
        self.has_grown = false;
        Ok(())
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let StepPlan { tables, moves, rows } = plan;
        let kind = StepKind::of(&tables.prompts, &rows)?;
        self.learn(tables)?;
        if matches!(kind, StepKind::Prefill) {
            self.check_prompts(&rows)?;
        }
        self.device.begin(&moves)?;
        match kind {
            StepKind::Prefill => self.prefill(&rows),
            StepKind::Decode(seqs) => self.decode(&seqs, &rows),
        }
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        let Some(InFlight { records, owners, ends }) = self.in_flight.pop_front() else {
            return Ok(StepOutput::default());
        };
        let (tokens, times) = self.device.read(records, &owners)?;
        let StepTimes { whole: forward_time, moves: move_time } = times;
        Ok(StepOutput { tokens, ends, forward_time, move_time, sample_time: Duration::ZERO })
    }

    fn min_rows(&self) -> usize {
        bucket(1, self.shape.small_batch)
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.shape.prompt_cut_tokens
    }

    fn run_ahead(&self) -> usize {
        RUN_AHEAD
    }

    fn is_greedy(&self) -> bool {
        self.device.is_greedy()
    }
}

/// The steps that a GPU computes.
enum StepKind {
    /// Prompts, whole or in parts.
    Prefill,
    /// One token of each of these responses, with how many are cached.
    Decode(Vec<(SeqId, u32)>),
}

impl StepKind {
    /// # Errors
    /// For every other step.
    fn of(prompts: &[NewPrompt], rows: &[RowSpan]) -> Result<Self, EngineError> {
        let num_prompts = rows.iter().filter_map(|row| row.id.prompt()).count();
        if rows.is_empty() {
            return Err(unsupported("a step without rows"));
        }
        let with_row: HashSet<u64> = rows.iter().filter_map(|row| row.id.prompt()).collect();
        if !prompts.iter().all(|prompt| with_row.contains(&prompt.group_idx)) {
            return Err(unsupported("a prompt that is new before its step"));
        }
        if num_prompts == rows.len() {
            return Ok(Self::Prefill);
        }
        if num_prompts > 0 {
            return Err(unsupported(PROMPTS_AND_RESPONSES));
        }
        let seqs = rows.iter().filter_map(|row| match *row {
            RowSpan { id: RowId::Response(id), context_len, query_len: 1, draws: 1 } => {
                Some((id, context_len))
            }
            _ => None,
        });
        let seqs: Vec<_> = seqs.collect();
        match seqs.len() == rows.len() {
            true => Ok(Self::Decode(seqs)),
            false => Err(unsupported("drafted tokens to verify")),
        }
    }
}

/// The prompt that a row is a part of.
fn prompt_of<'a>(prompts: &'a HashMap<u64, NewPrompt>, row: &RowSpan) -> Result<&'a NewPrompt, EngineError> {
    let group_idx = row.id.prompt().ok_or_else(|| unsupported(PROMPTS_AND_RESPONSES))?;
    prompts.get(&group_idx).ok_or_else(|| unknown_prompt(group_idx))
}

fn unsupported(what: &'static str) -> EngineError {
    EngineError::UnsupportedStep { executor: NAME, what }
}

#[cfg(test)]
mod tests;
