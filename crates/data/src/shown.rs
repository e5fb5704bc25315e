//! A text of a record, as messages show it.

/// Characters of a text that a message shows.
const MAX_SHOWN: usize = 40;

/// The text behind what it is called, cut where it is long.
pub(crate) fn shown(kind: &str, text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{kind}`{}…`", &text[..end]),
        None => format!("{kind}`{text}`"),
    }
}
