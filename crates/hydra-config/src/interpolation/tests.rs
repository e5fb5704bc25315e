//! Interpolations by examples; `tests/golden` has the answers of omegaconf itself.

use super::*;

fn resolve(text: &str) -> Result<Node, ConfigError> {
    let root = crate::yaml::parse(text, "t").unwrap();
    resolve_tree(&root, &|name| (name == "HOME_DIR").then(|| "/h".to_owned()))
}

fn at(text: &str, key: &str) -> Node {
    resolve(text).unwrap().get(key).unwrap().clone()
}

#[test]
fn references_keep_their_type() {
    assert_eq!(at("a: 4096\nb: ${a}", "b"), Node::Int(4096));
    assert_eq!(at("a: 1\nb: x-${a}-y", "b"), Node::from("x-1-y"));
    assert_eq!(at("g: {max: 3, e: '${.max}'}\nt: {m: '${..g.max}'}", "g.e"), Node::Int(3));
    assert_eq!(at("g: {max: 3}\nt: {m: '${..g.max}'}", "t.m"), Node::Int(3));
    assert_eq!(at("m: val_loss\nf: 'm--{${m}:.3f}-{step}'", "f"), Node::from("m--{val_loss:.3f}-{step}"));
    assert_eq!(at("a: {x: 1}\nb: ${a}\nc: ${b.x}", "c"), Node::Int(1));
    assert_eq!(at("k: x\na: {x: 7}\nb: ${a.${k}}", "b"), Node::Int(7));
    assert_eq!(at("a: '\\${x}'", "a"), Node::from("${x}"));
    assert_eq!(at("a: ???\nb: 1", "a"), Node::from("???"));
    assert_eq!(at("a: ???\nb: x${a}", "b"), Node::from("???"));
}

#[test]
fn what_is_escaped_stands_for_itself() {
    let texts = [
        "${x}",
        "a \\${x} ${y}",
        "\\\\${HOME} \\n $x {} \\",
        "awk '{print $1}' \"${a[@]}\"",
        "$${x}",
        "plain \\ $",
        r#"cat > "${OUT}"; echo '\'' \" ${x#*y}"#,
    ];
    for text in texts {
        let escaped = crate::overrides::without_interpolation(text);
        let root = Node::Map([("a".to_owned(), Node::from(escaped.as_str()))].into());
        let resolved = resolve_tree(&root, &|_| None).unwrap();
        assert_eq!(resolved.get("a"), Some(&Node::from(text)), "{escaped}");
    }
}

#[test]
fn resolvers_compute() {
    assert_eq!(at("e: 4096\nm: '${int_div:${e}, 2}'\ni: '${subtract:${e}, ${m}}'", "i"), Node::Int(2048));
    assert_eq!(at("a: '${int_div:-7,2}'", "a"), Node::Int(-4));
    assert_eq!(at("a: '${int_div:7.0,2}'", "a"), Node::Float(3.0));
    assert_eq!(at("a: '${multiply:3,4}'", "a"), Node::Int(12));
    assert_eq!(at("a: '${oc.env:HOME_DIR}'", "a"), Node::from("/h"));
    assert_eq!(at("a: '${oc.env:NOPE,me}'", "a"), Node::from("me"));
    assert_eq!(at("a: '${oc.select:nope,3}'", "a"), Node::Int(3));
    assert_eq!(at("a: '${oc.decode:${oc.env:NOPE,12}}'", "a"), Node::Int(12));
}

#[test]
fn deep_nesting_is_refused() {
    let text = format!("{}a{}", "${".repeat(100_000), "}".repeat(100_000));
    let root = Node::Map([("a".to_owned(), Node::Str(text))].into());
    assert!(resolve_tree(&root, &|_| None).is_err());
}

#[test]
fn keys_split_as_omegaconf_splits_them() {
    for (key, expect) in [
        ("a.b", vec!["a", "b"]),
        ("a[b].c", vec!["a", "b", "c"]),
        ("[a].b[0]", vec!["a", "b", "0"]),
        ("a", vec!["a"]),
    ] {
        assert_eq!(split_key(key), expect, "{key}");
    }
}

#[test]
fn failures_name_key_and_expression() {
    let message = |text: &str| resolve(text).unwrap_err().to_string();
    insta::assert_snapshot!(message("a: {b: '${nope.x}'}"), @"cannot resolve `${nope.x}` at `a.b`: there is no key `nope.x`");
    insta::assert_snapshot!(message("a: ${b}\nb: ${a}"), @"cannot resolve `${b}` at `a`: the references form a cycle: `a` -> `b` -> `a`");
    insta::assert_snapshot!(message("a: '${int_div:1,0}'"), @"cannot resolve `${int_div:1,0}` at `a`: a division by zero, or an integer past 64 bits");
    insta::assert_snapshot!(message("a: '${oc.env:NOPE}'"), @"cannot resolve `${oc.env:NOPE}` at `a`: environment variable `NOPE` is not set");
}
