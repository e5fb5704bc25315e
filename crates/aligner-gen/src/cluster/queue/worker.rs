//! The computing side of a rank: leased samples into the engine, finished ones out of it. The same for every rank.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::Duration;

use engine::{
    Activity, Cancellation, Cancellations, Completion, Engine, EngineError, EngineLimits, Request, RunStats,
    Supply,
};
use model_spec::blocks_for;

use crate::config::plan::GenerationPlan;

use super::message::{FromZero, ResponseDone, SampleDone, Stop, ToZero};
use super::{Heard, Mailbox};

/// How long an idle engine waits for a message before it looks at the signals again.
const IDLE: Duration = Duration::from_millis(20);

/// Why a rank has stopped computing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WorkerEnd {
    /// Rank 0 said so.
    Told(Stop),
    /// The caller's own reason.
    ByItself,
    /// Nothing is heard from rank 0 any more, for this reason.
    Lost(String),
}

/// Samples that an engine of these limits can hold: as many as run at once, and a few to go on with.
pub(crate) fn capacity(limits: &EngineLimits, longest_sequence_tokens: usize, num_responses: u32) -> u32 {
    let blocks = blocks_for(longest_sequence_tokens, limits.block_size_tokens.max(1)).max(1);
    let num_longest =
        (limits.num_blocks + limits.num_host_blocks) / limits.tables.num_blocks_of(blocks).max(1);
    let num_seqs = limits.max_num_seqs.min(num_longest).max(1);
    let at_once = num_seqs.div_ceil(num_responses.max(1) as usize);
    u32::try_from(at_once + at_once.div_ceil(8)).unwrap_or(u32::MAX)
}

/// Whether rank 0 is told of every response as soon as it has ended, or of whole samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    Responses,
    Samples,
}

impl Tells {
    /// Responses are wanted at once where they are checked.
    pub(crate) fn of(plan: &GenerationPlan) -> Self {
        if plan.checks.on_response.is_some() { Self::Responses } else { Self::Samples }
    }
}

struct State<'a> {
    mailbox: &'a Mailbox,
    tells: Tells,
    cancellations: Arc<Cancellations>,
    /// Leased and not begun.
    backlog: VecDeque<Request>,
    /// Responses of samples that are begun, in their places.
    open: HashMap<u64, Vec<Option<ResponseDone>>>,
    ended: Option<WorkerEnd>,
}

/// Computes until rank 0 says stop, the line is lost, or `should_leave`.
pub(crate) fn work(
    engine: &mut Engine,
    mailbox: &Mailbox,
    tells: Tells,
    should_leave: &dyn Fn() -> bool,
) -> Result<(WorkerEnd, RunStats), EngineError> {
    let state = RefCell::new(State {
        mailbox,
        tells,
        cancellations: engine.cancellations(),
        backlog: VecDeque::new(),
        open: HashMap::new(),
        ended: None,
    });
    let stats = engine.run(
        &mut |activity| state.borrow_mut().next_request(activity),
        &mut |completion| {
            state.borrow_mut().take(completion);
            ControlFlow::Continue(())
        },
        &|| {
            let mut state = state.borrow_mut();
            state.hear_all();
            if state.ended.is_none() && should_leave() {
                state.ended = Some(WorkerEnd::ByItself);
            }
            state.ended.is_some()
        },
    )?;
    Ok((state.into_inner().ended.unwrap_or(WorkerEnd::ByItself), stats))
}

impl State<'_> {
    fn next_request(&mut self, activity: Activity) -> Supply {
        self.hear_all();
        if self.backlog.is_empty() && self.ended.is_none() && activity == Activity::Idle {
            match self.mailbox.from_zero.recv_timeout(IDLE) {
                Ok(heard) => self.hear(heard),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.hear(Err("rank 0 has ended".to_owned())),
            }
        }
        // A row that nothing is generated for is done as it is.
        while let Some(request) = self.backlog.pop_front_if(|request| request.num_responses == 0) {
            let sample = SampleDone { sample_idx: request.sample_idx, responses: Vec::new() };
            (self.mailbox.say)(ToZero::Done(vec![sample]));
        }
        match self.backlog.pop_front() {
            _ if self.ended.is_some() => Supply::End,
            None => Supply::Later,
            Some(request) => {
                self.open.insert(request.sample_idx, vec![None; request.num_responses as usize]);
                Supply::Request(request)
            }
        }
    }

    fn hear_all(&mut self) {
        while self.ended.is_none() {
            match self.mailbox.from_zero.try_recv() {
                Ok(heard) => self.hear(heard),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => self.hear(Err("rank 0 has ended".to_owned())),
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Ok(FromZero::Grant(requests)) => self.backlog.extend(requests),
            Ok(FromZero::Cancel(cancellation)) => self.cancel(cancellation),
            Ok(FromZero::Stop(stop)) => self.ended = Some(WorkerEnd::Told(stop)),
            // Said once, before there was an engine.
            Ok(FromZero::Welcome { .. }) => {}
            Err(reason) => self.ended = Some(WorkerEnd::Lost(reason)),
        }
    }

    fn take(&mut self, completion: Completion) {
        let Completion { sample_idx, response_idx, token_ids, finish_reason, error, logprobs, top_logprobs } =
            completion;
        let Some(responses) = self.open.get_mut(&sample_idx) else { return };
        // One that was cancelled has no place any more.
        let Some(slot) = responses.get_mut(response_idx as usize) else { return };
        let response = ResponseDone { token_ids, finish_reason, error, logprobs, top_logprobs };
        if self.tells == Tells::Responses {
            let response = response.clone();
            (self.mailbox.say)(ToZero::Response { sample_idx, response_idx, response });
        }
        *slot = Some(response);
        self.finish_if_whole(sample_idx);
    }

    /// Leaves out responses that are not wanted any more.
    fn cancel(&mut self, cancellation: Cancellation) {
        let Cancellation { sample_idx, last_wanted } = cancellation;
        let Some(responses) = self.open.get_mut(&sample_idx) else { return };
        responses.truncate((last_wanted as usize).saturating_add(1));
        self.cancellations.cancel(cancellation);
        self.finish_if_whole(sample_idx);
    }

    fn finish_if_whole(&mut self, sample_idx: u64) {
        if self.open.get(&sample_idx).is_some_and(|responses| responses.iter().all(Option::is_some)) {
            let responses = self.open.remove(&sample_idx).into_iter().flatten().flatten().collect();
            (self.mailbox.say)(ToZero::Done(vec![SampleDone { sample_idx, responses }]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_what_runs_at_once_and_an_eighth() {
        let limits = EngineLimits {
            max_num_seqs: 64,
            max_prefill_tokens: 2048,
            num_blocks: 1000,
            num_host_blocks: 0,
            block_size_tokens: 32,
            tables: model_spec::KvTables::ONE,
        };
        assert_eq!(capacity(&limits, 100, 1), 72);
        assert_eq!(capacity(&limits, 100, 4), 18);
        assert_eq!(capacity(&limits, 100, 1000), 2);
        assert_eq!(capacity(&limits, 3200, 1), 12);
        assert_eq!(capacity(&limits, 100_000, 1), 2);
    }
}
