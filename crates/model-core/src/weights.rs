//! Weights: every tensor the config implies, checked, converted and packed for the backend.
//!
//! Which tensors there are is read from [`ModelSpec::tensor`]; names are the canonical ones that [`TensorSource`] promises.

mod experts;
mod explain;
mod interleaved;
mod reader;
mod regions;

use model_spec::{
    BlockStyle, FfnSpec, LAYERS, LayerSpec, ModelSpec, Module, Part, ShardPlace, TensorId, reduction_pieces,
};
use nemo_format::TensorSource;
use tch::Tensor;

use self::reader::Reader;
use crate::ModelError;
use crate::config::ModelConfig;
use crate::layers::row_parallel::RowParallel;
use crate::layers::{Attention, AttentionPart, Ffn, Layer, Mlp, Normed, OutputRule};
use crate::model_ranks::Reduction;
use crate::ops::{
    AttentionOp, HeadNorms, LinearOp, LinearRole, Loader, Norm, NormsOver, StepState, TrialLinear,
    tensor_bytes,
};

const WORD_EMBEDDINGS: TensorId = TensorId::outside(Module::WordEmbeddings, Part::Weight);
const POSITION_EMBEDDINGS: TensorId = TensorId::outside(Module::PositionEmbeddings, Part::Weight);

/// A rank's part of a model, in the layouts of the backend with state `S`.
pub(crate) struct Weights<S: StepState> {
    /// `[rows of this rank, hidden_size]`, of the first pipeline stage; nothing where the output layer is the table.
    pub(crate) word_embeddings: Option<Tensor>,
    /// `[num_positions, hidden_size]`.
    pub(crate) position_embeddings: Option<Tensor>,
    pub(crate) layers: Vec<Layer<S>>,
    /// Of the last pipeline stage.
    pub(crate) head: Option<Head<S>>,
    /// Numbers stored in the checkpoint's tensors.
    pub(crate) num_params: u64,
}

/// What makes logits of the residual stream.
pub(crate) struct Head<S: StepState> {
    pub(crate) final_norm: Norm,
    pub(crate) output: S::Linear,
}

impl<S: StepState> Weights<S> {
    /// Reads all tensors and gives back the backend that they were laid out for.
    pub(crate) fn load<L: Loader<State = S>>(
        config: &ModelConfig,
        source: &dyn TensorSource,
        mut loader: L,
        (place, reduction): (&ShardPlace, Reduction),
    ) -> Result<(Self, S), ModelError> {
        let spec = config.spec_of(source);
        let part = place.part_of(&spec)?;
        // First, because it is cheap and finds heads that the backend does not support.
        let attention = (part.layers.iter().enumerate())
            .map(|(layer_idx, layer)| {
                layer.attention.as_ref().map(|spec| loader.attention(layer_idx, spec)).transpose()
            })
            .collect::<Result<Vec<_>, _>>()?;
        for moe in part.layers.iter().filter_map(LayerSpec::moe) {
            loader.check_experts(moe, spec.hidden_size)?;
        }
        let mut reader = Reader::new(&spec, place, source, loader);
        let (is_first, is_last) = (place.is_first_stage(), place.is_last_stage(&spec));
        reader.check_stored(WORD_EMBEDDINGS)?;
        let is_table = spec.output.tied && is_last;
        let word_embeddings = if is_first && !is_table { Some(reader.table(WORD_EMBEDDINGS)?) } else { None };
        let position_embeddings = if is_first { load_positions(config, &spec, &mut reader)? } else { None };
        let mut layers = Vec::with_capacity(attention.len());
        for (layer_idx, op) in place.layers.clone().zip(attention) {
            if let Some(layer) = spec.layers.get(layer_idx) {
                layers.push(load_layer(layer, &mut reader, LayerPlace { layer_idx, reduction }, op)?);
            }
        }
        let head = match is_last {
            true => {
                let final_norm = reader.norm(None, Module::FinalNorm, &spec.final_norm)?;
                Some(Head { final_norm, output: reader.output()? })
            }
            false => None,
        };
        let num_params = reader.check_all_used()?;
        let weights = Self { word_embeddings, position_embeddings, layers, head, num_params };
        Ok((weights, reader.finish()?))
    }

    /// All linear layers, each with the activation that follows it.
    pub(crate) fn dense_linears(&self) -> impl Iterator<Item = TrialLinear<'_, S::Linear>> {
        let output = self.head.iter().map(|head| TrialLinear::of(&head.output, None));
        self.layers.iter().flat_map(Layer::dense_linears).chain(output)
    }

    /// Memory that the weights take.
    pub(crate) fn size_bytes(&self) -> u64 {
        let of_layers: u64 = self.layers.iter().map(Layer::size_bytes).sum();
        let tables = self.word_embeddings.iter().chain(&self.position_embeddings);
        of_layers
            + tables.map(tensor_bytes).sum::<u64>()
            + self
                .head
                .iter()
                .map(|head| head.final_norm.size_bytes() + head.output.size_bytes())
                .sum::<u64>()
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

const UNLIKE_PIECES: ModelError = ModelError::NoBackend {
    backend: "tensor-parallel",
    reason: "so many ranks cannot share the pieces that sums over a layer's inputs are taken in (1, 2, 4 or 8 can, as far as \
             they divide the heads and the width of the MLP)",
};

/// Which layer, and how it sums over inputs.
#[derive(Clone, Copy)]
struct LayerPlace {
    layer_idx: usize,
    reduction: Reduction,
}

impl LayerPlace {
    /// A layer whose inputs are `num_units` heads or numbers.
    fn row_parallel<L: Loader>(
        self,
        reader: &mut Reader<'_, L>,
        weight: TensorId,
        num_units: usize,
    ) -> Result<RowParallel<L::State>, ModelError> {
        match self.reduction {
            Reduction::Chain => Ok(RowParallel::Chain(reader.linear(weight, LinearRole::Plain)?)),
            // Otherwise the ranks' sums would not be parts of the tree.
            Reduction::Tree if !reduction_pieces(num_units).is_multiple_of(reader.num_sharing(weight)) => {
                Err(UNLIKE_PIECES)
            }
            Reduction::Tree => Ok(RowParallel::Tree(reader.pieces(weight, reduction_pieces(num_units))?)),
        }
    }
}

fn load_layer<L: Loader>(
    spec: &LayerSpec,
    reader: &mut Reader<'_, L>,
    place: LayerPlace,
    op: Option<<L::State as StepState>::Attention>,
) -> Result<Layer<L::State>, ModelError> {
    reader.read_ahead(&format!("{LAYERS}{}.", place.layer_idx));
    let attention = load_attention(spec, reader, place, op)?;
    let ffn = load_ffn(spec, reader, place)?;
    Ok(match (spec.join, attention, ffn) {
        (
            BlockStyle::ParallelSharedNorm | BlockStyle::ParallelOwnNorm,
            Some((Some(attention_norm), AttentionPart::Attention(attention))),
            Some((mlp_norm, Ffn::Dense(mlp))),
        ) => Layer::Parallel { attention_norm, attention: *attention, mlp_norm, mlp },
        (_, attention, ffn) => Layer::Sequential { attention, ffn },
    })
}

/// Attention or what is in its place, with the norm in front.
fn load_attention<L: Loader>(
    spec: &LayerSpec,
    reader: &mut Reader<'_, L>,
    place: LayerPlace,
    op: Option<<L::State as StepState>::Attention>,
) -> Result<Option<Normed<AttentionPart<L::State>>>, ModelError> {
    let at = Some(place.layer_idx);
    let weight = |module| TensorId::in_layer(place.layer_idx, module, Part::Weight);
    if let Some(norm) = &spec.attention_linear {
        let norm = reader.norm(at, Module::AttentionLinearNorm, norm)?;
        let linear = reader.linear(weight(Module::AttentionLinear), LinearRole::Plain)?;
        return Ok(Some((Some(norm), AttentionPart::Linear(linear))));
    }
    let (Some(attention), Some(mut op)) = (&spec.attention, op) else { return Ok(None) };
    if attention.has_sinks {
        let sinks = reader.float32(TensorId::in_layer(place.layer_idx, Module::Sinks, Part::Offset))?;
        op.set_sinks(sinks)?;
    }
    let norm = match spec.has_pre_norms {
        true => Some(reader.norm(at, Module::InputNorm, &attention.norm)?),
        false => None,
    };
    let qkv = reader.linear(weight(Module::Qkv), LinearRole::Plain)?;
    let head_norms = match &attention.qk_norm {
        Some(norm) => {
            let query = reader.norm(at, Module::QNorm, norm)?;
            let key = reader.norm(at, Module::KNorm, norm)?;
            let heads = attention.heads.of_rank(reader.tp_size());
            Some((heads, HeadNorms { query, key, over: NormsOver::of(attention) }))
        }
        None => None,
    };
    let proj = place.row_parallel(reader, weight(Module::Proj), attention.heads.num_attention_heads)?;
    let post_norm = attention.post_norm.as_ref();
    let post_norm = post_norm.map(|norm| reader.norm(at, Module::PostAttentionNorm, norm)).transpose()?;
    let output = OutputRule { post_norm, multiplier: spec.residual_multiplier };
    let attention = Attention { qkv, head_norms, op, proj, output };
    Ok(Some((norm, AttentionPart::Attention(Box::new(attention)))))
}

/// The feed-forward part, with the norm in front.
fn load_ffn<L: Loader>(
    spec: &LayerSpec,
    reader: &mut Reader<'_, L>,
    place: LayerPlace,
) -> Result<Option<Normed<Ffn<L::State>>>, ModelError> {
    let at = Some(place.layer_idx);
    let weight = |module| TensorId::in_layer(place.layer_idx, module, Part::Weight);
    Ok(match &spec.ffn {
        Some(FfnSpec::Dense(mlp)) => {
            let norm = match spec.has_pre_norms && !spec.shares_norm() {
                true => Some(reader.norm(at, Module::MlpNorm, &mlp.norm)?),
                false => None,
            };
            let fc1 = reader.linear(weight(Module::Fc1), LinearRole::FirstOfMlp(mlp.activation))?;
            let fc2 = place.row_parallel(reader, weight(Module::Fc2), mlp.ffn_hidden_size)?;
            let post_norm = mlp.post_norm.as_ref();
            let post_norm = post_norm.map(|norm| reader.norm(at, Module::PostMlpNorm, norm)).transpose()?;
            let output = OutputRule { post_norm, multiplier: spec.residual_multiplier };
            Some((norm, Ffn::Dense(Mlp { fc1, activation: mlp.activation, fc2, output })))
        }
        Some(FfnSpec::Moe(moe)) => {
            let norm = reader.norm(at, Module::MlpNorm, &moe.norm)?;
            Some((Some(norm), Ffn::Moe(Box::new(experts::load(moe, reader, place)?))))
        }
        Some(FfnSpec::Linear(norm)) => {
            let norm = reader.norm(at, Module::MlpLinearNorm, norm)?;
            Some((Some(norm), Ffn::Linear(reader.linear(weight(Module::MlpLinear), LinearRole::Plain)?)))
        }
        None => None,
    })
}
