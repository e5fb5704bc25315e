"""Writes the golden tables beside this file with hydra-core 1.3.2 and omegaconf 2.3.0.

    python make_golden.py

A row is one JSON array on one line: the inputs, then {"ok": result} or {"error": kind}.
A row that no 64-bit integer can hold is left out. A float is written {"$f": repr}, so that it cannot be taken for an
integer.
"""
import io
import json
import os
import random
import warnings
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import UnsupportedValueType

warnings.simplefilter("ignore")
HERE = Path(__file__).parent
INT64 = 2**63


def encode(value):
    if isinstance(value, float):
        return {"$f": repr(value)}
    if isinstance(value, dict):
        return {key_text(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -INT64 <= value < INT64:
        raise OverflowError
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(type(value))


def key_text(key):
    # Keys are strings in the Rust tree; the text is the scalar as YAML prints it.
    if isinstance(key, str):
        return key
    if key is None:
        return "null"
    if isinstance(key, bool):
        return str(key).lower()
    return str(key)


def answer(function):
    try:
        return {"ok": encode(function())}
    except OverflowError:
        return None
    except Exception as error:  # noqa: BLE001, every refusal counts
        return {"error": type(error).__name__}


def write(name, rows):
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    errors = sum("error" in row[-1] for row in rows)
    print(f"{name}: {len(rows)} rows, {errors} of them errors")


# ---------------------------------------------------------------- overrides
PARSER = OverridesParser.create()
KINDS = {"CHANGE": "set", "ADD": "add", "FORCE_ADD": "force_add", "DEL": "delete"}


def parse_override(text):
    override = PARSER.parse_override(text)
    if override.is_sweep_override():
        raise ValueError("sweep")
    return [KINDS[override.type.name], override.key_or_group, override.package, override.value()]


VALUES = r"""
1 -1 +5 0 -0 007 012 00 0x10 1_000 1_0 1__0 1_ _1 1a 1:2 1:00:00:00 10GB 1.5.2
1e3 9e-6 1e-5 5e3 5E+3 .5 1. -1.5 +.5 1_0.5 1.5_0 1e400 1e 1e+ inf -inf +inf INF Inf nan NaN -nan infinity .inf
true True TRUE tRuE true1 True1 false FALSE False yes no on off Y null NULL Null nUll nullx ~ ???
foo foo-bar foo_bar foo.bar foo! foo? foo* a@b a|b a%b a$b $x a+b -- - + . .. / /p/x ./x ../x a/b
s3://b/c http://h:1/x http://h:1/x?y=z x:y : a: :a ::
'' "" 'x' "x" 'null' "1" "true" 'it\'s' "it's" 'a"b' "a\"b" "\\" '\\' 'x\\y' "\n" "\x0A" "a\\\"b" "a\\\\" "\\\"" 'x"y'z "a""b" 'a' "a" "unclosed 'unclosed "x\" '<|endoftext|>' "<extra_id_1>" "日本" "a=b" "a,b" 'a:b' "{x}" "[x]"
<extra_id_1> <|endoftext|> <s> # a#b ; a;b é 日本 ~/x x=y = == ! a! ` ^ & >
${b} ${b.c} x${b}y ${b}${c} ${b ${} ${.x} ${..x} ${oc.env:HOME} ${oc.env:HOME,x} ${int_div:${x},2} "${int_div:${x},2}" '${int_div:${x},2}' $ $$ ${ } \${x}
a\,b a\ b a\:b a\=b \[x\] \{x\} \(x\) \\ \\\\ \a \\a a\\b \, \" \' x\\,y \:1 1\, \,1
[] [1] [1,2] [1,2,] [,] [,1] [1,,2] [a,b] [[1],[2]] [[]] [a [ ] a] [1]] [a,'b',"c"] [null,true,1.5,foo,"1"] [<s>] ['<s>',"</s>"] [{a:1},{b:2}] [${a},x] [a=b] [a:b] [1]x x[1] [''] [1.,.5]
{} {a:1} {a:1,b:2} {a:1,} {a} {a:} {a:1:2} {a:[x]} {a:{b:c}} {'a':1} {"a":1} {a:'x'} {1:x} {null:x} {true:x} {1.5:x} {a.b:1} {a:1,a:2} {a-b:1} {${a}:1} {a:${b}} {a:1}x {,} {:} {a:b:c} {x y:1} {a\:b:1} {a:} {@:1}
(1) () a(1) foo(1) str(1) str(1.5) str(1e-5) str(1e20) str(true) str(null) str('x') str("1") str([1,2]) str({a:1}) str() str(1,2) str(value=1) str(1e16) str(inf)
int(1) int(2.7) int(-2.7) int('3') int("3.5") int(true) int(null) int(x) int(1_0) int([1.5,2]) int(' 3 ') int('1_000') int('0x10') int('+3') int(inf) int()
float(1) float('3') float(true) float(x) float('inf') float('1e3') float('1_0') float(null) float([1,2]) float('nan')
bool(1) bool(0) bool("true") bool('False') bool(x) bool(1.5) bool(0.0) bool([1,0]) bool(null) bool('yes') bool({a:1})
choice(1,2) choice() choice(a) range(0,3) range(3) glob(*) interval(0,1) shuffle(a,b) sort(3,1) tag(t,choice(a,b)) json_str('{}') str(choice(1,2)) extend_list(1) int(range(1,3)) int(interval(1,2))
1,2 a,b a, ,a , [1],[2] 'a','b' str(1)str int(int(1.5)) str(int(1.5)) [str(1),int(2.5)] {a:str(1)}
""".split()
SPACED = [
    "", " ", "  1 ", "\t1", "1\t", "a b ", " a  b", "1 2", "null x", "x null", "true false", "/p/x y.jsonl", "a\nb", "'a\nb'",
    "[ 1 , 2 ]", "[a b, c d]", "{ a : 1 , b : 2 }", "{a: b c}", "str( 1 )", "str (1)", "int ( 2.7 )", "[1, null,foo ]",
    "a , b", " 'x' ", "'x' y", "x 'y'", "'a' 'b'", "${a} ${b}", " ${a}", "a\\ ", "\\ a", "a\\ \\ b", "a\\\tb", "1 ,", "[ ]", "{ }", "[a ]",
    "{a b:1}", "[' a ']", "a :b", "a: b", "a = b", "x (1)", "str(a b)", "str(1, 2)", "choice(a, b)", "hello world, again", "\"a\" ", "[\n1]",
    "a\u00a0b", "1.5 ", " -1", "- 1", "+ 1", "( )", "()", "a ", "\\", "a\\", "a \\", "\\ ", "nan ", "null ", " true", "[1 2]", "{a:1 b:2}", "[1] ", "{} ", "str(1) ", " [1]", "'' ", "${a} ", "a\\, ", "str(value = 1)", "int(value='3')", "str(other=1)",
]
ARGUMENTS = [
    "a", "a.b=1", "a.b.c=x", "a.0.b=1", "a.0=1", "0=1", "0.a=1", "a.01=1", "a[0]=1", "a.[0]=1", "a b=1", " a=1", "a =1", "a= 1", "a.=1", ".a=1",
    "a..b=1", "=1", "", "=", "a==1", "a= =1", "a-b=1", "a_b=1", "_a=1", "-a=1", "$a=1", "a$b=1", "a$=1", "$=1", "1a=1", "a1=1", "é=1", "a.é=1",
    # The keys and values of NeMo's documentation and scripts.
    "a=9e-6", "a=['<|endoftext|>','<extra_id_1>']", "a=[\"<|endoftext|>\"]", "a=[<s>]", "a=http://h:1/x?y=z", "a=\"\\x0A\"", "a=$x", "a=~/x", "a=foo!", "a=10GB", "db/x=y", "a@b=c", "hydra.output_subdir=null", "hydra/job_logging=stdout", "hydra.run.dir=.",
    "tp_overlap@model.ub_tp_comm_overlap_cfg=x", "++model.data.chat_prompt_tokens.end_of_name=\"\n\n\"", "++model.generation.sampling_params.end_strings=[\"<|eot_id|>\"]", "++model.generation.sampling_params.end_strings=[\"\\<\\|eot_id\\|\\>\"]",
    "++model.x=${int_div:${model.y},2}", "++model.x='${int_div:${model.y},2}'", "pretrained_checkpoint.restore_from_path=\"/p/x.nemo\"", "a@=1", "a@b@c=1", "a/b@c.d=1", "a/b/c=1", "a/b.c=1", "a.b/c=1", "+a/b=1", "~a/b", "~a@b", "++a/b=1", "a@b.c-d=1", "a@1=x", "a@b.1=x", "a@:b=x",
    "a.1b=1", "a.b-c=1", "a.-b=1", "a.$b=1", "a:b=1", "'a'=1", "\"a\"=1", "a,b=1", "a\\.b=1", "a/=1", "/a=1",
    "+a=1", "++a=1", "+++a=1", "+a", "++a", "+ a=1", "+=1", "+a.b=1", "++a.b=c", "+a=", "++a=", "+a={}", "++a=[1]",
    "~a", "~a=1", "~a.b", "~a.b=x", "~a=", "~", "~=1", "~~a", "~+a", "+~a=1", "~a b", "~ a", "~a[0]", "~a=null", "~a={b:1}", "~a=1,2",
    "a=a=b", "a=b=", "a =", "a\t=1", "a=\n", "a=\r\n", "a\n=1", "key=val\\", "a.b.0.c.1=2", "null=1", "true=1", "inf=1", "a.null=1", "a.1=1", "a.1_0=1", "a.1__0=1", "1.5=x", "1.2.3=x",
]


def override_rows():
    random.seed(20240611)
    tokens = (
        "a b1 x_y 1 0 12 1.5 e5 inf null true . - + / \\ * ? | : = , , [ ] { } ( ) ' \" ' \" ${b} ${ \\, \\\\ \\\" \\' "
        "int( str( bool( < # é _ @ $ %".split() + [" ", "  ", "\t", "\\ "]
    )
    texts = [f"a={value}" for value in VALUES + SPACED] + ARGUMENTS
    texts += ["a=" + "".join(random.choices(tokens, k=random.randint(1, 6))) for _ in range(700)]
    closed = ["a b 1 null 'x' \"y\" ${k} [] {} [1] {a:1} x\\,y 1.5 true a:b str(1)".split()][0]
    for _ in range(150):
        items = [random.choice(["", " "]) + random.choice(closed) + random.choice(["", " "]) for _ in range(random.randint(1, 3))]
        texts.append("a=[" + ",".join(items) + "]")
        texts.append("a={" + ",".join(f"k{index}:{item}" for index, item in enumerate(items)) + "}")
    keys = "a b1 _c $d 0 12 01 . . . - / @ + ~ x-y".split()
    texts += ["".join(random.choices(keys, k=random.randint(1, 5))) + "=1" for _ in range(150)]
    rows = []
    for text in dict.fromkeys(texts):
        key = text.lstrip("+~").split("=")[0]
        # The empty key is the whole configuration to Hydra's grammar, and nothing to its loader.
        if not key.split("@")[0]:
            continue
        result = answer(lambda: parse_override(text))
        if result is not None:
            rows.append([text, result])
    return rows


# ---------------------------------------------------------------- YAML
SCALARS = r"""
yes Yes YES yEs no No NO on On ON off Off OFF y Y n N true True TRUE tRue false False FALSE
~ null Null NULL nULL none None
0 1 -1 +1 00 01 017 -017 +017 08 09 018 0777 0o17 0b1 0b101 -0b11 0b12 0b 0B1 0x1F 0x1f -0xff 0xG 0x 0X1F 1_000 1__0 1_ _1 0_7 0b1_0 0x_1 0_ 0x__ 0b_
1:30 1:30:00 01:30 0:04:00:00 00:03:30:00 1:60 1:5 1:05 -1:30 +1:30 1:30.5 1:30: 1:2:3 190:20:30 1_0:30 12:30:45.5 -1:30.5 01:30.25 1:300 1:30.
1.0 1. .5 0.5 -.5 +.5 1e5 1E5 1e-5 9e-6 1.0e-05 1.e5 .5e3 .5e+3 .5E-3 1e+5 -1e5 +1e5 1_0e5 1_0.5 1.5_0 1._5 1__0.5 1_.5 1e5_0 1e 1e+ e5 e 1.5e 1.5.5 01.5 01e5 00.5 0e0 1e400 -1e400
.inf .Inf .INF -.inf +.inf -.Inf +.INF .iNf inf -inf Inf .nan .NaN .NAN .Nan -.nan nan NaN
2023-01-02 2023-01-02T10:00:00 12:00 1-2 1.2.3 1,000 1/2 5% $x ${a.b} ${a} a${b}c \${x} ??? ?? ?x = == << <<a - -- --- -a -1- + ++ . .. ... .a
foo foo-bar foo_bar foo.bar a:b :a a#b #a @a `a %a !a !!str &a *a |a >a 'a' "a" '' "" 'it''s' "it's" "a\nb" "\x0A" '\x0A' "\u00e9" "\t" "\q" '\q' "\\" 'a"b' "a\"b" "1" '1' "null" 'yes' !!str yes
é 日本 <|endoftext|> <s> "<s>" [] {} [1,2] [a,[b]] {a:1} {a:} [a,] [1] [yes,no] [~] ['a',"b"] [a:b] 1e3 1d5 0.1f 1_000_000 9223372036854775807 -9223372036854775808 4294967296
nemo:0123456789_tokenizer.model 900,50,50 s3://b/c http://h:1/x?y=z C:\x /p/x a=b a,b a{b a}b a[b a]b {a [a a] a}
""".split()
SPACED_SCALARS = [
    "a b", "a  b", "a # c", "a #c", "1 # c", "!!str 1", "!!str yes", "!!int '3'", "!!float 1", "!!float '1.5'", "!!bool 'yes'", "!!null ''", "!!int x", "!x y", "!!set {a}", "!!binary aGk=",
    "{a: 1}", "{a: 1, b: [x, y]}", "{a: 1, a: 2}", "[a, b]", "[1, 2, ]", "{a: 1, }", "[ ]", "{ }", "{a b: c d}", "[a b, 'c d']", "{\"a\": 1}", "{\"a\":1}", "{a, b}", "{1: x}", "{true: x}", "{null: x}", "{1.5: x}",
    "'a  b'", "\"a  b\"", "'a\n  b'", "\"a\n  b\"", "\"a\\\n  b\"", "|\n  a\n  b", "|-\n  a\n  b", "|+\n  a\n\n", ">\n  a\n  b", ">-\n  a\n\n  b", "|2\n   a", "a\n  b", "a\n\n  b", "\n  a", "", " ", "a: b", "- a", "? a", "\n- a", "\n  - a\n  - b", "\n- a\n- b", "\n  b: 1\n  c: 2",
    "\n- - 1\n  - 2", "\n-\n  a: 1", "\n- a: 1\n  b: 2", "1 2", "null x", "true x", "1:30 x", "1e5 # n", "'x' # n", "@x", "%x", "a: ", "a\t", "\ta", "a\tb", "\"\\u65e5\\n\\0\\e\\\"\"", "\"\\/\"", "''''", "'", "\"", "'a", "\"a", "'a'b", "\"a\"b",
]
DOCUMENTS = [
    "", "\n", "# c\n", "---\n", "--- \na: 1\n", "---\na: 1\n...\n", "a: 1\n---\nb: 2\n", "%YAML 1.1\n---\na: 1\n", "%YAML 1.2\n---\na: yes\n", "null\n", "~\n", "1\n", "abc\n", "- 1\n- 2\n", "[1, 2]\n", "{a: 1}\n", "true\n", "1.5\n", "'x'\n",
    "a: 1\na: 2\n", "a: {b: 1, b: 2}\n", "a: 1\n'a': 2\n", "1: a\n1: b\n", "a:\n  b: 1\n  c: 2\nd:\n- 1\n- 2\n", "a:\n b: 1\n  c: 2\n", "a: 1\n b: 2\n", "a:\n- 1\n - 2\n", "a: b: c\n", "a\nb: 1\n", "a: 1\nb\n", "\ta: 1\n", "a:\n\tb: 1\n", "a:1\n", "a : 1\n", "? a\n: 1\n", "? a\n", "? [a]\n: 1\n", "[a]: 1\n",
    "b: 1\na: 2\nc: 3\n", "yes: 1\nno: 2\n", "null: 1\n", "~: 1\n", "1.5: x\n", "0x10: x\n", "1_0: x\n", "'1': x\n", "on: x\n", "1e5: x\n", "'yes': 1\n", "? ''\n: 1\n", "'': 1\n", "a.b: 1\n", "a b: 1\n",
    "base: &b {p: 1, q: 2}\nm:\n  <<: *b\n", "base: &b {p: 1, q: 2}\nm:\n  <<: *b\n  p: 3\n", "base: &b {p: 1, q: 2}\nm:\n  p: 3\n  z: 0\n  <<: *b\n", "x: &x {p: 1}\ny: &y {p: 2, q: 3}\nm:\n  <<: [*x, *y]\n  r: 4\n", "x: &x {p: 1}\nm: {<<: *x, q: 1}\n", "m: {<<: 1}\n", "m: {<<: [1]}\n", "m: {<<: {a: 1}}\n", "m: {'<<': {a: 1}}\n", "m: {<<: {a: 1}, <<: {b: 2}}\n", "m:\n  <<: null\n",
    "x: &x {p: 1}\ny: &y {<<: *x, q: 2}\nm: {<<: *y, r: 3}\n", "a: &a 1\nb: *a\n", "a: &a [1, 2]\nb: *a\nc: [*a, *a]\n", "a: *nope\n", "a: &a 1\nb: &a 2\nc: *a\n", "&k a: 1\nb: *k\n", "a: &a\nb: *a\n", "a: &a !!str 1\nb: *a\n",
    "a: |\n  x\n   y\n  z\nb: 1\n", "a: >\n  x\n  y\n\n  z\nb: 1\n", "a: \"x\n  y\n\n  z\"\n", "a: 'x\n\n  y'\n", "a: x\n  y\n  z\n", "a:\n\n  - 1\n\n  - 2\n", "a: [1,\n  2,\n  3]\n", "a: {b: 1,\n  c: 2}\n", "a: [\n  1,\n]\n", "a: # c\n  b: 1 # d\n", "a: 'x' # c\n", "a: [1 # c\n  ]\n",
    "a:\n", "a:\nb:\n", "a: ''\n", "a: []\nb: {}\n", "a: ???\n", "a: ${b}\nb: 1\n", "a: ${b\n", "a: '${b'\n", "a: ${b.c}-${d}\n", "\ufeffa: 1\n", "a: 1\r\nb: 2\r\n", "a: 1\n\n\n", "a: [1\n", "a: {b\n", "a: ]\n", "a: }\n", "]\n", "}\n", "a: \"\n", "a: '\n", "- a\nb: 1\n", "a: 1\n- b\n", "a: - b\n",
    "defaults:\n  - optional tp_overlap@model.ub_tp_comm_overlap_cfg:\n  - _self_\na: 1\n", "a: !!str 1\nb: !!int '2'\n", "a: !!python/object:os.system x\n", "a: !!map {b: 1}\n", "a: !!seq [1]\n", "!!map {a: 1}\n", "a: !local x\n", "a: !<tag:yaml.org,2002:str> 1\n", "a: \x00\n", "a: \x01\n", "a: \x7f\n", "a: \u0085b\n", "a: \u2028b\n",
]


def load(text):
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))


def yaml_rows():
    texts = [f"k: {scalar}\n" for scalar in SCALARS + SPACED_SCALARS] + [f"k: [{scalar}]\n" for scalar in SCALARS] + DOCUMENTS
    rows = []
    for text in dict.fromkeys(texts):
        result = answer(lambda: load(text))
        if result is not None:
            rows.append([text, result])
    return rows


# ---------------------------------------------------------------- to_yaml
def emit_rows():
    random.seed(7)
    words = [scalar for scalar in SCALARS if not scalar.startswith(("${",))]
    strings = [word.replace("${", "$") for word in words + SPACED_SCALARS]
    strings += ["\n", "a\nb", "a\n\nb", "\na", "a\n", " a", "a ", "a \nb", "a\n b", "\x00", "\x1b", "\x7f", "\u0085", "\u00a0", "\u2028", "\ufeff", "\U0001f600", "é" * 50, "x" * 200, "word " * 40, ("word " * 40).strip(), "a: " * 40, "'q' " * 40, "tab\there", "\\", "it's", "\"q\"", "1_000", "0x_", "1e5 ", " 1", "infinity", "Infinity", "-inf", "NAN", "1_0.0", "=", "<<", "end with:", "a :b", "a #b", "a# b", "-", "- a", "?", "? a", ":", ": a", "[", "]", "{", "}", ",", "a, b", "--- a", "---a", "...", "....", "%", "@", "`", "!", "&", "*", "|", ">", "long " * 15 + "'quoted' " + "tail " * 10, ("x" * 70 + " ") * 3, "a" * 79 + " b", "é " * 60, "line one " * 12 + "\n" + "line two " * 12, "\t" + "w " * 60, "\t" + "x" * 100, "\x01 " * 40]
    for _ in range(250):
        strings.append("".join(random.choices("ab 1.:#-'\"\n\té日?{}[],&*!|>%@`~=<\\_e+", k=random.randint(1, 14))))
    for _ in range(60):
        strings.append("".join(random.choices("abc    :#'\"\té日", k=random.randint(70, 260))))
    trees = [{"k": text} for text in strings] + [{text: 1} for text in strings[:330] if len(text) < 100] + [{"a": {"b": [text, {"c": text}]}} for text in strings[-90:]]
    for number in [0, 1, -1, 2**62, 0.0, -0.0, 1.0, 0.1, 1e-5, 1e-4, 1.5e-7, 1e15, 1e16, 1e17, 1.5e20, 123456789.123, 1e22, 1e300, 5e-324, float("inf"), float("-inf"), float("nan"), 0.02, 2.0e-05, 10000.0, 1 / 3]:
        trees.append({"k": number})
    trees += [{}, [], {"a": None, "b": True, "c": False, "d": {}, "e": []}, {"a": [[1, 2], [3]], "b": [[[]]], "c": [{}], "d": [{"x": 1, "y": [1]}, {"z": {"w": 1}}]}, [1, "a", [2]], {"a": {"b": {"c": {"d": [1, {"e": [2]}]}}}}, [{"a": 1}, [{"b": [1]}]], {"x" * 130: 1}, {"long key " * 15: 1}, {"a": {"x" * 130: [1]}}, [{"x" * 130: 1}]]
    rows = []
    for tree in trees:
        try:
            rows.append([encode(tree), {"ok": OmegaConf.to_yaml(OmegaConf.create(tree))}])
        except Exception:  # noqa: BLE001, a tree that OmegaConf cannot hold has no text
            continue
    return rows


# ---------------------------------------------------------------- overrides applied
BASE = """
s: 1
f: 1.5
t: text
n: null
m: ???
i: ${s}
l: [1, 2]
d: {a: 1, b: {c: 2, e: [1]}}
empty: {}
"""
APPLIED = [
    ["s=2"], ["s=x"], ["s=null"], ["s=[1]"], ["s={a:1}"], ["s={}"], ["s="], ["n=1"], ["m=1"], ["i=5"], ["i=${f}"], ["x=1"], ["d.x=1"], ["d.b.x.y=1"], ["x.y=1"], ["s.x=1"], ["n.x=1"], ["m.x=1"],
    ["l=[3]"], ["l=[]"], ["l=5"], ["l={a:1}"], ["l.0=9"], ["l.2=9"], ["l.x=9"], ["l.0.x=9"], ["+l.2=9"], ["++l.0=9"], ["++l.5=9"], ["d={a:5}"], ["d={b:{c:9}}"], ["d={x:1}"], ["d={b:{x:1}}"], ["d={}"], ["d=null"], ["d=1"], ["d=[1]"], ["d.b={c:1,e:[7]}"], ["empty={a:1}"], ["empty={}"], ["empty.a=1"],
    ["+x=1"], ["+x.y.z=1"], ["+s=2"], ["+s=1"], ["+n=1"], ["+m=1"], ["+i=1"], ["+l=[9]"], ["+l=9"], ["+d={a:7}"], ["+d={x:1}"], ["+d={b:{x:1}}"], ["+d=1"], ["+d.x=1"], ["+d.a=1"], ["+s={a:1}"], ["+s=[1]"], ["+x={}"], ["+x=[]"], ["+empty={a:1}"], ["+empty.a=1"], ["+x=null"], ["+s.x=1"], ["+n.x=1"], ["+l={a:1}"], ["+d=[1]"],
    ["++x=1"], ["++s=2"], ["++x.y=1"], ["++d={x:1}"], ["++d={b:{x:1}}"], ["++d=1"], ["++l=[9]"], ["++s={a:1}"], ["++s.x=1"], ["++n.x=1"], ["++l={a:1}"], ["++d.b=null"], ["++m=???"], ["++s=???"],
    ["~s"], ["~x"], ["~d.a"], ["~d.x"], ["~d"], ["~n"], ["~m"], ["~i"], ["~s=1"], ["~s=2"], ["~s=1.0"], ["~s=true"], ["~f=1.5"], ["~t=text"], ["~t=x"], ["~l=[1,2]"], ["~l=[1]"], ["~d={a:1}"], ["~d.b={c:2,e:[1]}"], ["~l.0"], ["~l.5"], ["~x.y"], ["~s.x"], ["~n=null"], ["~s=null"], ["~s="], ["~i=1"], ["~empty"], ["~d.b.e"],
    ["s=2", "s=3"], ["+x=1", "x=2"], ["+x=1", "+x=2"], ["~s", "+s=5"], ["~s", "s=5"], ["+x={a:1}", "x.a=2"], ["+x={a:1}", "x.b=2"], ["s={a:1}", "s.a=2"], ["d=null", "d.a=1"], ["d=null", "+d.a=1"], ["l=[1,2,3]", "l.2=4"], ["s=???"], ["d.a=???"], ["d={a:???}"], ["l=???"], ["d=???"], ["++d=null", "++d.x=1"],
]


def apply(base, overrides):
    config = OmegaConf.create(base)
    OmegaConf.set_struct(config, True)
    ConfigLoaderImpl._apply_overrides_to_config(PARSER.parse_overrides(overrides), config)
    return OmegaConf.to_container(config)


# ---------------------------------------------------------------- merging
MERGES = [
    ("a: 1", "a: 2"), ("a: 1", "b: 2"), ("a: {b: 1}", "a: {c: 2}"), ("a: {b: 1}", "a: 5"), ("a: {b: 1}", "a: null"), ("a: {b: 1}", "a: {}"), ("a: {b: 1}", "a: [1]"), ("a: 1", "a: {b: 1}"), ("a: null", "a: {b: 1}"), ("a: [1, 2]", "a: [3]"), ("a: [1]", "a: []"), ("a: [1]", "a: {b: 1}"), ("a: [1]", "a: 5"), ("a: [1]", "a: null"), ("a: [1]", "a: {}"),
    ("a: 1", "a: ???"), ("a: null", "a: ???"), ("a: {b: 1}", "a: ???"), ("a: [1]", "a: ???"), ("a: ???", "a: ???"), ("a: ???", "a: 1"), ("a: ???", "a: {b: 1}"), ("a: ???", "a: [1]"), ("b: 1", "a: ???"), ("a: '${b}'\nb: 1", "a: ???"), ("a: '${b}'\nb: 1", "a: 5"), ("a: '${b}'\nb: {c: 1}", "a: {d: 2}"), ("a: '${b}'\nb: 1", "a: {d: 2}"), ("a: 1\nb: 2", "a: '${b}'"), ("a: {c: 1}\nb: 2", "a: '${b}'"), ("a: {b: {c: 1, d: 2}}", "a: {b: {d: 3, e: 4}}"), ("a: {b: [1, {c: 1}]}", "a: {b: [{c: 2}]}"), ("{}", "a: 1"), ("a: 1", "{}"), ("b: 1\na: 2", "a: 3\nb: 4\nc: 5"), ("a:\n  b: ???", "a: {b: 1}"), ("a: {b: 1}", "a:\n  b: ???"), ("a: {}", "a: [1]"), ("a: [1]", "a:\n- ???"),
]

# ---------------------------------------------------------------- interpolation
RESOLVED = [
    "a: 1\nb: ${a}", "a: 1.5\nb: ${a}", "a: true\nb: ${a}", "a: null\nb: ${a}", "a: x\nb: ${a}", "a: [1]\nb: ${a}", "a: {c: 1}\nb: ${a}", "a: {c: 1}\nb: ${a.c}", "a: [1, 2]\nb: ${a.1}", "a: [1, 2]\nb: '${a[1]}'", "a: {c: 1}\nb: '${a[c]}'", "a: [{x: 1}]\nb: ${a.0.x}", "a: [{x: 1}]\nb: '${a[0].x}'",
    "a: 1\nb: x${a}", "a: 1\nb: ${a}x", "a: 1\nb: ' ${a}'", "a: 1\nb: ${a}${a}", "a: 1.0\nb: x${a}", "a: 1.0e-05\nb: x${a}", "a: 1.0e+20\nb: x${a}", "a: 10000000000000000.0\nb: x${a}", "a: true\nb: x${a}", "a: null\nb: x${a}", "a: .inf\nb: x${a}", "a: .nan\nb: x${a}", "a: [1]\nb: x${a}", "a: {c: 1}\nb: x${a}",
    "g: {m: 3, e: '${.m}'}", "g: {m: 3}\nt: {m: '${..g.m}'}", "g: {m: 3}\nt: {u: {m: '${...g.m}'}}", "a: ${.b}\nb: 1", "a: ${..b}\nb: 1", "g: {l: ['${..m}'], m: 3}", "g: {l: [1, '${.0}']}", "g: {l: ['${.1}', 5]}", "g: {l: [{x: '${.y}', y: 2}]}", "g: {l: [{x: '${..1}'}, 4]}",
    "a: ${b}\nb: ${c}\nc: 1", "a: ${b}\nb: ${a}", "a: ${a}", "a: ${nope}", "a: ${b.c}\nb: 1", "a: ${b.c}\nb: {d: 1}", "a: ???\nb: 1", "a: ???\nb: ${a}", "a: ???\nb: x${a}", "a: {b: ${a.c}, c: 1}".replace("${a.c}", "'${a.c}'"), "a: {b: '${a}'}",
    "k: x\na: {x: 7}\nb: '${a.${k}}'", "k: a\na: {x: 7}\nb: '${${k}.x}'", "k: a.x\na: {x: 7}\nb: '${${k}}'", "a: {x: 1}\nb: ${a}\nc: ${b.x}", "a: {x: '${y}'}\ny: 3\nb: ${a}", "a: {x: '${.z}', z: 5}\nb: ${a}", "a: {x: '${.z}', z: 5}\nz: 9\nb: ${a.x}", "a: {x: '${.z}', z: 5}\nb: {q: '${a.x}'}",
    r"a: '\${x}'", r"a: 'p\${x}q'", r"a: '\\${b}'" + "\nb: 1", r"a: '\\\${b}'" + "\nb: 1", r"a: 'x\\y'", r"a: 'x\y${b}'" + "\nb: 1", r"a: '\\x${b}'" + "\nb: 1", r"a: '${b}\'" + "\nb: 1", r"a: '\${b}${b}'" + "\nb: 1", r"a: 'x\\${b}'" + "\nb: 1",
    "a: '${'", "a: '${}'", "a: '${ b }'\nb: 1", "a: '${b'", "a: '$b'", "a: '$ {b}'", "a: '${b}}'\nb: 1", "a: '{${b}}'\nb: 1", "m: v\nf: 'm--{${m}:.3f}-{step}'", "a: '${b c}'\n'b c': 1", "a: '${b-c}'\nb-c: 1", "a: '${b.}'\nb: 1", "a: '${.}'", "a: '${b..c}'\nb: {c: 1}", "a: '${1}'\n'1': 5", "a: '${b:}'",
    "a: '${multiply:3,4}'", "a: '${multiply:3,1.5}'", "a: '${multiply: 3 , 4 }'", "a: '${multiply:3}'", "a: '${multiply:1,2,3}'", "a: '${multiply:x,2}'", "a: '${multiply:x,y}'", "a: '${multiply:${b},${c}}'\nb: 3\nc: 4", "a: '${multiply:${.b},2}'\nb: 3", "a: '${multiply:true,2}'", "a: '${multiply:null,2}'",
    "a: '${int_div:7,2}'", "a: '${int_div:-7,2}'", "a: '${int_div:7,-2}'", "a: '${int_div:-7,-2}'", "a: '${int_div:7.0,2}'", "a: '${int_div:7,2.0}'", "a: '${int_div:-7.5,2}'", "a: '${int_div:1,0}'", "a: '${int_div:1.0,0}'", "a: '${int_div:1,0.1}'", "a: '${int_div:6,2}'", "a: '${int_div:0,5}'", "e: 4096\nm: '${int_div:${e},2}'\ni: '${subtract:${e}, ${m}}'",
    "a: '${subtract:5,7}'", "a: '${subtract:5.5,2}'", "a: '${sum:5,7}'", "a: '${sum:5,0.5}'", "a: '${sum:x,y}'", "a: '${subtract:${multiply:2,3},${int_div:9,2}}'", "a: 'x${multiply:2,3}y'", "a: '${multiply:${multiply:2,${multiply:1,2}},3}'",
    "a: ???\nb: '${multiply:${a},2}'", "a: ???\nb: {c: '${a}'}", "a: {b: ???}\nc: ${a.b}".replace("{b: ???}", "\n  b: ???"), "a: '${oc.env:GOLDEN_SET}'", "a: '${oc.env:GOLDEN_UNSET}'", "a: '${oc.env:GOLDEN_UNSET,me}'", "a: '${oc.env:GOLDEN_UNSET,1}'", "a: '${oc.env:GOLDEN_UNSET,null}'", "a: '${oc.env:GOLDEN_UNSET,\"a, b\"}'", "a: '${oc.env:GOLDEN_UNSET,${b}}'\nb: x", "a: '${oc.env:GOLDEN_UNSET,/p/x}'", "a: '${oc.env:GOLDEN_NUMBER}'", "a: '${oc.env:GOLDEN_UNSET,}'", "a: '${oc.env:GOLDEN_UNSET,1.50}'", "a: '${oc.env:GOLDEN_UNSET,true}'", "a: '${oc.env:GOLDEN_UNSET,''x y''}'", "a: '/d/${oc.env:GOLDEN_SET}/x'", "a: '${oc.env:GOLDEN_UNSET,x:y}'",
    "a: '${oc.select:nope,3}'", "a: '${oc.select:nope}'", "a: '${oc.select:b}'\nb: 5", "a: '${oc.select:b,9}'\nb: null", "a: '${oc.select:b,9}'\nb: ???", "a: '${oc.select:b.c,9}'\nb: {c: 4}", "a: '${oc.select:b.d,9}'\nb: {c: 4}", "a: '${oc.select:b.d,${b.c}}'\nb: {c: 4}", "a: {x: '${oc.select:.y,1}', y: 2}",
    "a: '${oc.decode:12}'", "a: '${oc.decode:\"12\"}'", "a: '${oc.decode:${oc.env:GOLDEN_NUMBER}}'", "a: '${oc.decode:null}'", "a: '${oc.decode:\"[1,2]\"}'", "a: '${oc.decode:\"{a:1}\"}'", "a: '${oc.decode:\"x y\"}'", "a: '${oc.decode:\"1e-5\"}'", "a: '${oc.decode:\"${b}\"}'\nb: 4", "a: '${oc.decode:${b}}'\nb: '0.5'", "a: '${oc.decode:\"null\"}'", "a: '${oc.decode:\"true\"}'", "a: '${oc.decode:${b}}'\nb: '[1, x]'",
    "a: '${nope:1}'", "a: '${oc.nope:1}'", "a: '${id:1}'", "a: '${id:x}'", "a: '${id:x y}'", "a: '${id:1.5}'", "a: '${id:\"1\"}'", "a: '${id:null}'", "a: '${id:true}'", "a: '${id:1_000}'", "a: '${id:012}'", "a: '${id:1e-5}'", "a: '${id:inf}'", "a: '${id: x }'", "a: '${id:[1,2]}'", "a: '${id:{x:1}}'", "a: '${id:[1,${b}]}'\nb: 2", "a: '${id:a\\,b}'", "a: '${id:/p/x.y}'", "a: '${id:x:y}'", "a: '${id:''q''}'", "a: '${id:x${b}y}'\nb: 2", "a: '${id:<s>}'", "a: '${id:\"<s>\"}'", "a: '${id:\"${b}\"}'\nb: 2", "a: '${id:\"x${b}\"}'\nb: 2", "a: '${id:\"\\${b}\"}'\nb: 2",
]


def resolve(text):
    config = OmegaConf.create(text)
    try:
        OmegaConf.resolve(config)
    except UnsupportedValueType:
        # Reading such a key works; resolving the whole tree fails on a list or a map that a resolver gives.
        return OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return OmegaConf.to_container(config)


def main():
    os.environ["GOLDEN_SET"] = "value"
    os.environ["GOLDEN_NUMBER"] = "12"
    os.environ.pop("GOLDEN_UNSET", None)
    OmegaConf.register_new_resolver("multiply", lambda x, y: x * y)
    OmegaConf.register_new_resolver("int_div", lambda x, y: x // y)
    OmegaConf.register_new_resolver("subtract", lambda x, y: x - y)
    OmegaConf.register_new_resolver("sum", lambda x, y: x + y)
    # `id` shows how an argument is read; the Rust side has no such resolver, so its test asks `oc.select` instead.
    resolved = []
    OmegaConf.register_new_resolver("id", lambda x: x)
    for text in RESOLVED:
        result = answer(lambda: resolve(text))
        resolved.append([text.replace("${id:", "${oc.select:absent,"), result])
    write("overrides", override_rows())
    write("yaml", yaml_rows())
    write("emit", emit_rows())
    write("applied", [[overrides, answer(lambda: apply(BASE, overrides))] for overrides in APPLIED])
    write("merged", [[base, over, answer(lambda: OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(base), OmegaConf.create(over))))] for base, over in MERGES])
    write("resolved", resolved)
    (HERE / "applied_base.yaml").write_text(BASE.lstrip(), encoding="utf-8")


if __name__ == "__main__":
    main()
