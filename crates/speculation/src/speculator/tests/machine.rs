//! A machine that is made up: what a step costs on the device and on the host are functions, and so is the text. It goes
//! on as the engine does, with a clock of its own.

use std::collections::VecDeque;

use super::super::*;

/// A device and its host.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    /// Seconds of a step by its tokens.
    pub(super) device: &'a dyn Fn(usize) -> f64,
    /// Seconds on the host for each step and for each of its responses.
    pub(super) host_per_step: f64,
    pub(super) host_per_row: f64,
    /// Seconds to touch a slot of the index.
    pub(super) per_op: f64,
    /// Steps in flight while the host reads the one before.
    pub(super) run_ahead: usize,
}

/// Prompts, and each one's response.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) responses: Vec<Vec<u32>>,
}

/// What a run took, behind its prompts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) seconds: f64,
    pub(super) num_drafted: usize,
    pub(super) num_accepted: usize,
    pub(super) num_steps: usize,
}

struct InFlight {
    /// The responses and their drafts.
    rows: Vec<(usize, Vec<u32>)>,
    done_at: f64,
    pace: Pace,
}

impl InFlight {
    fn num_tokens(&self) -> usize {
        self.rows.iter().map(|(_, drafts)| 1 + drafts.len()).sum()
    }
}

struct Run<'a> {
    machine: Machine<'a>,
    work: &'a Work,
    speculator: Option<&'a mut Speculator<usize>>,
    /// What the host has done until now, and the device will have.
    host: f64,
    device: f64,
    last_read: f64,
    num_ops: u64,
    /// Tokens of each response that were read.
    lens: Vec<usize>,
    in_flight: VecDeque<InFlight>,
    outcome: Outcome,
}

impl Machine<'_> {
    /// All responses at once, with drafts where there is somebody to draft.
    pub(super) fn run(self, work: &Work, speculator: Option<&mut Speculator<usize>>) -> Outcome {
        let num_ops = speculator.as_ref().map_or(0, |speculator| speculator.library.num_ops());
        let mut run = Run {
            machine: self,
            work,
            speculator,
            host: 0.0,
            device: 0.0,
            last_read: 0.0,
            num_ops,
            lens: vec![1; work.responses.len()],
            in_flight: VecDeque::new(),
            outcome: Outcome::default(),
        };
        run.prefill();
        run.decode();
        run.outcome.seconds = run.host;
        run.outcome
    }
}

impl Run<'_> {
    fn with_speculator<R>(&mut self, call: impl FnOnce(&mut Speculator<usize>) -> R) -> Option<R> {
        let speculator = self.speculator.as_mut()?;
        let result = call(speculator);
        let num_ops = speculator.library.num_ops();
        self.host += (num_ops - self.num_ops) as f64 * self.machine.per_op;
        self.num_ops = num_ops;
        Some(result)
    }

    fn prefill(&mut self) {
        let Work { prompts, responses } = self.work;
        let num_tokens = prompts.iter().map(Vec::len).sum::<usize>();
        let seconds = (self.machine.device)(64) * num_tokens as f64 / 64.0;
        self.with_speculator(|speculator| {
            speculator.reset();
            for (idx, (prompt, response)) in prompts.iter().zip(responses).enumerate() {
                speculator.prompt(prompt, &[idx]);
                speculator.append(idx, &response[..1]);
            }
            speculator.not_comparable(Duration::from_secs_f64(seconds));
        });
    }

    fn decode(&mut self) {
        let mut wants_drafts = false;
        loop {
            let num_ahead = self.in_flight.len();
            let goes_on = |&row: &usize| self.lens[row] + num_ahead < self.work.responses[row].len();
            let rows: Vec<usize> = (0..self.lens.len()).filter(goes_on).collect();
            if rows.is_empty() && num_ahead == 0 {
                return;
            }
            let has_drafts = !rows.is_empty() && self.start(rows.clone(), wants_drafts);
            self.collect(if has_drafts || rows.is_empty() { 0 } else { self.machine.run_ahead });
            let num_in_flight = self.in_flight.len();
            let wants =
                self.with_speculator(|speculator| speculator.wants_drafts(num_in_flight, Goal::Finish));
            wants_drafts = wants == Some(true);
            if wants_drafts {
                self.collect(0);
            }
        }
    }

    /// Whether the step has drafts.
    fn start(&mut self, rows: Vec<usize>, wants_drafts: bool) -> bool {
        let pace = if self.in_flight.is_empty() { Pace::Alone } else { Pace::Ahead };
        let mut drafts = vec![Vec::new(); rows.len()];
        if wants_drafts && pace == Pace::Alone {
            let left = |row: usize| self.work.responses[row].len() - self.lens[row];
            let wanted: Vec<Draftable<usize>> =
                rows.iter().map(|&row| Draftable { id: row, max_drafts: left(row) - 1 }).collect();
            let proposed = self.with_speculator(|speculator| speculator.propose(&wanted));
            drafts = proposed.unwrap();
            assert_eq!(drafts.len(), wanted.len());
            assert!(drafts.iter().zip(&wanted).all(|(drafts, wanted)| drafts.len() <= wanted.max_drafts));
        }
        let num_rows = rows.len();
        let step = InFlight { rows: rows.into_iter().zip(drafts).collect(), done_at: 0.0, pace };
        let num_tokens = step.num_tokens();
        self.host += self.machine.host_per_step + self.machine.host_per_row * num_rows as f64;
        self.device = self.device.max(self.host) + (self.machine.device)(num_tokens);
        self.in_flight.push_back(InFlight { done_at: self.device, ..step });
        self.outcome.num_steps += 1;
        self.outcome.num_drafted += num_tokens - num_rows;
        num_tokens > num_rows
    }

    fn collect(&mut self, most_in_flight: usize) {
        while self.in_flight.len() > most_in_flight {
            let step = self.in_flight.pop_front().unwrap();
            let num_tokens = step.num_tokens();
            self.host = self.host.max(step.done_at);
            let time = Duration::from_secs_f64(self.host - self.last_read);
            self.last_read = self.host;
            for (row, drafts) in &step.rows {
                let response = &self.work.responses[*row];
                let rest = &response[self.lens[*row]..];
                let num_right = drafts.iter().zip(rest).take_while(|(draft, token)| draft == token).count();
                self.outcome.num_accepted += num_right;
                self.lens[*row] += num_right + 1;
                let has_ended = self.lens[*row] == response.len();
                self.with_speculator(|speculator| {
                    speculator.append(*row, &rest[..=num_right]);
                    if has_ended {
                        speculator.end(*row);
                    }
                });
            }
            let step = StepTime { num_rows: step.rows.len(), num_tokens, pace: step.pace, time };
            self.with_speculator(|speculator| speculator.measured(step));
        }
    }
}
