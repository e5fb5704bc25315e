//! What a checkpoint of NeMo holds beside the model that is read: other models, other keys, other tensors.

use hydra_config::Node;

use crate::archive::{Archive, CONFIG};
use crate::dist_ckpt::{FOLDER, ShardedBackend};
use crate::source_note::recorded;
use crate::{SourceNote, StoredTensorInfo, nemo2};

/// Names that only the weights of a Hugging Face folder have.
const HF_WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// A model of another format in the same folder. `used` is the configuration that counts.
pub(crate) fn of_files(archive: &Archive, used: &str) -> Vec<SourceNote> {
    let has = |name: &str| archive.get(name).is_some();
    let mut notes = Vec::new();
    let mut say = |ignored: &str| {
        notes.push(SourceNote::Contradiction {
            used: format!("the model of `{used}`"),
            ignored: ignored.to_owned(),
            difference: "it lies in the same folder".to_owned(),
        });
    };
    if has("config.json") && HF_WEIGHTS.iter().any(|name| has(name)) {
        say("a Hugging Face model (`config.json`)");
    }
    if used == CONFIG && has(nemo2::CONFIG) {
        say("a model of NeMo 2 (`context/model.yaml`)");
    }
    notes
}

/// NeMo takes the files of ranks where both are there.
pub(crate) fn ranks_and_folder() -> SourceNote {
    SourceNote::Contradiction {
        used: "`model_weights.ckpt`, as in NeMo,".to_owned(),
        ignored: format!("`{FOLDER}/`"),
        difference: "the checkpoint has both".to_owned(),
    }
}

/// Arrays of the other backend in the folder of a distributed checkpoint.
pub(crate) fn of_backend(archive: &Archive, folder: &str, backend: ShardedBackend) -> Option<SourceNote> {
    let (other, endings): (_, &[&str]) = match backend {
        ShardedBackend::TorchDist => (ShardedBackend::Zarr, &["/.zarray"]),
        ShardedBackend::Zarr => (ShardedBackend::TorchDist, &["/.metadata", ".distcp"]),
    };
    let is_other = |name: &&str| {
        name.strip_prefix(folder).is_some_and(|rest| endings.iter().any(|ending| rest.ends_with(ending)))
    };
    let stranger = archive.names().find(is_other)?;
    Some(SourceNote::Contradiction {
        used: format!("the {} checkpoint that `{folder}/metadata.json` states", backend.name()),
        ignored: format!("a {} checkpoint", other.name()),
        difference: format!("`{stranger}` is there, too"),
    })
}

/// Keys of the configuration in `file` that are not understood.
pub(crate) fn of_keys(file: &str, keys: Vec<String>) -> Option<SourceNote> {
    (!keys.is_empty()).then(|| SourceNote::UnusedKeys { file: file.to_owned(), keys })
}

/// Tensors that no part of the model is made of, and what a conversion has noted.
pub(crate) fn of_tensors(stored: &[StoredTensorInfo], config: &Node) -> Vec<SourceNote> {
    let mut groups: Vec<(String, usize)> = Vec::new();
    for info in stored.iter().filter(|info| info.canonical.is_none()) {
        let what = kind(&info.name);
        match groups.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => groups.push((what, 1)),
        }
    }
    let mut notes = recorded(config);
    notes.extend(of_router(config));
    if !groups.is_empty() {
        notes.push(SourceNote::UnusedTensors { groups });
    }
    notes
}

/// Whether the weights of experts are other than those of the Mixtral that the model looks like.
fn of_router(config: &Node) -> Option<SourceNote> {
    let number = |key: &str| config.get(key).and_then(Node::as_f64).unwrap_or(0.0);
    let is_on = |key: &str| config.get(key).and_then(Node::as_bool).unwrap_or(false);
    let looks_like_mixtral = number("num_moe_experts") > 1.0
        && number("moe_shared_expert_intermediate_size") == 0.0
        && !is_on("qk_layernorm");
    let has_several = config.get("moe_router_topk").is_none_or(|topk| topk.as_f64() != Some(1.0));
    (looks_like_mixtral && has_several && is_on("moe_router_pre_softmax"))
        .then_some(SourceNote::UnnormedExperts)
}

/// What a tensor that is not used is a part of.
fn kind(name: &str) -> String {
    let key = name.split('/').next().unwrap_or(name);
    if key.ends_with("_extra_state") {
        return "Transformer Engine's `_extra_state`".to_owned();
    }
    if key.ends_with("inv_freq") {
        return "the buffer `inv_freq`".to_owned();
    }
    match key.split('.').next() {
        Some(first @ "optimizer") => format!("`{first}`"),
        _ if key.contains("rm_head.") => "a reward model's `rm_head`".to_owned(),
        _ => format!("`{key}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_of_nemos_mixtral_is_noted() {
        let of = |text: &str| of_router(&hydra_config::yaml::parse(text, "x").unwrap()).is_some();
        assert!(of("num_moe_experts: 8\nmoe_router_topk: 2\nmoe_router_pre_softmax: true\n"));
        assert!(!of("num_moe_experts: 8\nmoe_router_topk: 1\nmoe_router_pre_softmax: true\n"));
        assert!(!of("num_moe_experts: 8\nmoe_router_topk: 2\nmoe_router_pre_softmax: false\n"));
        assert!(!of("num_moe_experts: 8\nqk_layernorm: true\nmoe_router_pre_softmax: true\n"));
        assert!(!of("num_moe_experts: null\nmoe_router_pre_softmax: true\n"));
    }

    #[test]
    fn unused_tensors_are_counted_by_what_they_are() {
        for (name, expect) in [
            (
                "model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2",
                "Transformer Engine's `_extra_state`",
            ),
            ("model.language_model.rotary_pos_emb.inv_freq", "the buffer `inv_freq`"),
            ("optimizer.state.exp_avg.module.x", "`optimizer`"),
            ("model.rm_head.weight", "a reward model's `rm_head`"),
            ("rng_state", "`rng_state`"),
        ] {
            assert_eq!(kind(name), expect);
        }
    }
}
