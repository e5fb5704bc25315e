"""Holds the program's GPU paths against its CPU ones, on the repository's fixtures. Needs a GPU, numpy and the binary.

    python3 xtask/gpu/check.py PROGRAM [--quick]

Logits: every backend and precision on the GPU against the float32 logits of the original software. Text: greedy text in
float32 is one and the same on the CPU and on both GPU paths; in bfloat16 a GPU path gives one text for any batch, any
number of ranks and responses and after a kill.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
# Largest difference of a logit, in standard deviations of all logits.
TOLERANCE = {"32": 2e-4, "bf16": 0.35}
MODELS = [
    ("mcore_llama/llama_fp32_torch_dist.nemo", "mcore_llama"),
    ("mcore_gptnext/gptnext_fp32_torch_dist.nemo", "mcore_gptnext"),
    ("hf_llama/hf_llama_converted_bf16_torch_dist.nemo", "hf_llama"),
]
failures = []


def report(ok, what):
    print(("ok      " if ok else "FAILED  ") + what, flush=True)
    if not ok:
        failures.append(what)


def logits(program, checkpoint, ids, folder, device, backend, precision):
    out = folder / "logits.npy"
    command = [program, "logits", "--checkpoint", checkpoint, "--input-ids", ids, "--output", out]
    command += ["--device", device, "--backend", backend, "--precision", precision]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        return None, done.stderr.strip()[-400:]
    return np.load(out), ""


def check_logits(program, folder):
    for name, reference in MODELS:
        ids = FIXTURES / reference / "input_ids.npy"
        expected = np.load(FIXTURES / reference / "logits_fp32.npy")
        for backend in ["plain", "fused"]:
            for precision in ["32", "bf16"]:
                what = f"logits {reference} {backend} {precision}"
                actual, error = logits(program, FIXTURES / name, ids, folder, "cuda", backend, precision)
                if actual is None:
                    report(False, f"{what}: {error}")
                    continue
                worst = np.abs(actual[..., : expected.shape[-1]] - expected).max() / expected.std()
                report(worst < TOLERANCE[precision], f"{what}: off by {worst:.2e} standard deviations")


def data(folder, num_samples):
    path = folder / f"data{num_samples}.jsonl"
    with open(path, "w") as file:
        for n in range(num_samples):
            turn = "Tell me " + "more and more " * (n % 7 * 5) + f"about number {n}."
            turns = [{"from": "User", "value": turn}, {"from": "Assistant", "value": ""}]
            file.write(json.dumps({"system": "", "mask": "User", "conversations": turns}) + "\n")
    return path


def command(program, checkpoint, data_path, out, overrides):
    return [
        str(program),
        "trainer.devices=1",
        "trainer.num_nodes=1",
        f"pretrained_checkpoint.restore_from_path={checkpoint}",
        f"model.data.train_ds.file_path={data_path}",
        f"exp_manager.explicit_log_dir={out}",
        "exp_manager.create_wandb_logger=false",
        "model.generation.length_params.max_length=24",
    ] + overrides


def generate(program, checkpoint, data_path, folder, overrides, kill_after=None):
    """The file that the job writes, as bytes; with `kill_after` it is killed again and again on the way."""
    out = Path(tempfile.mkdtemp(dir=folder))
    line = command(program, checkpoint, data_path, out, overrides)
    while True:
        job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            _, error = job.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGKILL)
            job.communicate()
            kill_after += 0.4
            continue
        if job.returncode != 0:
            return None, error.strip()[-600:]
        return (out / "generations" / "generations.jsonl").read_bytes(), ""


def same(what, hashes):
    """Whether all runs gave one text; a run that failed has its error in the place of the hash."""
    short = {name: text if len(text) < 20 else f"error: ...{text[-200:]}" for name, text in hashes.items()}
    report(len(set(hashes.values())) == 1 and len(next(iter(hashes.values()))) < 20, f"{what}: {short}")


def responses(text, first=None):
    rows = [json.loads(line) for line in text.splitlines()]
    kept = [[row["prompt"], row["responses"][:first]] for row in rows]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


def check_text(program, folder, quick):
    checkpoint = FIXTURES / MODELS[0][0]
    few = data(folder, 24)
    greedy = ["++model.generation.sampling_params.use_greedy=true", "model.generation.num_responses_to_gen=1"]
    hashes = {}
    for accelerator, fast in [("cpu", "true"), ("cpu", "false"), ("gpu", "true"), ("gpu", "false")]:
        overrides = greedy + ["trainer.precision=32", f"trainer.accelerator={accelerator}"]
        overrides += [f"trainer.generation.trt_llm.enable={fast}", "trainer.generation.trt_llm.model_type=llama"]
        text, error = generate(program, checkpoint, few, folder, overrides)
        key = f"{accelerator} trt_llm.enable={fast}"
        hashes[key] = responses(text) if text is not None else error
    same("greedy text in float32", hashes)

    many = data(folder, 24 if quick else 96)
    base = ["trainer.precision=bf16", "trainer.accelerator=gpu", "trainer.generation.trt_llm.enable=true"]
    base += ["trainer.generation.trt_llm.model_type=llama", "model.generation.num_responses_to_gen=2"]
    variants = {
        "base": [],
        "global_batch_size=1": ["model.global_batch_size=1"],
        "global_batch_size=32": ["model.global_batch_size=32"],
        # All on the GPUs at hand, which may be one.
        "two ranks": ["trainer.devices=2", "model.global_batch_size=32"],
        "four ranks": ["trainer.devices=4", "model.global_batch_size=32"],
    }
    hashes = {}
    for name, overrides in variants.items():
        text, error = generate(program, checkpoint, many, folder, base + overrides)
        hashes[name] = responses(text) if text is not None else error
    text, error = generate(program, checkpoint, many, folder, base[:-1] + ["model.generation.num_responses_to_gen=5"])
    hashes["first 2 of 5"] = responses(text, 2) if text is not None else error
    text, error = generate(program, checkpoint, many, folder, base, kill_after=1.0)
    hashes["killed"] = responses(text) if text is not None else error
    same("text in bfloat16", hashes)

    rules = ["model.generation.sampling_params.top_k=20", "model.generation.sampling_params.top_p=0.9"]
    rules += ["model.generation.sampling_params.temperature=0.7"]
    rules += ["model.generation.sampling_params.repetition_penalty=1.2", "model.generation.length_params.min_length=6"]
    hashes = {}
    for accelerator in ["cpu", "gpu"]:
        overrides = base + rules + ["trainer.precision=32", f"trainer.accelerator={accelerator}"]
        text, error = generate(program, checkpoint, few, folder, overrides)
        hashes[accelerator] = responses(text) if text is not None else error
    same("sampled text in float32, CPU and GPU", hashes)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    program = arguments.program.resolve()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        check_logits(program, Path(folder))
        check_text(program, Path(folder), arguments.quick)
    print(f"{len(failures)} failed, {time.time() - started:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
