"""Renders every chat template of unpacked packages over every conversation with transformers.

    python judge.py PACKAGES CONVERSATIONS NAMED_SETS OUTPUT

The output has a line of facts and then a line of JSON a template: its id, its texts by name, and for every conversation the
prompt or the exception. `apply_chat_template` is called as training and generation scripts call it, on a tokenizer with the
usual four special tokens. The clock is stopped at 2026-01-02 00:00:00.
"""

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from corpus import find_templates

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class StoppedClock(datetime.datetime):
    """A clock that always says the same day, as `model.data.date` does."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, tzinfo=tz)


def render(tokenizer, record):
    tools = record.get("tools")
    if isinstance(tools, str):
        # As TRL does: datasets keep tools as text where their schemas differ.
        tools = json.loads(tools)
    try:
        text = tokenizer.apply_chat_template(
            record["messages"],
            tools=tools,
            documents=record.get("documents"),
            tokenize=False,
            add_generation_prompt=True,
            **record.get("chat_template_kwargs", {}),
        )
    except Exception as error:  # Whatever a template can raise is a refusal.
        return {"conversation": record["id"], "error": type(error).__name__, "message": str(error)}
    return {"conversation": record["id"], "text": text}


def main(packages, conversations, named_sets, output):
    chat_template_utils.datetime = StoppedClock
    lines = Path(conversations).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    vocabulary = {token: number for number, token in enumerate(TOKENS.values())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=TOKENS["unk_token"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)
    templates = find_templates(Path(packages), json.loads(Path(named_sets).read_text(encoding="utf-8")))
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "jinja2", "markupsafe")}
    with Path(output).open("w", encoding="utf-8") as out:
        facts = {"versions": versions | {"python": platform.python_version()}, "special_tokens": TOKENS}
        out.write(json.dumps(facts | {"num_templates": len(templates)}) + "\n")
        for name, texts in templates.items():
            tokenizer.chat_template = texts if set(texts) != {"default"} else texts["default"]
            renderings = [render(tokenizer, record) for record in records]
            out.write(json.dumps({"id": name, "templates": texts, "renderings": renderings}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
