//! Folders of Megatron-Bridge: `tests/fixtures/scripts/bridge_folders.py` writes them with the original packages.

use std::fs;
use std::path::{Path, PathBuf};

use nemo_format::{Checkpoint, ConvertOptions, export_huggingface};

use crate::fixtures::{assert_same_tensors, converted, copy_folder, fixture};

const ITERATION: &str = "iter_0000005";

/// The model of `families` that the folder holds.
const MODELS: [&str; 4] = ["qwen3", "qwen2_tied", "qwen2_moe", "qwen3_moe"];

#[test]
fn a_folder_holds_the_model_of_hugging_face_it_was_made_of() {
    for name in MODELS {
        let temporary = tempfile::tempdir().unwrap();
        let original = converted(&fixture(&format!("families/{name}")), temporary.path());
        let root = fixture(&format!("bridge/{name}"));
        for path in [root.clone(), root.join(ITERATION)] {
            let opened = Checkpoint::open(&path).unwrap();
            assert_eq!(opened.format(), "Megatron-Bridge folder, torch_dist");
            assert_same_tensors(&opened, &original);
            let again = tempfile::tempdir().unwrap();
            assert_same_tensors(&converted(&path, again.path()), &original);
        }
    }
}

/// The same bytes as the folder of Hugging Face, its tokenizer included.
#[test]
fn a_folder_becomes_one_of_hugging_face() {
    for name in MODELS {
        let temporary = tempfile::tempdir().unwrap();
        let back = temporary.path().join("hf");
        export_huggingface(&fixture(&format!("bridge/{name}")), &back, &ConvertOptions::default()).unwrap();
        let original = fixture(&format!("families/{name}"));
        let open = |folder: &Path| nemo_format::SafetensorsSource::open_folder(folder).unwrap();
        let (old, new) = (open(&original), open(&back));
        let names = |source: &dyn nemo_format::TensorSource| {
            let mut names: Vec<String> = source.names().map(str::to_owned).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&old), names(&new));
        for tensor in names(&old) {
            let same = nemo_format::TensorSource::read_whole(&old, &tensor).unwrap()
                == nemo_format::TensorSource::read_whole(&new, &tensor).unwrap();
            assert!(same, "{name}: {tensor}");
        }
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            assert!(fs::read(original.join(file)).unwrap() == fs::read(back.join(file)).unwrap(), "{file}");
        }
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(back.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["model_type"], name.trim_end_matches("_tied"));
    }
}

#[test]
fn it_is_described_in_the_keys_of_nemo_1() {
    let checkpoint = Checkpoint::open(&fixture("bridge/qwen3")).unwrap();
    insta::assert_snapshot!(checkpoint.model_config_text());
    assert_eq!(checkpoint.artifact_names(), ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]);
    let reference = checkpoint.model_config().get("tokenizer.model").and_then(|node| node.as_str()).unwrap();
    let original = fs::read(fixture("families/qwen3/tokenizer.json")).unwrap();
    assert!(checkpoint.artifact(reference).unwrap() == original);
    let notes: Vec<String> = checkpoint.notes().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notes.join("\n"), @"");
}

/// A copy of the fixture.
struct Copy(tempfile::TempDir);

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&fixture("bridge/qwen3"), folder.path());
        Self(folder)
    }

    fn path(&self, member: &str) -> PathBuf {
        self.0.path().join(member)
    }

    fn remove(self, member: &str) -> Self {
        fs::remove_file(self.path(member)).unwrap();
        self
    }

    fn write(self, member: &str, text: &str) -> Self {
        fs::write(self.path(member), text).unwrap();
        self
    }

    /// Another text in the configuration.
    fn edit(self, old: &str, new: &str) -> Self {
        let member = format!("{ITERATION}/run_config.yaml");
        let text = fs::read_to_string(self.path(&member)).unwrap();
        assert!(text.contains(old), "{old}");
        self.write(&member, &text.replace(old, new))
    }

    /// What opening it says.
    fn error(&self) -> String {
        let error = Checkpoint::open(self.0.path()).unwrap_err();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        let text = format!("{error}{}", source.unwrap_or_default());
        text.replace(&self.0.path().display().to_string(), "…")
    }
}

#[test]
fn the_iteration_that_counts_is_the_one_that_the_root_names() {
    let both = || Copy::new().remove("latest_train_state.pt");
    Checkpoint::open(both().0.path()).unwrap();
    // One iteration alone needs no name.
    Checkpoint::open(both().remove("latest_checkpointed_iteration.txt").0.path()).unwrap();
    let released = both().write("latest_checkpointed_iteration.txt", "release\n");
    fs::rename(released.path(ITERATION), released.path("release")).unwrap();
    Checkpoint::open(released.0.path()).unwrap();
    let older = both();
    fs::create_dir(older.path("iter_0000004")).unwrap();
    Checkpoint::open(older.0.path()).unwrap();
    let unnamed = older.remove("latest_checkpointed_iteration.txt");
    insta::assert_snapshot!(unnamed.error(), @"`…`, a folder of Megatron-Bridge or Megatron-LM: it has `iter_0000005`, `iter_0000004` and neither `latest_train_state.pt` nor `latest_checkpointed_iteration.txt`, cannot be read: give the folder of one iteration");
    let gone = both().write("latest_checkpointed_iteration.txt", "500");
    insta::assert_snapshot!(gone.error(), @"`…`, a folder of Megatron-Bridge or Megatron-LM: `latest_checkpointed_iteration.txt` names `iter_0000500`, which is not there; it has `iter_0000005`, cannot be read: copy that iteration, or give the folder of another");
    let strange = both().write("latest_checkpointed_iteration.txt", "last");
    insta::assert_snapshot!(strange.error(), @"`…/latest_checkpointed_iteration.txt` is not a model configuration: it says `last`, expected the number of an iteration or `release`");
    let damaged = Copy::new().write("latest_train_state.pt", "x");
    insta::assert_snapshot!(damaged.error(), @"`…/latest_train_state.pt` is damaged at byte 0: it is not a torch file: neither a zip nor torch's magic number");
}

#[test]
fn half_a_folder_says_what_it_lacks() {
    let without = |member: &str| Copy::new().remove(&format!("{ITERATION}/{member}")).error();
    insta::assert_snapshot!(without(".metadata"), @"`…/iter_0000005`, half an iteration: it has 1 data files and no `.metadata`, cannot be read: it was not written to its end, or not copied whole: copy it again, or give another iteration");
    insta::assert_snapshot!(without("metadata.json"), @"`…/iter_0000005`, half an iteration: it has 1 data files and no `metadata.json`, cannot be read: it was not written to its end, or not copied whole: copy it again, or give another iteration");
    insta::assert_snapshot!(without("__0_0.distcp"), @"`…/iter_0000005` has no member `__0_0.distcp`");
    insta::assert_snapshot!(without("run_config.yaml"), @"`…/iter_0000005/__0_0.distcp`, which has no `args`, cannot be read: Megatron-LM keeps the arguments that describe the model there: where it is the weights of a `.nemo`, of NeMo 2 or of Megatron-Bridge, give the folder that also has `model_config.yaml`, `context/` or `run_config.yaml`");
}

#[test]
fn what_is_not_read_is_named() {
    let edited = |old: &str, new: &str| Copy::new().edit(old, new).error();
    insta::assert_snapshot!(edited("ckpt_format: torch_dist", "ckpt_format: fsdp_dtensor"), @"`…/iter_0000005`, whose `checkpoint.ckpt_format` is `fsdp_dtensor`, cannot be read: save it with `checkpoint.ckpt_format: torch_dist`, or convert it with Megatron-Bridge");
    insta::assert_snapshot!(edited("models.gpt_provider.GPTModelProvider", "models.gemma.gemma3_provider.Gemma3ModelProvider"), @"`…/iter_0000005/run_config.yaml` is not a model configuration: its `rotary_base` is no pair, which a Gemma 3 needs");
    insta::assert_snapshot!(edited("softmax_type: vanilla", "softmax_type: learnable"), @"`…/iter_0000005/run_config.yaml`, whose `model.softmax_type` is `learnable` (another softmax), cannot be read: use a checkpoint trained without it");
    insta::assert_snapshot!(edited("gpt_provider.default_layer_spec", "gemma.gemma2_provider.gemma2_layer_spec"), @"`…/iter_0000005/run_config.yaml`, whose `model.transformer_layer_spec` is `gemma2_layer_spec` (a layer specification of its own), cannot be read: use a checkpoint trained without it");
    insta::assert_snapshot!(edited("torch.nn.functional.silu", "torch.nn.functional.mish"), @"`…/iter_0000005/run_config.yaml` is not a model configuration: its `activation_func` is the gated function `mish`; supported are silu (gated), gelu, openai_gelu, fast_gelu, relu (gated), squared_relu and quick_gelu");
    insta::assert_snapshot!(edited("model:", "models:"), @"`…/iter_0000005/run_config.yaml` is not a model configuration: it has no `model` section with the model's dimensions");
}
