//! The texts of a `generations.jsonl`, as far as two runs can be compared by them.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Of the prompts and the first responses, without the numbers of steps, which follow the batch size.
///
/// # Errors
/// When a line is not JSON or has fewer responses.
pub(crate) fn hash(jsonl: &[u8], num_responses: usize) -> Result<String> {
    let mut hasher = Sha256::new();
    for line in lines(jsonl) {
        let record: Value = parse(line)?;
        let responses =
            responses(&record).get(..num_responses).context("a line of the output has too few responses")?;
        hasher.update(serde_json::to_vec(&(record.get("prompt"), responses))?);
    }
    Ok(format!("{:x}", hasher.finalize()))
}

/// Refuses the output of a run that left something out: two such outputs are equal for the wrong reason.
///
/// # Errors
/// When there are more or fewer than `num_rows` lines, when one has more or fewer than `num_responses` responses, and when
/// all responses are empty.
pub(crate) fn check_complete(jsonl: &[u8], num_rows: usize, num_responses: usize) -> Result<()> {
    let rows = lines(jsonl).map(parse).collect::<Result<Vec<Value>>>()?;
    if rows.len() != num_rows {
        bail!("wrote {} rows of {num_rows}", rows.len());
    }
    for (row_idx, row) in rows.iter().enumerate() {
        let found = responses(row).len();
        if found != num_responses {
            bail!("row {row_idx} has {found} responses of {num_responses}");
        }
    }
    let has_text = |response: &Value| response.as_str().is_some_and(|text| !text.is_empty());
    if !rows.iter().flat_map(responses).any(has_text) {
        bail!("all responses are empty");
    }
    Ok(())
}

fn lines(jsonl: &[u8]) -> impl Iterator<Item = &[u8]> {
    jsonl.split_inclusive(|&byte| byte == b'\n')
}

fn parse(line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line).context("a line of the output is not JSON")
}

fn responses(record: &Value) -> &[Value] {
    record.get("responses").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u32, responses: &str) -> Vec<u8> {
        format!("{{\"step\": {step}, \"prompt\": \"a\", \"responses\": {responses}}}\n").into_bytes()
    }

    #[test]
    fn hashes_are_of_texts_alone() {
        let base = hash(&line(1, r#"["x", "y"]"#), 1).unwrap();
        assert_eq!(hash(&line(9, r#"["x"]"#), 1).unwrap(), base);
        assert_ne!(hash(&line(1, r#"["z"]"#), 1).unwrap(), base);
        assert!(hash(&line(1, "[]"), 1).is_err());
    }

    #[test]
    fn what_was_left_out_is_noticed() {
        let two = [line(1, r#"["x", ""]"#), line(1, r#"["", "y"]"#)].concat();
        check_complete(&two, 2, 2).unwrap();
        let problem =
            |jsonl: &[u8], rows, responses| check_complete(jsonl, rows, responses).unwrap_err().to_string();
        assert_eq!(problem(&two, 3, 2), "wrote 2 rows of 3");
        assert_eq!(problem(b"", 1, 2), "wrote 0 rows of 1");
        assert_eq!(problem(&two, 2, 1), "row 0 has 2 responses of 1");
        assert_eq!(problem(&line(1, r#"["", ""]"#), 1, 2), "all responses are empty");
        assert_eq!(problem(b"{\"responses\": [\n", 1, 2), "a line of the output is not JSON");
    }
}
