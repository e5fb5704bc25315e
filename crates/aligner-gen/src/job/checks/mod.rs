//! Responses checked by a program while the job runs.
//!
//! There is one program for all ranks, beside rank 0, so that what it is asked and what is kept do not depend on how many
//! there are. What is kept of a sample is decided by the numbers of its responses: those up to the first whose verdict
//! stops those behind it. Each of them is computed and checked whatever the others do, because a response is cancelled only
//! for one that stops it; so neither the order in which responses finish nor that of the answers changes anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use data::{DataError, PromptSet, PromptText};
use engine::Cancellation;
use sampling::FinishReason;

use super::clean::Cleaner;
use crate::cluster::queue::message::{ResponseDone, SampleDone};
use crate::cluster::topology::Rank;
use crate::config::checks::{BestOf, ChecksPlan};
use crate::config::plan::Unfinished;
use crate::exit::{ExitStatus, Failure};
use crate::model::checkpoint::TokenTable;
use crate::output::{Answer, Checked, Question};
use crate::signals::StopWatch;

mod program;

use program::{Program, Said, WELL};

/// How often what hangs on the time is looked at.
const TICK: Duration = Duration::from_millis(100);
/// What a job that is stopped early waits for the answers that whole samples still need.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// What a program gets to end after its last question.
const FAREWELL: Duration = Duration::from_secs(20);
/// What messages show of a line.
const MAX_SHOWN_CHARS: usize = 200;

/// What comes to the checks.
pub(crate) enum ToChecks {
    /// A response of a sample that is not finished.
    Response { rank: Rank, position: usize, response_idx: u32, response: ResponseDone },
    /// All responses of a sample, or those that may be kept.
    Sample(usize, SampleDone),
    /// The program says something.
    Said(ProgramSaid),
    /// No sample comes any more.
    NoMore(JobEnd),
}

/// How a job ended, as far as the answers are concerned that are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// All samples are computed: all answers are waited for.
    Finished,
    /// A signal or the time limit: some are, for a moment.
    Early,
    /// Nothing can be written any more.
    Failed,
}

/// Of the program; opaque to others.
pub(crate) struct ProgramSaid(Said);

/// Where the results of checks go.
pub(crate) struct Results<'a> {
    /// A sample with what is kept of it, and what the program said.
    pub(crate) finished: Box<dyn Fn(usize, SampleDone, Vec<Checked>) + Send + 'a>,
    /// A rank need not compute these.
    pub(crate) cancel: Box<dyn Fn(Rank, Cancellation) + Send + 'a>,
}

/// What the checks of a job are made of.
pub(crate) struct Checks<'a> {
    pub(crate) command: &'a str,
    pub(crate) plan: &'a ChecksPlan,
    pub(crate) unfinished: Unfinished,
    pub(crate) rows: &'a (dyn Rows + Sync),
    pub(crate) tokens: &'a TokenTable,
    pub(crate) cleaner: Cleaner,
    pub(crate) watch: &'a StopWatch,
}

/// The records that responses are to, by their position in the job.
pub(crate) trait Rows {
    fn text(&self, position: usize) -> Result<PromptText, DataError>;
    fn sample_idx(&self, position: usize) -> Option<u64>;
    /// The line as messages call it.
    fn place(&self, position: usize) -> String;
}

impl Rows for PromptSet {
    fn text(&self, position: usize) -> Result<PromptText, DataError> {
        self.text(position)
    }

    fn sample_idx(&self, position: usize) -> Option<u64> {
        self.sample_idx(position)
    }

    fn place(&self, position: usize) -> String {
        self.line(position).map_or_else(|| "?".to_owned(), |line| self.place(line))
    }
}

/// The program as far as the checks know it.
trait Responder {
    fn ask(&self, line: Vec<u8>);
    /// Its stdin ends behind the questions that are on their way.
    fn ask_no_more(&mut self);
    /// How it ended, if it does so in time.
    fn ended(&mut self, within: Duration) -> Option<String>;
    /// The last line of its stderr, for a message.
    fn last_words(&self) -> Option<String>;
}

/// A sample some of whose responses have finished.
#[derive(Default)]
struct OpenSample {
    text: Option<PromptText>,
    /// What is known of the responses that were asked for; None until the program has answered.
    checked: BTreeMap<u32, Option<Checked>>,
    /// The first response that makes those behind it superfluous, as far as is known.
    stop: Option<u32>,
    /// Ranks that compute it.
    ranks: BTreeSet<Rank>,
    done: Option<SampleDone>,
}

struct State<'c> {
    checks: &'c Checks<'c>,
    results: &'c Results<'c>,
    program: Box<dyn Responder + 'c>,
    open: HashMap<usize, OpenSample>,
    /// Questions without an answer, in the order in which they were asked.
    unanswered: BTreeMap<u64, (usize, u32)>,
    /// The place of each among those.
    asked: HashMap<(usize, u32), u64>,
    num_asked: u64,
    /// When the program last answered, or was first asked after it had answered all.
    last_sign: Instant,
    /// None while samples may come; then until when their answers are waited for.
    ends_at: Option<Option<Instant>>,
}

impl Checks<'_> {
    /// Starts the program and checks what comes, until all samples are out or the job has ended. `heard` leads to
    /// `incoming`.
    ///
    /// # Errors
    /// When the program cannot be started, hangs, ends, or says what it should not.
    pub(crate) fn run(
        &self,
        incoming: &Receiver<ToChecks>,
        heard: Sender<ToChecks>,
        results: &Results<'_>,
    ) -> Result<(), Failure> {
        let said = move |said| heard.send(ToChecks::Said(ProgramSaid(said))).map_err(drop);
        let mut state = State::new(self, results, Box::new(Program::start(self.command, said)?));
        while !state.is_over() {
            match incoming.recv_timeout(TICK) {
                Ok(message) => state.take(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            state.look_at_the_time()?;
            if state.ends_at == Some(None) && self.watch.reason().is_some() {
                // Everything is computed, and a signal comes while answers are waited for.
                state.ends_at = Some(Some(Instant::now() + LAST_ANSWERS));
            }
        }
        match state.open.is_empty() {
            true => state.say_farewell(incoming),
            // The job was stopped: what is left is asked for again when it goes on.
            false => Ok(()),
        }
    }
}

impl<'c> State<'c> {
    fn new(checks: &'c Checks<'c>, results: &'c Results<'c>, program: Box<dyn Responder + 'c>) -> Self {
        Self {
            checks,
            results,
            program,
            open: HashMap::new(),
            unanswered: BTreeMap::new(),
            asked: HashMap::new(),
            num_asked: 0,
            last_sign: Instant::now(),
            ends_at: None,
        }
    }

    fn is_over(&self) -> bool {
        match self.ends_at {
            None => false,
            Some(until) => {
                let is_late = until.is_some_and(|until| Instant::now() >= until);
                is_late || !self.open.values().any(|sample| sample.done.is_some())
            }
        }
    }

    fn take(&mut self, message: ToChecks) -> Result<(), Failure> {
        match message {
            ToChecks::Response { rank, position, response_idx, response } => {
                let sample = self.open.entry(position).or_default();
                if sample.ranks.insert(rank)
                    && let Some(last_wanted) = sample.stop
                {
                    self.cancel(position, last_wanted, &[rank]);
                }
                self.ask(position, response_idx, &response)
            }
            ToChecks::Sample(position, done) => {
                for (response, response_idx) in done.responses.iter().zip(0..) {
                    self.ask(position, response_idx, response)?;
                }
                self.open.entry(position).or_default().done = Some(done);
                self.finish_if_known(position);
                Ok(())
            }
            ToChecks::Said(ProgramSaid(said)) => self.hear(said),
            ToChecks::NoMore(end) => {
                self.ends_at = Some(match end {
                    JobEnd::Finished => None,
                    JobEnd::Early => Some(Instant::now() + LAST_ANSWERS),
                    JobEnd::Failed => Some(Instant::now()),
                });
                Ok(())
            }
        }
    }

    /// Asks for a response, unless it was asked for or is superfluous.
    fn ask(&mut self, position: usize, response_idx: u32, response: &ResponseDone) -> Result<(), Failure> {
        let checks = self.checks;
        let sample = self.open.entry(position).or_default();
        let is_superfluous = sample.stop.is_some_and(|stop| response_idx > stop);
        if is_superfluous || sample.checked.contains_key(&response_idx) {
            return Ok(());
        }
        if checks.unfinished == Unfinished::Drop && response.finish_reason == FinishReason::Length {
            // It is left out of the output, whatever might be said of it.
            sample.checked.insert(response_idx, Some(Checked::default()));
            return Ok(());
        }
        sample.checked.insert(response_idx, None);
        let text = match &mut sample.text {
            Some(text) => text,
            none => none.insert(checks.rows.text(position)?),
        };
        let raw = (response.token_ids.as_slice(), response.finish_reason);
        let question = Question {
            id: &id_of(position, response_idx),
            index: text.index,
            response_idx,
            prompt: &text.text,
            response: &checks.tokens.text(&response.token_ids),
            clean: &checks.cleaner.clean(checks.tokens, &text.text, raw, &text.input),
            finish_reason: response.finish_reason,
            metadata: &text.metadata,
        };
        let line = question.to_line().map_err(anyhow::Error::from)?;
        if self.unanswered.is_empty() {
            self.last_sign = Instant::now();
        }
        self.unanswered.insert(self.num_asked, (position, response_idx));
        self.asked.insert((position, response_idx), self.num_asked);
        self.num_asked += 1;
        self.program.ask(line);
        Ok(())
    }

    fn hear(&mut self, said: Said) -> Result<(), Failure> {
        match said {
            Said::Line(line) => {
                let answer = Answer::read(&line)
                    .map_err(|reason| self.failure(&format!("answered `{}`, {reason}", shown(&line))))?;
                self.last_sign = Instant::now();
                self.answer(&answer)
            }
            Said::BadLine(what) => Err(self.failure(&format!("answered {what}"))),
            Said::End => {
                let how = self.program.ended(Duration::from_secs(2));
                let how = how.unwrap_or_else(|| "closed its output".to_owned());
                Err(self.failure(&how))
            }
        }
    }

    fn answer(&mut self, answer: &Answer) -> Result<(), Failure> {
        let Answer { id, verdict, score } = answer;
        let place = place_of(id).and_then(|place| Some((place, self.asked.remove(&place)?)));
        let Some(((position, response_idx), nth)) = place else {
            let problem =
                format!("answered for id `{}`, which it was not asked for or has answered", shown(id));
            return Err(self.failure(&problem));
        };
        self.unanswered.remove(&nth);
        if self.checks.plan.best_of == Some(BestOf::Score) && score.is_none() {
            let row = self.row(position, response_idx);
            return Err(failure(&format!(
                "answered for {row} without a `score`, which `model.generation.best_of_n=score` needs"
            )));
        }
        // It may have been superfluous.
        let Some(sample) = self.open.get_mut(&position) else { return Ok(()) };
        let checked = Checked { verdict: Some(*verdict), score: *score };
        sample.checked.insert(response_idx, Some(checked));
        if verdict.stops() && sample.stop.is_none_or(|stop| response_idx < stop) {
            sample.stop = Some(response_idx);
            if sample.done.is_none() {
                let ranks: Vec<Rank> = sample.ranks.iter().copied().collect();
                self.cancel(position, response_idx, &ranks);
            }
        }
        self.finish_if_known(position);
        Ok(())
    }

    fn cancel(&self, position: usize, last_wanted: u32, ranks: &[Rank]) {
        let Some(sample_idx) = self.checks.rows.sample_idx(position) else { return };
        for &rank in ranks {
            (self.results.cancel)(rank, Cancellation { sample_idx, last_wanted });
        }
    }

    /// Passes a sample on when it is computed and all answers are there that what is kept of it depends on.
    fn finish_if_known(&mut self, position: usize) {
        let Some(sample) = self.open.get(&position) else { return };
        let Some(done) = &sample.done else { return };
        let num_kept = sample.stop.map_or(usize::MAX, |stop| stop as usize + 1).min(done.responses.len());
        let known = (0..).take(num_kept).map(|response_idx| *sample.checked.get(&response_idx)?);
        let Some(checked) = known.collect::<Option<Vec<Checked>>>() else { return };
        if let Some(OpenSample { done: Some(mut done), .. }) = self.open.remove(&position) {
            done.responses.truncate(num_kept);
            (self.results.finished)(position, done, checked);
        }
    }

    fn look_at_the_time(&self) -> Result<(), Failure> {
        let limit = self.checks.plan.timeout;
        if self.unanswered.is_empty() || self.last_sign.elapsed() < limit {
            return Ok(());
        }
        Err(self.failure(&format!(
            "has not answered for `model.generation.on_response_timeout_seconds` of {} s",
            limit.as_secs()
        )))
    }

    /// Nothing more is asked: the program is to end, and must not say more than was asked.
    fn say_farewell(&mut self, incoming: &Receiver<ToChecks>) -> Result<(), Failure> {
        self.program.ask_no_more();
        let until = Instant::now() + FAREWELL.min(self.checks.plan.timeout);
        while let Ok(message) = incoming.recv_timeout(until.saturating_duration_since(Instant::now())) {
            match message {
                ToChecks::Said(ProgramSaid(Said::End)) => {
                    if let Some(how) = self.program.ended(Duration::from_secs(2)).filter(|how| how != WELL) {
                        tracing::warn!(
                            "the program of `model.generation.on_response` {how} after its last answer"
                        );
                    }
                    return Ok(());
                }
                message => self.take(message)?,
            }
        }
        tracing::warn!(
            "the program of `model.generation.on_response` did not end after the end of its input and is ended"
        );
        Ok(())
    }

    /// A failure with the row that the program owes an answer for.
    fn failure(&self, problem: &str) -> Failure {
        let num_unanswered = self.unanswered.len();
        let owed = match self.unanswered.values().next() {
            Some(&(position, response_idx)) => format!(
                "; {num_unanswered} {} without an answer, the first of them {}",
                if num_unanswered == 1 { "response is" } else { "responses are" },
                self.row(position, response_idx)
            ),
            None => String::new(),
        };
        let words = self.program.last_words();
        let words = words.map_or_else(String::new, |words| format!("; it last said `{words}`"));
        failure(&format!("{problem}{owed}{words}"))
    }

    /// What messages call a response.
    fn row(&self, position: usize, response_idx: u32) -> String {
        format!("response {response_idx} to the record in line {}", self.checks.rows.place(position))
    }
}

fn failure(problem: &str) -> Failure {
    let error = anyhow::anyhow!(
        "the program of `model.generation.on_response` {problem}; finished steps are saved, the same command continues after \
         them"
    );
    Failure { status: ExitStatus::Failed, error }
}

/// What a question is called: by the place of its sample in the job, because a record may be in it several times.
fn id_of(position: usize, response_idx: u32) -> String {
    format!("{position}/{response_idx}")
}

fn place_of(id: &str) -> Option<(usize, u32)> {
    let (position, response_idx) = id.split_once('/')?;
    let place = (position.parse().ok()?, response_idx.parse().ok()?);
    // `+1/02` is not what was asked.
    (id_of(place.0, place.1) == id).then_some(place)
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
