//! Launcher of the sampler: logits to tokens, and the state of the rows moved on, all on the GPU.

use bytemuck::{Pod, Zeroable};
use cuda_runtime::{Arg, Device, Launch, Stream};
use tch::{Kind, Tensor};

use super::SamplerKernels;
use super::forced::{ForcedTokens, forced_addresses};
use super::programs::{MANY_STAGES, MANY_THREADS, PIECE, SAMPLE_BLOCKS_PER_SM, SamplerTiling};
use super::seen::words_of;
use crate::KernelError;
use crate::tensors::{Address, Tensors, bad, count, int, shape_of};

/// The largest vocabulary whose weights add up exactly.
const MAX_VOCAB_SIZE: i64 = 1 << 19;
/// `NUM_HISTOGRAMS * NUM_BINS` of `filter.cuh`.
const HISTOGRAM_ELEMS: i64 = 3 * 2048;
/// `ROW_RULE_WORDS` of `own.cuh`.
const ROW_RULE_WORDS: i64 = 28;

/// How tokens are chosen, one set for a run. The meaning is that of `SamplingParams` in the sampling crate, and the
/// tokens are those of its reference sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRules {
    /// Always the most likely token; only `compute_logprob` and `min_length` count then.
    pub use_greedy: bool,
    /// Divides the logits.
    pub temperature: f32,
    /// Keep this many most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of this probability, in (0, 1).
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely, compared with the most likely one, in (0, 1].
    pub min_p: Option<f32>,
    /// Over seen tokens: divides positive logits, multiplies negative ones; 1 is off.
    pub repetition_penalty: f32,
    /// Also give the log-softmax of the raw logits at the token.
    pub compute_logprob: bool,
    /// No end token is chosen before this many tokens.
    pub min_length: u32,
    /// The run's.
    pub seed: u64,
    /// The tokenizer's; logits past it are padding.
    pub vocab_size: i64,
}

/// The state of all slots, on the GPU. The sampler moves it on.
#[derive(Clone, Copy, Debug)]
pub struct SamplerState<'a> {
    /// `int32[num_slots]`: the token chosen last, the input of the next step.
    pub tokens: &'a Tensor,
    /// `int32[num_slots]`: where it stands; below 0 the slot is not in use.
    pub positions: &'a Tensor,
    /// `int32[num_slots]`: tokens generated so far.
    pub num_generated: &'a Tensor,
    /// `int64[num_slots]`: the bits of the sample's index.
    pub sample_idxs: &'a Tensor,
    /// `int32[num_slots]`: which response of the sample.
    pub response_idxs: &'a Tensor,
    /// Bit sets of prompt and generated tokens, `int32[num_slots, ceil(vocab_size / 32)]`; needed for a repetition
    /// penalty.
    pub seen: Option<&'a Tensor>,
    /// `int32[num_slots, 28]`: rules of rows' own in place of the launch's, as `row_rule_words` of the sampling crate makes
    /// them; zeros for a row without.
    pub row_rules: Option<&'a Tensor>,
}

/// The first token of a response, drawn from the logits of its prompt. Copied to the GPU as it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Admission {
    /// Row of the logits; several responses may draw from one.
    pub logits_row: i32,
    /// The slot that the response gets; below 0 the record is padding.
    pub slot: i32,
    /// Where the drawn token will stand: the length of the prompt.
    pub position: i32,
    /// Which response of the sample.
    pub response_idx: u32,
    /// The sample.
    pub sample_idx: u64,
    /// 0.
    pub reserved: u64,
}

/// What became of a row, as the GPU writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Sampled {
    /// The token, or -1.
    pub token: i32,
    /// Log-softmax of the raw logits at it; NaN unless asked for.
    pub logprob: f32,
    /// A [`SampleStatus`].
    pub status: i32,
    /// Tokens generated with this one.
    pub num_generated: u32,
}

/// Whether a token was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleStatus {
    /// It was, and the slot has moved on.
    Chosen,
    /// The logits hold a NaN. The slot is as it was, also in the cases below.
    HasNan,
    /// The logits hold an infinite value.
    HasInfinity,
    /// The logits hold no token that may be chosen.
    HasNoToken,
    /// The slot is not in use.
    Skipped,
}

impl Sampled {
    /// `status` as it is meant; None for a number that the sampler does not write.
    pub fn status(&self) -> Option<SampleStatus> {
        match self.status {
            0 => Some(SampleStatus::Chosen),
            1 => Some(SampleStatus::HasNan),
            2 => Some(SampleStatus::HasInfinity),
            3 => Some(SampleStatus::HasNoToken),
            4 => Some(SampleStatus::Skipped),
            _ => None,
        }
    }
}

/// Working memory of the sampler.
#[derive(Debug)]
pub struct SamplerScratch {
    max_entries: i64,
    vocab_size: i64,
    /// Parts of a row, the most of any kernel.
    num_chunks: i64,
    /// `int32[1]`, `int32[max_entries]` and `int32[2, max_entries, num_chunks]`, zero between launches.
    ticket: Tensor,
    arrivals: Tensor,
    maxima: Tensor,
    /// `int64[max_entries, num_chunks, 2]`.
    stats: Tensor,
    /// `int64[3, max_entries, num_chunks]`: weights, raw weights and ties.
    sums: Tensor,
    /// `int64[max_entries, 3 * 2048]`.
    histograms: Tensor,
}

impl SamplerScratch {
    /// Memory for up to `max_entries` rows or admissions at once.
    ///
    /// # Errors
    /// When the vocabulary is empty or too large, or the GPU has no memory for it.
    pub fn new(device: &Device, max_entries: i64, vocab_size: i64) -> Result<Self, KernelError> {
        if vocab_size <= 0 || vocab_size > MAX_VOCAB_SIZE {
            return Err(bad("vocab_size", &format!("from 1 to {MAX_VOCAB_SIZE}"), vocab_size));
        }
        let num_chunks = parts_of(vocab_size, PIECE);
        let zeros = |shape: &[i64], kind| Tensor::f_zeros(shape, (kind, device.tch()));
        Ok(Self {
            max_entries,
            vocab_size,
            num_chunks,
            ticket: zeros(&[1], Kind::Int)?,
            arrivals: zeros(&[max_entries], Kind::Int)?,
            maxima: zeros(&[2, max_entries, num_chunks], Kind::Int)?,
            stats: zeros(&[max_entries, num_chunks, 2], Kind::Int64)?,
            sums: zeros(&[3, max_entries, num_chunks], Kind::Int64)?,
            histograms: zeros(&[max_entries, HISTOGRAM_ELEMS], Kind::Int64)?,
        })
    }
}

/// The tokens that rows may be given, where not all may.
#[derive(Clone, Copy, Debug)]
pub struct SampleMasks<'a> {
    /// `int32[m or a]`: which of the masks each row or admission has; below 0 it has none.
    pub mask_of_entry: &'a Tensor,
    /// Bit sets, `int32[num_masks, ceil(vocab_size / 32)]`.
    pub bits: &'a Tensor,
}

/// One sampling step.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// `float32[m, padded_vocab_size]`.
    pub logits: &'a Tensor,
    /// How.
    pub rules: &'a SampleRules,
    /// `int32[e]`: the tokens that end a response, for `min_length`.
    pub end_token_ids: Option<&'a Tensor>,
    /// `float32[vocab_size]`: added to the logits before everything else.
    pub bias: Option<&'a Tensor>,
    /// Masks of some rows.
    pub masks: Option<SampleMasks<'a>>,
    /// Texts that are known; with rules that are greedy and give log-probabilities, and without masks and rows' rules.
    pub forced: Option<ForcedTokens<'a>>,
    /// The slots.
    pub state: SamplerState<'a>,
    /// Working memory.
    pub scratch: &'a SamplerScratch,
    /// None in a decode step, where row i of the logits belongs to slot i. After a prefill: [`Admission`]s as
    /// `int64[a, 4]`, each of which sets up its slot.
    pub admissions: Option<&'a Tensor>,
    /// [`Sampled`] records as `int32[m or a, 4]`.
    pub out: &'a Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleArgs {
    logits: Address,
    end_token_ids: Address,
    admissions: Address,
    tokens: Address,
    positions: Address,
    num_generated: Address,
    sample_idxs: Address,
    response_idxs: Address,
    seen: Address,
    out: Address,
    ticket: Address,
    arrivals: Address,
    maxima: Address,
    stats: Address,
    sums: Address,
    raw_sums: Address,
    ties: Address,
    histograms: Address,
    bias: Address,
    row_rules: Address,
    mask_of_entry: Address,
    masks: Address,
    forced_tokens: Address,
    forced_starts: Address,
    seed: u64,
    logits_stride: i64,
    num_forced: i64,
    num_logits_rows: i32,
    num_slots: i32,
    num_entries: i32,
    vocab_size: i32,
    num_chunks: i32,
    num_end_tokens: i32,
    min_length: u32,
    top_k: u32,
    top_p: f32,
    temperature: f32,
    repetition_penalty: f32,
    min_p: f32,
    use_greedy: i32,
    compute_logprob: i32,
}

impl SamplerKernels {
    /// Enqueues it.
    ///
    /// # Errors
    /// When a tensor does not fit.
    pub fn sample(&self, stream: &Stream, sample: &Sample<'_>) -> Result<(), KernelError> {
        let tensors = Tensors::on(stream);
        let rules = sample.rules;
        let [num_entries, _] = shape_of(sample.out, "out")?;
        let args = sample_args(&tensors, sample, num_entries)?;
        let has_filters = !rules.use_greedy && (args.top_k > 0 || args.top_p > 0.0 || args.min_p > 0.0);
        // The same kernel, so that rows without either pay for neither.
        let has_own_rules = args.row_rules != 0 || args.masks != 0;
        let (kernel, tiling) = match (has_own_rules, has_filters) {
            (true, _) => (&self.sample_own_rules, SamplerTiling::OwnRules),
            (false, true) => (&self.sample_filtered, SamplerTiling::Filtered),
            (false, false) => (&self.sample, SamplerTiling::Plain),
        };
        let num_chunks = parts_of(rules.vocab_size, tiling.chunk());
        let num_tasks = count(num_entries * num_chunks, "blocks of the sampler")?;
        let ticket = tensors.address(&sample.scratch.ticket, "ticket", Kind::Int, &[1])?;
        if !has_own_rules
            && !has_filters
            && !rules.use_greedy
            && args.logits_stride % 4 == 0
            && num_tasks > 2 * self.num_sms * SAMPLE_BLOCKS_PER_SM
            && num_entries <= MAX_MANY_ENTRIES
        {
            return self.sample_many(stream, SampleArgs { ticket, ..args });
        }
        // Blocks of a row wait for each other. Where all run at once, any order will do.
        let args = SampleArgs {
            ticket: if num_tasks > self.num_sms { ticket } else { 0 },
            num_chunks: int(num_chunks, "chunks")?,
            ..args
        };
        Ok(kernel.launch(&Launch::linear(num_tasks, tiling.num_threads()), stream, &[Arg::value(&args)])?)
    }

    /// The same for many rows. All blocks run at once.
    fn sample_many(&self, stream: &Stream, args: SampleArgs) -> Result<(), KernelError> {
        let num_pieces = parts_of(args.vocab_size.into(), PIECE);
        let num_entries = i64::from(args.num_entries);
        let args = SampleArgs { num_chunks: int(num_pieces, "pieces")?, ..args };
        let num_warps = MANY_THREADS / 32;
        let num_blocks = count(num_pieces * num_entries, "pieces")?.div_ceil(num_warps);
        let launch = Launch {
            shared_bytes: num_warps * MANY_STAGES * PIECE * 4 + 4 * count(num_entries, "rows")?,
            is_cooperative: true,
            ..Launch::linear(num_blocks, MANY_THREADS)
        };
        // A grid of no blocks would be taken for nothing to do.
        let num_resident = (self.sample_many.max_blocks_per_sm(&launch)? * self.num_sms).max(1);
        let launch = Launch { grid: [num_blocks.min(num_resident), 1, 1], ..launch };
        Ok(self.sample_many.launch(&launch, stream, &[Arg::value(&args)])?)
    }
}

/// Rows for each of which the sampler of many has a word of shared memory.
const MAX_MANY_ENTRIES: i64 = 2048;

/// Parts of a row.
fn parts_of(vocab_size: i64, part: u32) -> i64 {
    let part = i64::from(part);
    (vocab_size + part - 1) / part
}

/// Which masks entries have, and the masks; zeros where there are none. `words`: of a mask.
fn mask_addresses(
    tensors: &Tensors<'_>,
    masks: Option<SampleMasks<'_>>,
    [num_entries, words]: [i64; 2],
) -> Result<[Address; 2], KernelError> {
    let Some(SampleMasks { mask_of_entry, bits }) = masks else { return Ok([0, 0]) };
    let [num_masks, _] = shape_of(bits, "masks")?;
    Ok([
        tensors.address(mask_of_entry, "mask_of_entry", Kind::Int, &[num_entries])?,
        tensors.address(bits, "masks", Kind::Int, &[num_masks, words])?,
    ])
}

/// All but what depends on the tiling.
fn sample_args(
    tensors: &Tensors<'_>,
    sample: &Sample<'_>,
    num_entries: i64,
) -> Result<SampleArgs, KernelError> {
    let Sample { rules, state, scratch, .. } = sample;
    let logits_shape @ [num_rows, padded_vocab_size] = shape_of(sample.logits, "logits")?;
    let [num_slots] = shape_of(state.positions, "positions")?;
    check_sizes(sample, num_entries, num_slots)?;
    let per_chunk = [scratch.max_entries, scratch.num_chunks];
    let sums = tensors.address(&scratch.sums, "sums", Kind::Int64, &[3, per_chunk[0], per_chunk[1]])?;
    let sums_bytes = 8 * (per_chunk[0] * per_chunk[1]) as u64;
    let num_end_tokens = sample.end_token_ids.map_or(Ok([0]), |ids| shape_of(ids, "end_token_ids"))?[0];
    let seen_shape = [num_slots, words_of(rules.vocab_size)?];
    let [mask_of_entry, masks] = mask_addresses(tensors, sample.masks, [num_entries, seen_shape[1]])?;
    let (forced_tokens, forced_starts, num_forced) = forced_addresses(tensors, sample)?;
    // Keeping all tokens is keeping no list of them.
    let top_k = rules.top_k.filter(|&k| i64::from(k) < rules.vocab_size).unwrap_or(0);
    Ok(SampleArgs {
        logits: tensors.address(sample.logits, "logits", Kind::Float, &logits_shape)?,
        end_token_ids: tensors.optional(
            sample.end_token_ids,
            "end_token_ids",
            Kind::Int,
            &[num_end_tokens],
        )?,
        admissions: tensors.optional(sample.admissions, "admissions", Kind::Int64, &[num_entries, 4])?,
        tokens: tensors.address(state.tokens, "tokens", Kind::Int, &[num_slots])?,
        positions: tensors.address(state.positions, "positions", Kind::Int, &[num_slots])?,
        num_generated: tensors.address(state.num_generated, "num_generated", Kind::Int, &[num_slots])?,
        sample_idxs: tensors.address(state.sample_idxs, "sample_idxs", Kind::Int64, &[num_slots])?,
        response_idxs: tensors.address(state.response_idxs, "response_idxs", Kind::Int, &[num_slots])?,
        seen: tensors.optional(state.seen, "seen", Kind::Int, &seen_shape)?,
        out: tensors.address(sample.out, "out", Kind::Int, &[num_entries, 4])?,
        ticket: 0,
        arrivals: tensors.address(&scratch.arrivals, "arrivals", Kind::Int, &per_chunk[..1])?,
        maxima: tensors.address(&scratch.maxima, "maxima", Kind::Int, &[2, per_chunk[0], per_chunk[1]])?,
        stats: tensors.address(&scratch.stats, "stats", Kind::Int64, &[per_chunk[0], per_chunk[1], 2])?,
        sums,
        raw_sums: sums + sums_bytes,
        ties: sums + 2 * sums_bytes,
        histograms: tensors.address(
            &scratch.histograms,
            "histograms",
            Kind::Int64,
            &[per_chunk[0], HISTOGRAM_ELEMS],
        )?,
        bias: tensors.optional(sample.bias, "bias", Kind::Float, &[rules.vocab_size])?,
        row_rules: tensors.optional(state.row_rules, "row_rules", Kind::Int, &[num_slots, ROW_RULE_WORDS])?,
        mask_of_entry,
        masks,
        forced_tokens,
        forced_starts,
        seed: rules.seed,
        logits_stride: padded_vocab_size,
        num_forced,
        num_logits_rows: int(num_rows, "rows of `logits`")?,
        num_slots: int(num_slots, "slots")?,
        num_entries: int(num_entries, "rows of `out`")?,
        vocab_size: int(rules.vocab_size, "vocab_size")?,
        num_chunks: 0,
        num_end_tokens: int(num_end_tokens, "end tokens")?,
        min_length: rules.min_length,
        top_k,
        top_p: rules.top_p.unwrap_or(0.0),
        temperature: rules.temperature,
        repetition_penalty: rules.repetition_penalty,
        use_greedy: i32::from(rules.use_greedy),
        min_p: rules.min_p.unwrap_or(0.0),
        compute_logprob: i32::from(rules.compute_logprob),
    })
}

fn check_sizes(sample: &Sample<'_>, num_entries: i64, num_slots: i64) -> Result<(), KernelError> {
    let Sample { rules, state, scratch, .. } = sample;
    let [num_rows, padded_vocab_size] = shape_of(sample.logits, "logits")?;
    if padded_vocab_size < rules.vocab_size {
        return Err(bad(
            "columns of `logits`",
            &format!("at least vocab_size, {}", rules.vocab_size),
            padded_vocab_size,
        ));
    }
    if rules.vocab_size != scratch.vocab_size {
        return Err(bad("vocab_size", "what the scratch memory was made for", rules.vocab_size));
    }
    if num_entries > scratch.max_entries {
        return Err(bad("rows of `out`", &format!("at most {}", scratch.max_entries), num_entries));
    }
    if sample.admissions.is_none() && (num_entries != num_rows || num_entries > num_slots) {
        let expected = format!("{num_rows}, as `logits` have, and at most {num_slots} slots");
        return Err(bad("rows of `out`", &expected, num_entries));
    }
    let needs_seen = !rules.use_greedy && rules.repetition_penalty != 1.0;
    if (needs_seen || state.row_rules.is_some()) && state.seen.is_none() {
        return Err(bad("seen", "given with a repetition penalty or rules of rows' own", 0));
    }
    Ok(())
}
