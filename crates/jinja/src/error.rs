//! What goes wrong with a template, named as Python names it.

/// The Python exception that the original would raise, or that this engine does not do what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// `TemplateSyntaxError`: the source is not valid.
    Syntax,
    /// `TemplateAssertionError`: the source names a filter or test that does not exist.
    Assertion,
    /// `TemplateError`: the template called `raise_exception`.
    Raised,
    /// `TemplateRuntimeError`.
    Runtime,
    /// `UndefinedError`: something that does not exist was used.
    Undefined,
    /// `SecurityError`: the sandbox forbids it.
    Security,
    /// `FilterArgumentError`.
    FilterArgument,
    /// `TypeError`.
    Type,
    /// `ValueError`.
    Value,
    /// `KeyError` or `IndexError`.
    Lookup,
    /// `ZeroDivisionError`.
    ZeroDivision,
    /// `OverflowError`.
    Overflow,
    /// `RecursionError`.
    Recursion,
    /// `AssertionError`.
    Assert,
    /// The template asks for the date, and none is given.
    NoDate,
    /// Python would continue, this engine refuses rather than render another text.
    Refused,
}

/// An error of parsing or rendering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{place}", place = match line { Some(line) => format!(" (line {line} of the template)"), None => String::new() })]
pub struct Error {
    /// Which error of Python's it is.
    pub kind: ErrorKind,
    /// What Python says, or why it is refused.
    pub message: String,
    /// The line of the template, from 1, where it is known.
    pub line: Option<usize>,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), line: None }
    }

    pub(crate) fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Syntax, message: message.into(), line: Some(line) }
    }

    pub(crate) fn type_error(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Type, message)
    }

    pub(crate) fn value_error(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Value, message)
    }

    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, what)
    }
}
