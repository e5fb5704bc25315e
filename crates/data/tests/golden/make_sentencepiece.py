"""Makes sentencepiece_models.zst and sentencepiece.json.zst: small models and what the C++ library does with them.

Needs: pip install sentencepiece==0.2.3 zstandard. Run: python make_sentencepiece.py FIXTURES [--train]
FIXTURES is tests/fixtures/tokenizers. --train trains the models anew; otherwise the committed ones are kept, so that
the golden file can be made again.

The strings and the lists of ids come from a generator that the Rust test repeats from the same seed, so the file holds
the first rows in full and one checksum for each block of the others.
"""

import argparse
import io
import json
import pathlib
import random
import zlib

import sentencepiece as spm
import zstandard

HERE = pathlib.Path(__file__).parent
NUM_STRINGS, NUM_ID_LISTS, BLOCK, NUM_FULL = 20_000, 4_000, 100, 200
WORDS = (
    "the of and to in is that for with as on was at by from model answer question prompt system user assistant "
    "generation checkpoint tokens batch sample output input training response code value function return hello world "
    "naïve café Ångström straße größe élan señor Привет мир как дела это тест 日本語 テキスト 中文 文本 한국어 "
    "العربية हिन्दी ﬁnal ﬂow ①② Ⅳ ｆｕｌｌ ～ … — “quoted” 1,024 2023 3.14 x=1; fn(x) {a: b} #tag @user"
).split()
LETTERS = "abcdeXYZ 019  <>_\n"
POOL = (
    "～①②ﬁﬂÅé日本語中文한국어Привет😀👍🏽👨‍👩‍👧\u200b\u00a0\u3000\u2028\ufeff\u0301\ufe0f¹½™…—\t\r\x0b\x00\x01\x7f"
    "\u0085ﷺΣςİıẞ\u2581\U00020000"
)
SPECIALS = ["<extra_id_0>", "<extra_id_1>", "<s>", "</s>", "<unk>", "<mask>", "ab", "abc", "\u2581\u2581", "  ", "<0x41>"]
RANGES = [(32, 0x250), (0x2000, 0x3100), (0xF900, 0xFFFF), (0x1F300, 0x1F9FF)]
EXTRA = ["<extra_id_0>", "<extra_id_1>", "ab", "abc"]
MODELS = {
    "nmt_unigram": dict(model_type="unigram", vocab_size=330, normalization_rule_name="nmt_nfkc", pad_id=3,
                        user_defined_symbols=EXTRA, control_symbols=["<mask>"]),
    "nfkc_bpe": dict(model_type="bpe", vocab_size=700, normalization_rule_name="nfkc", byte_fallback=True,
                     user_defined_symbols=["<extra_id_0>", "<extra_id_1>", "\u2581\u2581", "ab", "abc"],
                     add_dummy_prefix=False, remove_extra_whitespaces=False),
    "cf_unigram": dict(model_type="unigram", vocab_size=620, normalization_rule_name="nfkc_cf", byte_fallback=True,
                       control_symbols=["<mask>"], split_digits=True),
    "cf_bpe": dict(model_type="bpe", vocab_size=420, normalization_rule_name="nfkc_cf", user_defined_symbols=EXTRA,
                   control_symbols=["<mask>"], remove_extra_whitespaces=False),
    "suffix_unigram": dict(model_type="unigram", vocab_size=400, normalization_rule_name="identity",
                           treat_whitespace_as_suffix=True, unk_surface=" [?] "),
    "suffix_bpe": dict(model_type="bpe", vocab_size=500, normalization_rule_name="nmt_nfkc",
                       treat_whitespace_as_suffix=True, user_defined_symbols=EXTRA, byte_fallback=True,
                       remove_extra_whitespaces=False),
    "identity_unigram": dict(model_type="unigram", vocab_size=640, normalization_rule_name="identity",
                             byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
                             allow_whitespace_only_pieces=True, split_by_whitespace=False),
}
FIXTURE_MODELS = ["llama_bpe", "nemo_bpe_extra"]


class Generator:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed

    def next(self, bound):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) % bound

    def text(self):
        kind = self.next(10)
        if kind < 4:
            out = " ".join(WORDS[self.next(len(WORDS))] for _ in range(1 + self.next(7)))
            out = out[self.next(3):]
        elif kind < 8:
            out = ""
            for _ in range(1 + self.next(29)):
                pool = POOL if self.next(10) < 4 else LETTERS
                out += pool[self.next(len(pool))]
        else:
            out = ""
            for _ in range(1 + self.next(13)):
                low, high = RANGES[self.next(len(RANGES))]
                out += chr(low + self.next(high - low))
        if self.next(4) == 0:
            at = self.next(len(out) + 1)
            out = out[:at] + SPECIALS[self.next(len(SPECIALS))] + out[at:]
        return out

    def ids(self, vocab_size):
        return [self.next(vocab_size) for _ in range(self.next(12))]


def corpus(rng):
    def word():
        first, second = rng.choice(WORDS), rng.choice(WORDS)
        return first if rng.random() < 0.5 else first[: rng.randrange(1, 6)] + second[rng.randrange(4):]

    return [" ".join(word() for _ in range(rng.randrange(3, 14))) for _ in range(4000)]


def train():
    lines = corpus(random.Random(20))
    models = {}
    for name, options in MODELS.items():
        out = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, minloglevel=2, num_threads=1,
            hard_vocab_limit=options["model_type"] == "bpe", character_coverage=0.995, **options)
        models[name] = out.getvalue()
    return models


def pack(models):
    """One file for all, because the character maps of several are the same: name, length, bytes."""
    packed = b"".join(f"{name} {len(data)}\n".encode() + data for name, data in models.items())
    return zstandard.ZstdCompressor(level=22).compress(packed)


def unpack(packed):
    data, models = zstandard.ZstdDecompressor().decompress(packed), {}
    while data:
        head, _, data = data.partition(b"\n")
        name, length = head.decode().split()
        models[name], data = data[: int(length)], data[int(length):]
    return models


def line(ids, text):
    return f"{' '.join(map(str, ids))}\x1f{text}\n".encode()


def checksums(rows):
    blocks = (b"".join(rows[start: start + BLOCK]) for start in range(0, len(rows), BLOCK))
    return " ".join(f"{zlib.crc32(block):08x}" for block in blocks)


def golden(processor, strings, seed):
    ids = processor.encode(strings)
    decoded = processor.decode(ids)
    generator, size = Generator(seed), processor.vocab_size()
    lists = [generator.ids(size) for _ in range(NUM_ID_LISTS)]
    list_texts = processor.decode(lists)
    # Null stands for "the text itself", to keep the file small.
    return {
        "encode": [[i, None if d == t else d] for i, d, t in zip(ids, decoded, strings)][:NUM_FULL],
        "encode_crc32": checksums([line(i, d) for i, d in zip(ids, decoded)]),
        "decode": list_texts[:NUM_FULL],
        "decode_crc32": checksums([line(i, t) for i, t in zip(lists, list_texts)]),
    }


def main():
    args = argparse.ArgumentParser()
    args.add_argument("fixtures", type=pathlib.Path)
    args.add_argument("--train", action="store_true")
    args = args.parse_args()
    models_path = HERE / "sentencepiece_models.zst"
    if args.train:
        models_path.write_bytes(pack(train()))
    models = unpack(models_path.read_bytes())
    models.update({name: (args.fixtures / f"{name}.model").read_bytes() for name in FIXTURE_MODELS})
    generator = Generator(1)
    strings = [generator.text() for _ in range(NUM_STRINGS)]
    out = {"num_strings": NUM_STRINGS, "num_id_lists": NUM_ID_LISTS, "block": BLOCK, "models": {}}
    for position, (name, data) in enumerate(models.items()):
        processor = spm.SentencePieceProcessor(model_proto=data)
        out["models"][name] = {"seed": 100 + position, **golden(processor, strings, 100 + position)}
    data = json.dumps(out, ensure_ascii=False, separators=(",", ":")).encode()
    (HERE / "sentencepiece.json.zst").write_bytes(zstandard.ZstdCompressor(level=22).compress(data))


main()
