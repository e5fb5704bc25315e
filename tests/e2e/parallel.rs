//! One model over several ranks: the same file from every layout, and what happens when one of its ranks stops.

use nemo_format::{ConvertOptions, convert_checkpoint};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::ranks::{free_port, rank_command, ranks_of, wait_gone};
use crate::support::{Job, fixture, run, wait, wait_until};

const FAST: [&str; 2] =
    ["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=llama"];
const TREE: &str = "++model.generation.reduction=tree";
const LONG: &str = "model.generation.length_params.max_length=40";

/// A layout: tensor, pipeline and data-parallel size.
type Layout = [u32; 3];

fn job(num_samples: usize) -> Job {
    Job::new(num_samples)
        .with(&[
            "model.global_batch_size=6",
            "model.data.train_ds.drop_last=false",
            "trainer.accelerator=cpu",
        ])
        .with(&FAST)
}

fn with_layout(job: Job, [tensor, pipeline, data]: Layout) -> Job {
    job.with(&[
        &format!("trainer.devices={}", tensor * pipeline * data),
        &format!("model.tensor_model_parallel_size={tensor}"),
        &format!("model.pipeline_model_parallel_size={pipeline}"),
        TREE,
    ])
}

fn undisturbed(num_samples: usize, overrides: &[&str]) -> String {
    let job = with_layout(job(num_samples), [1, 1, 1]).with(overrides);
    job.run().expect_code(0);
    job.jsonl()
}

#[test]
fn every_layout_writes_the_same_file() {
    const OVERRIDES: [&str; 3] = [
        "trainer.precision=bf16",
        "model.generation.sampling_params.repetition_penalty=1.1",
        "model.generation.sampling_params.end_strings=[e,er,th]",
    ];
    let expect = undisturbed(14, &OVERRIDES);
    for layout in [[2, 1, 1], [4, 1, 1], [1, 3, 1], [2, 2, 1], [2, 1, 2]] {
        let job = with_layout(job(14), layout).with(&OVERRIDES);
        let ended = job.run().expect_code(0);
        assert_eq!(job.jsonl(), expect, "{layout:?}");
        let [tensor, pipeline, data] = layout;
        let replicas = if data == 1 { "1 replica" } else { "2 replicas" };
        let text = format!(
            "{replicas}, each of {tensor} tensor-parallel x {pipeline} pipeline ranks; sums over ranks and pieces in one tree"
        );
        assert!(ended.stderr.contains(&text), "{}", ended.stderr);
    }
    // Drafts are verified on every rank, and a full cache makes all of them swap.
    let drafts = "trainer.generation.speculation.enable=true";
    let job =
        with_layout(job(14), [2, 2, 1]).with(&OVERRIDES).with(&[drafts, "trainer.generation.max_batch=3"]);
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
}

/// Ranks that have whole experts, ranks that have parts of all, and one alone write the same, and continue each other's work.
#[test]
fn experts_are_shared_by_number_or_by_width() {
    let kept = tempfile::tempdir().unwrap();
    let checkpoint = kept.path().join("mixtral.nemo");
    convert_checkpoint(&fixture("families/mixtral"), &checkpoint, &ConvertOptions::default()).unwrap();
    let job = |layout: &[&str]| {
        let job = Job::new(6).with(&[
            &format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()),
            "trainer.generation.trt_llm.enable=true",
            "trainer.generation.trt_llm.model_type=mixtral",
            "trainer.accelerator=cpu",
            "trainer.precision=bf16",
            "model.global_batch_size=2",
            "model.generation.length_params.max_length=8",
            "model.data.chat_prompt_tokens={system_turn_start:a,turn_start:b,end_of_turn:c,end_of_name:d}",
        ]);
        job.with(layout)
    };
    let alone = job(&[TREE]);
    alone.run().expect_code(0);
    let expect = alone.jsonl();
    for layout in [
        &["trainer.devices=2", "model.tensor_model_parallel_size=2"][..],
        &["trainer.devices=2", "model.expert_model_parallel_size=2"],
        &["trainer.devices=4", "model.tensor_model_parallel_size=4", "model.expert_model_parallel_size=4"],
    ] {
        let shared = job(layout);
        let ended = shared.run().expect_code(0);
        assert_eq!(shared.jsonl(), expect, "{layout:?}");
        let is_said = ended.stderr.contains("pipeline ranks with whole experts each");
        assert_eq!(is_said, layout[1..].iter().any(|key| key.contains("expert")), "{}", ended.stderr);
    }
    let continued = alone.with(&["trainer.devices=2", "model.expert_model_parallel_size=2"]);
    continued.run().expect_code(0);
    assert_eq!(continued.jsonl(), expect);
    let planned = job(&["trainer.devices=4", "model.expert_model_parallel_size=4", "--dry-run"]);
    let ended = planned.run().expect_code(0);
    let at = ended.stderr.find("rank of a replica").unwrap_or_else(|| panic!("{}", ended.stderr));
    insta::assert_snapshot!(ended.stderr[at..].lines().take(5).collect::<Vec<_>>().join("\n"));
    let refusal = |layout: &[&str]| job(layout).run().expect_code(2).error();
    insta::assert_snapshot!(refusal(&["trainer.devices=4", "model.tensor_model_parallel_size=4", "model.expert_model_parallel_size=2"]), @"error: `model.expert_model_parallel_size=2` with 4 tensor-parallel ranks: it must be 1, and every rank has a part of each expert, or 4 as `model.tensor_model_parallel_size`, and every rank has whole experts");
    let plain = [
        "trainer.devices=2",
        "model.expert_model_parallel_size=2",
        "trainer.generation.trt_llm.enable=false",
    ];
    insta::assert_snapshot!(refusal(&plain), @"error: `model.expert_model_parallel_size=2`: libtorch's products have other bits for each number of ranks that share a layer: set `trainer.generation.trt_llm.enable=true`");
}

#[test]
fn a_killed_rank_is_named_and_another_layout_goes_on() {
    let expect = undisturbed(48, &[LONG]);
    for (victim, other) in [(3, [1, 1, 1]), (0, [2, 1, 2])] {
        let job = with_layout(job(48), [2, 2, 1]).with(&[LONG]);
        let launcher = job.start_and_wait_for_lines(6);
        let ranks = ranks_of(&launcher);
        assert_eq!(ranks.len(), 4);
        kill_process(ranks[victim].1, Signal::KILL).unwrap();
        let ended = wait(launcher).expect_code(1);
        let text = format!("rank {victim} was killed by signal 9, so the job was ended");
        assert!(ended.error().contains(&text), "{}", ended.stderr);
        ranks.iter().for_each(|(_, pid)| wait_gone(*pid));
        assert!(job.records().len().is_multiple_of(6));
        let job = with_layout(job, other);
        job.run().expect_code(0);
        assert_eq!(job.jsonl(), expect);
    }
}

#[test]
fn a_rank_that_stands_still_ends_the_job_by_its_name() {
    let job = with_layout(job(96), [2, 1, 1]).with(&[LONG, "trainer.generation.lease_seconds=2"]);
    let launcher = job.start_and_wait_for_lines(6);
    let stopped = ranks_of(&launcher)[1].1;
    kill_process(stopped, Signal::STOP).unwrap();
    let ended = wait(launcher).expect_code(1);
    let text = format!("rank 1 (process {}", stopped.as_raw_pid());
    assert!(ended.error().contains(&text), "{}", ended.stderr);
    let text = "computes a part of the model, and was not heard from for 2 s";
    assert!(ended.error().contains(text), "{}", ended.stderr);
    wait_gone(stopped);
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let job = with_layout(job(6), [2, 1, 1]).with(&["trainer.generation.join_timeout_seconds=2"]);
    let ended = run(&mut rank_command(&job, 0, 2, free_port())).expect_code(1);
    insta::assert_snapshot!(ended.error(), @"error: rank 1, which has a part of the model of rank 0, did not come within `trainer.generation.join_timeout_seconds` of 2 s");
}

/// The other ranks end with it, each by one message that names it, and nothing that was written is lost.
#[test]
fn a_rank_alone_without_memory_is_named() {
    let expect = undisturbed(96, &[LONG]);
    let job = with_layout(job(96), [2, 1, 1]).with(&[LONG]);
    let mut launcher = job.start_and_wait_for_lines(6);
    launcher.kill().unwrap();
    wait(launcher);
    // It refuses its plan, or finds no room for what it plans.
    for more_mib in [16, 32] {
        let port = free_port();
        let given = "++trainer.generation.kv_cache_memory_bytes=400000000";
        let limited = rank_command(&job, 1, 2, port).arg(given).spawn().unwrap();
        // It waits for rank 0 when its size does not change any more.
        let mut sizes = Vec::new();
        wait_until("rank 1 to wait for rank 0", || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            sizes.push(address_space_bytes(limited.id()));
            sizes.len() > 10 && sizes[sizes.len() - 10..].iter().all(|size| size == &sizes[sizes.len() - 1])
        });
        let limit = sizes[sizes.len() - 1] + (more_mib << 20);
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        prlimit(Some(Pid::from_child(&limited)), Resource::As, limit).unwrap();
        let pid = limited.id();
        let first = run(rank_command(&job, 0, 2, port).arg(given)).expect_code(5);
        let limited = wait(limited).expect_code(5);
        let said = limited.error().trim_start_matches("error: ").to_owned();
        assert!(said.contains("memory"), "{}", limited.stderr);
        let named = format!("error: rank 1 (process {pid} on ");
        assert!(first.error().starts_with(&named) && first.error().contains(&said), "{}", first.stderr);
        // What the kill left of a step is cut off, and every committed one stays.
        assert!(expect.starts_with(&job.jsonl()));
    }
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
}

fn address_space_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn sigterm_saves_whole_steps_of_every_layout() {
    let expect = undisturbed(48, &[LONG]);
    let job = with_layout(job(48), [1, 2, 2]).with(&[LONG]);
    let launcher = job.start_and_wait_for_lines(6);
    kill_process(Pid::from_child(&launcher), Signal::TERM).unwrap();
    let ended = wait(launcher);
    // It may have been done just then.
    assert!([Some(143), Some(0)].contains(&ended.code), "{}", ended.stderr);
    assert!(job.records().len().is_multiple_of(6));
    let job = with_layout(job, [4, 1, 1]);
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
}

#[test]
fn a_dry_run_shows_the_memory_of_every_rank() {
    let ended = with_layout(job(2), [2, 2, 1]).with(&["--dry-run"]).run().expect_code(0);
    let at = ended.stderr.find("rank of a replica").unwrap_or_else(|| panic!("{}", ended.stderr));
    let table: Vec<&str> = ended.stderr[at..].lines().take(5).collect();
    insta::assert_snapshot!(table.join("\n"));
    assert!(!job(2).with(&["--dry-run"]).run().expect_code(0).stderr.contains("rank of a replica"));
}

#[test]
fn layouts_that_contradict_the_job() {
    let refusal = |overrides: &[&str]| job(2).with(overrides).run().expect_code(2).error();
    insta::assert_snapshot!(refusal(&["trainer.devices=3", "model.tensor_model_parallel_size=2"]), @"error: `model.tensor_model_parallel_size=2`: the ranks that share a layer are on one machine, and there are 3 on each: set `trainer.devices` to a multiple of 2");
    insta::assert_snapshot!(refusal(&["trainer.devices=2", "model.tensor_model_parallel_size=2", "++model.generation.reduction=chain"]), @"error: `model.generation.reduction=chain` is for models of one tensor-parallel rank, and 2 share this one: leave it out, or set `model.tensor_model_parallel_size=1`");
    insta::assert_snapshot!(refusal(&["trainer.devices=2", "model.tensor_model_parallel_size=2", "trainer.generation.trt_llm.enable=false"]), @"error: `model.tensor_model_parallel_size=2`: libtorch's products have other bits for each number of ranks that share a layer: set `trainer.generation.trt_llm.enable=true`");
    insta::assert_snapshot!(refusal(&["model.tensor_model_parallel_size=two"]), @"error: `model.tensor_model_parallel_size` must be a number from 1 or `auto`, found the string `two`");
    insta::assert_snapshot!(refusal(&["++model.generation.reduction=ring"]), @"error: `model.generation.reduction` must be `auto`, `chain` or `tree`, found `ring`");
    // Written in one order, it is not continued in the other.
    let job = job(2);
    job.run().expect_code(0);
    let ended = with_layout(job, [1, 1, 1]).run().expect_code(2);
    assert!(ended.error().contains("changed: `model.generation.reduction`"), "{}", ended.stderr);
}
