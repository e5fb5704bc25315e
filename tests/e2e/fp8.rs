//! Checkpoints whose linear layers are stored in FP8.

use std::path::Path;

use crate::support::{Job, llama, program, run};

const WEIGHTS: &str = "trainer.generation.trt_llm.quantization=fp8";
const FAST: &str = "trainer.generation.trt_llm.enable=true";

fn convert(arguments: &[&str], input: &Path, output: &Path) -> String {
    let mut command = program();
    command.arg("convert-checkpoint").arg("--input").arg(input).arg("--output").arg(output).args(arguments);
    run(&mut command).expect_code(0).stderr
}

#[test]
fn a_stored_checkpoint_has_the_texts_of_one_that_is_quantised_while_it_loads() {
    let folder = tempfile::tempdir().unwrap();
    let stored = folder.path().join("fp8.nemo");
    let said = convert(&["--quantization", "fp8", "--dtype", "bf16"], &llama(), &stored);
    assert!(said.contains("MB of FP8 and bfloat16"), "{said}");
    assert!(said.contains("note: 12 linear layers are written in FP8"), "{said}");
    let job = |checkpoint: &Path, overrides: &[&str]| {
        let key = format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display());
        Job::new(6).with(&[&key, "trainer.precision=bf16", "trainer.accelerator=cpu"]).with(overrides)
    };
    for path in [&[][..], &[FAST]] {
        let of = |checkpoint: &Path, overrides: &[&str]| {
            let job = job(checkpoint, overrides).with(path);
            let ended = job.run().expect_code(0);
            (job.jsonl(), ended.stderr)
        };
        let (expect, said) = of(&llama(), &[WEIGHTS]);
        assert!(said.contains("FP8 saves"), "{said}");
        let (kept, said) = of(&stored, &[WEIGHTS]);
        assert_eq!(kept, expect, "{path:?}");
        assert!(!said.contains("stored in FP8"), "{said}");
        let (numbers, said) = of(&stored, &[]);
        assert_ne!(numbers, expect, "{path:?}");
        assert!(said.contains("12 weights are stored in FP8 and become bf16"), "{said}");
    }
    // Texts are equal, but a checkpoint is known by its bytes.
    let job = job(&llama(), &[WEIGHTS, "trainer.generation.max_steps=1"]);
    job.run().expect_code(0);
    let other = format!("pretrained_checkpoint.restore_from_path={}", stored.display());
    let refused = run(job.command().arg(other)).expect_code(2).error();
    assert!(refused.contains("checkpoint"), "{refused}");
    let shown = run(program().arg("inspect").arg(&stored)).expect_code(0).stdout;
    assert!(shown.contains("\nfp8          12 weights of linear layers are stored in FP8"), "{shown}");
    assert!(shown.contains("float8_e4m3fn"), "{shown}");
    let report = run(program().arg("inspect").arg(&stored).arg("--json")).expect_code(0).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["num_fp8_weights"], 12);
}
