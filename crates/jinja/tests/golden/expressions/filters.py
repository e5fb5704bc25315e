"""Every builtin filter and test, with several arguments each and over every kind."""

VALUES = ["s", "empty", "uni", "ml", "html", "padded", "i", "neg", "zero", "big", "f", "small", "large", "t", "n",
          "missing", "nums", "mixed", "words", "(1, 2)", "d", "{}", "[]", "people", "range(3)", "'<' | safe"]
PLAIN = ["abs", "capitalize", "count", "e", "escape", "first", "float", "forceescape", "int", "items", "join", "last",
         "length", "list", "lower", "max", "min", "reverse", "round", "safe", "sort", "string", "striptags", "sum",
         "title", "tojson", "trim", "unique", "upper", "urlencode", "wordcount", "dictsort", "xmlattr", "pprint",
         "default", "d", "center", "indent", "truncate", "wordwrap", "urlize", "filesizeformat", "map", "select",
         "reject", "selectattr", "rejectattr", "attr", "batch", "slice", "format", "replace", "groupby"]
# These give lazy iterators, whose printing is an address.
LAZY = {"unique", "select", "reject", "map", "batch", "slice", "items", "reverse", "selectattr", "rejectattr"}
TESTS = ["boolean", "callable", "defined", "escaped", "even", "false", "filter", "float", "integer", "iterable",
         "lower", "mapping", "none", "number", "odd", "sequence", "string", "test", "true", "undefined", "upper"]
TESTS_OF_ONE = ["divisibleby", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt",
                "greaterthan", ">", "ge", ">=", "in", "sameas"]


def over_kinds():
    for name in PLAIN:
        for value in VALUES:
            tail = " | list" if name in LAZY else ""
            yield f"{{{{ {value} | {name}{tail} }}}}"
    for name in TESTS:
        for value in VALUES:
            yield f"{{{{ ({value}) is {name} }}}}"
        yield f"{{{{ dict is {name} }}}}|{{{{ s.upper is {name} }}}}"
        yield f"{{{{ 'UP' is {name} }}}}|{{{{ 'low' is {name} }}}}|{{{{ 2.0 is {name} }}}}"
    for name in TESTS_OF_ONE:
        if name.isalpha():
            for value in ["i", "s", "f", "n", "missing", "nums", "t", "d"]:
                for other in ["7", "'Hello, World'", "2.5", "none", "nums"]:
                    yield f"{{{{ {value} is {name}({other}) }}}}"
        yield f"{{{{ nums | select('{name}', 2) | list }}}}"
    for name in TESTS + TESTS_OF_ONE:
        yield f"{{{{ mixed | select('{name}') | list }}}}"


CASES = r"""
{{ 'aXb' | capitalize }} {{ 'ÉCOLE' | capitalize }} {{ 'ǆ' | capitalize }} {{ 5 | capitalize }} {{ none | capitalize }} {{ 'ßx' | capitalize }}
{{ "foo bar-baz (qux) [x] {y} <z>" | title }} {{ "it's o'neil's" | title }} {{ 'élan vital' | title }} {{ 'a  b\tc\nd' | title }} {{ "3rd a1b" | title }} {{ 'ABC DEF' | title }}
{{ 'ß' | upper }} {{ 'ŉ' | upper }} {{ 'İ' | lower }} {{ 'ΑΣ' | lower }} {{ 'Σ' | lower }} {{ 'ﬁ' | upper }} {{ 'ﬁ' | capitalize }} {{ 'ﬁx' | title }}
{{ 'x' | center(7) }}|{{ 'x' | center(6) }}|{{ 'xy' | center(5) }}|{{ 'x' | center(0) }}|{{ 'x' | center(width=4) }}|{{ 5 | center(5) }}|{{ 'héé' | center(8) }}|
{{ 'x' | center('a') }}
{{ 'a' | default('b') }} {{ '' | default('b') }}|{{ '' | default('b', true) }} {{ missing | default }}|{{ 0 | d(5, boolean=True) }} {{ missing | default(default_value='z') }} {{ false | default('x') }} {{ [] | default([1], true) }} {{ missing.x | default('q') }}
{{ d.nope.x | default('q') }}
{{ (d.nope | default({})).x | default('q') }} {{ d.nope | default(none) }} {{ missing | default(n) is none }}
{{ d | dictsort }} {{ d | dictsort(true) }} {{ d | dictsort(case_sensitive=false) }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'b': 1, 'a': 2} | dictsort(false, 'value', true) }} {{ d | dictsort(reverse=true) }} {{ {'B': 1, 'a': 2, 'C': 3} | dictsort }}
{{ d | dictsort(by='value') }}
{{ d | dictsort(by='nope') }}
{{ {1: 'a', 'b': 2} | dictsort }}
{{ [1] | dictsort }}
{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{{ html | escape }} {{ html | e }} {{ html | e | e }} {{ html | forceescape }} {{ html | e | forceescape }} {{ html | safe }} {{ html | safe | e }} {{ 5 | e }} {{ none | e }} {{ [1, '<'] | e }}
{{ '<' | escape ~ '<' }} {{ ('<' | escape) ~ '<' }} {{ ('<' | escape) + '<' }} {{ '<' + ('<' | escape) }} {{ ('<' | safe) + '<' }} {{ ('<' | safe) ~ '<' }}
{{ ('<' | e) * 2 }} {{ ('<%s>' | safe) % '<' }} {{ ('<{}>' | safe).format('<') }} {{ ('<' | e)[0:2] }} {{ ('a<' | e).upper() }} {{ ('<' | safe).replace('<', '<<') }} {{ ('<' | safe).join(['<', '>']) }} {{ '<'.join(['<' | safe, '>']) }}
{{ ['<' | safe, '<'] | join('>') }} {{ ['<', '<'] | join('>' | safe) }} {{ ['<' | safe] }} {{ ('<' | safe) | tojson }} {{ ('<' | e) == '&lt;' }} {{ ('<' | safe) is string }} {{ ('<' | e) is escaped }} {{ '<' is escaped }}
{{ ('<b>x</b>' | safe).striptags() }} {{ ('&lt;' | safe).unescape() }} {{ ('x' | safe).escape('<') }} {{ ('<a>  b\n c</a>' | safe) | striptags }} {{ ('<' | safe) | upper }} {{ ('<' | safe) | trim }} {{ ('a<' | safe) | replace('a', '<') }} {{ 'a<' | replace('a', '<' | safe) }} {{ ('<' | safe) | string }} {{ ('<' | safe) | indent }} {{ ('<' | safe) | list }} {{ ('<' | safe) | length }} {{ ('<' | safe) | first }}
{{ ('<' | safe).__html__() }}
{{ ('a b' | safe).split() }} {{ ('a-b' | safe).partition('-') }} {{ ('<' | safe) in html }} {{ ('<' | safe) < 'a' }} {{ ('%s' | safe) % ('<' | safe) }} {{ '%s' % ('<' | safe) }} {{ '%s' % ('<' | e) ~ '<' }}
{{ '<' | safe | safe }} {{ ('x' | safe) ~ missing ~ none }} {{ ('x' | safe) ~ '&' ~ '<' }} {{ '&' ~ ('x' | safe) }}
{{ ('<' | safe) + none }}
{{ 0 | filesizeformat }} {{ 1 | filesizeformat }} {{ 999 | filesizeformat }} {{ 1000 | filesizeformat }} {{ 1500000 | filesizeformat }} {{ 1e9 | filesizeformat }} {{ 1024 | filesizeformat(true) }} {{ 1048576 | filesizeformat(binary=True) }} {{ '1500' | filesizeformat }} {{ big | filesizeformat }} {{ 2.5 | filesizeformat }} {{ 1e25 | filesizeformat }}
{{ 'x' | filesizeformat }}
{{ [] | first }}|{{ [1] | first }} {{ 'abc' | first }} {{ d | first }} {{ 'abc' | last }} {{ [] | last }}|{{ d | last }} {{ range(4) | last }} {{ '' | first }}|
{{ (nums | map('string')) | last }}
{{ (nums | map('string')) | first }} {{ nums | select | first }}
{{ ([] | first).x }}
{{ '3.7' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ 3 | float }} {{ '1e3' | float }} {{ ' 2.5 ' | float }} {{ true | float }} {{ none | float }} {{ [] | float }} {{ 'inf' | float }} {{ 'nan' | float }} {{ '1_000.5' | float }} {{ '-0' | float }} {{ '٣' | float }} {{ 'Infinity' | float }} {{ 'x' | float(default='d') }} {{ big | float }}
{{ huge | float }}
{{ '42' | int }} {{ '42.9' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ 3.9 | int }} {{ -3.9 | int }} {{ '0x1f' | int(base=16) }} {{ '1f' | int(0, 16) }} {{ '101' | int(base=2) }} {{ '0b101' | int(0, 2) }} {{ '0o17' | int(base=8) }} {{ ' 42 ' | int }} {{ true | int }} {{ none | int }} {{ none | int(9) }} {{ '1e3' | int }} {{ '1_000' | int }} {{ '' | int }} {{ '-5' | int }} {{ '+5' | int }} {{ '12345678901234567890' | int }} {{ [] | int }} {{ '٣' | int }} {{ '0x1f' | int }} {{ '7' | int(base=10) }} {{ '9' | int(7, 8) }} {{ 'inf' | int(3) }} {{ 'x' | int(default='d') }} {{ '010' | int }} {{ '0b11' | int(base=0) }}
{{ inf | float | int }} {{ inf | float | int(4) }}
{{ 1e999 | int }}
{{ (1e999 - 1e999) | int }}
{{ 1e20 | int }} {{ 1.5e300 | int | string | length }}
{{ '%s-%d' | format('a', 3) }} {{ '%(a)s' | format(a=1) }} {{ '%05.1f|%x|%o|%e|%g|%r|%c|%%' | format(2.25, 255, 8, 12345.678, 0.0001, 'q', 'z') }} {{ 'x' | format }} {{ '%s' | format('<' | safe) }}
{{ '%d' | format('a') }}
{{ '%s %s' | format('a') }}
{{ '%s' | format('a', 'b') }}
{{ '%s' | format(a=1) }}
{{ '%s' | format(1, a=1) }}
{{ 5 | format(1) }}
{% for g in people | groupby('city') %}{{ g.grouper }}:{{ g.list | map(attribute='name') | join(',') }};{% endfor %}
{% for c, l in people | groupby('city') %}{{ c }}{{ l | length }}{% endfor %}
{% for c, l in people | groupby('zip', default='none') %}{{ c }}{{ l | length }};{% endfor %}
{% for c, l in people | groupby('o.p') %}{{ c }}{{ l | length }};{% endfor %}
{% for c, l in words | groupby(0) %}{{ c }}{{ l }};{% endfor %}
{% for c, l in people | groupby('name', case_sensitive=true) %}{{ c }}{% endfor %}
{% for c, l in people | groupby('name') %}{{ c }}{% endfor %}
{{ people | groupby('city') | first }}
{{ (people | groupby('city'))[0][0] }}
{% for c, l in people | groupby('nope') %}{{ c }}{% endfor %}
{% for c, l in [{'k': 1}, {'k': 'a'}] | groupby('k') %}{{ c }}{% endfor %}
{{ 'a\nb\nc' | indent }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent('>>') }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb\n' | indent(2) }}|{{ 'a\n\nb\n' | indent(2, blank=true) }}|{{ 'a\nb\n' | indent(4, first=True) }}END|{{ '' | indent(2, true) }}|{{ 'a\r\nb\x0bc\x0cd\x85e\u2028f' | indent(1) }}|{{ '\n' | indent(2) }}|{{ '\n\n' | indent(2, true, true) }}|{{ 'a' | indent(width=3, first=true) }}|{{ 'a\n' | indent(0) }}|{{ 'a\nb' | indent(-1) }}|
{{ 5 | indent }}
{{ none | indent }}
{{ 'a\nb' | indent(none) }}
{{ 'a\nb' | indent(2.5) }}
{{ nums | join }} {{ nums | join(', ') }} {{ people | join(',', attribute='name') }} {{ people | join('-', 'age') }} {{ 'abc' | join('.') }} {{ d | join(',') }} {{ mixed | join('|') }} {{ [] | join(',') }}|{{ [none, missing] | join(',') }} {{ nums | join(1) }} {{ people | join(d=';', attribute='o.p') }} {{ (1, 2) | join }} {{ range(3) | join('') }} {{ nums | join(none) }}
{{ people | join(',', attribute='nope') }}
{{ 5 | join }}
{{ 'abc' | length }} {{ uni | length }} {{ d | length }} {{ (1,) | length }} {{ range(5) | length }} {{ d.items() | length }} {{ d.keys() | count }} {{ '' | count }} {{ '👨‍👩‍👧' | length }}
{{ 5 | length }}
{{ (nums | map('string')) | length }}
{{ 2.5 | length }}
{{ 'abc' | list }} {{ d | list }} {{ (1, 2) | list }} {{ range(3) | list }} {{ d.items() | list }} {{ d.values() | list }} {{ 'héé' | list }}
{{ 5 | list }}
{{ people | map(attribute='name') | list }} {{ people | map(attribute='o.p') | list }} {{ people | map(attribute='nope') | list }} {{ people | map(attribute='nope', default='z') | list }} {{ words | map('upper') | list }} {{ words | map('replace', 'b', 'x') | join }} {{ people | map('attr', 'name') | list }} {{ [[1, 2], [3]] | map('first') | list }} {{ [[1, 2], [3]] | map(attribute=0) | list }} {{ [[1, 2], [3, 4]] | map(attribute='1') | list }} {{ nums | map('string') | map('length') | sum }} {{ ['1', 'x'] | map('int', 7) | list }} {{ [3.14159] | map('round', 2) | list }} {{ [d] | map('tojson') | list }} {{ [[2, 1]] | map('sort') | list }} {{ words | map('default', 'q') | list }} {{ people | map(attribute='o.q', default=0) | list }} {{ people | map(attribute='o') | map(attribute='p') | list }}
{{ nums | map }}
{{ nums | map | list }}
{{ nums | map('nosuch') | list }}
{{ nums | map(nope=1) | list }}
{{ nums | map(attribute='a', nope=1) | list }}
{{ people | map(attribute='o.nope.x') | list }}
{{ people | map(attribute='nope') | join(',') }}
{{ nums | map('upper') | list }}
{{ 5 | map('upper') | list }}
{{ nums | max }} {{ nums | min }} {{ words | max }} {{ words | min }} {{ words | max(case_sensitive=true) }} {{ words | min(true) }} {{ people | max(attribute='age') }} {{ (people | min(attribute='age')).name }} {{ [] | max }}|{{ 'abc' | max }} {{ d | max }} {{ [1, 2.5, true] | max }} {{ [1, 1.0] | max }} {{ [1, 1.0] | min }}
{{ ['a', 1] | max }}
{{ [none, 1] | min }}
{{ nums | pprint }} {{ d | pprint }} {{ s | pprint }} {{ people | pprint }} {{ 'a b ' * 40 | pprint }} {{ quotes | pprint }} {{ 1.0 | pprint }} {{ [1] * 50 | pprint }}
{{ ([1] * 50) | pprint }}
{{ ['abcdefghijklmnopqrstuvwxyz'] * 5 | length }} {{ (['abcdefghijklmnopqrstuvwxyz'] * 5) | pprint }}
{{ nums | reject('odd') | list }} {{ nums | select('odd') | list }} {{ mixed | select | list }} {{ mixed | reject | list }} {{ mixed | select('string') | list }} {{ nums | select('gt', 1) | list }} {{ nums | select('>', 1) | list }} {{ nums | select('in', [1, 3]) | list }} {{ nums | reject('eq', 1) | list }} {{ words | select('lower') | list }} {{ mixed | select('none') | list }} {{ mixed | reject('none') | list }} {{ mixed | select('defined') | list }} {{ nums | select('divisibleby', 2) | list }} {{ words | select('equalto', 'a') | list | length }} {{ mixed | select('mapping') | list }} {{ nums | select('odd') | map('string') | join('+') }}
{{ nums | select('nosuch') | list }}
{{ mixed | select('odd') | list }}
{{ people | selectattr('age') | map(attribute='name') | list }} {{ people | selectattr('age', 'gt', 3) | map(attribute='name') | list }} {{ people | rejectattr('age', 'gt', 3) | map(attribute='name') | list }} {{ people | selectattr('city', 'equalto', 'Rome') | list | length }} {{ people | selectattr('o.p', '==', 1) | map(attribute='name') | list }} {{ people | selectattr('nope', 'defined') | list }} {{ people | rejectattr('nope') | list | length }} {{ people | selectattr('zip', 'undefined') | list | length }} {{ people | selectattr('name', 'in', ['ann', 'Bob']) | map(attribute='name') | join(',') }} {{ messages | selectattr('role', 'ne', 'system') | list | length }} {{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list }} {{ (messages | selectattr('role', 'equalto', 'system') | first).content }} {{ [[0, 1], [1, 0]] | selectattr(0) | list }}
{{ people | selectattr | list }}
{{ people | selectattr('nope', 'gt', 1) | list }}
{{ people | selectattr('o.nope.x') | list }}
{{ people | selectattr('age', 'nosuch') | list }}
{{ [1] | random }} {{ 'a' | random }}
{{ [] | random }}|
{{ 'aaa' | replace('a', 'b') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'aaa' | replace('', '-') }} {{ 'aaa' | replace('a', 'b', count=1) }} {{ 'aaa' | replace(old='a', new='c') }} {{ 121 | replace(1, 3) }} {{ none | replace('N', 'M') }} {{ 'a' | replace('a', none) }} {{ 'aaa' | replace('a', 'b', none) }} {{ 'aaa' | replace('a', 'b', 0) }} {{ 'aaa' | replace('a', 'b', -1) }} {{ 'a\n' | replace('\n', '\\n') }} {{ [1, 1] | replace('1', 'x') }} {{ 'x' | replace('x', 5) }} {{ '<a>' | replace('<', '&lt;') }}
{{ 'a' | replace('a') }}
{{ 'a' | replace }}
{{ 'aaa' | replace('a', 'b', 'c') }}
{{ 'abc' | reverse }} {{ nums | reverse | list }} {{ uni | reverse }} {{ (1, 2) | reverse | list }} {{ d | reverse | list }} {{ range(3) | reverse | list }} {{ nums | reverse | join }} {% for x in nums | reverse %}{{ loop.index }}{{ x }}{% endfor %}
{{ 5 | reverse }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 0.5 | round }} {{ 1.5 | round }} {{ -0.5 | round }} {{ 2.675 | round(2) }} {{ 2.345 | round(2) }} {{ 42.55 | round(1, 'floor') }} {{ 42.51 | round(1, 'ceil') }} {{ 42 | round }} {{ 42 | round(1) }} {{ 1234 | round(-2) }} {{ 1250.0 | round(-2) }} {{ 2.5 | round(0, 'floor') }} {{ 2.5 | round(method='ceil') }} {{ -2.5 | round(0, 'floor') }} {{ -2.5 | round(0, 'ceil') }} {{ 1e16 | round(2) }} {{ true | round }} {{ 1e-7 | round(3) }} {{ 2.5 | round | int }} {{ 7 | round(0, 'floor') }} {{ 1.005 | round(2) }} {{ 5e-324 | round(323) }} {{ 0.15 | round(1) }} {{ 0.25 | round(1) }} {{ 0.35 | round(1) }}
{{ 2.5 | round(1, 'up') }}
{{ 's' | round }}
{{ none | round }}
{{ inf | float | round(1, 'ceil') }}
{{ inf | float | round }} {{ inf | float | round(2) }} {{ inf | float | string }} {{ [inf | float, -(inf | float)] | tojson }} {{ inf | float | abs }}
{{ inf | float | filesizeformat }}
{{ 2.5 | round(none) }}
{{ range(7) | slice(3) | list }} {{ range(7) | slice(3, 'x') | list }} {{ range(2) | slice(3) | list }} {{ range(6) | slice(3, fill_with='z') | list }} {{ 'abcde' | slice(2) | list }} {{ [] | slice(2) | list }}
{{ range(7) | slice(0) | list }}
{{ range(7) | batch(3) | list }} {{ range(7) | batch(3, 'x') | list }} {{ range(6) | batch(3, 'x') | list }} {{ [] | batch(2) | list }} {{ 'abcde' | batch(2) | map('join') | list }} {{ range(3) | batch(1) | list }} {{ range(3) | batch(linecount=2, fill_with=0) | list }}
{{ range(3) | batch(0) | list }}
{% for row in range(5) | batch(2) %}{{ row | join(',') }};{% endfor %}
{{ nums | sort }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ words | sort(true) }} {{ words | sort(reverse=true) }} {{ nums | sort(true) }} {{ people | sort(attribute='age') | map(attribute='name') | list }} {{ people | sort(attribute='city,name') | map(attribute='name') | list }} {{ people | sort(true, attribute='name') | map(attribute='name') | list }} {{ people | sort(attribute='o.p') | map(attribute='name') | list }} {{ 'hello' | sort }} {{ d | sort }} {{ [2, 1.5, true] | sort }} {{ [[2, 'a'], [1, 'b']] | sort }} {{ [(2, 1), (1, 2)] | sort(attribute=1) }} {{ [] | sort }} {{ ['É', 'e', 'z', 'Z'] | sort }}
{{ ['a', 1] | sort }}
{{ [none, 1] | sort }}
{{ [{}, {}] | sort }}
{{ people | sort(attribute='nope') }}
{{ people | sort }}
{{ 5 | string }} {{ 2.0 | string }} {{ none | string }} {{ true | string }} {{ [1, 'a'] | string }} {{ d | string }} {{ (1,) | string }} {{ missing | string }}| {{ (5 | string) + '1' }} {{ 1e16 | string }} {{ range(3) | string }}
{{ '<b>a</b>  <!-- c -->\n d &amp; &lt; <i' | striptags }} {{ 5 | striptags }} {{ 'a &eacute; &#233; &#xe9; &nosuch;' | striptags }} {{ '<!-- <b> -->x<br/>y' | striptags }}
{{ nums | sum }} {{ [] | sum }} {{ people | sum('age') }} {{ people | sum(attribute='age', start=10) }} {{ [1.5, 2] | sum }} {{ [0.1] * 3 | sum }} {{ ([0.1] * 10) | sum }} {{ [[1], [2]] | sum(start=[]) }} {{ [true, true] | sum }} {{ [1] | sum(start=1.5) }}
{{ ['a'] | sum }}
{{ ['a'] | sum(start='') }}
{{ people | sum(attribute='nope') }}
{{ d | tojson }} {{ d | tojson(indent=2) }} {{ d | tojson(indent=4) }} {{ d | tojson(indent=0) }} {{ d | tojson(indent='--') }} {{ d | tojson(indent=none) }} {{ d | tojson(sort_keys=true) }} {{ d | tojson(separators=(',', ':')) }} {{ d | tojson(separators=(', ', ' : '), indent=1) }} {{ d | tojson(separators=[',', ':']) }}
{{ uni | tojson }} {{ uni | tojson(ensure_ascii=true) }} {{ uni | tojson(true) }} {{ quotes | tojson }} {{ quotes | tojson(ensure_ascii=True) }} {{ html | tojson }} {{ '\x00\x1f\x7f\x80\u2028\u2029/' | tojson }} {{ '😀é' | tojson(ensure_ascii=true) }}
{{ [] | tojson }} {{ {} | tojson }} {{ [[], {}] | tojson(indent=2) }} {{ [1, [2, [3, {'a': []}]]] | tojson(indent=2) }} {{ (1, 2) | tojson }} {{ [none, true, false, 1, 2.0, 1e-7, 1e16, big, -0.0] | tojson }} {{ 1e999 | tojson }} {{ -1e999 | tojson }} {{ (1e999 - 1e999) | tojson }} {{ 's' | tojson }} {{ none | tojson }} {{ 1.0 | tojson }} {{ small | tojson }} {{ huge | tojson }}
{{ {1: 2, 2.5: 3, true: 4, none: 5} | tojson }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }} {{ [{'b': {'d': 1, 'c': 2}, 'a': 0}] | tojson(sort_keys=True, indent=2) }} {{ {'é': 1, 'a': 2, 'Z': 3, '😀': 4, 'ﬁ': 5} | tojson(sort_keys=true) }}
{{ {1: 2, 'a': 3} | tojson(sort_keys=true) }}
{{ {(1, 2): 3} | tojson }}
{{ range(3) | tojson }}
{{ d.items() | tojson }}
{{ d.items() | list | tojson }}
{{ d.keys() | tojson }}
{{ nums | map('string') | tojson }}
{{ namespace(a=1) | tojson }}
{{ dict | tojson }}
{{ d | tojson(nope=1) }}
{{ d | tojson(separators=',') }}
{{ d | tojson(separators=(1, 2)) }}
{{ d | tojson(separators=',:') }}
{{ d | tojson(indent=2.5) }}
{{ d | tojson(indent=-1) }}
{{ d | tojson(indent=true) }}
{{ d | tojson(false, 2) }} {{ d | tojson(ensure_ascii=false) }} {{ messages | tojson }} {{ tools | tojson(indent=4) }}
{{ tools | tojson(indent=2) | indent(2) }} {{ tools[0] | tojson | trim }} {{ (tools | tojson) | length }} {{ tools | map('tojson') | join('\n') }}
{{ '  a  ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ 'abcba' | trim('ab') }} {{ '\n\t a\u00a0\u3000\u200b' | trim }}| {{ 5 | trim }} {{ none | trim }} {{ 'xax' | trim(chars='x') }} {{ '\x1ca\x1f\x85' | trim }}| {{ 'a' | trim('') }} {{ 'a' | trim(none) }}
{{ [1] | trim }}{{ 'x' | trim(5) }}
{{ 'foo bar baz qux' | truncate(9) }}|{{ 'foo bar baz qux' | truncate(9, true) }}|{{ 'foo bar baz qux' | truncate(11) }}|{{ 'foo bar baz qux' | truncate(11, false, '...', 0) }}|{{ 'foo bar baz qux' | truncate(9, end='>') }}|{{ 'foo' | truncate(2, leeway=0, end='') }}|{{ 'foobarbazqux' | truncate(8, leeway=0) }}|{{ 'a b' | truncate(255) }}|{{ ('word ' * 80) | truncate | length }}
{{ 'foo' | truncate(2) }}{{ 'foo bar baz' | truncate(2) }}
{{ 'foo bar baz' | truncate(2, leeway=0) }}
{{ 5 | truncate }}
{{ [1, 2, 1, '1', 1.0, true] | unique | list }} {{ words | unique | list }} {{ words | unique(case_sensitive=true) | list }} {{ people | unique(attribute='city') | map(attribute='name') | list }} {{ people | unique(true, 'o.p') | map(attribute='name') | list }} {{ 'AaBb' | unique | join }} {{ [none, none, missing] | unique | list }}
{{ [[1], [1]] | unique | list }}
{{ 'a b&c/d?e=é~_-.' | urlencode }} {{ {'a': 1, 'b c': 'é&'} | urlencode }} {{ [('a', 1), ('b', 'x y')] | urlencode }} {{ 5 | urlencode }} {{ none | urlencode }} {{ '' | urlencode }}|{{ '/a b' | urlencode }} {{ {} | urlencode }}| {{ true | urlencode }} {{ {'a': '/x'} | urlencode }}
{{ [1] | urlencode }}
{{ 'see http://example.com/a?b=c&d and www.x.org. mail a@b.co (https://x.y)' | urlize }} {{ 'http://example.com/averyveryverylongpath' | urlize(20) }} {{ 'http://x.com' | urlize(nofollow=true) }} {{ 'http://x.com' | urlize(target='_blank', rel='me') }} {{ '<http://x.com>' | urlize }} {{ 'mailto:a@b.com tel:1' | urlize }} {{ 'a.com b.net c.org d.io' | urlize }}
{{ 'a b  c\nd' | wordcount }} {{ '' | wordcount }} {{ "it's a-b c_d é" | wordcount }} {{ 5 | wordcount }} {{ none | wordcount }}
{{ 'The quick brown fox jumps over' | wordwrap(10) }}|{{ 'aaaaaaaaaaaaaaa bb' | wordwrap(5) }}|{{ 'aaaaaaaaaaaaaaa bb' | wordwrap(5, false) }}|{{ 'a b c' | wordwrap(3, wrapstring='--') }}|{{ 'a\n\nb  c   d' | wordwrap(4) }}|{{ 'foo-bar baz-qux' | wordwrap(5) }}|{{ 'foo-bar baz' | wordwrap(5, break_on_hyphens=false) }}|{{ '' | wordwrap }}|{{ '  lead and trail  ' | wordwrap(8) }}|
{{ "well-known co-op x-ray T-shirt" | wordwrap(1, wrapstring="|") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(1, false, "/") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(1, true, "/", false) }}
{{ "well-known co-op x-ray T-shirt" | wordwrap(3, wrapstring="|") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(3, false, "/") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(3, true, "/", false) }}
{{ "well-known co-op x-ray T-shirt" | wordwrap(5, wrapstring="|") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(5, false, "/") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(5, true, "/", false) }}
{{ "well-known co-op x-ray T-shirt" | wordwrap(8, wrapstring="|") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(8, false, "/") }}{{ "well-known co-op x-ray T-shirt" | wordwrap(8, true, "/", false) }}
{{ "a--b ---c d--- e--f.--g" | wordwrap(1, wrapstring="|") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(1, false, "/") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(1, true, "/", false) }}
{{ "a--b ---c d--- e--f.--g" | wordwrap(3, wrapstring="|") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(3, false, "/") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(3, true, "/", false) }}
{{ "a--b ---c d--- e--f.--g" | wordwrap(5, wrapstring="|") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(5, false, "/") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(5, true, "/", false) }}
{{ "a--b ---c d--- e--f.--g" | wordwrap(8, wrapstring="|") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(8, false, "/") }}{{ "a--b ---c d--- e--f.--g" | wordwrap(8, true, "/", false) }}
{{ "abc-def-ghi jkl" | wordwrap(1, wrapstring="|") }}{{ "abc-def-ghi jkl" | wordwrap(1, false, "/") }}{{ "abc-def-ghi jkl" | wordwrap(1, true, "/", false) }}
{{ "abc-def-ghi jkl" | wordwrap(3, wrapstring="|") }}{{ "abc-def-ghi jkl" | wordwrap(3, false, "/") }}{{ "abc-def-ghi jkl" | wordwrap(3, true, "/", false) }}
{{ "abc-def-ghi jkl" | wordwrap(5, wrapstring="|") }}{{ "abc-def-ghi jkl" | wordwrap(5, false, "/") }}{{ "abc-def-ghi jkl" | wordwrap(5, true, "/", false) }}
{{ "abc-def-ghi jkl" | wordwrap(8, wrapstring="|") }}{{ "abc-def-ghi jkl" | wordwrap(8, false, "/") }}{{ "abc-def-ghi jkl" | wordwrap(8, true, "/", false) }}
{{ "'quoted'--dash, end.-- x" | wordwrap(1, wrapstring="|") }}{{ "'quoted'--dash, end.-- x" | wordwrap(1, false, "/") }}{{ "'quoted'--dash, end.-- x" | wordwrap(1, true, "/", false) }}
{{ "'quoted'--dash, end.-- x" | wordwrap(3, wrapstring="|") }}{{ "'quoted'--dash, end.-- x" | wordwrap(3, false, "/") }}{{ "'quoted'--dash, end.-- x" | wordwrap(3, true, "/", false) }}
{{ "'quoted'--dash, end.-- x" | wordwrap(5, wrapstring="|") }}{{ "'quoted'--dash, end.-- x" | wordwrap(5, false, "/") }}{{ "'quoted'--dash, end.-- x" | wordwrap(5, true, "/", false) }}
{{ "'quoted'--dash, end.-- x" | wordwrap(8, wrapstring="|") }}{{ "'quoted'--dash, end.-- x" | wordwrap(8, false, "/") }}{{ "'quoted'--dash, end.-- x" | wordwrap(8, true, "/", false) }}
{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(1, wrapstring="|") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(1, false, "/") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(1, true, "/", false) }}
{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(3, wrapstring="|") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(3, false, "/") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(3, true, "/", false) }}
{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(5, wrapstring="|") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(5, false, "/") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(5, true, "/", false) }}
{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(8, wrapstring="|") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(8, false, "/") }}{{ "über-lang wörter-buch 日本-語 a-1 1-a" | wordwrap(8, true, "/", false) }}
{{ "a-b-c-d  e-- -f" | wordwrap(1, wrapstring="|") }}{{ "a-b-c-d  e-- -f" | wordwrap(1, false, "/") }}{{ "a-b-c-d  e-- -f" | wordwrap(1, true, "/", false) }}
{{ "a-b-c-d  e-- -f" | wordwrap(3, wrapstring="|") }}{{ "a-b-c-d  e-- -f" | wordwrap(3, false, "/") }}{{ "a-b-c-d  e-- -f" | wordwrap(3, true, "/", false) }}
{{ "a-b-c-d  e-- -f" | wordwrap(5, wrapstring="|") }}{{ "a-b-c-d  e-- -f" | wordwrap(5, false, "/") }}{{ "a-b-c-d  e-- -f" | wordwrap(5, true, "/", false) }}
{{ "a-b-c-d  e-- -f" | wordwrap(8, wrapstring="|") }}{{ "a-b-c-d  e-- -f" | wordwrap(8, false, "/") }}{{ "a-b-c-d  e-- -f" | wordwrap(8, true, "/", false) }}
{{ "supercalifragilistic-expialidocious x" | wordwrap(1, wrapstring="|") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(1, false, "/") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(1, true, "/", false) }}
{{ "supercalifragilistic-expialidocious x" | wordwrap(3, wrapstring="|") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(3, false, "/") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(3, true, "/", false) }}
{{ "supercalifragilistic-expialidocious x" | wordwrap(5, wrapstring="|") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(5, false, "/") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(5, true, "/", false) }}
{{ "supercalifragilistic-expialidocious x" | wordwrap(8, wrapstring="|") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(8, false, "/") }}{{ "supercalifragilistic-expialidocious x" | wordwrap(8, true, "/", false) }}
{{ 5 | wordwrap(3) }}
{{ 'a b' | wordwrap(0) }}
{{ {'class': 'a b', 'id': none, 'x': missing, 'v': '<"\'>'} | xmlattr }} {{ {'a': 1} | xmlattr(false) }} {{ {} | xmlattr }}|{{ {'n': 5, 't': true} | xmlattr }}
{{ {'a b': 1} | xmlattr }}
{{ {'a>': 1} | xmlattr }}
{{ people[0] | attr('name') }}|{{ s | attr('upper') is callable }}|{{ s | attr('nope') }}|{{ d | attr('b') }}|{{ i | attr('real') }}|
{{ s | attr('__class__') }}
{{ (d | attr('items'))() | list }}
{{ (s | attr('upper'))() }}
{{ s | attr(1) }}
{{ -5 | abs }} {{ -5.5 | abs }} {{ true | abs }} {{ (-big) | abs }} {{ -0.0 | abs }}
{{ d | items | list }} {{ {} | items | list }} {{ d | items | map('first') | list }}
{{ [1] | items | list }}
{{ 's' | items }}
{{ nums | upper }} {{ true | lower }} {{ none | lower }} {{ 1e16 | upper }} {{ d | upper }}
{{ nums | first(1) }}
{{ s | upper(1) }}
{{ s | trim(nope=1) }}
{{ s | default(1, 2, 3) }}
{{ s | replace('l', 'L') | replace('o', '0') | upper }}
{{ 'x' | upper ~ 'y' | upper }}
{{ '1,2,3'.split(',') | map('int') | sum }} {{ ('a', 'b') | map('upper') | join }} {{ {'a': 1}.items() | map('last') | list }} {{ d.keys() | sort | join(',') }} {{ d.values() | select('number') | list }} {{ 'cab' | sort | join }} {{ nums | sort | first }} {{ nums | sort | reverse | list }} {{ (nums | sort)[0] }} {{ (nums | map('string') | list)[0] }}
{{ nums is iterable }} {{ (nums | map('string')) is iterable }} {{ (nums | map('string')) is sequence }} {{ range(3) is sequence }} {{ range(3) is iterable }} {{ d.items() is sequence }} {{ d.items() is iterable }} {{ d.items() is mapping }} {{ namespace(a=1) is mapping }} {{ dict is callable }} {{ raise_exception is callable }} {{ s.upper is callable }} {{ s.upper is string }} {{ (1, 2) is sequence }} {{ (1, 2) is iterable }} {{ 'a' is sequence }} {{ d is sequence }} {{ d is iterable }} {{ 5 is sequence }} {{ 5 is iterable }} {{ true is number }} {{ true is integer }} {{ 1 is boolean }} {{ 1.0 is integer }} {{ 1.0 is float }} {{ big is integer }} {{ 1 is true }} {{ true is true }} {{ false is false }} {{ 0 is false }}
{{ 'ABC' is upper }} {{ 'A1' is upper }} {{ '1' is upper }} {{ 'É' is upper }} {{ '' is lower }} {{ 'aé' is lower }} {{ 5 is lower }} {{ none is lower }}
{{ 2.0 is even }} {{ 3.0 is odd }} {{ 2.5 is odd }} {{ true is odd }} {{ big is even }}
{{ 'a' is even }}
{{ none is odd }}
{{ 'x' is divisibleby 2 }}
{{ '%s' is divisibleby 2 }}
{{ 2.5 is divisibleby 0.5 }}
{{ 1 is in 'a' }}
{{ 1 is in 1 }}
{{ none is lt 1 }}
{{ 'upper' is filter }} {{ 5 is filter }} {{ none is test }} {{ 'tojson' is filter }} {{ 'indent' is filter }} {{ 'do' is filter }}
{{ [] is filter }}
{{ 5 is test(1) }}
{{ 5 is odd(1) }}
{{ 5 is eq }}
{{ raise_exception('boom') }}
{{ raise_exception("it's " ~ 5 ~ ' é') }}
{{ raise_exception() }}
{{ raise_exception(5) }}
{{ raise_exception(none) }}
{{ raise_exception('') }}
{{ raise_exception([1, 'a']) }}
{{ raise_exception(message='kw') }}
{{ 'a' if true else raise_exception('no') }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%A, %d %B %Y') }} {{ strftime_now('%a %j %U %W %w %u %y %m %-d %-m %e|%%|%D|%F|%G-%V') }}
{{ strftime_now('%H:%M:%S %p %I') }}
{{ strftime_now() }}
{{ strftime_now is defined }} {{ strftime_now is callable }} {{ raise_exception is defined }}
{{ strftime_now('é %Y 日') }}
{{ strftime_now(5) }}
"""
