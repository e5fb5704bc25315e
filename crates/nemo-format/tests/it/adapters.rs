//! Adapters of every kind: what they are read as, and what is refused. `tests/fixtures/scripts/adapters.py` writes them.

use std::fs;
use std::path::{Path, PathBuf};

use nemo_format::{AdapterSummary, Checkpoint, ConvertOptions, convert_checkpoint};

use crate::fixtures::fixture;

fn base(family: &str, folder: &Path) -> Checkpoint {
    let output = folder.join(format!("{family}.nemo"));
    if !output.exists() {
        convert_checkpoint(&fixture(&format!("families/{family}")), &output, &ConvertOptions::default())
            .unwrap();
    }
    Checkpoint::open(&output).unwrap()
}

/// What adding it says, without the folders.
fn outcome(family: &str, adapter: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let text = match base(family, folder.path()).with_adapters(&[adapter.to_owned()]) {
        Ok(checkpoint) => checkpoint.adapters()[0].to_string(),
        Err(error) => error.to_string(),
    };
    let fixtures = format!("{}/", fixture("adapters").display());
    let own = adapter.parent().map_or_else(String::new, |parent| format!("{}/", parent.display()));
    text.replace(&fixtures, "").replace(&own, "").replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn every_kind_is_described() {
    let cases = [
        ("llama31", "peft_llama"),
        ("llama31", "peft_rslora"),
        ("gpt2", "peft_gpt2"),
        ("nemotron", "peft_nemotron"),
        ("llama31", "nemo_tp2_pp2/adapter.nemo"),
        ("llama31", "nemo_canonical/adapter.nemo"),
        ("llama31", "nemo2"),
        ("qwen3", "bridge"),
    ];
    let lines = cases.map(|(family, path)| outcome(family, &fixture(&format!("adapters/{path}"))));
    insta::assert_snapshot!(lines.join("\n"));
}

/// A copy of an adapter of PEFT, or of another folder.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixture(&format!("adapters/{name}")), &folder.path().join("adapter"));
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("adapter")
    }

    fn edit(self, member: &str, old: &str, new: &str) -> Self {
        let path = self.path().join(member);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{old} in {text}");
        fs::write(path, text.replacen(old, new, 1)).unwrap();
        self
    }

    fn remove(self, member: &str) -> Self {
        fs::remove_file(self.path().join(member)).unwrap();
        self
    }

    fn said(&self, family: &str) -> String {
        outcome(family, &self.path())
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { fs::copy(&path, &target).map(drop).unwrap() }
    }
}

#[test]
fn what_is_more_than_a_lora_of_peft_is_refused_by_its_key() {
    const CONFIG: &str = "adapter_config.json";
    let edits = [
        ("\"LORA\"", "\"IA3\""),
        ("\"bias\": \"none\"", "\"bias\": \"lora_only\""),
        ("\"use_dora\": false", "\"use_dora\": true"),
        ("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\""),
        ("\"lora_bias\": false", "\"lora_bias\": true"),
        ("\"layer_replication\": null", "\"layer_replication\": [[0, 2]]"),
        ("\"r\": 4", "\"r\": 4, \"use_something_new\": true"),
        ("\"r\": 4", "\"r\": 8"),
        ("\"lora_alpha\": 8", "\"lora_alpha\": null"),
        ("\"down_proj\": 2", "\"down_proj|up\": 2"),
    ];
    let said = edits.map(|(old, new)| Copy::of("peft_llama").edit(CONFIG, old, new).said("llama31"));
    insta::assert_snapshot!(said.join("\n"));
    insta::assert_snapshot!(Copy::of("peft_llama").remove("adapter_model.safetensors").said("llama31"), @"`adapter` has no member `adapter_model.safetensors` or `adapter_model.bin`");
}

#[test]
fn an_adapter_of_another_model_says_what_was_found_and_needed() {
    let said = [
        ("qwen3", "peft_llama"),
        ("falcon7b", "peft_llama"),
        ("llama31", "peft_gpt2"),
        ("llama31", "bridge"),
        ("gpt2", "nemo_canonical/adapter.nemo"),
    ]
    .map(|(family, path)| outcome(family, &fixture(&format!("adapters/{path}"))));
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn other_adapters_of_megatron_are_refused_by_name() {
    let bridge = |old: &str, new: &str| {
        Copy::of("bridge").edit("iter_0000005/run_config.yaml", old, new).said("qwen3")
    };
    let nemo2 = |old: &str, new: &str| Copy::of("nemo2").edit("context/io.json", old, new).said("llama31");
    let said = [
        bridge("megatron.bridge.peft.lora.LoRA", "megatron.bridge.peft.dora.DoRA"),
        bridge("  dim: 4", "  dim: 5"),
        bridge("  alpha: 6\n", ""),
        bridge("\npeft:", "\nother:"),
        bridge("  num_layers: 2", "  num_layers: 4"),
        nemo2("CanonicalLoRA", "DoRA"),
        nemo2("alpha", "beta"),
        Copy::of("nemo2").remove("context/io.json").said("llama31"),
        outcome("llama31", &fixture("families/llama31")),
        outcome("llama31", &fixture("hf_llama/hf_llama_converted_bf16_torch_dist.nemo")),
        outcome("llama31", &fixture("bridge/qwen3")),
    ];
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn the_order_of_adapters_and_their_content_are_what_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let fingerprints = |names: &[&str]| {
        let paths: Vec<PathBuf> = names.iter().map(|name| fixture(&format!("adapters/{name}"))).collect();
        let checkpoint = base("llama31", folder.path()).with_adapters(&paths).unwrap();
        checkpoint
            .adapters()
            .iter()
            .map(|one| AdapterSummary::fingerprint(one).to_owned())
            .collect::<Vec<_>>()
    };
    let both = fingerprints(&["peft_llama", "peft_rslora"]);
    assert_eq!(both, [fingerprints(&["peft_llama"]), fingerprints(&["peft_rslora"])].concat());
    assert_ne!(both, fingerprints(&["peft_rslora", "peft_llama"]));
    assert!(fingerprints(&[]).is_empty());
}
