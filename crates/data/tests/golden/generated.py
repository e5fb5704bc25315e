"""Strings and lists of ids from a seed, and their checksums: what the scripts here share.

The test makes the same ones (crates/data/src/tokenizer/golden.rs), so a golden file holds the first rows in full and one
checksum for each block of the others.
"""

import json
import zlib

import zstandard

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


def line(ids, text):
    return f"{' '.join(map(str, ids))}\x1f{text}\n".encode()


def checksums(rows):
    blocks = (b"".join(rows[start: start + BLOCK]) for start in range(0, len(rows), BLOCK))
    return " ".join(f"{zlib.crc32(block):08x}" for block in blocks)


def rows(seed, strings, encode, decode, size):
    """What one tokenizer does. `decode` takes a list of ids."""
    ids = [encode(string) for string in strings]
    decoded = [decode(row) for row in ids]
    generator = Generator(seed)
    lists = [generator.ids(size) for _ in range(NUM_ID_LISTS)]
    list_texts = [decode(row) for row in lists]
    # Null stands for "the text itself", to keep the file small.
    return {
        "seed": seed,
        "encode": [[i, None if d == t else d] for i, d, t in zip(ids, decoded, strings)][:NUM_FULL],
        "encode_crc32": checksums([line(i, d) for i, d in zip(ids, decoded)]),
        "decode": list_texts[:NUM_FULL],
        "decode_crc32": checksums([line(i, t) for i, t in zip(lists, list_texts)]),
    }


def strings():
    generator = Generator(1)
    return [generator.text() for _ in range(NUM_STRINGS)]


def write(path, models, **more):
    out = {"num_strings": NUM_STRINGS, "num_id_lists": NUM_ID_LISTS, "block": BLOCK, "models": models, **more}
    data = json.dumps(out, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(zstandard.ZstdCompressor(level=22).compress(data))
