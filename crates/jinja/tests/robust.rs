//! Nothing that a template or the data hold may bring the program down: no panic, no full stack, no memory without end.

use jinja::{ErrorKind, Template, Variable};
use proptest::prelude::*;

/// The stack of a thread as the standard library makes it.
const STACK_BYTES: usize = 2 << 20;

fn render(source: &str) -> Result<String, jinja::Error> {
    let messages = Variable::list([Variable::dict([
        ("role", Variable::from("user")),
        ("content", Variable::from("é")),
    ])]);
    Template::parse(source)?.render([("messages", messages), ("n", Variable::number("7"))], None)
}

/// The kind of error that `source` ends with, found on a thread with a small stack.
fn fails_with(source: &str) -> Option<ErrorKind> {
    let source = source.to_owned();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let thread = thread.spawn(move || render(&source).err().map(|error| error.kind));
    thread.ok()?.join().ok()?
}

#[test]
fn depth_ends_in_an_error() {
    let (recursion, refused) = (Some(ErrorKind::Recursion), Some(ErrorKind::Refused));
    assert_eq!(fails_with("{% macro m(x) %}{{ m(x + 1) }}{% endmacro %}{{ m(0) }}"), recursion);
    assert_eq!(
        fails_with("{% macro m() %}{{ caller and 1 }}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}"),
        recursion
    );
    assert_eq!(fails_with("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"), recursion);
    assert_eq!(fails_with(&format!("{{{{ {}1 }}}}", "1 + ".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{{{{ n{} }}}}", " | abs".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{{{{ n{} }}}}", ".real".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{{{{ {}1{} }}}}", "[".repeat(5000), "]".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{{{{ {}1 }}}}", "not ".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{{{{ {}1 }}}}", "-".repeat(5000))), refused);
    assert_eq!(fails_with(&format!("{}{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000))), refused);
    // Real templates go much less deep: thirty calls of a macro in itself are nothing.
    let source =
        "{% macro m(x) %}{% if x %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(30) | length }}";
    assert_eq!(render(source).as_deref(), Ok("51"));
}

#[test]
fn size_ends_in_an_error() {
    for source in [
        "{{ 'a' * 10**12 }}",
        "{{ [1] * 10**12 }}",
        "{{ 'a'.center(10**12) }}",
        "{{ 'a'.zfill(10**12) }}",
        "{{ '%999999999999d' % 1 }}",
        "{{ '{:999999999999}'.format(1) }}",
        "{{ 'a' | indent(10**12) }}",
        "{{ messages | tojson(indent=10**12) }}",
        "{{ 'a\\tb'.expandtabs(10**12) }}",
        "{{ '%.*f' % (10**12, 1.0) }}",
        "{{ ([1] | batch(10**12, 0)) | list }}",
        "{{ ([1] | slice(10**12)) | list }}",
    ] {
        assert_eq!(fails_with(source), Some(ErrorKind::Refused), "{source}");
    }
    assert_eq!(fails_with("{{ range(100001) }}"), Some(ErrorKind::Overflow));
}

#[test]
fn a_macro_does_not_outlive_its_rendering() {
    // A macro and the scope that it is set in point at each other; a million prompts may leave nothing behind.
    let template =
        Template::parse("{% set big = 'x' * 1000000 %}{% macro m() %}{{ big[:1] }}{% endmacro %}{{ m() }}");
    let template = template.unwrap();
    for _ in 0..3000 {
        assert_eq!(template.render([], None).as_deref(), Ok("x"));
    }
    // 3 GB would be left otherwise.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let resident_kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(resident_kib < 1_000_000, "{line}");
}

fn fragments() -> impl Strategy<Value = String> {
    const PARTS: [&str; 60] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-",
        "+",
        "%",
        "for ",
        "x",
        " in ",
        "messages",
        "if ",
        "else",
        "endfor",
        "endif",
        "set ",
        "=",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "|",
        "~",
        ".",
        ",",
        ":",
        "'a'",
        "\"é\"",
        "1",
        "0",
        "2.5",
        "1e9",
        "**",
        "//",
        "*",
        "/",
        "not ",
        "is ",
        "none",
        "true",
        "macro m(x)",
        "endmacro",
        "m(",
        "loop",
        "n",
        "range(3)",
        "tojson",
        "length",
        "join",
        "format",
        "split",
        "role",
        "\n",
        " ",
        "\\",
        "raw",
    ];
    prop::collection::vec(prop::sample::select(PARTS.as_slice()), 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn pieces_of_templates_never_panic(source in fragments()) {
        let _ = render(&source);
    }

    #[test]
    fn expressions_never_panic(source in fragments()) {
        let _ = render(&format!("{{{{ {source} }}}}"));
    }

    #[test]
    fn text_without_tags_is_itself(text in "[^{\r]{0,40}") {
        let expected = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        prop_assert_eq!(render(&text), Ok(expected));
    }

    #[test]
    fn formats_never_panic(format in "[%{}()a-z0-9.#+*!:\\[\\]<>=^_,é-]{0,20}", value in "(1|2\\.5|'é'|none|\\[1\\]|true|n)") {
        let _ = render(&format!("{{{{ '{format}' % {value} }}}}"));
        let _ = render(&format!("{{{{ '{format}'.format({value}, a={value}) }}}}"));
    }

    #[test]
    fn slices_are_pythons(start in -6i64..6, stop in -6i64..6, step in prop::sample::select(vec![-3i64, -2, -1, 1, 2, 3])) {
        let text = render(&format!("{{{{ 'abcd'[{start}:{stop}:{step}] }}}}")).unwrap();
        let list = render(&format!("{{{{ ['a', 'b', 'c', 'd'][{start}:{stop}:{step}] | join }}}}")).unwrap();
        prop_assert_eq!(text, list);
    }
}
