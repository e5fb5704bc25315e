use std::path::{Path, PathBuf};

use hydra_config::Node;

use crate::{Checkpoint, ConvertOptions, convert_checkpoint};

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// The archive made of a fixture, with all its tensors compared, bit for bit.
fn rewritten(name: &str) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.nemo");
    convert_checkpoint(&fixture(name), &output, &ConvertOptions::default()).unwrap();
    let (old, new) = (Checkpoint::open(&fixture(name)).unwrap(), Checkpoint::open(&output).unwrap());
    assert_eq!(new.format(), "Megatron-Core .nemo (tar), torch_dist");
    assert_eq!(old.tensors().names().count(), new.tensors().names().count(), "{name}");
    for tensor in old.tensors().names() {
        assert_eq!(old.tensors().meta(tensor), new.tensors().meta(tensor), "{name}: {tensor}");
        let (old, new) = (old.tensors().read_whole(tensor), new.tensors().read_whole(tensor));
        assert!(old.unwrap() == new.unwrap(), "{name}: {tensor}");
    }
    let reference = new.model_config().get("tokenizer.model").and_then(Node::as_str).unwrap();
    assert!(reference.starts_with("nemo:"), "{name}: {reference}");
    let tokenizer = old.model_config().get("tokenizer.model").and_then(Node::as_str).unwrap();
    assert!(new.artifact(reference).unwrap() == old.artifact(tokenizer).unwrap());
    new
}

#[test]
fn a_legacy_model_becomes_a_megatron_core_one() {
    insta::assert_snapshot!(rewritten("formats/classic_legacy_tp2_pp2.nemo").model_config_text(), @r"
num_layers: 4
hidden_size: 16
num_attention_heads: 4
kv_channels: null
num_query_groups: null
max_position_embeddings: 32
encoder_seq_length: 32
layernorm_epsilon: 1.0e-05
openai_gelu: false
make_vocab_size_divisible_by: 8
precision: bf16
tokenizer:
  library: sentencepiece
  type: null
  model: nemo:7a1282ddbd44d091e421838eee9c4229_tokenizer.model
  vocab_file: null
  merge_file: null
  delimiter: null
  sentencepiece_legacy: false
ffn_hidden_size: 40
normalization: layernorm
activation: gelu
bias: true
position_embedding_type: learned_absolute
share_embeddings_and_output_weights: true
mcore_gpt: true
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
transformer_engine: true
use_cpu_initialization: false
");
    for name in [
        "classic_legacy_gz_nonzip",
        "gated_legacy_split_qkv_tp2",
        "gated_legacy_swiglu_tp2",
        "gated_legacy_te_tp2",
    ] {
        let written = rewritten(&format!("formats/{name}.nemo"));
        assert_eq!(written.model_config().get("mcore_gpt"), Some(&Node::Bool(true)), "{name}");
        assert_ne!(written.model_config().get("megatron_legacy"), Some(&Node::Bool(true)), "{name}");
    }
}

#[test]
fn ranks_backends_and_generations_are_packed_alike() {
    for name in
        ["gated_mcore_full_te.nemo", "gated_mcore_unfused_tp2.nemo", "gated_zarr_tp2.nemo", "gated_nemo2"]
    {
        let written = rewritten(&format!("formats/{name}"));
        assert_eq!(written.model_config().get("name"), None, "{name}");
        assert_eq!(written.model_config().get("mcore_gpt"), Some(&Node::Bool(true)), "{name}");
    }
}

/// As NVIDIA publishes a Nemotron-4: a folder with zarr arrays and the tokenizer beside its configuration.
#[test]
fn a_published_folder_is_packed() {
    let written = rewritten("nvidia/nemotron4");
    assert_eq!(written.model_config().get("activation"), Some(&Node::from("squared-relu")));
}

#[test]
fn a_path_of_another_machine_becomes_a_member() {
    let folder = tempfile::tempdir().unwrap();
    let archive = std::fs::File::open(fixture("formats/gated_legacy.nemo")).unwrap();
    tar::Archive::new(archive).unpack(folder.path()).unwrap();
    let config = folder.path().join("model_config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("nemo:0123456789abcdef0123456789abcdef_", "/home/someone/");
    std::fs::write(&config, text).unwrap();
    let output = folder.path().join("out.nemo");
    convert_checkpoint(folder.path(), &output, &ConvertOptions::default()).unwrap();
    let written = Checkpoint::open(&output).unwrap();
    let reference = written.model_config().get("tokenizer.model").and_then(Node::as_str).unwrap();
    assert_eq!(reference, format!("nemo:{}", written.artifact_names()[0]));
}
