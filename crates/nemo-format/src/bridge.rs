//! An iteration of Megatron-Bridge: `run_config.yaml`, a distributed checkpoint whose files lie in the iteration's own
//! folder, and `tokenizer/`.

mod config;

use hydra_config::Node;

pub(crate) use self::config::{is_known_field, model_config, refuse_switched_on, unknown_keys};
use crate::FormatError;
use crate::archive::Archive;

/// What describes the model.
pub(crate) const CONFIG: &str = "run_config.yaml";
/// Files of the tokenizer lie below it.
pub(crate) const TOKENIZER: &str = "tokenizer/";
/// What a whole iteration has beside its configuration and its data files.
const METADATA: [&str; 2] = ["metadata.json", ".metadata"];

/// Refuses an iteration of another format than global arrays, and half of one.
pub(crate) fn check(archive: &Archive, document: &Node) -> Result<(), FormatError> {
    let folder = archive.path().display();
    if let Some(format @ "fsdp_dtensor") = document.get("checkpoint.ckpt_format").and_then(Node::as_str) {
        return Err(FormatError::Unsupported {
            what: format!("`{folder}`, whose `checkpoint.ckpt_format` is `{format}`,"),
            hint: "save it with `checkpoint.ckpt_format: torch_dist`, or convert it with Megatron-Bridge"
                .to_owned(),
        });
    }
    check_whole(archive)
}

/// Refuses half an iteration.
pub(crate) fn check_whole(archive: &Archive) -> Result<(), FormatError> {
    let folder = archive.path().display();
    let lacks: Vec<&str> = METADATA.into_iter().filter(|name| archive.get(name).is_none()).collect();
    let num_data = archive.names().filter(|name| name.ends_with(".distcp")).count();
    let is_zarr = archive.names().any(|name| name.ends_with("/.zarray"));
    match lacks.first() {
        // Another backend has no `.metadata`; which it is stands in the other file.
        None => Ok(()),
        Some(&".metadata") if lacks.len() == 1 && is_zarr => Ok(()),
        Some(_) => Err(FormatError::Unsupported {
            what: format!(
                "`{folder}`, half an iteration: it has {num_data} data files and no {},",
                lacks.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and no ")
            ),
            hint:
                "it was not written to its end, or not copied whole: copy it again, or give another iteration"
                    .to_owned(),
        }),
    }
}

/// Whether a member is a file of the tokenizer.
pub(crate) fn is_artifact(member: &str) -> bool {
    member.starts_with(TOKENIZER)
}
