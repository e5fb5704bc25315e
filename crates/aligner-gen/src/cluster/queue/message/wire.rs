//! The bytes of messages: numbers, texts and lists, little-endian and without padding, behind a version.

use engine::{Foresight, OwnRules, PlannedPrefix};
use sampling::{FinishReason, TopToken};

use super::{MessageError, ResponseDone, SampleDone, VERSION, Worked};
use crate::cluster::topology::Topology;

/// Little-endian.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn start() -> Self {
        Self(vec![VERSION])
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn worked(&mut self, worked: Worked) {
        let Worked {
            prompt_tokens,
            cached_prompt_tokens,
            decode_rows,
            drafted_tokens,
            accepted_tokens,
            num_cancelled,
        } = worked;
        [prompt_tokens, cached_prompt_tokens, decode_rows, drafted_tokens, accepted_tokens, num_cancelled]
            .into_iter()
            .for_each(|count| self.u64(count));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    pub(super) fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        self.u64(items.len() as u64);
        items.iter().for_each(|value| item(self, value));
    }

    pub(super) fn foresight(&mut self, foresight: Foresight) {
        let Foresight { expected_tokens, prefix } = foresight;
        self.u8(u8::from(expected_tokens.is_some()));
        expected_tokens.into_iter().for_each(|num_tokens| self.u32(num_tokens));
        self.u8(u8::from(prefix.is_some()));
        if let Some(PlannedPrefix { id, num_later, within }) = prefix {
            [id, num_later, within].into_iter().for_each(|number| self.u32(number));
        }
    }

    /// Rules that a request may have, as JSON: few have any, and their parts are another crate's.
    pub(super) fn own_rules(&mut self, own: Option<&OwnRules>) {
        // What has strings for keys and no other floats than finite ones can be written.
        let text = own.and_then(|own| serde_json::to_string(own).ok());
        self.u8(u8::from(text.is_some()));
        text.iter().for_each(|text| self.text(text));
    }

    pub(super) fn sample(&mut self, sample: &SampleDone) {
        self.u64(sample.sample_idx);
        self.list(&sample.responses, Self::response);
    }

    pub(super) fn response(&mut self, response: &ResponseDone) {
        self.u8(match response.finish_reason {
            FinishReason::Eos => 0,
            FinishReason::EndString => 1,
            FinishReason::Length => 2,
            FinishReason::Error => 3,
        });
        self.u8(u8::from(response.error.is_some()));
        response.error.iter().for_each(|error| self.text(error));
        self.list(&response.token_ids, |out, &id| out.u32(id));
        self.u8(u8::from(response.logprobs.is_some()));
        if let Some(logprobs) = &response.logprobs {
            self.list(logprobs, |out, logprob| out.u32(logprob.to_bits()));
        }
        self.u8(u8::from(response.top_logprobs.is_some()));
        if let Some(places) = &response.top_logprobs {
            self.list(places, |out, top| {
                out.list(top, |out, &TopToken { token, logprob }| {
                    out.u32(token);
                    out.u32(logprob.to_bits());
                });
            });
        }
    }
}

/// Reads what [`Writer`] wrote; whatever else it is given is an error.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn start(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let mut input = Self { bytes, at: 0 };
        match input.u8()? {
            VERSION => Ok(input),
            actual => Err(MessageError::Version { actual }),
        }
    }

    pub(super) fn damaged(&self) -> MessageError {
        MessageError::Damaged { len: self.bytes.len(), at: self.at }
    }

    pub(super) fn end(&self) -> Result<(), MessageError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.damaged()) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], MessageError> {
        let end = self.at.checked_add(len).ok_or_else(|| self.damaged())?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| self.damaged())?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        self.take(N)?.try_into().map_err(|_| self.damaged())
    }

    pub(super) fn u8(&mut self) -> Result<u8, MessageError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn topology(&mut self) -> Result<Topology, MessageError> {
        let (data, pipeline, tensor) = (self.u32()?, self.u32()?, self.u32()?);
        Topology::new(data, pipeline, tensor).map_err(|_| self.damaged())
    }

    pub(super) fn u32(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, MessageError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn worked(&mut self) -> Result<Worked, MessageError> {
        Ok(Worked {
            prompt_tokens: self.u64()?,
            cached_prompt_tokens: self.u64()?,
            decode_rows: self.u64()?,
            drafted_tokens: self.u64()?,
            accepted_tokens: self.u64()?,
            num_cancelled: self.u64()?,
        })
    }

    fn len(&mut self) -> Result<usize, MessageError> {
        let len = self.u64()?;
        usize::try_from(len).map_err(|_| self.damaged())
    }

    pub(super) fn text(&mut self) -> Result<String, MessageError> {
        let len = self.len()?;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| self.damaged())
    }

    /// An item takes at least a byte, so a false length is found out before memory is taken for it.
    pub(super) fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, MessageError>,
    ) -> Result<Vec<T>, MessageError> {
        let len = self.len()?;
        if len > self.bytes.len() - self.at {
            return Err(self.damaged());
        }
        (0..len).map(|_| item(self)).collect()
    }

    /// A value that may be none.
    pub(super) fn option<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, MessageError>,
    ) -> Result<Option<T>, MessageError> {
        match self.u8()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            _ => Err(self.damaged()),
        }
    }

    /// The rules themselves.
    pub(super) fn own_rules(&mut self) -> Result<Box<OwnRules>, MessageError> {
        serde_json::from_str(&self.text()?).map(Box::new).map_err(|_| self.damaged())
    }

    pub(super) fn foresight(&mut self) -> Result<Foresight, MessageError> {
        Ok(Foresight {
            expected_tokens: self.option(Self::u32)?,
            prefix: self.option(|input| {
                Ok(PlannedPrefix { id: input.u32()?, num_later: input.u32()?, within: input.u32()? })
            })?,
        })
    }

    pub(super) fn sample(&mut self) -> Result<SampleDone, MessageError> {
        Ok(SampleDone { sample_idx: self.u64()?, responses: self.list(Self::response)? })
    }

    pub(super) fn response(&mut self) -> Result<ResponseDone, MessageError> {
        let finish_reason = match self.u8()? {
            0 => FinishReason::Eos,
            1 => FinishReason::EndString,
            2 => FinishReason::Length,
            3 => FinishReason::Error,
            _ => return Err(self.damaged()),
        };
        let error = self.option(Self::text)?;
        let token_ids = self.list(Self::u32)?;
        let logprobs = self.option(|input| input.list(|input| input.u32().map(f32::from_bits)))?;
        let top_logprobs = self.option(|input| {
            input.list(|input| {
                input
                    .list(|input| Ok(TopToken { token: input.u32()?, logprob: f32::from_bits(input.u32()?) }))
            })
        })?;
        Ok(ResponseDone { token_ids, finish_reason, error, logprobs, top_logprobs })
    }
}
