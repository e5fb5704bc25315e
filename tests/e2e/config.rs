//! The user's configuration: command lines of the original software, config files, what `--cfg` prints, and errors.

use std::process::Command;

use crate::support::{Job, fixture, llama, program, run};

/// The checkpoint that the command lines name.
const NAMED: &str = "/path/to/megatron_gpt_sft.nemo";

fn read(name: &str) -> String {
    std::fs::read_to_string(fixture("config").join(name)).unwrap()
}

/// What bash makes of a command line, with this program in Python's place.
fn run_command_line(script: &str, extra: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!("{}{script}", read("prelude.sh"))).current_dir(folder.path());
    command.env("PROGRAM", program().get_program()).env("OUT", folder.path().join("out")).env("EXTRA", extra);
    run(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped())).expect_code(0);
    std::fs::read_to_string(folder.path().join("out")).unwrap()
}

/// The guide's two command lines and the functional test's, against what hydra-core and omegaconf print.
#[test]
fn command_lines_mean_what_they_mean_to_hydra() {
    let checkpoints =
        [("llama", llama()), ("gptnext", fixture("mcore_gptnext/gptnext_fp32_torch_dist.nemo"))];
    for name in ["terminal", "slurm", "functional_test"] {
        let script = read(&format!("{name}.sh"));
        assert_eq!(run_command_line(&script, "--cfg job"), read(&format!("{name}.job.yaml")), "{name}");
        for (kind, checkpoint) in &checkpoints {
            let checkpoint = checkpoint.display().to_string();
            let resolved = run_command_line(&script.replace(NAMED, &checkpoint), "--cfg job --resolve");
            let expect = read(&format!("{name}.{kind}.yaml"));
            assert_eq!(resolved.replace(&checkpoint, NAMED), expect, "{name}, {kind}");
        }
    }
}

#[test]
fn guides_command_lines_are_verbatim() {
    let guide = std::fs::read_to_string(fixture("../../docs/guide.rst")).unwrap();
    for name in ["terminal.sh", "slurm.sh"] {
        let script = read(name);
        let own = ["GPFS=\"$PWD\"", "SLURM_JOB_NUM_NODES=4", "bash -c \"${cmd}\""];
        let lines: Vec<&str> = script.lines().filter(|line| !own.contains(line)).collect();
        assert!(lines.len() > 15, "{name}");
        for line in lines {
            assert!(guide.lines().any(|of_guide| of_guide.trim() == line.trim()), "{name}: {line}");
        }
    }
}

#[test]
fn cfg_prints_the_configuration() {
    insta::assert_snapshot!("cfg_job", run(program().args(["--cfg", "job"])).expect_code(0).stdout);
    let job = Job::new(1);
    let resolved =
        run(job.command().args(["--cfg", "job", "--resolve", "-p", "trainer.generation"])).expect_code(0);
    insta::assert_snapshot!("cfg_resolved", resolved.stdout);
    let arguments =
        ["hydra.output_subdir=null", "hydra/job_logging=stdout", "hydra.run.dir=/x", "model.seed=5"];
    let hydra = run(program().args(["--cfg", "hydra"]).args(arguments)).expect_code(0).stdout;
    insta::assert_snapshot!(hydra, @r"
hydra:
  run:
    dir: /x
  output_subdir: null
  overrides:
    hydra:
    - hydra.output_subdir=null
    - hydra/job_logging=stdout
    - hydra.run.dir=/x
    task:
    - model.seed=5
  job:
    name: aligner-gen
    config_name: gpt_generation
");
    let all = run(program().args(["--cfg", "all"]).args(arguments)).expect_code(0).stdout;
    let job = run(program().args(["--cfg", "job"]).args(arguments)).expect_code(0).stdout;
    assert_eq!(all, format!("{hydra}{job}"));
}

#[test]
fn resolving_needs_the_checkpoint() {
    let ended = run(program().args(["--cfg", "job", "--resolve"])).expect_code(2);
    let error = ended.error().replace(char::is_numeric, "N");
    insta::assert_snapshot!(error, @"error: cannot resolve `${model.encoder_seq_length}` at `trainer.generation.trt_llm.max_input_len` (built-in defaults line NN): there is no key `model.encoder_seq_length`; most of `model` comes from the checkpoint: write `pretrained_checkpoint.restore_from_path=PATH`");
}

#[test]
fn packages_are_printed_as_hydra_prints_them() {
    let print = |package: &str| run(program().args(["--cfg", "job", "-p", package])).expect_code(0).stdout;
    assert_eq!(print("model.seed"), "1234\n");
    assert_eq!(print("model.data.train_ds.truncation_field"), "context_ids\n");
    assert_eq!(
        print("model.generation.length_params"),
        "# @package model.generation.length_params\nmax_length: ${int_div:${model.encoder_seq_length}, 2}\nmin_length: 1\n"
    );
    assert!(print("_global_").starts_with("trainer:\n"));
    let ended = run(program().args(["--cfg", "job", "-p", "nope"])).expect_code(2);
    insta::assert_snapshot!(ended.error(), @"error: `--package nope`: the configuration has no such key");
}

/// The lines of the built-in defaults move whenever a comment there grows.
fn without_lines(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let end = line.find(" line ").filter(|_| line.contains("built-in defaults line "));
        out.push_str(&line[..end.unwrap_or(line.len())]);
        out.push('\n');
    }
    out
}

#[test]
fn origin_names_the_layer_of_each_key() {
    let job = Job::new(1);
    let text = "model:\n  seed: 5\n  data:\n    chat_prompt_tokens:\n      turn_start: <t>\n";
    std::fs::write(job.path().join("mine.yaml"), text).unwrap();
    let mut command = program();
    command.current_dir(job.path()).args([
        "-cp",
        ".",
        "-cn",
        "mine",
        "--cfg",
        "job",
        "--resolve",
        "--origin",
    ]);
    command.arg(format!("pretrained_checkpoint.restore_from_path={}", llama().display()));
    command.args(["model.global_batch_size=2", "++model.extra=[1,x]"]);
    let ended = run(&mut command).expect_code(0).stdout;
    let ended = ended.replace(&llama().display().to_string(), "[CHECKPOINT]");
    insta::assert_snapshot!("cfg_origin", without_lines(&ended));
    let mut command = program();
    command.args(["--cfg", "job", "--origin", "-p", "model.generation.length_params"]);
    insta::assert_snapshot!(without_lines(&run(&mut command).expect_code(0).stdout), @r#"
model.generation.length_params.max_length: "${int_div:${model.encoder_seq_length}, 2}"  # built-in defaults
model.generation.length_params.min_length: 1  # built-in defaults
"#);
}

#[test]
fn config_file_is_below_the_command_line() {
    let job = Job::new(1);
    let text = "model:\n  seed: 5\n  global_batch_size: 3\n  generation:\n    trt_llm:\n      enable: true\n";
    std::fs::write(job.path().join("mine.yaml"), text).unwrap();
    let folder = job.path().display().to_string();
    let arguments = ["-cp", &folder, "-cn", "mine", "--cfg", "job", "-p", "model", "model.seed=6"];
    let printed = run(program().args(arguments)).expect_code(0).stdout;
    assert!(printed.contains("seed: 6") && printed.contains("global_batch_size: 3"), "{printed}");
    let arguments =
        ["-cp", &folder, "-cn", "mine", "--cfg", "job", "-p", "trainer.generation.trt_llm.enable"];
    assert_eq!(run(program().args(arguments)).expect_code(0).stdout, "true\n");
}

#[test]
fn config_groups_come_from_the_users_folders() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("tp_overlap")).unwrap();
    std::fs::create_dir(folder.path().join("sampling")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tp_overlap/h100.yaml", "method: ring\n");
    write("sampling/greedy.yaml", "# @package model.generation.sampling_params\nuse_greedy: true\n");
    write("sampling/hot.yaml", "# @package model.generation.sampling_params\ntemperature: 2.0\n");
    write("mine.yaml", "defaults:\n- sampling: greedy\n- _self_\nmodel:\n  seed: 9\n");
    let print = |arguments: &[&str]| {
        let mut command = program();
        command.arg("-cp").arg(folder.path()).args(["--cfg", "job", "--origin"]).args(arguments);
        let stdout = run(&mut command).expect_code(0).stdout;
        stdout.replace(&folder.path().display().to_string(), "[FOLDER]")
    };
    let greedy = print(&["-cn", "mine", "-p", "model.generation.sampling_params"]);
    assert!(greedy.contains("use_greedy: true  # [FOLDER]/sampling/greedy.yaml line 2"), "{greedy}");
    let hot = print(&["-cn", "mine", "sampling=hot", "-p", "model.generation.sampling_params"]);
    assert!(hot.contains("temperature: 2.0  # [FOLDER]/sampling/hot.yaml line 2"), "{hot}");
    let overlap =
        print(&["tp_overlap@model.ub_tp_comm_overlap_cfg=h100", "-p", "model.ub_tp_comm_overlap_cfg"]);
    assert!(overlap.contains(r#".method: "ring"  # [FOLDER]/tp_overlap/h100.yaml line 1"#), "{overlap}");
}

#[test]
fn checkpoint_values_give_way_to_what_is_set() {
    let job = Job::new(1);
    let print = |arguments: &[&str]| {
        let mut command = job.command();
        command.args(["--cfg", "job", "--resolve"]).args(arguments);
        run(&mut command).expect_code(0).stdout
    };
    // Overrides see the configuration without the checkpoint: its keys can be added, and a default that is deleted
    // leaves the checkpoint's value.
    assert_eq!(print(&["+model.hidden_size=8", "-p", "model.hidden_size"]), "8\n");
    assert_eq!(print(&["~model.micro_batch_size", "-p", "model.micro_batch_size"]), "4\n");
    assert_eq!(print(&["-p", "model.micro_batch_size"]), "1\n");
    let overwrite =
        ["++model.overwrite_base_config.hidden_size=true", "++model.hidden_size=null", "-p", "model"];
    assert!(print(&overwrite).contains("\nhidden_size: null\n"));
    let ended = run(job.command().args(["model.hidden_size=8", "--cfg", "job"])).expect_code(2);
    assert!(ended.error().contains("unknown key `model.hidden_size`"), "{}", ended.stderr);
    let ended =
        run(job.command().args(["++model.overwrite_base_config.hidden_size=1", "--cfg", "job", "--resolve"]));
    insta::assert_snapshot!(ended.expect_code(2).error(), @"error: `model.overwrite_base_config.hidden_size` must be true or false, found the whole number 1");
}

#[test]
fn mistakes_name_key_value_layer_and_place() {
    let job = Job::new(1);
    let with_file = |text: &str, arguments: &[&str]| {
        std::fs::write(job.path().join("mine.yaml"), text).unwrap();
        let mut command = job.command();
        command.current_dir(job.path()).args(["-cp", ".", "-cn", "mine"]).args(arguments);
        run(&mut command).expect_code(2).error()
    };
    insta::assert_snapshot!(with_file("model:\n  seed: five\n", &[]), @"error: `model.seed` must be a whole number, found the string `five` (./mine.yaml line 2)");
    insta::assert_snapshot!(with_file("model:\n  generation:\n    sampling_params:\n      top_k: 1.5\n", &[]), @"error: `model.generation.sampling_params.top_k` must be a whole number, found the number 1.5 (./mine.yaml line 4)");
    insta::assert_snapshot!(with_file("model:\n  generation:\n    sampling_params:\n      end_strings: [1]\n", &[]), @"error: `model.generation.sampling_params.end_strings` must be a list of strings, found a list (./mine.yaml line 4)");
    insta::assert_snapshot!(with_file("{}\n", &["trainer.devices=[1]"]), @"error: `trainer.devices` must be a whole number or `auto`, found a list (command line: trainer.devices=[1])");
    insta::assert_snapshot!(with_file("model: {data: {train_ds: {drop_last: 3}}}\n", &[]), @"error: `model.data.train_ds.drop_last` must be `auto`, true or false, found the whole number 3 (./mine.yaml line 1)");
    insta::assert_snapshot!(with_file("model:\n  data:\n    train_ds:\n      max_seq_len: 5\n", &[]), @"error: unknown key `model.data.train_ds.max_seq_len` (./mine.yaml line 4), did you mean `model.data.train_ds.max_seq_length`?");
    insta::assert_snapshot!(with_file("model:\n  generation: [1]\n", &[]).replace(char::is_numeric, "N"), @"error: cannot merge a list (./mine.yaml line N) with a map (built-in defaults line NNN) at `model.generation`");
    insta::assert_snapshot!(with_file("model:\n  seed: ${trainer.nope}\n", &[]), @"error: cannot resolve `${trainer.nope}` at `model.seed` (./mine.yaml line 2): there is no key `trainer.nope`");
    insta::assert_snapshot!(with_file("model:\n  seed: ${model.seed}\n", &[]), @"error: cannot resolve `${model.seed}` at `model.seed` (./mine.yaml line 2): the references form a cycle: `model.seed` -> `model.seed`");
    insta::assert_snapshot!(with_file("model:\n  seed: ${now:%Y}\n", &[]), @"error: cannot resolve `${now:%Y}` at `model.seed` (./mine.yaml line 2): `now` is not supported: a job must mean the same when it is started again; write the value itself");
    insta::assert_snapshot!(with_file("model:\n  seed: 1\n  seed: 2\n", &[]), @"error: ./mine.yaml:3:3: key `seed` appears twice");
    insta::assert_snapshot!(with_file("defaults: [base]\n", &[]), @"error: ./mine.yaml: there is no config file `base.yaml`; in its folder are `mine`");
    insta::assert_snapshot!(with_file("{}\n", &["trainer.generation=null"]).replace(char::is_numeric, "N"), @"error: cannot resolve `${.generation.max_epochs}` at `trainer.max_epochs` (built-in defaults line NN): there is no key `trainer.generation.max_epochs`");
    insta::assert_snapshot!(with_file("{}\n", &["db@model=x"]), @"error: db@model=x: there is no config group `db` in the folders of the config files");
    insta::assert_snapshot!(with_file("{}\n", &["--multirun", "model.seed=1,2"]), @"error: `--multirun` is not supported; one run is one configuration: start the program once for each");
    insta::assert_snapshot!(with_file("{}\n", &["model.seed=1,2"]), @"error: cannot read override `model.seed=1,2`: commas outside of brackets make a sweep, one run for each value; start the program once for each instead");
    insta::assert_snapshot!(with_file("{}\n", &["--info"]), @"error: `--info` is not supported; for what was composed from where, write `--cfg job --origin`");
    let ended = run(program().args(["-cp", "/nowhere", "-cn", "other"])).expect_code(2);
    insta::assert_snapshot!(ended.error(), @"error: no config file `other.yaml` in `/nowhere`");
}
