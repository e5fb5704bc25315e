//! YAML as `OmegaConf.to_yaml` prints it (PyYAML's block style, keys in order), except that long scalars are not
//! folded at 80 columns.

use crate::{Node, scalar};

impl Node {
    /// The tree as a YAML document.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        match self {
            Self::Map(map) if !map.is_empty() => write_map(&mut out, map, 0),
            Self::List(list) if !list.is_empty() => write_list(&mut out, list, 0),
            other => {
                out.push_str(&inline(other, 0));
                out.push('\n');
            }
        }
        out
    }
}

fn write_map(out: &mut String, map: &indexmap::IndexMap<String, Node>, indent: usize) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str(&string(key, indent));
        out.push(':');
        write_value(out, value, indent, indent);
    }
}

fn write_list(out: &mut String, list: &[Node], indent: usize) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 {
            out.push_str(&" ".repeat(indent));
        }
        out.push('-');
        match value {
            Node::Map(map) if !map.is_empty() => {
                out.push(' ');
                write_map(out, map, indent + 2);
            }
            Node::List(inner) if !inner.is_empty() => {
                out.push(' ');
                write_list(out, inner, indent + 2);
            }
            other => {
                out.push(' ');
                out.push_str(&inline(other, indent));
                out.push('\n');
            }
        }
    }
}

/// After `key:`; a list under a key stands at the key's own column.
fn write_value(out: &mut String, value: &Node, indent: usize, list_indent: usize) {
    match value {
        Node::Map(map) if !map.is_empty() => {
            out.push('\n');
            out.push_str(&" ".repeat(indent + 2));
            write_map(out, map, indent + 2);
        }
        Node::List(list) if !list.is_empty() => {
            out.push('\n');
            out.push_str(&" ".repeat(list_indent));
            write_list(out, list, list_indent);
        }
        other => {
            out.push(' ');
            out.push_str(&inline(other, indent));
            out.push('\n');
        }
    }
}

fn inline(node: &Node, indent: usize) -> String {
    match node {
        Node::Null => "null".to_owned(),
        Node::Bool(value) => value.to_string(),
        Node::Int(value) => value.to_string(),
        Node::Float(value) => float(*value),
        Node::Str(text) => string(text, indent),
        Node::List(_) => "[]".to_owned(),
        Node::Map(_) => "{}".to_owned(),
    }
}

/// A float as PyYAML prints it: Python's shortest form, with a point before an exponent.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let point = if mantissa.contains('.') { "" } else { ".0" };
    format!("{mantissa}{point}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn string(text: &str, indent: usize) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let has_special = text
        .chars()
        .any(|c| c.is_control() && c != '\n' || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'));
    let space_at_break = text.contains(" \n") || text.contains("\n ");
    if has_special || space_at_break {
        return double_quoted(text);
    }
    let quoted = text.replace('\'', "''");
    if !quoted.contains('\n') {
        return format!("'{quoted}'");
    }
    // A line break inside single quotes is written as an empty line, and the next line is indented.
    let mut out = String::from("'");
    let mut rest = quoted.as_str();
    while let Some(at) = rest.find('\n') {
        out.push_str(&rest[..at]);
        let breaks = rest[at..].len() - rest[at..].trim_start_matches('\n').len();
        out.push_str(&"\n".repeat(breaks + 1));
        out.push_str(&" ".repeat(indent + 2));
        rest = &rest[at + breaks..];
    }
    out.push_str(rest);
    out.push('\'');
    out
}

fn is_plain(text: &str) -> bool {
    let first = text.chars().next();
    let second_is_space = text.chars().nth(1).is_none_or(|c| c == ' ');
    let bad_first = match first {
        None => true,
        Some('-' | '?' | ':') => second_is_space,
        Some(c) => "#,[]{}&*!|>'\"%@`".contains(c),
    };
    !bad_first
        && !text.starts_with("---")
        && !text.starts_with("...")
        && !text.starts_with(' ')
        && !text.ends_with(' ')
        && !text.ends_with(':')
        && !text.contains(": ")
        && !text.contains(" #")
        && !text
            .chars()
            .any(|c| c.is_control() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'))
        && !matches!(text, "=" | "<<")
        && matches!(scalar::resolve(text), Node::Str(_))
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{85}' => out.push_str("\\N"),
            '\u{2028}' => out.push_str("\\L"),
            '\u{2029}' => out.push_str("\\P"),
            '\u{feff}' => out.push_str("\\uFEFF"),
            c if c.is_control() => out.push_str(&format!("\\x{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn prints_as_omegaconf_does() {
        let text = "a: 1\nb:\n- x\n- c: 2.5\n  d: 'null'\n- - 1\n  - 2\ne: {}\nf: []\ng: 1.0e-05\nh: 'yes'\ni: ${a}\nj: <|x|>\nk: ''\nl: 1.0e+16\nm: true\n";
        assert_eq!(yaml::parse(text, "t").unwrap().to_yaml(), text);
        let mut node = Node::empty_map();
        node.set("data.end", Node::from("\n"));
        assert_eq!(node.to_yaml(), "data:\n  end: '\n\n    '\n");
    }

    #[test]
    fn floats_print_as_python_does() {
        for (value, expected) in [
            (1e-5, "1.0e-05"),
            (0.1, "0.1"),
            (1.0, "1.0"),
            (1.5e20, "1.5e+20"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(float(value), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn strings_survive(text in "[ -~\n\té日]{0,12}") {
            let mut node = Node::empty_map();
            node.set("a.b", Node::from(text.as_str()));
            proptest::prop_assert_eq!(yaml::parse(&node.to_yaml(), "t").unwrap(), node);
        }
    }
}
