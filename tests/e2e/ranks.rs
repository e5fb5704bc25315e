//! Several ranks: the same file from any number of them, and what happens to the job when one of them stops.

use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use torch_ext::store::Store;

use crate::support::{Ended, Job, run, wait, wait_until};

const LONG: [&str; 1] = ["model.generation.length_params.max_length=40"];

/// A job of this many samples in steps that four ranks can share; the remainder is kept.
fn job(num_samples: usize, num_ranks: usize) -> Job {
    Job::new(num_samples)
        .with(&["model.global_batch_size=12", "model.data.train_ds.drop_last=false"])
        .with(&[&format!("trainer.devices={num_ranks}")])
}

fn undisturbed(num_samples: usize, overrides: &[&str]) -> String {
    let job = job(num_samples, 1).with(overrides);
    job.run().expect_code(0);
    job.jsonl()
}

/// The ranks that a launcher has started, by number.
pub(crate) fn ranks_of(launcher: &Child) -> Vec<(usize, Pid)> {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", launcher.id())).unwrap();
    let pids = children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap());
    let mut ranks: Vec<(usize, Pid)> = pids.map(|pid| (rank_of(pid), pid)).collect();
    ranks.sort_unstable_by_key(|(rank, _)| *rank);
    ranks
}

fn rank_of(pid: Pid) -> usize {
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap();
    let variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    variables.filter_map(|pair| pair.strip_prefix("RANK=")?.parse().ok()).next().unwrap()
}

/// Waits until a process is gone, or is a zombie that has not been reaped.
pub(crate) fn wait_gone(pid: Pid) {
    let is_zombie = || {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z')))
    };
    let end = format!("the end of process {}", pid.as_raw_pid());
    wait_until(&end, || test_kill_process(pid).is_err() || is_zombie());
}

/// One rank as a launcher of another kind starts it.
pub(crate) fn rank_command(job: &Job, rank: usize, num_ranks: usize, port: u16) -> Command {
    let mut command = job.command();
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", num_ranks.to_string());
    command.env("LOCAL_RANK", rank.to_string()).env("MASTER_ADDR", "127.0.0.1");
    command.env("MASTER_PORT", port.to_string());
    command
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn finish_with(job: Job, num_ranks: usize, expect: &str) {
    let job = job.with(&[&format!("trainer.devices={num_ranks}")]);
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), expect);
}

#[test]
fn any_number_of_ranks_writes_the_same_file() {
    let expect = undisturbed(30, &[]);
    for num_ranks in [2, 3, 4] {
        let job = job(30, num_ranks);
        let ended = job.run().expect_code(0);
        assert_eq!(job.jsonl(), expect, "{num_ranks} ranks");
        let summary = job.summary();
        let samples: Vec<u64> = summary["samples_by_rank"]
            .as_array()
            .unwrap()
            .iter()
            .map(|count| count.as_u64().unwrap())
            .collect();
        assert_eq!((samples.len(), samples.iter().sum::<u64>()), (num_ranks, 30));
        for rank in 0..num_ranks {
            let log = format!("nemo_log_globalrank-{rank}_localrank-{rank}.txt");
            assert!(job.results().join(&log).exists(), "{log}");
        }
        // A rank that starts when all is done has nothing to say.
        for rank in (0..num_ranks).filter(|&rank| rank == 0 || samples[rank] > 0) {
            assert!(ended.stderr.contains(&format!("[rank {rank}] ")), "rank {rank}: {}", ended.stderr);
        }
    }
}

#[test]
fn the_remainder_is_dropped_with_several_ranks_as_the_guide_says() {
    let job = job(30, 2).with(&["model.data.train_ds.drop_last=auto"]);
    let ended = job.run().expect_code(0);
    assert!(
        ended.stderr.contains("the last batch is not full and is dropped: lines 25, 26, 27, 28, 29, 30"),
        "{}",
        ended.stderr
    );
    let whole = undisturbed(30, &[]);
    let expect: String = whole.split_inclusive('\n').take(24).collect();
    assert_eq!(job.jsonl(), expect);
    // One rank drops no remainder, so it continues where two have ended.
    let job = job.with(&["trainer.devices=1"]);
    job.run().expect_code(0);
    assert_eq!(job.jsonl(), whole);
}

#[test]
fn a_killed_rank_ends_the_job_and_the_job_goes_on_with_another_number() {
    let expect = undisturbed(96, &LONG);
    for (victim, other) in [(0, 3), (1, 2)] {
        let job = job(96, 3).with(&LONG);
        let launcher = job.start_and_wait_for_lines(12);
        let ranks = ranks_of(&launcher);
        assert_eq!(ranks.len(), 3);
        kill_process(ranks[victim].1, Signal::KILL).unwrap();
        let ended = wait(launcher).expect_code(1);
        let text =
            format!("rank {victim} was killed by signal 9, so the job was ended; finished steps are saved");
        assert!(ended.error().contains(&text), "{}", ended.stderr);
        ranks.iter().for_each(|(_, pid)| wait_gone(*pid));
        // The others may have finished before they were ended.
        assert!(job.records().len().is_multiple_of(12));
        finish_with(job, other, &expect);
    }
}

#[test]
fn ranks_die_with_their_launcher() {
    let expect = undisturbed(96, &LONG);
    let job = job(96, 2).with(&LONG);
    let mut launcher = job.start_and_wait_for_lines(12);
    let ranks = ranks_of(&launcher);
    launcher.kill().unwrap();
    ranks.iter().for_each(|(_, pid)| wait_gone(*pid));
    wait(launcher);
    finish_with(job, 4, &expect);
}

#[test]
fn sigterm_saves_and_tells_how_to_go_on() {
    let expect = undisturbed(144, &LONG);
    let job = job(144, 2).with(&LONG);
    let launcher = job.start_and_wait_for_lines(12);
    kill_process(Pid::from_child(&launcher), Signal::TERM).unwrap();
    let ended = wait(launcher).expect_code(143);
    assert!(ended.stderr.contains("stopped by SIGTERM with "), "{}", ended.stderr);
    let num_saved = job.records().len();
    assert!(num_saved.is_multiple_of(12) && num_saved < 144, "{num_saved}");
    finish_with(job, 1, &expect);
}

#[test]
fn a_stopped_rank_loses_its_samples_to_the_others() {
    // More than both ranks can hold at once, so that the stopped one has work whenever it is stopped.
    const NUM_SAMPLES: usize = 480;
    let overrides = [LONG[0], "trainer.generation.lease_seconds=1"];
    let expect = undisturbed(NUM_SAMPLES, &LONG);
    let job = job(NUM_SAMPLES, 2).with(&overrides);
    let launcher = job.start_and_wait_for_lines(12);
    let stopped = ranks_of(&launcher)[1].1;
    kill_process(stopped, Signal::STOP).unwrap();
    let ended = wait(launcher).expect_code(0);
    assert!(ended.stderr.contains("has not been heard from for 1 s: its "), "{}", ended.stderr);
    assert_eq!(job.jsonl(), expect);
    wait_gone(stopped);
}

#[test]
fn a_rank_may_come_late_or_never() {
    let expect = undisturbed(36, &LONG);
    let job = job(36, 3).with(&LONG);
    let port = free_port();
    let first = rank_command(&job, 0, 3, port).spawn().unwrap();
    // Rank 1 joins in the middle of the job, rank 2 never.
    wait_until("a first step", || !std::fs::read(job.jsonl_path()).unwrap_or_default().is_empty());
    let late = rank_command(&job, 1, 3, port).spawn().unwrap();
    wait(first).expect_code(0);
    wait(late).expect_code(0);
    assert_eq!(job.jsonl(), expect);
    // A rank that starts after the end finds no rank 0, and nothing to do.
    run(&mut rank_command(&job, 2, 3, port)).expect_code(0);
}

#[test]
fn a_store_that_cannot_be_reached_is_named() {
    let job = job(12, 2).with(&["trainer.generation.join_timeout_seconds=1"]);
    let port = free_port();
    let ended = run(&mut rank_command(&job, 1, 2, port)).expect_code(1);
    let text = format!(
        "rank 1 cannot reach rank 0 at `127.0.0.1:{port}` within `trainer.generation.join_timeout_seconds` of 1 s"
    );
    assert!(ended.error().contains(&text), "{}", ended.stderr);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let job = job(12, 2);
    let ended = run(&mut rank_command(&job, 0, 2, port)).expect_code(1);
    let text = format!(
        "port {port} of this machine is in use, by another job perhaps: set MASTER_PORT to a free one"
    );
    assert!(ended.error().contains(&text), "{}", ended.stderr);
}

#[test]
fn two_jobs_on_one_folder() {
    // More than the first job can finish while the second starts.
    let job = job(5000, 2).with(&LONG);
    let mut first = job.start_and_wait_for_lines(12);
    let second = job.run().expect_code(1);
    assert!(second.error().contains("is in use by another run (process "), "{}", second.stderr);
    first.kill().unwrap();
    wait(first);
}

#[test]
fn ranks_with_other_settings_are_refused() {
    // More than rank 0 can finish alone while the other starts.
    let job = job(5000, 2).with(&LONG);
    let port = free_port();
    let first = rank_command(&job, 0, 2, port).spawn().unwrap();
    let mut other = rank_command(&job, 1, 2, port);
    other.arg("model.seed=7");
    let other = other.spawn().unwrap();
    let check = |ended: Ended, code: i32| {
        let ended = ended.expect_code(code);
        let text = "was started with other settings than rank 0: `model.seed` (was 1234, now 7)";
        assert!(ended.error().contains(text), "{}", ended.stderr);
    };
    check(wait(other), 1);
    check(wait(first), 2);
}

#[test]
fn contradictions_between_launcher_and_configuration() {
    let ended = run(&mut rank_command(&job(12, 3), 0, 2, 1)).expect_code(2);
    insta::assert_snapshot!(ended.error(), @"error: torchrun started `WORLD_SIZE=2`, but `trainer.devices=3 trainer.num_nodes=1` makes 3 ranks; set both alike");
}

#[test]
fn under_torchruns_agent_ranks_find_rank_0_through_its_store() {
    let expect = undisturbed(24, &[]);
    let agent = Store::serve(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let job = job(24, 2);
    let start = |rank| {
        let mut command = rank_command(&job, rank, 2, agent.port());
        command.env("TORCHELASTIC_USE_AGENT_STORE", "True").env("TORCHELASTIC_RUN_ID", "none");
        command.env("TORCHELASTIC_RESTART_COUNT", "0").env("LOCAL_WORLD_SIZE", "2");
        command.spawn().unwrap()
    };
    // The first finds no port in the store yet.
    let ranks = [1, 0].map(start);
    for rank in ranks {
        wait(rank).expect_code(0);
    }
    assert_eq!(job.jsonl(), expect);
}

#[test]
fn several_machines_without_a_launcher() {
    let expect = undisturbed(24, &[]);
    let job = job(24, 2).with(&["trainer.num_nodes=2"]);
    let ended = job.run().expect_code(2);
    assert!(
        ended.error().contains(
            "`trainer.num_nodes=2` is for 2 machines, and nothing has started this process on them"
        ),
        "{}",
        ended.stderr
    );
    let port = free_port().to_string();
    let start = |node: &str| {
        let mut command = job.command();
        command.env("NODE_RANK", node).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.spawn().unwrap()
    };
    // The machine of rank 0 comes later than the other.
    let second = start("1");
    // A rank that has its log is about to look for rank 0.
    let log = job.results().join("nemo_log_globalrank-2_localrank-0.txt");
    wait_until("rank 2 has its log", || log.exists());
    let first = start("0");
    wait(first).expect_code(0);
    wait(second).expect_code(0);
    assert_eq!(job.jsonl(), expect);
}
