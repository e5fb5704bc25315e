//! The resolvers of interpolations: NeMo's arithmetic and OmegaConf's own `oc.…`.
//!
//! Hydra's `hydra`, `now` and `python_version` and NeMo's `gpu_name` are refused by name: what they give differs from
//! run to run or is Python's, and a job must mean the same when it is started again.

use super::Resolver;
use crate::python::{self, Operator};
use crate::{ConfigError, Node};

const KNOWN: &str = "multiply, int_div, subtract, sum, oc.env, oc.select, oc.decode, oc.create, oc.deprecated, \
                     oc.dict.keys, oc.dict.values";

/// The value of `${name:arguments}` at `path`.
pub(crate) fn call(
    resolver: &mut Resolver<'_>,
    path: &[String],
    name: &str,
    arguments: &[Node],
) -> Result<Node, ConfigError> {
    let text = shown(name, arguments);
    let operator = match name {
        "multiply" => Some(Operator::Multiply),
        "int_div" => Some(Operator::FloorDivide),
        "subtract" => Some(Operator::Subtract),
        "sum" => Some(Operator::Add),
        _ => None,
    };
    if let Some(operator) = operator {
        let [left, right] = arguments else {
            let message = format!("`{name}` takes two numbers, found {} arguments", arguments.len());
            return Err(resolver.error(path, &text, message));
        };
        return operator.apply(left, right).map_err(|message| resolver.error(path, &text, message));
    }
    match (name, arguments) {
        ("oc.env", [Node::Str(variable)]) => env(resolver, path, variable, None),
        ("oc.env", [Node::Str(variable), default]) => env(resolver, path, variable, Some(default)),
        ("oc.select", [Node::Str(key)]) => select(resolver, path, key, &Node::Null),
        ("oc.select", [Node::Str(key), default]) => select(resolver, path, key, default),
        ("oc.decode", [Node::Null]) => Ok(Node::Null),
        ("oc.decode", [Node::Str(text)]) => resolver.decode(path, text),
        ("oc.create", [tree @ (Node::Map(_) | Node::List(_))]) => Ok(tree.clone()),
        ("oc.create", [Node::Null]) => Ok(Node::Null),
        ("oc.create", [Node::Str(document)]) => crate::yaml::parse(document, "text")
            .map_err(|error| resolver.error(path, &text, error.to_string())),
        ("oc.deprecated", [Node::Str(key)] | [Node::Str(key), Node::Str(_)]) => {
            let target = resolver.absolute(path, key)?;
            let found = resolver.lookup(&target)?;
            found.ok_or_else(|| resolver.error(path, &text, format!("there is no key `{key}`")))
        }
        ("oc.dict.keys", [Node::Str(key)]) => {
            let target = resolver.absolute(path, key)?;
            let Some(Node::Map(map)) = resolver.raw(&target)? else {
                return Err(resolver.error(path, &text, format!("there is no map `{key}`")));
            };
            Ok(Node::List(map.keys().map(|key| Node::from(key.as_str())).collect()))
        }
        ("oc.dict.values", [Node::Str(key)]) => {
            dict(resolver, path, key).map(|map| Node::List(map.into_values().collect()))
        }
        _ => Err(resolver.error(path, &text, unknown(name))),
    }
}

fn unknown(name: &str) -> String {
    match name {
        "oc.env" | "oc.select" | "oc.decode" | "oc.create" | "oc.deprecated" | "oc.dict.keys"
        | "oc.dict.values" => format!("`{name}` does not take these arguments"),
        "now" | "hydra" | "python_version" | "gpu_name" => {
            format!(
                "`{name}` is not supported: a job must mean the same when it is started again; write the value itself"
            )
        }
        _ => format!("there is no resolver `{name}`; known: {KNOWN}"),
    }
}

fn shown(name: &str, arguments: &[Node]) -> String {
    let arguments: Vec<_> = arguments.iter().map(python::text).collect();
    format!("${{{name}:{}}}", arguments.join(","))
}

fn env(
    resolver: &Resolver<'_>,
    path: &[String],
    variable: &str,
    default: Option<&Node>,
) -> Result<Node, ConfigError> {
    match ((resolver.env)(variable), default) {
        (Some(value), _) => Ok(Node::Str(value)),
        (None, Some(Node::Null)) => Ok(Node::Null),
        (None, Some(default)) => Ok(Node::Str(python::text(default))),
        (None, None) => {
            let text = format!("${{oc.env:{variable}}}");
            Err(resolver.error(path, &text, format!("environment variable `{variable}` is not set")))
        }
    }
}

fn select(
    resolver: &mut Resolver<'_>,
    path: &[String],
    key: &str,
    default: &Node,
) -> Result<Node, ConfigError> {
    let target = resolver.absolute(path, key)?;
    let found = resolver.lookup(&target)?.filter(|node| !node.is_missing());
    Ok(found.unwrap_or_else(|| default.clone()))
}

fn dict(
    resolver: &mut Resolver<'_>,
    path: &[String],
    key: &str,
) -> Result<indexmap::IndexMap<String, Node>, ConfigError> {
    let target = resolver.absolute(path, key)?;
    match resolver.lookup(&target)? {
        Some(Node::Map(map)) => Ok(map),
        Some(other) => {
            Err(resolver.error(path, key, format!("it takes the key of a map, found {}", other.describe())))
        }
        None => Err(resolver.error(path, key, format!("there is no key `{key}`"))),
    }
}
