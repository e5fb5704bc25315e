"""Makes sentencepiece.json.zst and the two trained models beside it.

Needs: pip install sentencepiece==0.2.3 zstandard. Run: python make_sentencepiece.py [--texts N] FIXTURES
FIXTURES is tests/fixtures/tokenizers. With --texts the file holds more generated strings than the committed one.
"""

import argparse
import io
import json
import pathlib
import random

import sentencepiece as spm
import zstandard

HERE = pathlib.Path(__file__).parent
WORDS = (
    "the of and to in is that for with as on was at by from model answer question prompt system user assistant "
    "generation checkpoint tokens batch sample output input training response code value function return hello world "
    "naïve café Ångström straße größe élan señor Привет мир как дела это тест 日本語 テキスト 中文 文本 한국어 "
    "العربية हिन्दी ﬁnal ﬂow ①② Ⅳ ｆｕｌｌ ～ … — “quoted” 1,024 2023 3.14 x=1; fn(x) {a: b} #tag @user"
).split()
POOL = "～①②ﬁﬂÅé日本語中文한국어Привет😀👍🏽👨‍👩‍👧\u200b\u00a0\u3000\u2028\ufeff\u0301\ufe0f¹½™…—\t\r\x0b\x00\x01\x7f\u0085ﷺΣςİıẞ\u2581\U00020000"
SPECIALS = ["<extra_id_0>", "<extra_id_1>", "<s>", "</s>", "<unk>", "<mask>", "ab", "abc", "\u2581\u2581", "  ", "<0x41>"]
FIXED = ["", " ", "  ", "\n", " a", "a ", "  a  b  ", "\u2581", "\u2581\u2581x", "abcab", "ababc abc", "~～", "a\u2581b",
         "\x00", "<extra_id_1>User\nhello<extra_id_1>Assistant\n", "x" * 300, "\u3000\u3000a", " \u00a0 a"]
MODELS = {
    "nmt_unigram": dict(model_type="unigram", vocab_size=330, normalization_rule_name="nmt_nfkc", pad_id=3,
                        user_defined_symbols=["<extra_id_0>", "<extra_id_1>", "ab", "abc"], control_symbols=["<mask>"]),
    "nfkc_bpe": dict(model_type="bpe", vocab_size=700, normalization_rule_name="nfkc", byte_fallback=True,
                     user_defined_symbols=["<extra_id_0>", "<extra_id_1>", "\u2581\u2581", "ab", "abc"],
                     add_dummy_prefix=False, remove_extra_whitespaces=False),
}


def corpus(rng):
    def word():
        first, second = rng.choice(WORDS), rng.choice(WORDS)
        return first if rng.random() < 0.5 else first[: rng.randrange(1, 6)] + second[rng.randrange(4):]

    return [" ".join(word() for _ in range(rng.randrange(3, 14))) for _ in range(4000)]


def text(rng):
    kind = rng.random()
    if kind < 0.4:
        out = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 8)))
        out = out[rng.randrange(3):]
    elif kind < 0.8:
        letters = "abcdeXYZ 019  <>_\n"
        out = "".join(rng.choice(POOL if rng.random() < 0.4 else letters) for _ in range(rng.randrange(1, 30)))
    else:
        ranges = [(32, 0x250), (0x2000, 0x3100), (0xF900, 0xFFFF), (0x1F300, 0x1F9FF)]
        out = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 14)))
    if rng.random() < 0.25:
        at = rng.randrange(len(out) + 1)
        out = out[:at] + rng.choice(SPECIALS) + out[at:]
    return out


def main():
    args = argparse.ArgumentParser()
    args.add_argument("fixtures", type=pathlib.Path)
    args.add_argument("--texts", type=int, default=1000)
    args.add_argument("--output", type=pathlib.Path, default=HERE / "sentencepiece.json.zst")
    args = args.parse_args()
    rng = random.Random(20)
    lines = corpus(rng)
    processors = {}
    for name, options in MODELS.items():
        path = HERE / f"{name}.model.zst"
        if not path.exists():
            out = io.BytesIO()
            spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, minloglevel=2,
                                           num_threads=1, hard_vocab_limit=options['model_type'] == 'bpe', character_coverage=0.995, **options)
            path.write_bytes(zstandard.ZstdCompressor(level=19).compress(out.getvalue()))
        model = zstandard.ZstdDecompressor().decompress(path.read_bytes())
        processors[name] = spm.SentencePieceProcessor(model_proto=model)
    for name in ["llama_bpe", "nemo_bpe_extra"]:
        processors[name] = spm.SentencePieceProcessor(model_file=str(args.fixtures / f"{name}.model"))
    texts = FIXED + [text(rng) for _ in range(args.texts)]
    models = {}
    for name, processor in processors.items():
        ids = processor.encode(texts)
        decoded = [processor.decode(row) for row in ids]
        # Null stands for "the text itself", to keep the file small.
        models[name] = {"ids": ids, "decoded": [None if d == t else d for d, t in zip(decoded, texts)]}
    golden = {"texts": texts, "models": models, "num_checks": len(texts) * len(models)}
    data = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).encode()
    args.output.write_bytes(zstandard.ZstdCompressor(level=19).compress(data))


main()
