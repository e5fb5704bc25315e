//! The token with which a chat template closes a turn.

use super::Tokenizer;
use crate::DataError;

/// The special token that ends a turn of the assistant: the first thing that `after_content` holds, white space apart.
///
/// `after_content` is a rendered conversation's text behind the content of an assistant message and before the next
/// turn: `<|im_end|>\n<|im_start|>user\n` of ChatML gives `<|im_end|>`. `None` where text follows that is no special
/// token, or the token is one that begins a turn in the same conversation, as `begins_turn` says: then nothing closes it.
///
/// # Errors
/// When the text cannot be encoded.
pub fn turn_end_token(
    tokenizer: &dyn Tokenizer,
    after_content: &str,
    begins_turn: Option<u32>,
) -> Result<Option<u32>, DataError> {
    let ids = tokenizer.encode_rendered(after_content.trim_start())?;
    let first = ids.first().copied().filter(|&id| tokenizer.is_special(id));
    Ok(first.filter(|&id| Some(id) != begins_turn && Some(id) != tokenizer.special().bos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizer::ByteTokenizer;
    use crate::tokenizer::SpecialTokens;

    #[test]
    fn only_a_special_token_at_once_ends_a_turn() {
        let tokenizer = ByteTokenizer(SpecialTokens {
            eos: Some(u32::from(b'$')),
            bos: Some(u32::from(b'^')),
            ..SpecialTokens::default()
        });
        let end = |text, begins| turn_end_token(&tokenizer, text, begins).unwrap();
        assert_eq!(end(" $\nuser", None), Some(u32::from(b'$')));
        assert_eq!(end("x$", None), None);
        assert_eq!(end("^user", None), None);
        assert_eq!(end("$user", Some(u32::from(b'$'))), None);
        assert_eq!(end("", None), None);
    }
}
