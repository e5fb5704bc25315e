//! Checkpoints with something missing, contradictory or damaged say what, where, and what to do.

use std::fs;
use std::path::{Path, PathBuf};

use nemo_format::Checkpoint;
use proptest::prelude::*;

use crate::fixtures::fixture;

/// A fixture, extracted.
struct Extracted(tempfile::TempDir);

impl Extracted {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = fs::File::open(fixture(&format!("formats/{name}.nemo"))).unwrap();
        tar::Archive::new(archive).unpack(folder.path()).unwrap();
        Self(folder)
    }

    fn path(&self, member: &str) -> PathBuf {
        self.0.path().join(member)
    }

    fn remove(self, member: &str) -> Self {
        fs::remove_file(self.path(member)).unwrap();
        self
    }

    fn replace(self, member: &str, old: &str, new: &str) -> Self {
        let text = fs::read_to_string(self.path(member)).unwrap();
        assert!(text.contains(old), "{text}");
        fs::write(self.path(member), text.replace(old, new)).unwrap();
        self
    }

    fn rename(self, old: &str, new: &str) -> Self {
        fs::rename(self.path(old), self.path(new)).unwrap();
        self
    }

    fn cut(self, member: &str, len_bytes: u64) -> Self {
        fs::OpenOptions::new().write(true).open(self.path(member)).unwrap().set_len(len_bytes).unwrap();
        self
    }

    /// What opening it says.
    fn error(&self) -> String {
        let error = Checkpoint::open(self.0.path()).unwrap_err().to_string();
        error.replace(&self.0.path().display().to_string(), "…")
    }
}

#[test]
fn missing_and_contradictory_ranks_are_named() {
    let ranks = || Extracted::new("gated_legacy_swiglu_tp2");
    let grid = || Extracted::new("classic_legacy_tp2_pp2");
    let weights = "model_weights.ckpt";
    insta::assert_snapshot!(ranks().remove(&format!("mp_rank_00/{weights}")).error(), @"`…` has no member `mp_rank_00/model_weights.ckpt`");
    // Nothing but the configuration tells that the last rank is gone.
    insta::assert_snapshot!(ranks().remove(&format!("mp_rank_01/{weights}")).error(), @"`…` has no member `mp_rank_01/model_weights.ckpt`");
    insta::assert_snapshot!(grid().remove(&format!("tp_rank_01_pp_rank_000/{weights}")).error(), @"`…` has no member `tp_rank_01_pp_rank_000/model_weights.ckpt`");
    let last_stage = grid()
        .remove(&format!("tp_rank_00_pp_rank_001/{weights}"))
        .remove(&format!("tp_rank_01_pp_rank_001/{weights}"));
    insta::assert_snapshot!(last_stage.error(), @"`…` has no member `tp_rank_00_pp_rank_001/model_weights.ckpt`");
    insta::assert_snapshot!(ranks().rename("mp_rank_01", "mp_rank_00_fsdp_shard_00001").error(), @"`…/mp_rank_00_fsdp_shard_00001/model_weights.ckpt` cannot be read: weights are read from `model_weights.ckpt`, `mp_rank_00/`, `tp_rank_00_pp_rank_000/` or a distributed checkpoint in `model_weights/`; export a training checkpoint first");
    insta::assert_snapshot!(ranks().rename("mp_rank_01", "tp_rank_00_pp_rank_001").error(), @"`…` is damaged at byte 0: it has `model_weights.ckpt` of several kinds; keep the files of one export");
    insta::assert_snapshot!(ranks().cut(&format!("mp_rank_01/{weights}"), 5000).error(), @"`…/mp_rank_01/model_weights.ckpt` is damaged at byte 5000: invalid Zip archive: Could not find EOCD: it is cut off or no zip; copy it again");
    let other = Extracted::new("gated_legacy_te_tp2");
    let mixed = ranks();
    fs::copy(other.path(&format!("mp_rank_01/{weights}")), mixed.path(&format!("mp_rank_01/{weights}")))
        .unwrap();
    insta::assert_snapshot!(mixed.error(), @"tensor `model.language_model.encoder.layers.0.input_layernorm.bias` is inconsistent: `…/mp_rank_00/model_weights.ckpt` has it, `…/mp_rank_01/model_weights.ckpt` does not; the ranks are not of one checkpoint");
    let sizes = Extracted::new("gated_legacy_split_qkv_tp2").replace(
        "model_config.yaml",
        "num_attention_heads: 4",
        "num_attention_heads: 6",
    );
    insta::assert_snapshot!(sizes.error(), @"tensor `model.language_model.transformer.layers.0.attention.query_key_value.weight` is inconsistent: `megatron_legacy` needs three equal parts for every attention head");
}

#[test]
fn zarr_of_another_kind_is_refused() {
    let zarr = || Extracted::new("gated_zarr_tp2");
    let array = "model_weights/model.decoder.layers.mlp.linear_fc1.weight";
    let header = format!("{array}/.zarray");
    insta::assert_snapshot!(zarr().remove(&format!("{array}/2.1.0")).error(), @"`…` has no member `model_weights/model.decoder.layers.mlp.linear_fc1.weight/2.1.0`");
    insta::assert_snapshot!(zarr().cut(&format!("{array}/2.1.0"), 100).error(), @"tensor `model.decoder.layers.mlp.linear_fc1.weight` is inconsistent: its chunk file `model_weights/model.decoder.layers.mlp.linear_fc1.weight/2.1.0` has 100 bytes, a chunk of [1, 12, 16] bfloat16 needs 384; copy the checkpoint again");
    let compressed = r#""compressor": {"id": "blosc", "clevel": 5}"#;
    insta::assert_snapshot!(zarr().replace(&header, r#""compressor": null"#, compressed).error(), @"the zarr array `model.decoder.layers.mlp.linear_fc1.weight` with the compressor `blosc` cannot be read: write it again as Megatron does: zarr v2, no compressor, no filters, order C, little endian");
    insta::assert_snapshot!(zarr().replace(&header, r#""order": "C""#, r#""order": "F""#).error(), @"the zarr array `model.decoder.layers.mlp.linear_fc1.weight` with order `F` cannot be read: write it again as Megatron does: zarr v2, no compressor, no filters, order C, little endian");
    insta::assert_snapshot!(zarr().replace(&header, r#""zarr_format": 2"#, r#""zarr_format": 3"#).error(), @"the zarr array `model.decoder.layers.mlp.linear_fc1.weight` with `zarr_format` 3 cannot be read: write it again as Megatron does: zarr v2, no compressor, no filters, order C, little endian");
    let filters = r#""filters": [{"id": "delta"}]"#;
    insta::assert_snapshot!(zarr().replace(&header, r#""filters": null"#, filters).error(), @"the zarr array `model.decoder.layers.mlp.linear_fc1.weight` with filters cannot be read: write it again as Megatron does: zarr v2, no compressor, no filters, order C, little endian");
    let huge =
        zarr().replace(&header, "    \"shape\": [\n        4,", "    \"shape\": [\n        4000000000000,");
    insta::assert_snapshot!(huge.error(), @"`…/model_weights/model.decoder.layers.mlp.linear_fc1.weight/.zarray` has 16000000000000 chunks, the limit is 32768");
    let foreign = zarr().replace("model_weights/metadata.json", r#""zarr""#, r#""zarr3""#);
    insta::assert_snapshot!(foreign.error(), @"`…/model_weights/metadata.json`, whose `sharded_backend` is `zarr3`, cannot be read: save it with the `torch_dist` or the `zarr` backend");
}

#[test]
fn zarr_names_of_bfloat16_mean_the_same() {
    let array = "model_weights/model.decoder.layers.mlp.linear_fc1.weight/.zarray";
    for name in ["<V2", "|V2"] {
        let zarr = Extracted::new("gated_zarr_tp2").replace(array, "bfloat16", name);
        let checkpoint = Checkpoint::open(zarr.0.path()).unwrap();
        let meta = checkpoint.tensors().meta("model.decoder.layers.0.mlp.linear_fc1.weight").unwrap();
        assert_eq!(meta.dtype, nemo_format::DType::BF16);
    }
}

#[test]
fn torch_dist_with_something_missing_is_reported() {
    let dist = || Extracted::new("classic_torch_dist_unstacked_tp2");
    let data = "model_weights/__0_0.distcp";
    insta::assert_snapshot!(dist().remove(data).error(), @"`…` has no member `model_weights/__0_0.distcp`");
    insta::assert_snapshot!(dist().remove("model_weights/.metadata").error(), @"`…` has no member `model_weights/.metadata`");
    insta::assert_snapshot!(dist().remove("model_weights/metadata.json").error(), @"`…` has no member `model_weights/metadata.json`");
    let message = dist().cut(data, 20_000).error();
    let number = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "#");
    assert!(number(&message).contains("of `model_weights/__#_#.distcp`, which has #####; copy"), "{message}");
}

#[test]
fn nemo_2_says_which_functions_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("formats/gated_nemo2"), folder.path());
    let yaml = folder.path().join("context/model.yaml");
    let text = fs::read_to_string(&yaml).unwrap();
    let message = |text: &str| {
        fs::write(&yaml, text).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "…")
    };
    insta::assert_snapshot!(message(&text.replace("functional.silu", "functional.mish")), @"`…/context/model.yaml` is not a model configuration: its `activation_func` is the gated function `mish`; supported are silu (gated), gelu, openai_gelu, fast_gelu, relu (gated), squared_relu and quick_gelu");
    insta::assert_snapshot!(message("tokenizer: null\n"), @"`…/context/model.yaml` is not a model configuration: it has no `config` section with the model's dimensions");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Opens a damaged file and reads all that can be read.
fn read_everything(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.nemo");
    fs::write(&path, bytes).unwrap();
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    let tensors = checkpoint.tensors();
    for name in tensors.names() {
        let _ = tensors.mapped_bytes(name);
        if tensors.meta(name).and_then(|meta| meta.size_bytes()).is_some_and(|size| size < 1 << 20) {
            let _ = tensors.read_whole(name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn damaged_checkpoints_never_panic(
        name in proptest::sample::select(vec![
            "gated_legacy_swiglu_tp2", "classic_legacy_gz_nonzip", "classic_legacy_tp2_pp2",
            "classic_torch_dist_unstacked_tp2", "gated_zarr_tp2",
        ]),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
    ) {
        let mut bytes = fs::read(fixture(&format!("formats/{name}.nemo"))).unwrap();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_everything(&bytes);
    }

    /// Damage where it hurts: in what says how the tensors lie.
    #[test]
    fn damaged_headers_never_panic(
        (file, member) in proptest::sample::select(vec![
            ("classic_torch_dist_unstacked_tp2", "./model_weights/.metadata"),
            ("gated_zarr_tp2", "./model_weights/model.decoder.layers.mlp.linear_fc1.weight/.zarray"),
            ("gated_zarr_tp2", "./model_weights/metadata.json"),
            ("gated_mcore_full_te", "./model_weights.ckpt"),
            ("classic_legacy_tp2_pp2", "./tp_rank_00_pp_rank_000/model_weights.ckpt"),
            ("gated_legacy_split_qkv_tp2", "./model_config.yaml"),
        ]),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = fs::read(fixture(&format!("formats/{file}.nemo"))).unwrap();
        let name = [member.as_bytes(), &[0]].concat();
        let header = bytes.windows(name.len()).position(|window| window == name).unwrap();
        let size = std::str::from_utf8(&bytes[header + 124..header + 135]).unwrap();
        // The pickle of a torch file is at its beginning.
        let len = usize::from_str_radix(size, 8).unwrap().min(8000);
        for (at, byte) in edits {
            bytes[header + 512 + at.index(len)] = byte;
        }
        read_everything(&bytes);
    }
}
