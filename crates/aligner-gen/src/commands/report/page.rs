//! The page of a report: one HTML file with its style, its script and its samples inside.

use std::path::Path;

use data::JsonObject;
use serde_json::{Value, json};

use super::chart;
use super::figures::{Figures, Response, Sample};
use super::number_at;
use crate::metrics::SeriesPoint;

const TEMPLATE: &str = include_str!("page.html");
/// Repeated texts that are shown.
const MOST_REPEATED: usize = 10;

/// The page.
pub(super) fn render(
    log_dir: &Path,
    figures: &Figures,
    series: &[SeriesPoint],
    summary: Option<&JsonObject>,
) -> String {
    let title = escaped(&log_dir.display().to_string());
    let mut sections = String::new();
    section(&mut sections, "Tokens a response", &chart::histogram(&figures.num_tokens));
    section(&mut sections, "Characters a response", &chart::histogram(&figures.num_chars));
    section(&mut sections, "Reasons of ending", &reasons(figures));
    section(&mut sections, "Mean log-probability of a response", &chart::histogram(&figures.logprobs));
    let over_time = |value: fn(&SeriesPoint) -> f64| {
        chart::line(&series.iter().map(|point| (point.at_seconds, value(point))).collect::<Vec<_>>())
    };
    section(
        &mut sections,
        "Output tokens a second, over seconds",
        &over_time(|point| point.tokens_per_second),
    );
    section(
        &mut sections,
        "Memory of the process in bytes, over seconds",
        &over_time(|point| point.resident_bytes),
    );
    section(&mut sections, "Where the time went in the last run", &times(summary));
    section(&mut sections, "Repeated responses", &repeated(figures));
    let rows: String = figures
        .rows(series)
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value)))
        .collect();
    let shown = match figures.samples.len() as u64 == figures.num_samples {
        true => String::new(),
        false => format!("{} of {} samples, evenly spaced", figures.samples.len(), figures.num_samples),
    };
    fill(
        TEMPLATE,
        &[
            ("title", &title),
            ("rows", &rows),
            ("sections", &sections),
            ("shown", &shown),
            ("samples", &samples(figures)),
        ],
    )
}

/// Puts values in the places `{{name}}` of a text. What a value holds is not looked at.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value));
        rest = after;
    }
    page.push_str(rest);
    page
}

fn section(page: &mut String, heading: &str, body: &str) {
    if !body.is_empty() {
        page.push_str(&format!("<section><h2>{heading}</h2>{body}</section>\n"));
    }
}

fn reasons(figures: &Figures) -> String {
    let bar = |(reason, count): &(String, u64)| {
        let percent = 100.0 * *count as f64 / figures.num_responses.max(1) as f64;
        format!(
            "<div class=\"bar\"><span>{}</span><i style=\"width:{percent:.1}%\"></i><b>{percent:.1} %</b></div>",
            escaped(reason)
        )
    };
    figures.finish_reasons.iter().map(bar).collect()
}

fn times(summary: Option<&JsonObject>) -> String {
    let Some(summary) = summary else { return String::new() };
    let of = |name: &str| Some((name.to_owned(), number_at(summary, &["seconds", name])?));
    let parts: Vec<(String, f64)> =
        ["load", "prefill", "decode", "sample", "write"].into_iter().filter_map(of).collect();
    let all: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    if all <= 0.0 {
        return String::new();
    }
    let bar = |(name, seconds): &(String, f64)| {
        let percent = 100.0 * seconds / all;
        format!(
            "<div class=\"bar\"><span>{name}</span><i style=\"width:{percent:.1}%\"></i><b>{seconds:.1} s</b></div>"
        )
    };
    parts.iter().map(bar).collect()
}

fn repeated(figures: &Figures) -> String {
    let rows: String = figures
        .most_repeated(MOST_REPEATED)
        .iter()
        .map(|(count, text)| format!("<tr><th>{count} times</th><td><pre>{}</pre></td></tr>", escaped(text)))
        .collect();
    if rows.is_empty() { rows } else { format!("<table>{rows}</table>") }
}

/// The samples as JSON that can stand in a script.
fn samples(figures: &Figures) -> String {
    let response = |response: &Response| {
        let Response { text, finish_reason, num_tokens, mean_logprob } = response;
        json!({"t": text, "r": finish_reason, "n": num_tokens, "l": mean_logprob})
    };
    let sample = |(idx, sample): &(u64, Sample)| {
        let responses: Vec<Value> = sample.responses.iter().map(response).collect();
        json!({"i": idx, "p": sample.prompt, "e": sample.error, "a": responses})
    };
    let samples: Value = figures.samples.iter().map(sample).collect();
    // Nothing in a text may end the script or begin a comment in it.
    samples.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Text as it stands between tags or in an attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(text: &str) -> Figures {
        let mut figures = Figures::new(10);
        let response =
            Response { text: text.to_owned(), finish_reason: Some(text.to_owned()), ..Response::default() };
        let responses = vec![response.clone(), response];
        figures.add(Sample { prompt: text.to_owned(), responses, ..Sample::default() });
        figures
    }

    #[test]
    fn nothing_in_a_text_is_taken_for_the_page() {
        let evil = "</script><script>alert(1)</script>{{rows}}<!-- \"&";
        let page = render(Path::new("/results"), &figures(evil), &[], None);
        assert_eq!(page.matches("<script").count(), 2, "the page's own");
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("alert(1)</script>") && !page.contains("<!-- \"&"));
        let (_, after) = page.split_once("id=\"samples\">").unwrap();
        let samples: Value = serde_json::from_str(after.split_once("</script>").unwrap().0).unwrap();
        assert_eq!(samples[0]["a"][1]["t"], evil);
    }

    #[test]
    fn the_page_needs_nothing_else_and_fits_a_phone() {
        let page = render(Path::new("/results"), &figures("a"), &[], None);
        for outside in ["http:", "https:", "src=", "@import", "url(", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"));
        assert!(!page.contains("{{") && page.contains("<!DOCTYPE html>"));
    }
}
