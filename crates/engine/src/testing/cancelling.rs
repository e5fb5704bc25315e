//! A caller that cancels responses while they run.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::Completions;
use crate::{Cancellation, Completion, Engine, Request, RunStats};

/// Whether a response makes those behind it superfluous.
fn stops(completion: &Completion) -> bool {
    completion.token_ids.iter().sum::<u32>() % 3 == 0
}

/// Runs and cancels what is behind the first stop of each sample, `late` completions after it is known.
pub(crate) fn run_cancelling(
    engine: &mut Engine,
    requests: &[Request],
    late: usize,
) -> (Completions, RunStats) {
    let cancellations = engine.cancellations();
    let completions = RefCell::new(Completions::new());
    let waiting = RefCell::new(VecDeque::new());
    let mut input = requests.iter().cloned();
    let stats = engine.run(
        &mut |_| input.next().into(),
        &mut |completion| {
            let key = (completion.sample_idx, completion.response_idx);
            if stops(&completion) {
                let (sample_idx, last_wanted) = key;
                waiting.borrow_mut().push_back(Cancellation { sample_idx, last_wanted });
            }
            assert!(completions.borrow_mut().insert(key, completion).is_none(), "{key:?} came twice");
            while waiting.borrow().len() > late {
                waiting.borrow_mut().pop_front().into_iter().for_each(|it| cancellations.cancel(it));
            }
            ControlFlow::Continue(())
        },
        &|| false,
    );
    (completions.into_inner(), stats.unwrap())
}

/// What is wanted of all responses: those up to the first stop of their sample.
pub(crate) fn wanted(all: &Completions) -> Completions {
    let first_stop = |sample_idx| {
        let of_sample = all.range((sample_idx, 0)..=(sample_idx, u32::MAX));
        of_sample.filter(|(_, completion)| stops(completion)).map(|(key, _)| key.1).next()
    };
    let is_wanted = |key: &(u64, u32)| first_stop(key.0).is_none_or(|stop| key.1 <= stop);
    all.iter().filter(|(key, _)| is_wanted(key)).map(|(key, completion)| (*key, completion.clone())).collect()
}
