//! The sampler of a GPU for an engine whose host keeps the rows: nothing of them stays on the device between draws.

use cuda_runtime::Stream;
use tch::{Kind, Tensor};

use super::{DeviceSampler, DrawRecords, RECORD_WORDS, SamplerRows};
use crate::{ROW_RULE_WORDS, device::send};
use crate::{RowMasks, RowState, SampledToken, SamplingError, TokenSampler, row_rule_words};

/// Tells whether what was computed so far is worth anything: a sentence where it is not.
pub type DrawCheck = Box<dyn Fn() -> Result<(), String> + Send>;

/// [`DeviceSampler`] behind the trait of the host's samplers. A draw is enqueued behind what its stream holds, and waited for.
pub struct DrivenSampler {
    sampler: DeviceSampler,
    stream: Stream,
    check: DrawCheck,
}

impl DrivenSampler {
    /// Draws on `stream`; tokens are given out only where `check` finds nothing wrong behind them.
    pub fn new(sampler: DeviceSampler, stream: Stream, check: DrawCheck) -> Self {
        Self { sampler, stream, check }
    }
}

impl TokenSampler for DrivenSampler {
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError> {
        let _current = self.stream.as_current()?;
        let (sampler, mut records) = (&self.sampler, Vec::new());
        let mut start = 0;
        for rows in rows.chunks(sampler.max_rows.max(1)) {
            let logits = logits.f_narrow(0, start, rows.len() as i64)?;
            records.push(sampler.draw_states(&logits, rows)?);
            start += rows.len() as i64;
        }
        let on_host = |words: &Tensor| -> Result<Vec<i32>, SamplingError> {
            Ok(Vec::<i32>::try_from(&words.f_to_device(tch::Device::Cpu)?.f_view([-1])?)?)
        };
        let (mut words, mut top) = (Vec::new(), Vec::new());
        for DrawRecords { tokens, top: of_tokens } in &records {
            words.extend(on_host(tokens)?);
            top.extend(of_tokens.as_ref().map(on_host).transpose()?.unwrap_or_default());
        }
        (self.check)().map_err(SamplingError::OtherRank)?;
        let of_rows = top.chunks(sampler.top_words().max(1)).chain(std::iter::repeat(&[][..]));
        let (records, _) = words.as_chunks::<RECORD_WORDS>();
        let read = |((&record, top), row): ((&[i32; RECORD_WORDS], &[i32]), &RowState<'_>)| {
            sampler.read_record(record, top, row.sample_idx, row.response_idx)
        };
        records.iter().zip(of_rows).zip(rows).map(read).collect()
    }

    fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }
}

impl DeviceSampler {
    /// Enqueues a token of each row, which the host describes. `logits`: float32 `[num_rows, padded_vocab_size]`, of at most
    /// as many rows as the sampler was made for.
    fn draw_states(&self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<DrawRecords, SamplingError> {
        let device_idx = self.device.index();
        let num_rows = rows.len() as i64;
        let zeros = || Tensor::f_zeros([num_rows], (Kind::Int, tch::Device::Cuda(device_idx)));
        let ints = |of: &dyn Fn(&RowState<'_>) -> u32| {
            let values: Vec<i32> = rows.iter().map(|row| of(row).cast_signed()).collect();
            send(&values, device_idx)
        };
        let sample_idxs: Vec<i64> = rows.iter().map(|row| row.sample_idx.cast_signed()).collect();
        let state = SamplerRows {
            tokens: zeros()?,
            // Any that is not negative: the row is in use.
            positions: zeros()?,
            num_generated: ints(&|row| row.num_generated)?,
            sample_idxs: send(&sample_idxs, device_idx)?,
            response_idxs: ints(&|row| row.response_idx)?,
            seen: match self.keeps_seen() {
                true => Some(self.mark_seen(&rows.iter().map(|row| row.history).collect::<Vec<_>>())?),
                false => None,
            },
            row_rules: match self.takes_row_rules() {
                true => {
                    let mut words = Vec::with_capacity(rows.len() * ROW_RULE_WORDS);
                    for row in rows {
                        words.extend(row.own.map_or(Ok([0; ROW_RULE_WORDS]), row_rule_words)?);
                    }
                    Some(send(&words, device_idx)?.f_view([num_rows, ROW_RULE_WORDS as i64])?)
                }
                false => None,
            },
        };
        let mut masks = RowMasks::default();
        rows.iter().for_each(|row| masks.push(row.allowed));
        let out = self.new_records(rows.len())?;
        self.draw_masked(logits, &state, &masks, &out)?;
        Ok(out)
    }
}
