//! From files and arguments to one resolved configuration: which layer wins, and which keys exist.
//!
//! Precedence, lowest first: the checkpoint's `model_config.yaml`, the built-in defaults, what the checkpoint knows
//! better than they do, the user's file, the command line.

use std::path::{Path, PathBuf};

use hydra_config::{Composer, Node, Resolved};

use crate::cli::JobArgs;
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};

const DEFAULTS: &str = include_str!("../../../configs/gpt_generation.yaml");
const DEFAULTS_NAME: &str = "gpt_generation";
const DEFAULTS_LAYER: &str = "built-in defaults";
const CHECKPOINT_LAYER: &str = "checkpoint";
const TRT_LLM: &str = "trainer.generation.trt_llm";
const TRT_LLM_ALIAS: &str = "model.generation.trt_llm";
const CHECKPOINT_PATH: &str = "pretrained_checkpoint.restore_from_path";

/// Of the keys that the built-in defaults have, those for which the checkpoint's value is the better default.
const CHECKPOINT_KNOWS: [&str; 2] = ["data.chat_prompt_tokens", "data.train_ds.prompt_template"];

/// Blocks in which an unknown key is an error however it was written: nothing but this program reads them.
const CLOSED: [&str; 5] =
    ["trainer.generation", "model.generation", "model.data", "exp_manager", "pretrained_checkpoint"];

/// Keys of the original software's schema that it leaves out of its own defaults. They have no effect.
const INERT: [&str; 9] = [
    "exp_manager.wandb_logger_kwargs",
    "exp_manager.create_mlflow_logger",
    "exp_manager.create_dllogger_logger",
    "exp_manager.create_clearml_logger",
    "exp_manager.create_neptune_logger",
    "exp_manager.version",
    "exp_manager.use_datetime_version",
    "trainer.generation.trt_llm.reshard",
    "model.data.train_ds.file_names",
];

/// The user's part of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct UserConfig {
    file: Option<(String, Node)>,
    overrides: Vec<String>,
}

impl UserConfig {
    /// Reads the config file that the arguments name, if they name one, and the overrides.
    pub(crate) fn read(arguments: &JobArgs) -> Result<Self, Failure> {
        let overrides = arguments.overrides.iter().map(|text| rename_alias(text)).collect();
        let Some(path) = find_file(arguments)? else {
            return Ok(Self { file: None, overrides });
        };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path)
            .map_err(|error| anyhow::Error::new(error).context(format!("cannot read `{name}`")))
            .exit_with(ExitStatus::Usage)?;
        let mut node = hydra_config::yaml::parse(&text, &name)?;
        if let Some(block) = node.remove(TRT_LLM_ALIAS) {
            node.set(TRT_LLM, block);
        }
        Ok(Self { file: Some((name, node)), overrides })
    }

    /// The configuration as Hydra composes it: without the checkpoint.
    pub(crate) fn compose(&self) -> Result<Composer, Failure> {
        self.compose_over(None)
    }

    /// The configuration of the job, with the checkpoint's values below and between the user's.
    pub(crate) fn compose_with(&self, model_config: &Node) -> Result<Composer, Failure> {
        self.compose_over(Some(model_config))
    }

    fn compose_over(&self, model_config: Option<&Node>) -> Result<Composer, Failure> {
        let mut composer = Composer::new();
        if let Some(model_config) = model_config {
            composer.push_node(
                CHECKPOINT_LAYER,
                below_model(model_config.clone(), &["target", "nemo_version"]),
            )?;
        }
        composer.push_yaml(DEFAULTS_LAYER, DEFAULTS)?;
        for key in CHECKPOINT_KNOWS {
            match model_config.and_then(|config| config.get(key)) {
                None | Some(Node::Null) => {}
                Some(value) => {
                    let mut tree = Node::empty_map();
                    tree.set(&format!("model.{key}"), value.clone());
                    composer.push_node(CHECKPOINT_LAYER, tree)?;
                }
            }
        }
        let known = composer.node().clone();
        if let Some((name, node)) = &self.file {
            // Through text, so that the file's defaults list is checked as the built-in one is.
            composer.push_yaml(name, &node.to_yaml())?;
        }
        composer.apply_overrides(&self.overrides)?;
        check_keys(&composer, &known)?;
        Ok(composer)
    }

    /// Where the checkpoint lies, known before the rest can be resolved: most keys depend on what it holds.
    pub(crate) fn checkpoint_path(&self) -> Result<Option<PathBuf>, Failure> {
        let composer = self.compose()?;
        let mut independent = Composer::new();
        for leaf in composer.node().leaf_paths() {
            let Some(value) = composer.node().get(&leaf) else { continue };
            if leaf == CHECKPOINT_PATH || value.as_str().is_none_or(|text| !text.contains("${")) {
                let mut tree = Node::empty_map();
                tree.set(&leaf, value.clone());
                independent.push_node("configuration", tree)?;
            }
        }
        let resolved = resolve(&independent)?;
        match resolved.node().get(CHECKPOINT_PATH) {
            Some(Node::Str(path)) if path != "???" => Ok(Some(PathBuf::from(path))),
            Some(Node::Null | Node::Str(_)) | None => Ok(None),
            Some(other) => Err(Failure::usage(format!(
                "`{CHECKPOINT_PATH}` must be a path, found {}",
                other.type_name()
            ))),
        }
    }
}

/// Resolves interpolations with the environment at hand.
pub(crate) fn resolve(composer: &Composer) -> Result<Resolved, Failure> {
    Ok(composer.resolve(&env::for_interpolation)?)
}

/// The text of `--cfg`, of the whole tree or of the part at `package`.
pub(crate) fn print(node: &Node, package: Option<&str>) -> Result<String, Failure> {
    let Some(package) = package else { return Ok(node.to_yaml()) };
    let part = node
        .get(package)
        .ok_or_else(|| Failure::usage(format!("`--package {package}`: the configuration has no such key")))?;
    Ok(format!("# @package {package}\n{}", part.to_yaml()))
}

fn below_model(mut model_config: Node, without: &[&str]) -> Node {
    for key in without {
        model_config.remove(key);
    }
    let mut tree = Node::empty_map();
    tree.set("model", model_config);
    tree
}

fn find_file(arguments: &JobArgs) -> Result<Option<PathBuf>, Failure> {
    if arguments.config_path.is_none() && arguments.config_name.is_none() && arguments.config_dir.is_none() {
        return Ok(None);
    }
    let name = arguments.config_name.as_deref().unwrap_or(DEFAULTS_NAME);
    let stem = name.strip_suffix(".yaml").unwrap_or(name);
    let folders: Vec<&Path> =
        [&arguments.config_path, &arguments.config_dir].into_iter().flatten().map(PathBuf::as_path).collect();
    let folders = if folders.is_empty() { vec![Path::new(".")] } else { folders };
    let found = folders.iter().map(|folder| folder.join(format!("{stem}.yaml"))).find(|path| path.is_file());
    if found.is_none() && (stem != DEFAULTS_NAME || arguments.config_path.is_some()) {
        let looked: Vec<_> = folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
        return Err(Failure::usage(format!("no config file `{stem}.yaml` in {}", looked.join(" or "))));
    }
    Ok(found)
}

/// `model.generation.trt_llm…` as `trainer.generation.trt_llm…`, where the block really lives.
fn rename_alias(text: &str) -> String {
    let key_start = text.find(|c| c != '+' && c != '~').unwrap_or(0);
    let (prefix, rest) = text.split_at(key_start);
    match rest.strip_prefix(TRT_LLM_ALIAS) {
        Some(tail) if tail.starts_with(['.', '=']) => format!("{prefix}{TRT_LLM}{tail}"),
        _ => text.to_owned(),
    }
}

/// Refuses keys that nothing reads where only this program reads, and mentions them elsewhere.
fn check_keys(composer: &Composer, known: &Node) -> Result<(), Failure> {
    let is_below = |key: &str, block: &str| key.strip_prefix(block).is_some_and(|rest| rest.starts_with('.'));
    for leaf in composer.node().leaf_paths() {
        let Some(layer) = composer.origin(&leaf) else { continue };
        let inert = INERT.iter().any(|block| leaf == *block || is_below(&leaf, block));
        if layer == DEFAULTS_LAYER || layer == CHECKPOINT_LAYER || known.get(&leaf).is_some() || inert {
            continue;
        }
        let section = leaf.split('.').next().unwrap_or_default();
        // A map typed over a value (`trainer.max_time={days: 1}`) has a known key above it.
        let parent_is_leaf = leaf
            .rsplit_once('.')
            .and_then(|(parent, _)| known.get(parent))
            .is_some_and(|node| node.as_map().is_none());
        if CLOSED.iter().any(|block| is_below(&leaf, block)) && !parent_is_leaf
            || !["trainer", "model", "exp_manager", "pretrained_checkpoint", "hydra"].contains(&section)
        {
            let hint =
                nearest(&leaf, known).map_or_else(String::new, |key| format!(", did you mean `{key}`?"));
            return Err(Failure::usage(format!("unknown key `{leaf}` ({layer}){hint}")));
        }
        tracing::debug!("`{leaf}` ({layer}) has no effect");
    }
    Ok(())
}

fn nearest(key: &str, known: &Node) -> Option<String> {
    known
        .leaf_paths()
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(key, &candidate), candidate))
        .filter(|(score, _)| *score > 0.6)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
        UserConfig { file: None, overrides: overrides.iter().map(|text| rename_alias(text)).collect() }
    }

    fn checkpoint() -> Node {
        let text = "encoder_seq_length: 256\nseed: 7\ntensor_model_parallel_size: 1\npipeline_model_parallel_size: 1\n\
                    data: {chat_prompt_tokens: {turn_start: <t>}}\ntarget: x\n";
        hydra_config::yaml::parse(text, "checkpoint").unwrap()
    }

    fn message(overrides: &[&str]) -> String {
        user(overrides).compose().unwrap_err().sentence()
    }

    #[test]
    fn guide_command_is_accepted() {
        let user = user(&GUIDE);
        let composer = user.compose_with(&checkpoint()).unwrap();
        assert_eq!(composer.node().get("model.apply_rope_fusion"), Some(&Node::Bool(false)));
        assert_eq!(user.checkpoint_path().unwrap(), Some(PathBuf::from("/path/to/megatron_gpt_sft.nemo")));
    }

    #[test]
    fn checkpoint_is_below_the_defaults_except_for_what_it_knows_better() {
        let resolved = resolve(&user(&[]).compose_with(&checkpoint()).unwrap()).unwrap();
        let get = |key: &str| resolved.node().get(key).cloned();
        assert_eq!(get("model.seed"), Some(Node::Int(1234)));
        assert_eq!(get("model.generation.length_params.max_length"), Some(Node::Int(128)));
        assert_eq!(get("model.data.chat_prompt_tokens.turn_start"), Some(Node::from("<t>")));
        assert_eq!(get("model.data.chat_prompt_tokens.end_of_turn"), Some(Node::from("\n")));
        assert_eq!(get("model.target"), None);
        let user = user(&["model.data.chat_prompt_tokens.turn_start=T", "++model.encoder_seq_length=64"]);
        let resolved = resolve(&user.compose_with(&checkpoint()).unwrap()).unwrap();
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
        insta::assert_snapshot!(message(&["++model.generation.drop_unfinshed=true"]), @"unknown key `model.generation.drop_unfinshed` (command line: ++model.generation.drop_unfinshed=true), did you mean `model.generation.drop_unfinished`?");
        insta::assert_snapshot!(message(&["model.generation.num_response_to_gen=2"]), @"unknown key `model.generation.num_response_to_gen` (command line: model.generation.num_response_to_gen=2), did you mean `model.generation.num_responses_to_gen`?; to add a new key, write `++model.generation.num_response_to_gen=…`");
        insta::assert_snapshot!(message(&["++modle.seed=2"]), @"unknown key `modle.seed` (command line: ++modle.seed=2), did you mean `model.seed`?");
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

    #[test]
    fn parts_are_printed_by_package() {
        let composer = user(&[]).compose().unwrap();
        insta::assert_snapshot!(print(composer.node(), Some("model.generation")).unwrap(), @r"
        # @package model.generation
        num_responses_to_gen: 4
        sampling_params:
          use_greedy: false
          temperature: 1.0
          top_k: 0
          top_p: 1.0
          repetition_penalty: 1.0
          add_BOS: false
          all_probs: false
          compute_logprob: false
          end_strings:
          - <|endoftext|>
          - <extra_id_1>
          - <|eot_id|>
        length_params:
          max_length: ${int_div:${model.encoder_seq_length}, 2}
          min_length: 1
        drop_unfinished: false
        output_fields: []
        ");
        assert!(print(composer.node(), Some("nope")).is_err());
    }
}
