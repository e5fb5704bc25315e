//! A mixture of experts, read.

use model_spec::{Activation, Module, MoeSpec, Part, TensorId};
use tch::Kind;
use torch_ext::view;

use super::LayerPlace;
use super::reader::Reader;
use crate::ModelError;
use crate::ops::{Expert, Experts, LinearRole, Loader, Owners, StepState};
use crate::ops::{Moe, Router, SharedExpert};

type LinearOf<L> = <<L as Loader>::State as StepState>::Linear;

pub(super) fn load<L: Loader>(
    spec: &MoeSpec,
    reader: &mut Reader<'_, L>,
    place: LayerPlace,
) -> Result<Moe<L::State>, ModelError> {
    let layer = place.layer_idx;
    let weight = |module| TensorId::in_layer(layer, module, Part::Weight);
    let rule = spec.experts.router;
    let expert_bias = match rule.has_expert_bias {
        true => {
            let bias = reader.float32(TensorId::in_layer(layer, Module::ExpertBias, Part::Bias))?;
            let bias = bias.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?;
            Some(view::f32_slice(&bias, "the router's bias")?.to_vec())
        }
        false => None,
    };
    let linear = reader.linear(weight(Module::Router), LinearRole::Float32)?;
    let router = Router { linear, expert_bias, rule, num_experts: spec.experts.num_experts };
    let shared = match spec.experts.shared {
        Some(shared) => {
            let gate = match shared.has_gate {
                true => Some(reader.linear(weight(Module::SharedGate), LinearRole::Float32)?),
                false => None,
            };
            let ids = [weight(Module::SharedFc1), weight(Module::SharedFc2)];
            let expert = expert(reader, place, ids, (shared.ffn_hidden_size, spec.activation))?;
            Some(SharedExpert { expert, gate })
        }
        None => None,
    };
    let own = reader.place().experts_of(spec.experts.num_experts);
    let mut experts = Vec::with_capacity(own.len());
    for idx in own {
        let weight = |module| TensorId::in_expert(layer, idx, module, Part::Weight);
        let ids = [weight(Module::ExpertFc1), weight(Module::ExpertFc2)];
        experts.push(expert(reader, place, ids, (spec.experts.ffn_hidden_size, spec.activation))?);
    }
    let owners = Owners::of(reader.place(), spec.experts.num_experts);
    let experts = Experts { experts, activation: spec.activation, owners };
    let grouped = reader.group(&router, &experts, shared.as_ref())?;
    Ok(Moe { router, experts, shared, grouped, reduction: place.reduction })
}

fn expert<L: Loader>(
    reader: &mut Reader<'_, L>,
    place: LayerPlace,
    [fc1, fc2]: [TensorId; 2],
    (ffn_hidden_size, activation): (usize, Activation),
) -> Result<Expert<LinearOf<L>>, ModelError> {
    let fc1 = reader.linear(fc1, LinearRole::FirstOfMlp(activation))?;
    let (fc2, num_pieces) = place.row_parallel(reader, fc2, ffn_hidden_size)?.into_linears();
    Ok(Expert { fc1, fc2, num_pieces })
}
