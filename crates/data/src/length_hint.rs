//! `model.data.train_ds.length_hint_key`: how many tokens a record says that its answer is likely to have.

use crate::json::{Json, JsonObject};
use crate::record_error::RecordError;
use crate::shown::shown;

/// More tokens than any answer has.
const MAX_TOKENS: u32 = 1 << 30;

/// The number of tokens under `key`, parts of one rounded up; none where the key is absent or null.
///
/// # Errors
/// When the value is no number of tokens.
pub(crate) fn length_hint(object: &JsonObject, key: &str) -> Result<Option<u32>, RecordError> {
    let bad = |found| RecordError::BadLengthHint { key: key.to_owned(), found, most: MAX_TOKENS };
    match object.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(text)) => match text.parse::<f64>() {
            Ok(number) if (0.0..=f64::from(MAX_TOKENS)).contains(&number) => Ok(Some(number.ceil() as u32)),
            _ => Err(bad(shown("", text))),
        },
        Some(Json::String(text)) => Err(bad(shown("the string ", text))),
        Some(other) => Err(bad(other.kind().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::parse_object;

    #[test]
    fn a_hint_is_a_number_of_tokens() {
        let hint = |value: &str| {
            let record = format!("{{\"a\": 1, \"tokens\": {value}}}");
            length_hint(&parse_object(record.as_bytes()).unwrap(), "tokens")
                .map_err(|error| error.to_string())
        };
        let check = |value: &str, expect: Option<u32>| assert_eq!(hint(value), Ok(expect), "{value}");
        check("null", None);
        check("0", Some(0));
        check("-0.0", Some(0));
        check("120", Some(120));
        check("12.25", Some(13));
        check("1.0E2", Some(100));
        check("1073741824", Some(1 << 30));
        assert_eq!(length_hint(&JsonObject::new(), "tokens"), Ok(None));
        let refused = |value: &str| hint(value).unwrap_err();
        insta::assert_snapshot!(refused("-3"), @"key `tokens` is `-3`, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused("NaN"), @"key `tokens` is `NaN`, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused("-Infinity"), @"key `tokens` is `-Infinity`, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused("1073741825"), @"key `tokens` is `1073741825`, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused(&"9".repeat(400)), @"key `tokens` is `9999999999999999999999999999999999999999…`, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused("\"120\""), @"key `tokens` is the string `120`, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused("true"), @"key `tokens` is a boolean, a length hint must be a number of tokens from 0 to 1073741824");
        insta::assert_snapshot!(refused("[1]"), @"key `tokens` is a list, a length hint must be a number of tokens from 0 to 1073741824");
    }
}
