//! The grammar by examples; `tests/golden` has the answers of hydra-core itself.

use super::*;

fn value(text: &str) -> Node {
    parse(&format!("a={text}")).unwrap().value.unwrap()
}

#[test]
fn kinds_and_keys() {
    for (text, kind, key) in [
        ("a.b=1", OverrideKind::Set, "a.b"),
        ("+a=1", OverrideKind::Add, "a"),
        ("++a.0.b=1", OverrideKind::ForceAdd, "a.0.b"),
        ("~a", OverrideKind::Delete, "a"),
        ("hydra/job_logging=stdout", OverrideKind::Set, "hydra/job_logging"),
        ("hydra.run.dir=.", OverrideKind::Set, "hydra.run.dir"),
        ("db@a.b=x", OverrideKind::Set, "db"),
    ] {
        let parsed = parse(text).unwrap();
        assert_eq!((parsed.kind, parsed.key.as_str()), (kind, key), "{text}");
    }
    for text in ["a[0]=1", "a b=1", "=1", "a", "a.=1", " a=1", "group/=1", "a@b c=1"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn values_have_hydras_types() {
    for (text, expected) in [
        ("", Node::from("")),
        ("NULL", Node::Null),
        ("True", Node::Bool(true)),
        ("yes", Node::from("yes")),
        ("+5", Node::Int(5)),
        ("1_000", Node::Int(1000)),
        ("012", Node::from("012")),
        ("1__0", Node::from("1__0")),
        ("9e-6", Node::Float(9e-6)),
        (".5", Node::Float(0.5)),
        ("1.", Node::Float(1.0)),
        ("-inf", Node::Float(f64::NEG_INFINITY)),
        ("1:00:00:00", Node::from("1:00:00:00")),
        ("/p/x y ", Node::from("/p/x y")),
        ("x${b}y", Node::from("x${b}y")),
        ("'null'", Node::from("null")),
        ("\"\\n\"", Node::from("\\n")),
        ("\"a\\\"b\"", Node::from("a\"b")),
        ("'x\\\\y'", Node::from("x\\\\y")),
        ("a\\,b", Node::from("a,b")),
        ("str(1)", Node::from("1")),
        ("int(2.7)", Node::Int(2)),
        ("int('3')", Node::Int(3)),
        ("[]", Node::List(vec![])),
        ("[1, null,foo ]", Node::List(vec![Node::Int(1), Node::Null, Node::from("foo")])),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
    assert_eq!(value("{a:1,b:[x]}").get("b.0"), Some(&Node::from("x")));
    assert_eq!(value("[\"<|eot_id|>\",'a,b']").get("0"), Some(&Node::from("<|eot_id|>")));
}

#[test]
fn refusals_show_the_quoted_form() {
    let message = |text: &str| parse(text).unwrap_err().to_string();
    insta::assert_snapshot!(message("a=<extra_id_1>"), @r#"cannot read override `a=<extra_id_1>`: `<` must be quoted; in the shell write 'a="<extra_id_1>"'"#);
    insta::assert_snapshot!(message("++m.end_strings=[<|eot_id|>]"), @r#"cannot read override `++m.end_strings=[<|eot_id|>]`: `<` must be quoted; in the shell write '++m.end_strings=["<|eot_id|>"]'"#);
    insta::assert_snapshot!(message("a=[<|eot_id|>, x,'y,z',it's]"), @r#"cannot read override `a=[<|eot_id|>, x,'y,z',it's]`: `<` must be quoted; in the shell write 'a=["<|eot_id|>",x,'\''y,z'\'',"it'\''s"]'"#);
    insta::assert_snapshot!(message("a={b:<s>,c:[#]}"), @r##"cannot read override `a={b:<s>,c:[#]}`: `<` must be quoted; in the shell write 'a={b:"<s>",c:["#"]}'"##);
    insta::assert_snapshot!(message("a=/x/y=z"), @r#"cannot read override `a=/x/y=z`: `=` in a value must be quoted; in the shell write 'a="/x/y=z"'"#);
    insta::assert_snapshot!(message("a=it's"), @r#"cannot read override `a=it's`: no closing `'`; in the shell write 'a="it'\''s"'"#);
    insta::assert_snapshot!(message("++x=${int_div:${y},2}"), @r#"cannot read override `++x=${int_div:${y},2}`: an interpolation inside of another must be quoted; in the shell write '++x="${int_div:${y},2}"'"#);
    insta::assert_snapshot!(message(r"a=[\</s\>, x\,y]"), @r#"cannot read override `a=[\</s\>, x\,y]`: `<` must be quoted; in the shell write 'a=["</s>",x\,y]'"#);
    insta::assert_snapshot!(message("a=1,2"), @r#"cannot read override `a=1,2`: commas outside of brackets make a sweep, one run for each value; for one text, in the shell write 'a="1,2"'; for a list, in the shell write 'a=[1,2]'"#);
    insta::assert_snapshot!(message("++a.b=/data/it is/a,b\\,c.jsonl"), @r#"cannot read override `++a.b=/data/it is/a,b\,c.jsonl`: commas outside of brackets make a sweep, one run for each value; for one text, in the shell write '++a.b="/data/it is/a,b,c.jsonl"'; for a list, in the shell write '++a.b=[/data/it is/a,b\,c.jsonl]'"#);
    insta::assert_snapshot!(message("a=choice(1,2)"), @"cannot read override `a=choice(1,2)`: `choice(…)` makes a sweep, one run for each value; start the program once for each instead");
    insta::assert_snapshot!(message("a=f(x)"), @r#"cannot read override `a=f(x)`: there is no function `f`; a string with parentheses needs quotes; in the shell write 'a="f(x)"'"#);
    insta::assert_snapshot!(message("a=int(x)"), @"cannot read override `a=int(x)`: cannot cast the string `x` with `int(…)`");
    insta::assert_snapshot!(message("a[0]=1"), @"cannot read override `a[0]=1`: `a[0]` is not a key; an element of a list is `.0`, not `[0]`; in the shell write a.0=1");
    insta::assert_snapshot!(message("a"), @"cannot read override `a`: no `=`; in the shell write a=VALUE");
    assert!(parse("a=x=y").is_err());
    assert!(parse("a=[1,]").is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-c=+~@/\\[\\]{}(),:'\"\\\\ $0-9.é]{0,40}") {
        let _ = parse(&text);
    }

    #[test]
    fn the_quoted_form_is_read(value in "[a-c<|>{}'\"\\\\ $=é\\[\\],:]{1,20}") {
        if let Err(ConfigError::Override { quoted: Some(quoted), .. }) = parse(&format!("++a={value}")) {
            let node = parse(&quoted).unwrap().value;
            let is_collection = matches!(node, Some(Node::List(_) | Node::Map(_)));
            // Space around quotes is no part of the text that is in them.
            let is_quoted = parse(&format!("++a={}", value.trim())).is_ok();
            let is_text = node == Some(Node::Str(quoting::unescaped(value.trim())));
            proptest::prop_assert!(is_collection || is_quoted || is_text, "{node:?}");
        }
    }
}
