//! Reading JSON by the grammar of Python's `json.loads` (CPython's `Lib/json` and `Modules/_json.c`).

use super::{Json, JsonError, JsonObject};

/// Deeper values would need more stack than a thread of the pool may have left. Python gives up at about 1,000.
const MAX_DEPTH: usize = 128;

/// How much of something unexpected a message shows.
const MAX_SHOWN_CHARS: usize = 20;

impl Json {
    /// Reads a whole text.
    pub(crate) fn parse(text: &str) -> Result<Self, JsonError> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_space();
        if reader.at < text.len() {
            let found = reader.found();
            return Err(reader.error(format!("expected the end, found {found}")));
        }
        Ok(value)
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Bytes read.
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        let is_next = self.rest().starts_with(text);
        if is_next {
            self.at += text.len();
        }
        is_next
    }

    fn error(&self, reason: impl Into<String>) -> JsonError {
        self.error_at(self.at, reason)
    }

    fn error_at(&self, at: usize, reason: impl Into<String>) -> JsonError {
        JsonError { column: at + 1, reason: reason.into() }
    }

    /// What stands here, for messages: a word, a character, or the end.
    fn found(&self) -> String {
        let Some(first) = self.rest().chars().next() else { return "the end of the line".to_owned() };
        if first == '\u{feff}' {
            return "a byte order mark".to_owned();
        }
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let word: String = self.rest().chars().take_while(|&c| is_part(c)).take(MAX_SHOWN_CHARS).collect();
        if word.is_empty() { format!("`{}`", shown(first)) } else { format!("`{word}`") }
    }

    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Json, JsonError> {
        let words = [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Number("NaN".into())),
            ("Infinity", Json::Number("Infinity".into())),
        ];
        for (word, value) in words {
            if self.eat(word) {
                return Ok(value);
            }
        }
        let found = self.found();
        Err(self.error(format!("expected a value, found {found}")))
    }

    fn array(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.eat("]") {
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.eat("]") {
                return Ok(Json::Array(items));
            }
            if !self.eat(",") {
                let found = self.found();
                return Err(self.error(format!("expected `,` or `]` in a list, found {found}")));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut object = JsonObject::new();
        self.skip_space();
        if self.eat("}") {
            return Ok(Json::Object(object));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                let found = self.found();
                return Err(self.error(format!("expected a key in double quotes, found {found}")));
            }
            let key = self.string()?;
            self.skip_space();
            if !self.eat(":") {
                let found = self.found();
                return Err(self.error(format!("expected `:` after a key, found {found}")));
            }
            let value = self.value(depth + 1)?;
            object.insert(key, value);
            self.skip_space();
            if self.eat("}") {
                return Ok(Json::Object(object));
            }
            if !self.eat(",") {
                let found = self.found();
                return Err(self.error(format!("expected `,` or `}}` in an object, found {found}")));
            }
        }
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        let is_negative = self.eat("-");
        if is_negative && self.eat("Infinity") {
            return Ok(Json::Number("-Infinity".into()));
        }
        match self.digits() {
            0 => {
                let found = self.found();
                return Err(self.error(format!("expected a digit after `-`, found {found}")));
            }
            num_digits if num_digits > 1 && self.text.as_bytes().get(self.at - num_digits) == Some(&b'0') => {
                return Err(self.error_at(start, "a number must not begin with 0"));
            }
            _ => {}
        }
        if self.eat(".") && self.digits() == 0 {
            return Err(self.error("expected a digit after the point of a number"));
        }
        if self.eat("e") || self.eat("E") {
            let _has_sign = self.eat("+") || self.eat("-");
            if self.digits() == 0 {
                return Err(self.error("expected a digit in the exponent of a number"));
            }
        }
        Ok(Json::Number(self.text[start..self.at].into()))
    }

    /// Skips digits and counts them.
    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let rest = self.rest();
            let Some(len) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') else {
                self.at = self.text.len();
                return Err(self.error("the line ends inside a string"));
            };
            text.push_str(&rest[..len]);
            self.at += len;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                byte => {
                    let code = byte.unwrap_or_default();
                    return Err(self.error(format!(
                        "a control character (U+{code:04X}) in a string; it must be escaped as `\\u{code:04x}`"
                    )));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        self.at += 1;
        let kind = self.rest().chars().next();
        self.at += kind.map_or(0, char::len_utf8);
        Ok(match kind {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode(start),
            Some(c) => {
                return Err(self.error_at(start, format!("`\\{}` is no escape of JSON", shown(c))));
            }
            None => return Err(self.error("the line ends inside a string")),
        })
    }

    /// The character of `\uXXXX`, or of two of them that are a surrogate pair.
    fn unicode(&mut self, start: usize) -> Result<char, JsonError> {
        let first = self.hex(start)?;
        if let Some(c) = char::from_u32(first) {
            return Ok(c);
        }
        if first < 0xdc00 && self.eat("\\u") {
            let second = self.hex(start)?;
            if let 0xdc00..=0xdfff = second
                && let Some(c) = char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
            {
                return Ok(c);
            }
        }
        let reason = format!(
            "the escape `\\u{first:04x}` is half a character (a lone surrogate), which no text can hold"
        );
        Err(self.error_at(start, reason))
    }

    fn hex(&mut self, start: usize) -> Result<u32, JsonError> {
        let digits =
            self.rest().get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let code = code.ok_or_else(|| self.error_at(start, "`\\u` needs four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

/// A character for a message; what a terminal would act on is escaped.
fn shown(c: char) -> String {
    if c.is_control() { c.escape_debug().to_string() } else { c.to_string() }
}
