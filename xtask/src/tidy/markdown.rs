//! Rules for Markdown: one sentence a line, so that a change is read sentence by sentence.
//!
//! Tables, headings, HTML and code blocks are exempt. The other modules read documents through [`lines`] too.

use super::{Finding, SourceFile};

/// Ends in a full stop, yet no sentence ends there.
const ABBREVIATIONS: [&str; 4] = ["e.g.", "i.e.", "etc.", "vs."];

/// One line outside of code blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) kind: Kind,
    /// The text without list markers, headings' `#` and white space around it. Every character of inline code but the
    /// backticks is replaced by `x`.
    pub(super) text: String,
    /// The same with its code.
    pub(super) raw: String,
}

/// What a line is to a paragraph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Begins a list item.
    Item,
    /// Begins or continues a paragraph or an item.
    Prose,
    Heading,
    /// A row of a table, HTML, or nothing.
    Other,
}

/// The lines of a document that are not in a code block.
pub(super) fn lines(document: &str) -> Vec<Line> {
    let mut fence: Option<&str> = None;
    let mut found = Vec::new();
    for (line_idx, line) in document.lines().enumerate() {
        let line = line.trim();
        let opens = ["```", "~~~"].into_iter().find(|mark| line.starts_with(mark));
        match (fence, opens) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(mark), _) if line.starts_with(mark) => fence = None,
            (Some(_), _) => continue,
            (None, None) => {
                let (kind, raw) = classify(line);
                found.push(Line { number: line_idx + 1, kind, text: mask_code(raw), raw: raw.to_owned() });
                continue;
            }
        }
        // A fence ends the paragraph before it.
        found.push(Line { number: line_idx + 1, kind: Kind::Other, text: String::new(), raw: String::new() });
    }
    found
}

fn classify(line: &str) -> (Kind, &str) {
    if line.is_empty() || line.starts_with(['|', '<']) {
        return (Kind::Other, line);
    }
    let heading = line.trim_start_matches('#');
    if heading.len() < line.len() && heading.starts_with(' ') {
        return (Kind::Heading, heading.trim());
    }
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let after_marker = match (number.len() < line.len(), number.strip_prefix(". ")) {
        (true, Some(rest)) => Some(rest),
        _ => ["* ", "- ", "+ ", "> "].into_iter().find_map(|marker| line.strip_prefix(marker)),
    };
    after_marker.map_or((Kind::Prose, line), |rest| (Kind::Item, rest.trim()))
}

fn mask_code(line: &str) -> String {
    let mut in_code = false;
    line.chars()
        .map(|c| {
            if c == '`' {
                in_code = !in_code;
                c
            } else if in_code {
                'x'
            } else {
                c
            }
        })
        .collect()
}

/// Finds lines with two sentences, and sentences on two lines.
pub(super) fn check_sentences(file: &SourceFile) -> Vec<Finding> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut is_unfinished = false;
    for line in lines(&file.text) {
        let is_text = matches!(line.kind, Kind::Item | Kind::Prose);
        let mut find = |what: &str| findings.push(format!("{}:{}: {what}", file.path, line.number));
        if line.kind == Kind::Prose && is_unfinished {
            find("the sentence began on the line above; one sentence a line");
        }
        if is_text && let Some(next) = second_sentence(&line.text) {
            let start: String = line.raw.chars().skip(next).take(24).collect();
            find(&format!("a second sentence begins at `{}`; one sentence a line", start.replace('`', "'")));
        }
        is_unfinished = is_text && !ends_sentence(&line.text);
    }
    findings
}

/// Whether the last word ends a sentence, or announces what follows.
fn ends_sentence(text: &str) -> bool {
    let bare = text.trim_end_matches(is_closer);
    bare.ends_with(['.', '!', '?', ':']) && !ABBREVIATIONS.iter().any(|word| bare.ends_with(word))
}

/// Brackets, quotes and emphasis that close behind a full stop.
fn is_closer(c: char) -> bool {
    matches!(c, ')' | '"' | '\'' | '*' | '_' | '`' | ']')
}

/// Where, in characters, a second sentence begins.
fn second_sentence(text: &str) -> Option<usize> {
    let mut words = text.split(' ').peekable();
    let mut at = 0;
    while let Some(word) = words.next() {
        at += word.chars().count() + 1;
        let next = words.peek()?;
        // A word that begins with a small letter continues the sentence: `(a, b, ..) and`.
        let begins = next.starts_with(|c: char| !c.is_lowercase()) && !next.starts_with(['-', '=', '|']);
        let is_ellipsis = word.trim_end_matches(is_closer).ends_with("..");
        if begins && !is_ellipsis && !word.ends_with(':') && ends_sentence(word) {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<Finding> {
        check_sentences(&SourceFile { path: "docs/a.md".to_owned(), text: text.to_owned() })
    }

    fn clean(text: &str) {
        assert_eq!(findings(text), Vec::<Finding>::new(), "{text}");
    }

    fn found_at(text: &str, line_numbers: &[usize]) {
        let expect: Vec<String> = line_numbers.iter().map(|number| format!("docs/a.md:{number}: ")).collect();
        let found = findings(text);
        assert_eq!(found.len(), expect.len(), "{text}: {found:?}");
        assert!(found.iter().zip(&expect).all(|(found, at)| found.starts_with(at)), "{text}: {found:?}");
    }

    #[test]
    fn one_sentence_a_line_passes() {
        clean("# A heading\n\nOne sentence.\nAnother, with tch 0.24 and a.b.\n\nNo stop\n");
        clean("* An item.\n  Its second sentence.\n* Another one\n1. A numbered one.\n2. The next.\n");
        clean("Look here:\n`code. With stops. Inside`\n\nSee `a. B` (and e.g. Megatron's), or 1 vs. 2.\n");
        clean("**Bold.**\nNext.\n\n> A quote.\n> Its second sentence.\n");
        clean("A list (`a`, `b`, ..) goes on.\n");
    }

    #[test]
    fn two_sentences_on_a_line_are_found() {
        found_at("One. Two.\n", &[1]);
        found_at("Fine.\n\n* One! `two` is code.\n", &[3]);
        found_at("One (really.) Two.\n", &[1]);
        found_at("Is it? 12 are.\n", &[1]);
        assert_eq!(
            findings("A. The `b` is next.\n"),
            ["docs/a.md:1: a second sentence begins at `The 'b' is next.`; one sentence a line"]
        );
    }

    #[test]
    fn a_sentence_on_two_lines_is_found() {
        found_at("One that goes\non here.\n", &[2]);
        found_at("* One that goes\n  on here,\n  and here.\n", &[2, 3]);
        clean("One without a stop\n\nAnother\n| a | b |\n");
        clean("Before code\n```\na. B c\nd\n```\nAfter.\n");
    }

    #[test]
    fn tables_code_and_other_files_are_exempt() {
        clean("| a. B. | c |\n| --- | --- |\n\n```sh\n# One. Two.\n```\n<!-- One. Two. -->\n");
        let rust = SourceFile { path: "a.rs".to_owned(), text: "// One. Two.\n".to_owned() };
        assert!(check_sentences(&rust).is_empty());
    }

    #[test]
    fn a_fence_closes_with_its_own_mark() {
        let text = "~~~\n```\nOne. Two.\n~~~\nThree. Four.\n";
        found_at(text, &[5]);
    }
}
