//! A checkpoint as a whole: its configuration, its tensors, its artifacts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hydra_config::Node;

use crate::adapter::{self, AdaptedSource, Precision};
use crate::archive::{Archive, CONFIG, Packing};
use crate::dist_ckpt::{self, FOLDER};
use crate::fp8::Dequantized;
use crate::iterations::{self, Iteration};
use crate::partial_models::{refuse_adapters, refuse_peft_folder};
use crate::pieced::PiecedSource;
use crate::{
    AdapterSummary, FormatError, SourceNote, StoredTensorInfo, TensorSource, Verified, bridge,
    checkpoint_notes, megatron_lm, model_keys, nemo2, ranks, te_layers, verify,
};

/// Members up to this size enter the fingerprint whole; of larger ones, samples of this size do.
const SAMPLE_BYTES: usize = 64 << 10;
/// Samples taken of a large member.
const NUM_SAMPLES: usize = 64;
const MEGATRON_LEGACY: &str = "megatron_legacy";
const HASH_CHARS: usize = 32;

/// An open checkpoint. Opening reads no weights.
#[derive(Debug)]
pub struct Checkpoint {
    archive: Arc<Archive>,
    config: Node,
    config_text: String,
    layout: Layout,
    tensors: Weights,
    adapters: Vec<AdapterSummary>,
    stored: Vec<StoredTensorInfo>,
    notes: Vec<SourceNote>,
    /// See [`Self::tokenizer_needed`].
    needed: Option<String>,
}

/// The weights, with adapters added or without.
#[derive(Debug)]
enum Weights {
    Stored(Dequantized<PiecedSource>),
    Adapted(AdaptedSource<Dequantized<PiecedSource>>),
}

/// Which of NeMo's ways to store a model this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// A distributed checkpoint.
    Distributed { generation: Generation, backend: dist_ckpt::ShardedBackend },
    /// `model_weights.ckpt` of every rank.
    Ranks { is_legacy: bool, tensor_parallel: u64, pipeline_parallel: u64 },
    /// `model_optim_rng.pt` of every rank.
    Training { is_legacy: bool, tensor_parallel: u64, pipeline_parallel: u64, expert_parallel: u64 },
}

/// What the files were written by. All have the same tensor names here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointKind {
    /// Megatron-Core's distributed checkpoints in a `.nemo`.
    Distributed,
    /// The same in a folder of NeMo 2.
    NeMo2,
    /// The same in a folder of Megatron-Bridge, or in one of Megatron-LM in either layout.
    Bridge,
    /// Megatron-Core's model, a file of each rank.
    Ranks,
    /// NeMo's model from before Megatron-Core.
    Legacy,
}

/// Whose configuration lies beside a distributed checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    One,
    Two,
    Bridge,
    MegatronLm,
}

impl Checkpoint {
    /// Opens a `.nemo` archive, the folder extracted from one, a folder of NeMo 2, or one of Megatron-Bridge or
    /// Megatron-LM: its root or one iteration.
    ///
    /// # Errors
    /// When the file is not a checkpoint, is damaged or incomplete, or is of a kind that is not read.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        match iterations::find(path)? {
            Some(Iteration::Bridge(iteration)) => return Self::open_bridge(&iteration),
            Some(Iteration::MegatronLm(iteration)) => return Self::open_megatron_lm(&iteration),
            None => {}
        }
        refuse_other_models(path)?;
        let archive = Arc::new(Archive::open(path)?);
        if archive.get(CONFIG).is_none() && archive.get(nemo2::CONFIG).is_some() {
            return Self::open_nemo2(archive);
        }
        let mut config_text = text(&archive, CONFIG)?;
        let document = parse_yaml(&archive, CONFIG, &config_text)?;
        let mut config = match document.get("model") {
            Some(model @ Node::Map(_)) => model.clone(),
            _ => document,
        };
        let mut notes = checkpoint_notes::of_files(&archive, CONFIG);
        notes.extend(checkpoint_notes::of_keys(CONFIG, model_keys::unknown(&config)));
        let has_folder =
            archive.names().any(|name| name.strip_prefix(FOLDER).is_some_and(|rest| rest.starts_with('/')));
        match ranks::find(&archive)? {
            Some(grid) => {
                // NeMo looks for the files first (`_load_state_dict_from_disk`).
                if has_folder {
                    notes.push(checkpoint_notes::ranks_and_folder());
                }
                let ranks::RankFiles { source, stored, is_legacy } =
                    ranks::open(&archive, &grid, &config, ranks::Holds::Model)?;
                let (tensor_parallel, pipeline_parallel) = (grid.tensor_parallel, grid.pipeline_parallel);
                let layout = Layout::Ranks { is_legacy, tensor_parallel, pipeline_parallel };
                // The reader has put the rows of `linear_qkv` in order.
                let is_ordered = config.get(MEGATRON_LEGACY).and_then(Node::as_bool) == Some(true);
                if config.get(MEGATRON_LEGACY).is_some() {
                    config.set(MEGATRON_LEGACY, Node::Bool(false));
                }
                if te_layers::settle(&mut config, is_legacy)? || is_ordered {
                    config_text = config.to_yaml();
                }
                Self::of(archive, (config, config_text), layout, (source, stored), notes)
            }
            None if !has_folder => Err(FormatError::NoWeights { path: archive.path().to_owned() }),
            None => {
                let dist_ckpt::DistCkpt { backend, source, stored } = dist_ckpt::open(&archive, FOLDER)?;
                refuse_adapters_of(&archive, &stored)?;
                let layout = Layout::Distributed { generation: Generation::One, backend };
                if te_layers::settle(&mut config, false)? {
                    config_text = config.to_yaml();
                }
                notes.extend(checkpoint_notes::of_backend(&archive, FOLDER, backend));
                Self::of(archive, (config, config_text), layout, (source, stored), notes)
            }
        }
    }

    fn open_nemo2(archive: Arc<Archive>) -> Result<Self, FormatError> {
        let text = text(&archive, nemo2::CONFIG)?;
        let document = parse_yaml(&archive, nemo2::CONFIG, &text)?;
        let config = nemo2::model_config(&archive, &document)?;
        let mut notes = checkpoint_notes::of_files(&archive, nemo2::CONFIG);
        notes.extend(checkpoint_notes::of_keys(nemo2::CONFIG, nemo2::unknown_keys(&document)));
        let dist_ckpt::DistCkpt { backend, source, stored } = dist_ckpt::open(&archive, nemo2::WEIGHTS)?;
        refuse_adapters_of(&archive, &stored)?;
        let layout = Layout::Distributed { generation: Generation::Two, backend };
        notes.extend(checkpoint_notes::of_backend(&archive, nemo2::WEIGHTS, backend));
        let config_text = config.to_yaml();
        Self::of(archive, (config, config_text), layout, (source, stored), notes)
    }

    fn open_bridge(iteration: &Path) -> Result<Self, FormatError> {
        let archive = Arc::new(Archive::open(iteration)?);
        let text = text(&archive, bridge::CONFIG)?;
        let document = parse_yaml(&archive, bridge::CONFIG, &text)?;
        bridge::check(&archive, &document)?;
        let dist_ckpt::DistCkpt { backend, source, stored } = dist_ckpt::open(&archive, "")?;
        refuse_adapters_of(&archive, &stored)?;
        let config = bridge::model_config(&archive, &document)?;
        let mut notes = checkpoint_notes::of_files(&archive, bridge::CONFIG);
        notes.extend(checkpoint_notes::of_keys(bridge::CONFIG, bridge::unknown_keys(&document)));
        let layout = Layout::Distributed { generation: Generation::Bridge, backend };
        let config_text = config.to_yaml();
        Self::of(archive, (config, config_text), layout, (source, stored), notes)
    }

    fn open_megatron_lm(iteration: &Path) -> Result<Self, FormatError> {
        let archive = Arc::new(Archive::open(iteration)?);
        let (args, config, file, layout, tensors, stored, mut notes);
        if megatron_lm::has_rank_files(iteration)? {
            let training = ranks::open_training(&archive)?;
            let ranks::RankFiles { source, stored: found, is_legacy } = training.files;
            let ranks::RankGrid { tensor_parallel, pipeline_parallel, expert_parallel, .. } = training.grid;
            layout = Layout::Training { is_legacy, tensor_parallel, pipeline_parallel, expert_parallel };
            (args, config, file, tensors, stored) =
                (training.args, training.config, training.file, source, found);
            notes = Vec::new();
        } else {
            bridge::check_whole(&archive)?;
            (args, file) = megatron_lm::arguments(&archive)?;
            config = megatron_lm::model_config(&archive, &args, &file, megatron_lm::Model::Core)?;
            let dist_ckpt::DistCkpt { backend, source, stored: found } = dist_ckpt::open(&archive, "")?;
            layout = Layout::Distributed { generation: Generation::MegatronLm, backend };
            (tensors, stored) = (source, found);
            notes = Vec::from_iter(checkpoint_notes::of_backend(&archive, "", backend));
        }
        refuse_adapters_of(&archive, &stored)?;
        notes.extend(checkpoint_notes::of_keys(&file, megatron_lm::unknown_arguments(&args)));
        let needed = config.get("tokenizer").is_none().then(|| megatron_lm::tokenizer_needed(&args));
        let config_text = config.to_yaml();
        let opened = Self::of(archive, (config, config_text), layout, (tensors, stored), notes)?;
        Ok(Self { needed, ..opened })
    }

    /// A checkpoint with its configuration, as a tree and as text, and its weights, with what is noted on all that they hold.
    fn of(
        archive: Arc<Archive>,
        (config, config_text): (Node, String),
        layout: Layout,
        (source, stored): (PiecedSource, Vec<StoredTensorInfo>),
        mut notes: Vec<SourceNote>,
    ) -> Result<Self, FormatError> {
        notes.extend(checkpoint_notes::of_tensors(&stored, &config));
        let tensors = Weights::Stored(Dequantized::of_converted(source)?);
        let adapters = Vec::new();
        Ok(Self { archive, config, config_text, layout, tensors, adapters, needed: None, stored, notes })
    }

    /// What the user has to give where the checkpoint comes without its tokenizer, as a sentence, where that is known.
    pub fn tokenizer_needed(&self) -> Option<&str> {
        self.needed.as_deref()
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// What it is, for display.
    pub fn format(&self) -> String {
        let packing = match self.archive.packing() {
            Packing::Tar => ".nemo (tar)",
            Packing::GzipTar => ".nemo (gzip tar)",
            Packing::Folder => "folder",
        };
        match self.layout {
            Layout::Distributed { generation: Generation::One, backend } => {
                format!("Megatron-Core {packing}, {}", backend.name())
            }
            Layout::Distributed { generation: Generation::Two, backend } => {
                format!("NeMo 2.0 {packing}, {}", backend.name())
            }
            Layout::Distributed { generation: Generation::Bridge, backend } => {
                format!("Megatron-Bridge {packing}, {}", backend.name())
            }
            Layout::Distributed { generation: Generation::MegatronLm, backend } => {
                format!("Megatron-LM {packing}, {}", backend.name())
            }
            Layout::Ranks { is_legacy, tensor_parallel, pipeline_parallel } => {
                let model = if is_legacy { "NeMo legacy" } else { "Megatron-Core" };
                format!(
                    "{model} {packing}, model_weights.ckpt{}",
                    of_ranks(tensor_parallel, pipeline_parallel)
                )
            }
            Layout::Training { is_legacy, tensor_parallel, pipeline_parallel, expert_parallel } => {
                let model = if is_legacy { "Megatron-LM legacy" } else { "Megatron-LM" };
                let experts = match expert_parallel {
                    1 => String::new(),
                    experts => format!(", experts on {experts}"),
                };
                let ranks = of_ranks(tensor_parallel, pipeline_parallel);
                format!("{model} {packing}, {}{ranks}{experts}", megatron_lm::RANK_FILE)
            }
        }
    }

    /// What a rewritten configuration depends on.
    pub(crate) fn kind(&self) -> CheckpointKind {
        match self.layout {
            Layout::Distributed { generation: Generation::One, .. } => CheckpointKind::Distributed,
            Layout::Distributed { generation: Generation::Two, .. } => CheckpointKind::NeMo2,
            Layout::Distributed { generation: Generation::Bridge | Generation::MegatronLm, .. }
            | Layout::Training { is_legacy: false, .. } => CheckpointKind::Bridge,
            Layout::Training { is_legacy: true, .. } => CheckpointKind::Legacy,
            Layout::Ranks { is_legacy: true, .. } => CheckpointKind::Legacy,
            Layout::Ranks { is_legacy: false, .. } => CheckpointKind::Ranks,
        }
    }

    /// The model section of `model_config.yaml`, or what `context/model.yaml` of NeMo 2 means in its keys.
    pub fn model_config(&self) -> &Node {
        &self.config
    }

    /// `model_config.yaml`, unchanged unless its layers mean something else by it; of NeMo 2, the configuration under its keys.
    pub fn model_config_text(&self) -> &str {
        &self.config_text
    }

    /// The weights, under canonical names.
    pub fn tensors(&self) -> &dyn TensorSource {
        match &self.tensors {
            Weights::Stored(source) => source,
            Weights::Adapted(source) => source,
        }
    }

    /// The same checkpoint with LoRA adapters added to its weights, in their order: `W + scale * (B A)` in float32, which is
    /// what [`Self::tensors`] then has of these weights. Nothing is computed before they are read.
    ///
    /// # Errors
    /// When an adapter cannot be read, is more than a LoRA of linear layers, or was trained on a model of other sizes.
    pub fn with_adapters(self, paths: &[PathBuf]) -> Result<Self, FormatError> {
        self.adapted(paths, Precision::Float32)
    }

    /// As [`Self::with_adapters`], with the type in which merged weights are presented.
    pub(crate) fn adapted(self, paths: &[PathBuf], precision: Precision) -> Result<Self, FormatError> {
        if paths.is_empty() {
            return Ok(self);
        }
        let Self { needed, archive, config, config_text, layout, tensors, mut adapters, stored, notes } =
            self;
        let mut source = match tensors {
            Weights::Stored(source) => AdaptedSource::new(source, precision),
            Weights::Adapted(source) => source,
        };
        let name = archive.path().display().to_string();
        adapters.extend(adapter::adapt(&mut source, &config, &name, paths)?);
        let tensors = Weights::Adapted(source);
        Ok(Self { needed, archive, config, config_text, layout, tensors, adapters, stored, notes })
    }

    /// The adapters that are added to the weights, in their order.
    pub fn adapters(&self) -> &[AdapterSummary] {
        &self.adapters
    }

    /// The weights and whatever lies beside them, as the files name them.
    pub fn stored_tensors(&self) -> &[StoredTensorInfo] {
        &self.stored
    }

    /// What the checkpoint has that is not used, or that contradicts itself.
    pub fn notes(&self) -> &[SourceNote] {
        &self.notes
    }

    /// Size of all members.
    pub fn size_bytes(&self) -> u64 {
        self.archive.names().filter_map(|name| self.archive.get(name)).map(|bytes| bytes.len() as u64).sum()
    }

    /// Members beside the configuration and the weights.
    pub fn artifact_names(&self) -> Vec<&str> {
        let is_artifact = |name: &&str| match self.layout {
            Layout::Distributed { generation: Generation::Two, .. } => nemo2::is_artifact(name),
            Layout::Distributed { generation: Generation::Bridge, .. } => bridge::is_artifact(name),
            Layout::Distributed { generation: Generation::MegatronLm, .. } | Layout::Training { .. } => {
                megatron_lm::is_artifact(name)
            }
            _ => !name.contains('/') && *name != CONFIG && !name.ends_with(".ckpt"),
        };
        self.archive.names().filter(is_artifact).collect()
    }

    /// The file that a value of the configuration refers to: `nemo:<member>`, or a path whose base name is that of a
    /// member, with or without the one or two hashes that NeMo puts in front. Paths of the machine that saved the
    /// checkpoint are never followed.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn artifact(&self, reference: &str) -> Result<Vec<u8>, FormatError> {
        let found = self.artifact_member(reference).and_then(|member| self.archive.get(member));
        found.map(<[u8]>::to_vec).ok_or_else(|| FormatError::MissingMember {
            path: self.path().to_owned(),
            member: reference.strip_prefix("nemo:").unwrap_or(reference).to_owned(),
        })
    }

    /// The member that a value of the configuration refers to.
    pub(crate) fn artifact_member(&self, reference: &str) -> Option<&str> {
        let name = reference.strip_prefix("nemo:").unwrap_or(reference);
        let base = name.rsplit('/').next().unwrap_or(name);
        let exact = self.archive.names().find(|member| *member == name || *member == base);
        exact.or_else(|| {
            let mut members = self.artifact_names().into_iter();
            members.find(|member| without_hashes(member).contains(&base))
        })
    }

    /// Reads every byte: compares the checksums of torch's files, and counts values that are not finite. `progress` gets the
    /// bytes done and those there are in all, from several threads.
    ///
    /// # Errors
    /// At the first file that contradicts a checksum or its own structure.
    pub fn verify(&self, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Verified, FormatError> {
        verify::run(&self.archive, self.dequantized().base(), self.tensors(), progress)
    }

    /// How many weights are stored in FP8.
    pub fn num_fp8_weights(&self) -> usize {
        self.dequantized().num_weights()
    }

    fn dequantized(&self) -> &Dequantized<PiecedSource> {
        match &self.tensors {
            Weights::Stored(source) => source,
            Weights::Adapted(source) => source.base(),
        }
    }

    /// A hash that changes when the checkpoint does, without reading all of a large one: the members' names and
    /// sizes, small members whole, samples of large ones. An archive and the folder extracted from it agree.
    pub fn fingerprint(&self) -> String {
        let mut names: Vec<&str> = self.archive.names().collect();
        names.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for name in names {
            let bytes = self.archive.get(name).unwrap_or_default();
            hasher.update(name.as_bytes());
            hasher.update(&[0]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            if bytes.len() <= SAMPLE_BYTES * NUM_SAMPLES {
                hasher.update(bytes);
            } else {
                let step = (bytes.len() - SAMPLE_BYTES) / (NUM_SAMPLES - 1);
                for sample in 0..NUM_SAMPLES {
                    hasher.update(&bytes[sample * step..sample * step + SAMPLE_BYTES]);
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// How many ranks shared a model, for display.
fn of_ranks(tensor_parallel: u64, pipeline_parallel: u64) -> String {
    match (tensor_parallel, pipeline_parallel) {
        (1, 1) => String::new(),
        (tensor, 1) => format!(" of {tensor} tensor-parallel ranks"),
        (tensor, pipeline) => format!(" of {tensor} tensor-parallel by {pipeline} pipeline-parallel ranks"),
    }
}

fn refuse_adapters_of(archive: &Archive, stored: &[StoredTensorInfo]) -> Result<(), FormatError> {
    let names = stored.iter().map(|info| info.name.as_str());
    refuse_adapters(&archive.path().display().to_string(), names)
}

/// Models that must be converted first; recognised before their folder is searched for a checkpoint.
fn refuse_other_models(path: &Path) -> Result<(), FormatError> {
    refuse_peft_folder(path)?;
    let has = |name: &str| path.join(name).is_file();
    let what = if has("config.json") && !has(CONFIG) && !has(nemo2::CONFIG) {
        "a Hugging Face folder"
    } else if path.extension().is_some_and(|extension| extension == "gguf") {
        "a GGUF file"
    } else {
        return Ok(());
    };
    let input = hydra_config::shell_word(&path.display().to_string());
    let command = format!("aligner-gen convert-checkpoint --input {input} --output OUTPUT.nemo");
    Err(FormatError::Unsupported {
        what: format!("`{}`, {what},", path.display()),
        hint: format!("convert it first: `{command}`"),
    })
}

/// A member's name without one and without two hashes in front, as far as it has them.
pub(crate) fn without_hashes(member: &str) -> [&str; 2] {
    let strip = |name| {
        let Some((hash, rest)) = str::split_once(name, '_') else { return name };
        let is_hash = hash.len() == HASH_CHARS && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash { rest } else { name }
    };
    let once = strip(member);
    [once, strip(once)]
}

fn text(archive: &Archive, member: &str) -> Result<String, FormatError> {
    std::str::from_utf8(archive.member(member)?)
        .map(str::to_owned)
        .map_err(|error| FormatError::BadConfig { file: archive.describe(member), reason: error.to_string() })
}

fn parse_yaml(archive: &Archive, member: &str, text: &str) -> Result<Node, FormatError> {
    hydra_config::yaml::parse(text, member)
        .map_err(|error| FormatError::BadConfig { file: archive.describe(member), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_in_front_are_told_from_names() {
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(without_hashes(&format!("{hash}_a.model")), ["a.model", "a.model"]);
        assert_eq!(without_hashes(&format!("{hash}_{hash}_a_b")), [&format!("{hash}_a_b"), "a_b"]);
        assert_eq!(without_hashes("my_tokenizer.model"), ["my_tokenizer.model"; 2]);
        assert_eq!(without_hashes("nohash"), ["nohash"; 2]);
    }
}
