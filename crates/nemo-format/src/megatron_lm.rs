//! An iteration of Megatron-LM: a distributed checkpoint whose common state has the program's arguments, in `common.pt` or,
//! in newer versions of Megatron-Core (0.19), in a data file; or a file of every rank, `mp_rank_00_000/model_optim_rng.pt`,
//! which has them beside its part of the model.
//!
//! What the arguments mean is in `args`, where a rank's file belongs in `ranks`.

mod args;

use std::path::Path;

use hydra_config::Node;

pub(crate) use self::args::{Model, model_config, tokenizer_needed, unknown_arguments};
use crate::archive::Archive;
use crate::torch_file::read_training;
use crate::{FormatError, dist_ckpt};

/// What a distributed checkpoint has beside its sharded tensors.
pub(crate) const COMMON: &str = "common.pt";
/// The base name of a rank's file.
pub(crate) const RANK_FILE: &str = "model_optim_rng.pt";
/// What folders of ranks are called before their numbers.
pub(crate) const RANK_FOLDER: &str = "mp_rank_";

/// Whether a folder has a file of a rank.
pub(crate) fn has_rank_files(folder: &Path) -> Result<bool, FormatError> {
    let io = |source| FormatError::Io { action: "list", path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let is_rank = entry.file_name().to_string_lossy().starts_with(RANK_FOLDER);
        if is_rank && entry.path().join(RANK_FILE).is_file() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The arguments that a distributed checkpoint has, in its common state, and the file that they are from.
pub(crate) fn arguments(archive: &Archive) -> Result<(Node, String), FormatError> {
    let (bytes, file) = match archive.get(COMMON) {
        Some(bytes) => (bytes, archive.describe(COMMON)),
        None => match dist_ckpt::common_state(archive, "")? {
            Some(found) => found,
            None => return Err(without_arguments(&archive.path().display().to_string())),
        },
    };
    let args = read_training(bytes, &file)?.args;
    Ok((args.ok_or_else(|| without_arguments(&file))?, file))
}

/// A file that has no arguments.
pub(crate) fn without_arguments(file: &str) -> FormatError {
    FormatError::Unsupported {
        what: format!("`{file}`, which has no `args`,"),
        hint: "Megatron-LM keeps the arguments that describe the model there: where it is the weights of a `.nemo`, of NeMo 2 or of \
               Megatron-Bridge, give the folder that also has `model_config.yaml`, `context/` or `run_config.yaml`"
            .to_owned(),
    }
}

/// Whether a member is a file of the tokenizer.
pub(crate) fn is_artifact(member: &str) -> bool {
    const NAMES: [&str; 8] = [
        "added_tokens.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "chat_template.jinja",
    ];
    let name = member.strip_prefix(crate::bridge::TOKENIZER).unwrap_or(member);
    !name.contains('/') && (NAMES.contains(&name) || name.ends_with(".model") || name != member)
}
