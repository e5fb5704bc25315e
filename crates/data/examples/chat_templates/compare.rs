//! The project's own renderings beside the judge's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use data::{ChatTemplate, Date, Record, RecordError, parse_object};

use crate::exceptions::Exceptions;
use crate::judged::{Judged, JudgedTemplate, Rendering};

/// The exception of `raise_exception`: its text is the template author's, and users read it.
const RAISED: &str = "TemplateError";
/// Of a text, how much is shown around the first difference.
const SHOWN_CHARS: usize = 60;

/// What the comparison found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) num_templates: usize,
    pub(crate) num_failed_templates: usize,
    pub(crate) num_renderings: usize,
    pub(crate) num_excepted: usize,
    pub(crate) differences: Vec<Difference>,
}

/// A rendering that is not the judge's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) template: String,
    pub(crate) conversation: String,
    expected: Result<String, String>,
    got: Result<String, String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "different: {} | {}", self.template, self.conversation)?;
        let start = match (&self.expected, &self.got) {
            (Ok(expected), Ok(got)) => {
                let common = expected.chars().zip(got.chars()).take_while(|(a, b)| a == b).count();
                common.saturating_sub(SHOWN_CHARS / 3)
            }
            _ => 0,
        };
        let shown = |side: &Result<String, String>| match side {
            Ok(text) => format!("{:?}", text.chars().skip(start).take(SHOWN_CHARS).collect::<String>()),
            Err(reason) => format!("refused: {reason}"),
        };
        writeln!(f, "  transformers, from character {start}: {}", shown(&self.expected))?;
        write!(f, "  here: {}", shown(&self.got))
    }
}

/// Renders every template over every conversation, on every core. A record that is refused is a refusal of each template.
///
/// # Errors
/// When the judge knows a conversation that the list has not.
pub(crate) fn compare(judged: &Judged, exceptions: &mut Exceptions) -> Result<Report, String> {
    let mut records = BTreeMap::new();
    for (id, line) in &judged.conversations {
        let record = parse_object(line.as_bytes()).and_then(Record::from_object);
        records.insert(id.as_str(), record.map_err(|error| error.to_string()));
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(|| {
                while let Some(template) = judged.templates.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = differences(template, &records, &judged.special_tokens);
                    if let Ok(mut results) = results.lock() {
                        results.push((template.id.as_str(), found));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().map_err(|_| "a renderer panicked".to_owned())?;
    results.sort_by_key(|(id, _)| *id);
    let num_renderings = judged.templates.iter().map(|template| template.renderings.len()).sum();
    let mut report = Report { num_templates: results.len(), num_renderings, ..Report::default() };
    for (id, found) in results {
        let (excused, open): (Vec<_>, Vec<_>) =
            found?.into_iter().partition(|difference| exceptions.excuse(id, &difference.conversation));
        report.num_excepted += excused.len();
        report.num_failed_templates += usize::from(!open.is_empty());
        report.differences.extend(open);
    }
    Ok(report)
}

fn differences(
    template: &JudgedTemplate,
    records: &BTreeMap<&str, Result<Record, String>>,
    special_tokens: &BTreeMap<String, String>,
) -> Result<Vec<Difference>, String> {
    let engine = Engine::new(template, special_tokens);
    let mut found = Vec::new();
    for Rendering { conversation, text, error, message } in &template.renderings {
        let record = records.get(conversation.as_str());
        let record = record
            .ok_or_else(|| format!("the judge has a conversation `{conversation}`, and the list has not"))?;
        let got = record.as_ref().map_err(Clone::clone).and_then(|record| engine.render(record));
        let is_equal = match (text, &got) {
            (Some(text), Ok(got)) => text == got,
            (None, Err(reason)) => error != RAISED || reason.starts_with(message.as_str()),
            _ => false,
        };
        if !is_equal {
            found.push(Difference {
                template: template.id.clone(),
                conversation: conversation.clone(),
                expected: text.clone().ok_or_else(|| format!("{error}: {message}")),
                got,
            });
        }
    }
    Ok(found)
}

/// All that this test knows of crate `data`'s templates.
struct Engine(ChatTemplate);

impl Engine {
    fn new(template: &JudgedTemplate, special_tokens: &BTreeMap<String, String>) -> Self {
        let named = template.templates.iter().map(|(name, source)| (name.as_str(), source.as_str()));
        let tokens = special_tokens.iter().map(|(name, token)| (name.clone(), token.clone())).collect();
        Self(ChatTemplate::new(named, tokens, Date::new(2026, 1, 2)))
    }

    fn render(&self, record: &Record) -> Result<String, String> {
        let Record::Messages(record) = record else { return Err("not a `messages` record".to_owned()) };
        self.0.prompt_text(record).map_err(|error| match error {
            RecordError::Template { reason } => reason,
            other => other.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(renderings: &str) -> Judged {
        let template = r"{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ bos_token ~ m.content }}{% endfor %}";
        let head =
            serde_json::json!({"special_tokens": {"bos_token": "<s>", "eos_token": "</s>"}}).to_string();
        let body =
            format!(r#"{{"id": "a", "templates": {{"default": {template:?}}}, "renderings": {renderings}}}"#);
        let conversations = concat!(
            r#"{"id": "plain", "messages": [{"role": "user", "content": "hi"}]}"#,
            "\n",
            r#"{"id": "tool", "messages": [{"role": "tool", "content": "hi"}]}"#,
        );
        Judged::parse(&format!("{head}\n{body}\n"), conversations).unwrap()
    }

    fn check(renderings: &str, exceptions: &str, expect: (usize, usize)) {
        let mut exceptions = Exceptions::parse(exceptions).unwrap();
        let report = compare(&judged(renderings), &mut exceptions).unwrap();
        assert_eq!((report.num_failed_templates, report.num_excepted), expect, "{:?}", report.differences);
    }

    #[test]
    fn texts_and_refusals_must_be_the_judges() {
        check(r#"[{"conversation": "plain", "text": "<s>hi"}]"#, "", (0, 0));
        check(r#"[{"conversation": "plain", "text": "<s>hi "}]"#, "", (1, 0));
        check(r#"[{"conversation": "plain", "text": "<s>hi "}]"#, "a | plain | why\n", (0, 1));
        check(r#"[{"conversation": "plain", "error": "TypeError", "message": "no"}]"#, "", (1, 0));
        let raised = r#"[{"conversation": "tool", "error": "TemplateError", "message": "no tools"}]"#;
        check(raised, "", (0, 0));
        check(&raised.replace("no tools", "others"), "", (1, 0));
        check(&raised.replace("no tools", "others").replace("TemplateError", "TypeError"), "", (0, 0));
        check(r#"[{"conversation": "tool", "text": "<s>hi"}]"#, "", (1, 0));
    }

    #[test]
    fn a_difference_is_shown_where_it_begins() {
        let difference = Difference {
            template: "a".into(),
            conversation: "c".into(),
            expected: Ok(format!("{}xyz", "é".repeat(50))),
            got: Ok(format!("{}XYZ", "é".repeat(50))),
        };
        let text = difference.to_string();
        assert!(text.contains("from character 30") && text.contains("xyz") && text.contains("XYZ"), "{text}");
    }
}
