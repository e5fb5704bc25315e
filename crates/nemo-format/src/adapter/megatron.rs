//! LoRA adapters of NeMo 1, NeMo 2 and Megatron-Bridge: `linear_in` and `linear_out` beside the layers of Megatron-Core.
//!
//! Where they lie and what their products are multiplied by follows NeMo's `parallel_adapters.py` and
//! `lightning/pytorch/callbacks/peft.py`, and `lora_merge.py` of megatron-bridge 0.6.

use std::path::Path;
use std::sync::Arc;

use hydra_config::Node;
use indexmap::IndexMap;

use super::base_model::BaseModel;
use super::config::{self, Scaling};
use super::{Adapter, Matrix, Pair, matrix, refused};
use crate::adapter_names::{Factor, Rows, Target, parse};
use crate::archive::{Archive, CONFIG};
use crate::dist_ckpt::{self, DistCkpt, FOLDER};
use crate::ranks::{self, Holds};
use crate::{FormatError, StoredTensorInfo, TensorSource, bridge, nemo2};

/// What NeMo 2 writes beside an adapter.
const METADATA: &str = "adapter_metadata.json";
const IO_JSON: &str = "context/io.json";

/// What names of other tensors contain, and what these are parts of.
const MEANINGS: [(&str, &str); 10] = [
    ("word_embeddings.weight", "the weights of a whole model"),
    ("infused", "an IA3 tuning"),
    ("ia3", "an IA3 tuning"),
    ("prompt", "a p-tuning"),
    ("magnitude", "a DoRA"),
    ("norm", "an adapter with a norm"),
    ("expert", "a LoRA of experts"),
    ("router", "a LoRA of a router"),
    ("moe", "a LoRA of experts"),
    (".bias", "an adapter with biases"),
];

/// A `.nemo` whose configuration has a `peft` section.
pub(super) fn open_nemo(archive: &Arc<Archive>, base: &BaseModel) -> Result<Adapter, FormatError> {
    let file = archive.describe(CONFIG);
    let document = yaml(archive, CONFIG)?;
    let config = match document.get("model") {
        Some(model @ Node::Map(_)) => model,
        _ => &document,
    };
    let scaling = config::of_nemo(config.get("peft"), &file)?;
    let path = archive.path().display().to_string();
    check_layers(config.get("num_layers"), &path, base)?;
    let pairs = match ranks::find(archive)? {
        Some(grid) => {
            let holds = Holds::Adapter { num_layers: base.num_layers, is_gated: base.is_gated };
            let files = ranks::open(archive, &grid, config, holds)?;
            if files.is_legacy {
                return Err(refused(&path, "an adapter of NeMo's model from before Megatron-Core"));
            }
            pairs(&files.source, &path, scaling, base)?
        }
        None => {
            let DistCkpt { source, stored, .. } = dist_ckpt::open(archive, FOLDER)?;
            refuse_unplaced(&stored, &path)?;
            pairs(&source, &path, scaling, base)?
        }
    };
    let trained_on = config.get("restore_from_path").and_then(Node::as_str).map(str::to_owned);
    Ok(Adapter { path, format: "NeMo 1", pairs, trained_on })
}

/// A folder of NeMo 2 whose weights are those of adapters alone.
pub(super) fn open_nemo2(archive: &Arc<Archive>, base: &BaseModel) -> Result<Adapter, FormatError> {
    const TRANSFORM: &str = "model_transform";
    let path = archive.path().display().to_string();
    let of_yaml = match archive.get(nemo2::CONFIG) {
        Some(_) => {
            let document = yaml(archive, nemo2::CONFIG)?;
            check_layers(document.get("config.num_layers"), &path, base)?;
            document.get(TRANSFORM).cloned()
        }
        None => None,
    };
    let scaling = match of_yaml.as_ref().and_then(|fields| Some((fields.get("_target_")?.as_str()?, fields)))
    {
        Some((class, fields)) => {
            config::of_class(class, fields, TRANSFORM, &archive.describe(nemo2::CONFIG))?
        }
        None => {
            let file = archive.describe(IO_JSON);
            let found = match archive.get(IO_JSON) {
                Some(text) => config::of_io_json(text, &file)?,
                None => None,
            };
            let (class, fields) = found.ok_or_else(|| FormatError::BadConfig {
                file: path.clone(),
                reason: format!(
                    "neither `{TRANSFORM}` of `{}` nor `{IO_JSON}` describes a LoRA, on whose `alpha` and `dim` the scale \
                     depends",
                    nemo2::CONFIG
                ),
            })?;
            config::of_class(&class, &fields, &class, &file)?
        }
    };
    let DistCkpt { source, stored, .. } = dist_ckpt::open(archive, nemo2::WEIGHTS)?;
    refuse_unplaced(&stored, &path)?;
    let pairs = pairs(&source, &path, scaling, base)?;
    // Some versions write it into the folder of the weights.
    let metadata = archive.get(METADATA).or_else(|| archive.get(&format!("{}/{METADATA}", nemo2::WEIGHTS)));
    let trained_on = metadata.and_then(|text| {
        let document: serde_json::Value = serde_json::from_slice(text).ok()?;
        Some(document.get("model_ckpt_path")?.as_str()?.to_owned())
    });
    Ok(Adapter { path, format: "NeMo 2", pairs, trained_on })
}

/// An iteration of Megatron-Bridge whose weights are those of adapters alone.
pub(super) fn open_bridge(iteration: &Path, base: &BaseModel) -> Result<Adapter, FormatError> {
    let archive = Arc::new(Archive::open(iteration)?);
    let file = archive.describe(bridge::CONFIG);
    let document = yaml(&archive, bridge::CONFIG)?;
    bridge::check(&archive, &document)?;
    let Some(fields @ Node::Map(_)) = document.get("peft") else {
        return Err(FormatError::BadConfig {
            file,
            reason: "it has no `peft` section, so it is not the configuration of an adapter".to_owned(),
        });
    };
    let class = fields.get("_target_").and_then(Node::as_str).unwrap_or_default();
    let scaling = config::of_class(class, fields, "peft", &file)?;
    let DistCkpt { source, stored, .. } = dist_ckpt::open(&archive, "")?;
    let path = archive.path().display().to_string();
    check_layers(document.get("model.num_layers"), &path, base)?;
    refuse_unplaced(&stored, &path)?;
    let pairs = pairs(&source, &path, scaling, base)?;
    let trained_on =
        document.get("checkpoint.pretrained_checkpoint").and_then(Node::as_str).map(str::to_owned);
    Ok(Adapter { path, format: "Megatron-Bridge", pairs, trained_on })
}

/// An adapter of a model with fewer layers would fit those that it has.
fn check_layers(stated: Option<&Node>, path: &str, base: &BaseModel) -> Result<(), FormatError> {
    let stated = stated.and_then(Node::as_i64).and_then(|layers| u64::try_from(layers).ok());
    match stated.filter(|&layers| layers != base.num_layers) {
        None => Ok(()),
        Some(layers) => Err(FormatError::OtherBase {
            adapter: path.to_owned(),
            tensor: "num_layers".to_owned(),
            found: format!("is {layers}"),
            needed: format!("has {}", base.num_layers),
            base: base.name.clone(),
        }),
    }
}

fn yaml(archive: &Archive, member: &str) -> Result<Node, FormatError> {
    let bad = |reason: String| FormatError::BadConfig { file: archive.describe(member), reason };
    let text = std::str::from_utf8(archive.member(member)?).map_err(|error| bad(error.to_string()))?;
    hydra_config::yaml::parse(text, member).map_err(|error| bad(error.to_string()))
}

/// Tensors of adapters that no reader of weights has a place for.
fn refuse_unplaced(stored: &[StoredTensorInfo], file: &str) -> Result<(), FormatError> {
    let is_adapters = |info: &&StoredTensorInfo| {
        let name = &info.name;
        let is_state = name.starts_with("optimizer.") || name.contains("_extra_state");
        info.canonical.is_none() && !is_state && name.contains("adapter")
    };
    match stored.iter().find(is_adapters) {
        Some(info) => Err(refused_tensor(file, &info.name)),
        None => Ok(()),
    }
}

fn refused_tensor(file: &str, name: &str) -> FormatError {
    let lower = name.to_ascii_lowercase();
    let meaning = MEANINGS.iter().find(|(part, _)| lower.contains(part));
    let meaning = meaning.map_or("no factor of a known linear layer", |(_, meaning)| meaning);
    refused(file, &format!("whose tensor `{name}` is {meaning}"))
}

/// All pairs of factors that a source under canonical names holds, and nothing else.
fn pairs(
    source: &dyn TensorSource,
    file: &str,
    scaling: Scaling,
    base: &BaseModel,
) -> Result<Vec<Pair>, FormatError> {
    let mut found: IndexMap<&str, (Target, Option<Matrix>, Option<Matrix>)> = IndexMap::new();
    for name in source.names() {
        if name.ends_with("_extra_state") {
            continue;
        }
        let (target, factor) = parse(name)
            .filter(|(target, _)| base.is_gated || !matches!(target.rows, Rows::Gate | Rows::Up))
            .ok_or_else(|| refused_tensor(file, name))?;
        let stem =
            name.trim_end_matches(".weight").trim_end_matches(".linear_in").trim_end_matches(".linear_out");
        let pair = found.entry(stem).or_insert((target, None, None));
        let factor = match factor {
            Factor::Down => &mut pair.1,
            Factor::Up => &mut pair.2,
        };
        *factor = Some(matrix(source, file, name)?);
    }
    let pair = |(stem, (target, down, up)): (&str, (Target, Option<Matrix>, Option<Matrix>))| {
        let lacks = |part: &str| {
            FormatError::bad_tensor(stem, format!("`{file}` has one of its factors and no `{part}`"))
        };
        let down = down.ok_or_else(|| lacks("linear_in"))?;
        let up = up.ok_or_else(|| lacks("linear_out"))?;
        let scale = scaling.of_rank(down.rows, file, stem)?;
        Ok(Pair { target, name: stem.to_owned(), down, up, scale, alpha: scaling.alpha })
    };
    found.into_iter().map(pair).collect()
}
