"""Measures other programs on the CPU with the model of the demo, in bf16: one JSON line for each measure.

decode    batch 1: new tokens per second after a short prompt
bulk      64 prompts of about 40 tokens, 64 new tokens each: new tokens per second
prefill   one prompt of 512 tokens: prompt tokens per second
load      seconds from opening the file to the first new token
chat      real prompts, answered greedily until the end of the turn or 128 tokens: seconds for all, loading included

Each figure but that of chat is the best of a few rounds, of fewer where they take long. Nothing is sampled: greedy, and every response has its full
length, in chat apart.
"""

import argparse
import json
import os
import pathlib
import sys
import time

SENTENCE = "The river ran past the old mill, and in the evening the children came to throw stones and talk about the sea. "
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS, PREFILL_TOKENS, DECODE_TOKENS = 64, 40, 64, 512, 64


def say(peer, measure, **figures):
    print(json.dumps({"peer": peer, "measure": measure, **figures}), flush=True)


ENOUGH_SECONDS = 20


def best_seconds(rounds, work):
    """The shortest of `rounds` runs after one that warms up; no run begins after ENOUGH_SECONDS."""
    seconds, begun = [], time.perf_counter()
    while len(seconds) <= rounds and time.perf_counter() - begun < ENOUGH_SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)


def token_ids(encode, count, shift):
    """`count` ids of ordinary text; `shift` makes the prompts of a batch differ."""
    ids = encode(SENTENCE * (count // 16 + 4))
    return ids[shift % 16 : shift % 16 + count]


def save_for_transformers(gguf, folder):
    """The same weights as a bf16 Hugging Face folder: reading GGUF would measure the unpacking."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "model.safetensors").is_file():
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        # A model read from GGUF counts as quantised and refuses to be saved; a plain one with its weights does not.
        if hasattr(loaded.config, "quantization_config"):
            del loaded.config.quantization_config
        plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def measure_transformers(gguf, work_dir, threads, rounds, measures):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    folder = work_dir / "smollm2-hf-bf16"
    save_for_transformers(gguf, folder)
    peer = "transformers"

    def load():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model.eval()
        return model, AutoTokenizer.from_pretrained(folder)

    def generate(model, rows, new_tokens):
        ids = torch.tensor(rows)
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )

    def first_token():
        model, tokenizer = load()
        generate(model, [tokenizer.encode(SENTENCE)], 1)

    if "load" in measures:
        say(peer, "load", seconds=best_seconds(rounds, first_token))
    model, tokenizer = load()
    prompt = token_ids(tokenizer.encode, PREFILL_TOKENS, 0)
    if "prefill" in measures:

        def prefill():
            with torch.inference_mode():
                model(torch.tensor([prompt]), logits_to_keep=1)

        say(peer, "prefill", tokens_per_s=PREFILL_TOKENS / best_seconds(rounds, prefill))
    if "decode" in measures:
        short = prompt[:PROMPT_TOKENS]
        one = best_seconds(rounds, lambda: generate(model, [short], 1))
        many = best_seconds(rounds, lambda: generate(model, [short], 1 + DECODE_TOKENS))
        say(peer, "decode", tokens_per_s=DECODE_TOKENS / (many - one))
    if "bulk" in measures:
        rows = [token_ids(tokenizer.encode, PROMPT_TOKENS, shift) for shift in range(NUM_PROMPTS)]
        seconds = best_seconds(rounds, lambda: generate(model, rows, NEW_TOKENS))
        say(peer, "bulk", tokens_per_s=NUM_PROMPTS * NEW_TOKENS / seconds)


CHAT_TOKENS, CHAT_BATCHES, CHAT_PART = 128, [16, 32, 64, 128, 256], 8
END_OF_TURN = "<|im_end|>"


def chat_transformers(gguf, work_dir, threads, output):
    """Answers the prompts of a `generations.jsonl`, sorted by length, in batches of the size that is best for a part."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    folder = work_dir / "smollm2-hf-bf16"
    save_for_transformers(gguf, folder)
    prompts = [json.loads(line)["prompt"] for line in output.read_text().splitlines()]

    def answer(prompts, batch):
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        tokenizer.pad_token = END_OF_TURN
        end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        stops = {end, tokenizer.eos_token_id}
        prompts = sorted(prompts, key=lambda prompt: len(tokenizer.encode(prompt)))
        num_tokens = 0
        for first in range(0, len(prompts), batch):
            rows = tokenizer(prompts[first : first + batch], return_tensors="pt", padding=True)
            with torch.inference_mode():
                ids = model.generate(
                    **rows, max_new_tokens=CHAT_TOKENS, do_sample=False, eos_token_id=sorted(stops), pad_token_id=end
                )
            for row in ids[:, rows["input_ids"].shape[1] :].tolist():
                ended = next((at + 1 for at, token in enumerate(row) if token in stops), len(row))
                num_tokens += ended
        return time.perf_counter() - start, num_tokens

    answer(prompts[:8], 8)
    part = {batch: answer(prompts[::CHAT_PART], batch)[0] for batch in CHAT_BATCHES}
    best = min(part, key=part.get)
    seconds, num_tokens = answer(prompts, best)
    print(f"batches of {best} ({part}), {num_tokens} tokens", file=sys.stderr)
    say("transformers", "chat", seconds=seconds)


def save_bf16_gguf(gguf, output):
    """Dequantises every matrix to bf16: the same arithmetic for everybody."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize

    if output.is_file():
        return
    reader = GGUFReader(gguf)
    partial = output.with_suffix(".partial")
    writer = GGUFWriter(partial, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)
    bf16 = GGMLQuantizationType.BF16
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, bf16), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(output)


class LlamaBatches:
    """Sequences of one llama.cpp context, extended side by side: its own batches, greedy."""

    def __init__(self, llama, num_sequences, threads):
        import llama_cpp
        import numpy

        self.api, self.numpy = llama_cpp, numpy
        self.vocab_size = llama.n_vocab()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 2048 if num_sequences == 1 else num_sequences * 128
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = num_sequences
        # Each sequence has a cache of its own, which is the faster way when they share no prefix.
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(llama.model, params)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)

    def extend(self, rows):
        """Runs (sequence, first position, ids) rows, 512 tokens at most; returns the next token of each."""
        batch, last = self.batch, []
        batch.n_tokens = 0
        for sequence, start, ids in rows:
            for offset, token in enumerate(ids):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, start + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = offset + 1 == len(ids)
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        code = self.api.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        as_array = self.numpy.ctypeslib.as_array
        logits = (self.api.llama_get_logits_ith(self.context, at) for at in last)
        return [int(as_array(row, shape=(self.vocab_size,)).argmax()) for row in logits]

    def prefill(self, prompts):
        """As many whole prompts a batch as fit in 512 tokens."""
        self.clear()
        per_batch = max(512 // len(prompts[0]), 1)
        tokens = []
        for first in range(0, len(prompts), per_batch):
            part = prompts[first : first + per_batch]
            tokens += self.extend([(first + idx, 0, ids) for idx, ids in enumerate(part)])
        return tokens

    def generate(self, prompts, num_tokens):
        tokens, start = self.prefill(prompts), len(prompts[0])
        for step in range(num_tokens - 1):
            tokens = self.extend([(row, start + step, [token]) for row, token in enumerate(tokens)])


def measure_llama_cpp(gguf, work_dir, threads, rounds, measures):
    from llama_cpp import Llama

    model_path = work_dir / "smollm2-bf16.gguf"
    save_bf16_gguf(gguf, model_path)
    peer = "llama.cpp"

    def load():
        return Llama(str(model_path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def first_token():
        llama = load()
        llama.eval(llama.tokenize(SENTENCE.encode(), add_bos=False))
        llama.sample(temp=0.0)

    if "load" in measures:
        say(peer, "load", seconds=best_seconds(rounds, first_token))
    llama = load()
    prompts = [
        token_ids(lambda text: llama.tokenize(text.encode(), add_bos=False), PREFILL_TOKENS, shift)
        for shift in range(NUM_PROMPTS)
    ]
    short = [ids[:PROMPT_TOKENS] for ids in prompts]
    single = LlamaBatches(llama, 1, threads)
    if "prefill" in measures:
        seconds = best_seconds(rounds, lambda: single.prefill(prompts[:1]))
        say(peer, "prefill", tokens_per_s=PREFILL_TOKENS / seconds)
    if "decode" in measures:
        one = best_seconds(rounds, lambda: single.generate(short[:1], 1))
        many = best_seconds(rounds, lambda: single.generate(short[:1], 1 + DECODE_TOKENS))
        say(peer, "decode", tokens_per_s=DECODE_TOKENS / (many - one))
    if "bulk" in measures:
        batched = LlamaBatches(llama, NUM_PROMPTS, threads)
        seconds = best_seconds(rounds, lambda: batched.generate(short, NEW_TOKENS))
        say(peer, "bulk", tokens_per_s=NUM_PROMPTS * NEW_TOKENS / seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--work-dir", type=pathlib.Path, required=True)
    parser.add_argument("--peer", choices=["transformers", "llama.cpp"], required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measures", default="load,prefill,decode,bulk")
    parser.add_argument("--chat", type=pathlib.Path, help="a generations.jsonl whose prompts are answered too")
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.chat and args.peer == "transformers":
        chat_transformers(args.gguf, args.work_dir, args.threads, args.chat)
    measure = {"transformers": measure_transformers, "llama.cpp": measure_llama_cpp}[args.peer]
    measure(args.gguf, args.work_dir, args.threads, args.rounds, args.measures.split(","))


if __name__ == "__main__":
    main()
