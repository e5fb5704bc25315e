//! Folders in which Megatron-Bridge and Megatron-LM save a training: `latest_*` files that say which iteration counts, and
//! a folder for each, `iter_0000500/`.
//!
//! Given is the root or one iteration. Which iteration of a root is read follows Megatron-Bridge
//! (`training/utils/checkpoint_utils.py`), whose rules are those of Megatron-LM (`training/checkpointing.py`).

use std::path::{Path, PathBuf};

use crate::archive::CONFIG as NEMO_CONFIG;
use crate::huggingface::read_optional;
use crate::torch_file::read_state_dict;
use crate::{FormatError, bridge, megatron_lm, nemo2};

const TRAIN_STATE: &str = "latest_train_state.pt";
const TRACKER: &str = "latest_checkpointed_iteration.txt";

/// The folder of an iteration, by the program that saved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Iteration {
    Bridge(PathBuf),
    MegatronLm(PathBuf),
}

impl Iteration {
    /// What a folder is by the files in it.
    fn of(folder: &Path) -> Result<Option<Self>, FormatError> {
        let has = |name: &str| folder.join(name).is_file();
        if has(bridge::CONFIG) {
            return Ok(Some(Self::Bridge(folder.to_owned())));
        }
        if has("config.json") {
            return Ok(None);
        }
        if has(megatron_lm::COMMON) || has("metadata.json") || megatron_lm::has_rank_files(folder)? {
            return Ok(Some(Self::MegatronLm(folder.to_owned())));
        }
        if has(".metadata") {
            return Err(FormatError::Unsupported {
                what: format!(
                    "`{}`, an iteration that Megatron-LM saved with `--ckpt-format fsdp_dtensor` or `torch_dcp`,",
                    folder.display()
                ),
                hint: "save it with `--ckpt-format torch_dist`".to_owned(),
            });
        }
        Ok(None)
    }
}

/// The iteration to read, where `path` is a folder of Megatron-Bridge or Megatron-LM.
///
/// # Errors
/// When it is one, and it does not say which iteration, or that iteration is not there or of a kind that is not read.
pub(crate) fn find(path: &Path) -> Result<Option<Iteration>, FormatError> {
    let has = |name: &str| path.join(name).is_file();
    if !path.is_dir() || has(NEMO_CONFIG) || has(nemo2::CONFIG) {
        return Ok(None);
    }
    if let Some(iteration) = Iteration::of(path)? {
        return Ok(Some(iteration));
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
        return match Iteration::of(&folder)? {
            Some(iteration) => Ok(Some(iteration)),
            None => Err(without_config(&folder)),
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

/// An iteration without its configuration: half of one.
fn without_config(folder: &Path) -> FormatError {
    let hint = format!(
        "it has neither `{}` of Megatron-Bridge nor `metadata.json` or `mp_rank_…/{}` of Megatron-LM: copy the iteration again",
        bridge::CONFIG,
        megatron_lm::RANK_FILE
    );
    let what = format!("`{}`, an iteration without its configuration,", folder.display());
    FormatError::Unsupported { what, hint }
}
