//! Everything that can be wrong with a configuration.

use crate::shell_word;

/// An error in a configuration: which layer, which key, which value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A document that is not YAML as OmegaConf reads it.
    #[error("{source_name}:{line}:{column}: {message}")]
    Yaml {
        /// The document.
        source_name: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// An override that Hydra's grammar does not accept.
    #[error("cannot read override `{text}`: {message}{}", quoted_hint(quoted))]
    Override {
        /// The argument as given.
        text: String,
        /// What is wrong.
        message: String,
        /// The argument with its value quoted, where that is all it needs.
        quoted: Option<String>,
    },
    /// An override with commas outside of brackets, which Hydra takes as a sweep.
    #[error(
        "cannot read override `{text}`: commas outside of brackets make a sweep, one run for each value{}",
        sweep_hint(quoted.as_deref(), list.as_deref())
    )]
    Commas {
        /// The argument as given.
        text: String,
        /// The argument with its value as one text, where that can be.
        quoted: Option<Box<str>>,
        /// The argument with its value as a list, where that can be.
        list: Option<Box<str>>,
    },
    /// A key that no layer has.
    #[error("unknown key `{key}` ({origin}){}{}", nearest_hint(nearest, instead), add_hint(add))]
    UnknownKey {
        /// The key.
        key: String,
        /// Who set it.
        origin: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
        /// The argument with that key, where an argument is at fault.
        instead: Option<Box<str>>,
        /// The argument that adds the key, where one can.
        add: Option<Box<str>>,
    },
    /// A key that a `+` override would add is there already.
    #[error("`{text}` would add a key that exists; in the shell write {}", exists_hint(text))]
    KeyExists {
        /// The key.
        key: String,
        /// The argument.
        text: String,
    },
    /// A deletion that does not fit.
    #[error("cannot delete with `{text}`: {message}")]
    Delete {
        /// The argument.
        text: String,
        /// Why not.
        message: String,
    },
    /// Values that cannot be merged.
    #[error("cannot merge {value} ({origin}) with {existing} ({existing_origin}) at `{key}`")]
    Merge {
        /// The key.
        key: String,
        /// The new value.
        value: String,
        /// Who brings it.
        origin: String,
        /// The value that is there.
        existing: String,
        /// Who set that.
        existing_origin: String,
    },
    /// An interpolation that leads nowhere.
    #[error("cannot resolve `{expression}` at `{key}`{}: {message}", in_brackets(origin))]
    Interpolation {
        /// The key whose value asks.
        key: String,
        /// The expression.
        expression: String,
        /// The layer that asks, where it is known.
        origin: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// A mandatory value that was not given.
    #[error("`{key}` must be given: it is `???` ({origin}); write `{key}=VALUE`")]
    Missing {
        /// The key.
        key: String,
        /// The layer that asks for it.
        origin: String,
    },
    /// A value of the wrong type.
    #[error("`{key}` must be {expected}, found {actual} ({origin})")]
    WrongType {
        /// The key.
        key: String,
        /// What is needed.
        expected: String,
        /// What was found.
        actual: String,
        /// The layer that set it.
        origin: String,
    },
    /// A key that must be there.
    #[error("`{key}` is missing; write `++{key}=VALUE`")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A defaults list, or a config group, that cannot be composed.
    #[error("{source_name}: {message}")]
    Defaults {
        /// The document, or the argument.
        source_name: String,
        /// What is wrong.
        message: String,
    },
    /// A tree that does not fit the type it is read into.
    #[error("{message}")]
    Extract {
        /// What is wrong.
        message: String,
    },
}

impl ConfigError {
    /// The layer, or the document, that the value or the text at fault came from, where it is known.
    pub fn source_layer(&self) -> Option<&str> {
        match self {
            Self::Yaml { source_name, .. } | Self::Defaults { source_name, .. } => Some(source_name),
            Self::UnknownKey { origin, .. }
            | Self::Merge { origin, .. }
            | Self::Missing { origin, .. }
            | Self::WrongType { origin, .. } => Some(origin),
            Self::Interpolation { origin, .. } => origin.as_deref(),
            Self::Override { text, .. }
            | Self::Commas { text, .. }
            | Self::KeyExists { text, .. }
            | Self::Delete { text, .. } => Some(text),
            Self::MissingKey { .. } | Self::Extract { .. } => None,
        }
    }
}

fn quoted_hint(quoted: &Option<String>) -> String {
    quoted.as_ref().map_or_else(String::new, |quoted| format!("; in the shell write {}", shell_word(quoted)))
}

fn sweep_hint(quoted: Option<&str>, list: Option<&str>) -> String {
    match (quoted, list) {
        (Some(quoted), Some(list)) => format!(
            "; for one text, in the shell write {}; for a list, in the shell write {}",
            shell_word(quoted),
            shell_word(list)
        ),
        (Some(one), None) | (None, Some(one)) => format!("; in the shell write {}", shell_word(one)),
        (None, None) => "; start the program once for each instead".to_owned(),
    }
}

fn in_brackets(origin: &Option<String>) -> String {
    origin.as_ref().map_or_else(String::new, |origin| format!(" ({origin})"))
}

fn nearest_hint(nearest: &Option<String>, instead: &Option<Box<str>>) -> String {
    let Some(nearest) = nearest else { return String::new() };
    let typed = instead.as_deref().map(|instead| format!("; in the shell write {}", shell_word(instead)));
    format!(", did you mean `{nearest}`?{}", typed.unwrap_or_default())
}

fn add_hint(add: &Option<Box<str>>) -> String {
    let hint = |add| format!("; to add a new key, in the shell write {}", shell_word(add));
    add.as_deref().map_or_else(String::new, hint)
}

fn exists_hint(text: &str) -> String {
    shell_word(text.strip_prefix('+').unwrap_or(text))
}
