//! Thousands of small templates, each against what Jinja2 makes of it.
//!
//! `golden/make_expressions.py` makes the table. A case passes when the texts are equal, or when both sides raise. What
//! templates say to users with `raise_exception` must be the same sentence. What Python renders and this engine refuses
//! must be one of the listed refusals.

#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers beside them")]

use std::collections::BTreeMap;
use std::path::Path;

use jinja::{Date, ErrorKind, Template, Variable};
use serde_json::Value;

/// What is not done, by parts of its messages.
const REFUSALS: [&str; 23] = [
    "the filter `urlize` is not supported",
    "the filter `random` is not supported",
    "the function `lipsum` gives another text each time",
    "Python would write its address in memory",
    "depends on Python's memory",
    "`encode` of `str`",
    "`to_bytes` of `int`",
    "of `float` is not supported",
    "of `Markup` is not supported",
    "`pprint` of a dict",
    "`autoescape` is not supported",
    "`self`, the blocks of the template",
    "printing `loop`",
    "a slice of a range",
    "integers above 2**53",
    "complex numbers",
    "views of dict",
    "comparing two of type `dict_",
    "in the format of `strftime_now`",
    "the escape ",
    "an integer with more than 38 digits",
    "is too large",
    "`striptags` knows only",
];

fn variables(table: &Value) -> Vec<(String, Variable)> {
    let context = table["context"].as_object().unwrap().iter();
    let integers = table["integers"].as_object().unwrap().iter();
    let integers = integers.map(|(name, digits)| (name.clone(), Variable::number(digits.as_str().unwrap())));
    context.map(|(name, value)| (name.clone(), Variable::from(value))).chain(integers).collect()
}

#[test]
fn small_templates_equal_jinja2() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expressions.json.zst");
    let packed = std::fs::read(path).unwrap();
    let table: Value = serde_json::from_slice(&zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
    let variables = variables(&table);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in table["cases"].as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let given = variables.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let found =
            Template::parse(source).and_then(|template| template.render(given, Date::new(2026, 1, 2)));
        let outcome = match (&found, case["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => "equal",
            (Err(error), None) if case["error"] == "TemplateError" => {
                let is_same = error.kind == ErrorKind::Raised && case["message"] == error.message;
                if is_same { "raised" } else { "wrong" }
            }
            (Err(_), None) => "error",
            (Err(error), Some(_)) if error.kind == ErrorKind::Refused => {
                let is_known = REFUSALS.iter().any(|part| error.message.contains(part));
                if is_known { "refused" } else { "wrong" }
            }
            _ => "wrong",
        };
        if outcome == "wrong" {
            wrong.push(format!("{source:?}\n  found    {found:?}\n  expected {case}"));
        }
        *counts.entry(outcome).or_default() += 1;
    }
    assert!(wrong.is_empty(), "{counts:?}\n{}", wrong.join("\n"));
    assert!(counts["equal"] >= 5_670 && counts["error"] >= 3_300 && counts["refused"] <= 115, "{counts:?}");
}
