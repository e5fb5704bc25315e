//! One command-line override, read by Hydra 1.3's grammar (`OverrideLexer.g4` and `OverrideParser.g4` of hydra-core).
//!
//! Sweeps are refused: one run is one configuration.

mod functions;
mod quoting;
mod value;

use crate::grammar::lexer::{id_len, unsigned_len};
use crate::{ConfigError, Node};
pub use quoting::{quoted, without_interpolation};
use value::Element;

/// What an override does with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideKind {
    /// `key=value`: the key must be there.
    Set,
    /// `+key=value`: the key must not be there.
    Add,
    /// `++key=value`: either.
    ForceAdd,
    /// `~key` or `~key=value`.
    Delete,
}

/// A parsed override.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// What it does.
    pub kind: OverrideKind,
    /// The dotted key, or a config group (`db`, `db/engine`).
    pub key: String,
    /// The package after `@`, for a config group.
    pub package: Option<String>,
    /// The value, if one is given.
    pub value: Option<Node>,
    /// The argument as given.
    pub text: String,
}

impl Override {
    /// Whether it is a setting of Hydra itself.
    pub fn is_hydra(&self) -> bool {
        self.key == "hydra" || self.key.starts_with("hydra.") || self.key.starts_with("hydra/")
    }

    /// The argument with the same value for another key, which is there.
    pub(crate) fn with_key(&self, key: &str) -> String {
        let value = self.text.split_once('=').map_or("", |(_, value)| value);
        format!("{key}={value}")
    }
}

/// Reads one argument.
///
/// # Errors
/// When Hydra would refuse it, or it is a sweep; where quoting would make it valid, the error carries the quoted form.
pub fn parse(text: &str) -> Result<Override, ConfigError> {
    let error = |message: String, quoted: Option<String>| ConfigError::Override {
        text: text.to_owned(),
        message,
        quoted,
    };
    let (kind, rest) = if let Some(rest) = text.strip_prefix("++") {
        (OverrideKind::ForceAdd, rest)
    } else if let Some(rest) = text.strip_prefix('+') {
        (OverrideKind::Add, rest)
    } else if let Some(rest) = text.strip_prefix('~') {
        (OverrideKind::Delete, rest)
    } else {
        (OverrideKind::Set, text)
    };
    let (key, value) = rest.split_once('=').map_or((rest, None), |(key, value)| (key, Some(value)));
    let (group, package) = key.split_once('@').map_or((key, None), |(key, package)| (key, Some(package)));
    if let Some(message) = key_problem(group).or_else(|| package.and_then(package_problem)) {
        return Err(error(message, with_index_as_key(text, key)));
    }
    if value.is_none() && kind != OverrideKind::Delete {
        return Err(error("no `=`".to_owned(), Some(format!("{text}=VALUE"))));
    }
    let value = value
        .map(|value| {
            let prefix = &text[..text.len() - value.len()];
            match value::parse(value) {
                Ok(Element::Sweep(value::COMMAS)) => Err(commas(text, prefix, value)),
                Ok(Element::Sweep(form)) => Err(error(
                    format!("`{form}(…)` makes a sweep, one run for each value; start the program once for each instead"),
                    None,
                )),
                Ok(element) => Ok(element.into_node()),
                Err(_) if quoting::has_commas(value) => Err(commas(text, prefix, value)),
                Err(message) => {
                    Err(error(message, quoting::repaired(value).map(|quoted| format!("{prefix}{quoted}"))))
                }
            }
        })
        .transpose()?;
    Ok(Override {
        kind,
        key: group.to_owned(),
        package: package.map(str::to_owned),
        value,
        text: text.to_owned(),
    })
}

/// The error of a value with commas, and what to write for one run.
fn commas(text: &str, prefix: &str, value: &str) -> ConfigError {
    let whole = |value: String| {
        let is_whole = matches!(value::parse(&value), Ok(element) if !matches!(element, Element::Sweep(_)));
        is_whole.then(|| format!("{prefix}{value}").into())
    };
    ConfigError::Commas {
        text: text.to_owned(),
        quoted: whole(quoted(&quoting::unescaped(value))),
        list: quoting::repaired(&format!("[{value}]")).and_then(whole),
    }
}

/// The argument with `a.0` for `a[0]` in its key, where that makes it a key.
fn with_index_as_key(text: &str, key: &str) -> Option<String> {
    let dotted = key.replace("].", ".").replace(']', "").replace('[', ".");
    let is_key = key.contains('[') && path_problem(&dotted).is_none();
    is_key.then(|| text.replacen(key, &dotted, 1))
}

fn key_problem(key: &str) -> Option<String> {
    if key.is_empty() {
        return Some("the key is empty".to_owned());
    }
    if key.contains('/') {
        let is_group = key.split('/').all(|part| !part.is_empty() && id_len(part) == part.len());
        return (!is_group).then(|| format!("`{key}` is neither a key nor a config group"));
    }
    path_problem(key)
}

fn package_problem(package: &str) -> Option<String> {
    if package.is_empty() { None } else { path_problem(package) }
}

fn path_problem(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let is_index = |part: &str| parts.len() > 1 && !part.is_empty() && unsigned_len(part) == part.len();
    parts.iter().find(|part| !is_name(part) && !is_index(part)).map(|part| {
        if part.contains('[') {
            format!("`{part}` is not a key; an element of a list is `.0`, not `[0]`")
        } else {
            format!("`{part}` is not a key")
        }
    })
}

fn is_name(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$'))
}

#[cfg(test)]
mod tests;
