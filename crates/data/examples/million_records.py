"""Compares million_records.rs with the Python package `tokenizers` on the same prompts and the same cores.

Needs: pip install tokenizers==0.23.3
Run: cargo build --release --workspace --example million_records
     python million_records.py target/release/examples/million_records FOLDER SOURCE.jsonl [--records N]

SOURCE.jsonl is chat data whose sentences are shuffled into N records (a million) in FOLDER. Python is timed on encoding
alone, from a list of prompts that is already in memory; the program on everything from the file to the plan.
"""

import argparse
import json
import pathlib
import random
import resource
import subprocess
import time

import tokenizers

BATCH = 20_000


def make(folder, source, num_records):
    turns = [json.loads(line)["conversations"] for line in source.read_text().splitlines()]
    texts = [turn["value"] for conversation in turns for turn in conversation if turn["value"]]
    data, vocab = folder / "data.jsonl", folder / "tokenizer.json"
    rng = random.Random(7)
    with data.open("w") as out:
        for number in range(num_records):
            question = f"{rng.choice(texts)} {rng.choice(texts)} ({number})"
            record = {"system": "", "mask": "User", "id": number, "conversations": [
                {"from": "User", "value": question}, {"from": "Assistant", "value": rng.choice(texts)}]}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=alphabet, show_progress=False,
        special_tokens=["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(vocab))
    return data, vocab


def prompt(line):
    record = json.loads(line)
    question = record["conversations"][0]["value"]
    return f"<extra_id_0>System\n{record['system']}\n<extra_id_1>User\n{question}\n<extra_id_1>Assistant\n"


def main():
    args = argparse.ArgumentParser()
    args.add_argument("program")
    args.add_argument("folder", type=pathlib.Path)
    args.add_argument("source", type=pathlib.Path)
    args.add_argument("--records", type=int, default=1_000_000)
    args = args.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data, vocab = make(args.folder, args.source, args.records)
    ours = json.loads(subprocess.run([args.program, data, vocab], check=True, capture_output=True).stdout)
    tokenizer = tokenizers.Tokenizer.from_file(str(vocab))
    num_tokens, seconds = 0, 0.0
    with data.open() as lines:
        prompts = [prompt(line) for line in lines]
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start: start + BATCH]
        started = time.perf_counter()
        encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ids = [row.ids for row in encoded]
        seconds += time.perf_counter() - started
        num_tokens += sum(map(len, ids))
    assert num_tokens == ours["tokens"], (num_tokens, ours)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{'':10} {'seconds':>8} {'records/s':>10} {'peak MB':>8}")
    for name, took, peak in [("program", ours["seconds"], ours["peak_bytes"]), ("Python", seconds, peak_bytes)]:
        print(f"{name:10} {took:8.2f} {args.records / took:10.0f} {peak / 1e6:8.0f}")
    print(f"{ours['file_bytes'] / 1e6:.0f} MB, {num_tokens} tokens; Python takes {seconds / ours['seconds']:.2f} times as long")


main()
