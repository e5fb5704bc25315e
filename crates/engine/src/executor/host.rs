//! The executor for models whose logits and samplers the host drives step by step.
//!
//! It computes whole prompts, chunks of prompts and decoded tokens in any mixture. Every step is computed when it is
//! started; collecting only hands it over. Where the model is a pipeline stage that draws no tokens, collecting waits for
//! those of the last stage.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model_core::{Batch, BlockId, BlockMove, CausalLm, KvCache};
use sampling::{RowRules, RowState, SampledToken, StructuredRow, TokenSampler, Vocabulary, prepare_all};
use tch::Tensor;

use super::{DRAFTS_IN_STRUCTURE, Executor, NO_VOCABULARY, unknown, unknown_prompt};
use crate::{
    EngineError,
    plan::{
        FailedToken, GrownSeq, NewPrompt, NewSeq, RowId, RowSpan, SeqId, StepOutput, StepPlan, TableDelta,
    },
};

const NAME: &str = "host";
/// Rows of logits that are copied at once for responses that begin with the same ones.
const MOST_COPIED_ROWS: usize = 128;

/// What the executor needs of a model and its cache. Tests put a fake in its place that sees every block that is
/// written, read and copied.
pub(crate) trait BatchModel: Send {
    /// The logits that the batch asks for: float32 `[num_logits, padded_vocab_size]`.
    fn forward(&mut self, batch: &Batch, of: StepOf) -> Result<Tensor, EngineError>;

    /// Whether the other ranks of the model came to all that was computed so far: to be asked when a step has ended.
    fn check_ranks(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// [`CausalLm::prompt_cut_tokens`].
    fn prompt_cut_tokens(&self) -> Option<usize>;

    /// Whether [`CausalLm::verifies_drafts`].
    fn verifies_drafts(&self) -> bool;

    /// Moves whole blocks of every layer, in order.
    fn move_blocks(&mut self, moves: &[BlockMove]) -> Result<(), EngineError>;
}

/// Whose tokens a step has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepOf {
    /// Those of prompts.
    Prompts,
    /// Those of responses, drafts included.
    Responses,
    Both,
}

impl StepOf {
    fn rows(rows: &[RowSpan]) -> Self {
        match rows.iter().filter(|row| row.id.prompt().is_some()).count() {
            0 => Self::Responses,
            num_prompts if num_prompts == rows.len() => Self::Prompts,
            _ => Self::Both,
        }
    }
}

/// A real model and its cache.
pub(crate) struct CachedModel {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) cache: KvCache,
}

impl BatchModel for CachedModel {
    fn forward(&mut self, batch: &Batch, _: StepOf) -> Result<Tensor, EngineError> {
        Ok(self.model.forward(batch, &mut self.cache)?)
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

/// A sequence whose tokens the host holds.
struct HostSeq {
    sample_idx: u64,
    prompt_len_tokens: usize,
    /// Prompt and generated tokens.
    history: Vec<u32>,
    own: Option<Arc<RowRules>>,
    structured: Option<Box<StructuredRow>>,
    /// None until it decodes.
    block_table: Vec<BlockId>,
}

impl HostSeq {
    fn extend(&mut self, tokens: &[SampledToken]) {
        for sampled in tokens {
            self.history.push(sampled.token);
            if let Some(structured) = &mut self.structured {
                structured.push(sampled.token);
            }
        }
    }
}

/// A response whose tokens are drawn.
struct Draw {
    id: SeqId,
    /// Of the first token; those behind drafts follow.
    logits_row: usize,
    drafts: Vec<u32>,
}

/// A step that the model has computed.
struct Computed {
    logits: Tensor,
    draws: Vec<Draw>,
    /// Of each row.
    num_draws_of: Vec<usize>,
    forward_time: Duration,
    move_time: Duration,
}

/// Where the part of a model is that an executor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Pipeline stages of the model.
    pub num_stages: usize,
    /// Whether this one draws the tokens.
    pub is_last: bool,
}

impl Stage {
    /// A model in one piece.
    pub const ONLY: Self = Self { num_stages: 1, is_last: true };
}

/// A model and a sampler, called one after the other.
pub(crate) struct HostExecutor {
    model: Box<dyn BatchModel>,
    sampler: Box<dyn TokenSampler>,
    stage: Stage,
    run_ahead: usize,
    vocabulary: Option<Arc<Vocabulary>>,
    prompts: HashMap<u64, NewPrompt>,
    seqs: HashMap<SeqId, HostSeq>,
    /// Steps whose tokens another stage draws, and sends when it has.
    computed: VecDeque<Computed>,
    outputs: VecDeque<StepOutput>,
}

impl HostExecutor {
    pub(crate) fn new(model: Box<dyn BatchModel>, sampler: Box<dyn TokenSampler>, stage: Stage) -> Self {
        Self {
            model,
            sampler,
            stage,
            run_ahead: stage.num_stages.saturating_sub(1),
            vocabulary: None,
            computed: VecDeque::new(),
            prompts: HashMap::new(),
            seqs: HashMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Lets the engine run ahead as it does on a device, for tests.
    #[cfg(test)]
    pub(crate) fn with_run_ahead(self, run_ahead: usize) -> Self {
        Self { run_ahead, ..self }
    }

    fn learn(&mut self, tables: TableDelta) -> Result<(), EngineError> {
        for id in &tables.ended {
            self.seqs.remove(id);
        }
        self.prompts.extend(tables.prompts.into_iter().map(|prompt| (prompt.group_idx, prompt)));
        for NewSeq { id, block_table } in tables.started {
            self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?.block_table = block_table;
        }
        for GrownSeq { id, new_blocks } in tables.grown {
            self.seqs.get_mut(&id).ok_or_else(|| unknown(id))?.block_table.extend(new_blocks);
        }
        Ok(())
    }

    /// Adds a row of a prompt to the batch, and its responses to the sequences when it is the last of that prompt.
    fn add_prompt(&mut self, group_idx: u64, row: &RowSpan, batch: &mut Batch) -> Result<(), EngineError> {
        let prompt = self.prompts.get(&group_idx).ok_or_else(|| unknown_prompt(group_idx))?;
        let end = row.context_len as usize + row.query_len as usize;
        let Some(tokens) = prompt.tokens.get(row.context_len as usize..end) else {
            return Err(unsupported("more tokens than a prompt has"));
        };
        batch.push(tokens, row.context_len, row.draws.min(1), &prompt.block_table);
        if row.draws == 0 {
            return Ok(());
        }
        if end != prompt.tokens.len() {
            return Err(unsupported("a token drawn inside a prompt"));
        }
        let own: Option<Arc<RowRules>> = prompt.own.clone().map(Arc::from);
        let vocabulary = self.vocabulary.as_ref();
        if vocabulary.is_none() && own.as_ref().is_some_and(|own| own.structure.is_some()) {
            return Err(unsupported(NO_VOCABULARY));
        }
        for response_idx in 0..row.draws {
            let seq = HostSeq {
                sample_idx: prompt.sample_idx,
                prompt_len_tokens: prompt.tokens.len(),
                history: prompt.tokens.clone(),
                own: own.clone(),
                structured: own.as_ref().and_then(|own| StructuredRow::begin(vocabulary, own)).map(Box::new),
                block_table: Vec::new(),
            };
            self.seqs.insert(SeqId { group_idx, response_idx }, seq);
        }
        self.prompts.remove(&group_idx);
        Ok(())
    }

    /// Adds a row of a response to the batch: its newest token and the drafts behind it.
    fn add_response(
        &self,
        id: SeqId,
        row: &RowSpan,
        drafts: &[u32],
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        let seq = self.seqs.get(&id).ok_or_else(|| unknown(id))?;
        if row.draws != row.query_len || drafts.len() + 1 != row.query_len as usize {
            return Err(unsupported("a response with more or fewer draws or drafts than tokens"));
        }
        if !drafts.is_empty() && !self.model.verifies_drafts() {
            return Err(unsupported("drafted tokens to verify, with this model's backend"));
        }
        if !drafts.is_empty() && seq.structured.is_some() {
            return Err(unsupported(DRAFTS_IN_STRUCTURE));
        }
        let Some((newest, before)) = seq.history.split_last() else { return Err(unknown(id)) };
        if before.len() != row.context_len as usize {
            return Err(unsupported("a response at a place other than its end"));
        }
        let tokens = [&[*newest], drafts].concat();
        batch.push(&tokens, row.context_len, row.draws, &seq.block_table);
        Ok(())
    }

    /// Draws the tokens of each row and appends them: one, and another behind each draft that was the token drawn. Each is
    /// drawn as if there were no drafts.
    fn sample(&mut self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Vec<SampledToken>>, EngineError> {
        for draw in draws {
            if let Some(seq) = self.seqs.get_mut(&draw.id) {
                seq.history.extend_from_slice(&draw.drafts);
            }
        }
        let drawn = self.draw_all(logits, draws);
        for draw in draws {
            if let Some(seq) = self.seqs.get_mut(&draw.id) {
                seq.history.truncate(seq.history.len() - draw.drafts.len());
            }
        }
        let mut drawn = match drawn {
            Ok(drawn) => drawn.into_iter(),
            // What cannot be drawn may stand behind a wrong draft, where nothing is to be drawn.
            Err(_) if draws.iter().any(|draw| !draw.drafts.is_empty()) => {
                return self.sample_in_turn(logits, draws);
            }
            Err(error) => return Err(error),
        };
        let mut tokens = Vec::with_capacity(draws.len());
        for draw in draws {
            let mut of_draw: Vec<SampledToken> = drawn.by_ref().take(1 + draw.drafts.len()).collect();
            let pairs = of_draw.iter().zip(&draw.drafts);
            let num_right = pairs.take_while(|&(sampled, &draft)| sampled.token == draft).count();
            of_draw.truncate(num_right + 1);
            if let Some(seq) = self.seqs.get_mut(&draw.id) {
                seq.extend(&of_draw);
            }
            tokens.push(of_draw);
        }
        Ok(tokens)
    }

    /// A token for each row and behind each draft. The histories end with the drafts.
    fn draw_all(&mut self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<SampledToken>, EngineError> {
        let (mut rows, mut states) = (Vec::new(), Vec::new());
        for draw in draws {
            let state = row_state(&self.seqs, draw.id)?;
            let num_drafts = draw.drafts.len();
            for num_left in (0..=num_drafts).rev() {
                rows.push(draw.logits_row + num_drafts - num_left);
                states.push(RowState {
                    num_generated: state.num_generated - num_left as u32,
                    history: &state.history[..state.history.len() - num_left],
                    ..state
                });
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        if is_all_rows(logits, &rows)? {
            return Ok(self.sampler.sample(logits, &states)?);
        }
        // The responses to a prompt begin with copies of one row, and there may be as many of them as anybody asks for.
        let mut sampled = Vec::with_capacity(rows.len());
        for (rows, states) in rows.chunks(MOST_COPIED_ROWS).zip(states.chunks(MOST_COPIED_ROWS)) {
            let logits = select_rows(logits, rows)?; // [num_rows, padded_vocab_size]
            sampled.extend(self.sampler.sample(&logits, states)?);
        }
        Ok(sampled)
    }

    /// The same in one call for the first token of each row, one for the second and so on: nothing is drawn behind a wrong
    /// draft.
    fn sample_in_turn(
        &mut self,
        logits: &Tensor,
        draws: &[Draw],
    ) -> Result<Vec<Vec<SampledToken>>, EngineError> {
        let mut tokens = vec![Vec::with_capacity(1); draws.len()];
        let mut going_on: Vec<usize> = (0..draws.len()).collect();
        let mut num_drawn = 0;
        while !going_on.is_empty() {
            let rows: Vec<usize> = going_on.iter().map(|&idx| draws[idx].logits_row + num_drawn).collect();
            let logits = select_rows(logits, &rows)?; // [num_rows, padded_vocab_size]
            let states = going_on
                .iter()
                .map(|&idx| row_state(&self.seqs, draws[idx].id))
                .collect::<Result<Vec<_>, _>>()?;
            let sampled = self.sampler.sample(&logits, &states)?;
            for (&idx, sampled) in going_on.iter().zip(sampled) {
                if let Some(seq) = self.seqs.get_mut(&draws[idx].id) {
                    seq.extend(std::slice::from_ref(&sampled));
                }
                tokens[idx].push(sampled);
            }
            going_on.retain(|&idx| {
                let newest = tokens[idx].last().map(|sampled| sampled.token);
                newest.is_some() && draws[idx].drafts.get(num_drawn).copied() == newest
            });
            num_drawn += 1;
        }
        Ok(tokens)
    }
}

impl HostExecutor {
    /// Finds out what may be next in the structures of these responses; for each draw, why nothing may.
    fn prepare_structured(&mut self, draws: &[Draw]) -> Vec<Option<String>> {
        if self.vocabulary.is_none() {
            return Vec::new();
        }
        let drawn: HashSet<SeqId> = draws.iter().map(|draw| draw.id).collect();
        let of_draws = self.seqs.iter_mut().filter(|(id, _)| drawn.contains(id));
        prepare_all(&mut of_draws.filter_map(|(_, seq)| seq.structured.as_deref_mut()).collect::<Vec<_>>());
        let failure = |draw: &Draw| Some(self.seqs.get(&draw.id)?.structured.as_ref()?.failure()?.to_owned());
        draws.iter().map(failure).collect()
    }

    /// The tokens of a step.
    fn draw(&mut self, computed: &Computed) -> Result<StepOutput, EngineError> {
        let Computed { logits, draws, num_draws_of, forward_time, move_time } = computed;
        let started = Instant::now();
        let failed = self.prepare_structured(draws);
        let tokens = self.sample(logits, draws)?;
        self.model.check_ranks()?;
        Ok(StepOutput {
            failed: failed_tokens(&tokens, failed),
            ends: ends_of_rows(&tokens, num_draws_of),
            tokens: tokens.concat(),
            forward_time: *forward_time,
            sample_time: started.elapsed(),
            move_time: *move_time,
            is_first_of_kind: false,
        })
    }
}

impl Executor for HostExecutor {
    fn reset(&mut self) -> Result<(), EngineError> {
        // Another rank sends their tokens, wanted or not.
        while let Some(computed) = self.computed.pop_front() {
            self.draw(&computed)?;
        }
        self.prompts.clear();
        self.seqs.clear();
        self.outputs.clear();
        Ok(())
    }

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.vocabulary = Some(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let StepPlan { tables, moves, rows, drafts } = plan;
        self.learn(tables)?;
        let mut batch = Batch::default();
        let mut draws = Vec::new();
        let mut num_draws_of = Vec::with_capacity(rows.len());
        let mut num_logits = 0;
        let mut drafts_left = drafts.as_slice();
        for row in &rows {
            let logits_row = num_logits;
            match row.id {
                RowId::Prompt(group_idx) => {
                    self.add_prompt(group_idx, row, &mut batch)?;
                    let ids = (0..row.draws).map(|response_idx| SeqId { group_idx, response_idx });
                    draws.extend(ids.map(|id| Draw { id, logits_row, drafts: Vec::new() }));
                    num_logits += row.draws.min(1) as usize;
                    num_draws_of.push(row.draws as usize);
                }
                RowId::Response(id) => {
                    let num_drafts = (row.query_len as usize).saturating_sub(1).min(drafts_left.len());
                    let (drafts, left) = drafts_left.split_at(num_drafts);
                    drafts_left = left;
                    self.add_response(id, row, drafts, &mut batch)?;
                    draws.push(Draw { id, logits_row, drafts: drafts.to_vec() });
                    num_logits += row.draws as usize;
                    num_draws_of.push(1);
                }
            }
        }
        let started = Instant::now();
        if !moves.is_empty() {
            self.model.move_blocks(&moves)?;
        }
        let move_time = started.elapsed();
        let logits = self.model.forward(&batch, StepOf::rows(&rows))?; // [num_logits, padded_vocab_size]
        let forward_time = started.elapsed();
        let computed = Computed { logits, draws, num_draws_of, forward_time, move_time };
        if self.stage.is_last {
            let output = self.draw(&computed)?;
            self.outputs.push_back(output);
        } else {
            self.computed.push_back(computed);
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        match self.computed.pop_front() {
            Some(computed) => self.draw(&computed),
            None => Ok(self.outputs.pop_front().unwrap_or_default()),
        }
    }

    fn num_sets(&self) -> usize {
        self.stage.num_stages
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.model.prompt_cut_tokens()
    }

    fn run_ahead(&self) -> usize {
        self.run_ahead
    }

    fn verifies_drafts(&self) -> bool {
        self.model.verifies_drafts()
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}

fn unsupported(what: &'static str) -> EngineError {
    EngineError::UnsupportedStep { executor: NAME, what }
}

fn row_state(seqs: &HashMap<SeqId, HostSeq>, id: SeqId) -> Result<RowState<'_>, EngineError> {
    let seq = seqs.get(&id).ok_or_else(|| unknown(id))?;
    Ok(RowState {
        sample_idx: seq.sample_idx,
        response_idx: id.response_idx,
        num_generated: (seq.history.len() - seq.prompt_len_tokens) as u32,
        history: &seq.history,
        own: seq.own.as_deref(),
        allowed: seq.structured.as_deref().and_then(StructuredRow::allowed),
    })
}

/// Whether these are all rows in their order.
fn is_all_rows(logits: &Tensor, rows: &[usize]) -> Result<bool, EngineError> {
    Ok(logits.size2()?.0 == rows.len() as i64 && rows.iter().enumerate().all(|(idx, &row)| idx == row))
}

/// `logits`: `[num_logits, padded_vocab_size]` to `[rows.len(), padded_vocab_size]`.
fn select_rows(logits: &Tensor, rows: &[usize]) -> Result<Tensor, EngineError> {
    if is_all_rows(logits, rows)? {
        return Ok(logits.shallow_clone());
    }
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(logits.device())?;
    Ok(logits.f_index_select(0, &rows)?)
}

/// Which of the tokens are none. `failures`: of each draw, why it has no token.
fn failed_tokens(tokens: &[Vec<SampledToken>], failures: Vec<Option<String>>) -> Vec<FailedToken> {
    let mut token_idx = 0;
    let mut failed = Vec::new();
    for (tokens, failure) in tokens.iter().zip(failures) {
        failed.extend(failure.map(|reason| FailedToken { token_idx, reason }));
        token_idx += tokens.len() as u32;
    }
    failed
}

/// Where the tokens of each row of a step end. `tokens`: of each draw, of which row i has `num_draws_of[i]`.
fn ends_of_rows(tokens: &[Vec<SampledToken>], num_draws_of: &[usize]) -> Vec<u32> {
    let mut tokens = tokens.iter();
    let mut end = 0;
    num_draws_of
        .iter()
        .map(|&num_draws| {
            end += tokens.by_ref().take(num_draws).map(|tokens| tokens.len() as u32).sum::<u32>();
            end
        })
        .collect()
}
