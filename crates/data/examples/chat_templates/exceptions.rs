//! The written list of renderings that cannot equal the judge's: `template | conversation | reason`, a line each.

use std::collections::BTreeSet;

/// Stands for every template, or every conversation.
const ALL: &str = "*";

#[derive(Debug)]
struct Exception {
    template: String,
    conversation: String,
    line: String,
    is_needed: bool,
}

/// The list, and which of its lines were needed.
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    entries: Vec<Exception>,
}

impl Exceptions {
    /// Reads the list. `#` begins a comment line.
    ///
    /// # Errors
    /// When a part of a line is missing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let parts: Vec<&str> = line.splitn(3, " | ").map(str::trim).collect();
            let [template, conversation, reason] = parts[..] else {
                return Err(format!(
                    "line {number} of exceptions.txt is not `template | conversation | reason`"
                ));
            };
            if reason.is_empty() {
                return Err(format!("line {number} of exceptions.txt has no reason"));
            }
            entries.push(Exception {
                template: template.to_owned(),
                conversation: conversation.to_owned(),
                line: line.to_owned(),
                is_needed: false,
            });
        }
        Ok(Self { entries })
    }

    /// Whether this difference is on the list; its line counts as needed then.
    pub(super) fn excuse(&mut self, template: &str, conversation: &str) -> bool {
        let mut is_excused = false;
        for entry in &mut self.entries {
            let is_meant = |named: &str, this: &str| named == ALL || named == this;
            if is_meant(&entry.template, template) && is_meant(&entry.conversation, conversation) {
                entry.is_needed = true;
                is_excused = true;
            }
        }
        is_excused
    }

    /// The lines that no difference needed. A template that was not fetched, as npm's where npm is missing, proves nothing.
    pub(super) fn stale(&self, templates: &BTreeSet<&str>) -> Vec<String> {
        let is_stale = |entry: &&Exception| {
            let was_fetched =
                templates.contains(entry.template.as_str()) || !entry.template.starts_with("npm/");
            !entry.is_needed && was_fetched
        };
        self.entries.iter().filter(is_stale).map(|entry| entry.line.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_excuses_what_it_names_and_is_stale_otherwise() {
        let text =
            "# why\n\na.jinja | tools | sets differ\nb.jinja | * | other | bars\nnpm/c | * | not here\n";
        let mut exceptions = Exceptions::parse(text).unwrap();
        assert!(exceptions.excuse("a.jinja", "tools"));
        assert!(!exceptions.excuse("a.jinja", "system"));
        assert_eq!(exceptions.stale(&BTreeSet::from(["a.jinja"])), ["b.jinja | * | other | bars"]);
        assert!(exceptions.excuse("b.jinja", "anything"));
        assert!(exceptions.stale(&BTreeSet::from(["a.jinja"])).is_empty());
        assert_eq!(exceptions.stale(&BTreeSet::from(["npm/c"])), ["npm/c | * | not here"]);
        assert!(Exceptions::parse("* | tools | everywhere\n").unwrap().excuse("a.jinja", "tools"));
    }

    #[test]
    fn a_line_without_a_reason_is_refused() {
        let error = Exceptions::parse("a | b\n").unwrap_err();
        assert_eq!(error, "line 1 of exceptions.txt is not `template | conversation | reason`");
        let error = Exceptions::parse("#\na | b |  \n").unwrap_err();
        assert!(error.starts_with("line 2 of exceptions.txt"), "{error}");
    }
}
