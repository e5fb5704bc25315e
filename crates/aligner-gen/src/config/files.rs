//! Where config files lie: the folders that `--config-path` and `--config-dir` name, and the file built into the program.

use std::path::{Path, PathBuf};

use hydra_config::{ConfigError, ConfigFiles};

use super::cli::JobArgs;
use super::{DEFAULTS, DEFAULTS_LAYER, DEFAULTS_NAME};
use crate::exit::Failure;

/// Folders in which Hydra would look, in its order.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigFolders {
    folders: Vec<PathBuf>,
}

impl ConfigFolders {
    pub(super) fn new(arguments: &JobArgs) -> Self {
        let folders =
            [&arguments.config_path, &arguments.config_dir].into_iter().flatten().cloned().collect();
        Self { folders }
    }

    /// The config file of the user, if there is one. The name of the built-in file means that one where no folder has
    /// a file of its name: command lines name the original software's folder, which need not be there any more.
    pub(super) fn primary(&self, arguments: &JobArgs) -> Result<Option<String>, Failure> {
        if arguments.config_name.is_none() && self.folders.is_empty() {
            return Ok(None);
        }
        let name = arguments.config_name.as_deref().unwrap_or(DEFAULTS_NAME);
        let name = name.strip_suffix(".yaml").unwrap_or(name);
        let is_there = |folder: &PathBuf| file(folder, name).is_file();
        if self.folders.iter().any(is_there) || (self.folders.is_empty() && is_there(&PathBuf::from("."))) {
            return Ok(Some(name.to_owned()));
        }
        if name == DEFAULTS_NAME {
            if arguments.config_path.is_some() {
                tracing::info!("{} has no `{name}.yaml`: the built-in configuration is used", self.shown());
            }
            return Ok(None);
        }
        Err(Failure::usage(format!("no config file `{name}.yaml` in {}", self.shown())))
    }

    fn shown(&self) -> String {
        let folders: Vec<_> = self.folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
        if folders.is_empty() { "the current folder".to_owned() } else { folders.join(" or ") }
    }

    fn searched(&self) -> impl Iterator<Item = &Path> {
        let current = self.folders.is_empty().then_some(Path::new("."));
        self.folders.iter().map(PathBuf::as_path).chain(current)
    }
}

fn file(folder: &Path, name: &str) -> PathBuf {
    let name = name.strip_suffix(".yaml").unwrap_or(name);
    folder.join(format!("{name}.yaml"))
}

impl ConfigFiles for ConfigFolders {
    fn read(&self, path: &str) -> Result<Option<(String, String)>, ConfigError> {
        let Some(file) = self.searched().map(|folder| file(folder, path)).find(|file| file.is_file()) else {
            return Ok(None);
        };
        let name = file.display().to_string();
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(Some((name, text))),
            Err(error) => Err(ConfigError::Extract { message: format!("cannot read `{name}`: {error}") }),
        }
    }

    fn has_group(&self, group: &str) -> bool {
        !self.folders.is_empty() && self.folders.iter().any(|folder| folder.join(group).is_dir())
    }

    fn options(&self, group: &str) -> Vec<String> {
        let mut options: Vec<String> = self
            .searched()
            .filter_map(|folder| std::fs::read_dir(folder.join(group)).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned))
            .collect();
        options.sort();
        options.dedup();
        options
    }
}

/// The built-in file, and the groups that the user's folders add to it.
pub(super) struct BuiltIn<'a>(pub(super) &'a ConfigFolders);

impl ConfigFiles for BuiltIn<'_> {
    fn read(&self, path: &str) -> Result<Option<(String, String)>, ConfigError> {
        if path == DEFAULTS_NAME {
            return Ok(Some((DEFAULTS_LAYER.to_owned(), DEFAULTS.to_owned())));
        }
        self.0.read(path)
    }

    fn has_group(&self, group: &str) -> bool {
        self.0.has_group(group)
    }

    fn options(&self, group: &str) -> Vec<String> {
        self.0.options(group)
    }
}
