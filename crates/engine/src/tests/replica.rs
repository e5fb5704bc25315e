//! Ranks that follow: they do what the leading one does, and know what it knows.

use std::sync::mpsc::{Receiver, Sender, channel};

use model_core::LostRank;

use super::*;
use crate::replica::{Followers, LeadingExecutor, follow};
use crate::stage_tokens::{ReceivingSampler, SendingSampler, TokenPath};

struct ToAll(Vec<Sender<Vec<u8>>>);

impl Followers for ToAll {
    fn tell(&mut self, message: &[u8]) -> Result<(), LostRank> {
        // One that has failed says so itself.
        self.0.iter().for_each(|to| drop(to.send(message.to_vec())));
        Ok(())
    }
}

/// Tokens from the last stage.
struct Path {
    to: Vec<Sender<Vec<u8>>>,
    from: Option<Receiver<Vec<u8>>>,
}

impl TokenPath for Path {
    fn send(&mut self, message: &[u8]) -> Result<(), LostRank> {
        self.to.iter().for_each(|to| drop(to.send(message.to_vec())));
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>, LostRank> {
        let from = self.from.as_ref().unwrap();
        from.recv().map_err(|_| LostRank("the last stage has ended".to_owned()))
    }
}

fn executor(stage: Stage, sampler: Box<dyn TokenSampler>) -> Box<dyn Executor> {
    let mut executor = HostExecutor::new(Box::new(FakeModel::default()), sampler, stage);
    executor.set_vocabulary(vocabulary());
    Box::new(executor)
}

/// Answers requests with a model of some stages, each of which has the whole fake model.
fn staged_answers(num_stages: usize, limits: EngineLimits, requests: &[Request]) -> Completions {
    std::thread::scope(|scope| {
        let (mut orders, mut tokens, mut receivers) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..num_stages - 1 {
            let (to, from) = channel();
            tokens.push(to);
            receivers.push(from);
        }
        let mut receivers = receivers.into_iter();
        let receiving = |from| {
            Box::new(ReceivingSampler {
                path: Box::new(Path { to: Vec::new(), from: Some(from) }),
                is_greedy: false,
            })
        };
        let of_first = receivers.next();
        let mut followers = Vec::new();
        for stage in 1..num_stages {
            let (to, from) = channel();
            orders.push(to);
            let at = Stage { num_stages, is_last: stage == num_stages - 1 };
            let sampler: Box<dyn TokenSampler> = match at.is_last {
                true => {
                    let path = Box::new(Path { to: std::mem::take(&mut tokens), from: None });
                    Box::new(SendingSampler { own: Box::new(sampler(params())), path })
                }
                false => receiving(receivers.next().unwrap()),
            };
            followers.push(scope.spawn(move || {
                let mut next = || from.recv().map_err(|_| LostRank("the first stage has ended".to_owned()));
                follow(executor(at, sampler).as_mut(), &mut next).map_err(|error| error.to_string())
            }));
        }
        let first = Stage { num_stages, is_last: num_stages == 1 };
        let own: Box<dyn TokenSampler> = match of_first {
            Some(from) => receiving(from),
            None => Box::new(sampler(params())),
        };
        let leading = LeadingExecutor::new(executor(first, own), Box::new(ToAll(orders)));
        let mut engine = engine_of(leading, &["ab", "xyz"], limits);
        let completions = run(&mut engine, requests).0;
        drop(engine);
        followers.into_iter().for_each(|rank| assert_eq!(rank.join().unwrap(), Ok(())));
        completions
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_number_of_stages_writes_the_same(
        shapes in prop::collection::vec((1_usize..15, 0_u32..4, 0_u32..30), 1..8),
        max_num_seqs in 1_usize..12,
        max_prefill_tokens in 1_usize..50,
        num_blocks in 14_usize..60,
        num_stages in 1_usize..5,
    ) {
        let requests: Vec<Request> = shapes
            .iter()
            .enumerate()
            .map(|(idx, &(prompt_len, num, max_new))| with_own_rules(request(idx as u64, prompt_len, num, max_new)))
            .collect();
        let (expect, _) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
        let limits = limits(max_num_seqs, max_prefill_tokens, num_blocks);
        prop_assert_eq!(staged_answers(num_stages, limits, &requests), expect);
    }
}

#[test]
fn a_step_that_cannot_be_read_is_told() {
    let mut messages = vec![b"{}".to_vec()];
    let error = follow(&mut host(params()), &mut || Ok(messages.remove(0))).unwrap_err();
    assert!(error.to_string().starts_with("a step from another rank cannot be read ("), "{error}");
    let mut gone = || Err(LostRank("rank 0 has ended".to_owned()));
    assert_eq!(follow(&mut host(params()), &mut gone).unwrap_err().to_string(), "rank 0 has ended");
}
