//! Lines of OpenAI's batch output: `custom_id`, `response` and `error`, and what a run is resumed by.

use data::{Json, JsonObject};
use sampling::FinishReason;
use serde_json::{Value, json};

use super::python_json;
use super::record::{CompletedStep, ResponseOutput, SampleOutput};

/// The name of the model where a request has none.
const MODEL: &str = "aligner-gen";

/// Appends all lines of a step.
pub(super) fn append_lines(out: &mut Vec<u8>, step: &CompletedStep) -> serde_json::Result<()> {
    for sample in &step.samples {
        let mut line = python_json::ObjectWriter::begin(out);
        line.entry("id", &format!("batch_req_{}", sample.index))?;
        line.json("custom_id", key_of(sample, "custom_id").unwrap_or(&Json::Null));
        line.entry("response", &response(sample))?;
        line.entry("error", &error(sample))?;
        // Not of OpenAI: a run goes on behind the last line by these.
        line.entry("step", &step.step)?;
        line.entry("consumed_samples", &step.consumed_samples)?;
        line.end();
        out.push(b'\n');
    }
    Ok(())
}

fn key_of<'a>(sample: &'a SampleOutput, key: &str) -> Option<&'a Json> {
    sample.input.record.as_ref()?.get(key)
}

/// Whether there is something to answer with: some choice that did not fail.
fn is_answered(sample: &SampleOutput) -> bool {
    sample.error.is_none() || sample.responses.iter().any(|response| !response.has_failed())
}

/// Why there is no answer: the request's fault, or every choice's.
fn error(sample: &SampleOutput) -> Option<Value> {
    let message = sample.error.as_ref().filter(|_| !is_answered(sample))?;
    let code = if sample.responses.is_empty() { "invalid_request" } else { "generation_failed" };
    Some(json!({"code": code, "message": message}))
}

/// The answer to a request, null where there is none. It depends on no clock: the same run writes the same bytes.
fn response(sample: &SampleOutput) -> Option<Value> {
    if !is_answered(sample) {
        return None;
    }
    let body: Option<&JsonObject> = match key_of(sample, "body") {
        Some(Json::Object(body)) => Some(body),
        _ => None,
    };
    let model = match body.and_then(|body| body.get("model")) {
        Some(Json::String(model)) => model.as_str(),
        _ => MODEL,
    };
    let num_tokens: usize = sample.responses.iter().map(|response| response.token_ids.len()).sum();
    let choices: Vec<Value> = sample.responses.iter().enumerate().map(choice).collect();
    Some(json!({
        "status_code": 200,
        "request_id": format!("req_{}", sample.index),
        "body": {
            "id": format!("chatcmpl-{}", sample.index),
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": choices,
            "usage": {
                "prompt_tokens": sample.num_prompt_tokens,
                "completion_tokens": num_tokens,
                "total_tokens": sample.num_prompt_tokens + num_tokens,
            },
        },
    }))
}

fn choice((idx, response): (usize, &ResponseOutput)) -> Value {
    let finish_reason = match response.finish_reason {
        FinishReason::Length => "length",
        FinishReason::Error => "error",
        FinishReason::Eos | FinishReason::EndString => "stop",
    };
    let mut message = json!({"role": "assistant", "content": response.clean.answer});
    if let Some(thinking) = &response.clean.thinking {
        message["reasoning_content"] = thinking.as_str().into();
    }
    let mut choice =
        json!({"index": idx, "message": message, "logprobs": null, "finish_reason": finish_reason});
    // Not of OpenAI, where a choice cannot fail by itself.
    if let Some(error) = &response.error {
        choice["error"] = error.as_str().into();
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;

    #[test]
    fn a_choice_that_failed_takes_no_other_along() {
        let mut some = sample(1);
        let failed = ResponseOutput {
            finish_reason: FinishReason::Error,
            error: Some("no token may be next".to_owned()),
            ..some.responses[0].clone()
        };
        some.responses.push(failed.clone());
        some.error = Some("response 1: no token may be next".to_owned());
        let none = SampleOutput { responses: vec![failed], ..some.clone() };
        let choices = &response(&some).unwrap()["body"]["choices"];
        assert_eq!((error(&some), choices[0]["finish_reason"].as_str()), (None, Some("stop")));
        assert_eq!(
            (choices[1]["finish_reason"].as_str(), choices[1]["error"].as_str()),
            (Some("error"), Some("no token may be next"))
        );
        assert!(choices[0].get("error").is_none());
        assert_eq!(
            (response(&none), error(&none).unwrap()["code"].as_str()),
            (None, Some("generation_failed"))
        );
    }

    #[test]
    fn lines_are_openais() {
        let mut good = sample(3);
        let record = br#"{"custom_id": "r-3", "body": {"model": "m"}}"#;
        good.input.record = Some(data::parse_object(record).unwrap());
        let bad = SampleOutput {
            error: Some("key `body` is missing".to_owned()),
            responses: Vec::new(),
            ..sample(4)
        };
        let step = CompletedStep { step: 2, consumed_samples: 5, samples: vec![good, bad] };
        let mut out = Vec::new();
        append_lines(&mut out, &step).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r#"
        {"id": "batch_req_3", "custom_id": "r-3", "response": {"status_code": 200, "request_id": "req_3", "body": {"id": "chatcmpl-3", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "né", "reasoning_content": "so"}, "logprobs": null, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}}, "error": null, "step": 2, "consumed_samples": 5}
        {"id": "batch_req_4", "custom_id": null, "response": null, "error": {"code": "invalid_request", "message": "key `body` is missing"}, "step": 2, "consumed_samples": 5}
        "#);
    }
}
