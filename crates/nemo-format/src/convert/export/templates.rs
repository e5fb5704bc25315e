//! Chat templates on the way back to a Hugging Face folder, as transformers 5.24 saves them: the default one in
//! `chat_template.jinja`, others in `additional_chat_templates`.
//!
//! Where the folder's own `tokenizer_config.json` already has exactly these, it stays as it is.

use hydra_config::Node;
use serde_json::{Map, Value, json};

use crate::huggingface::{DEFAULT, TEMPLATE_FILE, TEMPLATE_FOLDER};
use crate::writer::FolderFile;

/// The files, and whether the configuration had to change.
pub(super) struct TemplateFiles {
    pub(super) files: Vec<FolderFile>,
    pub(super) is_changed: bool,
}

/// Where the `tokenizer_config.json` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigOrigin {
    /// It travelled with the checkpoint.
    Carried,
    /// It was made here.
    Made,
}

/// Makes files of the section's templates and takes them out of `tokenizer_config`, or leaves it alone.
pub(super) fn files(
    section: Option<&Node>,
    tokenizer_config: &mut Map<String, Value>,
    origin: ConfigOrigin,
) -> TemplateFiles {
    let wanted = of_section(section);
    let own = of_json(tokenizer_config.get("chat_template"));
    if wanted == own {
        return TemplateFiles { files: Vec::new(), is_changed: false };
    }
    let is_file_name =
        |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if origin == ConfigOrigin::Made && wanted.len() == 1 && wanted.iter().all(|(name, _)| name == DEFAULT) {
        // A single one is also read by transformers 4 from here.
        tokenizer_config
            .extend(wanted.into_iter().map(|(_, source)| ("chat_template".to_owned(), source.into())));
        return TemplateFiles { files: Vec::new(), is_changed: true };
    }
    tokenizer_config.shift_remove("chat_template");
    if !wanted.iter().all(|(name, _)| is_file_name(name)) {
        let entries = wanted.into_iter().map(|(name, source)| json!({"name": name, "template": source}));
        tokenizer_config.insert("chat_template".into(), entries.collect());
        return TemplateFiles { files: Vec::new(), is_changed: true };
    }
    let file = |(name, source): (String, String)| FolderFile {
        name: if name == DEFAULT { TEMPLATE_FILE.into() } else { format!("{TEMPLATE_FOLDER}/{name}.jinja") },
        bytes: source.into_bytes(),
    };
    TemplateFiles { files: wanted.into_iter().map(file).collect(), is_changed: true }
}

fn of_section(section: Option<&Node>) -> Vec<(String, String)> {
    match section {
        Some(Node::Str(source)) => vec![(DEFAULT.to_owned(), source.clone())],
        Some(Node::List(entries)) => {
            let text = |entry: &Node, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
            entries
                .iter()
                .filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?)))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn of_json(value: Option<&Value>) -> Vec<(String, String)> {
    match value {
        Some(Value::String(source)) => vec![(DEFAULT.to_owned(), source.clone())],
        Some(Value::Array(entries)) => {
            let text = |entry: &Value, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
            entries
                .iter()
                .filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?)))
                .collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Map<String, Value> {
        let mut config = Map::new();
        config.insert("chat_template".into(), value);
        config
    }

    #[test]
    fn templates_are_written_as_transformers_saves_them() {
        let mut named = Node::empty_map();
        named.set("name", Node::from("tool_use"));
        named.set("template", Node::from("t"));
        let mut default = Node::empty_map();
        default.set("name", Node::from("default"));
        default.set("template", Node::from("d"));
        let section = Node::List(vec![default, named]);
        let list = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
        let mut own = config(list);
        let same = files(Some(&section), &mut own, ConfigOrigin::Carried);
        assert!(same.files.is_empty() && !same.is_changed && own.contains_key("chat_template"));
        let mut own = config(json!("old"));
        let changed = files(Some(&section), &mut own, ConfigOrigin::Carried);
        let names: Vec<&str> = changed.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"]);
        assert!(changed.is_changed && !own.contains_key("chat_template"));
        let mut own = Map::new();
        assert!(files(Some(&Node::from("d")), &mut own, ConfigOrigin::Made).files.is_empty());
        assert_eq!(own["chat_template"], "d");
    }
}
