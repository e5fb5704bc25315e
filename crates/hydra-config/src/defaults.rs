//! Hydra's composition of config files: defaults lists, config groups, packages. Which file goes where, in order.
//!
//! Source of the rules: `defaults_list.py` and `default_element.py` of hydra-core 1.3, with `version_base` 1.2. Not
//! here: options of Hydra's own groups, which are ignored, and `optional` entries of a missing group's parents.

mod entry;

use indexmap::IndexMap;

use crate::overrides::{Override, OverrideKind};
use crate::yaml::Document;
use crate::{ConfigError, Node, interpolation, shell_word};
use entry::{Choice, Entry, Site};

/// Where config files come from.
pub trait ConfigFiles {
    /// The name, for messages, and the text of a config file: `db/mysql` without its extension.
    ///
    /// # Errors
    /// When there is such a file and it cannot be read.
    fn read(&self, path: &str) -> Result<Option<(String, String)>, ConfigError>;

    /// Whether there is a folder of that name beside the config files.
    fn has_group(&self, group: &str) -> bool;

    /// The config files in a group, without extensions.
    fn options(&self, group: &str) -> Vec<String>;
}

/// A file, and where in the tree it goes.
pub(crate) struct Placed {
    pub(crate) name: String,
    pub(crate) document: Document,
    pub(crate) package: Vec<String>,
}

/// Files nested deeper than any real defaults list.
const MAX_DEPTH: usize = 32;

/// Chooses the files of the config called `primary`, lowest first, and says which overrides are for values.
pub(crate) fn choose(
    files: &dyn ConfigFiles,
    primary: &str,
    overrides: Vec<Override>,
) -> Result<(Vec<Placed>, Vec<Override>), ConfigError> {
    let mut chooser =
        Chooser { files, choices: IndexMap::new(), deletions: IndexMap::new(), known: IndexMap::new() };
    let (mut appended, mut values) = (Vec::new(), Vec::new());
    for change in overrides {
        let is_value = matches!(change.value, Some(Node::Map(_)));
        if is_value || change.is_hydra() || !files.has_group(&change.key) {
            values.push(change);
        } else {
            appended.extend(chooser.take(change)?);
        }
    }
    let site = Site::default();
    let placed = chooser.expand(&Entry::config(primary), &site, &appended, 0)?;
    chooser.check_used()?;
    Ok((placed, values))
}

/// A choice that was asked for, and by whom.
struct Asked {
    choice: Choice,
    by: String,
    is_used: bool,
}

struct Chooser<'a> {
    files: &'a dyn ConfigFiles,
    /// By override key: `group` or `group@package`.
    choices: IndexMap<String, Asked>,
    deletions: IndexMap<String, Asked>,
    known: IndexMap<String, Node>,
}

fn problem(source_name: &str, message: impl Into<String>) -> ConfigError {
    ConfigError::Defaults { source_name: source_name.to_owned(), message: message.into() }
}

fn twice(source_name: &str, key: &str, known: &Node) -> ConfigError {
    let message =
        format!("`{key}` appears twice, first with {}; write `override {key}: …` in one", known.describe());
    problem(source_name, message)
}

impl Chooser<'_> {
    /// Takes an override of a config group; `+group=option` is one more entry of the primary's list.
    fn take(&mut self, change: Override) -> Result<Option<Entry>, ConfigError> {
        let key = match &change.package {
            Some(package) => format!("{}@{package}", change.key),
            None => change.key.clone(),
        };
        let choice = match &change.value {
            None => Choice::Nothing,
            Some(value) => {
                Choice::from_node(value).filter(|choice| *choice != Choice::Nothing).ok_or_else(|| {
                    problem(
                        &change.text,
                        format!("a config group takes a name or a list of names, found {}", value.describe()),
                    )
                })?
            }
        };
        let asked = Asked { choice, by: change.text.clone(), is_used: false };
        match change.kind {
            OverrideKind::ForceAdd => {
                let one = shell_word(change.text.strip_prefix('+').unwrap_or(&change.text));
                let message = format!("a config group is added with one `+`; in the shell write {one}");
                return Err(problem(&change.text, message));
            }
            OverrideKind::Delete => {
                self.deletions.insert(key, asked);
            }
            OverrideKind::Add => {
                return Ok(Some(Entry::added(change.key, change.package, asked.choice)));
            }
            OverrideKind::Set => {
                self.choices.insert(key, asked);
            }
        }
        Ok(None)
    }

    fn check_used(&self) -> Result<(), ConfigError> {
        if let Some((key, asked)) = self.choices.iter().find(|(_, asked)| !asked.is_used) {
            let added = shell_word(&format!("+{}", asked.by));
            let message = format!("no defaults list has `{key}`; to add it, in the shell write {added}");
            return Err(problem(&asked.by, message));
        }
        match self.deletions.iter().find(|(_, asked)| !asked.is_used) {
            Some((key, asked)) => Err(problem(&asked.by, format!("no defaults list has `{key}`"))),
            None => Ok(()),
        }
    }

    fn is_deleted(&mut self, key: &str, name: &str) -> bool {
        let Some(asked) = self.deletions.get_mut(key) else { return false };
        let is_meant = match &asked.choice {
            Choice::Name(deleted) => deleted == name,
            _ => true,
        };
        asked.is_used |= is_meant;
        is_meant
    }

    /// The files of an entry, its own defaults first where its `_self_` says so.
    fn expand(
        &mut self,
        entry: &Entry,
        site: &Site,
        appended: &[Entry],
        depth: usize,
    ) -> Result<Vec<Placed>, ConfigError> {
        let Some(path) = entry.config_path(site) else { return Ok(Vec::new()) };
        if depth > MAX_DEPTH {
            return Err(problem(&path, format!("defaults lists are nested deeper than {MAX_DEPTH} files")));
        }
        let Some((name, text)) = self.files.read(&path)? else {
            return if entry.is_optional { Ok(Vec::new()) } else { Err(self.not_found(entry, site, &path)) };
        };
        let header = package_header(&text, &name)?;
        let mut document = Document::parse(&text, &name)?;
        let mut entries = defaults_list(&mut document.node, &name)?;
        let here = entry.inner_site(site, header.as_deref(), &name);
        let package = here.package.clone();
        if !entries.is_empty() || !appended.is_empty() {
            let num_self = entries.iter().filter(|entry| entry.is_self()).count();
            if num_self > 1 {
                return Err(problem(&name, "`_self_` appears twice in the defaults list"));
            }
            if num_self == 0 {
                entries.push(Entry::config("_self_"));
            }
            entries.extend(appended.iter().cloned());
            self.register_overrides(&entries, &here, &name)?;
        } else {
            entries.push(Entry::config("_self_"));
        }
        let mut own = Some(Placed { name: name.clone(), document, package: crate::node::split(&package) });
        let mut groups: Vec<Vec<Placed>> = Vec::new();
        let mut deferred = Vec::new();
        for entry in entries.iter().rev() {
            if entry.is_self() {
                groups.push(own.take().into_iter().collect());
            } else if !entry.is_override {
                let entry = self.overridden(entry, &here);
                if entry.has_interpolation() {
                    deferred.push((groups.len(), entry));
                    groups.push(Vec::new());
                } else {
                    groups.push(self.child(&entry, &here, &name, depth)?);
                }
            }
        }
        for (at, entry) in deferred {
            let entry = self.interpolated(entry, &entries, &name)?;
            let files = self.child(&entry, &here, &name, depth)?;
            if let Some(group) = groups.get_mut(at) {
                *group = files;
            }
        }
        Ok(groups.into_iter().rev().flatten().collect())
    }

    fn child(
        &mut self,
        entry: &Entry,
        site: &Site,
        parent: &str,
        depth: usize,
    ) -> Result<Vec<Placed>, ConfigError> {
        // Hydra's own groups have no meaning here.
        if entry.group_path(site).starts_with("hydra") {
            return Ok(Vec::new());
        }
        let Some(key) = entry.override_key(site) else { return self.expand(entry, site, &[], depth + 1) };
        match &entry.choice {
            Choice::Nothing => {
                let known = self.known.insert(key.clone(), Node::Null);
                match known.filter(|known| *known != Node::Null) {
                    Some(known) => Err(twice(parent, &key, &known)),
                    None => Ok(Vec::new()),
                }
            }
            Choice::Name(name) if name == "???" => {
                let options = self.files.options(&entry.group_path(site));
                let first = options.first().map_or("NAME", String::as_str);
                let (choice, options) = (shell_word(&format!("{key}={first}")), options.join("`, `"));
                let message = format!("`{key}` must be one of `{options}`; in the shell write {choice}");
                Err(problem(parent, message))
            }
            Choice::Name(name) => {
                if self.is_deleted(&key, name) {
                    return Ok(Vec::new());
                }
                if let Some(known) = self.known.insert(key.clone(), Node::from(name.as_str())) {
                    return Err(twice(parent, &key, &known));
                }
                self.expand(entry, site, &[], depth + 1)
            }
            Choice::Names(names) => {
                let mut files = Vec::new();
                for name in names {
                    files.extend(self.expand(&entry.option(name), site, &[], depth + 1)?);
                }
                Ok(files)
            }
        }
    }

    /// Takes up the `override` entries of a list, which must stand at its end. An outer one wins.
    fn register_overrides(&mut self, entries: &[Entry], site: &Site, name: &str) -> Result<(), ConfigError> {
        let mut is_after = false;
        for entry in entries.iter().filter(|entry| !entry.is_self()) {
            if is_after && !entry.is_override && !entry.is_added {
                return Err(problem(name, "`override` entries must be at the end of the defaults list"));
            }
            if entry.is_override && !entry.group_path(site).starts_with("hydra") {
                let key = entry.override_key(site).unwrap_or_default();
                let asked = Asked { choice: entry.choice.clone(), by: name.to_owned(), is_used: false };
                self.choices.entry(key).or_insert(asked);
            }
            is_after |= entry.is_override;
        }
        Ok(())
    }

    fn overridden(&mut self, entry: &Entry, site: &Site) -> Entry {
        let mut entry = entry.clone();
        if let Some(key) = entry.override_key(site)
            && let Some(asked) = self.choices.get_mut(&key)
        {
            asked.is_used = true;
            entry.choice = asked.choice.clone();
        }
        entry
    }

    /// An entry whose option is made from other choices.
    fn interpolated(&self, mut entry: Entry, entries: &[Entry], name: &str) -> Result<Entry, ConfigError> {
        let mut tree: IndexMap<String, Node> = self.known.clone();
        let list = entries.iter().filter(|entry| !entry.is_self()).map(Entry::to_node).collect();
        tree.insert("defaults".to_owned(), Node::List(list));
        entry.map_texts(|text| {
            let mut tree = tree.clone();
            tree.insert("_option_".to_owned(), Node::from(text));
            let resolved = interpolation::resolve_at(&Node::Map(tree), &["_option_".to_owned()], &|_| None);
            match resolved {
                Ok(Some(Node::Str(text))) => Ok(text),
                Ok(_) => Err(problem(name, format!("`{text}` in the defaults list is no name"))),
                Err(error) => Err(problem(name, format!("`{text}` in the defaults list: {error}"))),
            }
        })?;
        Ok(entry)
    }

    fn not_found(&self, entry: &Entry, site: &Site, path: &str) -> ConfigError {
        let options = self.files.options(&entry.group_path(site));
        let message = if options.is_empty() {
            format!("there is no config file `{path}.yaml`")
        } else {
            format!("there is no config file `{path}.yaml`; in its folder are `{}`", options.join("`, `"))
        };
        problem(&site.file, message)
    }
}

/// The package that the comments at the very top of a file give it: `# @package model`.
fn package_header(text: &str, name: &str) -> Result<Option<String>, ConfigError> {
    let mut package = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let comment = line.trim_start_matches('#').trim();
        if !line.starts_with('#') || !comment.starts_with('@') {
            break;
        }
        match comment.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().as_slice() {
            ["@package", value] => package = Some((*value).to_owned()),
            [_, _] => {}
            _ => return Err(problem(name, format!("`{line}` must be `# @package NAME`"))),
        }
    }
    Ok(package)
}

fn defaults_list(node: &mut Node, name: &str) -> Result<Vec<Entry>, ConfigError> {
    match node.remove_at(&["defaults".to_owned()]) {
        None => Ok(Vec::new()),
        Some(Node::List(list)) => {
            list.iter().map(|item| Entry::parse(item).map_err(|message| problem(name, message))).collect()
        }
        Some(other) => Err(problem(name, format!("`defaults` must be a list, found {}", other.describe()))),
    }
}

#[cfg(test)]
mod tests;
