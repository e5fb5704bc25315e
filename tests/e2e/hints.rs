//! What messages suggest to type works: it goes through a shell and the program takes it.

use std::path::Path;
use std::process::Command;

use crate::support::{Ended, Job, fixture, llama, program, run};

/// Announces arguments as they are typed in a shell. What follows is one or more words of it.
const IN_THE_SHELL: &str = "in the shell write ";

/// What a message suggests to type: the words after [`IN_THE_SHELL`], and `key=value` in backticks behind a verb.
fn suggestions(message: &str) -> Vec<String> {
    let mut found: Vec<String> = message.split(IN_THE_SHELL).skip(1).map(shell_words).collect();
    for (at, _) in message.match_indices('`') {
        let before = &message[..at];
        let text = message[at + 1..].split('`').next().unwrap_or_default();
        let is_asked_for =
            ["set ", "write ", "with ", "use ", " and ", "or "].iter().any(|verb| before.ends_with(verb));
        let is_opening = before.matches('`').count().is_multiple_of(2);
        let is_change = text.split_once('=').is_some_and(|(key, _)| {
            key.contains('.') && key.chars().all(|c| c.is_ascii_alphanumeric() || "._+~".contains(c))
        });
        if is_opening && is_asked_for && (is_change || text.starts_with("--")) {
            found.push(text.to_owned());
        }
    }
    found
}

/// The words at the start of a text, up to punctuation that no quotes hold.
fn shell_words(text: &str) -> String {
    let mut is_quoted = false;
    let mut rest = text.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        let next = rest.peek().map(|&(_, next)| next);
        match c {
            '\'' => is_quoted = !is_quoted,
            '\\' if !is_quoted => drop(rest.next()),
            '\n' if !is_quoted => return text[..at].to_owned(),
            ';' | ',' if !is_quoted && next.is_none_or(char::is_whitespace) => return text[..at].to_owned(),
            _ => {}
        }
    }
    text.trim_end().to_owned()
}

/// The program with arguments that a shell reads.
fn in_shell(typed: &str, more: &[&str], folder: &Path) -> Ended {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec \"$0\" {typed} \"$@\"")).arg(program().get_program()).args(more);
    command.current_dir(folder).env("NO_COLOR", "1").env("OMP_NUM_THREADS", "1").env_remove("RANK");
    command.stdin(std::process::Stdio::null());
    run(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()))
}

/// One mistake: what is typed, and what each suggestion must make of a key.
fn check_print(arguments: &[&str], key: &str, expect: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let ended =
        run(program().args(arguments).args(["--cfg", "job"]).current_dir(folder.path())).expect_code(2);
    let typed = suggestions(&ended.stderr);
    assert_eq!(typed.len(), expect.len(), "{typed:?} of {}", ended.stderr);
    for (typed, expect) in typed.iter().zip(expect) {
        let printed = in_shell(typed, &["--cfg", "job", "-p", key], folder.path()).expect_code(0).stdout;
        assert_eq!(printed.trim_end(), *expect, "{typed}");
    }
}

const FILE: &str = "model.data.train_ds.file_path";
const END_STRINGS: &str = "model.generation.sampling_params.end_strings";

#[test]
fn overrides_that_cannot_be_read() {
    let file = |value: &str| format!("{FILE}={value}");
    for (typed, path) in [
        ("/data/a,b.jsonl", "/data/a,b.jsonl"),
        ("/my data/a, it's b.jsonl", "/my data/a, it's b.jsonl"),
        (r"/my\ data/a\,b,c.jsonl", "/my data/a,b,c.jsonl"),
        ("/data/<a>,b.jsonl", "/data/<a>,b.jsonl"),
    ] {
        check_print(&[&file(typed)], FILE, &[path]);
    }
    check_print(&[&file("/data/a=b.jsonl")], FILE, &["/data/a=b.jsonl"]);
    check_print(&[&file("/data/$HOME `x`(1).jsonl")], FILE, &["/data/$HOME `x`(1).jsonl"]);
    check_print(&[&file("it's")], FILE, &["it's"]);
    let list = |items: &[&str]| {
        let items: Vec<String> = items.iter().map(|item| format!("- {item}")).collect();
        format!("# @package {END_STRINGS}\n{}", items.join("\n"))
    };
    let end_strings = |value: &str| format!("{END_STRINGS}={value}");
    check_print(&[&end_strings(r"[\</s\>]")], END_STRINGS, &[&list(&["</s>"])]);
    check_print(&[&end_strings("[<|eot_id|>,</s>]")], END_STRINGS, &[&list(&["<|eot_id|>", "</s>"])]);
    check_print(&[&end_strings(r"[\<|im_end|\>,x\,y]")], END_STRINGS, &[&list(&["<|im_end|>", "x,y"])]);
    check_print(&[&end_strings("a,b")], END_STRINGS, &[&list(&["a", "b"])]);
    check_print(&[&end_strings("<a>,b")], END_STRINGS, &[&list(&["<a>", "b"])]);
    check_print(&["++model.x=a,b"], "model.x", &["a,b", "# @package model.x\n- a\n- b"]);
    check_print(&["model.seed=1,2"], "model.seed", &[]);
    check_print(&["model.seed"], "model.seed", &["VALUE"]);
    let changed = list(&["x", "<extra_id_1>", "<|eot_id|>"]);
    check_print(&[&format!("{END_STRINGS}[0]=x")], END_STRINGS, &[&changed]);
}

#[test]
fn keys_that_do_not_exist_or_do() {
    check_print(&["model.generation.num_response_to_gen=2"], "model.generation.num_responses_to_gen", &["2"]);
    check_print(&["++model.generation.drop_unfinshed=true"], "model.generation.drop_unfinished", &["true"]);
    check_print(&["modle.seed=7"], "model.seed", &["7"]);
    check_print(&["model.some_training_key='a b'"], "model.some_training_key", &["a b"]);
    check_print(&["+model.seed=8"], "model.seed", &["8"]);
    check_print(&["--model.seed=5"], "model.seed", &["5"]);
    check_print(&["--model.seed", "5"], "model.seed", &["5"]);
    check_print(&["-model.seed=5"], "model.seed", &["5"]);
}

/// A job that is refused, and taken with each suggestion in turn, as far as the configuration and the data go.
fn check_job(job: &Job, code: i32, num_suggestions: usize) {
    check_command(job, &["--dry-run"], code, num_suggestions);
}

/// The same with other flags.
fn check_command(job: &Job, flags: &[&str], code: i32, num_suggestions: usize) {
    let ended = run(job.command().args(flags)).expect_code(code);
    let typed = suggestions(&ended.error());
    assert_eq!(typed.len(), num_suggestions, "{typed:?} of {}", ended.error());
    let arguments: Vec<String> =
        job.command().get_args().map(|text| text.to_str().unwrap().to_owned()).collect();
    for typed in typed {
        // Later arguments win, so what is suggested is typed behind the mistake.
        let quoted: Vec<String> =
            arguments.iter().map(|text| format!("'{}'", text.replace('\'', r"'\''"))).collect();
        let line = format!("{} {typed}", quoted.join(" "));
        let after = in_shell(&line, flags, job.path());
        assert!(!after.stderr.contains(&ended.error()), "{typed} does not help: {}", after.stderr);
        assert!(!after.stderr.contains("cannot read override"), "{typed}: {}", after.stderr);
        assert!(!after.stderr.contains("unknown key"), "{typed}: {}", after.stderr);
    }
}

#[test]
fn settings_that_contradict() {
    let with = |overrides: &[&str]| Job::new(3).with(overrides);
    check_job(&with(&["model.generation.sampling_params.end_strings=''"]), 2, 1);
    check_job(&with(&["model.generation.sampling_params.end_strings=x"]), 2, 1);
    check_job(&with(&["model.generation.sampling_params.end_strings=['',\"it's\"]"]), 2, 1);
    check_job(&with(&["model.generation.sampling_params.temperature=0"]), 2, 1);
    check_job(&with(&["model.generation.sampling_params.all_probs=true"]), 2, 1);
    check_job(&with(&["model.generation.output_fields=[logprobs]"]), 2, 1);
    check_job(&with(&["model.data.chat=false"]), 2, 1);
    check_job(&with(&["model.data.train_ds.file_path=???"]), 2, 1);
    // Who starts the machines matters only to a run.
    check_command(&with(&["trainer.num_nodes=2"]), &[], 2, 1);
    check_job(&with(&["model.global_batch_size=8", "model.data.train_ds.drop_last=true"]), 3, 1);
    let fast = ["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=falcon"];
    check_job(&with(&fast), 2, 1);
}

#[test]
fn records_of_another_format() {
    check_job(&Job::with_data("{\"input\": \"Hello?\", \"output\": \"\"}\n"), 3, 1);
    check_job(
        &Job::new(2)
            .with(&["model.data.chat=false", "model.data.train_ds.prompt_template='{input}{output}'"]),
        3,
        2,
    );
}

#[test]
fn references_that_need_the_checkpoint() {
    let ended = run(program().args(["--cfg", "job", "--resolve"])).expect_code(2);
    let typed = suggestions(&ended.error());
    assert_eq!(typed, ["pretrained_checkpoint.restore_from_path=PATH"]);
    let folder = tempfile::tempdir().unwrap();
    let typed = typed[0].replace("PATH", &llama().display().to_string());
    in_shell(&typed, &["--cfg", "job", "--resolve"], folder.path()).expect_code(0);
}

#[test]
fn advice_for_flags_of_hydra() {
    let folder = tempfile::tempdir().unwrap();
    for flag in ["--info", "--hydra-help", "--shell-completion"] {
        let ended = run(program().arg(flag)).expect_code(2);
        let typed = suggestions(&ended.error());
        assert_eq!(typed.len(), 1, "{}", ended.error());
        in_shell(&typed[0], &[], folder.path()).expect_code(0);
    }
    let ended = run(program().args(["--cfg", "hydra", "--origin"])).expect_code(2);
    in_shell(&suggestions(&ended.error())[0], &[], folder.path()).expect_code(0);
}

#[test]
fn config_groups_that_are_chosen_wrong() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("db")).unwrap();
    std::fs::write(folder.path().join("db/my.yaml"), "# @package _global_\nmodel:\n  seed: 9\n").unwrap();
    let check = |text: &str, arguments: &[&str]| {
        std::fs::write(folder.path().join("mine.yaml"), text).unwrap();
        let config = ["--config-dir", ".", "--config-name", "mine", "--cfg", "job", "-p", "model.seed"];
        let ended = run(program().args(arguments).args(config).current_dir(folder.path())).expect_code(2);
        let typed = suggestions(&ended.error());
        assert_eq!(typed.len(), 1, "{}", ended.error());
        assert_eq!(in_shell(&typed[0], &config, folder.path()).expect_code(0).stdout, "9\n", "{typed:?}");
    };
    check("trainer: {}\n", &["db=my"]);
    check("trainer: {}\n", &["++db=my"]);
    check("defaults:\n- db: ???\n", &[]);
}

#[test]
fn a_tokenizer_without_bos() {
    let job = Job::new(1);
    let folder = job.path().join("tokenizer");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(fixture("tokenizers/hf_llama/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let job = job.with(&[
        "++model.tokenizer.library=huggingface",
        "++model.tokenizer.model=null",
        &format!("++model.tokenizer.type={}", folder.display()),
        "model.generation.sampling_params.add_BOS=true",
    ]);
    check_job(&job, 2, 1);
}

/// A results folder of another run, and one that was tampered with.
#[test]
fn results_that_cannot_be_continued() {
    let job = Job::new(2);
    job.run().expect_code(0);
    let again = |job: &Job| {
        let ended = job.run();
        assert_ne!(ended.code, Some(0));
        let typed = suggestions(&ended.error());
        assert_eq!(typed, ["++exp_manager.resume_if_exists=false"], "{}", ended.error());
    };
    let job = job.with(&["model.seed=99"]);
    again(&job);
    let job = job.with(&["model.seed=1234"]);
    std::fs::write(job.jsonl_path(), "x\n").unwrap();
    again(&job);
    job.with(&["++exp_manager.resume_if_exists=false"]).run().expect_code(0);
}

/// A placeholder is in capitals, because `…` is not a value in Hydra's grammar.
#[test]
fn no_message_suggests_three_dots() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = vec![root.join("crates"), root.join("xtask/src")];
    let mut num_files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                num_files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.contains("=\u{2026}"), "`{}` suggests a value of three dots", path.display());
            }
        }
    }
    assert!(num_files > 200, "{num_files}");
}
