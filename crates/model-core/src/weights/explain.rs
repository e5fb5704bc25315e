//! Why a tensor that the checkpoint lacks is needed, and what one that nobody asked for means.

use std::collections::BTreeSet;

use model_spec::{ModelSpec, TensorSpec, layer_of, parse_name};
use nemo_format::TensorSource;

/// What the config says that makes a missing tensor necessary.
pub(super) fn needed_because(tensor: &TensorSpec, spec: &ModelSpec, source: &dyn TensorSource) -> String {
    let num_stored = source.names().filter_map(layer_of).collect::<BTreeSet<_>>().len();
    if tensor.id.layer.is_some_and(|layer_idx| layer_idx >= num_stored) {
        let num_layers = spec.layers.len();
        return format!("`num_layers: {num_layers}` needs it, and the checkpoint has {num_stored} layers");
    }
    tensor.because.needs_it().to_owned()
}

/// What the config would have to say for the first of these tensors to be used.
pub(super) fn unknown_because(names: &[&str], spec: &ModelSpec) -> String {
    let Some(&name) = names.first() else { return String::new() };
    let has = |part: &str| name.contains(part);
    if has(".experts.weight1") || has(".experts.weight2") {
        return "experts in one matrix, as Megatron-Core's `moe_use_legacy_grouped_gemm` keeps them in memory, are not read: \
                save a distributed checkpoint"
            .to_owned();
    }
    if has("adapter") || has("lora") {
        return "adapters are not supported: merge them into the weights first".to_owned();
    }
    let num_layers = spec.layers.len();
    let setting = if layer_of(name).is_some_and(|layer_idx| layer_idx >= num_layers) {
        format!("a larger `num_layers` than {num_layers}")
    } else if let Some(Err(key)) = parse_name(name).map(|id| spec.tensor(id)) {
        key.setting().to_owned()
    } else {
        let position = if spec.learned_positions.is_some() { "learned_absolute" } else { "rope" };
        return format!(
            "no GPT with `position_embedding_type: {position}` has it: use the model config of this checkpoint"
        );
    };
    format!("the first is used with {setting}: correct the model config if that is what the model is")
}
