//! `wordwrap`: `textwrap.wrap` of Python 3.11, line by line.

use crate::args::{Args, flag, int_or, string};
use crate::error::{Error, Result};
use crate::text;
use crate::value::Value;

/// How a line is broken.
struct Wrapper {
    width: usize,
    breaks_long_words: bool,
    breaks_on_hyphens: bool,
}

/// `value | wordwrap(width, break_long_words, wrapstring, break_on_hyphens)`.
pub(super) fn word_wrap(value: &Value, args: Args) -> Result<Value> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, break_long, wrap_string, break_hyphens] = args.bind("do_wordwrap", names, 0)?;
    let width = int_or(width.as_ref(), 79)?;
    let own = match value {
        Value::Str(text) => &*text.text,
        Value::Undefined(undefined) => return Err(undefined.error()),
        other => {
            let found = other.type_name();
            return Err(Error::type_error(format!("'{found}' object has no attribute 'splitlines'")));
        }
    };
    let wrap_string = match wrap_string {
        None | Some(Value::None) => "\n".to_owned(),
        Some(text) => string(&text)?.to_owned(),
    };
    let width = usize::try_from(width).ok().filter(|width| *width > 0);
    let wrapper = Wrapper {
        width: width.ok_or_else(|| Error::value_error("invalid width (must be > 0)"))?,
        breaks_long_words: break_long.is_none() || flag(break_long.as_ref()),
        breaks_on_hyphens: break_hyphens.is_none() || flag(break_hyphens.as_ref()),
    };
    let lines = text::split_lines(own, false).into_iter().map(|line| wrapper.wrap(line).join(&wrap_string));
    Ok(Value::from(lines.collect::<Vec<_>>().join(&wrap_string)))
}

/// The white space of `textwrap`, which is that of ASCII.
fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn is_letter(c: Option<&char>) -> bool {
    c.is_some_and(|&c| text::is_word(c) && !text::is_decimal(c))
}

impl Wrapper {
    fn wrap(&self, line: &str) -> Vec<String> {
        let line: Vec<char> = line.chars().collect();
        let mut chunks: Vec<Vec<char>> = if self.breaks_on_hyphens { chunks(&line) } else { runs(&line) };
        chunks.reverse();
        let mut lines: Vec<String> = Vec::new();
        while !chunks.is_empty() {
            let is_space = |chunk: &Vec<char>| chunk.iter().copied().all(is_blank);
            if !lines.is_empty() && chunks.last().is_some_and(is_space) {
                chunks.pop();
            }
            let mut current: Vec<Vec<char>> = Vec::new();
            let mut len = 0;
            while let Some(chunk) = chunks.pop_if(|chunk| len + chunk.len() <= self.width) {
                len += chunk.len();
                current.push(chunk);
            }
            if chunks.last().is_some_and(|chunk| chunk.len() > self.width) {
                self.take_long_word(&mut chunks, &mut current, len);
            }
            current.pop_if(|chunk| is_space(chunk));
            if !current.is_empty() {
                lines.push(current.concat().into_iter().collect());
            }
        }
        lines
    }

    /// `_handle_long_word`: a word longer than a line fills up the line, or stands alone.
    fn take_long_word(&self, chunks: &mut Vec<Vec<char>>, current: &mut Vec<Vec<char>>, len: usize) {
        let room = self.width - len;
        let Some(mut chunk) = chunks.pop() else { return };
        if !self.breaks_long_words {
            if current.is_empty() {
                current.push(chunk);
            } else {
                chunks.push(chunk);
            }
            return;
        }
        let mut end = room;
        if self.breaks_on_hyphens && chunk.len() > room {
            let hyphen = chunk[..room].iter().rposition(|&c| c == '-');
            end = match hyphen {
                Some(at) if at > 0 && chunk[..at].iter().any(|&c| c != '-') => at + 1,
                _ => end,
            };
        }
        let rest = chunk.split_off(end);
        // Perhaps nothing: then it is this that is dropped at the end of the line, and no space before it.
        current.push(chunk);
        chunks.push(rest);
    }
}

/// Words and the spaces between them.
fn runs(line: &[char]) -> Vec<Vec<char>> {
    line.chunk_by(|left, right| is_blank(*left) == is_blank(*right)).map(<[char]>::to_vec).collect()
}

/// The same with words that may be broken behind hyphens and around dashes: `wordsep_re` of `textwrap`.
fn chunks(line: &[char]) -> Vec<Vec<char>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < line.len() {
        let end = chunk_end(line, start);
        chunks.push(line[start..end].to_vec());
        start = end;
    }
    chunks
}

fn chunk_end(line: &[char], start: usize) -> usize {
    let run =
        |from: usize, is: &dyn Fn(char) -> bool| from + line[from..].iter().take_while(|&&c| is(c)).count();
    if is_blank(line[start]) {
        return run(start, &is_blank);
    }
    let is_word = |at: usize| line.get(at).is_some_and(|&c| text::is_word(c));
    // A dash of two hyphens or more between words is a chunk of its own.
    let follows_word =
        |at: usize| at > 0 && (text::is_word(line[at - 1]) || "!\"'&.,?".contains(line[at - 1]));
    let dash_end = |at: usize| run(at, &|c| c == '-');
    let is_dash = |at: usize| {
        let end = dash_end(at);
        end >= at + 2 && is_word(end)
    };
    if follows_word(start) && is_dash(start) {
        return dash_end(start);
    }
    let mut end = start + 1;
    loop {
        if line.get(end).is_none_or(|&c| is_blank(c)) || (follows_word(end) && is_dash(end)) {
            return end;
        }
        if line[end] == '-' && breaks_behind(line, end) {
            return end + 1;
        }
        end += 1;
    }
}

/// Whether a word may be broken behind its hyphen: two letters, or a letter and a hyphen and one, on the left; a letter
/// and, perhaps behind another hyphen, one more on the right.
fn breaks_behind(line: &[char], hyphen: usize) -> bool {
    let left = |back: usize| hyphen.checked_sub(back).and_then(|at| line.get(at));
    let has_left =
        is_letter(left(1)) && (is_letter(left(2)) || (left(2) == Some(&'-') && is_letter(left(3))));
    let right = |ahead: usize| line.get(hyphen + ahead);
    let has_right =
        is_letter(right(1)) && (is_letter(right(2)) || (right(2) == Some(&'-') && is_letter(right(3))));
    has_left && has_right
}
