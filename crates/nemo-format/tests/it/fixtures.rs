//! Every tensor of the reference checkpoints, bit for bit.

use std::path::{Path, PathBuf};

use nemo_format::{Checkpoint, ConvertOptions, Region, convert_checkpoint};

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/")).join(name)
}

/// Copies a folder with all below it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The checkpoint holds just the tensors of `expected.safetensors` (bfloat16), at its own precision.
pub(crate) fn check(checkpoint: &str, expected: &str, extra_rows: u64) {
    let opened = Checkpoint::open(&fixture(checkpoint)).unwrap();
    let tensors = opened.tensors();
    let bytes = std::fs::read(fixture(expected)).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<&str> = tensors.names().collect();
    let mut expected_names = expected.names();
    names.sort_unstable();
    expected_names.sort_unstable();
    assert_eq!(names, expected_names);
    for name in names {
        let meta = tensors.meta(name).unwrap();
        let want = expected.tensor(name).unwrap();
        let mut shape = meta.shape.clone();
        if name.contains("word_embeddings") || name.contains("output_layer") {
            shape[0] -= extra_rows;
        }
        assert_eq!(shape, want.shape().iter().map(|&dim| dim as u64).collect::<Vec<_>>(), "{name}");
        let region = Region::whole(&shape);
        let elem_bytes = meta.dtype.size_bytes();
        let mut actual = vec![0; want.data().len() / 2 * elem_bytes];
        tensors.read(name, &region, &mut actual).unwrap();
        // A float32 copy of a bfloat16 value ends in its two bytes.
        let as_bf16: Vec<u8> =
            actual.chunks(elem_bytes).flat_map(|elem| elem[elem_bytes - 2..].to_vec()).collect();
        assert!(as_bf16 == want.data(), "{checkpoint}: {name}");
        if let Some(mapped) = tensors.mapped_bytes(name) {
            assert!(mapped == tensors.read_whole(name).unwrap(), "{checkpoint}: {name}");
        }
    }
}

#[test]
fn tensors_equal_the_originals() {
    check("mcore_llama/llama_fp32_torch_dist.nemo", "mcore_llama/expected.safetensors", 0);
    check("mcore_llama/llama_bf16_torch_dist_tp2.nemo", "mcore_llama/expected.safetensors", 4);
    check("mcore_gptnext/gptnext_fp32_torch_dist.nemo", "mcore_gptnext/expected.safetensors", 0);
}

#[test]
fn regions_are_parts_of_the_whole() {
    let checkpoint = Checkpoint::open(&fixture("mcore_llama/llama_bf16_torch_dist_tp2.nemo")).unwrap();
    let tensors = checkpoint.tensors();
    let name = "model.decoder.layers.2.mlp.linear_fc1.weight";
    let whole = tensors.read_whole(name).unwrap();
    let columns = tensors.meta(name).unwrap().shape[1] as usize;
    let region = Region { ranges: vec![50..60, 3..7] };
    let mut part = vec![0; 10 * 4 * 2];
    tensors.read(name, &region, &mut part).unwrap();
    let expected: Vec<u8> =
        (50..60).flat_map(|row| whole[(row * columns + 3) * 2..(row * columns + 7) * 2].to_vec()).collect();
    assert_eq!(part, expected);
    assert!(tensors.read(name, &region, &mut [0; 3]).is_err());
    assert!(tensors.read(name, &Region { ranges: vec![0..1, 0..1000] }, &mut [0; 2000]).is_err());
    assert!(tensors.read("nope", &region, &mut part).is_err());
}

#[test]
fn unsupported_and_incomplete_checkpoints_say_so() {
    let message = |name: &str| {
        let error = Checkpoint::open(&fixture(name)).unwrap_err().to_string();
        error.replace(&fixture("").display().to_string(), "")
    };
    insta::assert_snapshot!(message("refused/lora.nemo"), @"`refused/lora.nemo: model_weights.ckpt`, the adapters of a LoRA or PEFT tuning (`model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight`) without their model, cannot be read: give the checkpoint of the model, and the adapters of a LoRA in `++model.peft.restore_from_path=PATH` (conversion: `--adapter PATH`)");
    insta::assert_snapshot!(message("refused/virtual_stages.nemo"), @"`refused/virtual_stages.nemo: model_weights.ckpt`, where `model0` is one of several interleaved stages, cannot be read: layers are read in the order of plain pipeline ranks: export it with `virtual_pipeline_model_parallel_size: null`, or as a distributed checkpoint");
    insta::assert_snapshot!(message("refused/virtual_pp2.nemo"), @"`refused/virtual_pp2.nemo`, pipeline ranks with `virtual_pipeline_model_parallel_size: 2`, cannot be read: layers are read in the order of plain pipeline ranks: export it with `virtual_pipeline_model_parallel_size: null`, or as a distributed checkpoint");
    insta::assert_snapshot!(message("refused/peft"), @"`refused/peft`, the adapters of a PEFT tuning (`adapter_config.json`) without their model, cannot be read: give the checkpoint of the model, and the adapters of a LoRA in `++model.peft.restore_from_path=PATH` (conversion: `--adapter PATH`)");
    insta::assert_snapshot!(message("container/missing_config.nemo"), @"`container/missing_config.nemo` has no member `model_config.yaml`");
    insta::assert_snapshot!(message("container/missing_weights.nemo"), @"`container/missing_weights.nemo` holds no weights: it needs `model_weights/metadata.json`, `model_weights.ckpt` or a `model_weights.ckpt` per rank; export or copy it again");
    insta::assert_snapshot!(message("no/such.nemo"), @"cannot open `no/such.nemo`");
    insta::assert_snapshot!(message("hf_llama"), @"`hf_llama`, a Hugging Face folder, cannot be read: convert it first: `aligner-gen convert-checkpoint --input hf_llama --output OUTPUT.nemo`");
    insta::assert_snapshot!(message("mcore_llama/expected.safetensors"), @"`mcore_llama/expected.safetensors` is damaged at byte 0: it is not a tar archive");
}

pub(crate) fn assert_same_tensors(actual: &Checkpoint, expected: &Checkpoint) {
    let (actual, expected) = (actual.tensors(), expected.tensors());
    assert_eq!(actual.names().count(), expected.names().count());
    for name in expected.names() {
        assert_eq!(actual.meta(name), expected.meta(name), "{name}");
        assert!(actual.read_whole(name).unwrap() == expected.read_whole(name).unwrap(), "{name}");
    }
}

/// What an input becomes in a folder.
pub(crate) fn converted(input: &Path, folder: &Path) -> Checkpoint {
    let output = folder.join("converted.nemo");
    convert_checkpoint(input, &output, &ConvertOptions::default()).unwrap();
    Checkpoint::open(&output).unwrap()
}
