//! Python's strings: how they are shown, and what it takes for letters, digits and case.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// The longest string or list that a template may make by repeating or padding. A longer one is a mistake or an attack.
pub(crate) const MAX_MADE_ITEMS: usize = 1 << 26;

/// A string as `repr` shows it.
pub(crate) fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push(quote);
    out
}

/// `str.isprintable` of one character.
pub(crate) fn is_printable(c: char) -> bool {
    use GeneralCategory as Category;
    c == ' '
        || !matches!(
            c.general_category(),
            Category::Control
                | Category::Format
                | Category::Surrogate
                | Category::PrivateUse
                | Category::Unassigned
                | Category::LineSeparator
                | Category::ParagraphSeparator
                | Category::SpaceSeparator
        )
}

/// `str.isalpha` of one character.
pub(crate) fn is_alpha(c: char) -> bool {
    use GeneralCategory as Category;
    matches!(
        c.general_category(),
        Category::UppercaseLetter
            | Category::LowercaseLetter
            | Category::TitlecaseLetter
            | Category::ModifierLetter
            | Category::OtherLetter
    )
}

/// `str.isdecimal` of one character.
pub(crate) fn is_decimal(c: char) -> bool {
    c.general_category() == GeneralCategory::DecimalNumber
}

/// The text with the decimal digits of every script as those of ASCII, which is how Python reads numbers.
pub(crate) fn ascii_digits(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() || !is_decimal(c) { c } else { ascii_digit(c) }).collect()
}

/// Digits lie ten by ten from zero up; only the mathematical ones have several tens in a row.
fn ascii_digit(c: char) -> char {
    const MATHEMATICAL_ZERO: u32 = 0x1d7ce;
    let code = u32::from(c);
    let value = if (MATHEMATICAL_ZERO..MATHEMATICAL_ZERO + 50).contains(&code) {
        (code - MATHEMATICAL_ZERO) % 10
    } else {
        let before = (1..10).take_while(|back| char::from_u32(code - back).is_some_and(is_decimal));
        before.count() as u32
    };
    char::from_digit(value, 10).unwrap_or(c)
}

/// `str.isdigit` of one character: decimals, and digits in circles, above or below the line.
pub(crate) fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{1369}'..='\u{1371}' | '\u{19da}' | '\u{2070}')
        || matches!(c, '\u{2074}'..='\u{2079}' | '\u{2080}'..='\u{2089}' | '\u{2460}'..='\u{2468}')
        || matches!(c, '\u{2474}'..='\u{247c}' | '\u{2488}'..='\u{2490}' | '\u{24ea}' | '\u{24f5}'..='\u{24fd}')
        || matches!(c, '\u{24ff}' | '\u{2776}'..='\u{277e}' | '\u{2780}'..='\u{2788}' | '\u{278a}'..='\u{2792}')
}

/// `str.isnumeric` of one character, ideographs for numbers aside.
pub(crate) fn is_numeric(c: char) -> bool {
    use GeneralCategory as Category;
    is_digit(c)
        || matches!(c.general_category(), Category::LetterNumber | Category::OtherNumber)
        || "一二三四五六七八九十百千万億兆〇零壱弐参拾".contains(c)
}

/// Whether `\w` of Python's `re` matches.
pub(crate) fn is_word(c: char) -> bool {
    c == '_' || is_alpha(c) || is_numeric(c)
}

/// Whether Python counts the character as cased.
pub(crate) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || c.general_category() == GeneralCategory::TitlecaseLetter
}

/// A character at the start of a title.
pub(crate) fn push_title(out: &mut String, c: char) {
    let single = match c {
        '\u{1c4}'..='\u{1c6}' => Some('\u{1c5}'),
        '\u{1c7}'..='\u{1c9}' => Some('\u{1c8}'),
        '\u{1ca}'..='\u{1cc}' => Some('\u{1cb}'),
        '\u{1f1}'..='\u{1f3}' => Some('\u{1f2}'),
        // Georgian has capitals, but no titles.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => Some(c),
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => {
            char::from_u32(u32::from(c) + 8)
        }
        '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}' => Some(c),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(u32::from(c) + 9),
        '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}' => Some(c),
        _ => None,
    };
    if let Some(title) = single {
        out.push(title);
        return;
    }
    if c == 'ŉ' {
        out.push_str("ʼN");
        return;
    }
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    for rest in upper {
        out.extend(rest.to_lowercase());
    }
}

/// `str.capitalize`.
pub(crate) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        push_title(&mut out, first);
        // Lower case of a whole word knows the sigma at its end.
        let lower = text.to_lowercase();
        let skip = first.to_lowercase().count();
        out.extend(lower.chars().skip(skip));
    }
    out
}

/// `str.title`.
pub(crate) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        out.push_str(&capitalize(word));
        word.clear();
    };
    for c in text.chars() {
        if is_cased(c) {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    out
}

/// `str.swapcase`.
pub(crate) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else if c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// `str.splitlines`.
pub(crate) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let (mut start, mut chars) = (0, text.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        let is_end = matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c' | '\x1d' | '\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if !is_end {
            continue;
        }
        let mut end = at + c.len_utf8();
        if c == '\r' && chars.peek().is_some_and(|&(_, next)| next == '\n') {
            chars.next();
            end += 1;
        }
        lines.push(if keep_ends { &text[start..end] } else { &text[start..at] });
        start = end;
    }
    if start < text.len() {
        lines.push(&text[start..]);
    }
    lines
}

/// `markupsafe.escape`.
pub(crate) fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
