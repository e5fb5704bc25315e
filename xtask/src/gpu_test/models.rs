//! The fixtures that the checks of logits and texts run on: small models with logits of the original software.

use std::path::Path;

use anyhow::{Context, Result};

/// The folder that the paths start from, in the repository and in a carried folder alike.
pub(super) const FOLDER: &str = "tests/fixtures";

/// A checkpoint, and what the original software computes with it in float32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    pub(super) name: &'static str,
    pub(super) checkpoint: &'static str,
    pub(super) input_ids: &'static str,
    pub(super) logits: &'static str,
    /// The value of `trainer.generation.trt_llm.model_type`.
    pub(super) model_type: &'static str,
}

pub(super) const LLAMA: Model = Model {
    name: "mcore_llama",
    checkpoint: "mcore_llama/llama_fp32_torch_dist.nemo",
    input_ids: "mcore_llama/input_ids.npy",
    logits: "mcore_llama/logits_fp32.npy",
    model_type: "llama",
};

pub(super) const GPTNEXT: Model = Model {
    name: "mcore_gptnext",
    checkpoint: "mcore_gptnext/gptnext_fp32_torch_dist.nemo",
    input_ids: "mcore_gptnext/input_ids.npy",
    logits: "mcore_gptnext/logits_fp32.npy",
    model_type: "gptnext",
};

const HF_LLAMA: Model = Model {
    name: "hf_llama",
    checkpoint: "hf_llama/hf_llama_converted_bf16_torch_dist.nemo",
    input_ids: "hf_llama/input_ids.npy",
    logits: "hf_llama/logits_fp32.npy",
    model_type: "llama",
};

pub(super) const MODELS: [Model; 3] = [LLAMA, GPTNEXT, HF_LLAMA];

/// Responses that transformers has scored, and the checkpoint of the model.
pub(super) const SCORES: &str = "hf_llama/score.json";
pub(super) const SCORED: &str = HF_LLAMA.checkpoint;

/// Models of every family, a folder each, as Hugging Face has them.
pub(super) const FAMILIES: &str = "families";

/// Every file that the checks read, from the folder that `root` has them in.
///
/// # Errors
/// When the families cannot be listed.
pub(super) fn files(root: &Path) -> Result<Vec<String>> {
    let of_models = MODELS.into_iter().flat_map(|model| [model.checkpoint, model.input_ids, model.logits]);
    let mut files: Vec<String> = of_models.chain([SCORES]).map(|file| format!("{FOLDER}/{file}")).collect();
    let families = root.join(FOLDER).join(FAMILIES);
    for family in names(&families)? {
        for file in names(&families.join(&family))? {
            files.push(format!("{FOLDER}/{FAMILIES}/{family}/{file}"));
        }
    }
    Ok(files)
}

/// What lies in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        let names =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    let mut names = list().with_context(|| format!("cannot list `{}`", folder.display()))?;
    names.sort();
    Ok(names)
}
