"""Makes expressions.json.zst: small templates rendered in the environment that transformers gives chat templates.

    python -m venv env && env/bin/pip install transformers==5.24.0 jinja2==3.1.6 markupsafe==3.0.4 zstandard
    env/bin/python crates/jinja/tests/golden/make_expressions.py

Python must be 3.11: some messages of exceptions change from one version to the next. The clock is stopped at
2026-01-02 00:00:00. Templates whose text holds an address of memory are left out. Integers of the context that have more
than 64 bits are written as texts, under `integers`.
"""

import datetime
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import jinja2
import transformers
import zstandard
from transformers.utils import chat_template_utils

from expressions import filters, methods, operators, statements

CONTEXT = {
    "s": "Hello, World",
    "empty": "",
    "uni": "héllo wörld ß ǆ İ 你好 🎉",
    "ml": "one\ntwo\r\n\n  three\tx\n",
    "html": "<a href=\"x\">b & 'c'</a>",
    "padded": "  \tpad \n",
    "quotes": "it's \"q\" \\ \n\t\u0007\u00a0\u200b\u001b é",
    "i": 7,
    "neg": -3,
    "zero": 0,
    "big": 123456789012345678901234567890,
    "huge": 10**320,
    "f": 2.5,
    "small": 1e-07,
    "large": 1e16,
    "e22": 1e22,
    "whole": 3.0,
    # JSON has no infinity, and Jinja2 compiles the literal 1e999 to a name that does not exist.
    "inf": "inf",
    "t": True,
    "fa": False,
    "n": None,
    "nums": [3, 1, 2],
    "mixed": [1, "a", 2.5, None, True, [1], {"k": "v"}],
    "words": ["b", "A", "c", "a", "B"],
    "d": {"b": 1, "a": {"x": [1, 2]}, "C": None},
    "shadow": {"items": 1, "keys": [2], "x y": 3, "size": 4},
    "people": [
        {"name": "ann", "age": 3, "city": "Rome", "o": {"p": 2}},
        {"name": "Bob", "age": 5, "city": "Oslo", "o": {"p": 1}, "zip": 9},
        {"name": "cid", "age": 3, "city": "Rome", "o": {"p": 2}},
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>there</b>?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes. "},
        {"role": "user", "content": "ok"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather's \"state\"",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "é"},
                        "days": {"type": "integer", "enum": [1, 2]},
                    },
                    "required": ["city"],
                },
            },
        }
    ],
    "add_generation_prompt": True,
}


class StoppedClock(datetime.datetime):
    """A clock that always says the same day, as `model.data.date` does."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, tzinfo=tz)


def templates():
    yield from operators.LITERALS.strip("\n").split("\n")
    yield from statements.cases()
    yield from filters.CASES.strip("\n").split("\n")
    yield from methods.CASES.strip("\n").split("\n")
    yield from methods.systematic()
    yield from filters.over_kinds()
    yield from operators.pairs()


def render(template):
    case = {"template": template}
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
    except jinja2.TemplateSyntaxError as error:
        return case | {"error": type(error).__name__, "message": error.message, "line": error.lineno, "at": "compile"}
    except Exception as error:
        return case | {"error": type(error).__name__, "message": str(error), "at": "compile"}
    try:
        return case | {"text": compiled.render(**json.loads(json.dumps(CONTEXT)))}
    except Exception as error:
        return case | {"error": type(error).__name__, "message": str(error), "at": "render"}


def main():
    chat_template_utils.datetime = StoppedClock
    chat_template_utils._compile_jinja_template = chat_template_utils._cached_compile_jinja_template
    cases = []
    for template in dict.fromkeys(templates()):
        case = render(template)
        if case.get("at") == "compile" and re.search("recursion depth|nested parentheses", case["message"]):
            # How deep Python's own compiler goes says nothing about the language.
            continue
        if re.search(r"\bat 0x[0-9a-f]+", case.get("text", "") + case.get("message", "")):
            continue
        cases.append(json.dumps(case, ensure_ascii=True))
    versions = {
        "python": platform.python_version(),
        "transformers": transformers.__version__,
        "jinja2": jinja2.__version__,
        "markupsafe": importlib.metadata.version("markupsafe"),
    }
    integers = {name: str(value) for name, value in CONTEXT.items() if type(value) is int and abs(value) >= 2**63}
    context = {name: value for name, value in CONTEXT.items() if name not in integers}
    text = f'{{"versions": {json.dumps(versions)},\n"context": {json.dumps(context)},\n'
    text += f'"integers": {json.dumps(integers)},\n"cases": [\n'
    text += ",\n".join(cases) + "\n]}\n"
    path = Path(__file__).with_name("expressions.json.zst")
    path.write_bytes(zstandard.ZstdCompressor(level=22).compress(text.encode()))
    print(f"{len(cases)} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
