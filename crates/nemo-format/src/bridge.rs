//! A folder of Megatron-Bridge: `latest_*` files that say which iteration counts, and `iter_0000500/` with
//! `run_config.yaml`, a distributed checkpoint whose files lie in the iteration's own folder, and `tokenizer/`.
//!
//! Given is the root or one iteration. Which iteration of a root is read follows Megatron-Bridge
//! (`training/utils/checkpoint_utils.py`).

mod config;

use std::path::{Path, PathBuf};

use hydra_config::Node;

pub(crate) use self::config::{model_config, unknown_keys};
use crate::archive::{Archive, CONFIG as NEMO_CONFIG};
use crate::huggingface::read_optional;
use crate::torch_file::read_state_dict;
use crate::{FormatError, nemo2};

/// What describes the model.
pub(crate) const CONFIG: &str = "run_config.yaml";
/// Files of the tokenizer lie below it.
pub(crate) const TOKENIZER: &str = "tokenizer/";
const TRAIN_STATE: &str = "latest_train_state.pt";
const TRACKER: &str = "latest_checkpointed_iteration.txt";
/// What a whole iteration has beside its configuration and its data files.
const METADATA: [&str; 2] = ["metadata.json", ".metadata"];

/// The folder of the iteration to read, where `path` is a folder of Megatron-Bridge.
///
/// # Errors
/// When it is one, and it does not say which iteration, or that iteration is not there.
pub(crate) fn iteration(path: &Path) -> Result<Option<PathBuf>, FormatError> {
    let has = |name: &str| path.join(name).is_file();
    if !path.is_dir() || has(NEMO_CONFIG) || has(nemo2::CONFIG) {
        return Ok(None);
    }
    if has(CONFIG) {
        return Ok(Some(path.to_owned()));
    }
    let found = iterations(path)?;
    let (name, said_by) = match stated(path)? {
        Some(stated) => stated,
        None => match found.as_slice() {
            [] => return Ok(None),
            [only] => (only.clone(), "the only one"),
            _ => {
                return Err(unusable(
                    path,
                    &format!("it has {} and neither `{TRAIN_STATE}` nor `{TRACKER}`", list(&found)),
                    "give the folder of one iteration",
                ));
            }
        },
    };
    let folder = path.join(&name);
    if folder.is_dir() {
        return match folder.join(CONFIG).is_file() {
            true => Ok(Some(folder)),
            false => Err(without_config(&folder)),
        };
    }
    let others = if found.is_empty() { "no iteration".to_owned() } else { list(&found) };
    let reason = format!("`{said_by}` names `{name}`, which is not there; it has {others}");
    Err(unusable(path, &reason, "copy that iteration, or give the folder of another"))
}

/// The iteration that the files of the root name, and the file that does.
fn stated(path: &Path) -> Result<Option<(String, &'static str)>, FormatError> {
    let file = path.join(TRAIN_STATE);
    if let Some(bytes) = read_optional(&file)? {
        let shown = file.display().to_string();
        let step = step_of(&bytes, &shown)?;
        let step = step.ok_or_else(|| FormatError::damaged(&shown, 0, "it has no whole number `step`"))?;
        return Ok(Some((iteration_name(step), TRAIN_STATE)));
    }
    let file = path.join(TRACKER);
    let Some(bytes) = read_optional(&file)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let name = match text.parse::<u64>() {
        Ok(step) => iteration_name(step),
        Err(_) if text == "release" => text,
        Err(_) => {
            let reason = format!("it says `{text}`, expected the number of an iteration or `release`");
            return Err(FormatError::BadConfig { file: file.display().to_string(), reason });
        }
    };
    Ok(Some((name, TRACKER)))
}

fn iteration_name(step: u64) -> String {
    format!("iter_{step:07}")
}

/// `step` of a saved train state, a tensor of one whole number.
fn step_of(bytes: &[u8], file: &str) -> Result<Option<u64>, FormatError> {
    let entries = read_state_dict(bytes, file)?;
    let Some(entry) = entries.get("step") else { return Ok(None) };
    let tensor = entry.tensor(file, "step")?;
    Ok(tensor.whole_number(bytes).and_then(|step| u64::try_from(step).ok()))
}

/// Names of the folders of iterations, in order.
fn iterations(path: &Path) -> Result<Vec<String>, FormatError> {
    let io = |source| FormatError::Io { action: "list", path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("iter_") && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn list(names: &[String]) -> String {
    const MAX_LISTED: usize = 4;
    let shown: Vec<String> = names.iter().rev().take(MAX_LISTED).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(MAX_LISTED);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

fn unusable(path: &Path, reason: &str, hint: &str) -> FormatError {
    FormatError::Unsupported {
        what: format!("`{}`, a folder of Megatron-Bridge or Megatron-LM: {reason},", path.display()),
        hint: hint.to_owned(),
    }
}

/// An iteration without its configuration: of Megatron-LM, or half of one.
fn without_config(folder: &Path) -> FormatError {
    let hint = format!(
        "`{CONFIG}` describes the model: save it with Megatron-Bridge, or copy the iteration again; folders of Megatron-LM itself, \
         which keep their arguments in `common.pt`, are not read"
    );
    let what = format!("`{}`, an iteration without `{CONFIG}`,", folder.display());
    FormatError::Unsupported { what, hint }
}

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
