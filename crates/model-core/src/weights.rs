//! Weights: every tensor the config implies, checked, converted and packed for the backend.
//!
//! Which tensors there are is read from [`ModelSpec::tensor`]; names are the canonical ones that [`TensorSource`] promises.

mod explain;
mod interleaved;
mod reader;

use model_spec::{BlockStyle, LAYERS, LayerSpec, ModelSpec, Module, Part, TensorId};
use nemo_format::TensorSource;
use tch::Tensor;

use self::reader::Reader;
use crate::ModelError;
use crate::config::ModelConfig;
use crate::layers::{Attention, Layer, Mlp};
use crate::ops::{HeadNorms, LinearOp, LinearRole, Loader, Norm, StepState, TrialLinear, tensor_bytes};

const WORD_EMBEDDINGS: TensorId = TensorId::outside(Module::WordEmbeddings, Part::Weight);
const POSITION_EMBEDDINGS: TensorId = TensorId::outside(Module::PositionEmbeddings, Part::Weight);

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
        let spec = config.spec_of(source);
        // First, because it is cheap and finds heads that the backend does not support.
        let attention = (spec.layers.iter().enumerate())
            .map(|(layer_idx, layer)| {
                layer.attention.as_ref().map(|spec| loader.attention(layer_idx, spec)).transpose()
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut reader = Reader::new(&spec, source, loader);
        reader.check_stored(WORD_EMBEDDINGS)?;
        let word_embeddings = if spec.output.tied { None } else { Some(reader.table(WORD_EMBEDDINGS)?) };
        let position_embeddings = load_positions(config, &spec, &mut reader)?;
        let mut layers = Vec::with_capacity(attention.len());
        for ((layer_idx, layer), op) in spec.layers.iter().enumerate().zip(attention) {
            layers.push(load_layer(layer, &mut reader, layer_idx, op)?);
        }
        let final_norm = reader.norm(None, Module::FinalNorm, &spec.final_norm)?;
        let output = reader.output()?;
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

fn load_positions<L: Loader>(
    config: &ModelConfig,
    spec: &ModelSpec,
    reader: &mut Reader<'_, L>,
) -> Result<Option<Tensor>, ModelError> {
    let Some(num_rows) = spec.learned_positions else { return Ok(None) };
    let table = reader.table(POSITION_EMBEDDINGS)?;
    if num_rows < config.encoder_seq_length as u64 {
        return Err(ModelError::BadValue {
            key: "encoder_seq_length",
            expected: format!("at most the {num_rows} learned positions of `{}`", POSITION_EMBEDDINGS.name()),
            actual: config.encoder_seq_length.to_string(),
        });
    }
    Ok(Some(table))
}

fn load_layer<L: Loader>(
    spec: &LayerSpec,
    reader: &mut Reader<'_, L>,
    layer_idx: usize,
    op: Option<<L::State as StepState>::Attention>,
) -> Result<Layer<L::State>, ModelError> {
    reader.read_ahead(&format!("{LAYERS}{layer_idx}."));
    let at = Some(layer_idx);
    let attention = match (&spec.attention, op) {
        (Some(attention), Some(op)) => {
            let norm = reader.norm(at, Module::InputNorm, &attention.norm)?;
            let qkv = reader.linear(at, Module::Qkv, LinearRole::Plain)?;
            let head_norms = match &attention.qk_norm {
                Some(norm) => {
                    let query = reader.norm(at, Module::QNorm, norm)?;
                    let key = reader.norm(at, Module::KNorm, norm)?;
                    Some((attention.heads, HeadNorms { query, key }))
                }
                None => None,
            };
            let proj = reader.linear(at, Module::Proj, LinearRole::Plain)?;
            let post_norm = attention.post_norm.as_ref();
            let post_norm =
                post_norm.map(|norm| reader.norm(at, Module::PostAttentionNorm, norm)).transpose()?;
            Some((norm, Attention { qkv, head_norms, op, proj, post_norm }))
        }
        _ => None,
    };
    let (mlp_norm, mlp) = match spec.mlp() {
        Some(mlp) => {
            let is_shared = spec.shares_norm();
            let norm = if is_shared { None } else { Some(reader.norm(at, Module::MlpNorm, &mlp.norm)?) };
            let fc1 = reader.linear(at, Module::Fc1, LinearRole::FirstOfMlp(mlp.activation))?;
            let fc2 = reader.linear(at, Module::Fc2, LinearRole::Plain)?;
            let post_norm = mlp.post_norm.as_ref();
            let post_norm = post_norm.map(|norm| reader.norm(at, Module::PostMlpNorm, norm)).transpose()?;
            (norm, Some(Mlp { fc1, activation: mlp.activation, fc2, post_norm }))
        }
        None => (None, None),
    };
    Ok(match (spec.join, attention, mlp) {
        (
            BlockStyle::ParallelSharedNorm | BlockStyle::ParallelOwnNorm,
            Some((attention_norm, attention)),
            Some(mlp),
        ) => Layer::Parallel { attention_norm, attention, mlp_norm, mlp },
        // Only a parallel MLP is without a norm of its own.
        (_, attention, mlp) => Layer::Sequential { attention, mlp: mlp_norm.zip(mlp) },
    })
}
