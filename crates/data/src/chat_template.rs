//! A tokenizer's Jinja chat template, rendered as Hugging Face's `apply_chat_template` does.

use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, ErrorKind, Value, context};

use crate::DataError;
use crate::messages::MessagesRecord;
use crate::record::RecordError;

const TEMPLATE_NAME: &str = "chat_template";

/// A compiled chat template and the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles `source`. The tokens are what the template sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// When the template is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, DataError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|source| DataError::BadChatTemplate { source })?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        let added = environment.add_template_owned(TEMPLATE_NAME, source.to_owned());
        added.map_err(|source| DataError::BadChatTemplate { source })?;
        Ok(Self { environment, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The prompt of one record, the header of the answer included.
    ///
    /// # Errors
    /// When the template refuses the messages.
    pub fn prompt_text(&self, record: &MessagesRecord) -> Result<String, RecordError> {
        let rendered = self.environment.get_template(TEMPLATE_NAME).and_then(|template| {
            template.render(context! {
                messages => Value::from(Serde(&record.messages)),
                tools => record.tools.as_ref().map(|tools| Value::from(Serde(tools))),
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
        });
        rendered.map_err(|error| RecordError::Template { reason: reason_of(&error) })
    }
}

fn reason_of(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `tojson` as Hugging Face defines it: Python's `json.dumps` with `ensure_ascii=False`.
#[expect(clippy::needless_pass_by_value, reason = "the engine gives keyword arguments by value")]
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut json = String::new();
    push_json(&mut json, value, indent, 0)?;
    Ok(json)
}

fn push_json(
    json: &mut String,
    value: &Value,
    indent: Option<usize>,
    depth: usize,
) -> Result<(), minijinja::Error> {
    let (open, close) = match value.kind() {
        ValueKind::Map => ('{', '}'),
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        _ => {
            let scalar = serde_json::to_string(value);
            let error =
                |source| minijinja::Error::new(ErrorKind::BadSerialization, "not JSON").with_source(source);
            json.push_str(&scalar.map_err(error)?);
            return Ok(());
        }
    };
    json.push(open);
    let mut num_items = 0;
    for item in value.try_iter()? {
        if num_items > 0 {
            json.push_str(if indent.is_some() { "," } else { ", " });
        }
        num_items += 1;
        push_line_break(json, indent, depth + 1);
        if open == '{' {
            // `{:?}` of a string key would escape as Rust does, not as JSON.
            let _ = write!(json, "{}: ", serde_json::Value::String(item.to_string()));
            push_json(json, &value.get_item(&item)?, indent, depth + 1)?;
        } else {
            push_json(json, &item, indent, depth + 1)?;
        }
    }
    if num_items > 0 {
        push_line_break(json, indent, depth);
    }
    json.push(close);
    Ok(())
}

fn push_line_break(json: &mut String, indent: Option<usize>, depth: usize) {
    if let Some(indent) = indent {
        json.push('\n');
        json.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: serde_json::Value) -> Result<String, RecordError> {
        let serde_json::Value::Array(messages) = messages else { unreachable!() };
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        template.prompt_text(&MessagesRecord { messages, ..MessagesRecord::default() })
    }

    #[test]
    fn real_templates_equal_transformers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let rows = std::fs::read_to_string(folder.join("chat_templates.json")).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
        let mut templates = BTreeSet::new();
        for row in &rows {
            let name = row["template"].as_str().unwrap();
            let source =
                std::fs::read_to_string(folder.join(format!("chat_templates/{name}.jinja"))).unwrap();
            let template = ChatTemplate::new(source.strip_suffix('\n').unwrap(), "<s>", "</s>").unwrap();
            let tools = row.get("tools").map(|tools| tools.as_array().unwrap().clone());
            let messages = row["messages"].as_array().unwrap().clone();
            let rendered =
                template.prompt_text(&MessagesRecord { messages, tools, ..MessagesRecord::default() });
            match row["error"].as_str() {
                None => assert_eq!(rendered.unwrap(), row["text"], "{name} {}", row["messages"]),
                Some(reason) => {
                    assert_eq!(rendered, Err(RecordError::Template { reason: reason.into() }), "{name}");
                }
            }
            templates.insert(name);
        }
        assert!(templates.len() == 9 && rows.len() >= 90, "{templates:?}");
    }

    #[test]
    fn blocks_methods_and_json_as_in_jinja2() {
        let source = "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.content is string %}\n{{ m.content.strip() | trim }}|\n    {% endif %}\n{{ m | tojson }}\n{% endfor %}\n{{ [1, {'a': none}] | tojson(indent=2) }}{{ eos_token }}\n";
        let text =
            render(source, json!([{"role": "user", "content": " é<'\" ", "n": [1, 2.5, true]}])).unwrap();
        insta::assert_snapshot!(text, @r#"
        <s>é<'"|
        {"role": "user", "content": " é<'\" ", "n": [1, 2.5, true]}
        [
          1,
          {
            "a": null
          }
        ]</s>
        "#);
    }

    #[test]
    fn errors_are_one_sentence() {
        let error = render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
        insta::assert_snapshot!(error, @"the chat template failed: roles must alternate");
        let error = ChatTemplate::new("{% if %}", "", "").err().unwrap();
        insta::assert_snapshot!(error, @"the tokenizer's chat template is not valid");
    }
}
