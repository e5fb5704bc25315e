"""Statements: loops, set, scopes, macros, call and filter blocks, with, raw, comments, whitespace, tags of transformers.

Cases stand between lines of five dashes; the line break before the dashes is not part of the case.
␠ stands for a space at the end of a line.
"""

CASES = r"""
{% for x in nums %}{{ loop.index }},{{ loop.index0 }},{{ loop.revindex }},{{ loop.revindex0 }},{{ loop.first }},{{ loop.last }},{{ loop.length }},{{ loop.depth }},{{ loop.depth0 }},{{ loop.previtem }},{{ loop.nextitem }};{% endfor %}
-----
{% for x in nums %}{{ loop }}{% endfor %}
-----
{% for x in nums %}{{ loop.nope }}|{{ loop['index'] }}|{{ loop.previtem is defined }}|{{ loop.nextitem is defined }}{% endfor %}
-----
{% for x in nums %}{{ loop.nope.x }}{% endfor %}
-----
{% for x in nums %}{{ loop.cycle('a', 'b') }}{% endfor %}
-----
{% for x in nums %}{{ loop.cycle() }}{% endfor %}
-----
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{% endfor %}
-----
{% for x in [1, 1, 2] %}{{ loop.changed(x, 'a') }}{% endfor %}
-----
{% for x in [] %}a{% else %}empty{% endfor %}
-----
{% for x in nums if x > 1 %}{{ loop.index }}{{ x }}{{ loop.length }}{{ loop.last }}{% endfor %}
-----
{% for x in nums if x > 9 %}a{% else %}none{% endfor %}
-----
{% for x in nums if loop.index > 1 %}a{% endfor %}
-----
{% for x in nums if x is odd and not loop %}a{{ x }}{% endfor %}
-----
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for (a, b) in [(1, 2)] %}{{ a }}{% endfor %}
-----
{% for a, in [(1,), (2,)] %}{{ a }}{% endfor %}
-----
{% for k, v in d.items() %}{{ loop.index }}{{ k }}:{{ v }};{% endfor %}
-----
{% for k in d %}{{ k }}{% endfor %}{% for c in 'héy' %}{{ c }}-{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}
-----
{% for x in d.keys() %}{{ x }}{% endfor %}{% for x in d.values() %}{{ x }}{% endfor %}{% for x in nums | map('string') %}{{ loop.length }}{{ x }}{{ loop.last }}{% endfor %}
-----
{% for x in nums recursive %}{{ x }}{% endfor %}
-----
{% set tree = [{'n': 1, 'c': [{'n': 2, 'c': []}, {'n': 3, 'c': [{'n': 4, 'c': []}]}]}] %}{% for x in tree recursive %}[{{ loop.depth }}{{ loop.depth0 }}{{ x.n }}{{ loop(x.c) }}]{% endfor %}
-----
{% for x in [[1, [2]], [3]] recursive %}{% if x is sequence %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}
-----
{% for x in nums %}{{ loop([1]) }}{% endfor %}
-----
{% for x in nums %}{% for y in words %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}
-----
{% for x in nums %}{% set outer = loop %}{% for y in [1, 2] %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
-----
{% for x in nums %}{{ x }}{% break %}{% endfor %}|{% for x in nums %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}|{% for x in nums %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}E{% endfor %}
-----
{% for x in [] %}{% break %}{% else %}E{% endfor %}
-----
{% for x in nums %}{% for y in nums %}{% break %}{% endfor %}{{ x }}{% endfor %}
-----
{% break %}
-----
{% for x in nums %}a{% else %}{% break %}{% endfor %}
-----
{% continue %}
-----
{% if true %}{% break %}{% endif %}
-----
{% for loop in nums %}{{ loop }}{% endfor %}
-----
{% for x in nums %}{% set loop = 5 %}{{ loop }}{% endfor %}
-----
{% for x in 5 %}{% endfor %}
-----
{% for x in nums %}{% endfor %}{{ x }}|{{ loop is defined }}
-----
{% set x = 'o' %}{% for x in nums %}{{ x }}{% endfor %}{{ x }}
-----
{% set x = 1 %}{% for y in nums %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}
-----
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
-----
{% if false %}{% set x = 2 %}{% endif %}{{ x }}|{{ x is defined }}
-----
{% if true %}{% set q = 2 %}{% else %}{% set q = 3 %}{% endif %}{{ q }}
-----
{% for y in nums %}{% if loop.first %}{% set z = y %}{% endif %}{{ z }}|{% endfor %}
-----
{% for y in nums %}{{ z }}{% set z = y %}{{ z }};{% endfor %}{{ z }}
-----
{% set z = 'top' %}{% for y in nums %}{{ z }}{% set z = y %}{{ z }};{% endfor %}{{ z }}
-----
{% set x = 1 %}{% macro m() %}{{ x }}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}
-----
{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}
-----
{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% set x = 1 %}{{ m() }}
-----
{% macro m() %}[{{ i }}{{ messages | length }}]{% endmacro %}{{ m() }}
-----
{% set x = 1 %}{% with x = 2 %}{{ x }}{% set x = 3 %}{{ x }}{% endwith %}{{ x }}
-----
{% with a = 1, b = a %}{{ a }}{{ b }}|{% endwith %}{{ a }}|
-----
{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}|
-----
{% with a = 1 %}{% with b = a + 1 %}{{ b }}{% endwith %}{% endwith %}
-----
{% with a, b = (1, 2) %}{{ a }}{{ b }}{% endwith %}
-----
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}{% set (c, d2), e = (1, 2), 3 %}{{ c }}{{ d2 }}{{ e }}
-----
{% set a, b = 1 %}
-----
{% set a, b = [1, 2, 3] %}
-----
{% set a, b = 'xy' %}{{ a }}{{ b }}{% set k, v = {'p': 1, 'q': 2} %}{{ k }}{{ v }}
-----
{% set a = 1, 2 %}{{ a }}{% set a = 1, %}{{ a }}
-----
{% set a %}block {{ i }}
{% endset %}[{{ a }}]{{ a is string }}{{ a is escaped }}{{ a | length }}
-----
{% set a | upper %}block {{ i }}{% endset %}{{ a }}{% set a | trim | replace('b', 'X') %}  bb  {% endset %}[{{ a }}]
-----
{% set a %}{% set b = 5 %}{{ b }}{% endset %}{{ a }}{{ b }}
-----
{% set a, b %}x{% endset %}
-----
{% set a %}<b>{% endset %}{{ a ~ '<' }}{{ a + '<' }}
-----
{% set true = 1 %}
-----
{% set none = 1 %}
-----
{% set a.b %}x{% endset %}
-----
{% set 'a' = 1 %}
-----
{% set a = %}
-----
{% set a == 1 %}
-----
{% set a = 1 if false %}{{ a is defined }}|{{ a }}
-----
{% set a = (1 if false) %}{{ a is undefined }}
-----
{% set messages = messages[1:] %}{{ messages | length }}{{ messages[0].role }}
-----
{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0].content %}{% else %}{% set loop_messages = messages %}{% endif %}{{ system }}{% for m in loop_messages %}{{ m['role'] }}{% endfor %}
-----
{% set x = [1] %}{% set x = x + [2] %}{{ x }}
-----
{% set dict = 5 %}{{ dict }}{% set range = 1 %}{{ range }}
-----
{{ x }}{% set x = 1 %}{{ x }}
-----
{{ i }}{% set i = 99 %}{{ i }}
-----
{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(a=1, c=9) }} {{ m() }} {{ m(1, 2, 3) }}
-----
{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1, 2, 3) }}
-----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=1) }}
-----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
-----
{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}{{ m(1) }}
-----
{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(1, x=2, y=3) }}{{ m(1) }}
-----
{% macro m() %}{{ varargs | join(',') }};{% for k, v in kwargs | dictsort %}{{ k }}={{ v }}{% endfor %}{% endmacro %}{{ m(1, 2, b=3, a=4) }}{{ m(*[1, 2], **{'z': 1}) }}
-----
{% macro m(a, b=1, *c) %}{% endmacro %}
-----
{% macro m(a=1, b) %}{% endmacro %}
-----
{% macro m(a, a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
-----
{% macro m(x) %}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}{% endmacro %}{{ m(1) }}{{ m.name }}{{ m.arguments }}{{ m.nope }}
-----
{% macro m(x) %}{% endmacro %}{{ m }}
-----
{% macro m(x) %}{% endmacro %}{{ m is callable }}{{ m is defined }}{{ m is string }}{{ m is mapping }}
-----
{% macro m() %}  a  {% endmacro %}[{{ m() }}]{{ m() is string }}{{ m() | trim }}{{ m() | length }}{{ m() == '  a  ' }}
-----
{% macro m() %}<b>{% endmacro %}{{ m() ~ '<' }}{{ m() + '<' }}{{ m() | e }}{{ m() is escaped }}
-----
{% macro fact(n) %}{{ n }}{% if n > 1 %}*{{ fact(n - 1) }}{% endif %}{% endmacro %}{{ fact(5) }}
-----
{% macro m(x) %}{{ m2(x) }}{% endmacro %}{% macro m2(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}
-----
{{ m(1) }}{% macro m(x) %}{{ x }}{% endmacro %}
-----
{% if true %}{% macro m() %}in{% endmacro %}{% endif %}{{ m() }}
-----
{% for x in nums %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}
-----
{% for x in nums %}{% macro m() %}{{ x }}{% endmacro %}{% endfor %}{{ m() }}
-----
{% macro m(x=[]) %}{{ x }}{% endmacro %}{{ m() }}{{ m([1]) }}{{ m(none) }}{{ m(missing) }}|
-----
{% macro m(x=missing) %}{{ x is defined }}{% endmacro %}{{ m() }}
-----
{% macro m(x) %}{{ x is defined }}{{ x }}{% endmacro %}{{ m() }}
-----
{% macro m(x) %}{{ x.y }}{% endmacro %}{{ m() }}
-----
{% macro m(x) %}{{ caller() }}{% endmacro %}{% call m(1) %}body{% endcall %}
-----
{% macro m(x) %}[{{ caller(x, 2) }}]{% endmacro %}{% call(a, b) m(1) %}{{ a }}-{{ b }}{% endcall %}
-----
{% macro m(x) %}[{{ caller(x) }}]{% endmacro %}{% call(a, b='d') m(1) %}{{ a }}-{{ b }}{% endcall %}
-----
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}
-----
{% macro m() %}{% if caller %}{{ caller() }}{% else %}no{% endif %}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}
-----
{% macro m() %}a{% endmacro %}{% call m() %}x{% endcall %}
-----
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
-----
{% macro m(caller) %}{{ caller }}{% endmacro %}{{ m(1) }}
-----
{% macro m(caller=none) %}{{ caller is none }}{% endmacro %}{{ m() }}
-----
{% set x = 'outer' %}{% macro m() %}{% set x = 'inner' %}{{ caller() }}{% endmacro %}{% call m() %}{{ x }}{% endcall %}
-----
{% call missing() %}x{% endcall %}
-----
{% call 5 %}x{% endcall %}
-----
{% call s.upper() %}x{% endcall %}
-----
{% macro m() %}{% for x in nums %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(y) m() %}({{ y }}){% endcall %}
-----
{% filter upper %}abc {{ s }}{% endfilter %}|{% filter trim | replace('a', 'b') %} aa {% endfilter %}|{% filter indent(2, true) %}a
b
{% endfilter %}|{% filter escape %}<>{% endfilter %}
-----
{% filter nosuch %}x{% endfilter %}
-----
{% filter upper %}{% set q = 1 %}{{ q }}{% endfilter %}{{ q }}|
-----
{% filter length %}abc{% endfilter %}
-----
{% raw %}{{ x }}{% if %}{# c #}{% endraw %}
-----
{%- raw -%}  {{ x }}  {%- endraw -%}  a
-----
a {% raw %}
b
{% endraw %}
c
-----
{% raw %}unclosed
-----
a{# comment #}b{#- c -#} d {#+ e +#} f
-----
{# unclosed
-----
a
{# comment #}
b
-----
a
  {# comment #}
b
-----
a
  {#- comment -#}
b
-----
a{# multi
line #}
b
-----
{% if true %}
  a
{% endif %}
b
-----
  {% if true %}
    a
  {% endif %}
b
-----
  {%+ if true %}
    a
  {%+ endif %}
b
-----
{% if true +%}
a
{% endif +%}
b
-----
{%- if true -%}
a
{%- endif -%}
b
-----
x {% if true %} a {% endif %} y
-----
x	{% if true %}	a{% endif %}
	{% if true %}b{% endif %}
-----
{{ i }}
{{ i }}

{{ i }}
-----
{{- i }}  {{ i -}}  x
-----
  {{ i }}␠␠
  {{- i -}}␠␠
  x
-----
  {{+ i }}
-----
{{ +i +}}
-----
a  {{- 1 -}}  b  {%- set q = 1 -%}  c
-----
a

{%- if true %}


b

{%- endif %}


c
-----
{% if true %}␠␠␠
a{% endif %}␠␠␠
b
-----
a␠␠
  {% set q = 1 %}
␠␠
  b
-----
  a {% set q = 1 %}
  b
-----
a
    {%- set q = 1 %}
    b
-----
a{% set q = 1 %}

b
-----
<tag>
    {% for x in nums %}
        {{ x }}
    {% endfor %}
</tag>
-----
<tag>
    {%- for x in nums %}
        {{- x }}
    {%- endfor %}
</tag>
-----
{% for x in nums -%}
    {{ x }},
{%- endfor %}
-----
{% for x in nums %}

{{ x }}

{% endfor %}
-----
{% macro m() -%}
  a
{%- endmacro %}
[{{ m() }}]
-----
{%-set q=1-%}{{-q-}}{%if q==1%}y{%endif%}
-----
{%- -%}
-----
{% %}
-----
{%
-----
{{
-----
{{ i
-----
{{ 'a' }
-----
a }} b %} c #}
-----
{ { i } } {% raw %}{{{% endraw %}
-----
{{{'a': 1}}}
-----
{{ {'a': {'b': 1}} }}
-----
{{ {'a': {'b': 1}}}}
-----
{{ '}}' }}{{ "%}" }}{% if '%}' %}x{% endif %}{{ '{{' }}{{ '#}' }}
-----
{# {{ x }} {% if %} #}ok
-----
{# a #} #}
-----
# line
## line
-----
{% if i == 7 %}a{% elif i == 8 %}b{% else %}c{% endif %}{% if i == 8 %}a{% elif i == 7 %}b{% else %}c{% endif %}{% if i == 9 %}a{% elif i == 8 %}b{% else %}c{% endif %}
-----
{% if %}a{% endif %}
-----
{% if true %}a
-----
{% if true %}a{% endfor %}
-----
{% endif %}
-----
{% else %}
-----
{% if true %}a{% else %}b{% else %}c{% endif %}
-----
{% if true %}a{% else if true %}b{% endif %}
-----
{% if true %}a{% elseif true %}b{% endif %}
-----
{% for %}{% endfor %}
-----
{% for x %}{% endfor %}
-----
{% for x in %}{% endfor %}
-----
{% for x in nums %}a
-----
{% for x.y in nums %}a{% endfor %}
-----
{% for x in nums, words %}{{ x }};{% endfor %}
-----
{% for x in 1, 2 %}{{ x }};{% endfor %}
-----
{% for x in nums if %}a{% endfor %}
-----
{% for x in nums else %}a{% endfor %}
-----
{% unknown %}
-----
{% unknown x = 1 %}{% endunknown %}
-----
{% do 1 %}
-----
{% trans %}x{% endtrans %}
-----
{% debug %}
-----
{% set %}
-----
{% macro %}{% endmacro %}
-----
{% macro m %}{% endmacro %}
-----
{% macro m( %}{% endmacro %}
-----
{% macro m() %}a{% endmacro m %}
-----
{% macro m() %}a{% endmacro %}{{ m( }}
-----
{% block a %}x{{ i }}{% endblock %}{{ self.a() }}
-----
{% block a %}x{% endblock a %}{% block b %}{% block c %}y{% endblock %}{% endblock %}
-----
{% block a %}x{% endblock b %}
-----
{% block a %}x{% endblock %}{% block a %}y{% endblock %}
-----
{% set q = 1 %}{% block a %}{{ q }}{% endblock %}
-----
{% for x in nums %}{% block a %}{{ x }}{% endblock %}{% endfor %}
-----
{% for x in nums %}{% block a scoped %}{{ x }}{% endblock %}{% endfor %}
-----
{% block a %}{{ super() }}{% endblock %}
-----
{% block a required %}{% endblock %}
-----
{% block a-b %}{% endblock %}
-----
{% extends 'x' %}
-----
{% extends missing %}
-----
{% include 'x' %}
-----
{% include 'x' ignore missing %}a
-----
{% include ['x', 'y'] %}
-----
{% include missing %}
-----
{% import 'x' as y %}
-----
{% from 'x' import y %}
-----
{% if false %}{% include 'x' %}{% endif %}ok
-----
{% import 'x' %}
-----
{% autoescape true %}{{ html }}{{ '<' }}{{ '<' | safe }}{{ '<' ~ '>' }}{% endautoescape %}{{ html }}
-----
{% autoescape false %}{{ html }}{% endautoescape %}
-----
{% autoescape true %}{% set a %}<{{ '<' }}{% endset %}{{ a }}{{ a is escaped }}{% macro m() %}<{{ '<' }}{% endmacro %}{{ m() }}{{ m() is escaped }}{{ d | tojson }}{{ ['<'] | join('>') }}{% endautoescape %}
-----
{% autoescape i == 7 %}{{ '<' }}{% endautoescape %}
-----
{% generation %}a{{ i }}{% endgeneration %}
-----
{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}
-----
{%- generation -%}  a  {%- endgeneration -%}  b
-----
a
{% generation %}
b
{% endgeneration %}
c
-----
{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}|
-----
{% set q = 0 %}{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}|
-----
{% set ns = namespace(q=0) %}{% generation %}{% set ns.q = 1 %}{% endgeneration %}{{ ns.q }}
-----
{% for x in nums %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}
-----
{% for x in nums %}{% generation %}{{ x }}{% break %}{% endgeneration %}{% endfor %}
-----
{% for x in nums %}{% set ret = x %}{% generation %}{{ ret }}{% set ret = 9 %}{{ ret }}{% endgeneration %}{{ ret }};{% endfor %}
-----
{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}
-----
{% generation foo %}x{% endgeneration %}
-----
{% generation %}x
-----
{% endgeneration %}
-----
{% macro m() %}{% generation %}x{% endgeneration %}{% endmacro %}{{ m() }}
-----
{% set a %}{% generation %}x{% endgeneration %}{% endset %}{{ a }}
-----
{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}
-----
{{ '[' * 5 }}{{ ((((((((((1)))))))))) }}
-----
{% set a = [1, 2, 3] %}{% set b = a %}{{ a is sameas b }}{{ a == b }}
-----
{% set it = nums | map('string') %}{{ it | list }}{{ it | list }}
-----
{% set it = nums | select('odd') %}{% for x in it %}{{ x }}{% endfor %}|{% for x in it %}{{ x }}{% else %}E{% endfor %}
-----
{% for x in nums | map('string') %}{{ loop.nextitem }}{{ loop.last }}{{ loop.revindex }};{% endfor %}
-----
{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}x{% endif %}
-----
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}
-----
{% for tool in tools %}{% set f = tool.function %}{{ f.name }}({% for k, v in f.parameters.properties.items() %}{{ k }}: {{ v.type }}{% if k in f.parameters.required %}!{% endif %}{{ ', ' if not loop.last }}{% endfor %}){% endfor %}
-----
{% for tool in tools %}{{ tool | tojson(indent=4) }}{% if not loop.last %}

{% endif %}{% endfor %}
-----
{%- for message in messages[::-1] %}{% set index = (messages | length - 1) - loop.index0 %}{{ index }}{{ message.role }} {% endfor %}
-----
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}{{ ns.last_query_index }}
-----
{{ messages[0]['role'] }}{{ messages[-1].content }}{{ messages[99] }}|{{ (messages | last).role }}{{ messages | map(attribute='role') | join(',') }}{{ messages[1:] | length }}{{ messages[0:1] + messages[2:] | length }}
-----
{{ messages[0:1] + messages[2:] }}
-----
{{ messages[99].role }}
-----
{% if messages[0].tool_calls %}a{% else %}b{% endif %}{% if messages[0]['tool_calls'] is defined and messages[0]['tool_calls'] is not none %}a{% else %}b{% endif %}
-----
{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }}{% if not loop.last %},{% endif %}{% endfor %}
-----
{% set content = messages[1].content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ content.strip() }}
-----
{% macro render(x, depth=0) %}{% if x is mapping %}{ {%- for k, v in x | items %}{{ k }}:{{ render(v, depth + 1) }},{% endfor %}}{% elif x is string %}"{{ x }}"{% elif x is iterable %}[{% for v in x %}{{ render(v, depth + 1) }};{% endfor %}]{% else %}{{ x }}{% endif %}{% endmacro %}{{ render(mixed) }}{{ render(d) }}{{ render(tools) }}
-----
{{ 'a
b' }}
-----
{{ 'a\
b' }}
-----
{{
  i
  +
  1
}}{%
  if i
%}x{%
  endif
%}
-----
{% set x =
 [1,
  2] %}{{ x }}{% set y = {
  'a': 1
} %}{{ y }}
-----
{{ s
   | upper
   | lower }}
-----
{% if i == 7
   and f == 2.5 -%}
  yes
{%- endif %}
-----
{{ lipsum() is string }}{{ lipsum(n=1, min=2, max=3) is defined }}
-----
{{ gettext is defined }}{{ _ is defined }}{{ context is defined }}{{ environment is defined }}{{ request is defined }}{{ true is defined }}{{ self is defined }}{{ loop is defined }}{{ varargs is defined }}{{ messages is defined }}{{ tools is defined }}{{ documents is defined }}{{ dict is defined }}{{ cycler is defined }}{{ lipsum is defined }}
-----
{{ [1, 2, 3] | map('string') | join('') ~ 'x' }}
-----
{% set s2 %}{{ s }}{% endset %}{{ s2 == s }}{{ s2 }}
-----
{% for x in range(3) %}{% for y in range(x) %}{{ x }}{{ y }} {% else %}none {% endfor %}{% endfor %}
-----
{% set x = namespace(v=0) %}{% macro inc() %}{% set x.v = x.v + 1 %}{% endmacro %}{{ inc() }}{{ inc() }}{{ x.v }}
-----
{% macro a() %}{% macro b() %}in{% endmacro %}{{ b() }}{% endmacro %}{{ a() }}{{ b is defined }}
-----
{% set ns = namespace(l=[]) %}{% for x in nums %}{% set ns.l = ns.l + [x * 2] %}{% endfor %}{{ ns.l }}{{ ns.l | sum }}
-----
{% set a = 1 %}{% set a = a ~ 'b' %}{{ a }}{% set _ = 5 %}{{ _ }}{% set __x = 1 %}{{ __x }}
-----
{% for x in nums %}{% if loop.first and not loop.last %}F{% elif loop.last %}L{% endif %}{{ loop.index is odd }}{{ loop.index is divisibleby 3 }}{% endfor %}
-----
{{ caller() }}
-----
{% with messages = [] %}{{ messages }}{% endwith %}{{ messages | length }}
-----
{% set x = 5 %}{% set f %}{% for y in nums %}{{ x + y }}{% endfor %}{% endset %}{{ f }}
-----
{%- macro m(a, b) -%}{{ a ~ b }}{%- endmacro -%}{{ m('x', b='y') }}{{ m(b=1, a=2) }}{{ m(*['p'], b='q') }}{{ m(**{'a': 1, 'b': 2}) }}
-----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(*5) }}
-----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(**5) }}
-----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, **{'a': 2}) }}
-----
{{ s.upper() if s is defined and s else '' }}{{ ('a' if i else 'b') ~ 'c' }}{{ 'a' if i else 'b' ~ 'c' }}
-----
{% if i is not defined or not i %}a{% else %}b{% endif %}{% if not (i and fa) %}c{% endif %}{% if not i is defined %}d{% endif %}{% if i and not fa or n %}e{% endif %}
-----
{% if 'x' in missing|default('') %}a{% else %}b{% endif %}{% if missing|default([])|length > 0 %}a{% else %}b{% endif %}
-----
é日本🎉{{ '🎉' }}{# 日本 #}{% if '日' == '日' %}本{% endif %}
-----
{{ people | selectattr('age', 'ge', 3) | sort(attribute='name') | map(attribute='name') | map('upper') | join(' & ') }}
-----
{% for city, group in people | groupby('city') %}{{ city }}: {{ group | map(attribute='name') | join(', ') }}{{ '; ' if not loop.last }}{% endfor %}
"""


def cases():
    for case in CASES[1:-1].split("\n-----\n"):
        yield case.replace("␠", " ")
    # Line ends and the end of the text, which the list above cannot hold.
    for text in ["a\n", "a\n\n", "\n", "", "a\r\n", "a\r\n\r\n", "a\r", "\r\n", " ", "\n\n\n", "a\rb\nc\r\nd"]:
        yield text
        yield "{{ i }}" + text
        yield "{% if true %}" + text + "{% endif %}" + text
        yield "{% set q = 1 %}" + text + "b" + text
        yield "{# c #}" + text + "b" + text
        yield "{% raw %}" + text + "{% endraw %}" + text
        yield text + "  {%- if true -%}" + text + "x" + text + "{%- endif %}" + text
        yield text + "  {{- i -}}" + text + "x"
        yield "{% set q %}" + text + "{% endset %}{{ q | tojson }}"
        yield "{{ '" + text + "' | tojson }}"
    for space in ["\t", "\x0b", "\x0c", "\x85", "\xa0", "\u2003", "\u2028", "\ufeff", "\x1c", "\u200b"]:
        yield f"a{space}{{%- if true -%}}{space}b{space}{{%- endif -%}}{space}c"
        yield f"a\n{space}{{% if true %}}{space}\nb{{% endif %}}"
        yield f"{{{{{space}i{space}}}}}"
        yield f"a\n{space}{{# c #}}{space}\nb"
    for depth in [20, 90, 200]:
        yield "{{ " + "(" * depth + "1" + ")" * depth + " }}"
        yield "{{ " + "[" * depth + "]" * depth + " | string | length }}"
        yield "{{ 1" + " + 1" * depth + " }}"
        yield "{{ s" + " | upper" * depth + " }}"
    for depth in [5, 15]:
        yield "{% for x in [1] %}" * depth + "{{ loop.depth }}" + "{% endfor %}" * depth
        yield "{% if i %}" * depth + "x" + "{% endif %}" * depth
