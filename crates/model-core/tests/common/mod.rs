//! What the tests of whole models share: fixtures, weights in memory, and a generation loop without an engine.
#![expect(dead_code, reason = "each test binary uses its own part")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

pub(crate) mod fixtures;
pub(crate) mod ranks;
pub(crate) mod tiny;

use std::collections::BTreeMap;
use std::path::PathBuf;

use model_core::{
    AttentionSwitches, BLOCK_SIZE_TOKENS, Backend, Batch, BlockId, CausalLm, Isa, KvCache, LoadOptions,
    ModelConfig, ModelError, RawModelConfig, load_model,
};
use model_spec::{Float, Numerics, blocks_for};
use nemo_format::{DType, FormatError, Region, TensorMeta, TensorSource};
use tch::{Kind, Tensor};

/// A small model with rotary embedding and grouped queries.
pub(crate) const ROTARY: &str = "
num_layers: 2
hidden_size: 96
ffn_hidden_size: 160
num_attention_heads: 6
num_query_groups: 2
encoder_seq_length: 512
normalization: rmsnorm
bias: false
activation: fast-swiglu
position_embedding_type: rope
";

/// A small model with experts, of which one is for every token.
pub(crate) const EXPERTS: &str = "
num_layers: 1
hidden_size: 96
ffn_hidden_size: 160
num_attention_heads: 6
num_query_groups: 2
encoder_seq_length: 512
normalization: rmsnorm
bias: false
activation: fast-swiglu
position_embedding_type: rope
num_moe_experts: 6
moe_router_topk: 2
moe_ffn_hidden_size: 40
moe_shared_expert_intermediate_size: 56
moe_shared_expert_gate: true
";

/// A small model with learned positions and biases.
pub(crate) const LEARNED: &str = "
num_layers: 2
hidden_size: 96
ffn_hidden_size: 160
num_attention_heads: 6
encoder_seq_length: 512
activation: gelu
position_embedding_type: learned_absolute
";

pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(path)
}

/// Weights in memory, read by copying.
#[derive(Default)]
pub(crate) struct MemorySource(pub(crate) BTreeMap<String, (TensorMeta, Vec<u8>)>);

impl MemorySource {
    pub(crate) fn insert(&mut self, name: &str, shape: &[u64], values: &[f32]) {
        let meta = TensorMeta { dtype: DType::F32, shape: shape.to_vec() };
        assert_eq!(meta.num_elems(), Some(values.len() as u64), "{name}");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.insert(name.to_owned(), (meta, bytes));
    }

    pub(crate) fn from_safetensors(path: &str) -> Self {
        let bytes = std::fs::read(fixture(path)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::BF16 => DType::BF16,
                other => panic!("{name} is {other:?}"),
            };
            let shape = view.shape().iter().map(|&dim| dim as u64).collect();
            (name, (TensorMeta { dtype, shape }, view.data().to_vec()))
        });
        Self(tensors.collect())
    }

    /// The tensor in double precision.
    pub(crate) fn double(&self, name: &str) -> Tensor {
        let (meta, bytes) = self.0.get(name).unwrap_or_else(|| panic!("no {name}"));
        let shape: Vec<i64> = meta.shape.iter().map(|&dim| dim as i64).collect();
        Tensor::f_from_data_size(bytes, &shape, Kind::Float).unwrap().f_to_kind(Kind::Double).unwrap()
    }
}

impl TensorSource for MemorySource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        Some(&self.0.get(name)?.0)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let (meta, bytes) = self.0.get(name).unwrap();
        meta.check_region(name, region, dst.len())?;
        let elem_bytes = meta.dtype.size_bytes();
        let num_columns = meta.shape.get(1).map_or(1, |&dim| dim as usize);
        let across = region.ranges.get(1).map_or(0..1, |range| range.start as usize..range.end as usize);
        let mut taken = Vec::new();
        for row in region.ranges[0].start as usize..region.ranges[0].end as usize {
            let elems = row * num_columns + across.start..row * num_columns + across.end;
            taken.extend_from_slice(&bytes[elems.start * elem_bytes..elems.end * elem_bytes]);
        }
        dst.copy_from_slice(&taken);
        Ok(())
    }
}

/// Everything that is true of one backend is true of the other.
pub(crate) const BACKENDS: [Backend; 2] = [Backend::Plain, Backend::Fused];

/// A model and its cache; sequences get their blocks in a shuffled order.
pub(crate) struct Runner {
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) cache: KvCache,
    next_block: BlockId,
}

const NUM_BLOCKS: BlockId = 61;

impl Runner {
    pub(crate) fn new(
        config: ModelConfig,
        source: &dyn TensorSource,
        float: Float,
        backend: Backend,
    ) -> Result<Self, ModelError> {
        Self::with_numerics(config, source, Numerics::uniform(float), backend)
    }

    pub(crate) fn with_numerics(
        config: ModelConfig,
        source: &dyn TensorSource,
        numerics: Numerics,
        backend: Backend,
    ) -> Result<Self, ModelError> {
        tch::set_num_threads(1);
        let mut model = load_model(
            config,
            source,
            LoadOptions {
                numerics,
                backend,
                device: tch::Device::Cpu,
                attention: AttentionSwitches::default(),
                isa: Isa::detect(),
            },
        )?;
        let cache = model.new_cache(NUM_BLOCKS as usize)?;
        Ok(Self { model, cache, next_block: 0 })
    }

    /// Blocks for this many tokens: 7 is a generator modulo 61, so neighbours in a sequence are not neighbours here.
    pub(crate) fn blocks(&mut self, num_tokens: usize) -> Vec<BlockId> {
        let blocks = (0..blocks_for(num_tokens, BLOCK_SIZE_TOKENS) as BlockId)
            .map(|idx| (self.next_block + idx) * 7 % NUM_BLOCKS)
            .collect::<Vec<_>>();
        self.next_block = (self.next_block + blocks.len() as BlockId) % NUM_BLOCKS;
        blocks
    }

    /// The logits that the batch asks for, `[rows][vocab]`.
    pub(crate) fn forward(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        rows(&self.model.forward(batch, &mut self.cache).unwrap())
    }

    /// Logits after the last token of each prompt, `[sequences][vocab]`.
    pub(crate) fn prefill(&mut self, sequences: &[&[u32]], tables: &[Vec<BlockId>]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        for (tokens, table) in sequences.iter().zip(tables) {
            batch.push(tokens, 0, 1, table);
        }
        self.forward(&batch)
    }

    /// Logits after every token of one prompt, `[tokens][vocab]`.
    pub(crate) fn all_logits(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        batch.push(tokens, 0, tokens.len() as u32, &self.blocks(tokens.len()));
        self.forward(&batch)
    }

    /// Logits after one more token of each sequence: `(token, context_len, block table)`.
    pub(crate) fn decode(&mut self, steps: &[(u32, u32, Vec<BlockId>)]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        for (token, context_len, table) in steps {
            batch.push(&[*token], *context_len, 1, table);
        }
        self.forward(&batch)
    }

    /// The most likely continuation, with the cache.
    pub(crate) fn greedy(&mut self, prompt: &[u32], num_new: usize, vocab_size: usize) -> Vec<u32> {
        let table = self.blocks(prompt.len() + num_new);
        let mut logits = self.prefill(&[prompt], std::slice::from_ref(&table));
        let mut new_tokens = Vec::new();
        loop {
            new_tokens.push(argmax(&logits[0][..vocab_size]));
            if new_tokens.len() == num_new {
                return new_tokens;
            }
            let context_len = (prompt.len() + new_tokens.len() - 1) as u32;
            logits = self.decode(&[(new_tokens[new_tokens.len() - 1], context_len, table.clone())]);
        }
    }
}

pub(crate) fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
    assert_eq!(logits.kind(), Kind::Float);
    let (_, num_columns) = logits.size2().unwrap();
    let flat = torch_ext::view::f32_slice(logits, "logits").unwrap();
    flat.chunks(num_columns as usize).map(<[f32]>::to_vec).collect()
}

pub(crate) fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

pub(crate) fn max_difference(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    assert_eq!(left.len(), right.len());
    let pairs = left.iter().zip(right).flat_map(|(left, right)| {
        assert_eq!(left.len(), right.len());
        left.iter().zip(right)
    });
    pairs.map(|(left, right)| (left - right).abs()).fold(0.0, |max, difference| {
        assert!(difference.is_finite());
        f32::max(max, difference)
    })
}

pub(crate) fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

/// A `[sequences, rows, vocab]` golden file as rows of each sequence.
pub(crate) fn golden_logits(path: &str) -> Vec<Vec<Vec<f32>>> {
    let bytes = std::fs::read(fixture(path)).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    let shape: Vec<usize> = file.shape().iter().map(|&dim| dim as usize).collect();
    let values: Vec<f32> = file.into_vec().unwrap();
    let rows = values.chunks(shape[2]).map(<[f32]>::to_vec).collect::<Vec<_>>();
    rows.chunks(shape[1]).map(<[_]>::to_vec).collect()
}

/// Rows of token ids.
pub(crate) fn golden_ids(path: &str) -> Vec<Vec<i64>> {
    let bytes = std::fs::read(fixture(path)).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    let width = file.shape()[1] as usize;
    file.into_vec::<i64>().unwrap().chunks(width).map(<[i64]>::to_vec).collect()
}

pub(crate) fn config_of(yaml: &str) -> ModelConfig {
    let node = hydra_config::yaml::parse(yaml, "model_config.yaml").unwrap();
    node.deserialize_into::<RawModelConfig>().unwrap().try_into().unwrap()
}
