//! Hydra's functions in values: casts, `sort`, and those that make sweeps.

use std::cmp::Ordering;

use indexmap::IndexMap;

use super::value::{COMMAS, Element};
use crate::{Node, python};

/// The functions of Hydra 1.3.
pub(super) const NAMES: [&str; 11] =
    ["int", "float", "str", "bool", "choice", "range", "interval", "glob", "tag", "sort", "shuffle"];

/// What stands between the parentheses.
#[derive(Default)]
pub(super) struct Arguments {
    positional: Vec<Element>,
    named: IndexMap<String, Element>,
}

impl Arguments {
    pub(super) fn is_empty(&self) -> bool {
        self.positional.is_empty() && self.named.is_empty()
    }

    pub(super) fn push(&mut self, label: Option<&str>, value: Element) -> Result<(), String> {
        match label {
            Some(label) => {
                self.named.insert(label.to_owned(), value);
                Ok(())
            }
            None if self.named.is_empty() => {
                self.positional.push(value);
                Ok(())
            }
            None => Err("a positional argument follows a named one".to_owned()),
        }
    }

    /// The one value of a function that also takes it by this name; several are a sweep.
    fn single(mut self, name: &str) -> Result<Element, String> {
        // Python's default for a named argument is None, so null by name is nothing.
        let named = self.named.shift_remove(name).filter(|value| *value != Element::Value(Node::Null));
        if let Some(unknown) = self.named.keys().next() {
            return Err(format!("there is no argument `{unknown}`"));
        }
        match (self.positional.len(), named) {
            (0, Some(value)) => Ok(value),
            (0, None) => Err("there is no argument".to_owned()),
            (1, None) => Ok(self.positional.swap_remove(0)),
            (_, None) => Ok(Element::Sweep(COMMAS)),
            (_, Some(_)) => Err(format!("`{name}` is given twice")),
        }
    }
}

/// Calls a function.
pub(super) fn call(name: &str, arguments: Arguments) -> Result<Element, String> {
    const SWEEPS: [&str; 5] = ["choice", "range", "interval", "glob", "tag"];
    if let Some(name) = SWEEPS.iter().find(|sweep| **sweep == name) {
        return Ok(Element::Sweep(name));
    }
    match name {
        "int" | "float" | "str" | "bool" => cast(name, arguments.single("value")?),
        "sort" => sort(arguments),
        "shuffle" => Err("`shuffle(…)` would give another list in each run".to_owned()),
        "json_str" => Err("`json_str(…)` is not in Hydra 1.3; put the string in quotes".to_owned()),
        _ => Err(format!("there is no function `{name}`; a string with parentheses needs quotes")),
    }
}

fn cast(name: &str, value: Element) -> Result<Element, String> {
    match value {
        Element::Sweep(form) => Ok(Element::Sweep(form)),
        Element::Quoted(text) => cast_node(name, &Node::Str(text)).map(Element::Value),
        Element::List(list) => {
            list.into_iter().map(|item| cast(name, item)).collect::<Result<_, _>>().map(Element::List)
        }
        Element::Dict(map) => map
            .into_iter()
            .map(|(key, item)| Ok((key, cast(name, item)?)))
            .collect::<Result<_, String>>()
            .map(Element::Dict),
        Element::Value(node) => cast_node(name, &node).map(Element::Value),
    }
}

fn cast_node(name: &str, value: &Node) -> Result<Node, String> {
    let cast = match (name, value) {
        ("str", Node::Bool(value)) => Some(Node::Str(value.to_string())),
        ("str", Node::Int(_) | Node::Float(_) | Node::Str(_)) => Some(Node::Str(python::text(value))),
        ("int", Node::Int(value)) => Some(Node::Int(*value)),
        ("int", Node::Bool(value)) => Some(Node::Int(i64::from(*value))),
        ("int", Node::Float(value)) => int_of(*value),
        ("int", Node::Str(text)) => python::parse_int(text).map(Node::Int),
        ("float", Node::Int(value)) => Some(Node::Float(*value as f64)),
        ("float", Node::Float(value)) => Some(Node::Float(*value)),
        ("float", Node::Bool(value)) => Some(Node::Float(f64::from(u8::from(*value)))),
        ("float", Node::Str(text)) => python::parse_float(text).map(Node::Float),
        ("bool", Node::Null) => Some(Node::Bool(false)),
        ("bool", Node::Bool(value)) => Some(Node::Bool(*value)),
        ("bool", Node::Int(value)) => Some(Node::Bool(*value != 0)),
        ("bool", Node::Float(value)) => Some(Node::Bool(*value != 0.0)),
        ("bool", Node::Str(text)) => match text.to_ascii_lowercase().as_str() {
            "true" => Some(Node::Bool(true)),
            "false" => Some(Node::Bool(false)),
            _ => None,
        },
        _ => None,
    };
    cast.ok_or_else(|| format!("cannot cast {} with `{name}(…)`", value.describe()))
}

/// The whole part, where 64 bits hold it.
fn int_of(value: f64) -> Option<Node> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    let whole = value.trunc();
    (-LIMIT..LIMIT).contains(&whole).then_some(Node::Int(whole as i64))
}

/// `sort([3,1])` is a list; `sort(3,1)` is a sweep.
fn sort(mut arguments: Arguments) -> Result<Element, String> {
    let is_reversed = match arguments.named.shift_remove("reverse") {
        None => false,
        Some(Element::Value(Node::Bool(value))) => value,
        Some(_) => return Err("`reverse` takes true or false".to_owned()),
    };
    let list = arguments.named.shift_remove("list").filter(|list| *list != Element::Value(Node::Null));
    let value = match list {
        Some(list @ Element::List(_)) => list,
        Some(_) => return Err("`list` takes a list".to_owned()),
        None => {
            let sweep = arguments.named.shift_remove("sweep");
            if let Some(sweep) = sweep.filter(|sweep| *sweep != Element::Value(Node::Null)) {
                return Ok(sweep);
            }
            arguments.single("")?
        }
    };
    let Element::List(mut list) = value else { return Ok(value) };
    let mut is_comparable = true;
    list.sort_by(|left, right| {
        let order = compare(left, right);
        is_comparable &= order.is_some();
        let order = order.unwrap_or(Ordering::Equal);
        if is_reversed { order.reverse() } else { order }
    });
    if is_comparable { Ok(Element::List(list)) } else { Err("the values cannot be put in order".to_owned()) }
}

/// Python's order: numbers with numbers, unquoted strings with unquoted strings, lists item by item.
fn compare(left: &Element, right: &Element) -> Option<Ordering> {
    match (left, right) {
        (Element::Value(Node::Str(left)), Element::Value(Node::Str(right))) => Some(left.cmp(right)),
        (Element::Value(left), Element::Value(right)) => {
            let number = |node: &Node| {
                node.as_f64().or_else(|| node.as_bool().map(|value| f64::from(u8::from(value))))
            };
            number(left)?.partial_cmp(&number(right)?)
        }
        (Element::List(left), Element::List(right)) => {
            for (left, right) in left.iter().zip(right) {
                match compare(left, right)? {
                    Ordering::Equal => {}
                    order => return Some(order),
                }
            }
            Some(left.len().cmp(&right.len()))
        }
        _ => None,
    }
}
