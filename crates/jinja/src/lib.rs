//! Jinja2 templates, rendered as the Python package renders them in the environment that transformers gives to chat
//! templates: `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, loop controls, `generation` tags,
//! `tojson`, `raise_exception` and `strftime_now` (Jinja2 3.1.6, transformers 5.24, Python 3.11).
//!
//! A chat template decides every token of a prompt, and it is written and tested against Python: what `{{ x }}` prints
//! for a list, whether an empty generator is true, which line break `indent` keeps. So values, operators, methods and
//! filters here are Python's. What is not done is refused by name ([`ErrorKind::Refused`]), never rendered in another way:
//! addresses in memory, `random`, integers of more than 38 digits, set operations on the views of a dict.
//!
//! Nothing is read or loaded, and a template cannot run without end in depth; a `range` has at most 100,000 items.

mod args;
mod arithmetic;
mod ast;
mod attributes;
mod brace;
mod date;
mod display;
mod error;
mod filter_names;
mod filters;
mod functions;
mod json;
mod lexer;
mod methods;
mod number;
mod ops;
mod parser;
mod percent;
mod predicates;
mod render;
mod spec;
mod text;
mod value;

use std::sync::Arc;

pub use self::date::Date;
pub use self::error::{Error, ErrorKind};

/// A parsed template. Threads can share it.
#[derive(Clone, Debug)]
pub struct Template {
    body: Vec<ast::Stmt>,
    blocks: Vec<Arc<str>>,
}

impl Template {
    /// Parses `source`.
    ///
    /// # Errors
    /// [`ErrorKind::Syntax`] and [`ErrorKind::Assertion`] as Jinja2's compiler, with the line.
    pub fn parse(source: &str) -> Result<Self, Error> {
        let (body, blocks) = parser::parse(source)?;
        Ok(Self { body, blocks })
    }

    /// Renders the template with `variables`. `date` is what `strftime_now` writes; without one a template that calls it
    /// is refused.
    ///
    /// # Errors
    /// What the template raises, and [`ErrorKind::Refused`].
    pub fn render<'a>(
        &self,
        variables: impl IntoIterator<Item = (&'a str, Variable)>,
        date: Option<Date>,
    ) -> Result<String, Error> {
        let variables = variables.into_iter().map(|(name, variable)| (Arc::from(name), variable.0));
        render::render(&self.body, &self.blocks, variables.collect(), date)
    }
}

/// What a template gets from outside: JSON's values. It belongs to one thread; clones share their content.
#[derive(Clone)]
pub struct Variable(value::Value);

impl Variable {
    /// Python's `None`.
    pub const NONE: Self = Self(value::Value::None);

    /// A number from its text, as Python's `json` reads it: without a point and an exponent it is an integer.
    pub fn number(text: &str) -> Self {
        Self(json::number(text))
    }

    /// A list.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self(value::Value::list(items.into_iter().map(|item| item.0).collect()))
    }

    /// A dict, in this order.
    pub fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let mut dict = value::Dict::default();
        for (key, item) in entries {
            dict.insert_str(key, item.0);
        }
        Self(value::Value::dict(dict))
    }
}

impl From<bool> for Variable {
    fn from(flag: bool) -> Self {
        Self(value::Value::Bool(flag))
    }
}

impl From<&str> for Variable {
    fn from(text: &str) -> Self {
        Self(value::Value::from(text))
    }
}

impl From<&serde_json::Value> for Variable {
    fn from(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::NONE,
            serde_json::Value::Bool(flag) => Self::from(*flag),
            serde_json::Value::Number(number) => Self::number(&number.to_string()),
            serde_json::Value::String(text) => Self::from(text.as_str()),
            serde_json::Value::Array(items) => Self::list(items.iter().map(Self::from)),
            serde_json::Value::Object(entries) => {
                Self::dict(entries.iter().map(|(key, value)| (key.as_str(), Self::from(value))))
            }
        }
    }
}
