//! Weights and configurations that contradict each other: Hugging Face folders and checkpoints of NeMo.
//!
//! Which of two sources counts was looked up in transformers 5.24 (`_get_resolved_checkpoint_files`, `tie_weights`,
//! `convert_rope_params_to_dict`) and in NeMo's `NLPSaveRestoreConnector`.

use std::fs;
use std::path::{Path, PathBuf};

use nemo_format::{Checkpoint, ConvertOptions, ConvertReport, DType, convert_checkpoint, export_huggingface};
use serde_json::{Value, json};

use super::files::{Tensor, read_safetensors, write_safetensors};
use crate::support::{fixture, program, run};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const NORM: &str = "model.norm.weight";
const CANONICAL_NORM: &str = "model.decoder.final_layernorm.weight";

/// A folder that a test changes before it is converted.
struct Folder(tempfile::TempDir);

/// What became of it.
struct Converted {
    report: ConvertReport,
    checkpoint: Checkpoint,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Folder {
    /// The fixture's Llama: float32, two layers, not tied.
    fn llama() -> Self {
        Self::of("hf_llama", &["config.json", SINGLE, "tokenizer.model", "generation_config.json"])
    }

    fn of(name: &str, files: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
        }
        Self(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.edit("config.json", &|document| document[key] = value.clone())
    }

    fn edit(self, name: &str, edit: &dyn Fn(&mut Value)) -> Self {
        let mut document = serde_json::from_slice(&fs::read(self.at(name)).unwrap()).unwrap();
        edit(&mut document);
        fs::write(self.at(name), serde_json::to_vec(&document).unwrap()).unwrap();
        self
    }

    fn write(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        fs::write(self.at(name), bytes).unwrap();
        self
    }

    fn remove(self, name: &str) -> Self {
        fs::remove_file(self.at(name)).unwrap();
        self
    }

    fn tensors(self, edit: &dyn Fn(&mut Vec<Tensor>)) -> Self {
        let mut tensors = read_safetensors(&self.at(SINGLE));
        edit(&mut tensors);
        write_safetensors(&self.at(SINGLE), &tensors);
        self
    }

    /// Writes two shards and their index beside `model.safetensors`, whose final norm is `norm` in the shards.
    fn shards(self, norm: f32) -> Self {
        let tensors = read_safetensors(&self.at(SINGLE)).into_iter();
        let (mut first, second): (Vec<_>, Vec<_>) =
            tensors.partition(|tensor| !tensor.name.contains("layers.1."));
        for tensor in first.iter_mut().filter(|tensor| tensor.name == NORM) {
            *tensor = Tensor::f32(NORM, &tensor.shape, |_| norm);
        }
        let mut weight_map = serde_json::Map::new();
        let mut total_size = 0;
        for (tensors, shard) in [(&first, SHARDS[0]), (&second, SHARDS[1])] {
            write_safetensors(&self.at(shard), tensors);
            total_size += tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(shard))));
        }
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        self.write(INDEX, index.to_string())
    }

    fn convert_as(&self, dtype: Option<DType>) -> Result<Converted, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.nemo");
        let options = ConvertOptions { dtype, ..ConvertOptions::default() };
        let report = convert_checkpoint(self.0.path(), &path, &options)
            .map_err(|error| error.to_string().replace(&self.0.path().display().to_string(), "FOLDER"))?;
        let checkpoint = Checkpoint::open(&path).unwrap();
        Ok(Converted { report, checkpoint, path, _folder: folder })
    }

    fn convert(&self) -> Converted {
        self.convert_as(None).unwrap()
    }

    fn error(&self) -> String {
        self.convert_as(None).err().unwrap()
    }
}

impl Converted {
    fn notes(&self) -> String {
        self.report.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn first_of(&self, tensor: &str) -> f32 {
        let bytes = self.checkpoint.tensors().read_whole(tensor).unwrap();
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn config(&self, key: &str) -> String {
        self.checkpoint
            .model_config()
            .get(key)
            .map_or_else(String::new, |value| value.to_yaml().trim().to_owned())
    }
}

#[test]
fn a_single_file_counts_before_an_index() {
    let plain = Folder::llama().convert();
    assert_eq!(plain.notes(), "");
    let norm = plain.first_of(CANONICAL_NORM);
    // The same numbers in both need no word.
    let same = Folder::llama().shards(norm);
    let converted = same.convert();
    assert_eq!(converted.first_of(CANONICAL_NORM), norm);

    let converted = Folder::llama().shards(7.0).convert();
    assert_eq!(converted.first_of(CANONICAL_NORM), norm);
    insta::assert_snapshot!(converted.notes(), @"`model.safetensors`, which transformers looks for first, is used and `model.safetensors.index.json` is not: `model.norm.weight` has other numbers there");

    let converted = Folder::llama().shards(7.0).remove(SHARDS[0]).convert();
    assert_eq!(converted.first_of(CANONICAL_NORM), norm);
    assert!(converted.notes().contains("first `model-00001-of-00002.safetensors`"), "{}", converted.notes());
    // What a conversion has noted is kept in what it has written.
    let ended = run(program().arg("inspect").arg("--json").arg(&converted.path)).expect_code(0);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["notes"][0], converted.notes());
    let ended = run(program().arg("inspect").arg(&converted.path)).expect_code(0);
    assert!(ended.stdout.contains(&format!("notes\n  {}", converted.notes())), "{}", ended.stdout);
}

#[test]
fn an_index_and_its_shards_are_compared() {
    let sharded = || Folder::llama().shards(7.0).remove(SINGLE);
    let converted = sharded().convert();
    assert_eq!((converted.first_of(CANONICAL_NORM), converted.notes()), (7.0, String::new()));
    insta::assert_snapshot!(sharded().remove(SHARDS[1]).error(), @"`FOLDER/model.safetensors.index.json` is damaged at byte 0: 1 of the 2 shards that it names are not in the folder, first `model-00002-of-00002.safetensors`; copy them, or remove the index if it belongs to another model");
    let edited = |edit: &dyn Fn(&mut Value)| sharded().edit(INDEX, edit);
    let unnamed = edited(&|index| drop(index["weight_map"].as_object_mut().unwrap().remove(NORM))).convert();
    assert_eq!(unnamed.first_of(CANONICAL_NORM), 7.0);
    insta::assert_snapshot!(unnamed.notes(), @"what the shards hold is used and `model.safetensors.index.json` is not: it does not name 1 of the tensors in its shards, first `model.norm.weight`");
    let moved = edited(&|index| index["weight_map"][NORM] = SHARDS[1].into()).convert();
    insta::assert_snapshot!(moved.notes(), @"`model.norm.weight` of `model-00001-of-00002.safetensors` is used and `model.safetensors.index.json` is not: it says that `model.norm.weight` is in `model-00002-of-00002.safetensors`");
    let smaller = edited(&|index| index["metadata"]["total_size"] = 5.into()).convert();
    insta::assert_snapshot!(smaller.notes(), @"what the shards hold is used and `model.safetensors.index.json` is not: its `total_size` is 5 bytes, the tensors have 486656");
    insta::assert_snapshot!(edited(&|index| index["weight_map"]["x"] = SHARDS[0].into()).error(), @"tensor `x` is inconsistent: the index says it is in `model-00001-of-00002.safetensors`, and no shard has it");
    let leftover = sharded();
    fs::copy(leftover.at(SHARDS[0]), leftover.at("model-00003-of-00003.safetensors")).unwrap();
    let leftover = leftover.write("consolidated.00.pth", "x").write("optimizer.pt", "x").convert();
    insta::assert_snapshot!(leftover.notes(), @"files beside the weights that are not read: `consolidated.00.pth`, `model-00003-of-00003.safetensors`");
    let variant = Folder::llama().write("model.fp16.safetensors", "x").convert();
    insta::assert_snapshot!(variant.notes(), @"files beside the weights that are not read: `model.fp16.safetensors`");
}

#[test]
fn safetensors_count_before_torch_files() {
    let files = ["config.json", SINGLE, "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    let folder = Folder::of("families/llama32", &files);
    let alone = folder.convert().first_of(CANONICAL_NORM);
    for entry in fs::read_dir(fixture("families/llama32_bin")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.0.path().join(entry.file_name())).unwrap();
    }
    let converted = folder.convert();
    assert_eq!(converted.first_of(CANONICAL_NORM), alone);
    let notes = converted.notes();
    assert!(notes.contains("`model.safetensors`, which transformers looks for first, is used"), "{notes}");
    assert!(notes.contains("and `pytorch_model.bin.index.json` is not"), "{notes}");
}

#[test]
fn the_configuration_may_name_the_weights() {
    let folder = Folder::llama().shards(7.0).config("transformers_weights", INDEX).convert();
    assert_eq!(folder.first_of(CANONICAL_NORM), 7.0);
    assert!(folder.notes().contains("which `transformers_weights` of `config.json` names, is used"));
    let error = Folder::llama().config("transformers_weights", "../x.safetensors").error();
    assert!(error.contains("`transformers_weights` is `../x.safetensors`"), "{error}");
    let error = Folder::llama().config("transformers_weights", "gone.safetensors").error();
    assert!(error.contains("no member `gone.safetensors`"), "{error}");
    let error = Folder::llama().write("adapter_config.json", "{}").error();
    assert!(error.contains("adapters of a PEFT tuning (`adapter_config.json`) beside its model"), "{error}");
}

#[test]
fn a_flag_and_a_stored_output_layer() {
    let output = "model.output_layer.weight";
    let tied = || Folder::llama().config("tie_word_embeddings", true);
    let converted = tied().convert();
    assert!(converted.checkpoint.tensors().meta(output).is_some());
    assert_eq!(converted.config("share_embeddings_and_output_weights"), "false");
    insta::assert_snapshot!(converted.notes(), @"`lm_head.weight`, as in transformers, is used and `tie_word_embeddings`, which is true, is not: the weights have it, and it is not `model.embed_tokens.weight`");
    let same = tied().tensors(&|tensors| {
        let embedding = tensors.iter().find(|tensor| tensor.name == "model.embed_tokens.weight").unwrap();
        let bytes = embedding.bytes.clone();
        tensors.iter_mut().find(|tensor| tensor.name == "lm_head.weight").unwrap().bytes = bytes;
    });
    let converted = same.convert();
    assert!(converted.checkpoint.tensors().meta(output).is_none());
    assert_eq!(converted.notes(), "");
    let without =
        |folder: Folder| folder.tensors(&|tensors| tensors.retain(|tensor| tensor.name != "lm_head.weight"));
    assert!(without(tied()).convert().checkpoint.tensors().meta(output).is_none());
    for folder in
        [without(Folder::llama()), without(Folder::llama()).config("tie_word_embeddings", Value::Null)]
    {
        assert!(
            folder.error().contains("tensor `lm_head.weight` is inconsistent: the weights do not have it")
        );
    }
}

#[test]
fn flags_and_stored_biases() {
    let with_bias = |name: &'static str, rows| {
        Folder::llama().tensors(&move |tensors| {
            tensors.extend((0..2).map(|layer| {
                Tensor::f32(&format!("model.layers.{layer}.{name}.bias"), &[rows], |at| at as f32)
            }));
        })
    };
    insta::assert_snapshot!(with_bias("self_attn.q_proj", 64).error(), @"tensor `model.layers.0.self_attn.q_proj.bias` is inconsistent: the weights have it, and `attention_bias` is not true in `FOLDER/config.json`, so that transformers leaves it out; set `attention_bias` to true if the model was trained with it, else remove the tensor");
    insta::assert_snapshot!(with_bias("mlp.up_proj", 112).error(), @"tensor `model.layers.0.mlp.up_proj.bias` is inconsistent: the weights have it, and `mlp_bias` is not true in `FOLDER/config.json`, so that transformers leaves it out; set `mlp_bias` to true if the model was trained with it, else remove the tensor");
    insta::assert_snapshot!(with_bias("self_attn.q_proj", 64).config("model_type", "mistral").error(), @"tensor `model.layers.0.self_attn.q_proj.bias` is inconsistent: the weights have it, and models of the type that `FOLDER/config.json` states have no such bias; correct the `model_type`, or remove the tensor if the model was trained without it");
    insta::assert_snapshot!(Folder::llama().config("mlp_bias", true).error(), @"tensor `model.layers.0.mlp.gate_proj.bias` is inconsistent: the weights do not have it, and `mlp_bias` is true in `FOLDER/config.json`");
    let partly = with_bias("self_attn.q_proj", 64).config("attention_bias", true).convert();
    insta::assert_snapshot!(partly.notes(), @"the weights have no bias of `self_attn.k_proj`, `self_attn.v_proj`, `self_attn.o_proj` although `attention_bias` is true; zeros stand for it, as in transformers");
}

#[test]
fn types_that_are_stated_and_types_that_are_stored() {
    let converted = Folder::llama().config("torch_dtype", "bfloat16").convert();
    assert_eq!(converted.report.dtype, DType::F32);
    insta::assert_snapshot!(converted.notes(), @"`config.json` says bfloat16, the weights are stored as float32 and keep that; `--dtype` chooses another type");
    let chosen = Folder::llama().config("torch_dtype", "bfloat16").convert_as(Some(DType::BF16)).unwrap();
    assert_eq!(chosen.notes(), "");
    let mixed = || {
        Folder::llama().config("torch_dtype", "bfloat16").tensors(&|tensors| {
            for tensor in tensors.iter_mut().filter(|tensor| tensor.name != NORM) {
                tensor.dtype = "BF16";
                let pairs = tensor.bytes.chunks_exact(4).flat_map(|elem| [elem[2], elem[3]]);
                tensor.bytes = pairs.collect();
            }
        })
    };
    insta::assert_snapshot!(mixed().convert().notes(), @"1 tensors are stored as float32 and rounded to bfloat16, the type of the embedding; `--dtype fp32` keeps their digits");
    assert_eq!(mixed().convert_as(Some(DType::F32)).unwrap().notes(), "");
    let double = Folder::llama().tensors(&|tensors| {
        let norm = tensors.iter_mut().find(|tensor| tensor.name == NORM).unwrap();
        norm.dtype = "F64";
        norm.bytes = vec![0; 64 * 8];
    });
    insta::assert_snapshot!(double.error(), @"tensor `model.norm.weight` of dtype float64 cannot be read: save the weights as float32, bfloat16 or float16");
}

#[test]
fn keys_that_are_not_used_are_named() {
    let converted = Folder::llama()
        .config("sliding_window", 8)
        .config("logit_scale", 0.5)
        .config("attention_dropout", 0.5)
        .config("temperature", 0.6)
        .config(
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0, "beta_fast": 3, "low_freq_factor": 1.0}),
        )
        .config("architectures", json!(["MistralForCausalLM"]))
        .edit("generation_config.json", &|document| {
            document["do_sample"] = true.into();
            document["top_p"] = 0.9.into();
        })
        .convert();
    insta::assert_snapshot!(converted.notes(), @r"
    `model_type`, llama, as in transformers, is used and `architectures` of `config.json` is not: it names `MistralForCausalLM`
    keys of `config.json` that are not understood and not used: `rope_scaling.beta_fast`, `rope_scaling.low_freq_factor`, `sliding_window`, `logit_scale`
    values of `config.json` that are not used: `temperature 0.6`; set `model.generation.sampling_params` to sample so
    values of `generation_config.json` that are not used: `do_sample true`, `top_p 0.9`; set `model.generation.sampling_params` to sample so
    ");
}

#[test]
fn names_of_one_thing_with_two_values_are_refused() {
    let rope = json!({"rope_type": "default", "rope_theta": 5000.0});
    insta::assert_snapshot!(Folder::llama().config("rope_parameters", rope).error(), @"`FOLDER/config.json` is not a model configuration: `rope_theta` is 5000 in `rope_parameters` and 10000 outside of it; remove the wrong one");
    let both = Folder::llama()
        .config("rope_parameters", json!({"rope_type": "default"}))
        .config("rope_scaling", json!({"type": "linear", "factor": 2.0}));
    assert!(both.error().contains("`rope_scaling`, another name of it, is"), "{}", both.error());
    insta::assert_snapshot!(Folder::llama().config("dtype", "float16").error(), @r#"`FOLDER/config.json` is not a model configuration: the key `dtype` is `"float16"` and `torch_dtype`, another name of it, is `"float32"`; remove the wrong one"#);
    let untyped = Folder::llama().config("rope_scaling", json!({"factor": 2.0}));
    insta::assert_snapshot!(untyped.error(), @"`FOLDER/config.json` is not a model configuration: rope_scaling has factor 2 and no type that has one, so that transformers leaves it out; state the type, or remove the factor");
    let twice = Folder::llama()
        .config("rope_scaling", json!({"type": "linear", "rope_type": "llama3", "factor": 2.0}));
    assert!(twice.error().contains("`type`, another name of it, is"), "{}", twice.error());
}

#[test]
fn names_that_a_wrapper_has_changed() {
    let renamed = |rename: &dyn Fn(&str) -> String| {
        Folder::llama().tensors(&|tensors| {
            tensors.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name));
        })
    };
    let expect = Folder::llama().convert().first_of(CANONICAL_NORM);
    for (prefix, said) in [
        ("module.", "`module.`"),
        ("_orig_mod.", "`_orig_mod.`"),
        ("module._orig_mod.", "`module.`, `_orig_mod.`"),
    ] {
        let converted = renamed(&|name| format!("{prefix}{name}")).convert();
        assert_eq!(converted.first_of(CANONICAL_NORM), expect);
        assert_eq!(
            converted.notes(),
            format!("names of the weights are read without {said}, which a wrapper for training has put in")
        );
    }
    let inside = renamed(&|name| name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")).convert();
    assert_eq!(inside.first_of(CANONICAL_NORM), expect);
    insta::assert_snapshot!(renamed(&|name| format!("base_model.model.{name}")).error(), @"tensor `base_model.model.model.embed_tokens.weight`, whose name begins with `base_model.model.` (the wrapper of a PEFT tuning (LoRA and the like)), cannot be read: merge the adapters with `merge_and_unload()` of the Python package peft and save the model that it returns");
    insta::assert_snapshot!(renamed(&|name| name.replace("model.", "model.language_model.")).error(), @"tensor `model.language_model.embed_tokens.weight`, whose name begins with `model.language_model.` (a model of text and images), cannot be read: save its language model alone");
    insta::assert_snapshot!(renamed(&|name| format!("student.{name}")).error(), @"tensor `student.model.embed_tokens.weight`, whose name begins with `student.` (which models of this type do not have), cannot be read: save the model so that its embedding is called `model.embed_tokens.weight`");
}

#[test]
fn stored_buffers_are_named() {
    let folder = Folder::llama().tensors(&|tensors| {
        let name = |layer| format!("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
        tensors.extend((0..2).map(|layer| Tensor::f32(&name(layer), &[8], |_| 0.5)));
    });
    insta::assert_snapshot!(folder.convert().notes(), @"tensors that are stored and not used: 2 of `rotary_emb.inv_freq`");
}

/// A checkpoint of NeMo unpacked into a folder, with these changes of its configuration.
fn nemo_folder(archive: &Path, config: &dyn Fn(String) -> String) -> Folder {
    let folder = tempfile::tempdir().unwrap();
    tar::Archive::new(fs::File::open(archive).unwrap()).unpack(folder.path()).unwrap();
    let path = folder.path().join("model_config.yaml");
    fs::write(&path, config(fs::read_to_string(&path).unwrap())).unwrap();
    Folder(folder)
}

#[test]
fn several_models_in_one_folder() {
    let archive = fixture("mcore_llama/llama_fp32_torch_dist.nemo");
    let plain = nemo_folder(&archive, &|config| config);
    assert!(!plain.convert().notes().contains("is not:"));
    let both = nemo_folder(&archive, &|config| config);
    for name in ["config.json", SINGLE] {
        fs::copy(fixture("hf_llama").join(name), both.at(name)).unwrap();
    }
    let said = "the model of `model_config.yaml` is used and a Hugging Face model (`config.json`) is not: it lies in the \
                same folder";
    assert!(both.convert().notes().contains(said), "{}", both.convert().notes());
    let ended = run(program().arg("inspect").arg(both.0.path())).expect_code(0);
    assert!(ended.stdout.contains(said), "{}", ended.stdout);
    // NeMo prefers `model_weights.ckpt` to `model_weights/`.
    let ranks = nemo_folder(&fixture("formats/gated_legacy.nemo"), &|config| config);
    fs::create_dir(ranks.at("model_weights")).unwrap();
    let notes = ranks.write("model_weights/metadata.json", "stale").convert().notes();
    let said =
        "`model_weights.ckpt`, as in NeMo, is used and `model_weights/` is not: the checkpoint has both";
    assert!(notes.contains(said), "{notes}");
    let zarr = nemo_folder(&archive, &|config| config);
    fs::create_dir(zarr.at("model_weights/x")).unwrap();
    let notes = zarr.write("model_weights/x/.zarray", "{}").convert().notes();
    assert!(
        notes.contains("and a zarr checkpoint is not: `model_weights/x/.zarray` is there, too"),
        "{notes}"
    );
    let context = nemo_folder(&archive, &|config| config);
    fs::create_dir(context.at("context")).unwrap();
    let notes = context.write("context/model.yaml", "{}").convert().notes();
    assert!(notes.contains("a model of NeMo 2 (`context/model.yaml`) is not"), "{notes}");
}

#[test]
fn keys_of_nemo_that_are_not_used_are_named() {
    let archive = fixture("mcore_llama/llama_fp32_torch_dist.nemo");
    let strange =
        nemo_folder(&archive, &|config| format!("{config}\nlogit_temper: 2\nfp8_dot_product: false\n"));
    let said = "keys of `model_config.yaml` that are not understood and not used: `logit_temper`";
    assert!(strange.convert().notes().contains(said), "{}", strange.convert().notes());
    let ended = run(program().args(["inspect", "--json"]).arg(strange.0.path())).expect_code(0);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let notes = report["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note == said), "{notes:?}");
}

/// NeMo's Mistral converter writes `window_size: [W, 0]`.
#[test]
fn windows_limit_the_length_and_survive() {
    let archive = fixture("mcore_llama/llama_fp32_torch_dist.nemo");
    let windowed = |window: &'static str| {
        nemo_folder(&archive, &move |config| format!("{config}\nwindow_size: {window}\n"))
    };
    let logits = |folder: &Folder| {
        let output = folder.at("logits.npy");
        let mut command = program();
        command.args(["logits", "--precision", "32", "--checkpoint"]).arg(folder.0.path()).arg("--input-ids");
        run(command.arg(fixture("mcore_llama/input_ids.npy")).arg("--output").arg(output))
    };
    for window in ["null", "[-1, -1]", "[-1, 0]", "[4096, 0]"] {
        logits(&windowed(window)).expect_code(0);
    }
    let ended = logits(&windowed("[3, 0]")).expect_code(3);
    assert!(
        ended.error().ends_with("tokens is longer than the model computes: `window_size` is 3"),
        "{}",
        ended.error()
    );
    let ended = logits(&windowed("wide")).expect_code(4);
    assert!(ended.error().contains("not `wide`"), "{}", ended.error());

    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("hf");
    export_huggingface(windowed("[48, 0]").0.path(), &folder, &ConvertOptions::default()).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_type"], &config["sliding_window"]), (&json!("mistral"), &json!(48)));
    let converted = windowed("[48, 0]").convert();
    assert_eq!(converted.config("window_size"), "- 48\n- 0");
    // A job whose sequences may be longer is refused with the number to pass.
    let job = crate::support::Job::new(1)
        .with(&[&format!("pretrained_checkpoint.restore_from_path={}", converted.path.display())]);
    let error = job.run().expect_code(2).error();
    assert!(error.contains("(`window_size`), beyond which nothing is computed"), "{error}");
    let hint = error.split('`').find(|part| part.starts_with("++model")).unwrap();
    assert_eq!(hint, "++model.encoder_seq_length=48");
}
