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
        line.entry(
            "error",
            &sample.error.as_ref().map(|message| json!({"code": "invalid_request", "message": message})),
        )?;
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

/// The answer to a request, null where there is none. It depends on no clock: the same run writes the same bytes.
fn response(sample: &SampleOutput) -> Option<Value> {
    if sample.error.is_some() {
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
    json!({"index": idx, "message": message, "logprobs": null, "finish_reason": finish_reason})
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;

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
