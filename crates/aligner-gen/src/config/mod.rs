//! From files and arguments to one resolved configuration: which layer wins, and which keys exist.
//!
//! Precedence, lowest first: the checkpoint's `model_config.yaml`, the built-in defaults, what the checkpoint knows
//! better than they do, the user's file, the command line. As in the original software, overrides see the configuration
//! without the checkpoint, which is merged under it afterwards.

pub(crate) mod checks;
pub(crate) mod cli;
pub(crate) mod devices;
pub(crate) mod exp_manager;
mod files;
pub(crate) mod keys;
pub(crate) mod model_type;
pub(crate) mod parallel;
pub(crate) mod plan;
pub(crate) mod range;
pub(crate) mod raw;
pub(crate) mod records;
mod show;

use std::path::PathBuf;

use hydra_config::overrides::{self, Override};
use hydra_config::{Composer, ConfigError, Node, Resolved};

use crate::config::cli::JobArgs;
use crate::env;
use crate::exit::{ExitStatus, Failure};
use files::{BuiltIn, ConfigFolders};
use keys::Status;

pub(crate) use show::show;

const DEFAULTS: &str = include_str!("../../../../configs/gpt_generation.yaml");
const DEFAULTS_NAME: &str = "gpt_generation";
const DEFAULTS_LAYER: &str = "built-in defaults";
/// How messages call the checkpoint's configuration.
pub(crate) const CHECKPOINT_LAYER: &str = "model_config.yaml of the checkpoint";
const TRT_LLM: &str = "trainer.generation.trt_llm";
const TRT_LLM_ALIAS: &str = "model.generation.trt_llm";
const CHECKPOINT_PATH: &str = "pretrained_checkpoint.restore_from_path";
const ADAPTERS: &str = "model.peft.restore_from_path";
const OVERWRITE: &str = "model.overwrite_base_config";

/// The user's part of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct UserConfig {
    folders: ConfigFolders,
    /// The config file that the arguments name, without `.yaml`.
    primary: Option<String>,
    overrides: Vec<Override>,
}

impl UserConfig {
    /// Finds the config file that the arguments name, if they name one, and reads the overrides.
    pub(crate) fn read(arguments: &JobArgs) -> Result<Self, Failure> {
        arguments.refuse_hydra_modes()?;
        let folders = ConfigFolders::new(arguments);
        let primary = folders.primary(arguments)?;
        let mut overrides = parse_overrides(&arguments.overrides)?;
        overrides.extend(arguments.flag_overrides()?);
        Ok(Self { folders, primary, overrides })
    }

    /// Overrides of the built-in defaults, without any file.
    #[cfg(test)]
    pub(crate) fn of(overrides: &[String]) -> Result<Self, Failure> {
        Ok(Self { folders: ConfigFolders::default(), primary: None, overrides: parse_overrides(overrides)? })
    }

    /// The configuration as Hydra composes it: without the checkpoint.
    pub(crate) fn compose(&self) -> Result<Composer, Failure> {
        let (composer, known) = self.compose_all()?;
        check_keys(&composer, &known)?;
        Ok(composer)
    }

    /// The user's configuration over the built-in defaults, and those alone.
    fn compose_all(&self) -> Result<(Composer, Composer), Failure> {
        let mut composer = Composer::new();
        let overrides = match &self.primary {
            None => composer.push_config(&BuiltIn(&self.folders), DEFAULTS_NAME, self.overrides.clone())?,
            Some(primary) => {
                composer.push_config(&BuiltIn(&self.folders), DEFAULTS_NAME, Vec::new())?;
                composer.push_config(&self.folders, primary, self.overrides.clone())?
            }
        };
        let mut known = Composer::new();
        known.push_config(&BuiltIn(&ConfigFolders::default()), DEFAULTS_NAME, Vec::new())?;
        composer.move_key(TRT_LLM_ALIAS, TRT_LLM)?;
        composer.take("hydra");
        overrides
            .iter()
            .try_for_each(|change| composer.apply(change))
            .map_err(|error| without_refused_hint(error, &known))?;
        Ok((composer, known))
    }

    /// The configuration of the job, with the checkpoint's values, from the text of its configuration, below and
    /// between the user's.
    pub(crate) fn compose_with(&self, model_config: &str) -> Result<Composer, Failure> {
        let mut composer = self.compose()?;
        parallel::take_auto(&mut composer);
        let base = hydra_config::yaml::parse(model_config, CHECKPOINT_LAYER)?;
        let without = match composer.take(OVERWRITE) {
            Some(overwrite) => overwritten(&overwrite, &base, "")?,
            None => Vec::new(),
        };
        let without: Vec<String> =
            keys::dropped_from_checkpoints().map(str::to_owned).chain(without).collect();
        let mut checkpoint = Composer::new();
        checkpoint.push_below(CHECKPOINT_LAYER, model_config, "model", &without)?;
        composer.push_below(CHECKPOINT_LAYER, model_config, "model", &without)?;
        for (key, value, origin) in checkpoint.entries() {
            let is_better = keys::find(&key).is_some_and(|row| row.is_checkpoints) && *value != Node::Null;
            let is_default = composer.origin(&key).is_none_or(|origin| origin.layer == DEFAULTS_LAYER);
            if let (true, true, Some(origin)) = (is_better, is_default, origin) {
                composer.set(origin, &key, value.clone());
            }
        }
        Ok(composer)
    }

    /// Where the checkpoint lies, known before the rest can be resolved: most keys depend on what it holds.
    pub(crate) fn checkpoint_path(&self) -> Result<Option<PathBuf>, Failure> {
        let composer = self.compose()?;
        match composer.resolve_at(CHECKPOINT_PATH, &env::for_interpolation)? {
            Some(Node::Str(path)) if path != "???" => Ok(Some(PathBuf::from(path))),
            Some(Node::Null | Node::Str(_)) | None => Ok(None),
            Some(other) => {
                let origin = composer.origin(CHECKPOINT_PATH).map_or_else(String::new, ToString::to_string);
                let found = other.describe();
                Err(Failure::usage(format!("`{CHECKPOINT_PATH}` must be a path, found {found} ({origin})")))
            }
        }
    }

    /// LoRA adapters to add to the checkpoint's weights, in this order. What the checkpoint itself has under the key is of
    /// its training.
    pub(crate) fn adapter_paths(&self) -> Result<Vec<PathBuf>, Failure> {
        let composer = self.compose()?;
        let bad = |found: &Node| {
            let origin = composer.origin(ADAPTERS).map_or_else(String::new, ToString::to_string);
            let found = found.describe();
            Failure::usage(format!(
                "`{ADAPTERS}` must be a path or a list of paths, found {found} ({origin})"
            ))
        };
        let path = |value: &Node| match value.as_str() {
            Some(path) if !path.is_empty() && path != "???" => Ok(PathBuf::from(path)),
            _ => Err(bad(value)),
        };
        match composer.resolve_at(ADAPTERS, &env::for_interpolation)? {
            None | Some(Node::Null) => Ok(Vec::new()),
            Some(Node::List(paths)) => paths.iter().map(path).collect(),
            Some(value) => Ok(vec![path(&value)?]),
        }
    }

    /// What of Hydra's own configuration has a meaning here.
    fn hydra(&self, arguments: &JobArgs) -> Result<Node, Failure> {
        let (of_hydra, of_task): (Vec<_>, Vec<_>) =
            self.overrides.iter().partition(|change| change.is_hydra());
        let list = |changes: Vec<&Override>| -> Node {
            Node::List(changes.into_iter().map(|change| Node::from(change.text.as_str())).collect())
        };
        let mut tree = Node::empty_map();
        tree.set("hydra.run.dir", Node::from("."));
        tree.set("hydra.output_subdir", Node::Null);
        let mut composer = Composer::new();
        composer.push_node("hydra", tree)?;
        for change in &of_hydra {
            let change = Override { kind: overrides::OverrideKind::ForceAdd, ..(*change).clone() };
            composer.apply(&change)?;
        }
        let mut tree = composer.node().clone();
        tree.set("hydra.overrides.hydra", list(of_hydra));
        tree.set("hydra.overrides.task", list(of_task));
        tree.set("hydra.job.name", Node::from(env!("CARGO_PKG_NAME")));
        let name = arguments.config_name.as_deref().unwrap_or(DEFAULTS_NAME);
        tree.set("hydra.job.config_name", Node::from(name));
        Ok(tree)
    }
}

fn parse_overrides(arguments: &[String]) -> Result<Vec<Override>, Failure> {
    let parse = |text: &String| -> Result<Override, Failure> {
        let mut change = overrides::parse(text).map_err(with_fitting_hint)?;
        if let Some(rest) = change.key.strip_prefix(TRT_LLM_ALIAS)
            && (rest.is_empty() || rest.starts_with('.'))
        {
            change.key = format!("{TRT_LLM}{rest}");
        }
        // Of the checkpoint's section, which is not composed yet: there is nothing that they could change.
        if parallel::is_size(&change.key) && change.kind == overrides::OverrideKind::Set {
            change.kind = overrides::OverrideKind::ForceAdd;
        }
        Ok(change)
    };
    arguments.iter().map(parse).collect()
}

/// A value with commas without the form that its key cannot take.
fn with_fitting_hint(error: ConfigError) -> ConfigError {
    let ConfigError::Commas { text, quoted, list } = error else { return error };
    let key = text.trim_start_matches('+').split('=').next().unwrap_or_default();
    let mut defaults = Composer::new();
    let known = defaults.push_config(&BuiltIn(&ConfigFolders::default()), DEFAULTS_NAME, Vec::new());
    let (quoted, list) = match defaults.node().get(key).filter(|_| known.is_ok()) {
        Some(Node::List(_)) => (None, list),
        Some(Node::Str(text)) if !text.contains("${") => (quoted, None),
        Some(Node::Bool(_) | Node::Int(_) | Node::Float(_)) => (None, None),
        _ => (quoted, list),
    };
    ConfigError::Commas { text, quoted, list }
}

/// Resolves interpolations with the environment at hand.
pub(crate) fn resolve(composer: &Composer) -> Result<Resolved, Failure> {
    Ok(composer.resolve(&env::for_interpolation)?)
}

/// The keys of the checkpoint that `overwrite_base_config` marks with true.
fn overwritten(overwrite: &Node, base: &Node, path: &str) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    for (key, mark) in overwrite.as_map().into_iter().flatten() {
        let Some(value) = base.get(key) else { continue };
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (mark, value) {
            (Node::Bool(true), _) => keys.push(path),
            (Node::Bool(false), _) => {}
            (Node::Map(_), Node::Map(_)) => keys.extend(overwritten(mark, value, &path)?),
            (mark, _) => {
                let found = mark.describe();
                return Err(Failure::usage(format!(
                    "`{OVERWRITE}.{path}` must be true or false, found {found}"
                )));
            }
        }
    }
    Ok(keys)
}

/// Whether nothing but this program reads what is at this place, so that a key that it does not know is a slip.
fn is_closed(leaf: &str, known: &Composer) -> bool {
    let section = leaf.split('.').next().unwrap_or_default();
    // A map typed over a value (`trainer.max_time={days: 1}`) has a known key above it.
    let parent_is_leaf = leaf
        .rsplit_once('.')
        .and_then(|(parent, _)| known.node().get(parent))
        .is_some_and(|node| node.as_map().is_none());
    keys::is_in_closed_block(leaf) && !parent_is_leaf
        || !["trainer", "model", "exp_manager", "pretrained_checkpoint"].contains(&section)
}

/// An unknown key without the advice to add it, where it would be refused all the same.
fn without_refused_hint(error: ConfigError, known: &Composer) -> ConfigError {
    match error {
        ConfigError::UnknownKey { key, origin, nearest, instead, .. } if is_closed(&key, known) => {
            ConfigError::UnknownKey { key, origin, nearest, instead, add: None }
        }
        other => other,
    }
}

/// Refuses keys that nothing reads where only this program reads, and mentions them elsewhere.
fn check_keys(composer: &Composer, known: &Composer) -> Result<(), Failure> {
    for (leaf, _, origin) in composer.entries() {
        let Some(origin) = origin else { continue };
        if origin.layer == DEFAULTS_LAYER || known.node().get(&leaf).is_some() {
            continue;
        }
        // A map typed over a value of the defaults is not what its row speaks of.
        let is_over_a_value =
            |path: &str| leaf != path && known.node().get(path).is_some_and(|node| node.as_map().is_none());
        match keys::find(&leaf).filter(|row| !is_over_a_value(row.path)).map(|row| row.status) {
            Some(Status::Read | Status::Neutral | Status::Refused) => continue,
            Some(Status::Ignored | Status::Dropped | Status::Closed) => {
                tracing::debug!("`{leaf}` ({origin}) has no effect");
                continue;
            }
            None => {}
        }
        if is_closed(&leaf, known) {
            let nearest = known.nearest(&leaf);
            let typed = origin.layer.strip_prefix("command line: ").and_then(|text| text.split_once('='));
            let typed = typed.filter(|(key, _)| key.trim_start_matches('+') == leaf);
            let instead =
                nearest.as_ref().zip(typed).map(|(key, (_, value))| format!("{key}={value}").into());
            let origin = origin.to_string();
            return Err(ConfigError::UnknownKey { key: leaf, origin, nearest, instead, add: None }.into());
        }
        tracing::debug!("`{leaf}` ({origin}) has no effect");
    }
    Ok(())
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let is_checkpoint = error.source_layer().is_some_and(|layer| layer.starts_with(CHECKPOINT_LAYER));
        let status = if is_checkpoint { ExitStatus::Checkpoint } else { ExitStatus::Usage };
        Self { status, error: error.into() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::plan::GenerationPlan;
    use crate::config::raw::RawConfig;
    use crate::exit::ExitStatus;

    const GUIDE: [&str; 15] = [
        "trainer.num_nodes=1",
        "trainer.devices=8",
        "model.micro_batch_size=1",
        "model.global_batch_size=32",
        "pretrained_checkpoint.restore_from_path=/path/to/megatron_gpt_sft.nemo",
        "model.data.train_ds.file_path=/path/to/generation_sft_format.jsonl",
        "exp_manager.create_wandb_logger=false",
        "exp_manager.wandb_logger_kwargs.project=null",
        "exp_manager.wandb_logger_kwargs.name=null",
        "exp_manager.explicit_log_dir=/results",
        "++model.sequence_parallel=false",
        "++model.apply_rope_fusion=false",
        "trainer.generation.max_epochs=1",
        "model.generation.num_responses_to_gen=1",
        "trainer.generation.trt_llm.enable=true",
    ];

    pub(crate) fn user(overrides: &[&str]) -> UserConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        UserConfig::of(&overrides).unwrap()
    }

    fn checkpoint() -> &'static str {
        "encoder_seq_length: 256\nseed: 7\ntensor_model_parallel_size: 1\npipeline_model_parallel_size: 1\n\
         data: {chat_prompt_tokens: {turn_start: <t>}}\ntarget: x\n"
    }

    fn message(overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let composed = UserConfig::of(&overrides).and_then(|user| user.compose());
        composed.unwrap_err().sentence()
    }

    #[test]
    fn guide_command_is_accepted() {
        let user = user(&GUIDE);
        let composer = user.compose_with(checkpoint()).unwrap();
        assert_eq!(composer.node().get("model.apply_rope_fusion"), Some(&Node::Bool(false)));
        assert_eq!(user.checkpoint_path().unwrap(), Some(PathBuf::from("/path/to/megatron_gpt_sft.nemo")));
    }

    #[test]
    fn checkpoint_is_below_the_defaults_except_for_what_it_knows_better() {
        let resolved = resolve(&user(&[]).compose_with(checkpoint()).unwrap()).unwrap();
        let get = |key: &str| resolved.node().get(key).cloned();
        assert_eq!(get("model.seed"), Some(Node::Int(1234)));
        assert_eq!(get("model.generation.length_params.max_length"), Some(Node::Int(128)));
        assert_eq!(get("model.data.chat_prompt_tokens.turn_start"), Some(Node::from("<t>")));
        assert_eq!(get("model.data.chat_prompt_tokens.end_of_turn"), Some(Node::from("\n")));
        assert_eq!(get("model.target"), None);
        let user = user(&["model.data.chat_prompt_tokens.turn_start=T", "++model.encoder_seq_length=64"]);
        let resolved = resolve(&user.compose_with(checkpoint()).unwrap()).unwrap();
        assert_eq!(resolved.node().get("model.data.chat_prompt_tokens.turn_start"), Some(&Node::from("T")));
        assert_eq!(resolved.node().get("trainer.generation.trt_llm.max_input_len"), Some(&Node::Int(32)));
    }

    #[test]
    fn trt_llm_has_two_names() {
        for text in ["model.generation.trt_llm.enable=true", "++model.generation.trt_llm.enable=true"] {
            let composer = user(&[text]).compose().unwrap();
            assert_eq!(composer.node().get("trainer.generation.trt_llm.enable"), Some(&Node::Bool(true)));
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        insta::assert_snapshot!(message(&["++model.generation.drop_unfinshed=true"]), @"unknown key `model.generation.drop_unfinshed` (command line: ++model.generation.drop_unfinshed=true), did you mean `model.generation.drop_unfinished`?; in the shell write model.generation.drop_unfinished=true");
        insta::assert_snapshot!(message(&["model.generation.num_response_to_gen=2"]), @"unknown key `model.generation.num_response_to_gen` (command line: model.generation.num_response_to_gen=2), did you mean `model.generation.num_responses_to_gen`?; in the shell write model.generation.num_responses_to_gen=2");
        insta::assert_snapshot!(message(&["++modle.seed=2"]), @"unknown key `modle.seed` (command line: ++modle.seed=2), did you mean `model.seed`?; in the shell write model.seed=2");
        insta::assert_snapshot!(message(&["model.some_training_key=1"]), @"unknown key `model.some_training_key` (command line: model.some_training_key=1); to add a new key, in the shell write ++model.some_training_key=1");
        let commas = |text: &str| UserConfig::of(&[text.to_owned()]).unwrap_err().sentence();
        insta::assert_snapshot!(commas("exp_manager.name=a,b"), @r#"cannot read override `exp_manager.name=a,b`: commas outside of brackets make a sweep, one run for each value; in the shell write 'exp_manager.name="a,b"'"#);
        insta::assert_snapshot!(commas("model.generation.output_fields=index,metadata"), @"cannot read override `model.generation.output_fields=index,metadata`: commas outside of brackets make a sweep, one run for each value; in the shell write 'model.generation.output_fields=[index,metadata]'");
        insta::assert_snapshot!(commas("++model.x=<a>,b"), @r#"cannot read override `++model.x=<a>,b`: commas outside of brackets make a sweep, one run for each value; for one text, in the shell write '++model.x="<a>,b"'; for a list, in the shell write '++model.x=["<a>",b]'"#);
        insta::assert_snapshot!(message(&["something=1"]), @"unknown key `something` (command line: something=1)");
        assert!(user(&["++model.some_training_key=1", "+trainer.gradient_clip_val=1.0"]).compose().is_ok());
        assert!(user(&["exp_manager.checkpoint_callback_params=null", "model.optim=null"]).compose().is_ok());
    }

    #[test]
    fn checkpoint_path_may_interpolate() {
        let interpolated = user(&[
            "++exp_manager.name=/models",
            "pretrained_checkpoint.restore_from_path=${exp_manager.name}/x.nemo",
        ]);
        assert_eq!(interpolated.checkpoint_path().unwrap(), Some(PathBuf::from("/models/x.nemo")));
        assert_eq!(user(&[]).checkpoint_path().unwrap(), None);
    }

    /// What the job is made of, as text; an error counts too.
    fn plan(overrides: &[&str]) -> String {
        let basic = [
            "trainer.devices=1",
            "trainer.num_nodes=1",
            "model.data.train_ds.file_path=d.jsonl",
            "trainer.generation.trt_llm.enable=true",
        ];
        let overrides: Vec<&str> = basic.iter().chain(overrides).copied().collect();
        let plan = || {
            let raw = RawConfig::extract(&resolve(&user(&overrides).compose_with(checkpoint())?)?)?;
            GenerationPlan::new(raw)
        };
        plan().map_or_else(|failure| failure.sentence(), |plan| format!("{plan:?}"))
    }

    #[test]
    fn mistakes_of_the_checkpoint_are_its_own() {
        let user = user(&["trainer.devices=1", "model.data.train_ds.file_path=d.jsonl"]);
        let text = checkpoint().replace("<t>", "5");
        let resolved = resolve(&user.compose_with(&text).unwrap()).unwrap();
        let failure = RawConfig::extract(&resolved).unwrap_err();
        assert_eq!(failure.status, ExitStatus::Checkpoint);
        insta::assert_snapshot!(failure.sentence(), @"`model.data.chat_prompt_tokens.turn_start` must be a string, found the whole number 5 (model_config.yaml of the checkpoint line 5)");
        let text = checkpoint().replace("seed: 7", "seed: 7\nseed: 8");
        let failure = user.compose_with(&text).unwrap_err();
        assert_eq!(failure.status, ExitStatus::Checkpoint);
        insta::assert_snapshot!(failure.sentence(), @"model_config.yaml of the checkpoint:3:1: key `seed` appears twice");
    }

    /// Another value of the same kind.
    fn changed(value: &Node) -> &'static str {
        match value {
            Node::Bool(true) => "false",
            Node::Bool(false) => "true",
            Node::Int(_) => "3",
            Node::Float(_) => "0.5",
            Node::List(_) => "[index]",
            _ => "other",
        }
    }

    #[test]
    fn comments_of_the_defaults_are_true() {
        // Read elsewhere: before the plan is made, or for a message.
        const NOT_IN_THE_PLAN: [&str; 3] =
            [CHECKPOINT_PATH, "trainer.accelerator", "model.overwrite_base_config.data.train_ds.file_path"];
        let lines: Vec<&str> = DEFAULTS.lines().collect();
        let composer = user(&[]).compose().unwrap();
        let says = |key: &str, words: &str| {
            let line = composer.origin(key).and_then(|origin| origin.line).unwrap_or_default();
            lines.get(line.wrapping_sub(1)).is_some_and(|line| line.contains(words))
        };
        // Some keys are about one kind of records or one output field only.
        let settings: [&[&str]; 5] = [
            &[],
            &["trainer.generation.max_steps=2"],
            &["exp_manager.create_wandb_logger=true", "exp_manager.explicit_log_dir=null"],
            &["model.data.chat=false", "model.data.train_ds.prompt_template='{input} {output}'"],
            &["model.generation.output_fields=[metadata]"],
        ];
        let with = |overrides: &[&str], change: &str| plan(&[overrides, &[change]].concat());
        let mut wrong = Vec::new();
        for (key, value, _) in composer.entries() {
            let in_dead_block =
                key.match_indices('.').any(|(at, _)| says(&key[..at], "no effect, the whole block"));
            let is_inert = says(&key, "no effect") || in_dead_block;
            let row = keys::find(&key).unwrap_or_else(|| panic!("`{key}` has no row"));
            // Each of the two has no effect by itself.
            let pair = ["exp_manager.log_local_rank_0_only", "exp_manager.log_global_rank_0_only"];
            let is_ignored = row.status == Status::Ignored || pair.contains(&key.as_str());
            assert_eq!(is_ignored, is_inert, "`{key}`: {:?}", row.status);
            let value = if key.ends_with("trt_llm.enable") { "false" } else { changed(value) };
            let change = format!("++{key}={value}");
            let has_effect = settings.iter().any(|overrides| with(overrides, &change) != plan(overrides));
            if is_inert == has_effect && !NOT_IN_THE_PLAN.contains(&key.as_str()) {
                wrong.push(key);
            }
        }
        assert!(wrong.is_empty(), "the comment says otherwise: {wrong:?}");
    }
}
