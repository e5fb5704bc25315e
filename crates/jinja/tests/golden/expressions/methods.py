"""Methods and attributes of str, list, tuple, dict, int and float, percent and brace formatting, sandbox refusals."""

STRINGS = ["'Hello, World'", "''", "' a b  c '", "'a,b,,c'", "'ABC'", "'abc1'", "'12'", "'ß ŉ ǆ Σ'", "'x\\ny\\r\\nz\\n'", "'²½Ⅷ٣'", "'_id'", "'a\\tb'"]
NO_ARGUMENT = ["capitalize", "casefold", "encode", "expandtabs", "isalnum", "isalpha", "isascii", "isdecimal",
               "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
               "lower", "lstrip", "rstrip", "rsplit", "split", "splitlines", "strip", "swapcase", "title", "upper",
               "format"]
WITH_ARGUMENTS = {
    "center": ["9", "8, '*'", "3", "'a'", "5, 'ab'", "", "5.0", "true"],
    "count": ["'l'", "''", "'l', 3", "'l', 3, -1", "'zz'", "5", "", "'l', none, 5"],
    "endswith": ["'d'", "('x', 'd')", "'l', 0, 4", "''", "5", "[]", "'World', -5", ""],
    "startswith": ["'H'", "('x', 'H')", "'e', 1", "'', 99", "5", "('H', 5)", "['H']", "'l', 2, 4"],
    "expandtabs": ["4", "tabsize=2", "0", "'a'", "-1"],
    "find": ["'l'", "'zz'", "'l', 4", "'l', -3", "'', 99", "'', 3", "5"],
    "rfind": ["'l'", "'zz'", "'l', 0, 5", "''"],
    "index": ["'l'", "'zz'", "'l', 4", "'l', 99"],
    "rindex": ["'l'", "'zz'"],
    "join": ["['a', 'b']", "'xyz'", "[1]", "[]", "{'k': 1}", "5", "('a',)", "['a', none]", ""],
    "ljust": ["9", "9, '.'", "1"],
    "rjust": ["9", "9, '.'", "1", "9, ''"],
    "zfill": ["9", "1", "'a'"],
    "strip": ["'Hd'", "none", "''", "5", "'H', 'd'", "' '"],
    "lstrip": ["'Hel'", "none"],
    "rstrip": ["'dlr'", "none", "'\\n'"],
    "partition": ["','", "'zz'", "''", "5"],
    "rpartition": ["','", "'zz'", "'l'"],
    "removeprefix": ["'He'", "'zz'", "''", "5"],
    "removesuffix": ["'ld'", "'zz'", "''"],
    "replace": ["'l', 'L'", "'l', 'L', 1", "'', '-'", "'l', ''", "'l'", "'l', 5", "'l', 'L', -1", "'l', 'L', 0", "old='l', new='L'", "'', '-', 2", "'l', 'L', count=1"],
    "split": ["','", "',', 1", "','  , maxsplit=1", "sep=','", "none, 1", "maxsplit=1", "''", "'l'", "',', 0", "', ', -1", "5", "none", "sep=none", "' '", "',', none", "x=1"],
    "rsplit": ["','", "',', 1", "none, 1", "'l', maxsplit=1", "''"],
    "splitlines": ["true", "keepends=True", "false", "1"],
    "translate": ["{72: 'J'}", "{108: none, 111: '00'}", "{}", "none"],
    "maketrans": ["'ab', 'cd'", "{'a': 'b'}"],
    "encode": ["'utf-8'", "'ascii'", "'ascii', 'ignore'"],
    "format": ["1", "a=1", "1, 2, b='x'"],
    "upper": ["1"],
    "lower": ["x=1"],
    "title": ["1"],
}
LISTS = {
    "index": ["2", "9", "3, 1", "1, -2", "'a'", "", "1, 0, 1"],
    "count": ["2", "true", "'a'", ""],
    "copy": ["", "1"],
    "append": ["1"], "extend": ["[1]"], "insert": ["0, 1"], "pop": ["", "0"], "remove": ["1"], "reverse": [""],
    "sort": ["", "reverse=true"], "clear": [""], "nope": [""], "items": [""], "__len__": [""],
}
DICTS = {
    "get": ["'b'", "'zz'", "'zz', 1", "'C'", "[]", "", "'zz', default=1", "'C', 5"],
    "items": ["", "1"], "keys": ["", "1"], "values": [""], "copy": [""], "fromkeys": ["['a']", "'ab', 1", "[1], value=1"],
    "update": ["{}"], "pop": ["'b'"], "popitem": [""], "clear": [""], "setdefault": ["'b', 1"], "nope": [""],
    "has_key": ["'b'"], "__contains__": ["'b'"], "iteritems": [""],
}
NUMBERS = {
    "bit_length": [""], "bit_count": [""], "is_integer": [""], "as_integer_ratio": [""], "conjugate": [""], "hex": [""],
    "to_bytes": ["2, 'big'", ""], "from_bytes": ["'a'"], "fromhex": ["'0x1p3'"], "nope": [""], "format": [""],
}


def systematic():
    for value in STRINGS:
        for name in NO_ARGUMENT:
            yield f"{{{{ {value}.{name}() }}}}"
    for name, arguments in WITH_ARGUMENTS.items():
        for argument in arguments:
            yield f"{{{{ 'Hello, World'.{name}({argument}) }}}}"
            yield f"{{{{ 'aXbXc\\td  e'.{name}({argument.replace(chr(39) + 'l' + chr(39), chr(39) + 'X' + chr(39))}) }}}}"
    for receiver in ["[1, 2, 3, 1]", "(1, 2, 3, 1)", "nums", "range(1, 4)"]:
        for name, arguments in LISTS.items():
            for argument in arguments:
                yield f"{{{{ {receiver}.{name}({argument}) }}}}"
    for name, arguments in DICTS.items():
        for argument in arguments:
            yield f"{{{{ d.{name}({argument}) }}}}"
    for receiver in ["i", "f", "t", "(-3)", "big", "2.0"]:
        for name, arguments in NUMBERS.items():
            for argument in arguments:
                yield f"{{{{ {receiver}.{name}({argument}) }}}}"
        yield f"{{{{ {receiver}.real }}}} {{{{ {receiver}.imag }}}}"
        yield f"{{{{ {receiver}.numerator }}}} {{{{ {receiver}.denominator }}}}"
    for spec in ["d", "i", "u", "s", "r", "a", "f", "F", "e", "E", "g", "G", "x", "X", "o", "c", "%", "b", "n", "",
                 "5d", "-5d|", "05d", "+d", " d", "5.1f", ".0f", ".3s", "10s|", "-10s|", "#x", "#o", ".3d", "08.3f",
                 "*d", "(a)s", "ld", "+.2e", "#g", ".10g", "010x", "5c|", ".2r", "5%"]:
        for value in ["42", "-42", "3.14159", "'str'", "none", "true", "big", "[1]", "'é'", "(7,)", "(inf | float)"]:
            yield f"{{{{ '%{spec}' % {value} }}}}"
    for spec in ["", "d", "5", "<5", ">5", "^5", "*^7", "05", "+", " ", ",", "_", "x", "#x", "#o", "#b", "b", "o", "X",
                 "c", "e", ".2e", "f", ".0f", ".2f", "10.3f", "%", ".1%", "g", ".3g", "n", "s", ".2s", "10.2s",
                 "=+7", "0=7", "zz", "+,.2f", "010", "-<8d", "é>6", "G", "#.3g", ",d", "_x", "z.1f", "<08", "{}",
                 ".2", "F", "E", "=5", ",s"]:
        for value in ["42", "-42", "3.14159", "'str'", "none", "true", "big", "1234567.891", "[1]", "1e16", "0.00001"]:
            yield f"{{{{ '{{:{spec}}}'.format({value}) }}}}".replace("{:{}}", "{:{}}")


CASES = r"""
{{ 'a{}b{}'.format(1, 'x') }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{a}{b}'.format(a=1, b=2) }} {{ '{{}}'.format() }} {{ '{{{}}}'.format(1) }}
{{ '{}{0}'.format(1) }}
{{ '{0}{}'.format(1) }}
{{ '{}'.format() }}
{{ '{1}'.format(1) }}
{{ '{a}'.format(b=1) }}
{{ '{'.format() }}
{{ '}'.format() }}
{{ '{a'.format(a=1) }}
{{ '{0.real}'.format(3) }}
{{ '{0[a]}'.format({'a': 1}) }} {{ '{0[0]}'.format([5]) }} {{ '{x[k]}'.format(x={'k': 'v'}) }} {{ '{d[a][x][0]}'.format(d=d) }}
{{ '{0.__class__}'.format(3) }}
{{ '{0[z]}'.format({'a': 1}) }}
{{ '{0[9]}'.format([5]) }}
{{ '{0.nope}'.format(3) }}
{{ '{!r} {!s} {!a}'.format('é', 'é', 'é') }} {{ '{0!r:>8}|'.format('a') }} {{ '{!r:.3}'.format('abcdef') }}
{{ '{!x}'.format(1) }}
{{ '{!}'.format(1) }}
{{ '{!rr}'.format(1) }}
{{ '{:{}}|'.format('a', 5) }} {{ '{:{w}.{p}f}|'.format(3.14159, w=8, p=2) }} {{ '{:{a}{w}}|'.format('x', a='>', w=4) }}
{{ '{:{:{}}}'.format(1, 2, 3) }}
{{ '{a:>{b}}|{a!r}'.format(a='x', b=3) }}
{{ '{:%Y}'.format('a') }}
{{ '{a}'.format_map({'a': 1}) }} {{ '{a[b]}'.format_map({'a': {'b': 2}}) }}
{{ '{a}'.format_map({}) }}
{{ '{a}'.format_map(5) }}
{{ '{}'.format_map({'a': 1}) }}
{{ '{a}'.format_map() }}
{{ '{} {}'.format(*[1, 2]) }} {{ '{a}'.format(**{'a': 3}) }} {{ '{}-{k}'.format(*(1,), **{'k': 2}) }}
{{ '{}'.format(none) }} {{ '{}'.format(true) }} {{ '{}'.format(missing) }}| {{ '{}'.format(1.0) }} {{ '{}'.format([1, 'a']) }} {{ '{}'.format(d) }} {{ '{:d}'.format(true) }} {{ '{}'.format(1e16) }} {{ '{}'.format(big) }}
{{ '{:5}|{:<5}|{:>5}|{:^5}|'.format('ab', 1, 'ab', 'ab') }} {{ '{:,}'.format(1234567) }} {{ '{:,.2f}'.format(1234.5) }} {{ '{:_}'.format(1234567) }} {{ '{:08.2f}'.format(-3.14159) }} {{ '{:+d} {: d}'.format(5, 5) }} {{ '{:e}'.format(12345.678) }} {{ '{:x} {:X} {:#x} {:b} {:#b} {:o} {:c}'.format(255, 255, 255, 5, 5, 8, 65) }} {{ '{:%}'.format(0.256) }} {{ '{:.1%}'.format(0.256) }} {{ '{:g} {:g} {:g} {:.3g}'.format(1e10, 0.0001, 100000, 1234.5) }}
{{ '{:d}'.format('a') }}
{{ '{:d}'.format(1.5) }}
{{ '{:s}'.format(1) }}
{{ '{:.2f}'.format('a') }}
{{ '{:5}'.format(none) }}
{{ '{:5}'.format([1]) }}
{{ '%s' % 'a' }} {{ '%s %s' % ('a', 'b') }} {{ '%(a)s %(b)d' % {'a': 1, 'b': 2} }} {{ '%s' % none }} {{ '%s' % [1, 2] }} {{ '%s' % missing }}| {{ '%s' % 1.0 }} {{ '%s' % true }} {{ '%%' % () }} {{ '100%%' % {} }} {{ '%r' % 'a' }} {{ '%r' % "it's" }} {{ '%a' % 'é' }} {{ '%s' % d }} {{ '%s' % ((1, 2),) }}
{{ '%s %s' % 'a' }}
{{ '%s' % ('a', 'b') }}
{{ '%s' % () }}
{{ 'x' % 1 }}
{{ 'x' % [1] }}|{{ 'x' % {} }}|{{ 'x' % () }}|{{ 'x' % {'a': 1} }}
{{ '%d' % 'a' }}
{{ '%d' % none }}
{{ '%f' % 'a' }}
{{ '%c' % 'ab' }}
{{ '%c' % 1114112 }}
{{ '%x' % 1.5 }}
{{ '%' % 1 }}
{{ '%z' % 1 }}
{{ '%(a' % {'a': 1} }}
{{ '%(z)s' % {'a': 1} }}
{{ '%(a)s' % 5 }}
{{ '%(a)s' % [1] }}
{{ '%*d|%-*d|%.*f' % (5, 1, 5, 1, 2, 3.14159) }}
{{ '%d' % 3.99 }} {{ '%d' % -3.99 }} {{ '%i' % true }} {{ '%5.2f|%-8s|%+d|%05d|% d|%x|%X|%#x|%o|%e|%E|%g|%G|%c|%c' % (3.14159, 'ab', 5, 42, 7, 255, 255, 255, 8, 12345.678, 12345.678, 0.00001234, 1e20, 65, 'z') }}
{{ '%.2f' % 2.675 }} {{ '%.0f' % 0.5 }} {{ '%.0f' % 1.5 }} {{ '%f' % 1e16 }} {{ '%s' % 1e-7 }} {{ '%g' % 1e6 }} {{ '%g' % 123456789 }} {{ '%.20f' % 0.1 }}
{{ '%d' % 1e20 }} {{ '%d' % big }} {{ '%x' % big }} {{ '%s' % big }}
{{ '%d' % (inf | float) }}
{{ '%s' % 'a' ~ 'b' }} {{ '%s' % ('a' ~ 'b') }} {{ '%s-' % 1 + 'x' }} {{ 'a%sb' % (1 + 1) }}
{{ ''.__class__ }}
{{ ''.__class__.__mro__ }}
{{ ''['__class__'] }}
{{ ''.__class__ is defined }}
{{ ''.__len__() }}
{{ d.__class__ }}
{{ d['__class__'] }}|{{ d.get('__class__') }}|{{ d.__nope__ }}|
{{ nums.__getitem__(0) }}
{{ (1).__add__(2) }}
{{ dict.__class__ }}
{{ raise_exception.__globals__ }}
{{ raise_exception.__name__ }}
{{ strftime_now.__code__ }}
{{ s.upper.__self__ }}
{{ namespace.__init__ }}
{{ namespace.__name__ }}
{{ cycler.__init__ }}
{{ self.__class__ }}
{{ missing.__class__ }}
{{ missing._x }}
{{ s._x }}|{{ d._x }}|{{ nums._x }}
{{ s._x() }}
{{ range.__class__ }}
{{ nums.append(4) }}
{{ nums.append }}
{{ nums.sort() }}
{{ nums.append is defined }} {{ nums.append is callable }}
{% set x = nums.append %}{{ x is undefined }}
{% set x = [] %}{% set _ = x.append(1) %}
{% do x.append(1) %}
{{ d.update({'z': 1}) }}
{{ d.pop('b') }}
{{ d.setdefault('q', 1) }}
{{ d.clear is defined }}
{{ d.items }}
{{ s.upper is defined }} {{ s.nope is defined }} {{ nums.index is defined }} {{ d.items is defined }} {{ d.get is callable }}
{{ range(100000) | length }}
{{ range(100001) }}
{{ range(0, 200000, 2) | length }} {{ range(0, -100000, -1) | length }}
{{ range(1000000) }}
{{ range() }}
{{ range('a') }}
{{ range(1.5) }}
{{ range(1, 2, 3, 4) }}
{{ range(1, 5, 0) }}
{{ range(none) }}
{{ range(true) | list }} {{ range(-3) | list }} {{ range(2, 2) | list }}
{{ range(5).index(2) }} {{ range(5).count(2) }} {{ range(2, 9, 3).start }} {{ range(2, 9, 3).stop }} {{ range(2, 9, 3).step }} {{ range(3) == range(0, 3) }} {{ range(3) == [0, 1, 2] }}
{{ s.split(', ')[1] }} {{ s.split()[0].lower() }} {{ 'a-b-c'.split('-') | last }} {{ ('x' * 3).join(['a', 'b']) }} {{ '</think>a'.split('</think>')[-1].lstrip('\n') }} {{ 'a</think>b'.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}
{{ 'abc'.find('c') > 0 }} {{ 'a b'.split(' ') + ['c'] }} {{ s.count('l') + 1 }} {{ s.startswith('Hello') and s.endswith('World') }} {{ not s.startswith('x') }} {{ s.startswith(('x', 'Hell')) }}
{{ ' \u00a0\u2003\x85\x1f a \u200b '.strip() }}| {{ '\u3000x\u3000'.strip() | length }} {{ 'a\x0bb\x0cc\x1cd\x85e\u2028f\r\ng'.splitlines() }} {{ 'a\u00a0b\u2003c\x1fd'.split() }} {{ '\u0130'.lower() | length }} {{ 'ǅ'.swapcase() }} {{ 'ﬃ'.upper() }} {{ 'ΌΣΟΣ'.lower() }} {{ 'ß'.casefold() }} {{ 'İ'.casefold() }} {{ 'ĲSSEL ĳ'.title() }} {{ "they're bill's".title() }} {{ 'ᾳ'.upper() }} {{ 'ŉa'.capitalize() }} {{ 'ǳx'.title() }} {{ 'ὀδυσσεύς'.upper() }}
{{ '-5'.zfill(5) }} {{ '+5'.zfill(5) }} {{ 'ab'.zfill(5) }} {{ ''.zfill(2) }} {{ '--5'.zfill(6) }} {{ 'a'.center(4, '*') }} {{ 'ab'.center(5, '*') }} {{ 'abc'.center(6, '*') }} {{ 'a'.center(2) }}|
{{ ''.isalnum() }} {{ ''.isascii() }} {{ ''.isprintable() }} {{ 'é'.isascii() }} {{ '\x7f'.isprintable() }} {{ '\u00a0'.isprintable() }} {{ '\u00a0'.isspace() }} {{ '１'.isdigit() }} {{ '²'.isdigit() }} {{ '²'.isdecimal() }} {{ '½'.isnumeric() }} {{ '一'.isnumeric() }} {{ 'ª'.isalpha() }} {{ 'ª'.islower() }} {{ 'ǅ'.istitle() }} {{ 'Aa Bb'.istitle() }} {{ 'AA'.istitle() }} {{ 'é'.isidentifier() }} {{ '1a'.isidentifier() }} {{ 'for'.isidentifier() }} {{ 'Ⅷ'.isupper() }} {{ '日'.isalpha() }} {{ '日'.islower() }} {{ 'ⅷ'.islower() }}
{{ d.get('a').get('x') }} {{ d.get('zz', {}).get('y', 'def') }} {{ d.get('zz') is none }} {{ (d.get('zz') or {}).get('y') }} {{ d.items() | list | length }} {{ d.keys() | list }} {{ 'b' in d.keys() }} {{ 1 in d.values() }} {{ ('b', 1) in d.items() }} {{ d.keys() | first }} {{ d.copy().b }} {{ d.items() == d.items() }} {{ d.keys() == d.keys() }}
{{ d.keys()[0] }}|
{{ d.items()[0].x }}
{{ {'b': 1}.keys() - {'c': 1}.keys() }} {{ {'b': 1}.keys() & d.keys() }}
{{ d.keys() + [] }}
{{ (d.values() | list) == d.values() }} {{ d.keys() | length }} {{ d.values() | tojson is string }}
{{ d.keys() | string }} {{ d.items() ~ '' }} {{ [d.keys()] }} {{ d.values() }}
{{ d.keys() == ['b'] }} {{ {'a': 1}.keys() == {'a': 2}.keys() }} {{ {'a': 1}.items() == {'a': 1}.items() }} {{ {'a': 1}.values() == {'a': 1}.values() }}
{{ 'a'.encode() }} {{ 'é'.encode('utf-8') }} {{ 'é'.encode() | length }} {{ 'é'.encode().decode() }} {{ 'é'.encode()[0] }} {{ 'a'.encode().hex() }}
{{ 'é'.encode('ascii') }}
{{ 'é'.encode('nope') }}
{{ (1.5).is_integer() }} {{ (2.0).is_integer() }} {{ 2.5.is_integer() }} {{ (5).bit_length() }} {{ 255 .bit_length() }} {{ true.bit_length() }} {{ (0.5).hex() }}
{{ 'abc'.upper }}
{{ s.replace }}
{{ 'a'.join }}
{{ 'x'.join(nums | map('string')) }} {{ ','.join(d) }} {{ ','.join(d.keys()) }} {{ ', '.join(people | map(attribute='name') | list) }}
{{ 'x'.join([1, 'a']) }}
{{ 'x'.join(nums) }}
{{ 'a'.upper(*[]) }} {{ 'a b'.split(*[' ']) }} {{ 'a b c'.split(**{'maxsplit': 1}) }}
{{ 'a'.split(',', 1, 2) }}
{{ 'a'.strip(1, 2) }}
{{ 'a'.startswith() }}
{{ 'a'.index('b') }}
{{ [1].index(5) }}
{{ (1,).index(5) }}
{{ 'é' * 2 + 'é'.upper() }} {{ 'a' in 'abc' and 'b' in 'abc' }}
{{ dict }}
{{ cycler }}
{{ joiner }}
{{ namespace }}
{{ range }}
{{ lipsum is defined }} {{ lipsum is callable }} {{ lipsum(n=1, html=false) is string }} {{ cycler is callable }} {{ joiner is callable }} {{ namespace is callable }} {{ range is callable }}
{{ namespace(a=1) }}
{{ namespace() }}
{{ namespace(a=1).a }} {{ namespace({'x': 2}).x }} {{ namespace([('y', 3)], z=4).z }} {{ namespace(a=1).nope }}| {{ namespace(a=1)['a'] }} {{ namespace(a=1) is defined }}
{{ namespace(_a=1) }}
{{ namespace(self=1).self }}
{{ namespace(1) }}
{{ namespace(a=1).items() }}
{{ namespace(a=1).items }}
{{ namespace(a=1) == namespace(a=1) }}
{% set ns = namespace(a=1) %}{{ ns.a }}{% set ns.a = ns.a + 1 %}{{ ns.a }}{% set ns.b = [1] %}{{ ns.b }}{% for x in ns %}{% endfor %}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% set ns = namespace() %}{% set ns.__class__ = 1 %}
{% set ns = namespace(a=1) %}{{ ns | length }}
{% set ns = namespace(a=1) %}{{ 'a' in ns }}
{% set ns = namespace(a=1) %}{{ ns.a is defined }}{{ ns.b is defined }}{{ ns.b | default('x') }}{{ ns is mapping }}{{ ns is iterable }}{{ ns is sequence }}
{% set ns = namespace(found=false) %}{% for x in nums %}{% if x == 1 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}
{% set d.z = 1 %}
{% set missing.z = 1 %}
{% set nums.z = 1 %}
{% set a.b.c = 1 %}
{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}
{% set ns = namespace() %}{% set ns.a %}block {{ i }}{% endset %}{{ ns.a }}
{% set ns = namespace() %}{% set ns['a'] = 1 %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set _ = c.reset() %}{{ c.current }}
{% set c = cycler() %}
{% set c = cycler('a', 'b') %}{% for x in nums %}{{ c.next() }}{% endfor %}{{ c.pos }}{{ c.items }}
{% set j = joiner() %}{% for x in nums %}{{ j() }}{{ x }}{% endfor %}
{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}c
{% set j = joiner(sep=' - ') %}{{ j() }}a{{ j() }}b{{ j.used }}{{ j.sep }}
"""
