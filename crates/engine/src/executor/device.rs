//! The executor for a GPU: one CUDA graph a decode step, and one step in flight while the host reads the last.
//!
//! Rows, tokens and positions live on the device; the sampler at the end of a graph moves them on, so that the next
//! replay needs nothing from the host. The host writes the tables only when the set of sequences or
//! their blocks change. Rows follow the scheduler's order, which keeps the responses to one prompt together, so that
//! attention can read their shared blocks once.
//!
//! What is here is bookkeeping; what touches a GPU is behind [`StepDevice`], and tests put a simulated one there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use model_core::{Batch, BlockId};
use sampling::{RowMasks, RowRules, SampledToken, StructuredRow, Vocabulary, prepare_all};

mod buckets;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod kept_batches;
mod row_table;
#[cfg(feature = "cuda")]
pub(crate) mod staged;
mod step_device;
mod step_kind;

use buckets::bucket;
pub(crate) use buckets::max_rows;
use kept_batches::{KeptBatches, Waiting};
pub(crate) use row_table::TableLayout;
use row_table::{Change, RowTable, TableRow, TokenSource};
pub(crate) use step_device::{DecodeStep, DrawnToken, FirstToken, Owner, StepDevice, StepTimes};
use step_kind::{DecodeRow, PROMPTS_AND_RESPONSES, StepKind, unsupported};

use super::{DRAFTS_IN_STRUCTURE, Executor, NO_VOCABULARY, unknown, unknown_prompt};
use crate::{
    EngineError,
    plan::{FailedToken, GrownSeq, NewPrompt, NewSeq, RowSpan, SeqId, StepOutput, StepPlan, TableDelta},
};

/// Steps that may be in flight while the host reads the one before.
const RUN_AHEAD: usize = 1;

/// A sequence whose first token was drawn.
struct DeviceSeq {
    sample_idx: u64,
    prompt_len_tokens: u32,
    own: Option<Arc<RowRules>>,
    structured: Option<Box<StructuredRow>>,
    /// None until it decodes.
    block_table: Vec<BlockId>,
    /// Its newest token while it has no row.
    waiting: Option<Waiting>,
}

/// Whether the tokens of a step are on their way.
enum Drawing<R> {
    Enqueued(R),
    /// The tokens of the step before must be read first: they decide what may be drawn.
    Waiting(DecodeStep),
}

/// A step on the device that the host has not read.
struct InFlight<R> {
    drawing: Drawing<R>,
    /// Of each token that is drawn.
    owners: Vec<Owner>,
    seq_ids: Vec<SeqId>,
    /// Of each token, why there is none; empty where all can be drawn.
    failures: Vec<Option<String>>,
    rows: Vec<RowInFlight>,
}

/// A row of a step in flight.
struct RowInFlight {
    /// The response that it is of, if it is of one.
    id: Option<SeqId>,
    num_draws: usize,
    /// Tokens to verify: fewer than draws, or none.
    drafts: Vec<u32>,
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
    vocabulary: Option<Arc<Vocabulary>>,
    row_table: RowTable,
    /// Those whose first tokens are not drawn, by request.
    prompts: HashMap<u64, NewPrompt>,
    seqs: HashMap<SeqId, DeviceSeq>,
    /// Responses have blocks that the device's tables do not.
    has_grown: bool,
    kept: KeptBatches<D::KeptTokens>,
    in_flight: VecDeque<InFlight<D::Records>>,
    /// Of the latest step with structures.
    masks: RowMasks,
}

impl<D: StepDevice> DeviceExecutor<D> {
    pub(crate) fn new(device: D, shape: DeviceShape) -> Self {
        Self {
            device,
            shape,
            vocabulary: None,
            row_table: RowTable::new(shape.layout),
            prompts: HashMap::new(),
            seqs: HashMap::new(),
            has_grown: false,
            kept: KeptBatches::default(),
            in_flight: VecDeque::new(),
            masks: RowMasks::default(),
        }
    }

    /// Takes in who ended, who starts and who has more blocks, and new prompts, which stay until their first tokens are
    /// drawn.
    fn learn(&mut self, tables: TableDelta) -> Result<(), EngineError> {
        self.prompts.extend(tables.prompts.into_iter().map(|prompt| (prompt.group_idx, prompt)));
        for id in &tables.ended {
            if let Some(waiting) = self.seqs.remove(id).and_then(|seq| seq.waiting) {
                self.kept.release(waiting);
            }
        }
        self.keep_tokens(&tables.preempted)?;
        self.kept.drop_released();
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
            seq.waiting = Some(self.kept.next_waiting(rows.len()));
            rows.push(row as i64);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let tokens = self.device.keep(&rows)?;
        self.kept.add(tokens, rows.len());
        Ok(())
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
            let has_structure = prompt.own.as_ref().is_some_and(|own| own.structure.is_some());
            if has_structure && self.vocabulary.is_none() {
                return Err(unsupported(NO_VOCABULARY));
            }
            if prompt.own.is_some() && !self.shape.layout.has_row_rules {
                return Err(unsupported("rules of a row's own, which its sampler was not made for"));
            }
        }
        Ok(())
    }

    fn prefill(&mut self, rows: &[RowSpan]) -> Result<(), EngineError> {
        let mut batch = Batch::default();
        let mut seqs = Vec::new();
        for row in rows {
            let prompt = prompt_of(&self.prompts, row)?;
            let part = row.context_len as usize..row.context_len as usize + row.query_len as usize;
            let tokens = prompt.tokens.get(part).unwrap_or_default();
            batch.push(tokens, row.context_len, row.draws.min(1), &prompt.block_table);
            let own: Option<Arc<RowRules>> = prompt.own.clone().map(Arc::from);
            for response_idx in 0..row.draws {
                let structured =
                    own.as_ref().and_then(|own| StructuredRow::begin(self.vocabulary.as_ref(), own));
                let seq = DeviceSeq {
                    sample_idx: prompt.sample_idx,
                    prompt_len_tokens: prompt.tokens.len() as u32,
                    own: own.clone(),
                    structured: structured.map(Box::new),
                    block_table: Vec::new(),
                    waiting: Some(self.kept.next_waiting(seqs.len())),
                };
                seqs.push((SeqId { group_idx: prompt.group_idx, response_idx }, seq));
            }
        }
        prepare_all(
            &mut seqs.iter_mut().filter_map(|(_, seq)| seq.structured.as_deref_mut()).collect::<Vec<_>>(),
        );
        let draws = first_tokens(&self.prompts, rows, &seqs)?;
        let (tokens, records) = self.device.prefill(&batch, &draws)?;
        let owners: Vec<Owner> = draws.iter().map(|draw| draw.owner).collect();
        let failures = failures_of(seqs.iter().map(|(_, seq)| seq));
        let seq_ids = seqs.iter().map(|(id, _)| *id).collect();
        if let Some(tokens) = tokens {
            self.kept.add(tokens, owners.len());
        }
        for (id, seq) in seqs {
            self.prompts.remove(&id.group_idx);
            self.seqs.insert(id, seq);
        }
        let of_prompt =
            |row: &RowSpan| RowInFlight { id: None, num_draws: row.draws as usize, drafts: Vec::new() };
        let (drawing, rows) = (Drawing::Enqueued(records), rows.iter().map(of_prompt).collect());
        self.in_flight.push_back(InFlight { drawing, owners, seq_ids, failures, rows });
        Ok(())
    }

    fn decode(&mut self, rows: &[DecodeRow<'_>]) -> Result<(), EngineError> {
        let has_drafts = rows.iter().any(|row| !row.drafts.is_empty());
        let has_moved = has_drafts || !self.row_table.has(rows.iter().map(|row| row.id));
        if has_moved || self.has_grown {
            let change = self.change_rows(rows)?;
            if has_moved {
                self.bring_tokens(&change.sources)?;
            }
            self.device.upload(&change.words)?;
            self.has_grown = false;
        }
        if has_drafts {
            let drafts: Vec<&[u32]> = rows
                .iter()
                .flat_map(|&DecodeRow { drafts, .. }| (0..=drafts.len()).map(move |end| &drafts[..end]))
                .collect();
            self.device.put_drafts(&drafts)?;
        }
        let num_used = rows.iter().map(|row| 1 + row.drafts.len()).sum();
        let num_rows = bucket(num_used, self.shape.small_batch);
        let step = DecodeStep { num_rows, num_used, has_drafts };
        let drawing = match self.check_structures(rows)? {
            false => Drawing::Enqueued(self.device.decode(step)?),
            true => {
                self.device.decode_model(step)?;
                Drawing::Waiting(step)
            }
        };
        let (mut owners, mut seq_ids) = (Vec::with_capacity(num_used), Vec::with_capacity(num_used));
        for row in rows {
            let seq = self.seqs.get(&row.id).ok_or_else(|| unknown(row.id))?;
            let owner = Owner { sample_idx: seq.sample_idx, response_idx: row.id.response_idx };
            owners.extend(std::iter::repeat_n(owner, 1 + row.drafts.len()));
            seq_ids.extend(std::iter::repeat_n(row.id, 1 + row.drafts.len()));
        }
        let rows = rows.iter().map(|row| RowInFlight {
            id: Some(row.id),
            num_draws: 1 + row.drafts.len(),
            drafts: row.drafts.to_vec(),
        });
        let rows = rows.collect();
        self.in_flight.push_back(InFlight { drawing, owners, seq_ids, failures: Vec::new(), rows });
        self.draw_waiting()
    }

    /// Whether some of these responses have a structure.
    fn check_structures(&self, rows: &[DecodeRow<'_>]) -> Result<bool, EngineError> {
        if self.vocabulary.is_none() {
            return Ok(false);
        }
        let mut any = false;
        for row in rows {
            if self.seqs.get(&row.id).is_some_and(|seq| seq.structured.is_some()) {
                any = true;
                if !row.drafts.is_empty() {
                    return Err(unsupported(DRAFTS_IN_STRUCTURE));
                }
            }
        }
        Ok(any)
    }

    /// Has the tokens of a step drawn that waits for those before it, once these are known. The model computes meanwhile.
    fn draw_waiting(&mut self) -> Result<(), EngineError> {
        let Self { device, seqs, in_flight, masks, .. } = self;
        let Some(InFlight { drawing, seq_ids, failures, .. }) = in_flight.front_mut() else { return Ok(()) };
        let Drawing::Waiting(step) = *drawing else { return Ok(()) };
        let drawn: HashSet<SeqId> = seq_ids.iter().copied().collect();
        let of_step = seqs.iter_mut().filter(|(id, _)| drawn.contains(id));
        prepare_all(&mut of_step.filter_map(|(_, seq)| seq.structured.as_deref_mut()).collect::<Vec<_>>());
        masks.clear();
        for id in &*seq_ids {
            let structured = seqs.get(id).and_then(|seq| seq.structured.as_deref());
            masks.push(structured.and_then(StructuredRow::allowed));
        }
        *failures = failures_of(seq_ids.iter().filter_map(|id| seqs.get(id)));
        *drawing = Drawing::Enqueued(device.draw_masked(step, masks)?);
        Ok(())
    }

    /// The tables of the next step, and where the newest tokens of its rows are.
    fn change_rows(&mut self, rows: &[DecodeRow<'_>]) -> Result<Change, EngineError> {
        let rows = rows
            .iter()
            .map(|&DecodeRow { id, context_len, drafts }| {
                let seq = self.seqs.get(&id).ok_or_else(|| unknown(id))?;
                let DeviceSeq { sample_idx, prompt_len_tokens, ref block_table, ref own, .. } = *seq;
                let num_drafts = drafts.len();
                let own = own.as_deref();
                Ok(TableRow { id, context_len, num_drafts, sample_idx, prompt_len_tokens, own, block_table })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        self.row_table.update(&rows)
    }

    /// The tokens of a row, up to the first that is not the one drafted: what is drawn behind that is of another text.
    fn accept(
        &mut self,
        row: &RowInFlight,
        drawn: impl Iterator<Item = DrawnToken>,
        tokens: &mut Vec<SampledToken>,
    ) -> Result<(), EngineError> {
        let mut num_accepted = 0;
        let mut is_going_on = true;
        for (idx, drawn) in drawn.take(row.num_draws).enumerate() {
            if !is_going_on {
                continue;
            }
            let drawn = drawn?;
            num_accepted += 1;
            is_going_on = row.id.is_none() || row.drafts.get(idx) == Some(&drawn.token);
            tokens.push(drawn);
        }
        if let (Some(id), false) = (row.id, row.drafts.is_empty()) {
            self.row_table.accept(id, num_accepted);
        }
        Ok(())
    }

    /// Brings the newest tokens into the order of the rows.
    fn bring_tokens(&mut self, sources: &[TokenSource]) -> Result<(), EngineError> {
        let mut batches = Vec::new();
        let mut from = Vec::with_capacity(sources.len());
        // The rows of a sequence have one source.
        for of_seq in sources.chunk_by(|a, b| a == b) {
            let place = match of_seq[0] {
                TokenSource::Row(row) => row,
                TokenSource::Waiting(id) => {
                    let seq = self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?;
                    let waiting = seq.waiting.take().ok_or_else(|| unknown(id))?;
                    self.shape.layout.max_rows + self.kept.take(waiting, &mut batches)
                }
            };
            from.extend(std::iter::repeat_n(place as i64, of_seq.len()));
        }
        self.device.gather(&from, &self.kept.tokens_of(&batches))?;
        self.kept.drop_released();
        Ok(())
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

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.vocabulary = Some(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let StepPlan { tables, moves, rows, drafts } = plan;
        if self.in_flight.iter().flat_map(|step| &step.rows).any(|row| !row.drafts.is_empty()) {
            return Err(unsupported("a step before it is known which drafted tokens stay"));
        }
        if self.in_flight.iter().any(|step| matches!(step.drawing, Drawing::Waiting(_))) {
            return Err(unsupported("a step before it is known what may be next in a structure"));
        }
        let kind = StepKind::of(&tables.prompts, &rows, &drafts)?;
        self.learn(tables)?;
        if matches!(kind, StepKind::Prefill) {
            self.check_prompts(&rows)?;
        }
        self.device.begin(&moves)?;
        match kind {
            StepKind::Prefill => self.prefill(&rows),
            StepKind::Decode(rows) => self.decode(&rows),
        }
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        self.draw_waiting()?;
        let Some(InFlight { drawing: Drawing::Enqueued(records), owners, seq_ids, failures, rows }) =
            self.in_flight.pop_front()
        else {
            return Ok(StepOutput::default());
        };
        let (mut drawn, times) = self.device.read(records, &owners)?;
        for (drawn, _) in drawn.iter_mut().zip(&failures).filter(|(_, failure)| failure.is_some()) {
            // Whatever came of it is no part of its response.
            *drawn = Ok(SampledToken { token: 0, logprob: None, top: Vec::new() });
        }
        let mut drawn = drawn.into_iter();
        let mut tokens = Vec::with_capacity(owners.len());
        let mut ends = Vec::with_capacity(rows.len());
        let mut failed = Vec::new();
        let mut first_draw = 0;
        for row in &rows {
            let first_token = tokens.len();
            self.accept(row, drawn.by_ref(), &mut tokens)?;
            for (offset, token) in tokens[first_token..].iter().enumerate() {
                let draw = first_draw + offset;
                if let Some(Some(reason)) = failures.get(draw) {
                    failed.push(FailedToken {
                        token_idx: (first_token + offset) as u32,
                        reason: reason.clone(),
                    });
                }
                let seq = seq_ids.get(draw).and_then(|id| self.seqs.get_mut(id));
                if let Some(structured) = seq.and_then(|seq| seq.structured.as_deref_mut()) {
                    structured.push(token.token);
                }
            }
            first_draw += row.num_draws;
            ends.push(tokens.len() as u32);
        }
        self.draw_waiting()?;
        let StepTimes { whole: forward_time, moves: move_time, has_new_graph: is_first_of_kind } = times;
        let sample_time = Duration::ZERO;
        Ok(StepOutput { tokens, ends, failed, forward_time, move_time, sample_time, is_first_of_kind })
    }

    fn verifies_drafts(&self) -> bool {
        self.device.verifies_drafts()
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

/// The first tokens to draw behind the prompts that `rows` complete. `seqs`: the responses to them, in order.
fn first_tokens<'a>(
    prompts: &'a HashMap<u64, NewPrompt>,
    rows: &[RowSpan],
    seqs: &'a [(SeqId, DeviceSeq)],
) -> Result<Vec<FirstToken<'a>>, EngineError> {
    let mut draws = Vec::with_capacity(seqs.len());
    for (logits_row, row) in rows.iter().filter(|row| row.draws > 0).enumerate() {
        let prompt = prompt_of(prompts, row)?;
        for response_idx in 0..row.draws {
            let structured = seqs.get(draws.len()).and_then(|(_, seq)| seq.structured.as_deref());
            draws.push(FirstToken {
                logits_row,
                owner: Owner { sample_idx: prompt.sample_idx, response_idx },
                prompt: &prompt.tokens,
                own: prompt.own.as_deref(),
                allowed: structured.and_then(StructuredRow::allowed),
            });
        }
    }
    Ok(draws)
}

/// Why nothing can be drawn for each of these; empty where all have a token.
fn failures_of<'a>(seqs: impl Iterator<Item = &'a DeviceSeq>) -> Vec<Option<String>> {
    let failure = |seq: &DeviceSeq| Some(seq.structured.as_ref()?.failure()?.to_owned());
    let failures: Vec<Option<String>> = seqs.map(failure).collect();
    if failures.iter().any(Option::is_some) { failures } else { Vec::new() }
}

/// The prompt that a row is a part of.
fn prompt_of<'a>(prompts: &'a HashMap<u64, NewPrompt>, row: &RowSpan) -> Result<&'a NewPrompt, EngineError> {
    let group_idx = row.id.prompt().ok_or_else(|| unsupported(PROMPTS_AND_RESPONSES))?;
    prompts.get(&group_idx).ok_or_else(|| unknown_prompt(group_idx))
}

#[cfg(test)]
mod tests;
