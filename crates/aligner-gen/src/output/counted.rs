//! What an earlier run wrote of pass@k, for the totals of a job that goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use data::{Json, JsonObject};

use super::OutputError;

/// Of each k the estimate, where there are as many responses.
type PassAtK = BTreeMap<u32, Option<f64>>;

/// Passes on `pass_at_k` of each committed line, in order.
///
/// # Errors
/// When the file cannot be read, or a line has no such field.
pub(crate) fn read_pass_at_k(
    jsonl: &Path,
    committed_bytes: u64,
    row: &mut dyn FnMut(&PassAtK),
) -> Result<(), OutputError> {
    if committed_bytes == 0 {
        return Ok(());
    }
    let file = File::open(jsonl).map_err(OutputError::io("open", jsonl))?;
    let lines = BufReader::new(file.take(committed_bytes)).split(b'\n');
    for (line, number) in lines.zip(1_u64..) {
        let line = line.map_err(OutputError::io("read", jsonl))?;
        let values = of_line(&line).map_err(|reason| OutputError::NoPassAtK {
            path: jsonl.to_owned(),
            line: number,
            reason,
        })?;
        row(&values);
    }
    Ok(())
}

fn of_line(line: &[u8]) -> Result<BTreeMap<u32, Option<f64>>, String> {
    pass_at_k_of(&data::parse_object(line).map_err(|error| error.to_string())?)
}

/// `pass_at_k` of a line.
///
/// # Errors
/// When it has none, or something else under this name.
pub(crate) fn pass_at_k_of(object: &JsonObject) -> Result<BTreeMap<u32, Option<f64>>, String> {
    let Some(Json::Object(values)) = object.get("pass_at_k") else {
        return Err("it has no `pass_at_k`".to_owned());
    };
    let entry = |(k, value): (&String, &Json)| {
        let k = k.parse().map_err(|_| format!("`pass_at_k` has the key `{k}`"))?;
        match value {
            Json::Null => Ok((k, None)),
            // The shortest text of a number is read as the same number.
            Json::Number(text) => {
                let value = text.parse().map_err(|_| format!("pass@{k} is {text}"))?;
                Ok((k, Some(value)))
            }
            other => Err(format!("pass@{k} is {other}")),
        }
    };
    values.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, committed_bytes: usize) -> Result<Vec<BTreeMap<u32, Option<f64>>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut rows = Vec::new();
        read_pass_at_k(&path, committed_bytes as u64, &mut |row| rows.push(row.clone()))
            .map(|()| rows)
            .map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "/results"))
    }

    #[test]
    fn committed_lines_are_read_and_no_others() {
        let line = r#"{"step": 1, "metadata": {"x": NaN}, "pass_at_k": {"1": 0.125, "8": null}}"#;
        let text = format!("{line}\n{line}\n{{\"step");
        let rows = read(&text, 2 * line.len() + 2).unwrap();
        assert_eq!(rows, vec![BTreeMap::from([(1, Some(0.125)), (8, None)]); 2]);
        assert_eq!(read("{}\n", 0), Ok(Vec::new()));
    }

    #[test]
    fn lines_of_something_else_are_refused() {
        let said = |text: &str| read(text, text.len()).unwrap_err();
        insta::assert_snapshot!(said("{\"step\": 1}\n"), @"`/results/g.jsonl` line 1 cannot be counted for `model.generation.pass_at_k`: it has no `pass_at_k`");
        insta::assert_snapshot!(said("{\"pass_at_k\": {\"one\": 1}}\n"), @"`/results/g.jsonl` line 1 cannot be counted for `model.generation.pass_at_k`: `pass_at_k` has the key `one`");
    }
}
