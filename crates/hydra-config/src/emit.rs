//! YAML as `OmegaConf.to_yaml` prints it: PyYAML 6's block style, keys in order, folded past 80 columns.
//!
//! A string of digits of another script is not quoted, though Python's `int` would read it; it reads back the same.

use indexmap::IndexMap;

use crate::float_repr::float_repr;
use crate::{Node, scalar};

/// PyYAML's `best_width`: a line is broken at the first space past it.
const WIDTH: usize = 80;
/// Longer keys are written as `? key`. PyYAML counts 128 with the five characters of `!!str`.
const MAX_KEY_LEN: usize = 122;

impl Node {
    /// The tree as a YAML document.
    pub fn to_yaml(&self) -> String {
        let mut emitter = Emitter { out: String::new(), column: 0 };
        match self {
            Self::Map(map) if !map.is_empty() => emitter.mapping(map, 0),
            Self::List(list) if !list.is_empty() => emitter.sequence(list, 0),
            other => emitter.scalar(other, 0),
        }
        emitter.out.push('\n');
        emitter.out
    }
}

/// Whether a scalar may continue on the next line.
#[derive(Clone, Copy, PartialEq)]
enum Folding {
    Allowed,
    /// Keys stay in one line.
    Forbidden,
}

struct Emitter {
    out: String,
    column: usize,
}

impl Emitter {
    fn write(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn line(&mut self, indent: usize) {
        self.out.push('\n');
        self.column = 0;
        self.pad(indent);
    }

    fn pad(&mut self, indent: usize) {
        self.write(&" ".repeat(indent.saturating_sub(self.column)));
    }

    fn mapping(&mut self, map: &IndexMap<String, Node>, indent: usize) {
        for (index, (key, value)) in map.iter().enumerate() {
            if index > 0 {
                self.line(indent);
            }
            let is_simple = !key.is_empty() && !key.contains(is_break) && key.chars().count() <= MAX_KEY_LEN;
            if is_simple {
                self.string(key, indent, Folding::Forbidden);
                self.write(":");
                self.value(value, indent);
            } else {
                self.write("? ");
                self.string(key, indent + 2, Folding::Allowed);
                self.line(indent);
                self.write(":");
                self.nested(value, indent);
            }
        }
    }

    fn sequence(&mut self, list: &[Node], indent: usize) {
        for (index, value) in list.iter().enumerate() {
            if index > 0 {
                self.line(indent);
            }
            self.write("-");
            self.nested(value, indent);
        }
    }

    /// After `key:`; a list stands at the key's own column.
    fn value(&mut self, value: &Node, indent: usize) {
        match value {
            Node::Map(map) if !map.is_empty() => {
                self.line(indent + 2);
                self.mapping(map, indent + 2);
            }
            Node::List(list) if !list.is_empty() => {
                self.line(indent);
                self.sequence(list, indent);
            }
            other => {
                self.write(" ");
                self.scalar(other, indent + 2);
            }
        }
    }

    /// After `-`, or `:` in a line of its own: a collection begins in the same line.
    fn nested(&mut self, value: &Node, indent: usize) {
        self.write(" ");
        match value {
            Node::Map(map) if !map.is_empty() => self.mapping(map, indent + 2),
            Node::List(list) if !list.is_empty() => self.sequence(list, indent + 2),
            other => self.scalar(other, indent + 2),
        }
    }

    fn scalar(&mut self, node: &Node, indent: usize) {
        match node {
            Node::Null => self.write("null"),
            Node::Bool(value) => self.write(&value.to_string()),
            Node::Int(value) => self.write(&value.to_string()),
            Node::Float(value) => self.write(&float(*value)),
            Node::Str(text) => self.string(text, indent, Folding::Allowed),
            Node::List(_) => self.write("[]"),
            Node::Map(_) => self.write("{}"),
        }
    }

    fn string(&mut self, text: &str, indent: usize, folding: Folding) {
        match style(text) {
            Style::Plain => self.plain(text, indent, folding),
            Style::Single => self.single_quoted(text, indent, folding),
            Style::Double => self.double_quoted(text, indent, folding),
        }
    }

    /// A plain scalar has no line breaks; it is folded at single spaces.
    fn plain(&mut self, text: &str, indent: usize, folding: Folding) {
        for run in runs(text, |c| c == ' ') {
            if run == " " && self.column > WIDTH && folding == Folding::Allowed {
                self.line(indent);
            } else {
                self.write(run);
            }
        }
    }

    fn single_quoted(&mut self, text: &str, indent: usize, folding: Folding) {
        self.write("'");
        let kind = |c| if c == ' ' { 1 } else { 2 * u8::from(is_break(c)) };
        let mut at = 0;
        for run in runs(text, kind) {
            let is_inside = at > 0 && at + run.len() < text.len();
            at += run.len();
            if run.starts_with(is_break) {
                // One line break alone would be read as a space.
                if run.starts_with('\n') {
                    self.out.push('\n');
                }
                self.out.push_str(run);
                self.column = 0;
                self.pad(indent);
            } else if run == " " && is_inside && self.column > WIDTH && folding == Folding::Allowed {
                self.line(indent);
            } else {
                self.write(&run.replace('\'', "''"));
            }
        }
        self.write("'");
    }

    /// PyYAML looks at the column before each character, with the unwritten text counted in.
    fn double_quoted(&mut self, text: &str, indent: usize, folding: Folding) {
        self.write("\"");
        let chars: Vec<char> = text.chars().collect();
        let mut pending = String::new();
        let mut num_pending = 0;
        for (at, &c) in chars.iter().enumerate() {
            let escaped = escape(c);
            if let Some(escaped) = &escaped {
                self.write(&std::mem::take(&mut pending));
                num_pending = 0;
                self.write(escaped);
            }
            let may_break =
                at > 0 && at + 1 < chars.len() && (c == ' ' || escaped.is_some() || num_pending == 0);
            // PyYAML's own count is one short after an escape.
            let column = if escaped.is_some() { self.column - 1 } else { self.column + num_pending };
            if may_break && column > WIDTH && folding == Folding::Allowed {
                self.write(&std::mem::take(&mut pending));
                num_pending = 0;
                self.write("\\");
                self.line(indent);
                // A space at the start of a line would be lost.
                let next = if escaped.is_some() { chars.get(at + 1) } else { Some(&c) };
                if next == Some(&' ') {
                    self.write("\\");
                }
            }
            if escaped.is_none() {
                pending.push(c);
                num_pending += 1;
            }
        }
        self.write(&pending);
        self.write("\"");
    }
}

/// The text cut where the kind of character changes.
fn runs<K: PartialEq>(text: &str, kind: impl Fn(char) -> K) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = kind(rest.chars().next()?);
        let end = rest.find(|c| kind(c) != first).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

#[derive(PartialEq)]
enum Style {
    Plain,
    Single,
    Double,
}

fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// What PyYAML writes as it is, in plain and single-quoted scalars.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..='\u{10fffe}')
        && c != '\u{feff}'
}

/// PyYAML's `analyze_scalar` and `choose_scalar_style` for block context.
fn style(text: &str) -> Style {
    let (mut has_special, mut has_indicator) = (false, text.starts_with("---") || text.starts_with("..."));
    let (mut has_space_break, mut has_break_space) = (false, false);
    let ends_word =
        |c: Option<&char>| c.is_none_or(|c| matches!(c, '\0' | ' ' | '\t' | '\r') || is_break(*c));
    let chars: Vec<char> = text.chars().collect();
    let mut previous = None;
    for (at, &c) in chars.iter().enumerate() {
        let is_followed_by_space = ends_word(chars.get(at + 1));
        has_indicator |= match previous {
            None => "#,[]{}&*!|>'\"%@`".contains(c) || (matches!(c, '?' | ':' | '-') && is_followed_by_space),
            Some(previous) => (c == ':' && is_followed_by_space) || (c == '#' && ends_word(Some(&previous))),
        };
        has_special |= !is_printable(c);
        has_space_break |= is_break(c) && previous == Some(' ');
        has_break_space |= c == ' ' && previous.is_some_and(is_break);
        previous = Some(c);
    }
    let is_edge = |c: &char| *c == ' ' || is_break(*c);
    let has_edges = chars.first().is_some_and(is_edge) || chars.last().is_some_and(is_edge);
    if has_special || has_space_break || has_break_space {
        Style::Double
    } else if has_indicator || has_edges || chars.iter().any(|c| is_break(*c)) || scalar::needs_quotes(text) {
        Style::Single
    } else {
        Style::Plain
    }
}

/// How a character is written between double quotes, when not as it is.
fn escape(c: char) -> Option<String> {
    let letter = match c {
        '\0' => '0',
        '\x07' => 'a',
        '\x08' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\x0b' => 'v',
        '\x0c' => 'f',
        '\r' => 'r',
        '\x1b' => 'e',
        '"' | '\\' => c,
        '\u{85}' => 'N',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        ' '..='~' | '\u{a0}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' => return None,
        _ => {
            let code = u32::from(c);
            return Some(match code {
                0..=0xff => format!("\\x{code:02X}"),
                0x100..=0xffff => format!("\\u{code:04X}"),
                _ => format!("\\U{code:08X}"),
            });
        }
    };
    Some(format!("\\{letter}"))
}

/// A float as PyYAML prints it: Python's `repr`, with a point before an exponent.
fn float(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let text = float_repr(value);
    if text.contains('.') { text } else { text.replacen('e', ".0e", 1) }
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
        fn strings_survive(text in "[ -~\n\té日]{0,12}|[a-c '\"#:\n\té]{70,200}") {
            // The loader refuses these, as OmegaConf does.
            proptest::prop_assume!(!text.contains("${"));
            let mut node = Node::empty_map();
            node.set("a.b", Node::from(text.as_str()));
            node.set("list", Node::List(vec![Node::Map([(text.clone(), Node::from(text.as_str()))].into())]));
            proptest::prop_assert_eq!(yaml::parse(&node.to_yaml(), "t").unwrap(), node);
        }
    }
}
