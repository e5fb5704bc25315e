//! Directives, and the properties of nodes: anchors and tags, by PyYAML's rules.

use super::reader::{Problem, Reader, ends_line, ends_tag, ends_word};

type Scanned<T> = Result<T, Problem>;

/// A line that begins with `%`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Directive {
    Yaml {
        major: u32,
    },
    Tag {
        handle: String,
        prefix: String,
    },
    /// Ignored, as PyYAML does.
    Other,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

pub(super) fn directive(reader: &mut Reader) -> Scanned<Directive> {
    reader.forward(1);
    let name = reader.take_while(is_name);
    if name.is_empty() || !ends_tag(reader.peek(0)) {
        return Err(reader.expected("the name of a directive"));
    }
    let directive = match name.as_str() {
        "YAML" => {
            reader.skip_spaces();
            let major = directive_number(reader)?;
            if reader.peek(0) != '.' {
                return Err(reader.expected("`.`"));
            }
            reader.forward(1);
            directive_number(reader)?;
            if !ends_tag(reader.peek(0)) {
                return Err(reader.expected("a digit"));
            }
            Directive::Yaml { major }
        }
        "TAG" => {
            reader.skip_spaces();
            let handle = tag_handle(reader)?;
            if reader.peek(0) != ' ' {
                return Err(reader.expected("a space"));
            }
            reader.skip_spaces();
            let prefix = tag_uri(reader)?;
            if !ends_tag(reader.peek(0)) {
                return Err(reader.expected("a space"));
            }
            Directive::Tag { handle, prefix }
        }
        _ => {
            reader.take_while(|c| !ends_line(c));
            Directive::Other
        }
    };
    reader.skip_rest_of_line()?;
    Ok(directive)
}

fn directive_number(reader: &mut Reader) -> Scanned<u32> {
    let digits = reader.take_while(|c| c.is_ascii_digit());
    digits.parse().map_err(|_| reader.expected("a version number"))
}

/// The name of an anchor or an alias.
pub(super) fn anchor(reader: &mut Reader) -> Scanned<String> {
    reader.forward(1);
    let name = reader.take_while(is_name);
    let is_ended = ends_word(reader.peek(0)) || "?:,]}%@`".contains(reader.peek(0));
    if name.is_empty() || !is_ended {
        let what = "the name of an anchor (put the value in quotes, if it is none)";
        return Err(reader.expected(what));
    }
    Ok(name)
}

/// The handle and the rest of a tag.
pub(super) fn tag(reader: &mut Reader) -> Scanned<(Option<String>, String)> {
    let next = reader.peek(1);
    let tag = if next == '<' {
        reader.forward(2);
        let suffix = tag_uri(reader)?;
        if reader.peek(0) != '>' {
            return Err(reader.expected("`>`"));
        }
        reader.forward(1);
        (None, suffix)
    } else if ends_word(next) {
        reader.forward(1);
        (None, "!".to_owned())
    } else {
        let mut len = 1;
        while !ends_tag(reader.peek(len)) && reader.peek(len) != '!' {
            len += 1;
        }
        let handle = if reader.peek(len) == '!' {
            tag_handle(reader)?
        } else {
            reader.forward(1);
            "!".to_owned()
        };
        (Some(handle), tag_uri(reader)?)
    };
    if ends_tag(reader.peek(0)) { Ok(tag) } else { Err(reader.expected("a space after a tag")) }
}

fn tag_handle(reader: &mut Reader) -> Scanned<String> {
    if reader.peek(0) != '!' {
        return Err(reader.expected("`!`"));
    }
    let mut len = 1;
    if reader.peek(len) != ' ' {
        while is_name(reader.peek(len)) {
            len += 1;
        }
        if reader.peek(len) != '!' {
            reader.forward(len);
            return Err(reader.expected("`!`"));
        }
        len += 1;
    }
    let handle = reader.prefix(len);
    reader.forward(len);
    Ok(handle)
}

fn tag_uri(reader: &mut Reader) -> Scanned<String> {
    let mut uri = String::new();
    loop {
        let c = reader.peek(0);
        if c == '%' {
            uri.push_str(&uri_escapes(reader)?);
        } else if c.is_ascii_alphanumeric() || (c != '\0' && "-;/?:@&=+$,_.!~*'()[]".contains(c)) {
            uri.push(c);
            reader.forward(1);
        } else {
            break;
        }
    }
    if uri.is_empty() { Err(reader.expected("a tag")) } else { Ok(uri) }
}

fn uri_escapes(reader: &mut Reader) -> Scanned<String> {
    let mark = reader.mark;
    let mut bytes = Vec::new();
    while reader.peek(0) == '%' {
        reader.forward(1);
        bytes.push(u8::try_from(reader.hex(2)?).unwrap_or(0));
    }
    String::from_utf8(bytes).map_err(|_| Problem::new(mark, "the escapes of a tag are not UTF-8"))
}
