//! Bytes of tokens to text, without ever splitting a character.

/// Turns a stream of token bytes into text: what is given out always ends at a character boundary.
///
/// The concatenated output equals `String::from_utf8_lossy` of all bytes.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Takes the bytes of the next token and returns the text that is now complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let is_last = taken + invalid.len() == self.pending.len();
            if is_last && is_incomplete(invalid) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            taken += invalid.len();
        }
        self.pending.drain(..taken);
        text
    }

    /// Ends the text: a character cut off in the middle becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether more bytes could still make this a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut decoder = StreamDecoder::default();
        assert_eq!(decoder.push(b"a\xf0\x9f"), "a");
        assert_eq!(decoder.push(b"\x98"), "");
        assert_eq!(decoder.push(b"\x80b\xe4"), "😀b");
        assert_eq!(decoder.push(b"x"), "\u{fffd}x");
        assert_eq!(decoder.push(b"\xc3"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn joined_pieces_equal_the_lossy_whole(tokens in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..12)) {
            let mut decoder = StreamDecoder::default();
            let mut text: String = tokens.iter().map(|token| decoder.push(token)).collect();
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&tokens.concat()).into_owned());
        }
    }
}
