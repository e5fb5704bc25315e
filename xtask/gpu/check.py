"""Holds the program's GPU paths against its CPU ones, on the repository's fixtures. Needs a GPU, numpy and the binary.

    python3 xtask/gpu/check.py PROGRAM [--quick] [--device cpu]

Logits: every backend and precision on the GPU against the float32 logits of the original software. Text: greedy text in
float32 is one and the same on the CPU and on both GPU paths; in bfloat16 a GPU path gives one text for any batch, any
number of ranks and responses and after a kill. A run that does not write every row with all its responses has failed,
whatever the others wrote. `--device cpu` puts the CPU in the GPU's place, to try the check itself where there is no GPU.
"""

import argparse
import hashlib
import json
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


class Failed(str):
    """Why a run gave no text."""


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


def check_logits(program, folder, device):
    for name, reference in MODELS:
        ids = FIXTURES / reference / "input_ids.npy"
        expected = np.load(FIXTURES / reference / "logits_fp32.npy")
        for backend in ["plain", "fused"]:
            for precision in ["32", "bf16"]:
                what = f"logits {reference} {backend} {precision}"
                actual, error = logits(program, FIXTURES / name, ids, folder, device, backend, precision)
                if actual is None:
                    report(False, f"{what}: {error}")
                    continue
                worst = np.abs(actual[..., : expected.shape[-1]] - expected).max() / expected.std()
                report(worst < TOLERANCE[precision], f"{what}: off by {worst:.2e} standard deviations")


class Data:
    """A file of prompts of several lengths."""

    def __init__(self, folder, num_samples):
        self.num_samples = num_samples
        self.path = folder / f"data{num_samples}.jsonl"
        with open(self.path, "w") as file:
            for n in range(num_samples):
                turn = "Tell me " + "more and more " * (n % 7 * 5) + f"about number {n}."
                turns = [{"from": "User", "value": turn}, {"from": "Assistant", "value": ""}]
                file.write(json.dumps({"system": "", "mask": "User", "conversations": turns}) + "\n")


def command(program, checkpoint, data, out, overrides):
    return [
        str(program),
        "trainer.devices=1",
        "trainer.num_nodes=1",
        f"pretrained_checkpoint.restore_from_path={checkpoint}",
        f"model.data.train_ds.file_path={data.path}",
        # Several ranks would leave out what fills no batch.
        "model.data.train_ds.drop_last=false",
        f"exp_manager.explicit_log_dir={out}",
        "exp_manager.create_wandb_logger=false",
        "model.generation.length_params.max_length=24",
    ] + overrides


def generate(program, checkpoint, data, folder, overrides, num_responses, first=None, kill_after=None):
    """The hash of what the job writes; with `kill_after` it is killed again and again on the way, each time later."""
    out = Path(tempfile.mkdtemp(dir=folder))
    line = command(program, checkpoint, data, out, overrides)
    line.append(f"model.generation.num_responses_to_gen={num_responses}")
    must_be_killed, num_kills = kill_after is not None, 0
    while True:
        job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            _, error = job.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGKILL)
            job.communicate()
            num_kills += 1
            kill_after += 0.4
            continue
        if job.returncode != 0:
            return Failed(error.strip()[-600:])
        if must_be_killed and num_kills == 0:
            return Failed("ended before it could be killed")
        path = out / "generations" / "generations.jsonl"
        return text_hash(path.read_text() if path.exists() else "", data.num_samples, num_responses, first)


def text_hash(jsonl, num_rows, num_responses, first=None):
    """Of the prompts and their first responses; a run that left anything out has failed."""
    rows = [json.loads(line) for line in jsonl.splitlines()]
    if len(rows) != num_rows:
        return Failed(f"wrote {len(rows)} rows of {num_rows}")
    short = [at for at, row in enumerate(rows) if len(row["responses"]) != num_responses]
    if short:
        return Failed(f"row {short[0]} has {len(rows[short[0]]['responses'])} responses of {num_responses}")
    if not any(text for row in rows for text in row["responses"]):
        return Failed("all responses are empty")
    kept = [[row["prompt"], row["responses"][:first]] for row in rows]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


def verdict(hashes):
    """Whether all runs, at least two, gave one text, and what each gave."""
    ok = len(hashes) > 1 and len(set(hashes.values())) == 1
    ok = ok and not any(isinstance(text, Failed) for text in hashes.values())
    error = lambda text: f"error: ...{text[-200:]}" if isinstance(text, Failed) else text
    return ok, {name: error(text) for name, text in hashes.items()}


def same(what, hashes):
    ok, shown = verdict(hashes)
    report(ok, f"{what}: {shown}")


def check_itself():
    """The rules of the check: no comparison passes without texts."""
    row = lambda *responses: json.dumps({"prompt": "p", "responses": responses}) + "\n"
    good = text_hash(row("a", "b"), 1, 2)
    assert good == text_hash(row("a", "b"), 1, 2) != text_hash(row("a", "c"), 1, 2)
    assert text_hash(row("a", "b", "c"), 1, 3, first=2) == good
    failed = [text_hash("", 1, 2), text_hash(row("a", "b") * 2, 1, 2), text_hash(row("a"), 1, 2), text_hash(row("", ""), 1, 2)]
    assert all(isinstance(text, Failed) for text in failed), failed
    assert verdict({"x": good, "y": good})[0]
    assert not verdict({"x": good, "y": "other"})[0]
    for failure in failed:
        assert not verdict({"x": failure, "y": failure})[0] and not verdict({"x": good, "y": failure})[0]
    assert not verdict({"x": good})[0] and not verdict({})[0]


def check_text(program, folder, quick, accelerator):
    checkpoint = FIXTURES / MODELS[0][0]
    few = Data(folder, 24)
    fast_llama = ["trainer.generation.trt_llm.enable=true", "trainer.generation.trt_llm.model_type=llama"]
    greedy = ["++model.generation.sampling_params.use_greedy=true", "trainer.precision=32"]
    hashes = {}
    for place in ["cpu", accelerator]:
        for path, overrides in [("fast", fast_llama), ("plain", ["trainer.generation.trt_llm.enable=false"])]:
            overrides = greedy + [f"trainer.accelerator={place}"] + overrides
            hashes[f"{place} {path}"] = generate(program, checkpoint, few, folder, overrides, 1)
    same("greedy text in float32", hashes)

    # No multiple of the batch: the last step is short for every number of ranks.
    many = Data(folder, 24 if quick else 100)
    base = fast_llama + ["trainer.precision=bf16", f"trainer.accelerator={accelerator}"]
    variants = {
        "global_batch_size=1": ["model.global_batch_size=1"],
        "global_batch_size=32": ["model.global_batch_size=32"],
        # All on the GPUs at hand, which may be one.
        "two ranks": ["trainer.devices=2", "model.global_batch_size=16"],
        "four ranks": ["trainer.devices=4", "model.global_batch_size=16"],
    }
    hashes = {}
    started = time.time()
    hashes["base"] = generate(program, checkpoint, many, folder, base, 2)
    half = (time.time() - started) / 2
    for name, overrides in variants.items():
        hashes[name] = generate(program, checkpoint, many, folder, base + overrides, 2)
    hashes["first 2 of 5"] = generate(program, checkpoint, many, folder, base, 5, first=2)
    hashes["killed"] = generate(program, checkpoint, many, folder, base, 2, kill_after=half)
    same("text in bfloat16", hashes)

    rules = ["model.generation.sampling_params.top_k=20", "model.generation.sampling_params.top_p=0.9"]
    rules += ["model.generation.sampling_params.temperature=0.7"]
    rules += ["model.generation.sampling_params.repetition_penalty=1.2", "model.generation.length_params.min_length=6"]
    hashes = {}
    for name, place in [("CPU", "cpu"), ("GPU", accelerator)]:
        overrides = base + rules + ["trainer.precision=32", f"trainer.accelerator={place}"]
        hashes[name] = generate(program, checkpoint, few, folder, overrides, 2)
    same("sampled text in float32, CPU and GPU", hashes)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    program = arguments.program.resolve()
    check_itself()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        check_logits(program, Path(folder), arguments.device)
        check_text(program, Path(folder), arguments.quick, "gpu" if arguments.device == "cuda" else "cpu")
    print(f"{len(failures)} failed, {time.time() - started:.0f} s")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
