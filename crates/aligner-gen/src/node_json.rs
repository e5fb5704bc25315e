//! A configuration tree as JSON, for the manifest and for `--json`.

use hydra_config::Node;
use serde_json::Value;

/// The same tree; numbers that JSON lacks become null.
pub(crate) fn to_json(node: &Node) -> Value {
    match node {
        Node::Null => Value::Null,
        Node::Bool(value) => Value::from(*value),
        Node::Int(value) => Value::from(*value),
        Node::Float(value) => Value::from(*value),
        Node::Str(text) => Value::from(text.as_str()),
        Node::List(list) => list.iter().map(to_json).collect(),
        Node::Map(map) => map.iter().map(|(key, value)| (key.clone(), to_json(value))).collect(),
    }
}
