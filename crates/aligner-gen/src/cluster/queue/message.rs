//! What ranks say to each other: binary, versioned, every length before its bytes, read with every bound checked.

mod wire;

use engine::{Cancellation, Request, RunStats};
use sampling::{FinishReason, TopToken};

use crate::cluster::topology::{Rank, Topology};
use crate::exit::Failure;
use crate::output::Identity;

use wire::{Reader, Writer};

/// Raised with every change of a message: ranks of different builds must not talk past each other.
pub(crate) const VERSION: u8 = 8;

/// From a rank to rank 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToZero {
    /// The first message.
    Hello(Hello),
    /// The weights are loaded: this many samples can be held at once.
    Ready { capacity: u32 },
    /// Finished samples.
    Done(Vec<SampleDone>),
    /// A finished response of a sample that is not, where responses are checked.
    Response { sample_idx: u64, response_idx: u32, response: ResponseDone },
    /// A sign of life.
    Alive,
    /// The last message.
    Leaving(Leaving),
}

/// Who a rank is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) host: String,
    pub(crate) process: u32,
    /// The job that it belongs to; must be that of rank 0.
    pub(crate) topology: Topology,
    /// What decides the text of a sample, data apart, as JSON; must be that of rank 0.
    pub(crate) identity: String,
    /// Why it computes on the CPU, where a GPU was asked for.
    pub(crate) fallback: Option<String>,
}

impl Hello {
    pub(crate) fn of_this_process(
        identity: &Identity,
        topology: Topology,
        fallback: Option<String>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: std::process::id(),
            topology,
            identity: identity.record().map_err(anyhow::Error::from)?.to_string(),
            fallback,
        })
    }
}

/// Why a rank leaves, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaving {
    pub(crate) why: Why,
    pub(crate) worked: Worked,
}

/// What a rank computed, as far as the summary has it of all ranks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Worked {
    /// As the fields of [`RunStats`] of these names.
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) decode_rows: u64,
    pub(crate) drafted_tokens: u64,
    pub(crate) accepted_tokens: u64,
    pub(crate) num_cancelled: u64,
}

impl Worked {
    pub(crate) fn of(stats: &RunStats) -> Self {
        let &RunStats {
            prompt_tokens,
            cached_prompt_tokens,
            decode_rows,
            drafted_tokens,
            accepted_tokens,
            num_cancelled,
            ..
        } = stats;
        Self {
            prompt_tokens,
            cached_prompt_tokens,
            decode_rows,
            drafted_tokens,
            accepted_tokens,
            num_cancelled,
        }
    }

    /// Adds it to what another rank computed.
    pub(crate) fn add_to(self, stats: &mut RunStats) {
        stats.prompt_tokens += self.prompt_tokens;
        stats.cached_prompt_tokens += self.cached_prompt_tokens;
        stats.decode_rows += self.decode_rows;
        stats.drafted_tokens += self.drafted_tokens;
        stats.accepted_tokens += self.accepted_tokens;
        stats.num_cancelled += self.num_cancelled;
    }
}

/// Why a rank leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Rank 0 said so.
    Told,
    /// A signal came.
    Signal(i32),
    /// It failed, with this exit code.
    Failed { code: u8, message: String },
    /// It cannot go on without another rank, which has failed or is gone.
    Lost { message: String },
}

impl Why {
    /// Of a rank that ends with this.
    pub(crate) fn of(failure: &Failure) -> Self {
        let message = failure.sentence();
        match failure.is_of_another_rank() {
            true => Self::Lost { message },
            false => Self::Failed { code: failure.status.code(), message },
        }
    }
}

/// From rank 0 to a rank.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum FromZero {
    /// The answer to the first message: what the KV cache must hold.
    Welcome { longest_sequence_tokens: u64, num_sequences: u64 },
    /// Samples to compute.
    Grant(Vec<Request>),
    /// Responses of a sample that are not wanted any more.
    Cancel(Cancellation),
    /// The end.
    Stop(Stop),
}

/// Why rank 0 ends the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Every sample is finished.
    Finished,
    /// A signal or the time limit: what is finished is saved. The exit code for all ranks.
    Early { code: u8, reason: String },
    /// Something failed.
    Failed { message: String },
}

/// One sample, computed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SampleDone {
    /// Position of the sample in the input file.
    pub(crate) sample_idx: u64,
    /// In the order of their numbers.
    pub(crate) responses: Vec<ResponseDone>,
}

/// One response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResponseDone {
    pub(crate) token_ids: Vec<u32>,
    pub(crate) finish_reason: FinishReason,
    /// Where it could not go on: why.
    pub(crate) error: Option<String>,
    pub(crate) logprobs: Option<Vec<f32>>,
    /// The most likely tokens at the place of each.
    pub(crate) top_logprobs: Option<Vec<Vec<TopToken>>>,
}

/// Bytes that are no message of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// Another build wrote it.
    #[error(
        "a message of version {actual}, this program has version {VERSION}: all ranks must run the same program"
    )]
    Version { actual: u8 },
    /// It ends too soon, goes on too long, or a value is none.
    #[error("a message of {len} bytes is damaged at byte {at}")]
    Damaged { len: usize, at: usize },
}

impl ToZero {
    /// The message with its sender.
    pub(crate) fn encode(&self, from: Rank) -> Vec<u8> {
        let mut out = Writer::start();
        out.u32(from);
        match self {
            Self::Hello(Hello { host, process, topology, identity, fallback }) => {
                out.u8(0);
                out.text(host);
                out.u32(*process);
                topology.sizes().into_iter().for_each(|size| out.u32(size));
                out.text(identity);
                out.u8(u8::from(fallback.is_some()));
                fallback.iter().for_each(|reason| out.text(reason));
            }
            Self::Ready { capacity } => {
                out.u8(1);
                out.u32(*capacity);
            }
            Self::Done(samples) => {
                out.u8(2);
                out.list(samples, Writer::sample);
            }
            Self::Alive => out.u8(3),
            Self::Response { sample_idx, response_idx, response } => {
                out.u8(5);
                out.u64(*sample_idx);
                out.u32(*response_idx);
                out.response(response);
            }
            Self::Leaving(Leaving { why, worked }) => {
                out.u8(4);
                out.worked(*worked);
                match why {
                    Why::Told => out.u8(0),
                    Why::Signal(signal) => {
                        out.u8(1);
                        out.u32(signal.cast_unsigned());
                    }
                    Why::Failed { code, message } => {
                        out.u8(2);
                        out.u8(*code);
                        out.text(message);
                    }
                    Why::Lost { message } => {
                        out.u8(3);
                        out.text(message);
                    }
                }
            }
        }
        out.0
    }

    /// The sender and the message.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Rank, Self), MessageError> {
        let mut input = Reader::start(bytes)?;
        let from = input.u32()?;
        let message = match input.u8()? {
            0 => Self::Hello(Hello {
                host: input.text()?,
                process: input.u32()?,
                topology: input.topology()?,
                identity: input.text()?,
                fallback: input.option(Reader::text)?,
            }),
            1 => Self::Ready { capacity: input.u32()? },
            2 => Self::Done(input.list(Reader::sample)?),
            3 => Self::Alive,
            4 => {
                let worked = input.worked()?;
                let why = match input.u8()? {
                    0 => Why::Told,
                    1 => Why::Signal(input.u32()?.cast_signed()),
                    2 => Why::Failed { code: input.u8()?, message: input.text()? },
                    3 => Why::Lost { message: input.text()? },
                    _ => return Err(input.damaged()),
                };
                Self::Leaving(Leaving { why, worked })
            }
            5 => Self::Response {
                sample_idx: input.u64()?,
                response_idx: input.u32()?,
                response: input.response()?,
            },
            _ => return Err(input.damaged()),
        };
        input.end()?;
        Ok((from, message))
    }
}

impl FromZero {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::start();
        match self {
            Self::Welcome { longest_sequence_tokens, num_sequences } => {
                out.u8(0);
                out.u64(*longest_sequence_tokens);
                out.u64(*num_sequences);
            }
            Self::Grant(requests) => {
                out.u8(1);
                out.list(requests, |out, request| {
                    out.u64(request.sample_idx);
                    out.u32(request.num_responses);
                    out.u32(request.max_new_tokens);
                    out.list(&request.prompt, |out, &id| out.u32(id));
                    out.own_rules(request.own.as_deref());
                    out.foresight(request.foresight);
                });
            }
            Self::Cancel(Cancellation { sample_idx, last_wanted }) => {
                out.u8(3);
                out.u64(*sample_idx);
                out.u32(*last_wanted);
            }
            Self::Stop(stop) => {
                out.u8(2);
                match stop {
                    Stop::Finished => out.u8(0),
                    Stop::Early { code, reason } => {
                        out.u8(1);
                        out.u8(*code);
                        out.text(reason);
                    }
                    Stop::Failed { message } => {
                        out.u8(2);
                        out.text(message);
                    }
                }
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut input = Reader::start(bytes)?;
        let message = match input.u8()? {
            0 => Self::Welcome { longest_sequence_tokens: input.u64()?, num_sequences: input.u64()? },
            1 => Self::Grant(input.list(|input| {
                Ok(Request {
                    sample_idx: input.u64()?,
                    num_responses: input.u32()?,
                    max_new_tokens: input.u32()?,
                    prompt: input.list(Reader::u32)?,
                    own: input.option(Reader::own_rules)?,
                    foresight: input.foresight()?,
                })
            })?),
            2 => Self::Stop(match input.u8()? {
                0 => Stop::Finished,
                1 => Stop::Early { code: input.u8()?, reason: input.text()? },
                2 => Stop::Failed { message: input.text()? },
                _ => return Err(input.damaged()),
            }),
            3 => Self::Cancel(Cancellation { sample_idx: input.u64()?, last_wanted: input.u32()? }),
            _ => return Err(input.damaged()),
        };
        input.end()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use engine::{Foresight, OwnRules, PlannedPrefix};
    use proptest::prelude::*;
    use sampling::{RowRules, SamplingParams, StopConditions};

    use super::*;

    fn response() -> impl Strategy<Value = ResponseDone> {
        let reasons = [FinishReason::Eos, FinishReason::EndString, FinishReason::Length, FinishReason::Error];
        let logprobs = prop::option::of(prop::collection::vec(-9.0_f32..0.0, 0..5));
        let top = (any::<u32>(), -9.0_f32..0.0).prop_map(|(token, logprob)| TopToken { token, logprob });
        let top = prop::option::of(prop::collection::vec(prop::collection::vec(top, 0..3), 0..4));
        let reason = (prop::sample::select(reasons.to_vec()), prop::option::of(".{0,9}"));
        (prop::collection::vec(any::<u32>(), 0..5), reason, logprobs, top).prop_map(
            |(token_ids, (finish_reason, error), logprobs, top_logprobs)| ResponseDone {
                token_ids,
                finish_reason,
                error,
                logprobs,
                top_logprobs,
            },
        )
    }

    fn to_zero() -> impl Strategy<Value = ToZero> {
        let sample = (any::<u64>(), prop::collection::vec(response(), 0..3))
            .prop_map(|(sample_idx, responses)| SampleDone { sample_idx, responses });
        let topology = (1..99_u32, 1..99_u32, 1..99_u32)
            .prop_map(|(data, pipeline, tensor)| Topology::new(data, pipeline, tensor).unwrap());
        let why = prop_oneof![
            Just(Why::Told),
            any::<i32>().prop_map(Why::Signal),
            (any::<u8>(), ".{0,9}").prop_map(|(code, message)| Why::Failed { code, message }),
            ".{0,9}".prop_map(|message| Why::Lost { message }),
        ];
        prop_oneof![
            (".{0,9}", any::<u32>(), topology, ".{0,9}", prop::option::of(".{0,9}")).prop_map(
                |(host, process, topology, identity, fallback)| ToZero::Hello(Hello {
                    host,
                    process,
                    topology,
                    identity,
                    fallback
                })
            ),
            any::<u32>().prop_map(|capacity| ToZero::Ready { capacity }),
            prop::collection::vec(sample, 0..3).prop_map(ToZero::Done),
            Just(ToZero::Alive),
            (any::<u64>(), any::<u32>(), response()).prop_map(|(sample_idx, response_idx, response)| {
                ToZero::Response { sample_idx, response_idx, response }
            }),
            (why, any::<[u64; 6]>()).prop_map(|(why, counts)| {
                let [
                    prompt_tokens,
                    cached_prompt_tokens,
                    decode_rows,
                    drafted_tokens,
                    accepted_tokens,
                    num_cancelled,
                ] = counts;
                let worked = Worked {
                    prompt_tokens,
                    cached_prompt_tokens,
                    decode_rows,
                    drafted_tokens,
                    accepted_tokens,
                    num_cancelled,
                };
                ToZero::Leaving(Leaving { why, worked })
            }),
        ]
    }

    fn own_rules(seed: u64, temperature: f32, min_length: u32, min_p: Option<f32>) -> Box<OwnRules> {
        let params = SamplingParams {
            use_greedy: seed.is_multiple_of(2),
            temperature,
            top_k: None,
            top_p: Some(0.1),
            repetition_penalty: temperature / 3.0,
            min_p,
            compute_logprob: true,
            top_logprobs: 2,
        };
        let stop = StopConditions::resolve(&["a\u{e9}".to_owned()], &[3], |_| None).unwrap();
        let row = RowRules { params, seed, end_token_ids: vec![3, min_length], min_length, structure: None };
        Box::new(OwnRules { row, stop: stop.with_min_length(min_length) })
    }

    fn from_zero() -> impl Strategy<Value = FromZero> {
        let planned =
            any::<[u32; 3]>().prop_map(|[id, num_later, within]| PlannedPrefix { id, num_later, within });
        let foresight = (prop::option::of(any::<u32>()), prop::option::of(planned))
            .prop_map(|(expected_tokens, prefix)| Foresight { expected_tokens, prefix });
        let prompt = prop::collection::vec(any::<u32>(), 0..5);
        let own =
            prop::option::of((any::<u64>(), 0.01_f32..3.0, any::<u32>(), prop::option::of(0.01_f32..1.0)));
        let own = own.prop_map(|own| {
            own.map(|(seed, temperature, min_length, min_p)| own_rules(seed, temperature, min_length, min_p))
        });
        let request = (any::<u64>(), prompt, any::<[u32; 2]>(), own, foresight).prop_map(
            |(sample_idx, prompt, [num_responses, max_new_tokens], own, foresight)| Request {
                sample_idx,
                prompt,
                num_responses,
                max_new_tokens,
                own,
                foresight,
            },
        );
        prop_oneof![
            (any::<u64>(), any::<u64>()).prop_map(|(longest_sequence_tokens, num_sequences)| {
                FromZero::Welcome { longest_sequence_tokens, num_sequences }
            }),
            prop::collection::vec(request, 0..3).prop_map(FromZero::Grant),
            (any::<u64>(), any::<u32>()).prop_map(|(sample_idx, last_wanted)| {
                FromZero::Cancel(Cancellation { sample_idx, last_wanted })
            }),
            Just(FromZero::Stop(Stop::Finished)),
            (any::<u8>(), ".{0,9}").prop_map(|(code, reason)| FromZero::Stop(Stop::Early { code, reason })),
            ".{0,9}".prop_map(|message| FromZero::Stop(Stop::Failed { message })),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(to_zero in to_zero(), from_zero in from_zero(), rank in any::<u32>()) {
            prop_assert_eq!(ToZero::decode(&to_zero.encode(rank)).unwrap(), (rank, to_zero));
            prop_assert_eq!(FromZero::decode(&from_zero.encode()).unwrap(), from_zero);
        }

        #[test]
        fn damaged_bytes_are_refused_and_never_panic(
            message in to_zero(), cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bits in 1_u8..,
        ) {
            let bytes = message.encode(3);
            prop_assert!(ToZero::decode(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(ToZero::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
            let mut flipped = bytes;
            let at = flip.index(flipped.len());
            flipped[at] ^= bits;
            let _ = (ToZero::decode(&flipped), FromZero::decode(&flipped));
        }
    }

    #[test]
    fn what_other_ranks_computed_is_added() {
        let counts = |factor: u64| RunStats {
            prompt_tokens: factor,
            cached_prompt_tokens: 10 * factor,
            decode_rows: 100 * factor,
            drafted_tokens: 1_000 * factor,
            accepted_tokens: 10_000 * factor,
            num_cancelled: 100_000 * factor,
            ..RunStats::default()
        };
        let mut stats = counts(1);
        Worked::of(&counts(2)).add_to(&mut stats);
        assert_eq!(stats, counts(3));
    }

    #[test]
    fn another_version_is_named() {
        let error = FromZero::decode(&[9, 0]).unwrap_err().to_string();
        assert_eq!(
            error,
            "a message of version 9, this program has version 8: all ranks must run the same program"
        );
    }
}
