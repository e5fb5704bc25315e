//! The sampler of a GPU: the rules of [`crate::ReferenceSampler`] as CUDA kernels, token for token.
//!
//! It keeps no state of its own between steps. Rows live in tensors on the device; a draw reads them, appends its token
//! and moves the row on, so that the next step needs nothing from the host. Weights lie on the grid that the host's
//! samplers use, where sums are exact, so the order in which a GPU adds does not show.

mod driven;

use cuda_kernels::{
    Admission, MarkSeen, Sample, SampleMasks, SampleRules, Sampled, SamplerKernels, SamplerScratch,
    SamplerState, TopTokens,
};
use cuda_runtime::{Device, Stream};
use tch::{Kind, Tensor};
use torch_ext::cuda::send;

pub use driven::{DrawCheck, DrivenSampler};

use crate::{
    DeviceTexts, ROW_RULE_WORDS, RowMasks, RowRules, SampledToken, SamplingError, SamplingParams, TopToken,
    row_rule_words, rules::SamplingRules,
};

/// Rows of sequences on the device, all of `[num_rows]`.
#[derive(Debug)]
pub struct SamplerRows {
    /// int32: the newest token.
    pub tokens: Tensor,
    /// int32: tokens before it; negative where the row is not in use.
    pub positions: Tensor,
    /// int32: tokens generated so far.
    pub num_generated: Tensor,
    /// int64: position of the sample in the input file.
    pub sample_idxs: Tensor,
    /// int32: which response of the sample.
    pub response_idxs: Tensor,
    /// int32 bits `[num_rows, ceil(vocab_size / 32)]`: tokens in the sequence, where the rules ask for them.
    pub seen: Option<Tensor>,
    /// int32 `[num_rows, ROW_RULE_WORDS]`: rules of rows' own, where rows may have any.
    pub row_rules: Option<Tensor>,
}

impl SamplerRows {
    /// Copies of some rows: int64 `row_idxs` on the same GPU.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn select(&self, row_idxs: &Tensor) -> Result<Self, SamplingError> {
        let select = |tensor: &Tensor| tensor.f_index_select(0, row_idxs);
        Ok(Self {
            tokens: select(&self.tokens)?,
            positions: select(&self.positions)?,
            num_generated: select(&self.num_generated)?,
            sample_idxs: select(&self.sample_idxs)?,
            response_idxs: select(&self.response_idxs)?,
            seen: self.seen.as_ref().map(select).transpose()?,
            row_rules: self.row_rules.as_ref().map(select).transpose()?,
        })
    }

    /// The first `num_rows` rows of the same tensors.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn first(&self, num_rows: usize) -> Result<Self, SamplingError> {
        let first = |tensor: &Tensor| tensor.f_narrow(0, 0, num_rows as i64);
        Ok(Self {
            tokens: first(&self.tokens)?,
            positions: first(&self.positions)?,
            num_generated: first(&self.num_generated)?,
            sample_idxs: first(&self.sample_idxs)?,
            response_idxs: first(&self.response_idxs)?,
            seen: self.seen.as_ref().map(first).transpose()?,
            row_rules: self.row_rules.as_ref().map(first).transpose()?,
        })
    }
}

/// One first token to draw.
#[derive(Clone, Copy, Debug)]
pub struct FirstDraw<'a> {
    /// Which row of the logits.
    pub logits_row: usize,
    /// Position of the sample in the input file.
    pub sample_idx: u64,
    /// Which response of the sample.
    pub response_idx: u32,
    /// The prompt, for the repetition penalty.
    pub prompt: &'a [u32],
    /// Rules of its own, in place of the run's.
    pub own: Option<&'a RowRules>,
    /// Bits of the tokens that it may be, where not all may.
    pub allowed: Option<&'a [u32]>,
}

/// Masks on the device.
#[derive(Debug)]
struct DeviceMasks {
    /// int32 `[num_rows]`.
    mask_of_row: Tensor,
    /// int32 `[num_masks, seen_words]`.
    bits: Tensor,
}

/// int32 words of one record that a draw leaves on the device.
pub const RECORD_WORDS: usize = size_of::<Sampled>() / size_of::<i32>();

/// Whether rows of a run may have rules of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnRowRules {
    /// Some may.
    Allowed,
    /// The run's hold for all.
    None,
}

/// What a draw leaves on the device.
#[derive(Debug)]
pub struct DrawRecords {
    /// int32 `[num_rows, RECORD_WORDS]`.
    pub tokens: Tensor,
    /// int32 `[num_rows, 2 * top_logprobs]`, where they are asked for.
    pub top: Option<Tensor>,
}

impl DrawRecords {
    /// The first rows of the same tensors.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn first(&self, num_rows: usize) -> Result<Self, SamplingError> {
        self.part(0, num_rows as i64)
    }

    fn part(&self, start: i64, num_rows: i64) -> Result<Self, SamplingError> {
        let part = |tensor: &Tensor| tensor.f_narrow(0, start, num_rows);
        Ok(Self { tokens: part(&self.tokens)?, top: self.top.as_ref().map(part).transpose()? })
    }
}

/// Draws tokens on a GPU.
pub struct DeviceSampler {
    rules: SamplingRules,
    launch_rules: SampleRules,
    kernels: SamplerKernels,
    device: Device,
    end_token_ids: Option<Tensor>,
    bias: Option<Tensor>,
    own: OwnRowRules,
    scratch: SamplerScratch,
    max_rows: usize,
    /// Texts whose tokens are drawn in place of others.
    forced: Option<DeviceTexts>,
}

impl DeviceSampler {
    /// A sampler that follows these rules. `max_rows`: most rows of one draw; `device_idx`: the GPU.
    ///
    /// # Errors
    /// When the vocabulary is empty or too large, or the device fails.
    pub fn new(
        rules: SamplingRules,
        own: OwnRowRules,
        max_rows: usize,
        device_idx: usize,
    ) -> Result<Self, SamplingError> {
        let rules = rules.check()?;
        let device = Device::open(device_idx)?;
        let kernels = SamplerKernels::load(&device, cuda_runtime::kernel_cache().as_deref())?;
        let on_device = tch::Device::Cuda(device_idx);
        let end_ids: Vec<i32> = rules.row.end_token_ids.iter().map(|&id| id as i32).collect();
        let end_token_ids = match end_ids.is_empty() {
            true => None,
            false => Some(Tensor::f_from_slice(&end_ids)?.f_to_device(on_device)?),
        };
        let scratch = SamplerScratch::new(&device, max_rows as i64, rules.vocab_size as i64)?;
        let bias = dense_bias(&rules)?.map(|bias| bias.f_to_device(on_device)).transpose()?;
        let SamplingParams {
            use_greedy,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            compute_logprob,
            top_logprobs: _,
        } = rules.row.params;
        let launch_rules = SampleRules {
            use_greedy,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            compute_logprob,
            min_length: rules.row.min_length,
            seed: rules.row.seed,
            vocab_size: rules.vocab_size as i64,
        };
        let forced = None;
        Ok(Self { rules, launch_rules, kernels, device, end_token_ids, bias, own, scratch, max_rows, forced })
    }

    /// A sampler that draws the tokens of known texts and says how likely they were. `num_top`: how many most likely tokens
    /// it gives at each place.
    ///
    /// # Errors
    /// As [`DeviceSampler::new`].
    pub fn forced(texts: &DeviceTexts, num_top: u32, max_rows: usize) -> Result<Self, SamplingError> {
        // Greedy rules need no random number.
        let params = SamplingParams {
            use_greedy: true,
            compute_logprob: true,
            top_logprobs: num_top,
            ..SamplingParams::PLAIN
        };
        let row = RowRules { params, seed: 0, end_token_ids: Vec::new(), min_length: 0, structure: None };
        let rules = SamplingRules { row, vocab_size: texts.vocab_size(), bias: Vec::new() };
        let sampler = Self::new(rules, OwnRowRules::None, max_rows, texts.device_idx())?;
        Ok(Self { forced: Some(texts.share()?), ..sampler })
    }

    /// Whether the responses of one sample without rules of its own are all the same, so that one of them is enough.
    pub fn is_greedy(&self) -> bool {
        self.rules.row.params.use_greedy && self.forced.is_none()
    }

    /// Whether rows may have rules of their own.
    pub fn takes_row_rules(&self) -> bool {
        self.own == OwnRowRules::Allowed
    }

    /// Records for this many rows, all zeros.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new_records(&self, num_rows: usize) -> Result<DrawRecords, SamplingError> {
        let on_device = (Kind::Int, tch::Device::Cuda(self.device.index()));
        let num_top = i64::from(self.rules.row.params.top_logprobs);
        Ok(DrawRecords {
            tokens: Tensor::f_zeros([num_rows as i64, RECORD_WORDS as i64], on_device)?,
            top: match num_top {
                0 => None,
                _ => Some(Tensor::f_zeros([num_rows as i64, 2 * num_top], on_device)?),
            },
        })
    }

    /// int32 words of a row of [`DrawRecords::top`].
    pub fn top_words(&self) -> usize {
        2 * self.rules.row.params.top_logprobs as usize
    }

    /// Whether rows keep which tokens they hold.
    pub fn keeps_seen(&self) -> bool {
        let for_run = !self.is_greedy() && self.rules.row.params.repetition_penalty != 1.0;
        for_run || self.takes_row_rules()
    }

    /// int32 words of a row's `seen`.
    pub fn seen_words(&self) -> usize {
        self.rules.vocab_size.div_ceil(u32::BITS as usize)
    }

    /// Enqueues a draw for each row in use. `logits`: float32 `[num_rows, padded_vocab_size]` on the device; `out`: of
    /// as many rows. Can be recorded.
    ///
    /// # Errors
    /// When the shapes do not fit or the device fails.
    pub fn draw(&self, logits: &Tensor, rows: &SamplerRows, out: &DrawRecords) -> Result<(), SamplingError> {
        self.launch(logits, rows, None, (None, out))
    }

    /// The same with masks of the first rows, which are uploaded: it is not recorded.
    ///
    /// # Errors
    /// As [`DeviceSampler::draw`].
    pub fn draw_masked(
        &self,
        logits: &Tensor,
        rows: &SamplerRows,
        masks: &RowMasks,
        out: &DrawRecords,
    ) -> Result<(), SamplingError> {
        let num_rows = usize::try_from(logits.size().first().copied().unwrap_or(0)).unwrap_or(0);
        let masks = self.send_masks(masks, num_rows)?;
        self.launch(logits, rows, None, (masks.as_ref(), out))
    }

    /// Enqueues the first tokens of new sequences and returns their rows, not in use yet, and their records.
    ///
    /// # Errors
    /// As [`DeviceSampler::draw`].
    pub fn draw_first(
        &self,
        logits: &Tensor,
        draws: &[FirstDraw<'_>],
    ) -> Result<(SamplerRows, DrawRecords), SamplingError> {
        let on_device = tch::Device::Cuda(self.device.index());
        let num_rows = draws.len() as i64;
        let zeros = |kind| Tensor::f_zeros([num_rows], (kind, on_device));
        let rows = SamplerRows {
            tokens: zeros(Kind::Int)?,
            positions: zeros(Kind::Int)?,
            num_generated: zeros(Kind::Int)?,
            sample_idxs: zeros(Kind::Int64)?,
            response_idxs: zeros(Kind::Int)?,
            seen: match self.keeps_seen() {
                true => Some(self.mark_seen(&draws.iter().map(|draw| draw.prompt).collect::<Vec<_>>())?),
                false => None,
            },
            row_rules: match self.takes_row_rules() {
                true => Some(self.send_row_rules(draws)?),
                false => None,
            },
        };
        let admissions: Vec<Admission> = draws
            .iter()
            .enumerate()
            .map(|(slot, draw)| Admission {
                logits_row: draw.logits_row as i32,
                slot: slot as i32,
                position: -1,
                response_idx: draw.response_idx,
                sample_idx: draw.sample_idx,
                reserved: 0,
            })
            .collect();
        let words: &[i64] = bytemuck::cast_slice(&admissions);
        let admissions = send(words, self.device.index())?.f_view([num_rows, -1])?;
        let out = self.new_records(draws.len())?;
        let mut masks = RowMasks::default();
        draws.iter().for_each(|draw| masks.push(draw.allowed));
        let masks = self.send_masks(&masks, draws.len())?;
        // The working memory is made for the rows of a decode step; there may be more first tokens than that.
        let max_rows = self.max_rows as i64;
        for start in (0..num_rows).step_by(self.max_rows.max(1)) {
            let num_rows = max_rows.min(num_rows - start);
            let admissions = admissions.f_narrow(0, start, num_rows)?;
            let masks = masks.as_ref().map(|masks| masks.part(start, num_rows)).transpose()?;
            self.launch(logits, &rows, Some(&admissions), (masks.as_ref(), &out.part(start, num_rows)?))?;
        }
        Ok((rows, out))
    }

    /// Makes rows of drafted tokens: where `drafts[i]` is not empty, the newest token of row i becomes its last one, and the
    /// others stand between that and the token that the row had. `rows` has a row for each of `drafts`.
    ///
    /// # Errors
    /// When there are other rows, or the device fails.
    pub fn put_drafts(&self, rows: &SamplerRows, drafts: &[&[u32]]) -> Result<(), SamplingError> {
        let newest: Vec<i32> =
            drafts.iter().map(|tokens| tokens.last().map_or(-1, |&token| token as i32)).collect();
        let newest = send(&newest, self.device.index())?;
        let tokens = newest.f_where_self(&newest.f_ge(0)?, &rows.tokens)?;
        let mut to = rows.tokens.shallow_clone();
        to.f_copy_(&tokens)?;
        if let Some(seen) = &rows.seen {
            let mut seen = seen.shallow_clone();
            let _ = seen.f_bitwise_or_tensor_(&self.mark_seen(drafts)?)?;
        }
        Ok(())
    }

    /// Masks of the first of `num_rows` rows; the others have none.
    fn send_masks(&self, masks: &RowMasks, num_rows: usize) -> Result<Option<DeviceMasks>, SamplingError> {
        if masks.num_masks() == 0 {
            return Ok(None);
        }
        let mut mask_of_row = masks.mask_of_row.clone();
        mask_of_row.resize(num_rows, -1);
        let bits: &[i32] = bytemuck::cast_slice(&masks.bits);
        let shape = [masks.num_masks() as i64, self.seen_words() as i64];
        Ok(Some(DeviceMasks {
            mask_of_row: send(&mask_of_row, self.device.index())?,
            bits: send(bits, self.device.index())?.f_view(shape)?,
        }))
    }

    /// int32 `[draws.len(), ROW_RULE_WORDS]` on the device.
    fn send_row_rules(&self, draws: &[FirstDraw<'_>]) -> Result<Tensor, SamplingError> {
        let mut words = Vec::with_capacity(draws.len() * ROW_RULE_WORDS);
        for draw in draws {
            words.extend(draw.own.map_or(Ok([0; ROW_RULE_WORDS]), row_rule_words)?);
        }
        Ok(send(&words, self.device.index())?.f_view([draws.len() as i64, ROW_RULE_WORDS as i64])?)
    }

    /// What a record says, and its part of [`DrawRecords::top`]. `sample_idx` and `response_idx` are for the message.
    ///
    /// # Errors
    /// When no token could be chosen.
    pub fn read_record(
        &self,
        record: [i32; RECORD_WORDS],
        top: &[i32],
        sample_idx: u64,
        response_idx: u32,
    ) -> Result<SampledToken, SamplingError> {
        let [token, logprob, status, num_generated] = record;
        let problem = match status {
            0 => {
                let logprob = f32::from_bits(logprob as u32);
                let logprob = self.rules.row.params.compute_logprob.then_some(logprob);
                let (pairs, _) = top.as_chunks::<2>();
                let pairs = pairs.iter().filter(|[token, _]| *token >= 0);
                let top_token = |&[token, logprob]: &[i32; 2]| TopToken {
                    token: token as u32,
                    logprob: f32::from_bits(logprob as u32),
                };
                return Ok(SampledToken {
                    token: token as u32,
                    logprob,
                    top: pairs.map(top_token).collect(),
                });
            }
            1 => "a NaN",
            2 => "an infinite value",
            3 if self.forced.is_some() => "more places than the text has",
            3 => "no token that may be chosen",
            _ => "nothing, because the row was not in use",
        };
        Err(SamplingError::BadLogits { sample_idx, response_idx, token_idx: num_generated as u32, problem })
    }

    fn launch(
        &self,
        logits: &Tensor,
        rows: &SamplerRows,
        admissions: Option<&Tensor>,
        (masks, out): (Option<&DeviceMasks>, &DrawRecords),
    ) -> Result<(), SamplingError> {
        let state = SamplerState {
            tokens: &rows.tokens,
            positions: &rows.positions,
            num_generated: &rows.num_generated,
            sample_idxs: &rows.sample_idxs,
            response_idxs: &rows.response_idxs,
            seen: rows.seen.as_ref(),
            row_rules: rows.row_rules.as_ref(),
        };
        let launch = Sample {
            logits,
            rules: &self.launch_rules,
            end_token_ids: self.end_token_ids.as_ref(),
            bias: self.bias.as_ref(),
            masks: masks.map(|masks| SampleMasks { mask_of_entry: &masks.mask_of_row, bits: &masks.bits }),
            forced: self.forced.as_ref().map(DeviceTexts::forced),
            state,
            scratch: &self.scratch,
            admissions,
            out: &out.tokens,
        };
        let stream = Stream::current(&self.device)?;
        self.kernels.sample(&stream, &launch)?;
        let Some(out) = &out.top else { return Ok(()) };
        // The first word of an admission is the row of its logits.
        let logits_rows = match admissions {
            Some(admissions) => Some(admissions.f_view_dtype(Kind::Int)?), // int32 [num_rows, 8]
            None => None,
        };
        let vocab_size = self.rules.vocab_size as i64;
        let top = TopTokens { logits, logits_rows: logits_rows.as_ref(), out, vocab_size };
        Ok(self.kernels.top_tokens(&stream, &top)?)
    }

    /// int32 bits `[sequences.len(), seen_words]`: the tokens of each.
    fn mark_seen(&self, sequences: &[&[u32]]) -> Result<Tensor, SamplingError> {
        let on_device = tch::Device::Cuda(self.device.index());
        let mut cu_seqlens = vec![0_i32];
        let mut tokens = Vec::new();
        for sequence in sequences {
            tokens.extend(sequence.iter().map(|&token| token as i32));
            cu_seqlens.push(tokens.len() as i32);
        }
        let slots: Vec<i32> = (0..sequences.len() as i32).collect();
        let shape = [sequences.len() as i64, self.seen_words() as i64];
        let seen = Tensor::f_zeros(shape, (Kind::Int, on_device))?;
        let launch = MarkSeen {
            tokens: &send(&tokens, self.device.index())?,
            cu_seqlens: &send(&cu_seqlens, self.device.index())?,
            slots: &send(&slots, self.device.index())?,
            seen: &seen,
            vocab_size: self.rules.vocab_size as i64,
        };
        self.kernels.mark_seen(&Stream::current(&self.device)?, &launch)?;
        Ok(seen)
    }
}

impl DeviceMasks {
    /// The masks of some rows.
    fn part(&self, start: i64, num_rows: i64) -> Result<Self, SamplingError> {
        let mask_of_row = self.mask_of_row.f_narrow(0, start, num_rows)?;
        Ok(Self { mask_of_row, bits: self.bits.shallow_clone() })
    }
}

/// The bias of every token, float32 `[vocab_size]` on the CPU; none where no token has one.
fn dense_bias(rules: &SamplingRules) -> Result<Option<Tensor>, SamplingError> {
    if rules.bias.is_empty() {
        return Ok(None);
    }
    let mut dense = vec![0.0_f32; rules.vocab_size];
    rules.add_bias(&mut dense);
    Ok(Some(Tensor::f_from_slice(&dense)?))
}
