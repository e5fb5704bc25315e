//! Weights: every tensor the config implies, checked, converted and packed for the backend.
//!
//! Names are the canonical Megatron-Core ones that [`TensorSource`] promises.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use nemo_format::{DType, FormatError, Region, TensorMeta, TensorSource};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::backend::plain::tensor_from_bytes;
use crate::config::{ModelConfig, Normalization, PositionEmbedding};
use crate::kernels::{Kernels, Linear, LinearRole, LinearSource, Norm, WeightBytes};

const WORD_EMBEDDINGS: &str = "model.embedding.word_embeddings.weight";
const POSITION_EMBEDDINGS: &str = "model.embedding.position_embeddings.weight";
const OUTPUT_LAYER: &str = "model.output_layer.weight";
/// How many unknown tensors an error names.
const MAX_NAMED: usize = 8;

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Norm,
    pub(crate) qkv: Linear,
    pub(crate) proj: Linear,
    pub(crate) pre_mlp_norm: Norm,
    pub(crate) fc1: Linear,
    pub(crate) fc2: Linear,
}

/// The whole model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[padded_vocab_size, hidden_size]`.
    pub(crate) word_embeddings: Tensor,
    /// `[num_positions, hidden_size]`.
    pub(crate) position_embeddings: Option<Tensor>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    pub(crate) output: Linear,
    /// Numbers stored in the checkpoint's tensors.
    pub(crate) num_params: u64,
}

impl Weights {
    pub(crate) fn load(
        config: &ModelConfig,
        source: &dyn TensorSource,
        kernels: &dyn Kernels,
    ) -> Result<Self, ModelError> {
        let reader = Reader { config, source, kernels, used: Mutex::new(BTreeSet::new()) };
        let hidden = config.hidden_size as u64;
        let padded_vocab_size = reader.num_rows(WORD_EMBEDDINGS)?;
        let word_embeddings = reader.table(WORD_EMBEDDINGS, padded_vocab_size)?;
        let position_embeddings = match config.position_embedding {
            PositionEmbedding::Rope(_) => None,
            PositionEmbedding::LearnedAbsolute => {
                Some(reader.table(POSITION_EMBEDDINGS, reader.num_rows(POSITION_EMBEDDINGS)?)?)
            }
        };
        let layers =
            (0..config.num_layers).into_par_iter().map(|idx| reader.layer(idx)).collect::<Result<_, _>>()?;
        let final_norm = reader.norm("model.decoder.final_layernorm.", ["weight", "bias"])?;
        let output = if config.share_embeddings_and_output_weights {
            kernels.tie_output(&word_embeddings)?
        } else {
            reader.linear(OUTPUT_LAYER, None, [padded_vocab_size, hidden], LinearRole::Plain)?
        };
        let num_params = reader.check_all_used()?;
        Ok(Self { word_embeddings, position_embeddings, layers, final_norm, output, num_params })
    }

    /// Memory that the tensors take; a tensor that two places share counts once.
    pub(crate) fn size_bytes(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let packed: u64 = self.linears().map(packed_bytes).sum();
        packed
            + self
                .tensors()
                .filter(|tensor| seen.insert(tensor.data_ptr() as usize))
                .map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64)
                .sum::<u64>()
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let of_layers =
            self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.proj, &layer.fc1, &layer.fc2]);
        of_layers.chain(std::iter::once(&self.output))
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let of_layers = self.layers.iter().flat_map(|layer| {
            let norms = [&layer.input_norm, &layer.pre_mlp_norm].into_iter().flat_map(norm_tensors);
            norms
                .chain([&layer.qkv, &layer.proj, &layer.fc1, &layer.fc2].into_iter().flat_map(linear_tensors))
        });
        std::iter::once(&self.word_embeddings)
            .chain(&self.position_embeddings)
            .chain(of_layers)
            .chain(norm_tensors(&self.final_norm))
            .chain(linear_tensors(&self.output))
    }
}

fn linear_tensors(linear: &Linear) -> impl Iterator<Item = &Tensor> {
    match linear {
        Linear::Tensors { weight, bias } => Some(weight).into_iter().chain(bias),
        Linear::Packed(_) => None.into_iter().chain(&None),
    }
}

fn packed_bytes(linear: &Linear) -> u64 {
    if let Linear::Packed(packed) = linear { packed.size_bytes() as u64 } else { 0 }
}

fn norm_tensors(norm: &Norm) -> impl Iterator<Item = &Tensor> {
    std::iter::once(&norm.gain).chain(&norm.bias)
}

/// Reads tensors by name and remembers which, so that none is left out silently.
struct Reader<'a> {
    config: &'a ModelConfig,
    source: &'a dyn TensorSource,
    kernels: &'a dyn Kernels,
    used: Mutex<BTreeSet<String>>,
}

impl Reader<'_> {
    fn layer(&self, layer_idx: usize) -> Result<Layer, ModelError> {
        let config = self.config;
        let [hidden, ffn, fc1, qkv, query] = [
            config.hidden_size,
            config.ffn_hidden_size,
            config.fc1_size(),
            config.qkv_size(),
            config.query_size(),
        ]
        .map(|size| size as u64);
        let prefix = format!("model.decoder.layers.{layer_idx}.");
        let linear = |module: &str, has_bias: bool, shape, role| {
            let bias = has_bias.then(|| format!("{prefix}{module}.bias"));
            self.linear(&format!("{prefix}{module}.weight"), bias.as_deref(), shape, role)
        };
        let norm =
            |module: &str| self.norm(&format!("{prefix}{module}."), ["layer_norm_weight", "layer_norm_bias"]);
        Ok(Layer {
            input_norm: norm("self_attention.linear_qkv")?,
            qkv: linear("self_attention.linear_qkv", config.qkv_bias, [qkv, hidden], LinearRole::Plain)?,
            proj: linear("self_attention.linear_proj", config.bias, [hidden, query], LinearRole::Plain)?,
            pre_mlp_norm: norm("mlp.linear_fc1")?,
            fc1: linear(
                "mlp.linear_fc1",
                config.bias,
                [fc1, hidden],
                LinearRole::FirstOfMlp(config.activation),
            )?,
            fc2: linear("mlp.linear_fc2", config.bias, [hidden, ffn], LinearRole::Plain)?,
        })
    }

    fn linear(
        &self,
        weight: &str,
        bias: Option<&str>,
        shape: [u64; 2],
        role: LinearRole,
    ) -> Result<Linear, ModelError> {
        let (weight_bytes, weight_dtype) = self.bytes(weight, &shape)?;
        let bias_shape = [shape[0]];
        let bias = bias.map(|name| self.bytes(name, &bias_shape)).transpose()?;
        let source = LinearSource {
            weight: WeightBytes { bytes: &weight_bytes, dtype: weight_dtype, shape: &shape },
            bias: bias.as_ref().map(|(bytes, dtype)| WeightBytes {
                bytes,
                dtype: *dtype,
                shape: &bias_shape,
            }),
        };
        self.kernels.pack_linear(source, role)
    }

    fn norm(&self, prefix: &str, [weight, bias]: [&str; 2]) -> Result<Norm, ModelError> {
        let shape = [self.config.hidden_size as u64];
        let stored_gain = self.tensor(&format!("{prefix}{weight}"), &shape, Kind::Float)?;
        let gain = if self.config.zero_centered_gamma { stored_gain.f_add_scalar(1.0)? } else { stored_gain };
        let bias = match self.config.normalization {
            Normalization::RmsNorm => None,
            Normalization::LayerNorm => Some(self.tensor(&format!("{prefix}{bias}"), &shape, Kind::Float)?),
        };
        Ok(Norm {
            normalization: self.config.normalization,
            gain,
            bias,
            epsilon: self.config.layernorm_epsilon,
        })
    }

    fn table(&self, name: &str, num_rows: u64) -> Result<Tensor, ModelError> {
        self.tensor(name, &[num_rows, self.config.hidden_size as u64], self.kernels.precision().kind())
    }

    fn tensor(&self, name: &str, shape: &[u64], kind: Kind) -> Result<Tensor, ModelError> {
        let (bytes, dtype) = self.bytes(name, shape)?;
        tensor_from_bytes(WeightBytes { bytes: &bytes, dtype, shape }, kind)
    }

    fn bytes(&self, name: &str, shape: &[u64]) -> Result<(Cow<'_, [u8]>, DType), ModelError> {
        let meta = self.meta(name)?;
        if meta.shape != shape {
            return Err(ModelError::ShapeMismatch {
                name: name.to_owned(),
                expected: shape.to_vec(),
                actual: meta.shape.clone(),
            });
        }
        if !matches!(meta.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16) {
            return Err(ModelError::NotFloat { name: name.to_owned(), actual: meta.dtype.name() });
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        if let Some(mapped) = self.source.mapped_bytes(name) {
            return Ok((Cow::Borrowed(mapped), meta.dtype));
        }
        let num_bytes = meta.size_bytes().and_then(|size| usize::try_from(size).ok()).unwrap_or(usize::MAX);
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(num_bytes).map_err(|_| {
            ModelError::OutOfMemory(tch::TchError::Torch(format!(
                "a buffer of {num_bytes} bytes for `{name}`"
            )))
        })?;
        buffer.resize(num_bytes, 0);
        self.source.read(name, &Region::whole(shape), &mut buffer)?;
        Ok((Cow::Owned(buffer), meta.dtype))
    }

    fn meta(&self, name: &str) -> Result<&TensorMeta, ModelError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        Ok(self.source.meta(name).ok_or_else(missing)?)
    }

    fn num_rows(&self, name: &str) -> Result<u64, ModelError> {
        Ok(self.meta(name)?.shape.first().copied().unwrap_or(0))
    }

    /// The number of parameters read.
    fn check_all_used(&self) -> Result<u64, ModelError> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unknown = self
            .source
            .names()
            .filter(|name| !used.contains(*name) && !is_not_a_weight(name))
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>();
        if !unknown.is_empty() {
            let count = unknown.len();
            unknown.truncate(MAX_NAMED);
            return Err(ModelError::UnknownTensors { count, names: unknown });
        }
        Ok(used.iter().filter_map(|name| self.source.meta(name)?.num_elems()).sum())
    }
}

/// Left over by training or recomputed here: FP8 state, stored rotary frequencies, a reward model's head.
fn is_not_a_weight(name: &str) -> bool {
    name.ends_with("_extra_state")
        || name.ends_with("rotary_pos_emb.inv_freq")
        || name.starts_with("model.rm_head.")
}
