//! Figures as JSON lines and as a table with ratios.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// One figure of one program: a speed, or a time.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct Figure {
    /// The program; absent in the lines of the project's own.
    #[serde(default)]
    pub(super) peer: String,
    pub(super) measure: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokens_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seconds: Option<f64>,
}

impl Figure {
    /// How many times better this figure is than `other`, or `None` when they do not compare.
    fn ratio_to(&self, other: &Self) -> Option<f64> {
        match (self.tokens_per_s, other.tokens_per_s, self.seconds, other.seconds) {
            (Some(own), Some(theirs), _, _) if theirs > 0.0 => Some(own / theirs),
            (_, _, Some(own), Some(theirs)) if own > 0.0 => Some(theirs / own),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match (self.tokens_per_s, self.seconds) {
            (Some(speed), _) => format!("{speed:.1} tok/s"),
            (None, Some(seconds)) => format!("{seconds:.2} s"),
            (None, None) => "-".into(),
        }
    }
}

/// Reads the JSON lines a program printed; other lines are skipped.
pub(super) fn parse(text: &str, program: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let figure: Figure =
            serde_json::from_str(line).with_context(|| format!("not a figure of {program}: `{line}`"))?;
        figures.push(Figure { peer: program.to_owned(), ..figure });
    }
    if figures.is_empty() {
        bail!("{program} printed no figures");
    }
    Ok(figures)
}

pub(super) fn json_lines(figures: &[Figure]) -> Result<String> {
    figures.iter().map(|figure| Ok(serde_json::to_string(figure)? + "\n")).collect()
}

/// A line for each figure; those of the first program come first in each group, the others with its ratio to them.
pub(super) fn render(figures: &[Figure]) -> String {
    let mut measures: Vec<&str> = Vec::new();
    for figure in figures {
        if !measures.contains(&figure.measure.as_str()) {
            measures.push(&figure.measure);
        }
    }
    let mut text = format!("{:<22} {:<14} {:>14} {:>8}\n", "measure", "program", "figure", "ratio");
    for measure in measures {
        let group: Vec<&Figure> = figures.iter().filter(|figure| figure.measure == measure).collect();
        for (row_idx, figure) in group.iter().enumerate() {
            let first = group.first().filter(|_| row_idx > 0);
            let ratio = first
                .and_then(|own| own.ratio_to(figure))
                .map_or(String::new(), |ratio| format!("{ratio:.2}x"));
            let name = if row_idx == 0 { measure } else { "" };
            let line = format!("{name:<22} {:<14} {:>14} {ratio:>8}", figure.peer, figure.text());
            text += line.trim_end();
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_much_better_the_first_program_is() {
        let mut figures = parse(
            "{\"measure\": \"decode\", \"tokens_per_s\": 100.0}\n{\"measure\": \"load\", \"seconds\": 0.25}\n",
            "aligner-gen",
        )
        .unwrap();
        let peers = "warming up\n{\"peer\": \"x\", \"measure\": \"decode\", \"tokens_per_s\": 25}\n{\"measure\": \"load\", \"seconds\": 1}\n";
        figures.extend(parse(peers, "transformers").unwrap());
        let expect = [
            "measure                program                figure    ratio",
            "decode                 aligner-gen       100.0 tok/s",
            "                       transformers       25.0 tok/s    4.00x",
            "load                   aligner-gen            0.25 s",
            "                       transformers           1.00 s    4.00x",
        ];
        assert_eq!(render(&figures).lines().collect::<Vec<_>>(), expect);
    }

    #[test]
    fn a_program_without_figures_is_an_error() {
        assert_eq!(parse("nothing here\n", "it").unwrap_err().to_string(), "it printed no figures");
        assert!(parse("{\"speed\": 1}\n", "it").is_err());
    }

    #[test]
    fn json_lines_can_be_read_again() {
        let figures = parse("{\"measure\": \"load\", \"seconds\": 0.5}", "a").unwrap();
        assert_eq!(parse(&json_lines(&figures).unwrap(), "a").unwrap(), figures);
    }
}
