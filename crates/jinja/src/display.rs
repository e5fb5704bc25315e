//! Values as text: `str()` and `repr()` of Python's.

use crate::error::{Error, Result};
use crate::number;
use crate::text;
use crate::value::{Dict, Value, ViewKind};

impl Value {
    /// `str(value)`.
    ///
    /// # Errors
    /// When Python would write an address of its memory, which no two runs have in common.
    pub(crate) fn to_text(&self) -> Result<String> {
        match self {
            Self::Str(text) => Ok(text.text.to_string()),
            Self::Undefined(_) => Ok(String::new()),
            other => other.repr(),
        }
    }

    /// `repr(value)`.
    ///
    /// # Errors
    /// As [`Value::to_text`].
    pub(crate) fn repr(&self) -> Result<String> {
        let mut out = String::new();
        self.push_repr(&mut out)?;
        Ok(out)
    }

    fn push_repr(&self, out: &mut String) -> Result<()> {
        match self {
            Self::None => out.push_str("None"),
            Self::Bool(flag) => out.push_str(if *flag { "True" } else { "False" }),
            Self::Int(int) => out.push_str(&int.to_string()),
            Self::Huge(digits) => out.push_str(digits),
            Self::Float(float) => out.push_str(&number::repr_float(*float)),
            Self::Str(shown) if shown.is_markup => {
                out.push_str(&format!("Markup({})", text::repr(&shown.text)));
            }
            Self::Str(shown) => out.push_str(&text::repr(&shown.text)),
            Self::List(items) => push_items(out, "[", items, "]")?,
            Self::Tuple(items) | Self::Group(items) => {
                push_items(out, "(", items, if items.len() == 1 { ",)" } else { ")" })?;
            }
            Self::Dict(dict) => push_dict(out, dict)?,
            Self::Range(range) => {
                out.push_str(&format!("range({}, {}", range.start, range.stop));
                if range.step != 1 {
                    out.push_str(&format!(", {}", range.step));
                }
                out.push(')');
            }
            Self::View(kind, dict) => push_view(out, *kind, dict)?,
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::Macro(called) => match &called.definition.name {
                Some(name) => out.push_str(&format!("<Macro {}>", text::repr(name))),
                None => out.push_str("<Macro anonymous>"),
            },
            Self::Namespace(attributes) => {
                out.push_str("<Namespace {");
                for (position, (name, value)) in attributes.borrow().iter().enumerate() {
                    let separator = if position > 0 { ", " } else { "" };
                    out.push_str(&format!("{separator}{}: ", text::repr(name)));
                    value.push_repr(out)?;
                }
                out.push_str("}>");
            }
            Self::Loop(_) => return Err(Error::refused("printing `loop` is not supported")),
            Self::Iter(_) | Self::Function(_) | Self::Method(_) | Self::Cycler(_) | Self::Joiner(_) => {
                let what = self.type_name();
                return Err(Error::refused(format!(
                    "a value of type `{what}` cannot be written as text: Python would write its address in memory"
                )));
            }
        }
        Ok(())
    }
}

fn push_items(out: &mut String, open: &str, items: &[Value], close: &str) -> Result<()> {
    out.push_str(open);
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            out.push_str(", ");
        }
        item.push_repr(out)?;
    }
    out.push_str(close);
    Ok(())
}

fn push_dict(out: &mut String, dict: &Dict) -> Result<()> {
    out.push('{');
    for (position, (key, value)) in dict.iter().enumerate() {
        if position > 0 {
            out.push_str(", ");
        }
        key.push_repr(out)?;
        out.push_str(": ");
        value.push_repr(out)?;
    }
    out.push('}');
    Ok(())
}

fn push_view(out: &mut String, kind: ViewKind, dict: &Dict) -> Result<()> {
    let (name, items): (_, Vec<Value>) = match kind {
        ViewKind::Keys => ("dict_keys", dict.iter().map(|(key, _)| key.clone()).collect()),
        ViewKind::Values => ("dict_values", dict.iter().map(|(_, value)| value.clone()).collect()),
        ViewKind::Items => (
            "dict_items",
            dict.iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])).collect(),
        ),
    };
    out.push_str(name);
    push_items(out, "([", &items, "])")
}
