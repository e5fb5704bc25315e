//! Pipeline stages: sets of responses side by side.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use super::*;
use crate::executor::host::HostExecutor;

/// Looks at which responses are in the steps in flight.
struct Watching {
    inner: HostExecutor,
    in_flight: VecDeque<HashSet<RowId>>,
    most_in_flight: Arc<Mutex<usize>>,
}

impl Executor for Watching {
    fn reset(&mut self) -> Result<(), EngineError> {
        self.in_flight.clear();
        self.inner.reset()
    }

    fn set_vocabulary(&mut self, vocabulary: Arc<Vocabulary>) {
        self.inner.set_vocabulary(vocabulary);
    }

    fn start(&mut self, plan: StepPlan) -> Result<(), EngineError> {
        let rows: HashSet<RowId> = plan.rows.iter().map(|row| row.id).collect();
        for row in &rows {
            let prompt = match row {
                RowId::Response(id) => Some(RowId::Prompt(id.group_idx)),
                RowId::Prompt(_) => None,
            };
            for earlier in &self.in_flight {
                // A prompt may be in several, in parts; a response needs its last token.
                assert!(prompt.is_none() || !earlier.contains(row), "{row:?} is in two steps");
                assert!(prompt.is_none_or(|prompt| !earlier.contains(&prompt)), "{row:?} has no first token");
            }
        }
        self.in_flight.push_back(rows);
        let mut most = self.most_in_flight.lock().unwrap();
        *most = (*most).max(self.in_flight.len());
        self.inner.start(plan)
    }

    fn collect(&mut self) -> Result<StepOutput, EngineError> {
        self.in_flight.pop_front();
        self.inner.collect()
    }

    fn prompt_cut_tokens(&self) -> Option<usize> {
        self.inner.prompt_cut_tokens()
    }

    fn run_ahead(&self) -> usize {
        self.inner.run_ahead()
    }

    fn num_sets(&self) -> usize {
        self.inner.num_sets()
    }

    fn verifies_drafts(&self) -> bool {
        self.inner.verifies_drafts()
    }

    fn is_greedy(&self) -> bool {
        self.inner.is_greedy()
    }
}

/// An engine of the first of some stages, and the most steps that were in flight at once.
fn staged_engine(num_stages: usize, limits: EngineLimits) -> (Engine, Arc<Mutex<usize>>) {
    let most_in_flight = Arc::new(Mutex::new(0));
    let inner = staged_in(params(), limits.tables, Stage { num_stages, is_last: false });
    let watching =
        Watching { inner, in_flight: VecDeque::new(), most_in_flight: Arc::clone(&most_in_flight) };
    (engine_of(watching, &["ab", "xyz"], limits), most_in_flight)
}

#[test]
fn as_many_steps_are_in_flight_as_there_are_stages() {
    let requests: Vec<Request> = (0..12).map(|idx| request(idx, 5, 2, 20)).collect();
    let (expect, plain) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
    for num_stages in [1, 2, 3, 4] {
        let (mut engine, most_in_flight) = staged_engine(num_stages, roomy());
        let (actual, stats) = run(&mut engine, &requests);
        assert_eq!(actual, expect);
        assert_eq!(*most_in_flight.lock().unwrap(), num_stages);
        // A set is a part of what runs.
        assert!(stats.peak_rows <= plain.peak_rows.div_ceil(num_stages), "{stats:?}");
        // One that was given up leaves nothing behind.
        let stopped =
            engine.run(&mut |_| Some(requests[0].clone()).into(), &mut |_| ControlFlow::Break(()), &|| false);
        assert_eq!(stopped.unwrap().end, RunEnd::Stopped);
        assert_eq!(run(&mut engine, &requests).0, expect);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_text_depends_on_the_number_of_stages(
        shapes in prop::collection::vec((1_usize..15, 0_u32..5, 0_u32..40), 1..10),
        max_num_seqs in 1_usize..16,
        max_prefill_tokens in 1_usize..50,
        num_blocks in 14_usize..80,
        num_host_blocks in 0_usize..60,
        num_stages in 1_usize..5,
        drafts in any::<bool>(),
        tables in tables(),
    ) {
        let num_blocks = num_blocks * tables.len();
        let requests: Vec<Request> = shapes
            .iter()
            .enumerate()
            .map(|(idx, &(prompt_len, num, max_new))| request(idx as u64, prompt_len, num, max_new))
            .collect();
        let (expect, _) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
        let limits = EngineLimits { num_host_blocks, tables, ..limits(max_num_seqs, max_prefill_tokens, num_blocks) };
        let (mut engine, _) = staged_engine(num_stages, limits);
        if drafts {
            engine = engine.with_speculation();
        }
        prop_assert_eq!(run(&mut engine, &requests).0, expect);
    }
}
