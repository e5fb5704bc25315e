//! What the job that wrote the input did to its prompts: nothing else could tell it from their texts.

use std::path::Path;

use serde_json::Value;

use crate::config::cli::ScoreArgs;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::output::Manifest;

/// How prompts become tokens; none of a field where neither a flag nor a manifest says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PromptKind {
    /// A manifest lies beside the input.
    pub(super) is_of_job: bool,
    pub(super) is_templated: Option<bool>,
    pub(super) add_bos: Option<bool>,
}

impl PromptKind {
    /// By the flags, and by the manifest beside the input.
    ///
    /// # Errors
    /// When these contradict each other, or the manifest cannot be read.
    pub(super) fn new(arguments: &ScoreArgs) -> Result<Self, Failure> {
        let folder = arguments.input.parent().unwrap_or(Path::new(""));
        let manifest = Manifest::read(folder).exit_with(ExitStatus::Data)?;
        let identity = manifest.map(|manifest| manifest.identity);
        Self::of(arguments.templated, arguments.add_bos, identity.as_ref())
    }

    fn of(templated: Option<bool>, add_bos: Option<bool>, identity: Option<&Value>) -> Result<Self, Failure> {
        let setting = |key: &str| identity.and_then(|identity| identity["settings"][key].as_bool());
        // Other records are never rendered by a template.
        let is_templated = setting("model.data.chat").filter(|is_chat| !is_chat);
        let adds = |key: &&str| {
            let added =
                identity.map(|identity| &identity["prompt_response"][format!("model.data.train_ds.{key}")]);
            added.and_then(Value::as_bool) == Some(true)
        };
        if let Some(key) = ["add_bos", "add_sep"].into_iter().find(adds) {
            return Err(Failure::usage(format!(
                "the manifest beside the input says that its job had `model.data.train_ds.{key}=true`, whose tokens are not \
                 in the texts of prompts: they cannot be scored"
            )));
        }
        let key = "model.generation.sampling_params.add_BOS";
        let bos = setting(key);
        for (flag, given, said, key) in
            [("--add-bos", add_bos, bos, key), ("--templated", templated, is_templated, "model.data.chat")]
        {
            if let (Some(given), Some(said)) = (given, said)
                && given != said
            {
                return Err(Failure::usage(format!(
                    "`{flag}={given}`: the manifest beside the input says that its job had `{key}={said}`"
                )));
            }
        }
        Ok(Self {
            is_of_job: identity.is_some(),
            is_templated: templated.or(is_templated),
            add_bos: add_bos.or(bos),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_says_what_flags_do_not() {
        let job = |chat: bool, bos: bool| json!({"settings": {"model.data.chat": chat, "model.generation.sampling_params.add_BOS": bos}});
        let kind = |is_of_job, is_templated, add_bos| PromptKind { is_of_job, is_templated, add_bos };
        let of = |templated, bos, identity: Option<Value>| {
            PromptKind::of(templated, bos, identity.as_ref()).map_err(|failure| failure.sentence())
        };
        assert_eq!(of(None, None, None), Ok(kind(false, None, None)));
        assert_eq!(of(None, None, Some(job(true, true))), Ok(kind(true, None, Some(true))));
        assert_eq!(of(Some(true), None, Some(job(true, false))), Ok(kind(true, Some(true), Some(false))));
        assert_eq!(of(None, Some(false), Some(job(false, false))), Ok(kind(true, Some(false), Some(false))));
        insta::assert_snapshot!(of(None, Some(true), Some(job(true, false))).unwrap_err(), @"`--add-bos=true`: the manifest beside the input says that its job had `model.generation.sampling_params.add_BOS=false`");
        insta::assert_snapshot!(of(Some(true), None, Some(job(false, false))).unwrap_err(), @"`--templated=true`: the manifest beside the input says that its job had `model.data.chat=false`");
        let sep = json!({"prompt_response": {"model.data.train_ds.add_sep": true}});
        assert!(of(None, None, Some(sep)).unwrap_err().contains("`model.data.train_ds.add_sep=true`"));
    }
}
