//! The structure of a job: the file that its schema may be in, and rows whose responses could not go on.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::config::plan::GenerationPlan;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::structures::TokenStructures;

const KEY: &str = "model.generation.sampling_params.structured_outputs";

/// Puts the schema into the plan where a file has it, and checks the structure.
///
/// # Errors
/// When the file cannot be read, or nothing can be made of the structure.
pub(crate) fn prepare(plan: &mut GenerationPlan, structures: &TokenStructures) -> Result<(), Failure> {
    let Some(typed) = plan.structured_outputs.take() else { return Ok(()) };
    let text = with_file(typed)?;
    structures.check(&text).map_err(|error| Failure::usage(format!("`{KEY}`: {error}")))?;
    plan.structured_outputs = Some(text);
    Ok(())
}

/// The structure with the schema itself in place of the name of its file.
fn with_file(typed: String) -> Result<String, Failure> {
    let mut object: Map<String, Value> = match serde_json::from_str(&typed) {
        Ok(object) => object,
        Err(_) => return Ok(typed),
    };
    let Some(Value::String(path)) = object.get("json").filter(|schema| is_path(schema)) else {
        return Ok(typed);
    };
    let refused = |reason: String| Failure::usage(format!("`{KEY}.json` is the file `{path}`, {reason}"));
    let bytes = std::fs::read(path).map_err(|error| refused(format!("which cannot be read: {error}")))?;
    let schema: Value =
        serde_json::from_slice(&bytes).map_err(|error| refused(format!("which is not JSON: {error}")))?;
    object.insert("json".to_owned(), schema);
    Ok(Value::Object(object).to_string())
}

/// A string that is no JSON of a schema itself.
fn is_path(schema: &Value) -> bool {
    schema.as_str().is_some_and(|text| !text.trim_start().starts_with('{'))
}

/// How many lines of the output have an error, of a row or of OpenAI's.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn count_errors(jsonl: &Path) -> Result<u64, Failure> {
    #[derive(Deserialize)]
    struct Line {
        error: Option<IgnoredAny>,
    }
    let read = || -> std::io::Result<u64> {
        let mut num_errors = 0;
        for line in BufReader::with_capacity(1 << 20, File::open(jsonl)?).lines() {
            let line = line?;
            // Numbers that are none, as Python writes them, are not read here.
            let has_error = line.contains("\"error\": ")
                && serde_json::from_str::<Line>(&line).is_ok_and(|line| line.error.is_some());
            num_errors += u64::from(has_error);
        }
        Ok(num_errors)
    };
    let context = || format!("`{}` cannot be read again", jsonl.display());
    read().map_err(|error| anyhow::Error::new(error).context(context())).exit_with(ExitStatus::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_may_be_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("schema.json");
        std::fs::write(&file, r#"{"type": "null"}"#).unwrap();
        let typed = |path: &Path| serde_json::json!({"json": path}).to_string();
        assert_eq!(with_file(typed(&file)).unwrap(), r#"{"json":{"type":"null"}}"#);
        for kept in [r#"{"json":"{\"type\": \"null\"}"}"#, r#"{"regex":"a"}"#, r#"{"json":{}}"#] {
            assert_eq!(with_file(kept.to_owned()).unwrap(), kept);
        }
        let refused = |path: &Path| {
            let said = with_file(typed(path)).unwrap_err().sentence();
            said.replace(&folder.path().display().to_string(), "[FOLDER]")
        };
        insta::assert_snapshot!(refused(&folder.path().join("other.json")), @"`model.generation.sampling_params.structured_outputs.json` is the file `[FOLDER]/other.json`, which cannot be read: No such file or directory (os error 2)");
        std::fs::write(&file, "{").unwrap();
        insta::assert_snapshot!(refused(&file), @"`model.generation.sampling_params.structured_outputs.json` is the file `[FOLDER]/schema.json`, which is not JSON: EOF while parsing an object at line 1 column 1");
    }

    #[test]
    fn lines_with_an_error_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.jsonl");
        let lines = [
            r#"{"prompt": "\"error\": x", "error": null}"#,
            r#"{"error": "stuck"}"#,
            r#"{"error": {"code": "x"}}"#,
            "{}",
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        assert_eq!(count_errors(&file).unwrap(), 2);
        assert!(count_errors(&folder.path().join("absent")).is_err());
    }
}
