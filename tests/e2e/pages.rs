//! The commands of pages of the documentation run as they stand there.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use hydra_config::Node;

use crate::ranks::free_port;
use crate::support::{Job, fixture, llama, program, run, wait};

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

/// Runs all blocks of a page in one folder, where `model.nemo` is a small checkpoint unless the folder has a model. Gives
/// what they printed.
fn run_page(name: &str, folder: &Path) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    let blocks = blocks(&std::fs::read_to_string(page).unwrap());
    assert!(!blocks.is_empty(), "{name} has no commands");
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(program().get_program(), bin.join("aligner-gen")).unwrap();
    if !folder.join("model.nemo").exists() && !folder.join("my-model").exists() {
        symlink(llama(), folder.join("model.nemo")).unwrap();
    }
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

#[test]
fn checks_best_of_n_and_pass_at_k() {
    let folder = tempfile::tempdir().unwrap();
    let printed = run_page("checks.md", folder.path());
    assert!(printed.contains("pass@k") && printed.contains("verdicts"), "{printed}");
    let lines = |job: &str| lines(folder.path(), job);
    let len = |value: &serde_json::Value| value.as_array().unwrap().len();
    let checked = lines("checked");
    assert_eq!((len(&checked[0]["verdicts"]), len(&checked[1]["scores"])), (4, 4));
    for line in lines("first") {
        let verdicts = line["verdicts"].as_array().unwrap();
        let stop = verdicts.iter().position(|verdict| verdict == "pass_and_stop");
        assert_eq!(stop.map_or(8, |stop| stop + 1), verdicts.len());
    }
    // The same responses, of which one is kept.
    for (best, all) in lines("shortest").iter().zip(&checked) {
        let idx = best["response_indices"][0].as_u64().unwrap() as usize;
        assert_eq!((len(&best["responses"]), &best["responses"][0]), (1, &all["responses"][idx]));
        let scores = all["scores"].as_array().unwrap();
        assert!(scores.iter().all(|score| score.as_f64() <= best["scores"][0].as_f64()), "{all}");
    }
    assert_eq!(lines("likely").iter().map(|line| len(&line["responses"])).collect::<Vec<_>>(), [1, 1]);
    let counted = lines("counted");
    assert!(
        counted.iter().all(|line| line["pass_at_k"]["1"].is_number() && line["pass_at_k"]["8"].is_number())
    );
    let summary = std::fs::read(folder.path().join("counted/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["pass_at_k_rows"], serde_json::json!({"1": 2, "8": 2}));
}

#[test]
fn coming_from_other_programs() {
    let aligner = tempfile::tempdir().unwrap();
    run_page("guide/from-nemo-aligner.md", aligner.path());
    assert_eq!(lines(aligner.path(), "results").len(), 2);

    let vllm = tempfile::tempdir().unwrap();
    run_page("guide/from-vllm.md", vllm.path());
    let results = std::fs::read_to_string(vllm.path().join("results.jsonl")).unwrap();
    assert_eq!(results.lines().count(), 2);
    assert_eq!(lines(vllm.path(), "chat")[1]["id"], 2);

    let hugging_face = tempfile::tempdir().unwrap();
    symlink(fixture("hf_llama"), hugging_face.path().join("my-model")).unwrap();
    let printed = run_page("guide/from-hugging-face.md", hugging_face.path());
    assert!(printed.contains("[3, 3]"), "{printed}");
    assert_eq!(lines(hugging_face.path(), "greedy").len(), 2);
}

/// The manifest of the page as two pods on one machine: what names the cluster is replaced, all else is as it stands.
#[test]
fn the_job_of_kubernetes() {
    let page = std::fs::read_to_string(fixture("../../docs/guide/kubernetes.md")).unwrap();
    let (_, yaml) = page.split_once("```yaml\n").unwrap();
    let (_, job) = yaml.split_once("```").unwrap().0.split_once("\n---\n").unwrap();
    let job = hydra_config::yaml::parse(job, "kubernetes.md").unwrap();
    let text = |node: &Node| node.as_str().map(str::to_owned).unwrap();
    let list = |node: &Node| match node {
        Node::List(list) => list.clone(),
        other => panic!("{other:?} is no list"),
    };
    let spec = job.get("spec.template.spec").unwrap();
    let container = list(spec.get("containers").unwrap()).remove(0);
    let env: Vec<(String, String)> = list(container.get("env").unwrap())
        .iter()
        .map(|variable| (text(variable.get("name").unwrap()), text(variable.get("value").unwrap())))
        .collect();
    // The first pod has the name of the Job and its index, below the service.
    let name = text(job.get("metadata.name").unwrap());
    let host = format!("{name}-0.{}", text(spec.get("subdomain").unwrap()));
    assert_eq!(env[0], ("MASTER_ADDR".to_owned(), host));
    assert_eq!(env[1].0, "MASTER_PORT");
    let args: Vec<String> = list(container.get("args").unwrap()).iter().map(text).collect();
    assert_eq!(job.get("spec.completions"), Some(&Node::Int(2)));
    assert!(args.contains(&"trainer.num_nodes=2".to_owned()), "{args:?}");

    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let here = Job::new(12);
    let paths = [
        format!("pretrained_checkpoint.restore_from_path={}", llama().display()),
        format!("model.data.train_ds.file_path={}", here.path().join("data.jsonl").display()),
        format!("exp_manager.explicit_log_dir={}", here.results().display()),
    ];
    let short = [
        "trainer.devices=1",
        "trainer.accelerator=cpu",
        "trainer.precision=32",
        "model.global_batch_size=4",
        "model.generation.num_responses_to_gen=1",
        "model.generation.length_params.max_length=12",
    ];
    let port = free_port().to_string();
    let pods = ["1", "0"].map(|index| {
        let mut command = program();
        command.args(&args).args(&paths).args(short);
        command.env("JOB_COMPLETION_INDEX", index).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.spawn().unwrap()
    });
    for pod in pods {
        wait(pod).expect_code(0);
    }
    let alone = Job::new(12).with(&args).with(&["trainer.num_nodes=1"]);
    let own_paths = [
        format!("pretrained_checkpoint.restore_from_path={}", llama().display()),
        format!("model.data.train_ds.file_path={}", alone.path().join("data.jsonl").display()),
        format!("exp_manager.explicit_log_dir={}", alone.results().display()),
    ];
    let alone = alone.with(&own_paths.each_ref().map(String::as_str)).with(&short);
    alone.run().expect_code(0);
    assert_eq!(here.jsonl(), alone.jsonl());
}
