//! The engine as a library: open a checkpoint, load its model on the CPU, answer prompts and print their tokens and text.
//!
//! ```sh
//! cargo run -p engine --example generate                                  # a dummy checkpoint of the repository
//! cargo run -p engine --example generate model.nemo 'Hello' 'What is 2+2?'
//! ```
//!
//! Everything here is the public surface of `nemo-format`, `data`, `model-core`, `sampling` and `engine`. What the program
//! `aligner-gen` adds is configuration, files, ranks and reports.

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{Tokenizer, TokenizerSpec, open_tokenizer};
use engine::{Completion, Engine, EngineLimits, Foresight, Request};
use model_core::{
    AttentionSwitches, BLOCK_SIZE_TOKENS, Backend, Isa, LoadOptions, ModelConfig, RawModelConfig,
};
use model_spec::{Float, Numerics};
use nemo_format::Checkpoint;
use sampling::{
    CpuSampler, RawSamplingParams, RowRules, SamplingParams, SamplingRules, StopConditions, TokenBytes,
};
use tch::Device;

type AnyError = Box<dyn Error + Send + Sync>;

/// Sequences decoded together.
const MAX_NUM_SEQS: usize = 8;
/// KV blocks: room for every sequence up to 16 blocks of tokens.
const NUM_BLOCKS: usize = MAX_NUM_SEQS * 16;
const MAX_NEW_TOKENS: u32 = 12;
const NUM_RESPONSES: u32 = 2;
const SEED: u64 = 1234;

/// One response: which sample and response it is, its tokens, and their text.
struct Response {
    completion: Completion,
    text: String,
}

/// The bytes of each token, which the engine needs to find end strings in a response.
struct TokenTable(Vec<Vec<u8>>);

impl TokenTable {
    fn new(tokenizer: &dyn Tokenizer) -> Result<Self, AnyError> {
        let num_tokens = u32::try_from(tokenizer.vocab_size())?;
        Ok(Self((0..num_tokens).map(|id| tokenizer.token_bytes(id)).collect::<Result<_, _>>()?))
    }

    fn text(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl TokenBytes for TokenTable {
    fn bytes(&self, id: u32) -> &[u8] {
        self.0.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

/// Loads the model in fp32 on the CPU and puts an engine around it.
fn open_engine(
    checkpoint: &Checkpoint,
    tokenizer: &dyn Tokenizer,
    table: Arc<TokenTable>,
) -> Result<Engine, AnyError> {
    let raw: RawModelConfig = checkpoint.model_config().deserialize_into()?;
    let options = LoadOptions {
        numerics: Numerics::uniform(Float::Fp32),
        backend: Backend::Fused,
        device: Device::Cpu,
        attention: AttentionSwitches::default(),
        isa: Isa::detect(),
    };
    let model = model_core::load_model(ModelConfig::try_from(raw)?, checkpoint.tensors(), options)?;

    let params = SamplingParams::try_from(RawSamplingParams {
        use_greedy: false,
        temperature: 0.8,
        top_k: 40,
        top_p: 1.0,
        repetition_penalty: 1.0,
        min_p: 0.0,
        compute_logprob: false,
        top_logprobs: 0,
    })?;
    let eos: Vec<u32> = tokenizer.special().eos.into_iter().collect();
    let stop = StopConditions::resolve(&[], &eos, |_| None)?;
    let min_length = 1;
    let sampler = CpuSampler::new(SamplingRules {
        row: RowRules {
            params,
            seed: SEED,
            end_token_ids: stop.end_token_ids().to_vec(),
            min_length,
            structure: None,
        },
        vocab_size: tokenizer.vocab_size(),
        bias: Vec::new(),
    })?;

    let limits = EngineLimits {
        max_num_seqs: MAX_NUM_SEQS,
        max_prefill_tokens: 512,
        num_blocks: NUM_BLOCKS,
        num_host_blocks: 0,
        block_size_tokens: BLOCK_SIZE_TOKENS,
        tables: model_spec::KvTables::ONE,
    };
    Ok(Engine::new(model, Box::new(sampler), stop.with_min_length(min_length), table, limits)?)
}

/// The responses to `prompts`, in the order of prompts and responses.
///
/// # Errors
/// When the checkpoint cannot be read, its model is not supported, or a prompt does not fit the KV cache.
fn generate(path: &Path, prompts: &[String]) -> Result<Vec<Response>, AnyError> {
    let checkpoint = Checkpoint::open(path)?;
    let section = checkpoint.model_config().get("tokenizer").ok_or("the checkpoint names no tokenizer")?;
    let spec: TokenizerSpec = section.deserialize_into()?;
    let tokenizer = open_tokenizer(&spec, &|reference: &str| Ok(checkpoint.artifact(reference)?))?;
    let table = Arc::new(TokenTable::new(tokenizer.as_ref())?);
    let mut engine = open_engine(&checkpoint, tokenizer.as_ref(), Arc::clone(&table))?;

    // The sample's index is part of the random key: the same prompt at another place gets another draw.
    let mut requests = Vec::new();
    for (prompt, sample_idx) in prompts.iter().zip(0..) {
        let prompt = tokenizer.encode(prompt)?;
        requests.push(Request {
            sample_idx,
            prompt,
            num_responses: NUM_RESPONSES,
            max_new_tokens: MAX_NEW_TOKENS,
            own: None,
            foresight: Foresight::default(),
        });
    }
    let mut requests = requests.into_iter();
    let mut responses = Vec::new();
    let mut keep = |completion: Completion| {
        responses.push(Response { text: table.text(&completion.token_ids), completion });
        ControlFlow::Continue(())
    };
    engine.run(&mut |_| requests.next().into(), &mut keep, &|| false)?;
    // Completions come in the order in which they end.
    responses.sort_by_key(|response| (response.completion.sample_idx, response.completion.response_idx));
    Ok(responses)
}

fn dummy_checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/dummy/tiny-llama.nemo")
}

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let path = args.next().map_or_else(dummy_checkpoint, PathBuf::from);
    let mut prompts: Vec<String> = args.collect();
    if prompts.is_empty() {
        prompts = vec!["Hello".to_owned(), "The sum of 2 and 3 is".to_owned()];
    }
    let mut out = std::io::stdout().lock();
    for Response { completion, text } in generate(&path, &prompts)? {
        let Completion { sample_idx, response_idx, token_ids, finish_reason, .. } = completion;
        let reason = finish_reason.as_str();
        writeln!(out, "sample {sample_idx}, response {response_idx} ({reason}): {token_ids:?} {text:?}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_gets_its_responses() -> Result<(), AnyError> {
        let prompts = ["Hello".to_owned(), "The sum of 2 and 3 is".to_owned(), "Hello".to_owned()];
        let responses = generate(&dummy_checkpoint(), &prompts)?;
        let keys: Vec<_> =
            responses.iter().map(|r| (r.completion.sample_idx, r.completion.response_idx)).collect();
        assert_eq!(keys, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
        for response in &responses {
            assert!((1..=MAX_NEW_TOKENS as usize).contains(&response.completion.token_ids.len()));
            assert!(!response.text.is_empty());
        }
        // The sample's index is part of the random key.
        assert_ne!(responses[0].completion.token_ids, responses[4].completion.token_ids);
        Ok(())
    }

    #[test]
    fn a_response_does_not_depend_on_the_other_prompts() -> Result<(), AnyError> {
        let prompts = ["Hello".to_owned(), "The sum of 2 and 3 is".to_owned()];
        let alone = generate(&dummy_checkpoint(), &prompts[..1])?;
        let together = generate(&dummy_checkpoint(), &prompts)?;
        for (a, b) in alone.iter().zip(&together) {
            assert_eq!(a.completion, b.completion);
        }
        Ok(())
    }
}
