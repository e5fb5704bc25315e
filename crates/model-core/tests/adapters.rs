//! Models with LoRA adapters against the logits of the merged models of their own software.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::{Path, PathBuf};

use common::{BACKENDS, Runner, fixture, golden_logits, max_difference};
use model_core::{Backend, ModelConfig, RawModelConfig};
use model_spec::Float;
use nemo_format::{Checkpoint, ConvertOptions, DType, convert_checkpoint};

/// The fixture with the logits, its adapters, and the family that they belong to.
const CASES: [(&str, &[&str], &str); 9] = [
    ("peft_llama", &["peft_llama"], "llama31"),
    ("peft_rslora", &["peft_rslora"], "llama31"),
    ("peft_both", &["peft_llama", "peft_rslora"], "llama31"),
    ("peft_gpt2", &["peft_gpt2"], "gpt2"),
    ("peft_nemotron", &["peft_nemotron"], "nemotron"),
    ("nemo_tp2_pp2", &["nemo_tp2_pp2/adapter.nemo"], "llama31"),
    ("nemo_canonical", &["nemo_canonical/adapter.nemo"], "llama31"),
    ("nemo2", &["nemo2"], "llama31"),
    ("bridge", &["bridge"], "qwen3"),
];

fn logits(checkpoint: &Checkpoint, backend: Backend, family: &str) -> Vec<Vec<Vec<f32>>> {
    let config: ModelConfig =
        checkpoint.model_config().deserialize_into::<RawModelConfig>().unwrap().try_into().unwrap();
    let mut runner = Runner::new(config, checkpoint.tensors(), Float::Fp32, backend).unwrap();
    let text = std::fs::read_to_string(fixture(&format!("families/{family}/reference.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(json["input_ids"].clone()).unwrap();
    prompts.iter().map(|prompt| runner.all_logits(prompt)).collect()
}

fn converted(input: &Path, output: &Path, adapters: Vec<PathBuf>, dtype: Option<DType>) -> Checkpoint {
    let options = ConvertOptions { adapters, dtype, ..ConvertOptions::default() };
    convert_checkpoint(input, output, &options).unwrap();
    Checkpoint::open(output).unwrap()
}

fn greatest(one: &[Vec<Vec<f32>>], two: &[Vec<Vec<f32>>]) -> f32 {
    assert_eq!((one.len(), two.len()), (2, 2));
    one.iter().zip(two).map(|(one, two)| max_difference(one, two)).fold(0.0, f32::max)
}

#[test]
fn merged_fp32_logits_are_within_1e_4_of_the_reference() {
    for (name, adapters, family) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = adapters.iter().map(|path| fixture(&format!("adapters/{path}"))).collect();
        let golden = golden_logits(&format!("adapters/{name}/logits_fp32.npy"));
        let input = fixture(&format!("families/{family}"));
        let output = |name: &str| folder.path().join(name);
        let base = converted(&input, &output("base.nemo"), Vec::new(), None);
        let without = logits(&base, Backend::Plain, family);
        let difference = greatest(&without, &golden);
        assert!(difference > 0.1, "{name} changes nothing: {difference}");
        // While loading, and merged by a conversion: of the original, and of the archive that was made of it.
        let merged = [
            base.with_adapters(&paths).unwrap(),
            converted(&input, &output("of_original.nemo"), paths.clone(), Some(DType::F32)),
            converted(&output("base.nemo"), &output("of_archive.nemo"), paths, Some(DType::F32)),
        ];
        for backend in BACKENDS {
            let all = merged.each_ref().map(|checkpoint| logits(checkpoint, backend, family));
            let difference = greatest(&all[0], &golden);
            assert!(difference < 1e-4, "{name} {backend:?}: {difference}");
            // The same numbers, whichever way.
            assert!(all[0] == all[1] && all[0] == all[2], "{name} {backend:?}");
        }
    }
}

/// The models are stored in bf16: a merged archive in that type is the merged model rounded once, which is what a run
/// in bf16 computes with.
#[test]
fn an_archive_in_the_stored_type_is_what_a_run_in_that_type_computes_with() {
    for (name, adapters, family) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = adapters.iter().map(|path| fixture(&format!("adapters/{path}"))).collect();
        let input = fixture(&format!("families/{family}"));
        let output = |name: &str| folder.path().join(name);
        let wide = converted(&input, &output("wide.nemo"), paths.clone(), Some(DType::F32));
        let rounded = converted(&output("wide.nemo"), &output("rounded.nemo"), Vec::new(), Some(DType::BF16));
        let base = converted(&input, &output("base.nemo"), Vec::new(), None);
        let of_original = converted(&input, &output("of_original.nemo"), paths.clone(), None);
        let of_archive = converted(&output("base.nemo"), &output("of_archive.nemo"), paths.clone(), None);
        let adapted = base.with_adapters(&paths).unwrap();
        for tensor in wide.tensors().names().filter(|tensor| !tensor.contains("norm")) {
            let expected = rounded.tensors().read_whole(tensor).unwrap();
            for merged in [&of_original, &of_archive] {
                assert_eq!(merged.tensors().meta(tensor), rounded.tensors().meta(tensor), "{name}: {tensor}");
                assert!(merged.tensors().read_whole(tensor).unwrap() == expected, "{name}: {tensor}");
            }
            let is_merged = adapted.tensors().meta(tensor) != rounded.tensors().meta(tensor);
            let wide = wide.tensors().read_whole(tensor).unwrap();
            assert!(!is_merged || adapted.tensors().read_whole(tensor).unwrap() == wide, "{name}: {tensor}");
        }
    }
}
