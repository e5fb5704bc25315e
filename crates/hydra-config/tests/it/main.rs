//! Every row of the golden tables, whose answers are those of hydra-core and omegaconf (`tests/golden/make_golden.py`).

#![expect(clippy::unwrap_used, reason = "a golden table that cannot be read must fail the test")]

use hydra_config::overrides::OverrideKind;
use hydra_config::{Composer, ConfigError, Node, overrides, yaml};
use serde_json::Value;

/// Compares every row of a table. `deviations` are the first inputs of rows that differ on purpose; each must.
fn check(
    table: &str,
    num_rows: usize,
    deviations: &[&str],
    run: impl Fn(&[Value]) -> Result<Node, ConfigError>,
) {
    let (mut seen, mut deviating) = (0, Vec::new());
    let mut wrong = Vec::new();
    for line in table.lines() {
        let row: Vec<Value> = serde_json::from_str(line).unwrap();
        let (answer, inputs) = row.split_last().unwrap();
        let found = run(inputs);
        let agrees = match (&found, answer.get("ok")) {
            (Ok(node), Some(expected)) => same(node, &node_of(expected)),
            (Err(_), None) => true,
            _ => false,
        };
        let is_deviation = inputs[0].as_str().is_some_and(|text| deviations.contains(&text));
        if is_deviation && !agrees {
            deviating.push(line);
        } else if is_deviation || !agrees {
            wrong.push(format!("{line}\n    found {found:?}"));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{} of {seen} rows disagree:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(deviating.len(), deviations.len(), "a deviation has no row");
    assert_eq!(seen, num_rows, "the table has another size: was it made again?");
}

/// Texts that YAML 1.2's syntax accepts or refuses otherwise than PyYAML, and two that are refused because they are
/// mistakes: an integer key twice, and a document that is one word.
const YAML_DEVIATIONS: &[&str] = &[
    "k: a\t\n",
    "k: \ta\n",
    "k: a\tb\n",
    "k: [???]\n",
    "k: [??]\n",
    "k: [?x]\n",
    "k: [-]\n",
    "k: [:a]\n",
    "k: [!!str]\n",
    "k: [|a]\n",
    "k: [>a]\n",
    "k: [http://h:1/x?y=z]\n",
    "1: a\n1: b\n",
    "\ta: 1\n",
    "a:1\n",
    "a: &a 1\nb: &a 2\nc: *a\n",
    "a: \u{85}b\n",
    "a: \u{2028}b\n",
];

/// A list or map inside a text and arithmetic on strings are refused, where Python would print or repeat them; a list
/// or map from `oc.decode` and `oc.select` is kept, where `OmegaConf.resolve` fails although reading the key works.
const INTERPOLATION_DEVIATIONS: &[&str] = &[
    "a: [1]\nb: x${a}",
    "a: {c: 1}\nb: x${a}",
    "a: '${multiply:x,2}'",
    "a: '${sum:x,y}'",
    "a: '${oc.decode:\"[1,2]\"}'",
    "a: '${oc.decode:\"{a:1}\"}'",
    "a: '${oc.decode:${b}}'\nb: '[1, x]'",
    "a: '${oc.select:absent,[1,2]}'",
    "a: '${oc.select:absent,{x:1}}'",
    "a: '${oc.select:absent,[1,${b}]}'\nb: 2",
];

fn node_of(value: &Value) -> Node {
    match value {
        Value::Null => Node::Null,
        Value::Bool(value) => Node::Bool(*value),
        Value::Number(number) => Node::Int(number.as_i64().unwrap()),
        Value::String(text) => Node::from(text.as_str()),
        Value::Array(list) => Node::List(list.iter().map(node_of).collect()),
        Value::Object(map) => match map.get("$f") {
            Some(text) => Node::Float(text.as_str().unwrap().parse().unwrap()),
            None => Node::Map(map.iter().map(|(key, value)| (key.clone(), node_of(value))).collect()),
        },
    }
}

/// Equality that minds the order of keys and takes NaN for NaN.
fn same(left: &Node, right: &Node) -> bool {
    match (left, right) {
        (Node::Float(left), Node::Float(right)) => {
            left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
        }
        (Node::List(left), Node::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Node::Map(left), Node::Map(right)) => {
            left.len() == right.len()
                && left.iter().zip(right).all(|(left, right)| left.0 == right.0 && same(left.1, right.1))
        }
        _ => left == right,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn overrides_are_read_as_hydra_reads_them() {
    check(include_str!("../golden/overrides.jsonl"), 1428, &[], |inputs| {
        let parsed = overrides::parse(text(&inputs[0]))?;
        let kind = match parsed.kind {
            OverrideKind::Set => "set",
            OverrideKind::Add => "add",
            OverrideKind::ForceAdd => "force_add",
            OverrideKind::Delete => "delete",
            OverrideKind::Ignored => "ignored",
        };
        let value = parsed.value.unwrap_or(Node::Null);
        Ok(Node::List(vec![Node::from(kind), Node::Str(parsed.key), value]))
    });
}

#[test]
fn documents_are_read_as_omegaconf_reads_them() {
    check(include_str!("../golden/yaml.jsonl"), 697, YAML_DEVIATIONS, |inputs| {
        yaml::parse(text(&inputs[0]), "t")
    });
}

#[test]
fn trees_are_printed_as_omegaconf_prints_them() {
    check(include_str!("../golden/emit.jsonl"), 1171, &[], |inputs| {
        Ok(Node::Str(node_of(&inputs[0]).to_yaml()))
    });
}

#[test]
fn overrides_are_applied_as_hydra_applies_them() {
    check(include_str!("../golden/applied.jsonl"), 127, &[], |inputs| {
        let mut composer = Composer::new();
        composer.push_yaml("base", include_str!("../golden/applied_base.yaml"))?;
        let arguments: Vec<String> =
            inputs[0].as_array().unwrap().iter().map(|argument| text(argument).to_owned()).collect();
        composer.apply_overrides(&arguments)?;
        Ok(composer.node().clone())
    });
}

#[test]
fn layers_are_merged_as_omegaconf_merges_them() {
    check(include_str!("../golden/merged.jsonl"), 39, &[], |inputs| {
        let mut composer = Composer::new();
        composer.push_yaml("base", text(&inputs[0]))?;
        composer.push_yaml("over", text(&inputs[1]))?;
        Ok(composer.node().clone())
    });
}

#[test]
fn interpolations_are_resolved_as_omegaconf_resolves_them() {
    let env = |name: &str| match name {
        "GOLDEN_SET" => Some("value".to_owned()),
        "GOLDEN_NUMBER" => Some("12".to_owned()),
        _ => None,
    };
    check(include_str!("../golden/resolved.jsonl"), 181, INTERPOLATION_DEVIATIONS, |inputs| {
        let mut composer = Composer::new();
        composer.push_yaml("base", text(&inputs[0]))?;
        Ok(composer.resolve(&env)?.node().clone())
    });
}

#[test]
fn a_real_model_config_is_printed_as_it_was_written() {
    let text = include_str!("../model_config.yaml");
    assert_eq!(yaml::parse(text, "model_config.yaml").unwrap().to_yaml(), text);
}
