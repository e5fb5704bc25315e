//! Folders of Megatron-LM: `tests/fixtures/scripts/megatron_lm.py` writes them with the original packages.

use std::fs;
use std::path::Path;

use nemo_format::{Checkpoint, FormatError};

use crate::fixtures::{assert_same_tensors, converted, copy_folder, fixture};

const ITERATION: &str = "iter_0000007";

/// Of the arguments: the models that they were written of, with experts and without, whichever layout.
#[test]
fn a_folder_holds_the_model_of_hugging_face_it_was_made_of() {
    for (name, format) in [
        ("qwen3", "Megatron-LM folder, torch_dist"),
        ("qwen2_tied", "Megatron-LM folder, torch_dist"),
        (
            "mixtral",
            "Megatron-LM folder, model_optim_rng.pt of 2 tensor-parallel by 2 pipeline-parallel ranks, experts on 2",
        ),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let original = converted(&fixture(&format!("families/{name}")), temporary.path());
        let root = fixture(&format!("megatron_lm/{name}"));
        for path in [root.clone(), root.join(ITERATION)] {
            let opened = Checkpoint::open(&path).unwrap();
            assert_eq!(opened.format(), format);
            assert_same_tensors(&opened, &original);
            let again = tempfile::tempdir().unwrap();
            assert_same_tensors(&converted(&path, again.path()), &original);
        }
        // What the model follows from is the same, too.
        let (ours, theirs) = (Checkpoint::open(&root).unwrap(), original);
        let keys = [
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "normalization",
            "layernorm_epsilon",
            "activation",
            "share_embeddings_and_output_weights",
            "num_moe_experts",
            "moe_router_topk",
        ];
        for key in keys {
            let (ours, theirs) = (ours.model_config().get(key), theirs.model_config().get(key));
            let none =
                |node: Option<&hydra_config::Node>| node.is_none_or(|node| *node == hydra_config::Node::Null);
            assert!(ours == theirs || (none(ours) && none(theirs)), "{name}: {key}: {ours:?} {theirs:?}");
        }
    }
}

/// Dictionaries in each other, of four ranks, under the names of the model before Megatron-Core.
#[test]
fn the_older_model_is_the_same() {
    let (new, old) = (
        Checkpoint::open(&fixture("megatron_lm/gpt")).unwrap(),
        Checkpoint::open(&fixture("megatron_lm/gpt_legacy")).unwrap(),
    );
    assert_eq!(new.format(), "Megatron-LM folder, model_optim_rng.pt");
    assert_eq!(
        old.format(),
        "Megatron-LM legacy folder, model_optim_rng.pt of 2 tensor-parallel by 2 pipeline-parallel ranks"
    );
    assert_same_tensors(&old, &new);
    let temporary = tempfile::tempdir().unwrap();
    let archive = converted(&fixture("megatron_lm/gpt_legacy"), temporary.path());
    assert_same_tensors(&archive, &new);
    insta::assert_snapshot!(new.model_config_text(), @r"
mcore_gpt: true
transformer_engine: true
num_layers: 2
hidden_size: 32
ffn_hidden_size: 48
num_attention_heads: 4
kv_channels: 8
layernorm_epsilon: 1.0e-05
layernorm_zero_centered_gamma: true
position_embedding_type: rope
rotary_base: 5000
rotary_interleaved: false
share_embeddings_and_output_weights: true
make_vocab_size_divisible_by: 32
hidden_dropout: 0.0
attention_dropout: 0.0
fp32_residual_connection: false
apply_query_key_layer_scaling: false
qk_layernorm: false
multi_latent_attention: false
apply_rope_fusion: false
apply_residual_connection_post_layernorm: false
is_hybrid_model: false
softmax_type: vanilla
glu_linear_offset: 0.0
encoder_seq_length: 64
max_position_embeddings: 64
rotary_percentage: 0.5
bias: true
qkv_bias: false
normalization: layernorm
activation: gelu
openai_gelu: true
bias_activation_fusion: false
precision: 32
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
");
    for (key, value) in new.model_config().as_map().unwrap() {
        if !["mcore_gpt", "tensor_model_parallel_size", "pipeline_model_parallel_size"]
            .contains(&key.as_str())
        {
            assert_eq!(old.model_config().get(key), Some(value), "{key}");
        }
    }
    let notes: Vec<String> = new.notes().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"");
}

#[test]
fn a_missing_tokenizer_is_asked_for() {
    let needed = |name: &str| {
        let checkpoint = Checkpoint::open(&fixture(&format!("megatron_lm/{name}"))).unwrap();
        checkpoint.tokenizer_needed().map(str::to_owned)
    };
    assert_eq!(needed("qwen3"), None);
    insta::assert_snapshot!(needed("qwen2_tied").unwrap(), @"it was trained with the tokenizer `HuggingFaceTokenizer` (`/data/tokenizer`), whose files Megatron-LM does not save: put them into the folder of the iteration as `tokenizer/`, or pass `++model.tokenizer.library=huggingface ++model.tokenizer.type=FOLDER`; a conversion takes `--tokenizer PATH`");
    insta::assert_snapshot!(needed("gpt").unwrap(), @"it was trained with the tokenizer `GPT2BPETokenizer` (`/data/gpt2/vocab.json`), whose files Megatron-LM does not save: put them into the folder of the iteration as `tokenizer/`, or pass `++model.tokenizer.library=megatron ++model.tokenizer.type=GPT2BPETokenizer ++model.tokenizer.vocab_file=vocab.json ++model.tokenizer.merge_file=merges.txt`; a conversion takes `--tokenizer PATH`");
    insta::assert_snapshot!(needed("mixtral").unwrap(), @"it was trained with the tokenizer `HuggingFaceTokenizer` (`/data/tokenizer`), whose files Megatron-LM does not save: put them into the folder of the iteration as `tokenizer/`, or pass `++model.tokenizer.library=huggingface ++model.tokenizer.type=FOLDER`; a conversion takes `--tokenizer PATH`");
}

/// What a copy of a fixture says, edited.
fn error_of(name: &str, edit: impl Fn(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture(&format!("megatron_lm/{name}")), folder.path());
    edit(&folder.path().join(ITERATION));
    let error: FormatError = Checkpoint::open(folder.path()).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default()).replace(&folder.path().display().to_string(), "…")
}

#[test]
fn half_a_folder_says_what_it_lacks() {
    let without = |name: &str, member: &str| {
        error_of(name, |iteration| {
            let path = iteration.join(member);
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        })
    };
    insta::assert_snapshot!(without("qwen3", ".metadata"), @"`…/iter_0000007`, half an iteration: it has 1 data files and no `.metadata`, cannot be read: it was not written to its end, or not copied whole: copy it again, or give another iteration");
    insta::assert_snapshot!(without("qwen2_tied", "common.pt"), @"`…/iter_0000007/__0_0.distcp`, which has no `args`, cannot be read: Megatron-LM keeps the arguments that describe the model there: where it is the weights of a `.nemo`, of NeMo 2 or of Megatron-Bridge, give the folder that also has `model_config.yaml`, `context/` or `run_config.yaml`");
    insta::assert_snapshot!(without("mixtral", "mp_rank_01_001_001"), @"`…/iter_0000007` has no member `mp_rank_01_001_001/model_optim_rng.pt`");
    // The last of a kind: nothing but the arguments tells.
    let last_stage = |iteration: &Path| {
        for folder in ["mp_rank_00_001", "mp_rank_01_001"] {
            fs::remove_dir_all(iteration.join(folder)).unwrap();
        }
    };
    insta::assert_snapshot!(error_of("gpt_legacy", last_stage), @"`…/iter_0000007` has no member `mp_rank_00_001/model_optim_rng.pt`");
    insta::assert_snapshot!(without("gpt", "mp_rank_00/model_optim_rng.pt"), @"`…/iter_0000007`, an iteration without its configuration, cannot be read: it has neither `run_config.yaml` of Megatron-Bridge nor `metadata.json` or `mp_rank_…/model_optim_rng.pt` of Megatron-LM: copy the iteration again");
    // A checkpoint of FSDP has neither.
    let fsdp = |iteration: &Path| {
        fs::remove_file(iteration.join("metadata.json")).unwrap();
    };
    insta::assert_snapshot!(error_of("qwen3", fsdp), @"`…/iter_0000007`, an iteration that Megatron-LM saved with `--ckpt-format fsdp_dtensor` or `torch_dcp`, cannot be read: save it with `--ckpt-format torch_dist`");
    // What Megatron-Bridge saves at the same place.
    let foreign = |iteration: &Path| {
        fs::copy(fixture("bridge/qwen3/iter_0000005/train_state.pt"), iteration.join("common.pt")).unwrap();
    };
    insta::assert_snapshot!(error_of("qwen3", foreign), @"`…/iter_0000007/common.pt`, which has no `args`, cannot be read: Megatron-LM keeps the arguments that describe the model there: where it is the weights of a `.nemo`, of NeMo 2 or of Megatron-Bridge, give the folder that also has `model_config.yaml`, `context/` or `run_config.yaml`");
}
