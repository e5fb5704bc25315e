"""Writes `generated.jsonl` beside this file: random overrides, documents and whole configurations, and what
hydra-core 1.3.2 and omegaconf 2.3.0 make of them.

    python make_generated.py

Rows are JSON arrays: ["override", text, answer], ["document", text, answer] and ["config", document, overrides, answer].
The seed is fixed, so the same packages write the same file.
"""
import io
import json
import os
import random
import sys
import warnings
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf
from omegaconf.errors import UnsupportedValueType

from make_golden import KINDS, PARSER, answer, encode

warnings.simplefilter("ignore")
HERE = Path(__file__).parent
R = random.Random(20260417)
NUM_OVERRIDES, NUM_DOCUMENTS, NUM_CONFIGS = 900, 800, 600


def pick(*choices):
    return R.choice(choices)


def maybe(probability):
    return R.random() < probability


def mutate(text, alphabet):
    """Most rows are as they were made; some lose, gain or swap characters."""
    if maybe(0.65):
        return text
    chars = list(text)
    for _ in range(pick(1, 1, 2)):
        at = R.randrange(len(chars) + 1)
        action = pick("insert", "delete", "replace")
        if action == "insert" or not chars:
            chars.insert(at, R.choice(alphabet))
        elif action == "delete":
            del chars[min(at, len(chars) - 1)]
        else:
            chars[min(at, len(chars) - 1)] = R.choice(alphabet)
    return "".join(chars)


# ---------------------------------------------------------------- overrides
WORDS = ["a", "b1", "x_y", "foo-bar", "null", "true", "False", "NULL", "inf", "nan", "on", "None", "e5", "_", "A"]
NUMBERS = ["0", "1", "-1", "+7", "12", "007", "1_000", "1__0", "1.5", ".5", "1.", "-.5", "1e3", "1e-5", "2.5E+3", "1e", "0x1f", "1_0.5_0", "1.2.3", "9223372036854775807", "-inf", "+nan", "1:30"]
UNQUOTED = ["/data/x.jsonl", "s3://b/c", "a@b", "a|b", "50%", "$x", "a+b", "*", "?", "-", "--", "..", "a:b", "C:\\x", "a\\,b", "a\\ b", "\\(x\\)", "\\\\", "x\\y", "${a}", "${a.b}x", "${oc.env:HOME}", "x${.b}", "a b", "a  b c", "1 2", "true x"]
BAD = ["<s>", "a=b", "#", "é", "日本", "!", "a;b", "{x", "x}", "]", "(", ")", "'", '"', "${", "${}", "~"]
QUOTED = ["<|eot_id|>", "a,b", "it\\'s", 'say \\"x\\"', "\\\\", "a\\\\b", "\\n", "", " ", "${a}", "${int_div:${x},2}", "日本", "x\ny", "null", "1", "a\\\\\\\"b"]


def primitive():
    kind = R.random()
    if kind < 0.3:
        return R.choice(NUMBERS)
    if kind < 0.5:
        return R.choice(WORDS)
    if kind < 0.72:
        return R.choice(UNQUOTED)
    if kind < 0.95:
        quote = pick("'", '"')
        return quote + R.choice(QUOTED) + quote
    return R.choice(BAD)


def space():
    return pick("", "", "", " ", "  ", "\t")


def element(depth=0):
    kind = R.random()
    if depth > 2 or kind < 0.5:
        return primitive()
    if kind < 0.7:
        return "[" + ",".join(space() + element(depth + 1) + space() for _ in range(R.randrange(4))) + "]"
    if kind < 0.86:
        keys = ["a", "b", "c", "k-1", "1", "true", "null", "x y", "1.5", "\\:", "a.b", "'q'", "$k"]
        pairs = [space() + R.choice(keys) + space() + ":" + space() + element(depth + 1) for _ in range(R.randrange(3))]
        return "{" + ",".join(pairs) + "}"
    name = pick("int", "float", "str", "bool", "sort", "choice", "range", "glob", "f", "tag", "interval")
    arguments = [pick("", "", "", "value=", "reverse=", "list=") + element(depth + 1) for _ in range(pick(1, 1, 1, 2))]
    return name + pick("", "", " ") + "(" + ", ".join(arguments) + space() + ")"


def key():
    parts = ["a", "b", "model", "x_1", "_c", "$d", "k-l", "0", "12", "01", "1a", "-x", "", "é", "a b", "a[0]", "db/x"]
    weights = [8, 8, 8, 6, 3, 2, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    text = ".".join(R.choices(parts, weights, k=pick(1, 1, 2, 3)))
    return text + (pick("@p", "@p.q", "@", "@:x") if maybe(0.05) else "")


def override():
    prefix = pick("", "", "", "", "+", "++", "~", "+++", "~+")
    if prefix == "~" and maybe(0.5):
        return prefix + key()
    values = [element() for _ in range(pick(1, 1, 1, 1, 1, 1, 2))]
    return prefix + key() + pick("=", "=", "=", "= ", " =") + pick(",", ", ").join(values)


def parse_override(text):
    parsed = PARSER.parse_override(text)
    if parsed.is_sweep_override():
        raise ValueError("sweep")
    return [KINDS[parsed.type.name], parsed.key_or_group, parsed.package, parsed.value()]


# ---------------------------------------------------------------- documents
PLAIN = ["a", "b c", "x-y", "null", "~", "yes", "No", "on", "y", "true", "1", "-5", "017", "0x1F", "0b11", "1_000", "1:30", "12:30:45.5", "1.5", "1e3", ".5", "-.inf", ".nan", "1.", "+1.5e-3", "2023-01-02", "2001-12-14 21:59:43", "00:03:30:00", "/p/x.jsonl", "http://h:1/x?y=z", "a#b", "a: b", "a # c", "- x", "-x", "?x", ":x", "a:b", "${a}", "x${b.c}y", "${b", "???", "=", "<<", "%x", "@x", "`x", "!x", "*x", "&x", "a,b", "[x", "x]", "{x", "x}", "'", "\"", "it's", "日本", "é", "a\tb", "|x", ">x", "|", "08", "1__0", "0o7", "+12e03", "1,000", "off", "NULL", "nan", "inf", "---", "..."]
FLOW_PLAIN = ["a", "b c", "null", "yes", "1", "1.5", "1e3", "x-y", "/p/x", "a:b", "1:30", "~", "${a}", "-", "-x", "a#b", "???", "http://h", ":a", "a?"]
KEYS = ["a", "b", "c", "key", "long_key", "x-y", "a.b", "k 1", "é"]


def scalar(flow):
    kind = R.random()
    if kind < 0.6:
        return R.choice(FLOW_PLAIN if flow else PLAIN)
    if kind < 0.75:
        return "'" + pick("a", "", "it''s", "x: y", "# c", "\\n", "1", "${a}", "a b ", " ", "日本") + "'"
    if kind < 0.92:
        return '"' + pick("a", "", "\\n", "\\x0A", "\\u65e5", "x\\ty", "\\\"", "\\/", "1", "a b ", "\\e", "\\d", "\\x4") + '"'
    return pick("!!str 1", "!!int '2'", "!!float 1", "!!null x", "!!bool yes", "!x y", "&a 1", "*a", "&b x", "*b", "! 12")


def flow(depth=0):
    kind = R.random()
    sep = pick(",", ", ", " , ", ",\n  ")
    end = pick("", "", "", "", ",", " ")
    if depth > 1 or kind < 0.4:
        return scalar(True)
    if kind < 0.75:
        return "[" + sep.join(flow(depth + 1) for _ in range(R.randrange(4))) + end + "]"
    entries = [pick("", "", "? ") + R.choice(KEYS) + pick(": ", ": ", " : ", ":") + flow(depth + 1) for _ in range(R.randrange(1, 3))]
    return "{" + sep.join(entries) + end + "}"


def block_scalar(indent):
    header = pick("|", ">") + pick("", "", "-", "+", "2", "-1", "+2") + pick("", "", " # c", "x")
    lines = [pick("text", "  more", "", " x", "a: b", "# no comment", "-") for _ in range(R.randrange(1, 5))]
    pad = " " * (indent + pick(1, 2, 2, 4))
    return header + "\n" + "\n".join(pad + line if line else pick("", pad) for line in lines)


def multi_line(indent):
    quote = pick("", "", "'", '"')
    pad = "\n" + pick("", "\n", "\n\n") + " " * (indent + pick(1, 2, 3))
    words = [pick("one", "two", "it", "x-y", "3", "#4", "- 5", "a: b") for _ in range(R.randrange(2, 5))]
    return quote + "".join(word + pick(" ", pad, pad) for word in words[:-1]) + words[-1] + quote


def comment():
    return pick("", "", "", "", "", "", " # c", "  #", "#x", " \t", "\t# c")


def block(indent, depth=0):
    """The lines of a block collection at an indentation."""
    pad = " " * indent
    lines = []
    is_list = maybe(0.25)
    keys = R.sample(KEYS, k=R.randrange(1, 5))
    if maybe(0.04):
        keys.append(keys[0])
    for name in keys:
        if is_list:
            head = pad + "-" + pick(" ", " ", "  ", "\t")
        else:
            head = pad + pick(name, name, name, name, f"'{name}'", f'"{name}"', f"? {name}\n{pad}", "12", "true", "<<", "1.5") + pick(":", ":", ":", " :") + " "
        kind = R.random()
        deeper = indent + pick(2, 2, 4, 1)
        if depth < 3 and kind < 0.3:
            inner = block(deeper if not maybe(0.15) else indent, depth + 1)
            if is_list and maybe(0.6):
                lines.append(head + inner.lstrip())
            else:
                lines.append(head.rstrip() + comment() + "\n" + inner)
        elif kind < 0.45:
            lines.append(head + flow() + comment())
        elif kind < 0.52:
            lines.append(head + block_scalar(indent))
        elif kind < 0.58:
            lines.append(head + multi_line(indent))
        elif kind < 0.64:
            lines.append(head.rstrip() + comment())
        elif kind < 0.68:
            lines.append(head + pick("&m {p: 1}", "*m", "&n [1]", "*n", "[*m, *n]"))
        else:
            lines.append(head + scalar(False) + comment())
        if maybe(0.06):
            lines.append(pick("", pad + "# comment", "   # deeper", "\t"))
    return "\n".join(lines)


def document():
    start = pick("", "", "", "", "", "", "", "---\n", "# c\n", "%YAML 1.1\n---\n", "--- # c\n", "\ufeff")
    end = pick("\n", "\n", "\n", "", "\n...\n", "\n---\n", "\n\n")
    return start + (flow() if maybe(0.1) else block(0)) + end


def load(text):
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))


def has_surprise(text, value):
    """What the Rust side does otherwise on purpose: keys of several types that are the same text."""
    if isinstance(value, dict):
        names = [str(key).lower() for key in value]
        return len(set(names)) < len(names) or any(has_surprise(text, item) for item in value.values())
    if isinstance(value, list):
        return any(has_surprise(text, item) for item in value)
    return False


# ---------------------------------------------------------------- configurations
BASE_LEAVES = ["1", "2.5", "true", "null", "x", "'a b'", "???", "[1, 2]", "[x, [y]]", "{p: 1}", "'1'", "1.0e-05", "''", "\"\\n\"", "'yes'", "[]", "{}", "/p/x y", "'it''s'", "-7", "0.1", "'word word word word word word word word word word word word word word word word word word'", "'<|x|>'", "'a: b'", "\"日本\\t\"", "1e20", "'- x'"]
REFERENCES = ["a", "b", "c", "d", "s.a", "s.b", "s.t.a", "l.0", "l.1", ".a", ".b", "..a", "..b", "...a", "nope", "s", "l", "s[a]", "[s].t.a", "s.t", "l[0]"]


def reference():
    return "${" + space().replace("\t", " ") + R.choice(REFERENCES) + space().replace("\t", " ") + "}"


def argument(depth=0):
    kind = R.random()
    if kind < 0.3 and depth < 2:
        return reference()
    if kind < 0.4 and depth < 2:
        return resolver(depth + 1)
    if kind < 0.75:
        return pick("1", "2", "-3", "0", "1.5", "2.0", "7", "true", "null", "1_0", "012", "1e2")
    if kind < 0.9:
        return pick("x", "a", "b", "s", "l", "s.a", ".a", "/p", "a b", "'q'", "\"q\"", "x:y", "a\\,b", "\"${a}\"", "'x${b}'", "", "x${a}", "$x")
    return pick("[1,2]", "[]", "{x:1}", "[${a},x]", "{y: ${b}, z: [1]}", "[[1],{a:b}]", "['a',,b]")


def resolver(depth=0):
    name = pick("multiply", "int_div", "subtract", "sum", "oc.env", "oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values", "oc.deprecated", "nope", "multiply", "int_div", "subtract", "sum", "oc.select", "oc.env")
    count = pick(1, 2, 2, 2) if name not in ("oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values", "oc.deprecated") else 1
    arguments = [argument(depth) for _ in range(count)]
    if name == "oc.env":
        arguments[0] = pick("GOLDEN_SET", "GOLDEN_UNSET", "GOLDEN_NUMBER")
    if name in ("oc.select", "oc.dict.keys", "oc.dict.values", "oc.deprecated") and maybe(0.85):
        arguments[0] = R.choice(REFERENCES)
    if name == "oc.decode" and maybe(0.6):
        arguments[0] = pick("'1'", '"[1,a]"', '"{a:1}"', "'x y'", '"null"', "'${a}'", "'1e-5'", "${b}", "'['")
    return "${" + name + ":" + pick("", "", " ") + pick(",", ", ", " ,").join(arguments) + "}"


def expression():
    parts = [pick(reference(), reference(), resolver())]
    if maybe(0.3):
        parts.insert(pick(0, 1), pick("x", " ", "-", "\\", "\\\\", "$", "a.b/", "{", "}", "'", "é"))
    if maybe(0.1):
        parts.append(reference())
    return mutate("".join(parts), "${}.:,[] \\'x") if maybe(0.2) else "".join(parts)


def single_quoted(text):
    return "'" + text.replace("'", "''") + "'"


def config_leaf():
    return single_quoted(expression()) if maybe(0.45) else R.choice(BASE_LEAVES)


def config():
    # In brackets PyYAML takes `?` for a key.
    inner = lambda: config_leaf().replace("???", "x")
    lines = [f"{name}: {config_leaf()}" for name in ("a", "b", "c", "d")]
    lines += ["s:", f"  a: {config_leaf()}", f"  b: {config_leaf()}", "  t:", f"    a: {config_leaf()}", f"    b: {config_leaf()}"]
    lines += [f"l: [{inner()}, {inner()}]"]
    return "\n".join(lines) + "\n"


def config_override():
    name = pick("a", "b", "c", "s", "s.a", "s.t", "s.t.a", "s.t.new", "l", "l.0", "l.5", "l.0.x", "new", "new.x", "s.new", "s.new.x", "a.x", "d")
    prefix = pick("", "", "", "+", "++", "++", "~")
    if prefix == "~":
        return prefix + name + pick("", "", "=1", "=null", "=x", "=[1,2]", "={p:1}", "=2.5", "=true", "=''")
    value = pick("1", "x", "null", "2.5", "true", "", "[1,x]", "{a:5}", "{p:2}", "{a:{z:1}}", "{t:{a:7}}", "'${a}'", "${b}", "x${a}", "'${sum:${a},1}'", "???", "{}", "[]", "'???'", "'${'", "\"a\\\\\"b\"", "[{a:1}]", "{q:1}", "'${.a}'", "str(3)", "a,b", "1_000")
    return f"{prefix}{name}={value}"


def compose(text, overrides):
    """The composed configuration, printed and resolved."""
    def composed():
        config = OmegaConf.load(io.StringIO(text))
        OmegaConf.set_struct(config, True)
        parsed = PARSER.parse_overrides(overrides)
        if any(item.is_sweep_override() for item in parsed):
            raise ValueError("sweep")
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
        return config

    def resolved():
        config = composed()
        try:
            OmegaConf.resolve(config)
        except UnsupportedValueType:
            # Reading such a key works; resolving the whole tree fails on a list or a map that a resolver gives.
            return OmegaConf.to_container(composed(), resolve=True)
        return OmegaConf.to_container(config)

    printed = answer(lambda: OmegaConf.to_yaml(composed()))
    if printed is None or "error" in printed:
        return printed
    result = answer(resolved)
    return None if result is None else {"yaml": printed["ok"], **result}


def override_row():
    text = mutate(override(), "a1=.,[]{}()'\"\\ $:+~#é")
    # The empty key is the whole configuration to Hydra's grammar, and nothing to its loader.
    if not text.lstrip("+~").split("=")[0].split("@")[0]:
        return None
    return ["override", text, answer(lambda: parse_override(text))]


def document_row():
    text = mutate(document(), "a :-#'\"[]{},\n\t&*!|>?%1")
    try:
        if has_surprise(text, load(text)):
            return None
    except Exception:  # noqa: BLE001, an error is an answer
        pass
    return ["document", text, answer(lambda: load(text))]


def config_row():
    text = config()
    overrides = [config_override() for _ in range(pick(0, 1, 1, 2, 3))]
    return ["config", text, overrides, compose(text, overrides)]


def collect(num_rows, make):
    """Rows without repetition, a third of them errors: chance alone makes many more."""
    rows, num_errors = {}, 0
    while len(rows) < num_rows:
        row = make()
        if row is None or row[-1] is None or json.dumps(row[1:-1]) in rows:
            continue
        if "error" in row[-1]:
            if num_errors >= num_rows // 3:
                continue
            num_errors += 1
        rows[json.dumps(row[1:-1])] = row
    return rows.values()


def main():
    sys.setrecursionlimit(3000)
    os.environ.update(GOLDEN_SET="value", GOLDEN_NUMBER="12")
    os.environ.pop("GOLDEN_UNSET", None)
    OmegaConf.register_new_resolver("multiply", lambda x, y: x * y)
    OmegaConf.register_new_resolver("int_div", lambda x, y: x // y)
    OmegaConf.register_new_resolver("subtract", lambda x, y: x - y)
    OmegaConf.register_new_resolver("sum", lambda x, y: x + y)
    rows = [*collect(NUM_OVERRIDES, override_row), *collect(NUM_DOCUMENTS, document_row), *collect(NUM_CONFIGS, config_row)]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    (HERE / "generated.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind in ("override", "document", "config"):
        chosen = [row[-1] for row in rows if row[0] == kind]
        print(kind, len(chosen), "rows,", sum("error" in row for row in chosen), "errors")


if __name__ == "__main__":
    main()
