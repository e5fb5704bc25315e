//! `aligner-gen quality`: two number formats, and two checkpoints.

use std::path::Path;

use serde_json::Value;

use crate::support::{Ended, fixture, llama, program, run};

fn quality(text: &str, flags: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, text).unwrap();
    run(program().args(["quality", "--checkpoint"]).arg(llama()).arg("--text").arg(&path).args(flags))
}

fn figures(flags: &[&str]) -> Value {
    let text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. ".repeat(12);
    let flags = [flags, &["--json", "--window-tokens", "64", "--max-tokens", "400"]].concat();
    serde_json::from_str(&quality(&text, &flags).expect_code(0).stdout).unwrap()
}

#[test]
fn number_formats_are_as_far_apart_as_their_numbers() {
    let kl = |found: &Value| found["kl_mean"].as_f64().unwrap();
    for backend in ["plain", "fused"] {
        let same = figures(&["--backend", backend]);
        assert_eq!((kl(&same), same["equal_greedy_tokens"].as_f64()), (0.0, Some(1.0)), "{same}");
        assert_eq!(same["reference_perplexity"], same["candidate_perplexity"]);
        assert!(same["predictions"].as_u64().unwrap() > 100, "{same}");
        let of = |flags: &[&str]| {
            figures(&[&["--backend", backend, "--reference-precision", "32"], flags].concat())
        };
        let [bf16, cache, weights] =
            [&[][..], &["--kv-cache-dtype", "fp8"], &["--quantization", "fp8"]].map(of);
        assert!(
            0.0 < kl(&bf16) && kl(&bf16) < kl(&cache) && kl(&bf16) < kl(&weights),
            "{bf16} {cache} {weights}"
        );
        assert!(kl(&cache) < 0.05 && kl(&weights) < 0.2, "{cache} {weights}");
        assert_eq!(weights["candidate"]["numbers"], "bf16 (weights fp8, KV cache bf16)");
    }
}

#[test]
fn two_checkpoints_are_compared_and_what_cannot_be_is_named() {
    let other = fixture("mcore_gptnext/gptnext_fp32_torch_dist.nemo");
    let candidate =
        |path: &Path| quality("A text of some words.", &["--candidate", &path.display().to_string()]);
    let shown = candidate(&llama()).expect_code(0).stdout;
    assert!(shown.contains("equal greedy tokens  100.00 %") && shown.contains("KL divergence"), "{shown}");
    let error = candidate(&other).expect_code(4).error();
    assert!(error.starts_with("error: the two checkpoints have different tokenizers"), "{error}");
    let short = quality("", &[]).expect_code(3).error();
    assert!(short.ends_with("has 0 tokens, at least 2 are needed"), "{short}");
    let window = quality("A text.", &["--window-tokens", "1"]).expect_code(2).error();
    assert_eq!(window, "error: `--window-tokens` must be at least 2");
    let long = quality("A text.", &["--window-tokens", "100000"]).expect_code(3).error();
    assert!(long.contains("100000"), "{long}");
}
