//! A structure as it is typed: an object with one of `json`, `json_object`, `regex`, `choice` and `grammar`, the names that
//! vLLM has for them.

use serde_json::{Map, Value};

use crate::StructureError;

/// The keys of a structure.
const KINDS: &str = "`json`, `json_object`, `regex`, `choice` or `grammar`";
const ANY_WHITESPACE: &str = "disable_any_whitespace";

/// What the text of a response must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Structure {
    /// JSON that a schema describes.
    Json(Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar in Lark's notation, as llguidance reads it.
    Grammar(String),
}

impl Structure {
    /// Reads `text`, a JSON object.
    ///
    /// # Errors
    /// When it is none, or has another number of kinds than one.
    pub fn parse(text: &str) -> Result<Self, StructureError> {
        let mut object = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(other) => {
                return Err(spec(format!(
                    "a structure is an object with {KINDS}, found {}",
                    kind_of(&other)
                )));
            }
            Err(error) => {
                return Err(spec(format!(
                    "a structure is an object with {KINDS}, and this is not JSON: {error}"
                )));
            }
        };
        let compact = match object.remove(ANY_WHITESPACE) {
            None | Some(Value::Null) => None,
            Some(Value::Bool(compact)) => Some(compact),
            Some(other) => return Err(wrong(ANY_WHITESPACE, "true or false", &other)),
        };
        object.retain(|_, value| !value.is_null());
        let mut entries = object.into_iter();
        let (key, value) = match (entries.next(), entries.next()) {
            (Some(entry), None) => entry,
            (None, _) => return Err(spec(format!("a structure has one of {KINDS}, and this has none"))),
            (Some((one, _)), Some((other, _))) => {
                return Err(spec(format!(
                    "a structure has one of {KINDS} alone, and this has `{one}` and `{other}`"
                )));
            }
        };
        let structure = Self::of(&key, value)?;
        match (structure, compact) {
            (Self::Json(schema), Some(true)) => Ok(Self::Json(without_whitespace(schema))),
            (structure @ Self::Json(_), _) | (structure, None) => Ok(structure),
            (_, Some(_)) => Err(spec(format!("`{ANY_WHITESPACE}` is for `json` and `json_object` only"))),
        }
    }

    fn of(key: &str, value: Value) -> Result<Self, StructureError> {
        match (key, value) {
            ("json", schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Self::Json(schema)),
            ("json", Value::String(text)) => match serde_json::from_str(&text) {
                Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Self::Json(schema)),
                Ok(other) => Err(wrong("json", "a schema", &other)),
                Err(error) => Err(spec(format!("`json` is a string that is not JSON: {error}"))),
            },
            ("json_object", Value::Bool(true)) => Ok(Self::Json(serde_json::json!({"type": "object"}))),
            ("regex", Value::String(regex)) => Ok(Self::Regex(regex)),
            ("grammar", Value::String(grammar)) => Ok(Self::Grammar(grammar)),
            ("choice", Value::Array(items)) if !items.is_empty() => {
                let text = |item| match item {
                    Value::String(text) if !text.is_empty() => Ok(text),
                    other => Err(wrong("choice", "a list of texts that are not empty", &other)),
                };
                Ok(Self::Choice(items.into_iter().map(text).collect::<Result<_, _>>()?))
            }
            ("json", other) => Err(wrong("json", "a schema", &other)),
            ("json_object", other) => Err(wrong("json_object", "true", &other)),
            ("regex" | "grammar", other) => Err(wrong(key, "a string", &other)),
            ("choice", other) => Err(wrong("choice", "a list of texts that are not empty", &other)),
            _ => Err(spec(format!("a structure has one of {KINDS}, found `{key}`"))),
        }
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Json(_) => "the JSON schema",
            Self::Regex(_) => "the regular expression",
            Self::Choice(_) => "the list of choices",
            Self::Grammar(_) => "the grammar",
        }
    }
}

/// The schema with llguidance's key for JSON without a blank between its parts.
fn without_whitespace(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(false) => return Value::Bool(false),
        _ => Map::new(),
    };
    let options = schema.entry("x-guidance").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(options) = options {
        options.insert("whitespace_flexible".to_owned(), Value::Bool(false));
    }
    Value::Object(schema)
}

fn spec(reason: String) -> StructureError {
    StructureError::Spec { reason }
}

fn wrong(key: &str, expected: &str, found: &Value) -> StructureError {
    spec(format!("`{key}` must be {expected}, found {}", kind_of(found)))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_is_read() {
        let check = |text: &str, expect: Structure| assert_eq!(Structure::parse(text), Ok(expect), "{text}");
        check(r#"{"json": {"type": "null"}, "regex": null}"#, Structure::Json(json!({"type": "null"})));
        check(r#"{"json": "{\"type\": \"null\"}"}"#, Structure::Json(json!({"type": "null"})));
        check(r#"{"json": true, "disable_any_whitespace": false}"#, Structure::Json(json!(true)));
        check(r#"{"json_object": true}"#, Structure::Json(json!({"type": "object"})));
        let compact = json!({"type": "object", "x-guidance": {"whitespace_flexible": false}});
        check(r#"{"json_object": true, "disable_any_whitespace": true}"#, Structure::Json(compact));
        check(r#"{"regex": "a+"}"#, Structure::Regex("a+".to_owned()));
        check(r#"{"choice": ["a", "b"]}"#, Structure::Choice(vec!["a".to_owned(), "b".to_owned()]));
        check(r#"{"grammar": "start: \"a\""}"#, Structure::Grammar("start: \"a\"".to_owned()));
    }

    #[test]
    fn what_is_none_is_refused() {
        let refused = |text: &str| Structure::parse(text).unwrap_err().to_string();
        insta::assert_snapshot!(refused("3"), @"a structure is an object with `json`, `json_object`, `regex`, `choice` or `grammar`, found a number");
        insta::assert_snapshot!(refused("{"), @"a structure is an object with `json`, `json_object`, `regex`, `choice` or `grammar`, and this is not JSON: EOF while parsing an object at line 1 column 1");
        insta::assert_snapshot!(refused("{}"), @"a structure has one of `json`, `json_object`, `regex`, `choice` or `grammar`, and this has none");
        insta::assert_snapshot!(refused(r#"{"json": {}, "regex": "a"}"#), @"a structure has one of `json`, `json_object`, `regex`, `choice` or `grammar` alone, and this has `json` and `regex`");
        insta::assert_snapshot!(refused(r#"{"jsn": {}}"#), @"a structure has one of `json`, `json_object`, `regex`, `choice` or `grammar`, found `jsn`");
        insta::assert_snapshot!(refused(r#"{"json": "{"}"#), @"`json` is a string that is not JSON: EOF while parsing an object at line 1 column 1");
        insta::assert_snapshot!(refused(r#"{"json": 3}"#), @"`json` must be a schema, found a number");
        insta::assert_snapshot!(refused(r#"{"choice": []}"#), @"`choice` must be a list of texts that are not empty, found a list");
        insta::assert_snapshot!(refused(r#"{"choice": ["a", ""]}"#), @"`choice` must be a list of texts that are not empty, found a string");
        insta::assert_snapshot!(refused(r#"{"regex": ["a"]}"#), @"`regex` must be a string, found a list");
        insta::assert_snapshot!(refused(r#"{"json_object": false}"#), @"`json_object` must be true, found a boolean");
        insta::assert_snapshot!(refused(r#"{"regex": "a", "disable_any_whitespace": true}"#), @"`disable_any_whitespace` is for `json` and `json_object` only");
    }
}
