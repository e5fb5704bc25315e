//! What the judge wrote, and the conversations it was asked about.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// What the judge says of one template.
#[derive(Debug, Deserialize)]
pub(crate) struct JudgedTemplate {
    pub(crate) id: String,
    /// The texts by name, `default` where there is one.
    pub(crate) templates: BTreeMap<String, String>,
    pub(crate) renderings: Vec<Rendering>,
}

/// A prompt, or the exception that the judge raised.
#[derive(Debug, Deserialize)]
pub(crate) struct Rendering {
    pub(crate) conversation: String,
    pub(crate) text: Option<String>,
    #[serde(default)]
    pub(crate) error: String,
    #[serde(default)]
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
struct Facts {
    special_tokens: BTreeMap<String, String>,
}

/// Everything the judge wrote, and the conversations it was asked about.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) special_tokens: BTreeMap<String, String>,
    pub(crate) templates: Vec<JudgedTemplate>,
    /// The lines as they stand in the file, by their ids.
    pub(crate) conversations: BTreeMap<String, String>,
}

impl Judged {
    /// Reads the judge's lines and the conversations'.
    ///
    /// # Errors
    /// When a line is not what the judge writes.
    pub(crate) fn parse(judged: &str, conversations: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Id {
            id: String,
        }
        let mut lines = judged.lines();
        let head = lines.next().ok_or("the judge wrote nothing")?;
        let facts: Facts =
            serde_json::from_str(head).map_err(|error| format!("line 1 of the judge's: {error}"))?;
        let mut templates = Vec::new();
        for (number, line) in (2..).zip(lines) {
            let template = serde_json::from_str(line);
            templates.push(template.map_err(|error| format!("line {number} of the judge's: {error}"))?);
        }
        let mut by_id = BTreeMap::new();
        for (number, line) in (1..).zip(conversations.lines()) {
            let Id { id } = serde_json::from_str(line)
                .map_err(|error| format!("line {number} of the conversations: {error}"))?;
            if by_id.insert(id.clone(), line.to_owned()).is_some() {
                return Err(format!("the conversations have `{id}` twice"));
            }
        }
        Ok(Self { special_tokens: facts.special_tokens, templates, conversations: by_id })
    }

    pub(crate) fn template_ids(&self) -> BTreeSet<&str> {
        self.templates.iter().map(|template| template.id.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_least_twenty_conversations_of_their_own_names() {
        let lines = include_str!("../../../../tests/chat_templates/conversations.jsonl");
        let judged = Judged::parse("{\"special_tokens\": {}}", lines).unwrap();
        assert!(judged.conversations.len() >= 20, "{}", judged.conversations.len());
        let twice = format!("{lines}{lines}");
        assert!(Judged::parse("{\"special_tokens\": {}}", &twice).unwrap_err().ends_with("twice"));
    }
}
