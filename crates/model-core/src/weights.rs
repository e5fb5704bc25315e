//! Weights: every tensor the config implies, checked, converted and packed for the backend.
//!
//! Names are the canonical Megatron-Core ones that [`TensorSource`] promises.

mod axis;
mod explain;
mod interleaved;
mod reader;

use nemo_format::TensorSource;
use rayon::prelude::*;
use tch::Tensor;

use self::axis::Axis;
use self::reader::Reader;
use crate::ModelError;
use crate::config::{Activation, BlockStyle, ModelConfig, PositionEmbedding};
use crate::kernels::{Kernels, Linear, LinearRole, Norm, tensor_bytes};

const WORD_EMBEDDINGS: &str = "model.embedding.word_embeddings.weight";
const POSITION_EMBEDDINGS: &str = "model.embedding.position_embeddings.weight";
const OUTPUT_WEIGHT: &str = "model.output_layer.weight";
const OUTPUT_BIAS: &str = "model.output_layer.bias";

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Norm,
    pub(crate) qkv: Linear,
    pub(crate) proj: Linear,
    pub(crate) mlp_input: MlpInput,
    pub(crate) fc1: Linear,
    pub(crate) fc2: Linear,
}

/// What the MLP of a layer reads; see [`BlockStyle`].
#[derive(Debug)]
pub(crate) enum MlpInput {
    /// The norm of the residual stream that attention has been added to.
    Sequential(Norm),
    /// The norm of the residual stream that attention reads too.
    ParallelOwnNorm(Norm),
    /// The very rows that attention reads.
    ParallelSharedNorm,
}

impl MlpInput {
    fn norm(&self) -> Option<&Norm> {
        match self {
            Self::Sequential(norm) | Self::ParallelOwnNorm(norm) => Some(norm),
            Self::ParallelSharedNorm => None,
        }
    }
}

/// The whole model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[padded_vocab_size, hidden_size]`, or nothing where the output layer is the table.
    pub(crate) word_embeddings: Option<Tensor>,
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
        let reader = Reader::new(config, source, kernels);
        let vocab = Axis::Vocab(reader.num_rows(WORD_EMBEDDINGS)?);
        let is_tied = config.share_embeddings_and_output_weights;
        let word_embeddings = if is_tied { None } else { Some(reader.table(WORD_EMBEDDINGS, vocab)?) };
        let position_embeddings = match config.position_embedding {
            PositionEmbedding::Rope(_) => None,
            PositionEmbedding::LearnedAbsolute => Some(load_positions(config, &reader)?),
        };
        let load = |layer_idx| load_layer(config, &reader, layer_idx);
        let layers: Vec<_> = match kernels.loads_in_order() {
            true => (0..config.num_layers).map(load).collect(),
            false => (0..config.num_layers).into_par_iter().map(load).collect(),
        };
        // In order, so that of several errors the same one is told every time.
        let layers = layers.into_iter().collect::<Result<_, _>>()?;
        let final_norm = reader.norm("model.decoder.final_layernorm.", ["weight", "bias"])?;
        let output_weight = if is_tied { WORD_EMBEDDINGS } else { OUTPUT_WEIGHT };
        let output_bias = config.output_layer_bias.then_some(OUTPUT_BIAS);
        let output = reader.linear((output_weight, output_bias), [vocab, Axis::Hidden], LinearRole::Plain)?;
        let num_params = reader.check_all_used()?;
        Ok(Self { word_embeddings, position_embeddings, layers, final_norm, output, num_params })
    }

    /// All linear layers, each with the activation that follows it.
    pub(crate) fn linears(
        &self,
        activation: Activation,
    ) -> impl Iterator<Item = (&Linear, Option<Activation>)> {
        self.layers
            .iter()
            .flat_map(move |Layer { qkv, proj, fc1, fc2, .. }| {
                [(qkv, None), (proj, None), (fc1, Some(activation)), (fc2, None)]
            })
            .chain([(&self.output, None)])
    }

    /// Memory that the weights take.
    pub(crate) fn size_bytes(&self) -> u64 {
        let of_layers: u64 = self.layers.iter().map(Layer::size_bytes).sum();
        let tables = self.word_embeddings.iter().chain(&self.position_embeddings);
        of_layers
            + tables.map(tensor_bytes).sum::<u64>()
            + self.final_norm.size_bytes()
            + self.output.size_bytes()
    }
}

impl Layer {
    fn size_bytes(&self) -> u64 {
        let norms = std::iter::once(&self.input_norm).chain(self.mlp_input.norm());
        [&self.qkv, &self.proj, &self.fc1, &self.fc2].map(Linear::size_bytes).iter().sum::<u64>()
            + norms.map(Norm::size_bytes).sum::<u64>()
    }
}

fn load_positions(config: &ModelConfig, reader: &Reader<'_>) -> Result<Tensor, ModelError> {
    let num_rows = reader.num_rows(POSITION_EMBEDDINGS)?;
    let table = reader.table(POSITION_EMBEDDINGS, Axis::Positions(num_rows))?;
    if num_rows < config.encoder_seq_length as u64 {
        return Err(ModelError::BadValue {
            key: "encoder_seq_length",
            expected: format!("at most the {num_rows} learned positions of `{POSITION_EMBEDDINGS}`"),
            actual: config.encoder_seq_length.to_string(),
        });
    }
    Ok(table)
}

fn load_layer(config: &ModelConfig, reader: &Reader<'_>, layer_idx: usize) -> Result<Layer, ModelError> {
    let prefix = format!("model.decoder.layers.{layer_idx}.");
    let linear = |module: &str, axes, has_bias: bool, role| {
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{prefix}{module}.{part}"));
        reader.linear((&weight, has_bias.then_some(bias.as_str())), axes, role)
    };
    let norm =
        |module: &str| reader.norm(&format!("{prefix}{module}."), ["layer_norm_weight", "layer_norm_bias"]);
    let (plain, first) = (LinearRole::Plain, LinearRole::FirstOfMlp(config.activation));
    Ok(Layer {
        input_norm: norm("self_attention.linear_qkv")?,
        qkv: linear("self_attention.linear_qkv", [Axis::Qkv, Axis::Hidden], config.qkv_bias, plain)?,
        proj: linear("self_attention.linear_proj", [Axis::Hidden, Axis::Query], config.bias, plain)?,
        mlp_input: match config.block_style {
            BlockStyle::Sequential => MlpInput::Sequential(norm("mlp.linear_fc1")?),
            BlockStyle::ParallelOwnNorm => MlpInput::ParallelOwnNorm(norm("mlp.linear_fc1")?),
            BlockStyle::ParallelSharedNorm => MlpInput::ParallelSharedNorm,
        },
        fc1: linear("mlp.linear_fc1", [Axis::Fc1, Axis::Hidden], config.bias, first)?,
        fc2: linear("mlp.linear_fc2", [Axis::Hidden, Axis::Ffn], config.bias, plain)?,
    })
}
