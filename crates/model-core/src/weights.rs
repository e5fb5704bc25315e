//! Weights: every tensor the config implies, checked, converted and packed for the backend.
//!
//! Names are the canonical Megatron-Core ones that [`TensorSource`] promises.

mod axis;
mod explain;
mod interleaved;
mod reader;

use model_spec::TableRows;
use nemo_format::TensorSource;
use tch::Tensor;

use self::axis::Axis;
use self::reader::Reader;
use crate::ModelError;
use crate::config::{BlockStyle, ModelConfig, PositionEmbedding};
use crate::layers::{Attention, Layer, Mlp};
use crate::ops::{LinearOp, LinearRole, Loader, Norm, StepState, TrialLinear, tensor_bytes};

const WORD_EMBEDDINGS: &str = "model.embedding.word_embeddings.weight";
const POSITION_EMBEDDINGS: &str = "model.embedding.position_embeddings.weight";
const OUTPUT_WEIGHT: &str = "model.output_layer.weight";
const OUTPUT_BIAS: &str = "model.output_layer.bias";

/// The whole model, in the layouts of the backend with state `S`.
pub(crate) struct Weights<S: StepState> {
    /// `[padded_vocab_size, hidden_size]`, or nothing where the output layer is the table.
    pub(crate) word_embeddings: Option<Tensor>,
    /// `[num_positions, hidden_size]`.
    pub(crate) position_embeddings: Option<Tensor>,
    pub(crate) layers: Vec<Layer<S>>,
    pub(crate) final_norm: Norm,
    pub(crate) output: S::Linear,
    /// Numbers stored in the checkpoint's tensors.
    pub(crate) num_params: u64,
}

impl<S: StepState> Weights<S> {
    /// Reads all tensors and gives back the backend that they were laid out for.
    pub(crate) fn load<L: Loader<State = S>>(
        config: &ModelConfig,
        source: &dyn TensorSource,
        mut loader: L,
    ) -> Result<(Self, S), ModelError> {
        // First, because it costs little and tells of heads that the backend does not take.
        let spec = config.spec(TableRows { vocab: 0, positions: 0 });
        let attention = (spec.layers.iter().enumerate())
            .filter_map(|(layer_idx, layer)| Some((layer_idx, layer.attention.as_ref()?)))
            .map(|(layer_idx, spec)| loader.attention(layer_idx, spec))
            .collect::<Result<Vec<_>, _>>()?;
        let mut reader = Reader::new(config, source, loader);
        let vocab = Axis::Vocab(reader.num_rows(WORD_EMBEDDINGS)?);
        let is_tied = config.share_embeddings_and_output_weights;
        let word_embeddings = if is_tied { None } else { Some(reader.table(WORD_EMBEDDINGS, vocab)?) };
        let position_embeddings = match config.position_embedding {
            PositionEmbedding::Rope(_) => None,
            PositionEmbedding::LearnedAbsolute => Some(load_positions(config, &mut reader)?),
        };
        let mut layers = Vec::with_capacity(attention.len());
        for (layer_idx, op) in attention.into_iter().enumerate() {
            layers.push(load_layer(config, &mut reader, layer_idx, op)?);
        }
        let final_norm = reader.norm("model.decoder.final_layernorm.", ["weight", "bias"])?;
        let output_weight = if is_tied { WORD_EMBEDDINGS } else { OUTPUT_WEIGHT };
        let output_bias = config.output_layer_bias.then_some(OUTPUT_BIAS);
        let output = reader.linear((output_weight, output_bias), [vocab, Axis::Hidden], LinearRole::Plain)?;
        let num_params = reader.check_all_used()?;
        let weights = Self { word_embeddings, position_embeddings, layers, final_norm, output, num_params };
        Ok((weights, reader.finish()?))
    }

    /// All linear layers, each with the activation that follows it.
    pub(crate) fn linears(&self) -> impl Iterator<Item = TrialLinear<'_, S::Linear>> {
        self.layers.iter().flat_map(Layer::linears).chain([(&self.output, None)])
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

fn load_positions<L: Loader>(config: &ModelConfig, reader: &mut Reader<'_, L>) -> Result<Tensor, ModelError> {
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

fn load_layer<L: Loader>(
    config: &ModelConfig,
    reader: &mut Reader<'_, L>,
    layer_idx: usize,
    op: <L::State as StepState>::Attention,
) -> Result<Layer<L::State>, ModelError> {
    let prefix = format!("model.decoder.layers.{layer_idx}.");
    reader.read_ahead(&prefix);
    let linear = |reader: &mut Reader<'_, L>, module: &str, axes, has_bias: bool, role| {
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{prefix}{module}.{part}"));
        reader.linear((&weight, has_bias.then_some(bias.as_str())), axes, role)
    };
    let norm = |reader: &mut Reader<'_, L>, module: &str| {
        reader.norm(&format!("{prefix}{module}."), ["layer_norm_weight", "layer_norm_bias"])
    };
    let (plain, first) = (LinearRole::Plain, LinearRole::FirstOfMlp(config.activation));
    let attention_norm = norm(reader, "self_attention.linear_qkv")?;
    let attention = Attention {
        qkv: linear(reader, "self_attention.linear_qkv", [Axis::Qkv, Axis::Hidden], config.qkv_bias, plain)?,
        op,
        proj: linear(reader, "self_attention.linear_proj", [Axis::Hidden, Axis::Query], config.bias, plain)?,
    };
    let mlp_norm = match config.block_style {
        BlockStyle::Sequential | BlockStyle::ParallelOwnNorm => Some(norm(reader, "mlp.linear_fc1")?),
        BlockStyle::ParallelSharedNorm => None,
    };
    let mlp = Mlp {
        fc1: linear(reader, "mlp.linear_fc1", [Axis::Fc1, Axis::Hidden], config.bias, first)?,
        activation: config.activation,
        fc2: linear(reader, "mlp.linear_fc2", [Axis::Hidden, Axis::Ffn], config.bias, plain)?,
    };
    Ok(match (config.block_style, mlp_norm) {
        (BlockStyle::Sequential, Some(mlp_norm)) => {
            Layer::Sequential { attention: Some((attention_norm, attention)), mlp: Some((mlp_norm, mlp)) }
        }
        (_, mlp_norm) => Layer::Parallel { attention_norm, attention, mlp_norm, mlp },
    })
}
