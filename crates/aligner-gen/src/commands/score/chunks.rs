//! The input of `score` in pieces that one run of the engine takes: the same for every rank.

use std::fs::File;
use std::io::{BufRead, BufReader, Split};
use std::path::Path;

use anyhow::{Context, anyhow};

use super::lines::{Scoring, TokenizedLine};
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::known_texts::TextSizes;

/// A run takes no further line when it has this many responses.
const CHUNK_RESPONSES: usize = 4096;
/// The same for tokens of responses, which a GPU keeps.
const CHUNK_TOKENS: usize = 1 << 22;

/// Lines that are scored in one run.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) lines: Vec<TokenizedLine>,
    /// Of all responses.
    num_responses: usize,
    num_tokens: usize,
}

impl Chunk {
    /// Responses that have tokens, by line and number. An empty one has nothing to compute.
    pub(super) fn places(&self) -> Vec<(usize, usize)> {
        let places = |(line, tokenized): (usize, &TokenizedLine)| {
            let responses = tokenized.responses.iter().enumerate();
            let places = responses.filter(|(_, response)| !response.is_empty()).map(|(idx, _)| (line, idx));
            places.collect::<Vec<_>>()
        };
        self.lines.iter().enumerate().flat_map(places).collect()
    }

    /// The texts of these places.
    pub(super) fn texts(&self, places: &[(usize, usize)]) -> Vec<Vec<u32>> {
        places.iter().map(|&(line, response)| self.lines[line].responses[response].clone()).collect()
    }
}

/// The chunks of a file, one after the other.
pub(super) struct Chunks<'a> {
    path: &'a Path,
    scoring: &'a Scoring<'a>,
    lines: Split<BufReader<File>>,
    line: u64,
}

impl<'a> Chunks<'a> {
    pub(super) fn open(path: &'a Path, scoring: &'a Scoring<'a>) -> Result<Self, Failure> {
        let file = File::open(path).with_context(|| cannot_read(path)).exit_with(ExitStatus::Data)?;
        Ok(Self { path, scoring, lines: BufReader::new(file).split(b'\n'), line: 0 })
    }

    /// The next lines; `None` behind the last one.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        let mut chunk = Chunk::default();
        while chunk.num_responses < CHUNK_RESPONSES && chunk.num_tokens < CHUNK_TOKENS {
            let Some(bytes) = self.lines.next() else { break };
            self.line += 1;
            let bytes = bytes.with_context(|| cannot_read(self.path)).exit_with(ExitStatus::Data)?;
            let line = self
                .scoring
                .tokenized(&bytes, self.line - 1)
                .map_err(|reason| anyhow!("line {} of `{}`: {reason}", self.line, self.path.display()))
                .exit_with(ExitStatus::Data)?;
            chunk.num_responses += line.responses.len();
            chunk.num_tokens += line.responses.iter().map(Vec::len).sum::<usize>();
            chunk.lines.push(line);
        }
        Ok((!chunk.lines.is_empty()).then_some(chunk))
    }
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read `{}`", path.display())
}

/// What is known of the input before anything is computed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Input {
    pub(super) num_responses: usize,
    /// Prompt and response.
    pub(super) longest_tokens: usize,
    /// In one chunk.
    pub(super) sizes: TextSizes,
}

impl Input {
    /// Reads and checks the whole file, so that nothing is computed for one that has a fault in its last line.
    pub(super) fn read(path: &Path, scoring: &Scoring<'_>) -> Result<Self, Failure> {
        let mut input = Self::default();
        let mut chunks = Chunks::open(path, scoring)?;
        while let Some(chunk) = chunks.next()? {
            for line in &chunk.lines {
                let longest = line.responses.iter().map(Vec::len).max();
                let longest_tokens = longest.map_or(0, |longest| line.prompt.len() + longest);
                input.longest_tokens = input.longest_tokens.max(longest_tokens);
            }
            input.num_responses += chunk.num_responses;
            let TextSizes { most_texts, most_tokens } = &mut input.sizes;
            *most_texts = chunk.num_responses.max(*most_texts);
            *most_tokens = chunk.num_tokens.max(*most_tokens);
        }
        match input.num_responses {
            0 => Err(anyhow!("`{}` holds no responses to score", path.display())).exit_with(ExitStatus::Data),
            _ => Ok(input),
        }
    }
}
