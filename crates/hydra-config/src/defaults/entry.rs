//! One entry of a defaults list: which file it names, from where, and where its values go.

use crate::{ConfigError, Node};

/// What is chosen of a group.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Choice {
    Nothing,
    Name(String),
    Names(Vec<String>),
}

impl Choice {
    pub(super) fn from_node(node: &Node) -> Option<Self> {
        match node {
            Node::Null => Some(Self::Nothing),
            Node::Str(name) => Some(Self::Name(name.clone())),
            Node::List(list) => {
                let names = list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
                names.map(Self::Names)
            }
            _ => None,
        }
    }

    fn to_node(&self) -> Node {
        match self {
            Self::Nothing => Node::Null,
            Self::Name(name) => Node::from(name.as_str()),
            Self::Names(names) => Node::List(names.iter().map(|name| Node::from(name.as_str())).collect()),
        }
    }
}

/// The file whose defaults list an entry stands in.
#[derive(Clone, Debug, Default)]
pub(super) struct Site {
    /// Its group.
    pub(super) group: String,
    /// Where its values go, dotted.
    pub(super) package: String,
    /// Its name, for messages.
    pub(super) file: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// The group as written; `None` for a config that is named without one.
    group: Option<String>,
    /// A config's path as written, when there is no group.
    path: String,
    pub(super) choice: Choice,
    package: Option<String>,
    pub(super) is_optional: bool,
    pub(super) is_override: bool,
    /// Added on the command line.
    pub(super) is_added: bool,
}

impl Entry {
    pub(super) fn config(path: &str) -> Self {
        Self {
            group: None,
            path: path.to_owned(),
            choice: Choice::Nothing,
            package: None,
            is_optional: false,
            is_override: false,
            is_added: false,
        }
    }

    pub(super) fn added(group: String, package: Option<String>, choice: Choice) -> Self {
        Self { group: Some(group), package, choice, is_added: true, ..Self::config("") }
    }

    pub(super) fn parse(item: &Node) -> Result<Self, String> {
        let split = |text: &str| match text.split_once('@') {
            // `group@from:to` is an old spelling whose second part has no meaning any more.
            Some((name, package)) => {
                let package = package.split(':').next().unwrap_or(package);
                (name.to_owned(), Some(package.to_owned()))
            }
            None => (text.to_owned(), None),
        };
        match item {
            Node::Str(text) => {
                let (path, package) = split(text);
                Ok(Self { package, ..Self::config(&path) })
            }
            Node::Map(map) => {
                let (Some((key, value)), 1) = (map.first(), map.len()) else {
                    return Err(format!(
                        "an entry of the defaults list names one group, found {} keys",
                        map.len()
                    ));
                };
                let choice = Choice::from_node(value).ok_or_else(|| {
                    format!(
                        "`{key}` in the defaults list takes a name or a list of names, found {}",
                        value.describe()
                    )
                })?;
                let (name, package) = split(key);
                let mut words: Vec<&str> = name.split(' ').collect();
                let group = words.pop().unwrap_or_default().to_owned();
                let keywords: Vec<&str> =
                    words.into_iter().take_while(|word| matches!(*word, "optional" | "override")).collect();
                Ok(Self {
                    group: Some(group),
                    choice,
                    package,
                    is_optional: keywords.contains(&"optional"),
                    is_override: keywords.contains(&"override"),
                    ..Self::config("")
                })
            }
            other => Err(format!("the defaults list takes names and groups, found {}", other.describe())),
        }
    }

    pub(super) fn is_self(&self) -> bool {
        self.group.is_none() && self.path == "_self_"
    }

    /// One of several options, as a config of its own.
    pub(super) fn option(&self, name: &str) -> Self {
        let group = self.group.as_deref().unwrap_or_default();
        Self {
            package: self.package.clone(),
            is_optional: self.is_optional,
            ..Self::config(&format!("{group}/{name}"))
        }
    }

    /// The group as written, without the slash that makes it absolute.
    fn relative_group(&self) -> &str {
        match &self.group {
            Some(group) => group.trim_start_matches('/'),
            None => self.path.trim_start_matches('/').rsplit_once('/').map_or("", |(group, _)| group),
        }
    }

    pub(super) fn group_path(&self, site: &Site) -> String {
        let is_absolute = self.group.as_deref().unwrap_or(&self.path).starts_with('/');
        let relative = self.relative_group();
        if is_absolute || site.group.is_empty() {
            relative.to_owned()
        } else if relative.is_empty() {
            site.group.clone()
        } else {
            format!("{}/{relative}", site.group)
        }
    }

    /// The config file, or none when nothing is chosen.
    pub(super) fn config_path(&self, site: &Site) -> Option<String> {
        let name = match (&self.group, &self.choice) {
            (None, _) => self.path.rsplit('/').next().unwrap_or_default(),
            (Some(_), Choice::Name(name)) => name,
            (Some(_), _) => return None,
        };
        let group = self.group_path(site);
        Some(if group.is_empty() { name.to_owned() } else { format!("{group}/{name}") })
    }

    /// Where the values go: what the entry says, else what the file says of itself, else the group.
    fn final_package(&self, site: &Site, header: Option<&str>) -> String {
        let own_group = self.group_path(site).replace('/', ".");
        let package = match (&self.package, header) {
            (Some(package), _) if package == "_here_" => String::new(),
            (Some(package), _) if package.contains("_group_") => {
                format!("_global_.{}", package.replace("_group_", &own_group))
            }
            (Some(package), _) => package.clone(),
            (None, Some("_group_") | None) => self.relative_group().replace('/', "."),
            (None, Some(header)) if header.starts_with("_global_") => header.to_owned(),
            (None, Some("")) => "_global_".to_owned(),
            (None, Some(header)) => format!("_global_.{header}"),
        };
        let full = match (site.package.as_str(), package.as_str()) {
            ("", package) => package.to_owned(),
            (parent, "") => parent.to_owned(),
            (parent, package) => format!("{parent}.{package}"),
        };
        match full.rfind("_global_") {
            Some(at) => full[at + "_global_".len()..].trim_start_matches('.').to_owned(),
            None => full,
        }
    }

    /// Where the entries of the file's own defaults list stand.
    pub(super) fn inner_site(&self, site: &Site, header: Option<&str>, file: &str) -> Site {
        Site {
            group: self.group_path(site),
            package: self.final_package(site, header),
            file: file.to_owned(),
        }
    }

    /// How the command line names the choice: `group`, or `group@package` where the package is not the group's own.
    pub(super) fn override_key(&self, site: &Site) -> Option<String> {
        self.group.as_ref()?;
        let group = self.group_path(site);
        let package = self.final_package(site, None);
        Some(if package == group.replace('/', ".") {
            group
        } else if package.is_empty() {
            format!("{group}@_global_")
        } else {
            format!("{group}@{package}")
        })
    }

    pub(super) fn has_interpolation(&self) -> bool {
        self.path.contains("${") || matches!(&self.choice, Choice::Name(name) if name.contains("${"))
    }

    pub(super) fn map_texts(
        &mut self,
        resolve: impl Fn(&str) -> Result<String, ConfigError>,
    ) -> Result<(), ConfigError> {
        if self.path.contains("${") {
            self.path = resolve(&self.path)?;
        }
        if let Choice::Name(name) = &mut self.choice
            && name.contains("${")
        {
            *name = resolve(name)?;
        }
        Ok(())
    }

    /// The entry as `${defaults.0}` shows it.
    pub(super) fn to_node(&self) -> Node {
        match &self.group {
            None => Node::from(self.path.as_str()),
            Some(group) => Node::Map([(group.clone(), self.choice.to_node())].into()),
        }
    }
}
