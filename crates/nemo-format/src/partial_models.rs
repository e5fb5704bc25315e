//! Checkpoints that hold part of a model only: the adapters of a LoRA or another PEFT tuning, and the interleaved stages of
//! a virtual pipeline. Both are refused by name instead of as a model with missing tensors.

use std::path::Path;

use hydra_config::Node;

use crate::FormatError;

const EMBEDDING: &str = "word_embeddings";
const HINT: &str = "give the checkpoint of the model, and the adapters of a LoRA in \
                    `++model.peft.restore_from_path=PATH` (conversion: `--adapter PATH`)";
const VIRTUAL_STAGES: &str = "virtual_pipeline_model_parallel_size";

/// Refuses tensors of adapters without the model that they belong to. `file` is where the names are from.
pub(crate) fn refuse_adapters<'a>(
    file: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), FormatError> {
    let mut adapter = None;
    for name in names {
        if name.contains(EMBEDDING) {
            return Ok(());
        }
        if adapter.is_none() && (name.contains("adapter") || name.contains("lora_")) {
            adapter = Some(name);
        }
    }
    let Some(adapter) = adapter else { return Ok(()) };
    Err(FormatError::Unsupported {
        what: format!("`{file}`, the adapters of a LoRA or PEFT tuning (`{adapter}`) without their model,"),
        hint: HINT.to_owned(),
    })
}

/// Refuses a folder of Hugging Face's PEFT, with its model or without: transformers puts the adapters on top.
pub(crate) fn refuse_peft_folder(path: &Path) -> Result<(), FormatError> {
    if !path.join("adapter_config.json").is_file() {
        return Ok(());
    }
    let (what, hint) = if path.join("config.json").is_file() {
        (
            "with the adapters of a PEFT tuning (`adapter_config.json`) beside its model",
            "move `adapter_config.json` and the adapter's weights into a folder of their own, and give that in \
             `++model.peft.restore_from_path=PATH` (conversion: `--adapter PATH`); move the file away if the weights are \
             merged already",
        )
    } else {
        ("the adapters of a PEFT tuning (`adapter_config.json`) without their model", HINT)
    };
    Err(FormatError::Unsupported { what: format!("`{}`, {what},", path.display()), hint: hint.to_owned() })
}

/// Whether a key of a state dictionary is that of one virtual stage: `model0`, `model1`, …
pub(crate) fn is_virtual_stage(key: &str) -> bool {
    let number = key.split('.').next().unwrap_or_default().strip_prefix("model");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The error for a file that holds several virtual stages, `key` being the first.
pub(crate) fn virtual_stages(file: &str, key: &str) -> FormatError {
    refused_stages(format!("`{file}`, where `{key}` is one of several interleaved stages,"))
}

/// Refuses pipeline ranks whose layers are interleaved, by what the configuration says.
pub(crate) fn refuse_virtual_stages(
    file: &str,
    config: &Node,
    pipeline_parallel: u64,
) -> Result<(), FormatError> {
    match config.get(VIRTUAL_STAGES).and_then(Node::as_i64) {
        Some(size) if size > 1 && pipeline_parallel > 1 => {
            Err(refused_stages(format!("`{file}`, pipeline ranks with `{VIRTUAL_STAGES}: {size}`,")))
        }
        _ => Ok(()),
    }
}

fn refused_stages(what: String) -> FormatError {
    let hint = format!(
        "layers are read in the order of plain pipeline ranks: export it with `{VIRTUAL_STAGES}: null`, or as a \
         distributed checkpoint"
    );
    FormatError::Unsupported { what, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_virtual_stages() {
        for (key, expect) in [
            ("model0", true),
            ("model12.decoder.x", true),
            ("model", false),
            ("model.decoder", false),
            ("models", false),
        ] {
            assert_eq!(is_virtual_stage(key), expect, "{key}");
        }
    }

    #[test]
    fn adapters_beside_their_model_are_left_to_the_model() {
        let names = |with: &'static str| {
            ["model.decoder.layers.0.lora_kqv_adapter.linear_in.weight", with].into_iter()
        };
        assert!(refuse_adapters("x", names("model.embedding.word_embeddings.weight")).is_ok());
        assert!(refuse_adapters("x", names("model.decoder.final_layernorm.weight")).is_err());
        assert!(refuse_adapters("x", ["model.decoder.final_layernorm.weight"].into_iter()).is_ok());
    }

    #[test]
    fn plain_pipelines_are_read() {
        let config = |size: Node| {
            let mut config = Node::empty_map();
            config.set(VIRTUAL_STAGES, size);
            config
        };
        for (size, pipeline_parallel, is_fine) in [
            (Node::Null, 2, true),
            (Node::Int(1), 2, true),
            (Node::Int(2), 1, true),
            (Node::Int(2), 2, false),
        ] {
            assert_eq!(refuse_virtual_stages("x", &config(size), pipeline_parallel).is_ok(), is_fine);
        }
    }
}
