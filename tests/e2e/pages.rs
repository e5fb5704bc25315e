//! The commands of pages of the documentation run as they stand there.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::{llama, program, run};

/// The shell commands of a page, one text for each block.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("\n```sh\n") {
        let (block, after) = after.split_once("\n```").unwrap();
        blocks.push(block.to_owned());
        rest = after;
    }
    blocks
}

/// Runs all blocks of a page in one folder, where `model.nemo` is a small checkpoint. Gives what they printed.
fn run_page(name: &str, folder: &Path) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    let blocks = blocks(&std::fs::read_to_string(page).unwrap());
    assert!(!blocks.is_empty(), "{name} has no commands");
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(program().get_program(), bin.join("aligner-gen")).unwrap();
    symlink(llama(), folder.join("model.nemo")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut printed = String::new();
    for block in blocks {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", &block]).current_dir(folder).env("PATH", &path).env("NO_COLOR", "1");
        command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1").env_remove("RANK");
        command.stdin(std::process::Stdio::null());
        let ended = run(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()));
        assert_eq!(ended.code, Some(0), "{name}: {block}\n{}", ended.stderr);
        printed.push_str(&ended.stdout);
    }
    printed
}

fn lines(folder: &Path, job: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join(job).join("generations/generations.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn structured_outputs() {
    let folder = tempfile::tempdir().unwrap();
    run_page("structure.md", folder.path());
    for line in lines(folder.path(), "objects") {
        for text in line["responses_clean"].as_array().unwrap() {
            let object: serde_json::Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
            assert!(
                object["sure"].is_boolean() && ["yes", "no"].contains(&object["answer"].as_str().unwrap())
            );
        }
    }
    let rows = lines(folder.path(), "rows");
    assert!(rows[1]["responses_clean"][0].as_str().unwrap().parse::<u32>().is_ok(), "{}", rows[1]);
}

#[test]
fn rows_columns_and_errors() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run_page("bulk.md", folder.path());
    let num_responses = |job: &str| -> Vec<usize> {
        lines(folder.path(), job).iter().map(|line| line["responses"].as_array().unwrap().len()).collect()
    };
    assert_eq!(num_responses("rows"), [2, 2, 3]);
    let typed = std::fs::read(folder.path().join("typed/generations/generations.parquet")).unwrap();
    assert!(typed.starts_with(b"PAR1") && typed.ends_with(b"PAR1"));
    assert_eq!(lines(folder.path(), "chosen")[0]["top_logprobs"][0][0].as_array().unwrap().len(), 2);
    assert_eq!(lines(folder.path(), "columns")[2]["id"], "c");
    assert_eq!(num_responses("errors"), [1, 1, 1, 0]);
    let page = std::fs::read_to_string(folder.path().join("rows/report.html")).unwrap();
    assert!(page.contains("Name a river.") && page.contains("<polyline"));
    assert!(printed.contains("  responses               7\n"), "{printed}");
    assert_eq!((num_responses("parts"), num_responses("piped")), (vec![1; 2], vec![1; 3]));
    let scores = std::fs::read_to_string(folder.path().join("scores.jsonl")).unwrap();
    assert_eq!(scores.lines().count(), 3);
    let batch = lines(folder.path(), "batch");
    assert_eq!(batch[1]["response"]["body"]["choices"].as_array().unwrap().len(), 2);
    assert_eq!((&batch[0]["custom_id"], &batch[0]["error"]), (&"r-1".into(), &serde_json::Value::Null));
    assert!(lines(folder.path(), "errors")[3]["error"].is_string());
}
