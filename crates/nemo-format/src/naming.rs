//! From the names that files use to the canonical ones: Megatron-Core's, with the layer's number and the fused norms.
//!
//! Prefixes, unfused norms, TransformerEngine's layer and NeMo's older model (`mcore_gpt: false`) all end in one
//! naming. What is not a weight of the model is recognised here and never read.

use model_spec::{EXPERTS, LAYERS, Module};

/// Files of Megatron-LM itself have no `model.`; these are the parts of a model there.
const PARTS: [&str; 4] = ["decoder.", "embedding.", "output_layer.", "language_model."];

/// Where a stored tensor belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TensorPlace {
    /// Outside the layers, under this canonical name.
    Outside(String),
    /// In a layer, counted as the file counts; `rest` is what follows the number.
    Layer { layer: u64, rest: String, part: LegacyPart },
    /// In all layers: the first axis counts them.
    Stacked(String),
    /// Nowhere: a buffer, a copy, an optimizer's state, another head.
    Unused,
}

/// Which part of a canonical tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegacyPart {
    Whole,
    /// The second of the two tensors that gate and up of an MLP are in the older model's `swiglu`.
    Up,
}

impl TensorPlace {
    /// The canonical name, for display. Layers of a stack are `*`.
    pub(crate) fn canonical(&self) -> Option<String> {
        match self {
            Self::Outside(name) => Some(name.clone()),
            Self::Layer { layer, rest, .. } => Some(format!("{LAYERS}{layer}.{rest}")),
            Self::Stacked(rest) => Some(format!("{LAYERS}*.{rest}")),
            Self::Unused => None,
        }
    }
}

/// Whether a key is a weight, so that its content matters.
pub(crate) fn is_weight(stored: &str) -> bool {
    place(stored) != TensorPlace::Unused
}

/// Where the tensor that a file calls `stored` belongs.
pub(crate) fn place(stored: &str) -> TensorPlace {
    let Some(name) = without_prefix(stored) else { return TensorPlace::Unused };
    let key = name.split('/').next().unwrap_or(&name);
    let is_buffer = key.ends_with("_extra_state") || key.ends_with("rotary_pos_emb.inv_freq");
    // A reward model's head plays no part in generation. `word_embeddings` outside an embedding is the last pipeline
    // stage's copy of the tied table.
    if is_buffer || key.starts_with("rm_head.") || key == "word_embeddings.weight" {
        return TensorPlace::Unused;
    }
    match name.strip_prefix("language_model.") {
        Some(name) => legacy_place(name),
        None => mcore_place(&name),
    }
}

/// The same for a file of one rank, which holds a model and nothing else: a name of no known form stays as it is, so
/// that loading the model reports it as unused.
pub(crate) fn place_in_rank_file(stored: &str) -> TensorPlace {
    match place(stored) {
        TensorPlace::Unused if without_prefix(stored).is_none() && !stored.ends_with("_extra_state") => {
            TensorPlace::Outside(stored.to_owned())
        }
        place => place,
    }
}

/// `model.module.x`, `module.x`, `model.x` and `x._orig_mod.y` are `x` and `x.y`.
fn without_prefix(stored: &str) -> Option<String> {
    let mut rest = stored;
    while let Some(inner) = rest.strip_prefix("model.").or_else(|| rest.strip_prefix("module.")) {
        rest = inner;
    }
    let is_part = PARTS.iter().any(|part| rest.starts_with(part));
    (rest.len() < stored.len() || is_part).then(|| rest.replace("_orig_mod.", ""))
}

fn mcore_place(name: &str) -> TensorPlace {
    match name.strip_prefix("decoder.layers.") {
        Some(in_layers) => match split_layer(in_layers) {
            Some((layer, rest)) => {
                TensorPlace::Layer { layer, rest: mcore_rest(rest), part: LegacyPart::Whole }
            }
            None => TensorPlace::Stacked(mcore_rest(in_layers)),
        },
        None => TensorPlace::Outside(format!("model.{name}")),
    }
}

/// `3.mlp.x` to 3 and `mlp.x`.
fn split_layer(in_layers: &str) -> Option<(u64, &str)> {
    let (number, rest) = in_layers.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// What stands for the number of an expert where an axis counts experts.
pub(crate) const EVERY_EXPERT: &str = "*";

/// Where experts have a name of their own. In a distributed checkpoint, all experts of a layer are one tensor, or each has its
/// number behind `experts.experts.`; Transformer Engine's grouped layer has the number behind the parameter's name.
fn expert_rest(rest: &str) -> Option<String> {
    let in_experts = rest.strip_prefix("mlp.experts.")?;
    if let Some(shared) = in_experts.strip_prefix("experts.") {
        let is_numbered = shared.split_once('.').is_some_and(|(number, _)| is_number(number));
        return Some(match is_numbered {
            true => format!("{EXPERTS}{shared}"),
            false => format!("{EXPERTS}{EVERY_EXPERT}.{shared}"),
        });
    }
    let (stem, parameter) = in_experts.rsplit_once('.')?;
    let start = parameter.find(|letter: char| letter.is_ascii_digit())?;
    let (part, number) = parameter.split_at(start);
    let is_grouped = ["linear_fc1", "linear_fc2"].contains(&stem) && is_number(number);
    is_grouped.then(|| format!("{EXPERTS}{number}.{stem}.{part}"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Fused norms instead of the modules of their own that other layer specifications have, and of TransformerEngine's
/// whole layer (`megatron_gpt_full_te_layer_autocast`).
fn mcore_rest(rest: &str) -> String {
    const MODULES: [(&str, Module); 9] = [
        ("input_layernorm.", Module::InputNorm),
        ("pre_mlp_layernorm.", Module::MlpNorm),
        // Falcon-RW's name of the same norm.
        ("post_self_attn_layernorm.", Module::MlpNorm),
        ("self_attention.layernorm_qkv.layer_norm_", Module::InputNorm),
        ("self_attention.layernorm_qkv.", Module::Qkv),
        ("self_attention.proj.", Module::Proj),
        ("layernorm_mlp.layer_norm_", Module::MlpNorm),
        ("layernorm_mlp.fc1_", Module::Fc1),
        ("layernorm_mlp.fc2_", Module::Fc2),
    ];
    renamed(rest, &MODULES).or_else(|| expert_rest(rest)).unwrap_or_else(|| rest.to_owned())
}

/// The canonical name of a tensor whose module has the first fitting name of these.
fn renamed(rest: &str, modules: &[(&str, Module)]) -> Option<String> {
    modules.iter().find_map(|(from, to)| Some(format!("{}{}", to.stem(), rest.strip_prefix(from)?)))
}

/// NeMo's model before Megatron-Core, below `model.language_model.`.
fn legacy_place(name: &str) -> TensorPlace {
    // The names of the very first files.
    let encoder = name.strip_prefix("encoder.").or_else(|| name.strip_prefix("transformer."));
    let Some(in_encoder) = encoder else { return TensorPlace::Outside(format!("model.{name}")) };
    match in_encoder.strip_prefix("layers.").and_then(split_layer) {
        Some((layer, rest)) => {
            let (rest, part) = legacy_rest(rest);
            TensorPlace::Layer { layer, rest, part }
        }
        None => TensorPlace::Outside(format!("model.decoder.{in_encoder}")),
    }
}

fn legacy_rest(rest: &str) -> (String, LegacyPart) {
    const MODULES: [(&str, Module); 7] = [
        ("post_attention_layernorm.", Module::MlpNorm),
        ("self_attention.query_key_value.", Module::Qkv),
        ("attention.query_key_value.", Module::Qkv),
        ("self_attention.dense.", Module::Proj),
        ("attention.dense.", Module::Proj),
        ("mlp.dense_h_to_4h.", Module::Fc1),
        ("mlp.dense_4h_to_h.", Module::Fc2),
    ];
    if let Some(parameter) = rest.strip_prefix("mlp.dense_h_to_4h_2.") {
        return (format!("{}{parameter}", Module::Fc1.stem()), LegacyPart::Up);
    }
    // Norms, and the names of TransformerEngine's layer, are the same in both models.
    (renamed(rest, &MODULES).unwrap_or_else(|| mcore_rest(rest)), LegacyPart::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(stored: &str) -> String {
        place(stored).canonical().unwrap_or_else(|| "unused".to_owned())
    }

    #[test]
    fn names_of_every_kind_become_canonical() {
        let names = [
            "model.embedding.word_embeddings.weight",
            "model.module.embedding.word_embeddings.weight",
            "module.decoder.layers.mlp.linear_fc1.weight",
            "decoder.layers.5.mlp.linear_fc1._orig_mod.weight",
            "model.decoder.layers.0.input_layernorm.bias",
            "model.decoder.layers.pre_mlp_layernorm.weight",
            "model.decoder.layers.7.post_self_attn_layernorm.weight",
            "model.decoder.layers.1.mlp.experts.local_experts.7.linear_fc1.weight",
            "decoder.layers.1.mlp.experts.linear_fc2.weight12",
            "model.decoder.layers.mlp.experts.experts.linear_fc1.weight",
            "decoder.layers.1.mlp.experts.experts.linear_fc2.weight",
            "decoder.layers.mlp.experts.experts.12.linear_fc1.weight",
            "decoder.layers.1.mlp.experts.weight1",
            "decoder.layers.mlp.experts.experts.linear_fc1._extra_state/shard_0_2",
            "decoder.layers.mlp.shared_experts.gate_weight",
            "model.decoder.layers.1.self_attention.layernorm_qkv.layer_norm_weight",
            "model.decoder.layers.1.self_attention.layernorm_qkv.weight",
            "model.decoder.layers.1.self_attention.proj.bias",
            "model.decoder.layers.1.layernorm_mlp.layer_norm_bias",
            "model.decoder.layers.1.layernorm_mlp.fc1_weight",
            "model.decoder.layers.1.layernorm_mlp.fc2_bias",
            "model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2",
            "model.decoder.layers.0.mlp.linear_fc1._extra_state",
            "optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc1.weight",
            "rng_state",
            "model.rm_head.weight",
            "model.word_embeddings.weight",
            "model.language_model.embedding.position_embeddings.weight",
            "model.language_model.rotary_pos_emb.inv_freq",
            "model.module.language_model.encoder.layers.3.input_layernorm.weight",
            "model.language_model.encoder.layers.3.post_attention_layernorm.weight",
            "model.language_model.transformer.layers.3.attention.query_key_value.bias",
            "model.language_model.encoder.layers.3.self_attention.dense.weight",
            "model.language_model.encoder.layers.3.mlp.dense_h_to_4h.weight",
            "model.language_model.encoder.layers.3.mlp.dense_h_to_4h_2.weight",
            "model.language_model.encoder.layers.3.mlp.dense_4h_to_h.bias",
            "model.language_model.encoder.layers.3.layernorm_mlp.fc1_weight",
            "model.language_model.encoder.final_layernorm.weight",
            "model.language_model.output_layer.weight",
        ];
        let table: Vec<String> = names.map(|name| format!("{name} = {}", canonical(name))).to_vec();
        insta::assert_snapshot!(table.join("\n"), @r"
model.embedding.word_embeddings.weight = model.embedding.word_embeddings.weight
model.module.embedding.word_embeddings.weight = model.embedding.word_embeddings.weight
module.decoder.layers.mlp.linear_fc1.weight = model.decoder.layers.*.mlp.linear_fc1.weight
decoder.layers.5.mlp.linear_fc1._orig_mod.weight = model.decoder.layers.5.mlp.linear_fc1.weight
model.decoder.layers.0.input_layernorm.bias = model.decoder.layers.0.self_attention.linear_qkv.layer_norm_bias
model.decoder.layers.pre_mlp_layernorm.weight = model.decoder.layers.*.mlp.linear_fc1.layer_norm_weight
model.decoder.layers.7.post_self_attn_layernorm.weight = model.decoder.layers.7.mlp.linear_fc1.layer_norm_weight
model.decoder.layers.1.mlp.experts.local_experts.7.linear_fc1.weight = model.decoder.layers.1.mlp.experts.local_experts.7.linear_fc1.weight
decoder.layers.1.mlp.experts.linear_fc2.weight12 = model.decoder.layers.1.mlp.experts.local_experts.12.linear_fc2.weight
model.decoder.layers.mlp.experts.experts.linear_fc1.weight = model.decoder.layers.*.mlp.experts.local_experts.*.linear_fc1.weight
decoder.layers.1.mlp.experts.experts.linear_fc2.weight = model.decoder.layers.1.mlp.experts.local_experts.*.linear_fc2.weight
decoder.layers.mlp.experts.experts.12.linear_fc1.weight = model.decoder.layers.*.mlp.experts.local_experts.12.linear_fc1.weight
decoder.layers.1.mlp.experts.weight1 = model.decoder.layers.1.mlp.experts.weight1
decoder.layers.mlp.experts.experts.linear_fc1._extra_state/shard_0_2 = unused
decoder.layers.mlp.shared_experts.gate_weight = model.decoder.layers.*.mlp.shared_experts.gate_weight
model.decoder.layers.1.self_attention.layernorm_qkv.layer_norm_weight = model.decoder.layers.1.self_attention.linear_qkv.layer_norm_weight
model.decoder.layers.1.self_attention.layernorm_qkv.weight = model.decoder.layers.1.self_attention.linear_qkv.weight
model.decoder.layers.1.self_attention.proj.bias = model.decoder.layers.1.self_attention.linear_proj.bias
model.decoder.layers.1.layernorm_mlp.layer_norm_bias = model.decoder.layers.1.mlp.linear_fc1.layer_norm_bias
model.decoder.layers.1.layernorm_mlp.fc1_weight = model.decoder.layers.1.mlp.linear_fc1.weight
model.decoder.layers.1.layernorm_mlp.fc2_bias = model.decoder.layers.1.mlp.linear_fc2.bias
model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2 = unused
model.decoder.layers.0.mlp.linear_fc1._extra_state = unused
optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc1.weight = unused
rng_state = unused
model.rm_head.weight = unused
model.word_embeddings.weight = unused
model.language_model.embedding.position_embeddings.weight = model.embedding.position_embeddings.weight
model.language_model.rotary_pos_emb.inv_freq = unused
model.module.language_model.encoder.layers.3.input_layernorm.weight = model.decoder.layers.3.self_attention.linear_qkv.layer_norm_weight
model.language_model.encoder.layers.3.post_attention_layernorm.weight = model.decoder.layers.3.mlp.linear_fc1.layer_norm_weight
model.language_model.transformer.layers.3.attention.query_key_value.bias = model.decoder.layers.3.self_attention.linear_qkv.bias
model.language_model.encoder.layers.3.self_attention.dense.weight = model.decoder.layers.3.self_attention.linear_proj.weight
model.language_model.encoder.layers.3.mlp.dense_h_to_4h.weight = model.decoder.layers.3.mlp.linear_fc1.weight
model.language_model.encoder.layers.3.mlp.dense_h_to_4h_2.weight = model.decoder.layers.3.mlp.linear_fc1.weight
model.language_model.encoder.layers.3.mlp.dense_4h_to_h.bias = model.decoder.layers.3.mlp.linear_fc2.bias
model.language_model.encoder.layers.3.layernorm_mlp.fc1_weight = model.decoder.layers.3.mlp.linear_fc1.weight
model.language_model.encoder.final_layernorm.weight = model.decoder.final_layernorm.weight
model.language_model.output_layer.weight = model.output_layer.weight
");
        assert_eq!(place_in_rank_file("lora.w"), TensorPlace::Outside("lora.w".to_owned()));
        assert_eq!(place_in_rank_file("model.rm_head.weight"), TensorPlace::Unused);
        let up = place("model.language_model.encoder.layers.3.mlp.dense_h_to_4h_2.weight");
        assert!(matches!(up, TensorPlace::Layer { layer: 3, part: LegacyPart::Up, .. }));
    }
}
