"""Writes json.json: texts, and what Python's json makes of them. Only the standard library; run with CPython 3.11 or later.

    python3 crates/data/tests/golden/make_json.py

Numbers are written as Python's repr writes them, because the project keeps them as they are. Texts with half a surrogate
pair, which Python takes, and values deeper than 128 levels are not among them.
"""

import json
from pathlib import Path

VALUES = [
    "null", "true", "false", "NaN", "Infinity", "-Infinity", "0", "-1", "12345678901234567890123", "1.5", "-0.0", "1e-07",
    "1.5e+300", '""', '"é😀日"', '"\\u00e9\\ud83d\\ude00"', '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\u0000\\u001f\\u007f\\u2028"',
    '"\x7f\u2028\ufeff"', "[]", "[ ]", "{}", "{ }", "[1]", "[1,2]", "[1 , 2]", '{"a":1}', '{"a" : 1 , "b":[{}]}',
    '{"a":1,"b":2,"a":3}', '{"":{"":[]}}', ' \t\r\n[\t1\r,\n2 ] \t\r\n', '{"\\u0061": "\\u0041"}', "[[[[[[[[1]]]]]]]]",
    '"/"', '"\\/"', '["\\uD83D\\uDE00"]', '{"a": null, "b": [null, {"c": null}]}', "[NaN, -Infinity, Infinity]",
]
BAD = [
    "", " ", "nul", "nulll", "True", "None", "nan", "NAN", "inf", "infinity", "-NaN", "+1", "-", "--1", "01", "-01", "1.", ".5",
    "1.e5", "1e", "1e+", "1_000", "0x10", "1,", "[1,]", "[,1]", "[1 2]", "[", "]", "[1", "{", "}", '{"a"}', '{"a":}', '{"a":1,}',
    "{a:1}", "{'a':1}", '{"a" 1}', '{1:2}', '{"a":1 "b":2}', '{,}', '"', '"a', '"\\"', '"\\', '"\\x41"', '"\\u12"', '"\\u12g4"',
    '"\\u 123"', '"\n"', '"\t"', '"\x00"', '"\x1f"', "'a'", "1 2", "{} {}", "[]]", "null,", "// x\n1", "/* x */ 1", "1 // x",
    "\ufeff{}", "\u00a0{}", "{}\u00a0", "\x0b1", "undefined", "1.5.5", "1e5.5", "\u0661", "1\u0661", "[1}", '{"a":1]', '"a" "b"',
    "-infinity", "- 1", "1 .5", "1e 5", "tru e", '{"a":1,,"b":2}', "[1,,2]", '"\\U00000041"', '"\\N"', "\x001", "1\x00",
]


def case(text):
    try:
        return {"text": text, "dumped": json.dumps(json.loads(text), ensure_ascii=False)}
    except ValueError:
        return {"text": text}


cases = [case(text) for text in VALUES]
assert all("dumped" in case for case in cases)
cases += [case('{"x": %s, "y": [%s]}' % (text, text.strip())) for text in VALUES]
refused = [case(text) for text in BAD]
assert not any("dumped" in case for case in refused), [case for case in refused if "dumped" in case]
cases += refused
path = Path(__file__).with_name("json.json")
path.write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
print(len(cases))
