use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use model_core::{BlockId, DecodeBatch, ModelError, PrefillBatch};
use proptest::prelude::*;
use sampling::{CpuSampler, FinishReason, SamplingParams};
use tch::Tensor;

use super::*;
use crate::host_runner::{Backend, HostRunner};

const BLOCK_SIZE_TOKENS: usize = 4;
const VOCAB_SIZE: usize = 40;
const PADDED_VOCAB_SIZE: usize = 48;
const EOS: u32 = 39;

/// Logits are a hash of the token history, which it reads back from its cache through the block tables.
#[derive(Default)]
struct FakeModel {
    cache: HashMap<(BlockId, usize), u32>,
}

impl FakeModel {
    fn write(&mut self, table: &[BlockId], pos: usize, token: u32) {
        self.cache.insert((table[pos / BLOCK_SIZE_TOKENS], pos % BLOCK_SIZE_TOKENS), token);
    }

    fn logits(&self, table: &[BlockId], len_tokens: usize) -> Vec<f32> {
        let history: Vec<u32> = (0..len_tokens)
            .map(|pos| self.cache[&(table[pos / BLOCK_SIZE_TOKENS], pos % BLOCK_SIZE_TOKENS)])
            .collect();
        (0..PADDED_VOCAB_SIZE)
            .map(|id| {
                let mut hasher = DefaultHasher::new();
                (&history, id).hash(&mut hasher);
                (hasher.finish() % 1000) as f32 * 0.004
            })
            .collect()
    }
}

impl Backend for FakeModel {
    fn prefill(&mut self, batch: &PrefillBatch) -> Result<Tensor, ModelError> {
        let bounds: Vec<usize> = batch.cu_seqlens.iter().map(|&bound| bound as usize).collect();
        let mut rows = Vec::new();
        for (table, bounds) in batch.block_tables.iter().zip(bounds.windows(2)) {
            let prompt = &batch.tokens[bounds[0]..bounds[1]];
            for (pos, &token) in prompt.iter().enumerate() {
                self.write(table, pos, token);
            }
            rows.push(self.logits(table, prompt.len()));
        }
        Ok(Tensor::from_slice2(&rows))
    }

    fn decode(&mut self, batch: &DecodeBatch) -> Result<Tensor, ModelError> {
        for (row, table) in batch.block_tables.iter().enumerate() {
            self.write(table, batch.context_lens[row] as usize, batch.tokens[row]);
        }
        let rows: Vec<Vec<f32>> = batch
            .block_tables
            .iter()
            .zip(&batch.context_lens)
            .map(|(table, &context_len)| self.logits(table, context_len as usize + 1))
            .collect();
        Ok(Tensor::from_slice2(&rows))
    }

    fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) -> Result<(), ModelError> {
        for &(src, dst) in copies {
            for offset in 0..BLOCK_SIZE_TOKENS {
                if let Some(&token) = self.cache.get(&(src, offset)) {
                    self.cache.insert((dst, offset), token);
                }
            }
        }
        Ok(())
    }
}

/// Token `id` spells the letter at `id % 26`.
struct Letters;

impl TokenBytes for Letters {
    fn bytes(&self, id: u32) -> &[u8] {
        let idx = id as usize % 26;
        &b"abcdefghijklmnopqrstuvwxyz"[idx..=idx]
    }
}

fn limits(max_num_seqs: usize, max_prefill_tokens: usize, num_blocks: usize) -> EngineLimits {
    EngineLimits { max_num_seqs, max_prefill_tokens, num_blocks, block_size_tokens: BLOCK_SIZE_TOKENS }
}

fn roomy() -> EngineLimits {
    limits(64, 1000, 1000)
}

fn params() -> SamplingParams {
    SamplingParams {
        use_greedy: false,
        temperature: 1.0,
        top_k: None,
        top_p: Some(0.9),
        repetition_penalty: 1.2,
        compute_logprob: true,
    }
}

fn engine(params: SamplingParams, end_strings: &[&str], limits: EngineLimits) -> Engine {
    engine_ahead(params, end_strings, limits, 0)
}

fn engine_ahead(
    params: SamplingParams,
    end_strings: &[&str],
    limits: EngineLimits,
    run_ahead: usize,
) -> Engine {
    let end_strings: Vec<String> = end_strings.iter().map(|&string| string.to_owned()).collect();
    let stop = StopConditions::resolve(&end_strings, &[EOS], |_| None).unwrap();
    let sampler = CpuSampler::new(params, VOCAB_SIZE, 99, stop.end_token_ids().to_vec(), 0).unwrap();
    let runner = HostRunner::new(Box::new(FakeModel::default()), Box::new(sampler));
    Engine {
        runner: Box::new(runner.with_run_ahead(run_ahead)),
        stop,
        token_bytes: Arc::new(Letters),
        limits,
    }
}

fn request(sample_idx: u64, prompt_len: usize, num_responses: u32, max_new_tokens: u32) -> Request {
    let prompt = (0..prompt_len as u64).map(|pos| ((pos * 7 + sample_idx * 3) % 38) as u32).collect();
    Request { sample_idx, prompt, num_responses, max_new_tokens }
}

fn run(engine: &mut Engine, requests: &[Request]) -> (BTreeMap<(u64, u32), Completion>, RunStats) {
    let mut input = requests.iter().cloned();
    let mut completions = BTreeMap::new();
    let stats = engine
        .run(
            &mut |_| input.next().into(),
            &mut |completion| {
                let key = (completion.sample_idx, completion.response_idx);
                assert!(completions.insert(key, completion).is_none(), "{key:?} came twice");
                ControlFlow::Continue(())
            },
            &|| false,
        )
        .unwrap();
    assert_eq!(stats.end, RunEnd::Finished);
    (completions, stats)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_text_of_a_sample_does_not_depend_on_scheduling(
        shapes in prop::collection::vec((1_usize..15, 0_u32..5, 0_u32..12), 1..10),
        max_num_seqs in 1_usize..16,
        max_prefill_tokens in 1_usize..50,
        num_blocks in 8_usize..60,
        rotate_by in 0_usize..10,
        run_ahead in 0_usize..4,
    ) {
        let requests: Vec<Request> = shapes
            .iter()
            .enumerate()
            .map(|(idx, &(prompt_len, num, max_new))| request(idx as u64, prompt_len, num, max_new))
            .collect();
        let (expect, _) = run(&mut engine(params(), &["ab", "xyz"], roomy()), &requests);
        let num_expected: u32 = requests.iter().map(|request| request.num_responses).sum();
        prop_assert_eq!(expect.len(), num_expected as usize);

        let mut shuffled = requests.clone();
        shuffled.rotate_left(rotate_by % requests.len());
        let tight_limits = limits(max_num_seqs, max_prefill_tokens, num_blocks);
        let mut tight = engine_ahead(params(), &["ab", "xyz"], tight_limits, run_ahead);
        let (actual, stats) = run(&mut tight, &shuffled);
        prop_assert!(stats.peak_rows <= max_num_seqs);
        prop_assert_eq!(&actual, &expect);
        // The same engine again: nothing is left over from the run before.
        prop_assert_eq!(&run(&mut tight, &requests).0, &expect);
    }
}

#[test]
fn a_response_does_not_depend_on_how_many_there_are() {
    let (many, _) = run(&mut engine(params(), &[], roomy()), &[request(5, 9, 6, 10)]);
    let (one, _) = run(&mut engine(params(), &[], roomy()), &[request(5, 9, 1, 10)]);
    assert_eq!(one[&(5, 0)], many[&(5, 0)]);
    assert!((1..6).any(|response_idx| many[&(5, response_idx)].token_ids != many[&(5, 0)].token_ids));
}

#[test]
fn stop_conditions_end_responses_with_their_tokens_kept() {
    let requests: Vec<Request> = (0..40).map(|idx| request(idx, 3, 4, 30)).collect();
    let (completions, stats) = run(&mut engine(params(), &["a", "bc"], roomy()), &requests);
    let mut num_of = HashMap::new();
    for completion in completions.values() {
        *num_of.entry(completion.finish_reason).or_insert(0) += 1;
        let text: Vec<u8> = completion.token_ids.iter().flat_map(|&id| Letters.bytes(id)).copied().collect();
        let ends_by_string = text.ends_with(b"a") || text.ends_with(b"bc");
        match completion.finish_reason {
            FinishReason::Eos => assert_eq!(completion.token_ids.last(), Some(&EOS)),
            FinishReason::EndString => assert!(ends_by_string),
            FinishReason::Length => assert!(completion.token_ids.len() == 30 && !ends_by_string),
        }
        assert_eq!(completion.logprobs.as_ref().map(Vec::len), Some(completion.token_ids.len()));
        assert!(!completion.token_ids[..completion.token_ids.len() - 1].contains(&EOS));
    }
    assert_eq!(num_of.len(), 3, "all three reasons occur: {num_of:?}");
    let num_tokens: usize = completions.values().map(|completion| completion.token_ids.len()).sum();
    assert_eq!(stats.generated_tokens, num_tokens as u64);
    assert_eq!(stats.prompt_tokens, 40 * 3);
}

#[test]
fn greedy_computes_one_response_and_repeats_it() {
    let greedy = SamplingParams { use_greedy: true, ..params() };
    let (completions, stats) =
        run(&mut engine(greedy, &[], roomy()), &[request(0, 5, 3, 8), request(1, 2, 2, 0)]);
    let token_ids = &completions[&(0, 0)].token_ids;
    assert_eq!(stats.generated_tokens, token_ids.len() as u64);
    assert!((1..3).all(|response_idx| completions[&(0, response_idx)].token_ids == *token_ids));
    assert!((0..2).all(|response_idx| completions[&(1, response_idx)].token_ids.is_empty()));
}

#[test]
fn requests_are_fetched_only_when_they_can_start() {
    let mut engine = engine(params(), &[], limits(4, 1000, 1000));
    let num_fetched = std::cell::Cell::new(0);
    let num_completed = std::cell::Cell::new(0);
    let mut next_request = |_| {
        num_fetched.set(num_fetched.get() + 1);
        assert!(num_fetched.get() - num_completed.get() <= 5, "more than the seats are in flight");
        (num_fetched.get() <= 30).then(|| request(num_fetched.get(), 4, 1, 9)).into()
    };
    let mut on_completion = |_| {
        num_completed.set(num_completed.get() + 1);
        ControlFlow::Continue(())
    };
    engine.run(&mut next_request, &mut on_completion, &|| false).unwrap();
    assert_eq!((num_fetched.get(), num_completed.get()), (31, 30));
}

#[test]
fn requests_may_come_later() {
    let requests: Vec<Request> = (0..9).map(|n| request(n, 3 + n as usize, 2, 7)).collect();
    let (expect, _) = run(&mut engine(params(), &["ab"], roomy()), &requests);
    let mut input = requests.into_iter();
    let (mut num_asked, mut num_idle) = (0, 0);
    let mut next_request = |activity| {
        num_asked += 1;
        num_idle += u32::from(activity == Activity::Idle);
        // Long enough for everything before to end.
        if num_asked % 40 == 0 { input.next().into() } else { Supply::Later }
    };
    let mut completions = BTreeMap::new();
    let mut on_completion = |completion: Completion| {
        completions.insert((completion.sample_idx, completion.response_idx), completion);
        ControlFlow::Continue(())
    };
    let stats =
        engine(params(), &["ab"], roomy()).run(&mut next_request, &mut on_completion, &|| false).unwrap();
    assert_eq!((stats.end, num_idle > 9), (RunEnd::Finished, true));
    assert_eq!(completions, expect);
}

#[test]
fn a_run_can_be_stopped_from_both_ends() {
    let mut engine = engine(params(), &[], roomy());
    let mut num_completed = 0;
    let mut on_completion = |_| {
        num_completed += 1;
        ControlFlow::Break(())
    };
    let stats =
        engine.run(&mut |_| Supply::Request(request(0, 4, 2, 9)), &mut on_completion, &|| false).unwrap();
    assert_eq!((stats.end, num_completed), (RunEnd::Stopped, 1));

    let mut fail = |_| -> ControlFlow<()> { panic!("nothing was started") };
    let stats = engine.run(&mut |_| Supply::Request(request(0, 4, 2, 9)), &mut fail, &|| true).unwrap();
    assert_eq!((stats.end, stats.num_prefill_steps), (RunEnd::Stopped, 0));
}

#[test]
fn errors_name_the_sample() {
    let check = |request: Request| {
        let mut requests = Some(request);
        engine(params(), &[], limits(4, 100, 3))
            .run(&mut |_| requests.take().into(), &mut |_| ControlFlow::Continue(()), &|| false)
            .unwrap_err()
            .to_string()
    };
    insta::assert_snapshot!(check(request(3, 10, 2, 20)), @"sample 3 needs 9 KV blocks of 4 tokens (10 prompt and up to 20 new tokens), the cache has 3");
    insta::assert_snapshot!(check(request(4, 0, 1, 5)), @"sample 4 has an empty prompt");
}
