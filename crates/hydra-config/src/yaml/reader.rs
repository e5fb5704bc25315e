//! A cursor over the characters of a document that counts lines and columns.

/// A place in a document, both counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What is wrong, and where.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) mark: Mark,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(mark: Mark, message: impl Into<String>) -> Self {
        Self { mark, message: message.into() }
    }
}

pub(super) struct Reader {
    chars: Vec<char>,
    pub(super) pos: usize,
    pub(super) mark: Mark,
}

impl Reader {
    /// PyYAML's reader refuses what YAML 1.1 calls not printable, so that `'\0'` can stand for the end.
    pub(super) fn new(text: &str) -> Result<Self, Problem> {
        let is_printable = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..);
        for (line, content) in text.split('\n').enumerate() {
            if let Some((column, c)) = content.chars().enumerate().find(|(_, c)| !is_printable(*c)) {
                let message = format!("character U+{:04X} is not allowed", u32::from(c));
                return Err(Problem::new(Mark { line, column }, message));
            }
        }
        Ok(Self { chars: text.chars().collect(), pos: 0, mark: Mark::default() })
    }

    /// The character at a distance; `'\0'` past the end.
    pub(super) fn peek(&self, distance: usize) -> char {
        self.chars.get(self.pos + distance).copied().unwrap_or('\0')
    }

    pub(super) fn prefix(&self, len: usize) -> String {
        self.chars.iter().skip(self.pos).take(len).collect()
    }

    pub(super) fn forward(&mut self, len: usize) {
        for _ in 0..len {
            let c = self.peek(0);
            self.pos += 1;
            if matches!(c, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}') || (c == '\r' && self.peek(0) != '\n') {
                self.mark = Mark { line: self.mark.line + 1, column: 0 };
            } else if c != '\u{feff}' {
                self.mark.column += 1;
            }
        }
    }

    /// Takes characters as long as they are wanted.
    pub(super) fn take_while(&mut self, is_wanted: impl Fn(char) -> bool) -> String {
        let mut len = 0;
        while self.peek(len) != '\0' && is_wanted(self.peek(len)) {
            len += 1;
        }
        let taken = self.prefix(len);
        self.forward(len);
        taken
    }

    pub(super) fn skip_spaces(&mut self) {
        while self.peek(0) == ' ' {
            self.forward(1);
        }
    }

    pub(super) fn skip_comment(&mut self) {
        if self.peek(0) == '#' {
            while !ends_line(self.peek(0)) {
                self.forward(1);
            }
        }
    }

    /// Takes space and a comment up to the end of the line, and its line break.
    pub(super) fn skip_rest_of_line(&mut self) -> Result<(), Problem> {
        self.skip_spaces();
        self.skip_comment();
        if !ends_line(self.peek(0)) {
            return Err(self.expected("a comment or the end of the line"));
        }
        self.line_break();
        Ok(())
    }

    /// Takes a line break, if one is next, as the text that it means.
    pub(super) fn line_break(&mut self) -> Option<char> {
        let c = self.peek(0);
        match c {
            '\r' if self.peek(1) == '\n' => {
                self.forward(2);
                Some('\n')
            }
            '\r' | '\n' | '\u{85}' => {
                self.forward(1);
                Some('\n')
            }
            '\u{2028}' | '\u{2029}' => {
                self.forward(1);
                Some(c)
            }
            _ => None,
        }
    }

    /// Whether `---` or `...` stands here alone.
    pub(super) fn at_document_marker(&self, marker: char) -> bool {
        (0..3).all(|distance| self.peek(distance) == marker) && ends_word(self.peek(3))
    }

    pub(super) fn at_separator(&self) -> bool {
        self.at_document_marker('-') || self.at_document_marker('.')
    }

    /// A code of `len` hexadecimal digits.
    pub(super) fn hex(&mut self, len: usize) -> Result<u32, Problem> {
        let digits = self.prefix(len);
        let is_hex = digits.chars().count() == len && digits.chars().all(|c| c.is_ascii_hexdigit());
        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| is_hex);
        let code = code.ok_or_else(|| self.expected(&format!("{len} hexadecimal digits")))?;
        self.forward(len);
        Ok(code)
    }

    /// Something else stands here than what is wanted.
    pub(super) fn expected(&self, wanted: &str) -> Problem {
        Problem::new(self.mark, format!("expected {wanted}, found {}", self.next_name()))
    }

    /// How the next character is called in messages.
    fn next_name(&self) -> String {
        match self.peek(0) {
            '\0' => "the end of the document".to_owned(),
            '\n' | '\r' | '\u{85}' => "the end of the line".to_owned(),
            '\t' => "a tab".to_owned(),
            c => format!("`{c}`"),
        }
    }
}

/// A line break or the end.
pub(super) fn ends_line(c: char) -> bool {
    matches!(c, '\0' | '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Space, tab, a line break or the end.
pub(super) fn ends_word(c: char) -> bool {
    matches!(c, ' ' | '\t') || ends_line(c)
}

/// A space, a line break or the end.
pub(super) fn ends_tag(c: char) -> bool {
    c == ' ' || ends_line(c)
}
