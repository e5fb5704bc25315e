//! Values as Python writes and counts them, because resolvers, casts and interpolated strings follow Python.
//!
//! Integers are of 64 bits: what would grow past them is an error here and a longer integer in Python.

use crate::Node;
use crate::float_repr::float_repr;

/// `str(value)`.
pub(crate) fn text(node: &Node) -> String {
    if let Node::Str(text) = node { text.clone() } else { repr(node) }
}

/// `repr(value)`.
pub(crate) fn repr(node: &Node) -> String {
    match node {
        Node::Null => "None".to_owned(),
        Node::Bool(value) => if *value { "True" } else { "False" }.to_owned(),
        Node::Int(value) => value.to_string(),
        Node::Float(value) => float_repr(*value),
        Node::Str(text) => quoted(text),
        Node::List(list) => format!("[{}]", list.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Node::Map(map) => {
            let entry = |(key, value): (&String, &Node)| format!("{}: {}", quoted(key), repr(value));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `int(text)`, for ASCII digits.
pub(crate) fn parse_int(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_grouped =
        digits.split('_').all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()));
    is_grouped.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// `float_repr(text)`, for ASCII digits.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim();
    // Rust reads the same words and forms; underscores are what it does not know.
    let is_grouped = text.split('_').collect::<Vec<_>>().windows(2).all(|pair| {
        pair[0].ends_with(|c: char| c.is_ascii_digit()) && pair[1].starts_with(|c: char| c.is_ascii_digit())
    });
    is_grouped.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// A binary operator that a resolver stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Multiply,
    FloorDivide,
    Subtract,
    Add,
}

/// Why an operation has no value.
const NOT_A_NUMBER: &str = "a division by zero, or an integer past 64 bits";

impl Operator {
    /// `left <operator> right`.
    pub(crate) fn apply(self, left: &Node, right: &Node) -> Result<Node, String> {
        if let (Some(left), Some(right)) = (integer(left), integer(right)) {
            return self.integers(left, right).map(Node::Int).ok_or_else(|| NOT_A_NUMBER.to_owned());
        }
        if let (Some(left), Some(right)) = (number(left), number(right)) {
            return self.floats(left, right).map(Node::Float).ok_or_else(|| NOT_A_NUMBER.to_owned());
        }
        match (self, left, right) {
            (Self::Add, Node::Str(left), Node::Str(right)) => Ok(Node::Str(format!("{left}{right}"))),
            (Self::Add, Node::List(left), Node::List(right)) => {
                Ok(Node::List(left.iter().chain(right).cloned().collect()))
            }
            (Self::Multiply, Node::Str(text), times) | (Self::Multiply, times, Node::Str(text)) => {
                repeated(times, text.len()).map(|times| Node::Str(text.repeat(times)))
            }
            (Self::Multiply, Node::List(list), times) | (Self::Multiply, times, Node::List(list)) => {
                repeated(times, list.len()).map(|times| Node::List(vec![list.clone(); times].concat()))
            }
            _ => {
                Err(format!("it takes two numbers, found a {} and a {}", left.type_name(), right.type_name()))
            }
        }
    }

    fn integers(self, left: i64, right: i64) -> Option<i64> {
        match self {
            Self::Multiply => left.checked_mul(right),
            Self::Subtract => left.checked_sub(right),
            Self::Add => left.checked_add(right),
            Self::FloorDivide => {
                let quotient = left.checked_div(right)?;
                let is_inexact = left % right != 0;
                Some(if is_inexact && (left < 0) != (right < 0) { quotient - 1 } else { quotient })
            }
        }
    }

    fn floats(self, left: f64, right: f64) -> Option<f64> {
        match self {
            Self::Multiply => Some(left * right),
            Self::Subtract => Some(left - right),
            Self::Add => Some(left + right),
            Self::FloorDivide => floor_divide(left, right),
        }
    }
}

fn floor_divide(left: f64, right: f64) -> Option<f64> {
    if right == 0.0 {
        return None;
    }
    let remainder = left % right;
    let mut quotient = (left - remainder) / right;
    if remainder != 0.0 && (right < 0.0) != (remainder < 0.0) {
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return Some(0.0_f64.copysign(left / right));
    }
    // The division above may have rounded to just below the integer that was meant.
    let floor = quotient.floor();
    Some(if quotient - floor > 0.5 { floor + 1.0 } else { floor })
}

/// How often to repeat, within what memory allows.
fn repeated(times: &Node, len: usize) -> Result<usize, String> {
    const MAX_LEN: usize = 1 << 20;
    let times = integer(times).ok_or_else(|| format!("it repeats a {} times", times.type_name()))?;
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    if times.saturating_mul(len) > MAX_LEN {
        return Err(format!("the result would be longer than {MAX_LEN}"));
    }
    Ok(times)
}

/// Python counts with truth values, too.
fn integer(node: &Node) -> Option<i64> {
    node.as_i64().or_else(|| node.as_bool().map(i64::from))
}

fn number(node: &Node) -> Option<f64> {
    node.as_f64().or_else(|| integer(node).map(|value| value as f64))
}

/// `left == right`: `1`, `1.0` and `true` are equal.
pub(crate) fn equal(left: &Node, right: &Node) -> bool {
    match (left, right) {
        (Node::List(left), Node::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        (Node::Map(left), Node::Map(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| equal(value, other)))
        }
        _ => match (number(left), number(right)) {
            (Some(left), Some(right)) => left == right,
            _ => left == right,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_pythons() {
        let check = |operator: Operator, left: Node, right: Node, expect: Option<Node>| {
            assert_eq!(operator.apply(&left, &right).ok(), expect, "{operator:?} {left:?} {right:?}");
        };
        check(Operator::FloorDivide, Node::Int(-7), Node::Int(2), Some(Node::Int(-4)));
        check(Operator::FloorDivide, Node::Float(7.0), Node::Int(2), Some(Node::Float(3.0)));
        check(Operator::FloorDivide, Node::Int(i64::MIN), Node::Int(-1), None);
        check(Operator::FloorDivide, Node::Int(1), Node::Int(0), None);
        check(Operator::Multiply, Node::from("ab"), Node::Int(2), Some(Node::from("abab")));
        check(Operator::Multiply, Node::from("ab"), Node::Int(i64::MAX), None);
        check(Operator::Add, Node::Bool(true), Node::Int(1), Some(Node::Int(2)));
        check(Operator::Subtract, Node::from("x"), Node::Int(1), None);
    }

    #[test]
    fn values_print_as_python_prints_them() {
        let node = crate::yaml::parse("[1, null, 'it''s', {a: 1.0e-5}, true]", "t").unwrap();
        assert_eq!(text(&node), r#"[1, None, "it's", {'a': 1e-05}, True]"#);
        assert_eq!(text(&Node::from("a\n")), "a\n");
        assert_eq!(repr(&Node::from("a\n\u{1}")), r"'a\n\x01'");
    }
}
