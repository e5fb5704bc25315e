use std::fs;
use std::path::Path;

use super::job::{Data, Job};
use super::*;

/// A folder of scripts in the place of the programs, and something in the place of torch.
fn kit(dir: &Path, device: Device, scripts: &[(&str, &str)]) -> Kit {
    let (pack, torch) = (dir.join("pack"), dir.join("torch"));
    pack::make_of_scripts(&pack, scripts);
    fs::create_dir_all(torch.join("lib")).unwrap();
    fs::write(torch.join("lib/libtorch_cuda.so"), "").unwrap();
    fs::write(torch.join("version.py"), format!("__version__ = '{}+cu130'\n", setup::TORCH_VERSION)).unwrap();
    Kit::open(&pack, device, Some(torch.into())).unwrap()
}

/// The ending and the report without its times.
fn perform_on(device: Device, scripts: &[(&str, &str)], only: &[&str]) -> (Ending, String) {
    let dir = tempfile::tempdir().unwrap();
    let kit = kit(dir.path(), device, scripts);
    let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
    let mut out = Vec::new();
    let ending = perform(&kit, &chosen(&only, device).unwrap(), &mut out).unwrap();
    (ending, report::without_times(&out))
}

/// Answers the probe and passes two cases.
const GOOD_PART: &str = r#"
if [ "$1" = device ]; then echo 'ok device: a GPU'; echo '1 passed, 0 failed'; exit; fi
echo 'ok      first: fine'; echo 'ok      second: fine'; echo '2 passed, 0 failed'"#;

#[test]
fn every_part_is_counted_and_the_counts_come_last() {
    let bad_part = "echo 'ok      third: fine'; echo 'FAILED  fourth: off by 3'; kill -KILL $$";
    let scripts = [(CUDA_SMOKE, GOOD_PART), (GPU_CHECK, bad_part)];
    let (ending, text) = perform_on(Device::Cuda, &scripts, &[GPU_CHECK, CUDA_SMOKE]);
    assert_eq!(ending, Ending::Checked(Counts { passed: 3, failed: 2 }));
    insta::assert_snapshot!(text, @r"
    ok cuda_smoke, first: fine
    ok cuda_smoke, second: fine
    ok gpu_check, third: fine
    FAILED gpu_check, fourth: off by 3
    FAILED gpu_check: was killed by signal 9 after the case `fourth`
    failed: gpu_check, fourth
    failed: gpu_check
    3 passed, 2 failed
    ");
}

#[test]
fn a_machine_without_a_gpu_is_told_so() {
    let script = "echo 'cannot open the GPU: the NVIDIA driver finds no GPU'; exit 5";
    let (ending, text) = perform_on(Device::Cuda, &[(CUDA_SMOKE, script)], &[]);
    let reason = "cannot open the GPU: the NVIDIA driver finds no GPU".to_owned();
    assert_eq!((ending, text.as_str()), (Ending::NoGpu(reason), ""));
    // A program that does not start is not taken for a missing GPU, and the others are not tried.
    let script = "echo 'libcudart.so.13: cannot open shared object file' >&2; exit 127";
    let (ending, text) = perform_on(Device::Cuda, &[(CUDA_SMOKE, script)], &[]);
    assert_eq!(ending, Ending::Checked(Counts { passed: 0, failed: 1 }));
    insta::assert_snapshot!(text, @r"
    FAILED all checks, before the first: cuda_smoke ended with exit code 127: libcudart.so.13: cannot open shared object file
    failed: all checks, before the first
    0 passed, 1 failed
    ");
}

/// Writes what a run writes, with `$text` as its response; `$first` and `$all` are what the settings ask for.
const FAKE_JOB: &str = r#"
data= out= responses= on='CPU'
for setting in "$@"; do
    case $setting in
    exp_manager.explicit_log_dir=*) out=${setting#*=}/generations ;;
    model.data.train_ds.file_path=*) data=${setting#*=} ;;
    model.generation.num_responses_to_gen=*) responses=${setting#*=} ;;
    esac
done
mkdir -p "$out"
list='"'$text'"'
n=1; while [ $n -lt $responses ]; do list="$list, \"response $n\""; n=$((n + 1)); done
echo "memory, kernels on the $on" >&2
while read -r line; do echo "{\"prompt\": \"p\", \"responses\": [$list]}"; done < "$data" > "$out/generations.jsonl"
"#;

#[test]
fn texts_that_differ_from_the_first_are_named() {
    let script = format!(
        "text=same; case \"$*\" in *use_greedy*trt_llm.enable=false*) text=other ;; esac\n{FAKE_JOB}"
    );
    let (ending, text) = perform_on(Device::Cpu, &[(build::ALIGNER_GEN, &script)], &["text-fp32"]);
    assert_eq!(ending, Ending::Checked(Counts { passed: 4, failed: 2 }));
    insta::assert_snapshot!(text, @r"
    ok text-fp32, greedy, CPU fused: 3e87da83aba67372
    FAILED text-fp32, greedy, CPU plain: its hash is d47d311dcb42f9e4, that of the first run 3e87da83aba67372
    ok text-fp32, greedy, device fused: 3e87da83aba67372
    FAILED text-fp32, greedy, device plain: its hash is d47d311dcb42f9e4, that of the first run 3e87da83aba67372
    ok text-fp32, sampled, CPU fused: c4e5cb294ad3ec0b
    ok text-fp32, sampled, device fused: c4e5cb294ad3ec0b
    failed: text-fp32, greedy, CPU plain
    failed: text-fp32, greedy, device plain
    4 passed, 2 failed
    ");
}

#[test]
fn a_run_on_another_device_or_without_all_its_rows_has_failed() {
    let on_gpu = FAKE_JOB.replace("on the $on", "on GPU 0");
    let short = FAKE_JOB.replace("> \"$out", "| tail -n +2 > \"$out");
    let silent = FAKE_JOB.replace("$responses", "1");
    for (script, reason) in [
        (on_gpu, "its log does not say `kernels on the CPU`, so it was computed elsewhere"),
        (short, "wrote 23 rows of 24"),
        (silent, "row 0 has 1 responses of 2"),
        ("echo broken >&2; exit 4".to_owned(), "ended with exit code 4: broken"),
    ] {
        let script = format!("text=same\n{script}");
        let (ending, text) = perform_on(Device::Cpu, &[(build::ALIGNER_GEN, &script)], &["text-fp32"]);
        assert!(text.contains(&format!("FAILED text-fp32, sampled, CPU fused: {reason}")), "{text}");
        assert!(matches!(ending, Ending::Checked(counts) if counts.failed >= 2), "{text}");
    }
}

/// Commits one sample more at each of its first three starts and then waits for ever; the next start goes on as a whole run.
const WAITS_THREE_TIMES: &str = r#"
for setting in "$@"; do case $setting in exp_manager.explicit_log_dir=*) out=${setting#*=}/generations ;; esac; done
mkdir -p "$out"
starts=$(cat "$out/starts" 2>/dev/null || echo 0)
echo $((starts + 1)) > "$out/starts"
if [ $starts -lt 3 ]; then echo "{\"consumed_samples\": $((starts + 1))}" > "$out/manifest.json"; sleep 600; fi
text=same
"#;

#[test]
fn a_run_is_killed_after_a_commit_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("{WAITS_THREE_TIMES}{FAKE_JOB}");
    let finishes = format!("text=same\n{FAKE_JOB}");
    let finishes = kit(&dir.path().join("b"), Device::Cpu, &[(build::ALIGNER_GEN, &finishes)]);
    let kit = kit(&dir.path().join("a"), Device::Cpu, &[(build::ALIGNER_GEN, &script)]);
    let data = Data::write(&kit, 2).unwrap();
    let job =
        Job { model: &models::LLAMA, data: &data, device: Device::Cpu, num_responses: 1, settings: vec![] };
    let line = "{\"prompt\": \"p\", \"responses\": [\"same\"]}\n";
    assert_eq!(String::from_utf8(job.run_killed(&kit, 3).unwrap()).unwrap(), line.repeat(2));
    assert_eq!(job.run_killed(&kit, 4).unwrap().len(), 2 * line.len());
    assert_eq!(job.run_killed(&finishes, 3).unwrap_err().to_string(), "ended before it could be killed");
}

#[test]
fn hashes_are_compared_between_runs() {
    let script = r#"
        while [ $# -gt 0 ]; do
            case $1 in --measures) measures=$2 ;; --max-num-seqs) rows=$2 ;; esac
            shift
        done
        for measure in $(echo $measures | tr , ' '); do
            hash=$measure; [ $measure = order ] && hash=bulk
            [ "$rows" = 12 ] && [ $measure = shared ] && hash=changed
            echo "{\"case\": \"$measure\", \"tokens\": 10, \"hash\": \"$hash\"}"
        done"#;
    let (ending, text) = perform_on(Device::Cpu, &[(build::ALIGNER_GEN, script)], &["bench-tiny"]);
    assert_eq!(ending, Ending::Checked(Counts { passed: 10, failed: 1 }));
    insta::assert_snapshot!(text, @r"
    ok bench, tiny, bulk: bulk
    ok bench, tiny, ragged: ragged
    ok bench, tiny, shared: shared
    ok bench, tiny, fixed:24:12:1024: fixed:24:12:1024
    ok bench, tiny, bulk, again: bulk
    ok bench, tiny, order, in another order: bulk
    ok bench, tiny, ragged, 12 sequences at once: ragged
    FAILED bench, tiny, shared, 12 sequences at once: its hash is changed, that of the first run shared
    ok bench, tiny, ragged, a small cache and the host: ragged
    ok bench, tiny, fixed:24:12:1024, 1,000 sequences at once: fixed:24:12:1024
    ok bench, tiny, fixed:24:12:1024, 1,024 sequences at once: fixed:24:12:1024
    failed: bench, tiny, shared, 12 sequences at once
    10 passed, 1 failed
    ");
    let (ending, _) = perform_on(Device::Cpu, &[(build::ALIGNER_GEN, "echo nonsense")], &["bench-tiny"]);
    assert_eq!(ending, Ending::Checked(Counts { passed: 0, failed: 11 }));
}

#[test]
fn names_of_checks_are_unique_and_unknown_ones_are_refused() {
    let names: std::collections::BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(names.len(), CHECKS.len());
    let error = chosen(&["nope".to_owned()], Device::Cuda).err().unwrap().to_string();
    assert!(
        error.starts_with("no check is called `nope`; there are cuda_smoke, gpu_check, logits"),
        "{error}"
    );
    assert_eq!(chosen(&[], Device::Cuda).unwrap().len(), CHECKS.len());
    assert!(chosen(&[], Device::Cpu).unwrap().iter().all(|check| !check.needs_gpu));
}
