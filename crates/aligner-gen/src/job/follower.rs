//! A rank other than 0: it knows the model and the settings, and gets its prompts from rank 0.

use std::sync::Arc;
use std::time::Duration;

use super::nonfinite;
use super::run::Setup;
use crate::cluster::model_group::ModelGroup;
use crate::cluster::queue::Mailbox;
use crate::cluster::queue::link::{Line, board, connect};
use crate::cluster::queue::message::{FromZero, Hello, Leaving, Stop, ToZero, Why, Worked};
use crate::cluster::queue::worker::{self, Tells, WorkerEnd};
use crate::cluster::ranks::{Meeting, RankPlace};
use crate::exit::{ExitStatus, Failure};
use crate::model::checkpoint::TokenTable;
use crate::model::memory::{Demand, MemoryPlan};
use crate::output::{ExistingOutput, Identity, Manifest};
use crate::signals::StopWatch;

/// How often a rank looks for news while it waits for the first word.
const LOOK: Duration = Duration::from_millis(200);

/// Works for rank 0 until that ends the job.
pub(crate) fn run(setup: &Setup, place: &RankPlace, watch: &StopWatch) -> Result<ExitStatus, Failure> {
    let follower = Follower { setup, place, watch, identity: setup.identity()? };
    // Several signs of life in one lease: one that is late takes nothing away.
    let alive_every = (setup.plan.lease / 5).min(Duration::from_secs(1));
    let connected = connect(place, alive_every, &|waited| follower.keep_trying(waited));
    let (mailbox, line) = match connected {
        Ok(connected) => connected,
        Err(failure) if failure.status == ExitStatus::Done => return Ok(ExitStatus::Done),
        Err(failure) => return Err(failure),
    };
    let outcome = follower.work(&mailbox);
    follower.leave(outcome, mailbox, line)
}

struct Follower<'a> {
    setup: &'a Setup,
    place: &'a RankPlace,
    watch: &'a StopWatch,
    identity: Identity,
}

/// How the work ended, and what it was.
struct Outcome {
    ended: WorkerEnd,
    worked: Worked,
}

impl Follower<'_> {
    /// Whether to go on looking for rank 0. A job that was finished before this rank came is no failure.
    fn keep_trying(&self, waited: Duration) -> Result<(), Failure> {
        if let Some(reason) = self.watch.reason() {
            return Err(Failure {
                status: reason.exit_status(),
                error: anyhow::anyhow!("stopped by {reason} before rank 0 was reached"),
            });
        }
        if self.is_finished() {
            tracing::info!("the job is finished: nothing is left for rank {}", self.place.rank);
            return Err(Failure { status: ExitStatus::Done, error: anyhow::anyhow!("finished") });
        }
        if waited < self.setup.plan.join_timeout {
            return Ok(());
        }
        let (host, port) = match &self.place.meeting {
            Meeting::Address { host, port } | Meeting::Agent { host, port, .. } => (host, port),
        };
        Err(anyhow::anyhow!(
            "rank {} cannot reach rank 0 at `{host}:{port}` within `trainer.generation.join_timeout_seconds` of {} s: is it \
             running, is this its host, and is the port open to this machine",
            self.place.rank,
            self.setup.plan.join_timeout.as_secs()
        )
        .into())
    }

    /// Whether the folder has all samples of this very job.
    fn is_finished(&self) -> bool {
        let plan = &self.setup.plan;
        let folder = plan.exp_manager.log_dir.join("generations");
        plan.exp_manager.existing_output == ExistingOutput::Continue
            && Manifest::read(&folder).ok().flatten().is_some_and(|manifest| {
                manifest.committed.consumed_samples >= manifest.num_samples
                    && Identity::read(&manifest.identity)
                        .is_ok_and(|recorded| recorded.without_data().changes(&self.identity).is_empty())
            })
    }

    fn work(&self, mailbox: &Mailbox) -> Result<Outcome, Failure> {
        let setup = self.setup;
        let hello = Hello::of_this_process(&self.identity, setup.topology, setup.fallback.clone())?;
        (mailbox.say)(ToZero::Hello(hello));
        let nothing = |ended| Ok(Outcome { ended, worked: Worked::default() });
        let (longest_sequence_tokens, num_sequences) = loop {
            match mailbox.from_zero.recv_timeout(LOOK) {
                Ok(Ok(FromZero::Welcome { longest_sequence_tokens, num_sequences })) => {
                    let at_most = |value| usize::try_from(value).unwrap_or(usize::MAX);
                    break (at_most(longest_sequence_tokens), at_most(num_sequences));
                }
                Ok(Ok(FromZero::Stop(stop))) => return nothing(WorkerEnd::Told(stop)),
                Ok(Ok(FromZero::Grant(_) | FromZero::Cancel(_))) => {}
                Ok(Err(reason)) => return nothing(WorkerEnd::Lost(reason)),
                Err(_) if self.watch.reason().is_some() => return nothing(WorkerEnd::ByItself),
                Err(_) => {}
            }
        };
        let (neighbours, limits) = (setup.neighbours, setup.plan.room);
        let structures = setup.plan.row_structures();
        let demand = Demand { longest_sequence_tokens, num_sequences, neighbours, limits, structures };
        let memory = setup.memory(demand)?;
        let group = setup.meet(&board(self.place)?, &|| self.go_on(mailbox))?;
        if let Some(group) = group.as_ref().filter(|group| !group.leads()) {
            return self.follow_leader(&memory, group);
        }
        let tokens = Arc::new(TokenTable::new(setup.tokenizer.tokenizer.as_ref())?);
        let mut engine = setup.engine(tokens, &memory, group)?;
        let capacity = worker::capacity(&memory.limits, longest_sequence_tokens, setup.plan.num_responses);
        tracing::info!("rank {} of {} is ready", self.place.rank, self.place.world_size);
        (mailbox.say)(ToZero::Ready { capacity });
        let (ended, stats) =
            worker::work(&mut engine, mailbox, Tells::of(&setup.plan), &|| self.watch.reason().is_some())
                .map_err(|error| {
                    nonfinite::explain(error.into(), setup.checkpoint.tensors(), setup.plan.numerics)
                })?;
        Ok(Outcome { ended, worked: Worked::of(&stats) })
    }

    /// Whether to go on waiting for the other ranks of the model.
    fn go_on(&self, mailbox: &Mailbox) -> Result<(), Failure> {
        let stopped =
            mailbox.ended().or_else(|| self.watch.reason().map(|reason| format!("stopped by {reason}")));
        match stopped {
            Some(why) => Err(of_another(&format!("{why}, before all ranks of the model had come"))),
            None => Ok(()),
        }
    }

    /// Computes a part of the model for the rank that leads this replica, until that ends.
    fn follow_leader(&self, memory: &MemoryPlan, group: &ModelGroup) -> Result<Outcome, Failure> {
        let mut executor = self.setup.following_executor(memory, group)?;
        tracing::info!("rank {} of {} is ready", self.place.rank, self.place.world_size);
        engine::follow(executor.as_mut(), &mut || group.next_order())?;
        Ok(Outcome { ended: WorkerEnd::Told(Stop::Finished), worked: Worked::default() })
    }

    /// Says the last word and waits until it is out.
    fn leave(
        &self,
        outcome: Result<Outcome, Failure>,
        mailbox: Mailbox,
        line: Line,
    ) -> Result<ExitStatus, Failure> {
        let (why, worked, end) = match outcome {
            Err(failure) => (Why::of(&failure), Worked::default(), Err(failure)),
            Ok(Outcome { ended, worked }) => {
                let (why, end) = self.judge(ended);
                (why, worked, end)
            }
        };
        (mailbox.say)(ToZero::Leaving(Leaving { why, worked }));
        drop(mailbox);
        line.hang_up();
        end
    }

    fn judge(&self, ended: WorkerEnd) -> (Why, Result<ExitStatus, Failure>) {
        match ended {
            WorkerEnd::Told(Stop::Finished) => (Why::Told, Ok(ExitStatus::Done)),
            WorkerEnd::Told(Stop::Early { code, reason }) => {
                tracing::info!("rank 0 stopped the job: {reason}");
                (Why::Told, Ok(ExitStatus::from_code(code)))
            }
            WorkerEnd::Told(Stop::Failed { message }) => {
                (Why::Told, Err(of_another(&format!("rank 0 ended the job: {message}"))))
            }
            // Signals come to all ranks, and rank 0 may be the first to leave.
            WorkerEnd::Lost(_) if self.watch.reason().is_some() => self.judge(WorkerEnd::ByItself),
            WorkerEnd::Lost(_) if self.is_finished() => (Why::Told, Ok(ExitStatus::Done)),
            WorkerEnd::Lost(reason) => {
                let text = "rank 0 is gone, so the job has ended; finished steps are saved, the same command continues after them";
                (Why::Told, Err(of_another(&format!("{text} ({})", first_line(&reason)))))
            }
            WorkerEnd::ByItself => match self.watch.reason() {
                Some(reason) => {
                    tracing::warn!("stopped by {reason}");
                    let signal = self.watch.signal().map_or(0, rustix::process::Signal::as_raw);
                    (Why::Signal(signal), Ok(reason.exit_status()))
                }
                None => (Why::Told, Err(anyhow::anyhow!("the engine stopped before the end").into())),
            },
        }
    }
}

fn of_another(message: &str) -> Failure {
    Failure::of_another_rank(ExitStatus::Failed, message)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
