//! `model.data.format=openai_batch`: a line is a request as OpenAI's batch API takes it, with `custom_id` and `body`.
//!
//! The body's `messages` are a `messages` record, and its parameters are those of the row. A parameter that would change
//! the answer and is not known here makes the record a bad one.

use crate::json::{Json, JsonObject};
use crate::record_error::RecordError;
use crate::record_keys::required_string;
use crate::row_params::RowParams;
use crate::shown::shown;

/// Parameters of a body, and the columns of a row that they are.
const PARAMS: [(&str, &str); 13] = [
    ("max_completion_tokens", "max_length"),
    ("max_tokens", "max_length"),
    ("min_tokens", "min_length"),
    ("temperature", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repetition_penalty"),
    ("stop", "stop"),
    ("seed", "seed"),
    ("n", "num_responses"),
    ("response_format", "structured_outputs"),
    ("structured_outputs", "structured_outputs"),
];

/// What the chat template sees.
const OF_THE_PROMPT: [&str; 4] = ["messages", "tools", "documents", "chat_template_kwargs"];

/// What says something of the request and nothing of the answer.
const WITHOUT_EFFECT: [&str; 9] = [
    "model",
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "stream_options",
];

/// What stands in a line.
const OF_THE_LINE: [&str; 4] = ["custom_id", "method", "url", "body"];

/// The record of a request, and what it sets for its own answers. `other_key`: a key that a line may have for the job;
/// `num_default`: answers where a request has no `n`, none for the job's number.
///
/// # Errors
/// When it is no request to complete a chat, or asks for what there is not.
pub(crate) fn opened(
    mut line: JsonObject,
    other_key: Option<&str>,
    num_default: Option<u32>,
) -> Result<(JsonObject, RowParams), RecordError> {
    required_string(&line, "custom_id", "")?;
    let is_known = |key: &str| OF_THE_LINE.contains(&key) || other_key == Some(key);
    if let Some((key, _)) = line.iter().find(|(key, value)| **value != Json::Null && !is_known(key)) {
        return Err(RecordError::UnknownBatchKey { key: key.clone() });
    }
    let text = |key: &str| match line.get(key) {
        Some(Json::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(method) = text("method").filter(|method| *method != "POST") {
        return Err(bad("method", format!("`{method}`"), "`POST`"));
    }
    if let Some(url) = text("url").filter(|url| !url.ends_with("/chat/completions")) {
        return Err(bad("url", format!("`{url}`"), "`/v1/chat/completions`"));
    }
    let body = match line.shift_remove("body") {
        Some(Json::Object(body)) => body,
        Some(other) => {
            return Err(RecordError::WrongType {
                key: "body".into(),
                expected: "an object",
                found: other.kind(),
            });
        }
        None => return Err(RecordError::MissingKey { key: "body".into() }),
    };
    let (mut record, mut params) = (JsonObject::new(), JsonObject::new());
    for (key, value) in body {
        if value == Json::Null || WITHOUT_EFFECT.contains(&key.as_str()) || is_off(&key, &value) {
            continue;
        }
        if OF_THE_PROMPT.contains(&key.as_str()) {
            let value = if key == "messages" { with_plain_contents(value)? } else { value };
            record.insert(key, value);
            continue;
        }
        let Some((name, column)) = PARAMS.iter().find(|(name, _)| *name == key) else {
            let known = PARAMS.map(|(name, _)| format!("`{name}`")).join(", ");
            return Err(RecordError::UnknownBatchParam { key, value: value.to_string(), known });
        };
        let value = match (*name, value) {
            // One string is a list of one.
            ("stop", Json::String(text)) => Json::Array(vec![Json::String(text)]),
            ("response_format", format) => structure_of(format)?,
            // Of other programs 0 would be the most likely token, of a job's key it is no filter.
            ("top_p", Json::Number(text)) if text.parse() == Ok(0.0) => {
                return Err(bad("top_p", format!("`{text}`"), "above 0 and at most 1"));
            }
            // Off, as other programs have it.
            ("top_k", Json::Number(text)) if text.as_ref() == "-1" => Json::Number("0".into()),
            (_, value) => value,
        };
        params.insert((*column).to_owned(), value);
    }
    let row = RowParams::of(&params).map_err(in_terms_of_the_body)?;
    let num_responses = row.num_responses.or(num_default);
    Ok((record, RowParams { num_responses, ..row }))
}

/// Messages whose contents are texts: chat templates of text models know no parts. Several are joined by line breaks, as
/// vLLM joins them.
fn with_plain_contents(mut messages: Json) -> Result<Json, RecordError> {
    let Json::Array(items) = &mut messages else { return Ok(messages) };
    for item in items {
        let Json::Object(message) = item else { continue };
        let Some(content) = message.get_mut("content") else { continue };
        let Json::Array(parts) = content else { continue };
        let mut texts = Vec::with_capacity(parts.len());
        for part in parts.iter() {
            let text = match part {
                Json::Object(part) if part.get("type") == Some(&Json::from("text")) => part.get("text"),
                _ => None,
            };
            match text {
                Some(Json::String(text)) => texts.push(text.as_str()),
                _ => return Err(RecordError::UnknownContentPart { part: shown("", &part.to_string()) }),
            }
        }
        *content = texts.join("\n").into();
    }
    Ok(messages)
}

/// OpenAI's `response_format` as a structure.
fn structure_of(format: Json) -> Result<Json, RecordError> {
    const EXPECTED: &str =
        "an object whose `type` is `text`, `json_object`, or `json_schema` with `json_schema.schema`";
    let refused = |found: String| Err(bad("response_format", found, EXPECTED));
    let Json::Object(format) = format else { return refused(format.kind().to_owned()) };
    let schema = match format.get("json_schema") {
        Some(Json::Object(described)) => described.get("schema").filter(|schema| **schema != Json::Null),
        _ => None,
    };
    let (key, value) = match (format.get("type"), schema) {
        (Some(Json::String(kind)), _) if kind == "json_object" => ("json_object", Json::Bool(true)),
        (Some(Json::String(kind)), Some(schema)) if kind == "json_schema" => ("json", schema.clone()),
        _ => return refused(Json::Object(format).to_string()),
    };
    Ok(Json::Object([(key.to_owned(), value)].into_iter().collect()))
}

/// Whether a key says that something is not wanted which is not offered.
fn is_off(key: &str, value: &Json) -> bool {
    let is_zero = matches!(value, Json::Number(text) if text.parse() == Ok(0.0));
    let is_empty = matches!(value, Json::Object(object) if object.is_empty());
    let is = |word: &str| matches!(value, Json::String(text) if text == word);
    match key {
        "frequency_penalty" | "presence_penalty" | "top_logprobs" => is_zero,
        "logprobs" | "stream" => *value == Json::Bool(false),
        "logit_bias" => is_empty,
        "tool_choice" => is("auto") || is("none"),
        "response_format" => {
            matches!(value, Json::Object(object) if object.get("type") == Some(&Json::from("text")))
        }
        _ => false,
    }
}

fn bad(key: &'static str, found: String, expected: &'static str) -> RecordError {
    RecordError::BadRowParam { column: key, expected, found }
}

/// The error with the key of the body in place of the column.
fn in_terms_of_the_body(error: RecordError) -> RecordError {
    match error {
        RecordError::BadRowParam { column, expected, found } => {
            // Of two names of one column the newer one.
            let name = PARAMS.iter().find(|(_, known)| *known == column).map_or(column, |(name, _)| name);
            RecordError::BadRowParam { column: name, expected, found }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonl::parse_object;

    fn open(body: &str) -> Result<(String, RowParams), String> {
        let line = format!(
            r#"{{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}"#
        );
        let opened = opened(parse_object(line.as_bytes()).unwrap(), None, Some(1));
        opened.map(|(record, row)| (Json::Object(record).to_string(), row)).map_err(|error| error.to_string())
    }

    #[test]
    fn messages_and_parameters_are_read() {
        let (record, row) = open(
            r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "temperature": 0.5, "top_k": -1,
                "stop": "END", "n": 2, "seed": 4, "stream": false, "frequency_penalty": 0, "logprobs": null, "logit_bias": {}}"#,
        )
        .unwrap();
        assert_eq!(record, r#"{"messages": [{"role": "user", "content": "hi"}]}"#);
        let expect = RowParams {
            max_length: Some(9),
            temperature: Some(0.5),
            top_k: Some(0),
            stop_strings: Some(vec!["END".to_owned()]),
            num_responses: Some(2),
            seed: Some(4),
            ..RowParams::default()
        };
        assert_eq!(row, expect);
    }

    #[test]
    fn a_request_has_one_answer_unless_it_says_otherwise() {
        assert_eq!(open(r#"{"messages": [], "n": null}"#).unwrap().1.num_responses, Some(1));
        assert_eq!(open(r#"{"messages": [], "n": 3}"#).unwrap().1.num_responses, Some(3));
    }

    #[test]
    fn contents_in_parts_are_texts() {
        let parts = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#;
        assert_eq!(open(parts).unwrap().0, r#"{"messages": [{"role": "user", "content": "a\nb"}]}"#);
    }

    #[test]
    fn formats_are_structures() {
        let of = |format: &str| {
            let (_, row) = open(&format!(r#"{{"messages": [], "response_format": {format}}}"#))?;
            Ok::<_, String>(row.structured_outputs)
        };
        assert_eq!(of(r#"{"type": "text"}"#), Ok(None));
        assert_eq!(of(r#"{"type": "json_object"}"#), Ok(Some(r#"{"json_object": true}"#.to_owned())));
        let schema = of(
            r#"{"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {"type": "null"}}}"#,
        );
        assert_eq!(schema, Ok(Some(r#"{"json": {"type": "null"}}"#.to_owned())));
        insta::assert_snapshot!(of(r#"{"type": "json_schema"}"#).unwrap_err(), @r#"column `response_format` is {"type": "json_schema"}, it must be an object whose `type` is `text`, `json_object`, or `json_schema` with `json_schema.schema`"#);
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let refused = |body: &str| open(body).unwrap_err();
        insta::assert_snapshot!(refused(r#"{"messages": [], "frequency_penalty": 0.5}"#), @"`body.frequency_penalty` is 0.5, which is not offered; a body may have `max_completion_tokens`, `max_tokens`, `min_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `stop`, `seed`, `n`, `response_format`, `structured_outputs`");
        insta::assert_snapshot!(refused(r#"{"messages": [], "temperature": "hot"}"#), @"column `temperature` is the string `hot`, it must be 0 (greedy) or a positive, finite number");
        insta::assert_snapshot!(refused("3"), @"key `body` is a number, it must be an object");
        insta::assert_snapshot!(refused(r#"{"messages": [], "top_p": 0}"#), @"column `top_p` is `0`, it must be above 0 and at most 1");
        let image = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}"#;
        insta::assert_snapshot!(refused(image), @r#"a message's `content` has `{"type": "image_url", "image_url": {"url…`, and only parts with `type` `text` and a `text` can be read"#);
        let of = |line: &str| {
            opened(parse_object(line.as_bytes()).unwrap(), Some("hint"), Some(1)).unwrap_err().to_string()
        };
        insta::assert_snapshot!(of(r#"{"custom_id": "a", "hint": 3, "temperature": 2, "body": {}}"#), @"`temperature` stands beside `body`, where nothing reads it: parameters belong into `body`, and a line has `custom_id`, `method`, `url` and `body`");
        insta::assert_snapshot!(of(r#"{"body": {}}"#), @"key `custom_id` is missing");
        insta::assert_snapshot!(of(r#"{"custom_id": "a", "url": "/v1/embeddings", "body": {}}"#), @"column `url` is `/v1/embeddings`, it must be `/v1/chat/completions`");
    }
}
