//! The chat templates of a Hugging Face folder, with the precedence of transformers 5.24
//! (`tokenization_utils_base.py`): template files replace what `tokenizer_config.json` has, all of it.

use std::path::Path;

use serde_json::Value;

use super::{read_json, read_optional};
use crate::FormatError;

pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";
pub(crate) const TEMPLATE_FOLDER: &str = "additional_chat_templates";
/// The name of the template that is taken where nothing asks for another.
pub(crate) const DEFAULT: &str = "default";
/// Where processors of transformers 4 had theirs; tokenizers never read it.
const PROCESSOR_FILE: &str = "chat_template.json";

/// Templates by name, and what is to be said of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChatTemplates {
    /// Name and Jinja source.
    pub(crate) named: Vec<(String, String)>,
    /// The file that was taken and the file that says something else.
    pub(crate) conflict: Option<[&'static str; 2]>,
}

impl ChatTemplates {
    /// Reads the templates of `folder`; `in_config` is the key of its `tokenizer_config.json`.
    pub(crate) fn read(folder: &Path, in_config: Option<&Value>) -> Result<Self, FormatError> {
        let in_config = of_value(&folder.join("tokenizer_config.json"), in_config)?;
        let mut files = Vec::new();
        if let Some(source) = read_text(&folder.join(TEMPLATE_FILE))? {
            files.push((DEFAULT.to_owned(), source));
        }
        let from = if files.is_empty() { TEMPLATE_FOLDER } else { TEMPLATE_FILE };
        for (name, source) in additional(&folder.join(TEMPLATE_FOLDER))? {
            set(&mut files, name, source);
        }
        let of_processor = read_json(&folder.join(PROCESSOR_FILE))?;
        let of_processor = of_value(
            &folder.join(PROCESSOR_FILE),
            of_processor.as_ref().and_then(|document| document.get("chat_template")),
        )?;
        let mut templates = Self::default();
        let mut take = |named: Vec<(String, String)>, file| {
            if named.is_empty() {
                return;
            }
            match templates.conflict {
                None if templates.named.is_empty() => {
                    templates.named = named;
                    templates.conflict = Some([file, file]);
                }
                Some([taken, other]) if taken == other && !same(&templates.named, &named) => {
                    templates.conflict = Some([taken, file]);
                }
                _ => {}
            }
        };
        take(files, from);
        take(in_config, "tokenizer_config.json");
        take(of_processor, PROCESSOR_FILE);
        // `chat_template.json` alone is none of a tokenizer's files: taken because nothing else is there, and said.
        templates.conflict =
            templates.conflict.filter(|[taken, other]| taken != other || *taken == PROCESSOR_FILE);
        Ok(templates)
    }
}

/// Whether two sets hold the same templates, the last newline of a file apart.
fn same(left: &[(String, String)], right: &[(String, String)]) -> bool {
    let trimmed = |named: &[(String, String)]| {
        let mut named: Vec<_> = named
            .iter()
            .map(|(name, source)| (name.clone(), source.trim_end_matches('\n').to_owned()))
            .collect();
        named.sort_unstable();
        named
    };
    trimmed(left) == trimmed(right)
}

fn set(named: &mut Vec<(String, String)>, name: String, source: String) {
    match named.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => *known = source,
        None => named.push((name, source)),
    }
}

/// A chat template is a string, a list of named ones, or, as transformers 5 keeps them, an object.
fn of_value(file: &Path, value: Option<&Value>) -> Result<Vec<(String, String)>, FormatError> {
    let bad = || FormatError::BadTokenizer {
        file: file.display().to_string(),
        reason: "`chat_template` is neither a string nor a list of objects with `name` and `template`".into(),
    };
    let mut named = Vec::new();
    match value {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => named.push((DEFAULT.to_owned(), source.clone())),
        Some(Value::Array(entries)) => {
            for entry in entries {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                let (Some(name), Some(source)) = (text("name"), text("template")) else { return Err(bad()) };
                set(&mut named, name, source);
            }
        }
        Some(Value::Object(entries)) => {
            for (name, source) in entries {
                let source = source.as_str().ok_or_else(bad)?;
                named.push((name.clone(), source.to_owned()));
            }
        }
        Some(_) => return Err(bad()),
    }
    Ok(named)
}

/// The files of the folder of further templates, by name.
fn additional(folder: &Path) -> Result<Vec<(String, String)>, FormatError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let io = |source| FormatError::io("list", folder, source);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        paths.push(entry.map_err(io)?.path());
    }
    paths.sort_unstable();
    let mut templates = Vec::new();
    for path in paths {
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jinja"));
        if let Some(name) = name
            && let Some(source) = read_text(&path)?
        {
            templates.push((name.to_owned(), source));
        }
    }
    Ok(templates)
}

/// A text file as Python reads it: UTF-8, every line end one newline.
fn read_text(path: &Path) -> Result<Option<String>, FormatError> {
    let Some(bytes) = read_optional(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes).map_err(|error| FormatError::BadTokenizer {
        file: path.display().to_string(),
        reason: error.utf8_error().to_string(),
    })?;
    Ok(Some(text.replace("\r\n", "\n").replace('\r', "\n")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn read(files: &[(&str, &str)], in_config: &Value) -> ChatTemplates {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(TEMPLATE_FOLDER)).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        ChatTemplates::read(folder.path(), Some(in_config)).unwrap()
    }

    fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, source)| (name.to_owned(), source.to_owned())).collect()
    }

    #[test]
    fn files_replace_the_configuration_as_in_transformers() {
        let in_config = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
        let own = read(&[], &in_config);
        assert_eq!(own.named, named(&[("default", "d"), ("tool_use", "t")]));
        assert_eq!(own.conflict, None);
        let both = read(&[("chat_template.jinja", "f\r\n")], &in_config);
        assert_eq!(both.named, named(&[("default", "f\n")]));
        assert_eq!(both.conflict, Some(["chat_template.jinja", "tokenizer_config.json"]));
        let further = read(&[("additional_chat_templates/rag.jinja", "r")], &json!("d"));
        assert_eq!(further.named, named(&[("rag", "r")]));
        assert_eq!(further.conflict, Some(["additional_chat_templates", "tokenizer_config.json"]));
        let same = read(&[("chat_template.jinja", "d\n")], &json!("d"));
        assert_eq!((same.named, same.conflict), (named(&[("default", "d\n")]), None));
        let processor = read(&[("chat_template.json", r#"{"chat_template": "p"}"#)], &Value::Null);
        assert_eq!(processor.named, named(&[("default", "p")]));
        assert_eq!(processor.conflict, Some(["chat_template.json", "chat_template.json"]));
    }

    #[test]
    fn damaged_templates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = ChatTemplates::read(folder.path(), Some(&json!([{"name": "default"}]))).unwrap_err();
        let text = error.to_string().replace(&folder.path().display().to_string(), "FOLDER");
        insta::assert_snapshot!(text, @"the tokenizer file `FOLDER/tokenizer_config.json` cannot be used: `chat_template` is neither a string nor a list of objects with `name` and `template`");
        fs::write(folder.path().join(TEMPLATE_FILE), [0xff]).unwrap();
        let error = ChatTemplates::read(folder.path(), None).unwrap_err();
        let text = error.to_string().replace(&folder.path().display().to_string(), "FOLDER");
        insta::assert_snapshot!(text, @"the tokenizer file `FOLDER/chat_template.jinja` cannot be used: invalid utf-8 sequence of 1 bytes from index 0");
    }
}
