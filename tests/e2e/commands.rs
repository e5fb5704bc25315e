//! The commands beside the main job, and what `--help` and `--cfg` print.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::support::{fixture, llama, program, run, tokenize};

#[test]
fn help_texts() {
    insta::assert_snapshot!("help", run(program().arg("--help")).expect_code(0).stdout);
    insta::assert_snapshot!("help_logits", run(program().args(["logits", "--help"])).expect_code(0).stdout);
}

#[test]
fn inspect_shows_what_is_inside() {
    let ended = run(program().arg("inspect").arg(llama())).expect_code(0);
    insta::assert_snapshot!("inspect", ended.stdout);
    let ended = run(program().arg("inspect").arg(llama()).arg("--json")).expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["model_config"]["num_layers"], 3);
    assert_eq!(report["artifacts"][0], "0123456789abcdef0123456789abcdef_tokenizer.model");
}

#[test]
fn inspect_lists_every_format_by_its_own_names() {
    for (format, path) in [
        ("torch_dist", "formats/classic_torch_dist_unstacked_tp2.nemo"),
        ("zarr", "formats/gated_zarr_tp2.nemo"),
        ("ckpt_mcore", "mcore_gptnext/gptnext_bf16_ckpt.nemo"),
        ("legacy_tp1", "formats/gated_legacy.nemo"),
        ("legacy_tp2", "legacy/gptnext_legacy_bf16_tp2.nemo"),
        ("legacy_tp2_pp2", "formats/classic_legacy_tp2_pp2.nemo"),
        ("gzip", "formats/classic_legacy_gz_nonzip.nemo"),
        ("nemo2", "formats/gated_nemo2"),
    ] {
        let ended = run(program().arg("inspect").arg(fixture(path))).expect_code(0);
        insta::assert_snapshot!(format!("inspect_{format}"), ended.stdout);
    }
    let folder = tempfile::tempdir().unwrap();
    let archive = fixture("formats/gated_legacy.nemo");
    tar::Archive::new(File::open(&archive).unwrap()).unpack(folder.path()).unwrap();
    let lines = |path: &Path| {
        let text = run(program().arg("inspect").arg(path)).expect_code(0).stdout;
        text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    // All but the name of the format: an archive and its folder are one checkpoint.
    assert_eq!(lines(folder.path()), lines(&archive));
    let ended = run(program().arg("inspect").arg(folder.path())).expect_code(0);
    insta::assert_snapshot!("inspect_folder", ended.stdout);
}

#[test]
fn inspect_verifies_every_byte() {
    let archive = fixture("formats/gated_torch_dist_tp2_pt25.nemo");
    let ended = run(program().args(["inspect", "--verify"]).arg(&archive)).expect_code(0);
    let line = ended.stdout.lines().find(|line| line.starts_with("verified")).unwrap();
    insta::assert_snapshot!(line, @"verified     113.5 kB read, 314 checksums are right, all values are finite");
    let ended = run(program().args(["inspect", "--verify", "--json"]).arg(&archive)).expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["verified"]["checksums"], 314);
    // A bit that flips in a weight contradicts its checksum, and nothing else.
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.nemo");
    let mut bytes = std::fs::read(&archive).unwrap();
    let tensor = bytes.windows(8).position(|window| window == b"/data/0F").unwrap();
    bytes[tensor + 200] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    run(program().arg("inspect").arg(&damaged)).expect_code(0);
    let ended = run(program().args(["inspect", "--verify"]).arg(&damaged)).expect_code(4);
    assert!(ended.stderr.contains("is damaged at byte"), "{}", ended.stderr);
    assert!(ended.stderr.contains("copy it again"), "{}", ended.stderr);
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let mut shell = std::process::Command::new("bash");
    shell.args(["-o", "pipefail", "-c", "\"$0\" inspect \"$1\" | true"]);
    shell.arg(program().get_program()).arg(llama());
    let ended = run(&mut shell).expect_code(0);
    assert_eq!(ended.stderr, "");
}

#[test]
fn the_program_converts() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("llama.nemo");
    let convert = |input: &Path| {
        let mut command = program();
        command.arg("convert-checkpoint").arg("--input").arg(input).arg("--output").arg(&archive);
        run(&mut command)
    };
    let ended = convert(&fixture("hf_llama")).expect_code(0);
    assert!(ended.stderr.starts_with("Hugging Face folder: 15 tensors, "), "{}", ended.stderr);
    run(program().arg("inspect").arg(&archive)).expect_code(0);
    let ended = convert(&fixture("hf_llama")).expect_code(4);
    assert!(ended.stderr.trim_end().ends_with("llama.nemo` exists already"), "{}", ended.stderr);
}

#[test]
fn doctor_says_what_will_be_used() {
    let ended = run(program().arg("doctor")).expect_code(0);
    for name in
        ["aligner-gen ", "processor ", "vectors ", "memory ", "libtorch     2.11", "will use     the CPU: "]
    {
        assert!(ended.stdout.lines().any(|line| line.starts_with(name)), "{name}: {}", ended.stdout);
    }
    let ended = run(program().args(["doctor", "--json"])).expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(report["num_usable_cores"].as_u64().unwrap() > 0);
}

#[test]
fn completions_and_the_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(program().args(["completions", shell])).expect_code(0);
        assert!(ended.stdout.contains("convert-checkpoint"), "{shell}");
    }
    assert!(run(program().arg("man")).expect_code(0).stdout.contains(".TH aligner-gen 1"));
}

fn read_npy(path: &Path) -> (Vec<u64>, Vec<f32>) {
    let file = npyz::NpyFile::new(BufReader::new(File::open(path).unwrap())).unwrap();
    (file.shape().to_vec(), file.into_vec().unwrap())
}

fn check_logits(folder: &str, checkpoint: &str, backend: &str) {
    let out = tempfile::tempdir().unwrap();
    let output = out.path().join("logits.npy");
    let mut command = program();
    command.args(["logits", "--precision", "32", "--backend", backend, "--checkpoint"]);
    command.arg(fixture(folder).join(checkpoint));
    command.arg("--input-ids").arg(fixture(folder).join("input_ids.npy")).arg("--output").arg(&output);
    run(&mut command).expect_code(0);
    let (shape, logits) = read_npy(&output);
    let (expect_shape, expect) = read_npy(&fixture(folder).join("logits_fp32.npy"));
    assert_eq!(shape, expect_shape);
    let largest = logits.iter().zip(&expect).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-4, "{folder}, {backend}: {largest}");
}

#[test]
fn logits_are_the_reference_ones() {
    check_logits("mcore_llama", "llama_fp32_torch_dist.nemo", "plain");
    check_logits("mcore_gptnext", "gptnext_fp32_torch_dist.nemo", "plain");
}

#[test]
fn fused_logits_are_the_reference_ones() {
    check_logits("mcore_llama", "llama_fp32_torch_dist.nemo", "fused");
    check_logits("mcore_gptnext", "gptnext_fp32_torch_dist.nemo", "fused");
}

#[test]
fn logits_refuse_bad_ids() {
    let out = tempfile::tempdir().unwrap();
    let ids = fixture("mcore_llama/logits_fp32.npy");
    let mut command = program();
    command.args(["logits", "--checkpoint"]).arg(llama()).arg("--input-ids").arg(ids);
    command.arg("--output").arg(out.path().join("x.npy"));
    let ended = run(&mut command).expect_code(3);
    assert!(ended.error().contains("expected int64 of shape [batch, seq]"), "{}", ended.stderr);
}

#[test]
fn tokenize_there_and_back() {
    let reference: serde_json::Value =
        serde_json::from_reader(File::open(fixture("mcore_llama/reference_fp32.json")).unwrap()).unwrap();
    let text = format!(
        "{}\n{}\n",
        reference["prompts"]["A"].as_str().unwrap(),
        reference["prompts"]["B"].as_str().unwrap()
    );
    let ids = tokenize(&[], &text).expect_code(0).stdout;
    let lines: Vec<serde_json::Value> = ids.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], reference["input_ids"][0]);
    assert_eq!(tokenize(&["--decode"], &ids).expect_code(0).stdout, text);
    let ended = tokenize(&["--decode"], "[1]\n[99999]\n").expect_code(3);
    assert!(ended.error().starts_with("error: line 2: token id 99999"), "{}", ended.stderr);
}

#[test]
fn bench_measures_through_the_engine() {
    let checkpoint = llama();
    let mut command = program();
    command.args(["bench", "--json", "--backend", "plain", "--checkpoint"]).arg(checkpoint);
    let ended = run(&mut command).expect_code(0);
    let measures: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = measures.iter().map(|measure| measure["measure"].as_str().unwrap()).collect();
    assert_eq!(names, ["load", "decode", "bulk", "prefill"]);
    let figure =
        |measure: &serde_json::Value| measure["seconds"].as_f64().or(measure["tokens_per_s"].as_f64());
    assert!(measures.iter().all(|measure| figure(measure).unwrap() > 0.0));
}
