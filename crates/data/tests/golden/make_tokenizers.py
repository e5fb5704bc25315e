"""Makes tokenizers.json.zst: what transformers, tokenizers and tiktoken do with the generated strings.

Needs: pip install transformers==4.46.3 tiktoken==0.14.0 sentencepiece==0.2.3 protobuf zstandard.
Run: python make_tokenizers.py FIXTURES, where FIXTURES is tests/fixtures/tokenizers.

The slow Llama tokenizers are called as NeMo's AutoTokenizer calls them (tokenize, convert_tokens_to_ids,
convert_tokens_to_string), without leaving special tokens out. The tiktoken vocabulary is made here and is part of the
golden file, in NeMo's format.
"""

import argparse
import base64
import json
import pathlib
import random
import shutil
import tempfile

import tiktoken
import tokenizers
import transformers
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

import generated

HERE = pathlib.Path(__file__).parent
NUM_SPECIAL = 1000
# The split pattern of NeMo's tiktoken_tokenizer.py.
LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS}*{SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{LETTERS}+{SMALL}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SLOW_CONFIG = {
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "lstrip": False, "rstrip": False, "single_word": False, "special": True},
        "1": {"content": "<s>", "lstrip": False, "rstrip": False, "single_word": False, "special": True},
        "2": {"content": "</s>", "lstrip": False, "rstrip": False, "single_word": False, "special": True},
        "420": {"content": "<extra_id_0>", "lstrip": False, "rstrip": True, "single_word": False, "special": True},
        "421": {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "special": False},
        "422": {"content": "abc", "lstrip": False, "rstrip": False, "single_word": True, "special": False},
    },
    "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"],
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
}


def tiktoken_vocab():
    """Bytes first, then the merges of a small byte-level BPE in order."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=byte_level.alphabet(), show_progress=False)
    trained.train_from_iterator(generated.corpus(random.Random(21)), trainer)
    byte_of = {c: byte for byte, c in bytes_to_unicode().items()}
    vocab = trained.get_vocab()
    pieces = [bytes(byte_of[c] for c in piece) for piece in sorted(vocab, key=vocab.get)]
    tokens = [bytes([byte]) for byte in range(256)] + [piece for piece in pieces if len(piece) > 1]
    return [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode("utf-8", "replace")}
        for rank, token in enumerate(tokens)
    ]


def tiktoken_rows(strings, vocab):
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in vocab]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(name="golden", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    names = ["<unk>", "<s>", "</s>"] + [f"<SPECIAL_{idx}>" for idx in range(3, NUM_SPECIAL)]
    all_bytes = [name.encode() for name in names] + tokens
    encode = lambda text: [rank + NUM_SPECIAL for rank in encoding.encode(text)]
    decode = lambda ids: b"".join(all_bytes[i] for i in ids).decode("utf-8", "replace")
    return generated.rows(200, strings, encode, decode, len(all_bytes))


def slow_rows(strings, fixtures, legacy, seed):
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(fixtures / "llama_bpe.model", f"{folder}/tokenizer.model")
        pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps({**SLOW_CONFIG, "legacy": legacy}))
        tokenizer = transformers.LlamaTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    # An empty list of tokens is an IndexError there.
    decode = lambda ids: tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(ids)) if ids else ""
    return generated.rows(seed, strings, encode, decode, len(tokenizer))


def fast_rows(strings, tokenizer, seed):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    return generated.rows(seed, strings, encode, decode, tokenizer.get_vocab_size())


def main():
    args = argparse.ArgumentParser()
    args.add_argument("fixtures", type=pathlib.Path)
    fixtures = args.parse_args().fixtures
    strings, vocab = generated.strings(), tiktoken_vocab()
    gpt2 = transformers.GPT2TokenizerFast(
        str(fixtures / "gpt2_bpe/vocab.json"), str(fixtures / "gpt2_bpe/merges.txt")).backend_tokenizer
    models = {
        "tiktoken": tiktoken_rows(strings, vocab),
        "slow_legacy": slow_rows(strings, fixtures, True, 201),
        "slow_plain": slow_rows(strings, fixtures, False, 202),
        "hf_llama": fast_rows(strings, tokenizers.Tokenizer.from_file(str(fixtures / "hf_llama/tokenizer.json")), 203),
        "gpt2": fast_rows(strings, gpt2, 204),
    }
    generated.write(HERE / "tokenizers.json.zst", models, tiktoken_vocab=vocab, slow_config=SLOW_CONFIG)


main()
