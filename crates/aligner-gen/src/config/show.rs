//! What `--cfg` prints.

use hydra_config::{Node, Origin};

use super::cli::{CfgKind, JobArgs};
use super::{CHECKPOINT_PATH, UserConfig, resolve};
use crate::exit::Failure;
use crate::node_json::to_json;

/// The configuration that the arguments ask for, as text. `model_config` opens the checkpoint at a path and gives its
/// configuration.
pub(crate) fn show(
    arguments: &JobArgs,
    kind: CfgKind,
    model_config: impl Fn(&std::path::Path) -> Result<String, Failure>,
) -> Result<String, Failure> {
    let user = UserConfig::read(arguments)?;
    let package = arguments.package.as_deref().filter(|package| *package != "_global_");
    // As Hydra does, without the checkpoint, unless references are to be resolved: those need it.
    let checkpoint = if arguments.resolve { user.checkpoint_path()? } else { None };
    let composer = match &checkpoint {
        Some(path) => user.compose_with(&model_config(path)?)?,
        None => user.compose()?,
    };
    let job = match (arguments.resolve, &checkpoint) {
        (false, _) => composer.node().clone(),
        (true, Some(_)) => resolve(&composer)?.node().clone(),
        (true, None) => resolve(&composer).map_err(|failure| without_checkpoint(&failure))?.node().clone(),
    };
    if arguments.origin {
        if kind != CfgKind::Job {
            return Err(Failure::usage(
                "`--origin` shows the configuration of the job: write `--cfg job --origin`",
            ));
        }
        let entries = composer.entries().into_iter().map(|(key, _, origin)| (key, origin));
        return origins(entries, &job, package);
    }
    let tree = match kind {
        CfgKind::Job => job,
        CfgKind::Hydra => user.hydra(arguments)?,
        CfgKind::All => {
            let mut tree = user.hydra(arguments)?;
            for (key, value) in job.as_map().into_iter().flatten() {
                tree.set(key, value.clone());
            }
            tree
        }
    };
    print(&tree, package)
}

fn without_checkpoint(failure: &Failure) -> Failure {
    Failure::usage(format!(
        "{}; most of `model` comes from the checkpoint: write `{CHECKPOINT_PATH}=PATH`",
        failure.sentence()
    ))
}

/// A line for each value: key, value, and who set it.
fn origins<'a>(
    entries: impl Iterator<Item = (String, Option<&'a Origin>)>,
    node: &Node,
    package: Option<&str>,
) -> Result<String, Failure> {
    let mut text = String::new();
    for (key, origin) in entries {
        let is_asked = package.is_none_or(|package| {
            key.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if let (true, Some(value)) = (is_asked, node.get(&key)) {
            let origin = origin.map_or_else(String::new, |origin| format!("  # {origin}"));
            text.push_str(&format!("{key}: {}{origin}\n", to_json(value)));
        }
    }
    match package {
        Some(package) if text.is_empty() => Err(no_package(package)),
        _ => Ok(text),
    }
}

fn no_package(package: &str) -> Failure {
    Failure::usage(format!("`--package {package}`: the configuration has no such key"))
}

/// The whole tree or the part at `package`, as Hydra prints it.
fn print(node: &Node, package: Option<&str>) -> Result<String, Failure> {
    let Some(package) = package else { return Ok(node.to_yaml()) };
    match node.get(package) {
        None | Some(Node::Null) => Err(no_package(package)),
        Some(part @ (Node::Map(_) | Node::List(_))) => {
            Ok(format!("# @package {package}\n{}", part.to_yaml()))
        }
        Some(Node::Str(text)) => Ok(format!("{text}\n")),
        Some(value) => Ok(value.to_yaml()),
    }
}
