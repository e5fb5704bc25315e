//! Tokenizer files that contradict each other, and files of every kind against transformers 5.24.
//!
//! `tests/fixtures/tokenizers/folders.json` is made by `tests/fixtures/scripts/tokenizer_folders.py`.

use std::path::Path;

use data::{Tokenizer, TokenizerSpec, check_tokenizer, open_tokenizer};
use nemo_format::{Checkpoint, ConvertOptions, convert_checkpoint, export_huggingface};
use serde_json::{Value, json};

use crate::support::{Job, fixture, llama};

/// A folder of tokenizer files: another fixture's name, or JSON.
fn folder(files: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, source) in files.as_object().unwrap() {
        let path = folder.path().join(name);
        match source.as_str() {
            Some(source) => drop(std::fs::copy(fixture("tokenizers").join(source), path).unwrap()),
            None => std::fs::write(path, source.to_string()).unwrap(),
        }
    }
    folder
}

/// The fixture's model with the tokenizer of a folder, and the notes of the conversion.
fn converted(tokenizer: &Path, output: &Path) -> Result<Vec<String>, String> {
    let check = |section: &Value, read: &dyn Fn(&str) -> Option<Vec<u8>>| {
        check_tokenizer(section, read).map_err(|error| error.to_string())
    };
    let options = ConvertOptions {
        tokenizer: Some(tokenizer.to_owned()),
        check_tokenizer: Some(&check),
        ..ConvertOptions::default()
    };
    let report = convert_checkpoint(&llama(), output, &options).map_err(|error| error.to_string())?;
    Ok(report.notes.iter().map(ToString::to_string).collect())
}

fn open(checkpoint: &Path) -> (TokenizerSpec, Box<dyn Tokenizer>) {
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let section = checkpoint.model_config().get("tokenizer").unwrap();
    let spec: TokenizerSpec = section.deserialize_into().unwrap();
    let tokenizer = open_tokenizer(&spec, &|reference| Ok(checkpoint.artifact(reference)?)).unwrap();
    (spec, tokenizer)
}

#[test]
fn folders_of_every_kind_have_the_ids_of_transformers() {
    let golden = std::fs::read_to_string(fixture("tokenizers/folders.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_str(&golden).unwrap();
    let (mut num_rows, mut failures) = (0, Vec::new());
    for case in &golden {
        let name = case["name"].as_str().unwrap();
        let files = folder(&case["files"]);
        let output = files.path().join("out.nemo");
        converted(files.path(), &output).unwrap();
        let (spec, tokenizer) = open(&output);
        let is_huggingface = spec.library.as_deref() == Some("huggingface");
        for row in case["rows"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(row[1].clone()).unwrap();
            let ids = tokenizer.encode_rendered(text).unwrap();
            // Plain vocabularies go NeMo's way, which these folders are not to test.
            if is_huggingface && ids != expected {
                failures.push(format!("{name}: {text:?} is {ids:?}, not {expected:?}"));
            }
            num_rows += usize::from(is_huggingface);
        }
        if is_huggingface {
            let special: Vec<(String, String)> =
                serde_json::from_value::<serde_json::Map<String, Value>>(case["special"].clone())
                    .unwrap()
                    .into_iter()
                    .map(|(role, token)| (role, token.as_str().unwrap().to_owned()))
                    .collect();
            if spec.template_variables() != special {
                failures.push(format!("{name}: {:?}, not {special:?}", spec.template_variables()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(num_rows >= 400, "{num_rows}");
}

/// The notes of a folder made of the ChatML Llama's files and others, and the tokenizer.
fn pair(files: &Value) -> (Vec<String>, TokenizerSpec, Box<dyn Tokenizer>) {
    let folder = folder(files);
    let output = folder.path().join("out.nemo");
    let notes = converted(folder.path(), &output).unwrap();
    let (spec, tokenizer) = open(&output);
    (notes, spec, tokenizer)
}

const JSON: &str = "chatml_llama/tokenizer.json";
const PROTO: &str = "chatml_llama/tokenizer.model";

#[test]
fn two_vocabularies_give_that_of_tokenizer_json() {
    let (notes, spec, tokenizer) = pair(&json!({
        "tokenizer.json": JSON, "tokenizer.model": "llama_bpe.model",
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"},
    }));
    assert_eq!(spec.library.as_deref(), Some("huggingface"));
    assert_eq!(tokenizer.encode("<|im_start|>").unwrap(), [331]);
    insta::assert_snapshot!(notes.join("\n"), @"files of the tokenizer contradict each other: tokenizer.json, which is taken, and tokenizer.model have different vocabularies");
}

#[test]
fn added_tokens_that_differ_are_named() {
    let token = |content: &str| json!({"content": content, "special": true, "normalized": false});
    let (notes, _, tokenizer) = pair(&json!({
        "tokenizer.model": PROTO,
        "added_tokens.json": {"<|im_end|>": 331, "<|im_start|>": 330},
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "added_tokens_decoder": {"330": token("<|im_end|>"), "331": token("<|im_start|>")},
        },
    }));
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [330]);
    insta::assert_snapshot!(notes.join("\n"), @r"
    files of the tokenizer contradict each other: added_tokens.json gives `<|im_end|>` the id 331; `added_tokens_decoder` in tokenizer_config.json, which is taken, does not
    files of the tokenizer contradict each other: added_tokens.json gives `<|im_start|>` the id 330; `added_tokens_decoder` in tokenizer_config.json, which is taken, does not
    ");
    let (notes, _, tokenizer) = pair(&json!({
        "tokenizer.model": PROTO, "added_tokens.json": {"<|im_end|>": 340},
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"},
    }));
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap().last(), Some(&330));
    insta::assert_snapshot!(notes.join("\n"), @"the tokenizer's files give `<|im_end|>` the id 340, but its place among the added tokens gives it 330, which is taken, as transformers does");
}

#[test]
fn special_tokens_of_two_files_give_those_of_the_map() {
    let (notes, spec, _) = pair(&json!({
        "tokenizer.json": JSON,
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|im_start|>"},
    }));
    assert_eq!(spec.special_token("eos_token"), Some("<|im_end|>"));
    insta::assert_snapshot!(notes.join("\n"), @"files of the tokenizer contradict each other: `eos_token` is `<|im_end|>` in special_tokens_map.json, which is taken, and `<|im_start|>` in tokenizer_config.json");
}

#[test]
fn templates_of_two_files_give_those_of_the_template_file() {
    let files = folder(&json!({
        "tokenizer.json": JSON,
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}],
        },
    }));
    let output = files.path().join("out.nemo");
    assert_eq!(converted(files.path(), &output).unwrap(), [""; 0]);
    assert_eq!(open(&output).0.chat_templates(), [("default", "d"), ("tool_use", "t")]);
    let back = files.path().join("hf");
    export_huggingface(&output, &back, &ConvertOptions::default()).unwrap();
    let written = |name: &str| std::fs::read_to_string(back.join(name)).unwrap();
    assert_eq!(written("chat_template.jinja"), "d");
    assert_eq!(written("additional_chat_templates/tool_use.jinja"), "t");
    std::fs::write(files.path().join("chat_template.jinja"), "f").unwrap();
    let output = files.path().join("other.nemo");
    let notes = converted(files.path(), &output).unwrap();
    assert_eq!(open(&output).0.chat_templates(), [("default", "f")]);
    insta::assert_snapshot!(notes.join("\n"), @"the chat templates of `chat_template.jinja` and `tokenizer_config.json` differ; those of `chat_template.jinja` are taken, as transformers does");
}

#[test]
fn what_cannot_be_a_tokenizer_stops_the_conversion() {
    let error = |files: &Value| {
        let folder = folder(files);
        let output = folder.path().join("out.nemo");
        let error = converted(folder.path(), &output).unwrap_err();
        assert!(!output.exists());
        error.replace(&folder.path().display().to_string(), "FOLDER")
    };
    insta::assert_snapshot!(error(&json!({"tokenizer.model": PROTO, "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "eos_token": "<x>"}})), @"the tokenizer class `T5Tokenizer` of `FOLDER`, which has no `tokenizer.json`, cannot be read: put the `tokenizer.json` that transformers saves for it into the folder, or pass one with `--tokenizer`");
    insta::assert_snapshot!(error(&json!({"vocab.json": "gpt2_bpe/vocab.json", "merges.txt": "gpt2_bpe/merges.txt", "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}})), @"the tokenizer class `RobertaTokenizer` of `FOLDER`, which has no `tokenizer.json`, cannot be read: put the `tokenizer.json` that transformers saves for it into the folder, or pass one with `--tokenizer`");
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n";
    for name in ["tokenizer.json", "tokenizer.model"] {
        let path = folder.path().join(name);
        std::fs::write(&path, pointer).unwrap();
        let error = converted(folder.path(), &folder.path().join("out.nemo")).unwrap_err();
        let expected = format!(
            "`{}` is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository",
            path.display()
        );
        assert_eq!(error, expected);
        std::fs::write(&path, "{\"model\": {\"type\": \"BPE\"}}").unwrap();
        assert!(converted(folder.path(), &folder.path().join("out.nemo")).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}

/// A Hugging Face folder of the fixture with other end tokens, as an archive.
fn with_end_tokens(folder: &Path, generation: &str) -> (std::path::PathBuf, Vec<String>) {
    for entry in std::fs::read_dir(fixture("hf_llama")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    std::fs::write(folder.join("generation_config.json"), generation).unwrap();
    let output = folder.join("out.nemo");
    let report = convert_checkpoint(folder, &output, &ConvertOptions::default()).unwrap();
    (output, report.notes.iter().map(ToString::to_string).collect())
}

#[test]
fn every_end_token_ends_a_response() {
    let plain = |checkpoint: &Path| {
        let job = Job::new(2).with(&[
            &format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()),
            "model.generation.sampling_params.use_greedy=true",
            "model.generation.num_responses_to_gen=1",
            "model.generation.length_params.max_length=6",
            "++model.generation.output_fields=[token_ids,finish_reasons]",
        ]);
        let ended = job.run().expect_code(0);
        (job.records(), ended.stderr)
    };
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, notes) = with_end_tokens(folder.path(), r#"{"eos_token_id": 2}"#);
    assert_eq!(notes, [""; 0]);
    let (records, _) = plain(&checkpoint);
    let ids: Vec<u32> = serde_json::from_value(records[0]["token_ids"][0].clone()).unwrap();
    let end = ids[1];
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, notes) =
        with_end_tokens(folder.path(), &format!(r#"{{"eos_token_id": [2, {end}, 9999]}}"#));
    assert_eq!(
        notes,
        [format!(
            "`eos_token_id` is [2,{end},9999] in `generation_config.json`, which is taken, as transformers does, and 2 in `config.json`"
        )]
    );
    let (records, stderr) = plain(&checkpoint);
    let first = ids.iter().position(|&id| id == end).unwrap();
    assert_eq!(records[0]["token_ids"][0], json!(ids[..=first]));
    assert_eq!(records[0]["finish_reasons"][0], "eos");
    assert!(
        stderr
            .contains("`eos_token_id` 9999 of `generation_config.json` is not in the tokenizer's vocabulary"),
        "{stderr}"
    );
    assert!(
        stderr.contains("tokens that end a response: 2 `</s>` (tokenizer, generation_config.json)"),
        "{stderr}"
    );
}

#[test]
fn control_pieces_in_a_rendered_template_become_their_ids() {
    let job = Job::with_data("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n").with(&[
        "++model.tokenizer.chat_template='<s>{{ messages[0].content }}</s>'",
        "model.global_batch_size=1",
        "model.generation.num_responses_to_gen=1",
    ]);
    let mut command = job.command();
    let ended = crate::support::run(command.arg("--dry-run")).expect_code(0);
    let checkpoint = open(&llama()).1;
    let expected = checkpoint.encode_rendered("<s>hi</s>").unwrap();
    assert_eq!((expected.first(), expected.last()), (Some(&1), Some(&2)));
    assert!(expected.len() < checkpoint.encode("<s>hi</s>").unwrap().len());
    assert!(ended.stderr.contains(&format!("first prompt, {} tokens", expected.len())), "{}", ended.stderr);
}

#[test]
fn added_tokens_past_the_table_are_named_and_other_vocabularies_refused() {
    let tokens: serde_json::Map<String, Value> =
        (330..600).map(|id| (format!("<extra_{id}>"), Value::from(id))).collect();
    let (notes, _, _) = pair(&json!({
        "tokenizer.model": PROTO, "added_tokens.json": tokens,
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"},
    }));
    assert!(
        notes
            .iter()
            .any(|note| note.starts_with("the tokenizer has tokens that the model cannot read: `<extra_")),
        "{notes:?}"
    );
}

#[test]
fn keys_that_no_tokenizer_follows_are_named() {
    let source = fixture("hf_llama");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    let config =
        json!({"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let report =
        convert_checkpoint(folder.path(), &folder.path().join("out.nemo"), &ConvertOptions::default())
            .unwrap();
    let notes: Vec<String> = report.notes.iter().map(ToString::to_string).collect();
    assert!(
        notes.iter().any(|note| note.contains("tokenizer_config.json") && note.contains("auto_map")),
        "{notes:?}"
    );
}
