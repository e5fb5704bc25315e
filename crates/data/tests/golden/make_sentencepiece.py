"""Makes sentencepiece_models.zst and sentencepiece.json.zst: small models and what the C++ library does with them.

Needs: pip install sentencepiece==0.2.3 zstandard. Run: python make_sentencepiece.py FIXTURES [--train]
FIXTURES is tests/fixtures/tokenizers. --train trains the models anew; otherwise the committed ones are kept, so that
the golden file can be made again.

What the golden file holds is said in generated.py.
"""

import argparse
import io
import pathlib
import random

import sentencepiece as spm
import zstandard

import generated

HERE = pathlib.Path(__file__).parent
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


def train():
    lines = generated.corpus(random.Random(20))
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
    strings, out = generated.strings(), {}
    for position, (name, data) in enumerate(models.items()):
        processor = spm.SentencePieceProcessor(model_proto=data)
        size = processor.vocab_size()
        out[name] = generated.rows(100 + position, strings, processor.encode, processor.decode, size)
    generated.write(HERE / "sentencepiece.json.zst", out)


main()
