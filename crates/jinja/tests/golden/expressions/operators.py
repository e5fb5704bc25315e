"""Operators over every pair of kinds, literals, printing, undefined and none in every position."""

KINDS = [
    "none", "missing", "true", "2", "(-3)", "2.5", "big", "'ab'", "''", "[1, 'a']", "(1, 2)", "{'a': 1}", "range(3)",
]
NUMBERS = ["true", "2", "(-3)", "0", "7", "2.5", "(-2.5)", "0.0", "1e16", "1e-7", "(inf | float)", "big", "(-big)"]


def pairs():
    for a in KINDS:
        yield f"{{{{ {a} }}}}|{{{{ {a} ~ 'x' }}}}|{{{{ not {a} }}}}|{{{{ 'y' if {a} else 'n' }}}}"
        yield f"{{{{ -{a} }}}}"
        yield f"{{{{ +{a} }}}}"
        yield f"{{{{ [{a}, ({a},), {{'k': {a}}}] }}}}"
        yield f"{{{{ {a} | tojson }}}}"
        yield f"{{% for x in {a} %}}{{{{ x }}}},{{% else %}}none{{% endfor %}}"
        for b in KINDS:
            yield (
                f"{{{{ {a} == {b} }}}} {{{{ {a} != {b} }}}} {{{{ {a} ~ {b} }}}} {{{{ {a} and {b} }}}} "
                f"{{{{ {a} or {b} }}}}"
            )
            for op in ["+", "-", "*", "/", "//", "%", "<", ">=", "in", "not in"]:
                if op == "*" and {a, b} == {"range(3)", "big"}:
                    continue
                yield f"{{{{ {a} {op} {b} }}}}"
    for a in NUMBERS:
        for b in NUMBERS:
            for op in ["+", "-", "*", "/", "//", "%", "<", "<=", ">", ">=", "=="]:
                if a in KINDS and b in KINDS and op not in ("<=", ">"):
                    continue
                yield f"{{{{ {a} {op} {b} }}}}"
    for a in ["2", "(-3)", "0", "2.5", "0.5", "(-2.5)", "true", "10", "'a'", "none", "missing", "1e200", "0.0"]:
        for b in ["2", "3", "(-1)", "0", "0.5", "(-2)", "30", "false", "'b'"]:
            yield f"{{{{ {a} ** {b} }}}}"


LITERALS = r"""
{{ 1_000 }} {{ 0x10 }} {{ 0b101 }} {{ 0o17 }} {{ 0xFF_ff }} {{ 1_0.5 }} {{ 1e3 }} {{ 1E3 }} {{ 1.5e-3 }} {{ 1e+3 }}
{{ 007 }}
{{ 0 }}{{ 00 }}{{ 0_0 }}
{{ 1. }}
{{ .5 }}
{{ 1.e3 }}
{{ 1__0 }}
{{ 1_ }}
{{ 0x }}
{{ 0b2 }}
{{ 1.5.5 }}
{{ 1.real }}
{{ 1 .real }}
{{ 12345678901234567890123 }}
{{ 0xFFFFFFFFFFFFFFFFFFFF }}
{{ 1e999 }} {{ -1e999 }} {{ 1e999 - 1e999 }}
{{ 1e15 }} {{ 1e16 }} {{ 1e17 }} {{ 123456789012345680.0 }} {{ 1e22 }} {{ 1.0e23 }}
{{ 0.1 + 0.2 }} {{ 1/3 }} {{ 100.0 }} {{ 1e-4 }} {{ 0.00001 }} {{ 1e-5 }} {{ 1e-7 }} {{ -0.0 }} {{ 2.0 ** 60 }}
{{ 5e-324 }} {{ 1.7976931348623157e308 }} {{ 4.35 }} {{ 0.1 }} {{ 1e100 }}
{{ 'a' 'b' }}{{ 'a' "b" 'c' }}
{{ 'a' 'b' | upper }}
{{ 'a' 'b'.upper() }}
{{ 'it\'s' }} {{ "say \"x\"" }} {{ 'a\\b' }} {{ 'a\nb\tc' }} {{ 'a\rb' }}
{{ '\x41\u00e9\U0001F600' }}
{{ '\101' }}{{ '\0' | length }}
{{ '\N{BULLET}' }}
{{ '\q\d' }}
{{ '\u12' }}
{{ '\xZZ' }}
{{ 'é' }}{{ 'é\n' }}{{ '日本\x41' }}
{{ '\ud83d' | length }}
{{ "unterminated }}
{{ 'a'.'b' }}
{{ true }}{{ True }}{{ false }}{{ False }}{{ none }}{{ None }}
{{ TRUE }}|{{ NONE }}|{{ null }}
{{ true + true }} {{ true * 3 }} {{ true == 1 }} {{ false == 0 }} {{ 1 == 1.0 }} {{ '1' == 1 }}
{{ (1) }} {{ (1,) }} {{ () }} {{ (1, 2) }} {{ (1, 2,) }} {{ 1, 2 }} {{ (1, (2, (3,))) }}
{{ [] }} {{ [1,] }} {{ [1, [2, [3]]] }} {{ {} }} {{ {'a': 1,} }} {{ {'a': {'b': {}}} }}
{{ {1: 'a', 2.5: 'b', true: 'c', none: 'd', (1, 2): 'e'} }}
{{ {1: 'a', 1.0: 'b', true: 'c'} }}
{{ {[1]: 2} }}
{{ {'a': 1, 'a': 2} }}
{{ {'b': 1, 'a': 2}['a'] }}
{{ {s: i}[s] }}
{{ [s, uni, html, quotes, ml] }}
{{ {'k': quotes} }}
{{ ("it's",) }} {{ ['"'] }} {{ ['\'"'] }} {{ ['\\'] }} {{ ['\n\r\t\0\x1b\x7f'] }} {{ ['\x80\xa0\xad\u200b\u2028\ufeff\ue000'] }}
{{ ['é', '日本', '🎉', '\u0301', '\U000e0001', '\u3000'] }}
{{ [true, false, none, missing] }}
{{ [1.0, 1e16, 1e-07, big, -0.0, inf | float] }}
{{ nums }} {{ mixed }} {{ d }} {{ people }}
{{ n }}|{{ missing }}|{{ t }}|{{ fa }}|{{ i }}|{{ neg }}|{{ big }}|{{ huge }}|{{ f }}|{{ small }}|{{ large }}|{{ e22 }}|{{ whole }}
{{ 1 if true }}|{{ 1 if false }}|{{ 1 if false else 2 }}|{{ (1 if false) is defined }}
{{ 1 if 0 else 2 if 0 else 3 }}
{{ not true == false }} {{ not 1 in [1] }} {{ not not 1 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 3 > 2 > 1 == 1 }} {{ 1 < 2 > 0 }} {{ 1 == 1 == true }} {{ 1 in [1] == true }}
{{ 1 < 'a' < missing }}
{{ 3 < 2 < 'a' }}
{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 2 ** -1 }} {{ (-2) ** 2 }}
{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 7 // 2 * 2 }} {{ 7 % 4 + 1 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ -7.5 // 2 }} {{ -7.5 % 2 }}
{{ 1 ~ 2 }} {{ 1 ~ 2 + 3 }} {{ 1 + 2 ~ 3 }} {{ 'a' ~ none ~ 1.0 ~ true ~ [1] }} {{ 1 ~ 2 == '12' }} {{ 2 * 3 ~ 4 }}
{{ -1 | abs }} {{ -i | abs }} {{ - i | abs }} {{ 1 - 1 | abs }} {{ -2.5 | int }} {{ 'a' ~ 'b' | upper }} {{ ('a' ~ 'b') | upper }}
{{ 1 / 2 }} {{ 4 / 2 }} {{ 4 // 2 }} {{ 4.0 // 2 }} {{ 2 * 2.5 }} {{ big / 7 }} {{ big // 7 }} {{ big % 7 }} {{ big * big }} {{ -big }} {{ big + 0.0 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1.0 / 0 }}
{{ 1.0 // 0 }}
{{ 1.0 % 0 }}
{{ 0 ** -1 }}
{{ 9223372036854775807 + 1 }} {{ -9223372036854775808 - 1 }} {{ 9223372036854775807 * 2 }} {{ 18446744073709551615 }} {{ 18446744073709551616 }} {{ 4294967296 * 4294967296 }}
{{ 2 ** 63 }} {{ 2 ** 64 }} {{ 2 ** 100 }} {{ 10 ** 20 }} {{ (2 ** 100) | string | length }} {{ 2 ** 0.5 }}
{{ huge * 10 }}
{{ [1e999] }}{{ 1e999 + i }}
{{ [inf | float, -(inf | float), 'nan' | float | string] }} {{ (inf | float) - (inf | float) }} {{ (inf | float) == (inf | float) }} {{ (inf | float) > big }} {{ (inf | float) // 1 }} {{ i % (inf | float) }} {{ neg % (inf | float) }} {{ neg // (inf | float) }}
{{ 'a' * 3 }} {{ 3 * 'a' }} {{ 'a' * 0 }} {{ 'a' * -1 }}|{{ [1] * 2 }} {{ (1,) * 2 }} {{ [0] * 0 }}
{{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }}
{{ [1] + (2,) }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ none + 'a' }}
{{ 'a' + none }}
{{ {} + {} }}
{{ 'a' - 'b' }}
{{ 'a' < 1 }}
{{ none < 1 }}
{{ [1, 2] < [1, 3] }} {{ (1, 'a') < (1, 'b') }} {{ 'a' < 'B' }} {{ [1] < [1, 0] }} {{ [] < [1] }} {{ true < 2 }} {{ 'é' < 'z' }}
{{ [1, 'a'] < [1, 2] }}
{{ {'a': 1} == {'a': 1.0} }} {{ [1, 2] == [1.0, 2] }} {{ (1,) == [1] }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }}
{{ 'ell' in s }} {{ '' in s }} {{ 'x' not in s }} {{ 3 in nums }} {{ 'b' in d }} {{ 'x' in d }} {{ 1 in (1, 2) }} {{ 2 in range(3) }} {{ 3.0 in nums }} {{ true in [1] }}
{{ 1 in 'a1' }}
{{ 1 in 5 }}
{{ 1 in none }}
{{ 'a' in missing }}
{{ missing in [1] }} {{ missing in d }}
{{ missing in 'abc' }}
{{ [1] in d }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[:3] }} {{ s[-3:] }} {{ s[::2] }} {{ s[::-1] }} {{ s[5:1:-1] }} {{ s[1:-1:3] }} {{ s[100:] }}|{{ s[:100] }} {{ s[-100:2] }} {{ s[3:1] }}|{{ uni[1:5] }} {{ uni[-1] }}
{{ s[99] }}|{{ s[-99] }}|{{ s['x'] }}|{{ s[1.0] }}|{{ s[none] }}|{{ s.x }}
{{ s[99].x }}
{{ s[::0] }}
{{ s['a':] }}
{{ s[1.5:] }}
{{ s[none:3] }}{{ s[true:3] }}
{{ s[missing:3] }}
{{ nums[0] }} {{ nums[-1] }} {{ nums[1:] }} {{ nums[::-1] }} {{ nums[:-1] }} {{ nums[5:] }} {{ nums[9] }}|{{ nums['0'] }}|{{ nums.0 }}|{{ nums[true] }}
{{ nums.0.x }}
{{ (1, 2, 3)[1:] }} {{ (1, 2, 3)[::-1] }} {{ (1, 2, 3)[:1] }} {{ (1, 2)[0] }} {{ range(10)[2:8:3] }} {{ range(10)[-1] }} {{ range(10)[::-1] | list }}
{{ nums[0, 1] }}
{{ s[1:2, 3] }}
{{ d[1:2] }}
{{ d.b }} {{ d['b'] }} {{ d.a.x[0] }} {{ d.a['x'][-1] }} {{ d['a'].x }} {{ d.C }} {{ d.nope }}|{{ d['nope'] }}|{{ d[1] }}|{{ d.get('b') }}
{{ d.nope.deeper }}
{{ d['nope']['deeper'] }}
{{ d.C.x }}
{{ n.x }}|{{ n['x'] }}|{{ n[0] }}
{{ n.x.y }}
{{ i.x }}|{{ i['x'] }}|{{ i[0] }}|{{ f.x }}|{{ t.x }}
{{ i.x.y }}
{{ shadow.items }}
{{ shadow['items'] }} {{ shadow['keys'] }} {{ shadow['x y'] }} {{ shadow.get('items') }} {{ shadow.size }}
{{ shadow.size() }}
{{ d[[1]] }}
{{ d[{}] }}
{{ d[d] is defined }}
{{ nums[d] }}|{{ nums[n] }}|{{ nums[2.0] }}|
{{ missing }}|{{ missing ~ 'a' }}|{{ missing | string }}|{{ missing | length }}|{{ missing | list }}|{{ missing | default('d') }}|{{ missing is defined }}|{{ missing | upper }}|
{{ missing.x }}
{{ missing['x'] }}
{{ missing[0] }}
{{ missing[1:] }}
{{ missing() }}
{{ missing.x() }}
{{ d.nope() }}
{{ d.nope.x() }}
{{ s.nope() }}
{{ s.nope.x }}
{{ nums.nope() }}
{{ i() }}
{{ s() }}
{{ n() }}
{{ none() }}
{{ d['x']() }}
{{ missing + 1 }}
{{ 1 + missing }}
{{ 'a' + missing }}
{{ missing * 2 }}
{{ missing < 1 }}
{{ 1 < missing }}
{{ -missing }}
{{ missing == missing }} {{ missing == none }} {{ missing == '' }} {{ missing != missing }} {{ missing == other_missing }}
{{ missing | int }} {{ missing | float }}
{{ missing | abs }}
{{ missing | round }}
{{ missing | first }}|{{ missing | last }}
{{ missing | first | upper }}
{{ missing | join(',') }}|{{ missing | trim }}|{{ missing | replace('a', 'b') }}|{{ missing | sort }}|{{ missing | reverse }}
{{ missing | sum }} {{ missing | unique | list }} {{ missing | map('upper') | list }} {{ missing | min }}|
{{ missing | items | list }}
{{ missing | dictsort }}
{{ missing | tojson }}
{{ [missing] | tojson }}
{{ {'a': missing} | tojson }}
{{ d.nope | tojson }}
{{ n | tojson }}
{% for x in missing %}a{% else %}b{% endfor %}
{% for x in missing.y %}a{% endfor %}
{% for x in n %}a{% endfor %}
{% for x in i %}a{% endfor %}
{% for k, v in d %}a{% endfor %}
{% for k, v in {'ab': 1} %}{{ k }}{{ v }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}a{% endfor %}
{% for a, b in [(1,)] %}a{% endfor %}
{% for a, b in [1] %}a{% endfor %}
{% if missing %}a{% else %}b{% endif %}
{{ missing.x is defined }}
{{ missing is none }} {{ missing is string }} {{ missing is iterable }} {{ missing is mapping }} {{ missing is sequence }} {{ missing is number }} {{ missing is undefined }} {{ missing is callable }} {{ missing is true }} {{ missing is boolean }}
{{ missing is odd }}
{{ missing is lower }} {{ missing is upper }} {{ missing is escaped }}
{{ missing is eq(1) }} {{ missing is sameas(missing) }} {{ missing is in([1]) }}
{{ n ~ 'a' }} {{ n | string }} {{ n | default('d') }} {{ n | default('d', true) }} {{ n is none }} {{ n == none }} {{ n | upper }} {{ n | trim }}
{{ n | length }}
{{ n | list }}
{{ n | join }}
{{ n | first }}
{{ n | items | list }}
{{ n | int }} {{ n | float }}
{{ n | abs }}
{{ n + 1 }}
{{ n * 2 }}
{{ n is iterable }} {{ n is string }} {{ n is sequence }} {{ n is mapping }} {{ n is number }} {{ n is defined }} {{ n is callable }}
{{ 'A' 'b' in 'Ab' }}
{{ {'a': 1}.a }} {{ [1, 2].0 }} {{ 'abc'[1] }} {{ ('a', 'b')[1] }}
{{ {'a': 1}.items() }} {{ {'a': 1}.keys() }} {{ {'a': 1}.values() }}
{{ range(3) }} {{ range(1, 3) }} {{ range(1, 9, 2) }} {{ range(5) | list }} {{ range(5, 0, -2) | list }}
{{ 5 is divisibleby 5 }} {{ 5 is not divisibleby 2 }} {{ 5 is odd and 4 is even }} {{ not 5 is even }}
{{ 1 is eq 1 is true }}
{{ 'a' is in 'abc' }} {{ 'a' is in ['a'] }} {{ 1 is not in [2] }} {{ d is defined and d.b is eq 1 }}
{{ 3 is sameas 3 }} {{ none is sameas none }} {{ true is sameas true }} {{ 1 is sameas true }} {{ d is sameas d }} {{ 'a' is sameas 'b' }}
{{ 1 is }}
{{ 1 is nosuchtest }}
{{ 1 | nosuchfilter }}
{% if false %}{{ 1 | nosuchfilter }}{% endif %}ok
{% if false %}{{ 1 is nosuchtest }}{% endif %}ok
{{ (1 | nosuchfilter) if false else 'ok' }}
{{ 1 if false else (2 is nosuchtest) }}
{{ nosuchfunction(1) }}
{{ 'nosuch' is filter }} {{ 'upper' is filter }} {{ 'nosuch' is test }} {{ 'odd' is test }} {{ 'is' is test }}
{{ loop }}
{{ loop.index }}
{{ self }}
{{ self.x }}
{{ caller }}
{{ varargs }}
{{ a.b.c.d }}
{{ }}
{{ 1 2 }}
{{ a b }}
{{ 1 + }}
{{ + }}
{{ (1 }}
{{ [1 }}
{{ {1} }}
{{ {'a' 1} }}
{{ [1 for x in y] }}
{{ 'a' if }}
{{ a. }}
{{ a.. }}
{{ a[ }}
{{ a[] }}
{{ a | }}
{{ a | 1 }}
{{ f(1, 2 }}
{{ dict(a=1, 2) }}
{{ dict(a=1, a=2) }}
{{ dict(**{'a': 1}) }} {{ dict(*[[('a', 1)]]) }} {{ dict([('a', 1)], b=2) }} {{ dict({'x': 1}) }} {{ dict() }}
{{ dict(*[], **{}) }}
{{ dict(1) }}
{{ dict('ab') }}
{{ dict(**1) }}
{{ dict.fromkeys(['a', 'b'], 0) }} {{ dict.fromkeys('ab') }}
{{ a = 1 }}
{{ a == }}
{{ a & b }}
{{ a ! b }}
{{ a ? b : c }}
{{ a && b }}
{{ !a }}
{{ a <> b }}
{{ lambda x: x }}
{{ `a` }}
{{ $a }}
{{ a@b }}
{{ é }}
{{ 变量 | default('x') }}
{{ x;y }}
{{ _x | default('u') }}{{ __x | default('v') }}
{{ s | upper | lower | title | length }}
{{ s|upper|replace("L","x") }} {{ s|replace("l", "L", 1) }} {{s|lower}}
{{ s.upper().lower().title() }}
{{ (s | upper)[0] }} {{ (s ~ s)[:3] }} {{ [1, 2][0] }} {{ (1, 2) | first }}
{{ s | upper() }}
{{ s is string() }} {{ i is divisibleby(7) }} {{ i is divisibleby 7 }} {{ i is gt 3 }} {{ i is gt(3) and i is lt(9) }} {{ i is eq 7 or false }} {{ i is in [7] }} {{ i is in nums }}
{{ i is gt 3 + 1 }}
{{ i is divisibleby 7 and true }}
{{ i is not none and i is not string }}
{{ i is number is true }}
{{ 1 if i is odd else 2 }}
{{ [i is odd, i is even] }}
{{ i is odd | string }}
{{ i is divisibleby s }}
{{ i is divisibleby 0 }}
"""
