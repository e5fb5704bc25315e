//! What is kept whatever the order, and what is said of a program that does not keep to the rules.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::output::Verdict;

/// Rows of a file that begins with two left-out records.
struct Numbers;

impl Rows for Numbers {
    fn text(&self, position: usize) -> Result<PromptText, DataError> {
        Ok(PromptText { index: position as u64 + 2, text: format!("Q{position}"), ..PromptText::default() })
    }

    fn sample_idx(&self, position: usize) -> Option<u64> {
        Some(position as u64 + 2)
    }

    fn place(&self, position: usize) -> String {
        (position + 3).to_string()
    }
}

/// Keeps questions until somebody answers them.
#[derive(Clone, Default)]
struct Asked(Rc<RefCell<VecDeque<String>>>);

impl Responder for Asked {
    fn ask(&self, line: Vec<u8>) {
        let question: serde_json::Value = serde_json::from_slice(&line).unwrap();
        self.0.borrow_mut().push_back(question["id"].as_str().unwrap().to_owned());
    }

    fn ask_no_more(&mut self) {}

    fn ended(&mut self, _: Duration) -> Option<String> {
        Some("ended with exit code 7".to_owned())
    }

    fn last_words(&self) -> Option<String> {
        Some("Traceback".to_owned())
    }
}

fn plan() -> ChecksPlan {
    let on_response = Some("./check".to_owned());
    ChecksPlan { on_response, timeout: Duration::from_secs(100), best_of: None, pass_at_k: Vec::new() }
}

/// What checks borrow.
struct World {
    plan: ChecksPlan,
    tokens: TokenTable,
    watch: StopWatch,
}

impl World {
    fn new(plan: ChecksPlan) -> Self {
        Self { plan, tokens: TokenTable::unknown(), watch: StopWatch::idle() }
    }

    fn checks(&self, unfinished: Unfinished) -> Checks<'_> {
        let Self { plan, tokens, watch } = self;
        let cleaner = Cleaner::plain();
        Checks { command: "./check", plan, unfinished, rows: &Numbers, tokens, cleaner, watch }
    }
}

fn response(token: u32) -> ResponseDone {
    let finish_reason = FinishReason::Eos;
    ResponseDone { token_ids: vec![token], finish_reason, error: None, logprobs: None, top_logprobs: None }
}

fn line(id: &str, verdict: Verdict) -> ToChecks {
    let verdict = serde_json::to_value(verdict).unwrap();
    let line = serde_json::json!({"id": id, "verdict": verdict}).to_string();
    ToChecks::Said(ProgramSaid(Said::Line(line)))
}

/// Passes and fails more often than stops.
const VERDICTS: [Verdict; 7] = [
    Verdict::Pass,
    Verdict::Pass,
    Verdict::Fail,
    Verdict::Fail,
    Verdict::PassAndStop,
    Verdict::FailAndStop,
    Verdict::Stop,
];

/// A sample: what the program says of each response.
type Verdicts = Vec<Verdict>;

/// Ranks that compute responses one by one, in any order, until they are cancelled.
struct Ranks {
    /// Of each sample: responses that have finished, and the last that is wanted.
    samples: Vec<(BTreeSet<u32>, u32)>,
    num_computed: usize,
}

type Kept = Vec<(usize, Vec<u32>, Vec<Option<Verdict>>)>;

/// Plays a job: `choices` decides what happens next.
fn play(all: &[Verdicts], choices: &[u16]) -> (Kept, usize) {
    let world = World::new(plan());
    let checks = world.checks(Unfinished::Keep);
    let kept = Arc::new(Mutex::new(Kept::new()));
    let samples = all.iter().map(|verdicts| (BTreeSet::new(), verdicts.len() as u32 - 1)).collect();
    let ranks = Arc::new(Mutex::new(Ranks { samples, num_computed: 0 }));
    let (finished, cancelled) = (Arc::clone(&kept), Arc::clone(&ranks));
    let results = Results {
        finished: Box::new(move |position, sample, checked| {
            let tokens = sample.responses.iter().map(|response| response.token_ids[0]).collect();
            let verdicts = checked.iter().map(|checked| checked.verdict).collect();
            finished.lock().unwrap().push((position, tokens, verdicts));
        }),
        cancel: Box::new(move |_, Cancellation { sample_idx, last_wanted }| {
            let last = &mut cancelled.lock().unwrap().samples[sample_idx as usize - 2].1;
            *last = last_wanted.min(*last);
        }),
    };
    let asked = Asked::default();
    let mut state = State::new(&checks, &results, Box::new(asked.clone()));
    let mut done = vec![false; all.len()];
    let mut choices = choices.iter().copied().cycle().zip(0..100_000);
    while kept.lock().unwrap().len() < all.len() {
        let (choice, turn) = choices.next().expect("nothing goes on");
        // So that a few choices that come again and again leave nothing out.
        let choice = (usize::from(choice) + 1) * (turn + 1) % 65_521;
        let position = choice / 8 % all.len();
        let num_asked = asked.0.borrow().len();
        if choice.is_multiple_of(3) && num_asked > 0 {
            // An answer, to any question.
            let id = asked.0.borrow_mut().remove(choice / 3 % num_asked).unwrap();
            let (position, idx) = place_of(&id).unwrap();
            state.take(line(&id, all[position][idx as usize])).unwrap();
            continue;
        }
        // A response that is still wanted finishes, any of them, and behind the last one the sample.
        let (last, open) = {
            let (finished, last) = &ranks.lock().unwrap().samples[position];
            (*last, (0..=*last).filter(|idx| !finished.contains(idx)).collect::<Vec<u32>>())
        };
        if let Some(&response_idx) = open.get(choice / 5 % open.len().max(1)) {
            let mut ranks = ranks.lock().unwrap();
            ranks.samples[position].0.insert(response_idx);
            ranks.num_computed += 1;
            drop(ranks);
            let (rank, response) = (choice as Rank % 2, response(response_idx));
            state.take(ToChecks::Response { rank, position, response_idx, response }).unwrap();
        } else if !std::mem::replace(&mut done[position], true) {
            let responses = (0..=last).map(response).collect();
            let sample = SampleDone { sample_idx: position as u64 + 2, responses };
            state.take(ToChecks::Sample(position, sample)).unwrap();
        }
    }
    let mut kept = std::mem::take(&mut *kept.lock().unwrap());
    kept.sort_by_key(|(position, ..)| *position);
    let num_computed = ranks.lock().unwrap().num_computed;
    (kept, num_computed)
}

/// What is kept by the rule: everything up to the first that stops the others.
fn expected(all: &[Verdicts]) -> Kept {
    let of_sample = |(position, verdicts): (usize, &Verdicts)| {
        let stop = verdicts.iter().position(|verdict| verdict.stops());
        let num_kept = stop.map_or(verdicts.len(), |stop| stop + 1);
        let kept = verdicts.iter().take(num_kept).copied().map(Some).collect();
        (position, (0..num_kept as u32).collect(), kept)
    };
    all.iter().enumerate().map(of_sample).collect()
}

proptest! {
    #[test]
    fn what_is_kept_depends_on_no_order(
        all in prop::collection::vec(
            prop::collection::vec(prop::sample::select(VERDICTS.to_vec()), 1..7), 1..6),
        choices in prop::collection::vec(any::<u16>(), 1..200),
    ) {
        let (kept, num_computed) = play(&all, &choices);
        prop_assert_eq!(kept, expected(&all));
        prop_assert!(num_computed <= all.iter().map(Vec::len).sum());
    }
}

#[test]
fn an_early_stop_saves_work() {
    let all = vec![vec![Verdict::Stop; 6]; 5];
    let (_, num_computed) = play(&all, &[1, 2, 3]);
    assert!(num_computed < 30, "{num_computed}");
}

/// What is said after these questions and lines.
fn said(plan: &ChecksPlan, lines: &[&str]) -> String {
    let world = World::new(plan.clone());
    let checks = world.checks(Unfinished::Keep);
    let results = Results { finished: Box::new(|_, _, _| {}), cancel: Box::new(|_, _| {}) };
    let mut state = State::new(&checks, &results, Box::new(Asked::default()));
    for response_idx in 0..2 {
        let response = response(response_idx);
        state.take(ToChecks::Response { rank: 0, position: 4, response_idx, response }).unwrap();
    }
    let heard = |line: &&str| match *line {
        "END" => Said::End,
        line => Said::Line(line.to_owned()),
    };
    let ended = lines.iter().map(heard).try_for_each(|said| state.take(ToChecks::Said(ProgramSaid(said))));
    let ended = ended.and_then(|()| state.look_at_the_time());
    ended.map_or_else(|failure| failure.sentence(), |()| "nothing".to_owned())
}

#[test]
fn a_program_that_breaks_the_rules_is_named_with_the_row() {
    let good = r#"{"id": "4/0", "verdict": "pass"}"#;
    let last = r#"{"id": "4/1", "verdict": "fail"}"#;
    assert_eq!(said(&plan(), &[last, good]), "nothing");
    let by_score = ChecksPlan { best_of: Some(BestOf::Score), ..plan() };
    let impatient = ChecksPlan { timeout: Duration::ZERO, ..plan() };
    let all = [
        said(&plan(), &["yes"]),
        said(&plan(), &[good, good]),
        said(&plan(), &[good, last, r#"{"id": "5/0", "verdict": "pass"}"#]),
        said(&plan(), &[good, "END"]),
        said(&plan(), &[r#"{"id": "04/0", "verdict": "pass"}"#]),
        said(&by_score, &[good]),
        said(&impatient, &[good]),
    ];
    insta::assert_snapshot!(all.join("\n"));
    assert_eq!(said(&impatient, &[good, last]), "nothing");
}

#[test]
fn a_response_that_will_be_dropped_is_not_asked_for() {
    let world = World::new(plan());
    let checks = world.checks(Unfinished::Drop);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let finished = Arc::clone(&kept);
    let results = Results {
        finished: Box::new(move |_, _, checked| finished.lock().unwrap().extend(checked)),
        cancel: Box::new(|_, _| {}),
    };
    let asked = Asked::default();
    let mut state = State::new(&checks, &results, Box::new(asked.clone()));
    let unfinished = ResponseDone { finish_reason: FinishReason::Length, ..response(1) };
    let sample = SampleDone { sample_idx: 2, responses: vec![unfinished, response(2)] };
    state.take(ToChecks::Sample(0, sample)).unwrap();
    assert_eq!(*asked.0.borrow(), ["0/1"]);
    state.take(line("0/1", Verdict::Fail)).unwrap();
    let verdicts: Vec<_> = kept.lock().unwrap().iter().map(|checked| checked.verdict).collect();
    assert_eq!(verdicts, [None, Some(Verdict::Fail)]);
}
