//! Texts that are known, on a GPU: a [`DeviceSampler`](crate::DeviceSampler) that is given them draws their tokens and says
//! how likely these were.

use cuda_kernels::ForcedTokens;
use cuda_runtime::Device;
use tch::{Kind, Tensor};
use torch_ext::cuda::send;

use crate::SamplingError;

/// Memory for the texts of a run, which stays in its place: recorded steps read it.
#[derive(Debug)]
pub struct DeviceTexts {
    device: Device,
    vocab_size: usize,
    /// int32 `[most_tokens]`.
    tokens: Tensor,
    /// int64 `[most_texts + 1]`.
    starts: Tensor,
}

impl DeviceTexts {
    /// Room for texts, none of which are there yet. `vocab_size`: the tokenizer's.
    ///
    /// # Errors
    /// When the GPU has no memory for them.
    pub fn new(
        device_idx: usize,
        vocab_size: usize,
        most_texts: usize,
        most_tokens: usize,
    ) -> Result<Self, SamplingError> {
        let device = Device::open(device_idx)?;
        let zeros = |len: usize, kind| Tensor::f_zeros([len.max(1) as i64], (kind, device.tch()));
        let (tokens, starts) = (zeros(most_tokens, Kind::Int)?, zeros(most_texts + 1, Kind::Int64)?);
        Ok(Self { device, vocab_size, tokens, starts })
    }

    /// Puts the texts of the next run in place of those before: each is the only response of its sample. Between runs only.
    ///
    /// # Errors
    /// When there is no room for them, a token is none, or the GPU fails.
    pub fn put(&self, texts: &[Vec<u32>]) -> Result<(), SamplingError> {
        let num_starts = self.starts.size().iter().product::<i64>() as usize;
        let num_tokens: usize = texts.iter().map(Vec::len).sum();
        let most_tokens = self.tokens.size().iter().product::<i64>() as usize;
        if texts.len() >= num_starts || num_tokens > most_tokens {
            return Err(SamplingError::TooManyTexts {
                num_texts: texts.len(),
                num_tokens,
                most_texts: num_starts - 1,
                most_tokens,
            });
        }
        let mut tokens = Vec::with_capacity(num_tokens);
        let mut starts = vec![0_i64];
        for (sample_idx, text) in (0..).zip(texts) {
            if let Some(token_idx) = text.iter().position(|&token| token as usize >= self.vocab_size) {
                let (token_idx, problem) = (token_idx as u32, "no such token");
                return Err(SamplingError::BadLogits { sample_idx, response_idx: 0, token_idx, problem });
            }
            tokens.extend(text.iter().map(|&token| token as i32));
            starts.push(tokens.len() as i64);
        }
        // Samples without a text have an empty one.
        starts.resize(num_starts, tokens.len() as i64);
        self.device.synchronize()?;
        if !tokens.is_empty() {
            let sent = send(&tokens, self.device.index())?;
            self.tokens.f_narrow(0, 0, tokens.len() as i64)?.f_copy_(&sent)?;
        }
        self.starts.shallow_clone().f_copy_(&send(&starts, self.device.index())?)?;
        // Steps run on another stream.
        Ok(self.device.synchronize()?)
    }

    /// Another handle to the same memory.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn share(&self) -> Result<Self, SamplingError> {
        Ok(Self {
            device: Device::open(self.device.index())?,
            vocab_size: self.vocab_size,
            tokens: self.tokens.shallow_clone(),
            starts: self.starts.shallow_clone(),
        })
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(crate) fn device_idx(&self) -> usize {
        self.device.index()
    }

    pub(crate) fn forced(&self) -> ForcedTokens<'_> {
        ForcedTokens { tokens: &self.tokens, starts: &self.starts }
    }
}
