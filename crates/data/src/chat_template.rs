//! A tokenizer's Jinja chat templates, rendered as Hugging Face's `apply_chat_template` renders them (transformers 5.24).
//!
//! The language itself is in crate `jinja`.

use jinja::{Date, ErrorKind, Template, Variable};

use crate::json::Json;
use crate::messages::MessagesRecord;
use crate::record_error::RecordError;

/// The template that is used where no other is asked for.
const DEFAULT: &str = "default";
/// The template for records with tools, where the tokenizer has one of that name.
const TOOL_USE: &str = "tool_use";

/// The chat templates of a tokenizer, and what they see beside a record.
///
/// One that is not valid is kept with its error: data without `messages` records need none.
pub struct ChatTemplate {
    named: Vec<(String, Result<Template, String>)>,
    special_tokens: Vec<(String, String)>,
    date: Option<Date>,
}

impl ChatTemplate {
    /// `named` are the templates by name, a single one under the name `default`; `special_tokens` what the templates see
    /// by names such as `bos_token`; `date` is the current date as they see it.
    pub fn new<'a>(
        named: impl IntoIterator<Item = (&'a str, &'a str)>,
        special_tokens: Vec<(String, String)>,
        date: Option<Date>,
    ) -> Self {
        let parse = |source| Template::parse(source).map_err(|error| error.to_string());
        let named = named.into_iter().map(|(name, source)| (name.to_owned(), parse(source)));
        Self { named: named.collect(), special_tokens, date }
    }

    /// The prompt of one record, the header of the answer included.
    ///
    /// # Errors
    /// When the template is not valid, refuses the record, or asks for a date and none is set.
    pub fn prompt_text(&self, record: &MessagesRecord) -> Result<String, RecordError> {
        self.render(record, true)
    }

    /// A whole conversation, without the header of another answer.
    ///
    /// # Errors
    /// As [`Self::prompt_text`].
    pub fn conversation_text(&self, record: &MessagesRecord) -> Result<String, RecordError> {
        self.render(record, false)
    }

    fn render(&self, record: &MessagesRecord, adds_header: bool) -> Result<String, RecordError> {
        let template = self.template_for(record)?;
        let listed = |items: &[Json]| Variable::list(items.iter().map(variable));
        let optional = |items: Option<&Vec<Json>>| items.map_or(Variable::NONE, |items| listed(items));
        let mut variables = vec![
            ("messages", listed(&record.messages)),
            ("tools", optional(record.tools.as_ref())),
            ("documents", optional(record.documents.as_ref())),
            ("add_generation_prompt", Variable::from(adds_header)),
        ];
        let kwargs = &record.template_kwargs;
        let tokens = self.special_tokens.iter().filter(|(name, _)| !kwargs.contains_key(name));
        variables.extend(tokens.map(|(name, token)| (name.as_str(), Variable::from(token.as_str()))));
        variables.extend(kwargs.iter().map(|(name, value)| (name.as_str(), variable(value))));
        template.render(variables, self.date).map_err(|error| match error.kind {
            ErrorKind::NoDate => RecordError::NoTemplateDate,
            _ => RecordError::Template { reason: error.to_string() },
        })
    }

    /// The template that `get_chat_template` of transformers takes.
    fn template_for(&self, record: &MessagesRecord) -> Result<&Template, RecordError> {
        let by_name = |wanted: &str| self.named.iter().find(|(name, _)| name == wanted);
        let for_tools = record.tools.as_ref().and_then(|_| by_name(TOOL_USE));
        let Some((name, template)) = for_tools.or_else(|| by_name(DEFAULT)) else {
            let names: Vec<String> = self.named.iter().map(|(name, _)| format!("`{name}`")).collect();
            let names = names.join(", ");
            let reason =
                format!("the tokenizer's chat templates are {names}, and none is called `{DEFAULT}`");
            return Err(RecordError::UnusableChatTemplate { reason });
        };
        template.as_ref().map_err(|error| {
            let which = if self.named.len() > 1 { format!(" `{name}`") } else { String::new() };
            let reason = format!("the tokenizer's chat template{which} is not valid: {error}");
            RecordError::UnusableChatTemplate { reason }
        })
    }
}

/// What a template sees of the data, every number as Python reads it.
fn variable(json: &Json) -> Variable {
    match json {
        Json::Null => Variable::NONE,
        Json::Bool(flag) => Variable::from(*flag),
        Json::Number(text) => Variable::number(text),
        Json::String(text) => Variable::from(text.as_str()),
        Json::Array(items) => Variable::list(items.iter().map(variable)),
        Json::Object(entries) => {
            Variable::dict(entries.iter().map(|(key, value)| (key.as_str(), variable(value))))
        }
    }
}

#[cfg(test)]
mod tests;
