//! Documents by examples; `tests/golden` has the answers of omegaconf itself.

use super::*;

fn message(text: &str) -> String {
    parse(text, "a.yaml").unwrap_err().to_string()
}

#[test]
fn documents_become_trees() {
    let node =
        parse("b: 1\na:\n  - x\n  - {c: 2.5, d: \"1\"}\nbase: &b {p: 1, q: 2}\nm:\n  <<: *b\n  p: 3\n", "t")
            .unwrap();
    assert_eq!(node.get("b"), Some(&Node::Int(1)));
    assert_eq!(node.get("a.1.d"), Some(&Node::from("1")));
    assert_eq!(node.get("m.p"), Some(&Node::Int(3)));
    assert_eq!(node.get("m.q"), Some(&Node::Int(2)));
    assert_eq!(node.as_map().unwrap().keys().next().unwrap(), "b");
    assert_eq!(parse("", "t").unwrap(), Node::empty_map());
    assert_eq!(parse("a: \"\\x0A\"\nb: '\\x0A'\n", "t").unwrap().get("a"), Some(&Node::from("\n")));
}

#[test]
fn values_know_their_lines() {
    let document = Document::parse("a: 1\nb:\n  c: x\n\n  d:\n  - 1\n  - e: 2\nf.g: 3\n", "t").unwrap();
    let line = |path: &[&str]| {
        document.lines.get(&path.iter().map(|&key| key.to_owned()).collect::<Vec<_>>()).copied()
    };
    assert_eq!(line(&["a"]), Some(1));
    assert_eq!(line(&["b", "c"]), Some(3));
    assert_eq!(line(&["b", "d"]), Some(5));
    assert_eq!(line(&["b", "d", "1", "e"]), Some(7));
    assert_eq!(line(&["f.g"]), Some(8));
}

#[test]
fn errors_name_the_place() {
    insta::assert_snapshot!(message("a: 1\na: 2\n"), @"a.yaml:2:1: key `a` appears twice");
    insta::assert_snapshot!(message("a: [1\n"), @"a.yaml:2:1: expected `,` or `]`, found the end of the document");
    insta::assert_snapshot!(message("? [a]\n: 1\n"), @"a.yaml:1:3: a key must be a string, not a list or a map");
    insta::assert_snapshot!(message("a: b: c\n"), @"a.yaml:1:5: a second `:` in a value (put the value in quotes) is not allowed here");
    insta::assert_snapshot!(message("a:\n\tb: 1\n"), @"a.yaml:2:1: a tab cannot indent or begin a value; use spaces");
    insta::assert_snapshot!(message("a: 1\nb\n"), @"a.yaml:2:1: this line has no `: ` after its key");
    insta::assert_snapshot!(message("a: 1\n  b: 2\n"), @"a.yaml:2:4: a second `:` in a value (put the value in quotes) is not allowed here");
    insta::assert_snapshot!(message("a: %x\n"), @"a.yaml:1:4: `%` cannot begin a value; put the value in quotes");
    insta::assert_snapshot!(message("a: \"\\d\"\n"), @r"a.yaml:1:6: `\d` is not an escape; write `\\d`, or put the string in single quotes");
    insta::assert_snapshot!(message("a: 'x\n"), @"a.yaml:1:4: a quoted string has no closing quote");
    insta::assert_snapshot!(message("a: *x\n"), @"a.yaml:1:4: there is no anchor `&x` above");
    insta::assert_snapshot!(message("a: ${b\n"), @"a.yaml:1:4: `${b` is not a string with interpolations: expected `}` after a key, found the end");
    insta::assert_snapshot!(message("a: !!python/name:os x\n"), @"a.yaml:1:4: tag `tag:yaml.org,2002:python/name:os` is not supported");
    insta::assert_snapshot!(message("12\n"), @"a.yaml:1:1: the document is the whole number 12, not a map or a list");
    assert!(message(&"[".repeat(1000)).contains("nested deeper"));
}

#[test]
fn aliases_cannot_fill_the_memory() {
    let mut text = String::from("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
    for level in 1..9 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(message(&text).contains("aliases make more than"));
    let mut text = String::from("a0: &a0 [1]\n");
    for level in 1..1000 {
        text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(message(&text).contains("nested deeper than"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-c:\\- \\[\\]{}&*#'\"\n,0-9.?|>!%\t]{0,60}") {
        let _ = parse(&text, "t");
    }
}
