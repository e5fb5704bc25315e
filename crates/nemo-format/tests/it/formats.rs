//! Every way that a checkpoint is stored holds the same tensors, bit for bit.

use nemo_format::{Checkpoint, ConvertOptions, Region, convert_checkpoint};

use crate::fixtures::{assert_same_tensors, check, converted, fixture};

/// Stored ways of the model `gated`, as `tests/fixtures/scripts/stored_formats.py` writes them.
const GATED: [&str; 10] = [
    "gated_legacy.nemo",
    "gated_legacy_swiglu_tp2.nemo",
    "gated_legacy_tp2_pp2.nemo",
    "gated_legacy_split_qkv_tp2.nemo",
    "gated_legacy_te_tp2.nemo",
    "gated_mcore_full_te.nemo",
    "gated_mcore_unfused_tp2.nemo",
    "gated_torch_dist_tp2_pt25.nemo",
    "gated_zarr_tp2.nemo",
    "gated_nemo2",
];
const CLASSIC: [&str; 3] =
    ["classic_legacy_tp2_pp2.nemo", "classic_legacy_gz_nonzip.nemo", "classic_torch_dist_unstacked_tp2.nemo"];

#[test]
fn every_way_to_store_a_model_holds_its_tensors() {
    for name in GATED {
        check(&format!("formats/{name}"), "formats/gated.safetensors", 0);
    }
    for name in CLASSIC {
        check(&format!("formats/{name}"), "formats/classic.safetensors", 0);
    }
}

#[test]
fn files_of_the_original_software_hold_their_tensors() {
    check("mcore_gptnext/gptnext_bf16_zarr.nemo", "mcore_gptnext/expected.safetensors", 0);
    check("mcore_gptnext/gptnext_bf16_ckpt.nemo", "mcore_gptnext/expected.safetensors", 0);
    check("legacy/gptnext_legacy_bf16_tp2.nemo", "mcore_gptnext/expected.safetensors", 0);
}

/// The names that experts have in memory, as `tests/fixtures/scripts/moe_ranks.py` writes them.
#[test]
fn experts_in_files_of_ranks_are_those_of_hugging_face() {
    let folder = tempfile::tempdir().unwrap();
    let original = converted(&fixture("families/mixtral"), folder.path());
    for name in ["mixtral_sequential_tp2_pp2.nemo", "mixtral_grouped.nemo"] {
        let opened = Checkpoint::open(&fixture(&format!("formats/{name}"))).unwrap();
        assert_same_tensors(&opened, &original);
        let notes: Vec<String> = opened.notes().iter().map(ToString::to_string).collect();
        assert_eq!(notes, [""; 0], "{name}");
    }
}

#[test]
fn what_lies_in_one_piece_is_used_in_place() {
    let mapped = |file: &str, tensor: &str| {
        Checkpoint::open(&fixture(file)).unwrap().tensors().mapped_bytes(tensor).is_some()
    };
    let fc1 = "model.decoder.layers.1.mlp.linear_fc1.weight";
    let norm = "model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight";
    assert!(mapped("mcore_gptnext/gptnext_bf16_ckpt.nemo", fc1));
    assert!(mapped("formats/gated_legacy.nemo", fc1));
    assert!(mapped("formats/classic_legacy_gz_nonzip.nemo", fc1));
    assert!(mapped("formats/gated_zarr_tp2.nemo", norm));
    assert!(mapped("formats/gated_legacy_te_tp2.nemo", norm));
    assert!(!mapped("formats/gated_legacy_te_tp2.nemo", fc1));
}

#[test]
fn regions_of_merged_tensors_are_parts_of_the_whole() {
    for file in [GATED[1], GATED[3], GATED[4], GATED[8]] {
        let checkpoint = Checkpoint::open(&fixture(&format!("formats/{file}"))).unwrap();
        let tensors = checkpoint.tensors();
        for name in ["mlp.linear_fc1.weight", "mlp.linear_fc2.weight", "self_attention.linear_qkv.weight"] {
            let name = format!("model.decoder.layers.2.{name}");
            let shape = tensors.meta(&name).unwrap().shape.clone();
            let whole = tensors.read_whole(&name).unwrap();
            let (rows, columns) = (shape[0] / 3..shape[0] - 1, 3..shape[1] - 2);
            let mut part = vec![0; ((rows.end - rows.start) * (columns.end - columns.start) * 2) as usize];
            let region = Region { ranges: vec![rows.clone(), columns.clone()] };
            tensors.read(&name, &region, &mut part).unwrap();
            let row = |row: u64| {
                let start = row * shape[1];
                whole[((start + columns.start) * 2) as usize..((start + columns.end) * 2) as usize].to_vec()
            };
            assert!(part == rows.flat_map(row).collect::<Vec<_>>(), "{file}: {name}");
        }
    }
}

#[test]
fn formats_are_named() {
    let names: Vec<String> = GATED
        .iter()
        .chain(&CLASSIC)
        .map(|name| {
            let checkpoint = Checkpoint::open(&fixture(&format!("formats/{name}"))).unwrap();
            format!("{name}: {}", checkpoint.format())
        })
        .collect();
    insta::assert_snapshot!(names.join("\n"), @r"
gated_legacy.nemo: NeMo legacy .nemo (tar), model_weights.ckpt
gated_legacy_swiglu_tp2.nemo: NeMo legacy .nemo (tar), model_weights.ckpt of 2 tensor-parallel ranks
gated_legacy_tp2_pp2.nemo: NeMo legacy .nemo (tar), model_weights.ckpt of 2 tensor-parallel by 2 pipeline-parallel ranks
gated_legacy_split_qkv_tp2.nemo: NeMo legacy .nemo (tar), model_weights.ckpt of 2 tensor-parallel ranks
gated_legacy_te_tp2.nemo: NeMo legacy .nemo (tar), model_weights.ckpt of 2 tensor-parallel ranks
gated_mcore_full_te.nemo: Megatron-Core .nemo (tar), model_weights.ckpt
gated_mcore_unfused_tp2.nemo: Megatron-Core .nemo (tar), model_weights.ckpt of 2 tensor-parallel ranks
gated_torch_dist_tp2_pt25.nemo: Megatron-Core .nemo (tar), torch_dist
gated_zarr_tp2.nemo: Megatron-Core .nemo (tar), zarr
gated_nemo2: NeMo 2.0 folder, torch_dist
classic_legacy_tp2_pp2.nemo: NeMo legacy .nemo (tar), model_weights.ckpt of 2 tensor-parallel by 2 pipeline-parallel ranks
classic_legacy_gz_nonzip.nemo: NeMo legacy .nemo (gzip tar), model_weights.ckpt
classic_torch_dist_unstacked_tp2.nemo: Megatron-Core .nemo (tar), torch_dist
");
}

#[test]
fn nemo_2_is_described_in_the_keys_of_nemo_1() {
    let checkpoint = Checkpoint::open(&fixture("formats/gated_nemo2")).unwrap();
    insta::assert_snapshot!(checkpoint.model_config_text(), @r"
mcore_gpt: true
transformer_engine: true
num_layers: 4
hidden_size: 16
ffn_hidden_size: 24
num_attention_heads: 4
layernorm_epsilon: 1.0e-05
layernorm_zero_centered_gamma: true
position_embedding_type: rope
rotary_base: 10000
share_embeddings_and_output_weights: false
make_vocab_size_divisible_by: 8
encoder_seq_length: 32
max_position_embeddings: 32
rotary_percentage: 0.5
bias: false
normalization: layernorm
activation: fast-swiglu
openai_gelu: false
bias_activation_fusion: false
precision: bf16
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
tokenizer:
  library: sentencepiece
  type: null
  model: nemo:context/8f14e45f/tokenizer.model
  sentencepiece_legacy: false
");
    assert_eq!(checkpoint.artifact_names(), ["context/8f14e45f/tokenizer.model"]);
    let reference = checkpoint.model_config().get("tokenizer.model").and_then(|node| node.as_str()).unwrap();
    let original = std::fs::read(fixture("tokenizers/llama_bpe.model")).unwrap();
    assert!(checkpoint.artifact(reference).unwrap() == original);
}

/// A Mixtral as NeMo 2 saves it: the fields of `MixtralConfig`, and arrays that count layers and experts.
#[test]
fn experts_of_nemo_2_are_those_of_nemo_1() {
    const FIELDS: &str = "
_target_: nemo.collections.llm.gpt.model.mixtral.MixtralModel
config:
  _target_: nemo.collections.llm.gpt.model.mixtral.MixtralConfig8x7B
  num_layers: 2
  hidden_size: 32
  ffn_hidden_size: 40
  moe_ffn_hidden_size: 40
  num_attention_heads: 4
  num_query_groups: 2
  seq_length: 64
  normalization: RMSNorm
  layernorm_epsilon: 1.0e-05
  gated_linear_unit: true
  activation_func:
    _call_: false
    _target_: torch.nn.functional.silu
  add_bias_linear: false
  bias_activation_fusion: true
  position_embedding_type: rope
  rotary_percent: 1.0
  rotary_base: 1000000.0
  share_embeddings_and_output_weights: false
  num_moe_experts: 4
  moe_aux_loss_coeff: 0.01
  moe_router_topk: 2
  moe_router_pre_softmax: false
  moe_token_dispatcher_type: alltoall
  moe_router_load_balancing_type: aux_loss
  bf16: true
";
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("converted.nemo");
    convert_checkpoint(&fixture("families/mixtral"), &archive, &ConvertOptions::default()).unwrap();
    let folder = scratch.path().join("nemo2");
    tar::Archive::new(std::fs::File::open(&archive).unwrap()).unpack(&folder).unwrap();
    std::fs::rename(folder.join("model_weights"), folder.join("weights")).unwrap();
    std::fs::remove_file(folder.join("model_config.yaml")).unwrap();
    std::fs::create_dir(folder.join("context")).unwrap();
    std::fs::write(folder.join("context/model.yaml"), FIELDS).unwrap();
    let (one, two) = (Checkpoint::open(&archive).unwrap(), Checkpoint::open(&folder).unwrap());
    assert_eq!(two.format(), "NeMo 2.0 folder, torch_dist");
    for name in one.tensors().names() {
        assert!(one.tensors().read_whole(name).unwrap() == two.tensors().read_whole(name).unwrap(), "{name}");
    }
    assert_eq!(one.tensors().names().count(), two.tensors().names().count());
    let keys =
        ["num_moe_experts", "moe_router_topk", "moe_router_pre_softmax", "moe_ffn_hidden_size", "activation"];
    for key in keys {
        assert_eq!(one.model_config().get(key), two.model_config().get(key), "{key}");
    }
    assert!(two.notes().is_empty(), "{:?}", two.notes());
}
