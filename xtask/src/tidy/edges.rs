//! Which crate depends on which: exactly what the table in `docs/ARCHITECTURE.md` says. Tests may use what they like.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata};

use super::{Finding, SourceFile};

const DOCUMENT: &str = "docs/ARCHITECTURE.md";
/// The first line of the table.
const HEADER: &str = "| crate | depends on | libtorch |";
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];

/// What each crate of the workspace depends on, tests apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    dependencies: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(super) fn from_metadata(metadata: &Metadata) -> Self {
        let dependencies = metadata.workspace_packages().into_iter().map(|package| {
            let names = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development);
            (package.name.to_string(), names.map(|dependency| dependency.name.clone()).collect())
        });
        Self { dependencies: dependencies.collect() }
    }

    /// The crates of the workspace that `name` depends on.
    fn edges(&self, name: &str) -> BTreeSet<&str> {
        let all = self.dependencies.get(name).into_iter().flatten();
        all.map(String::as_str).filter(|name| self.dependencies.contains_key(*name)).collect()
    }

    /// The path from `from` to libtorch, if there is one.
    fn path_to_libtorch(&self, from: &str) -> Option<Vec<String>> {
        for name in self.dependencies.get(from)? {
            if LIBTORCH.contains(&name.as_str()) {
                return Some(vec![from.to_owned(), name.clone()]);
            }
            if let Some(mut rest) = self.path_to_libtorch(name) {
                rest.insert(0, from.to_owned());
                return Some(rest);
            }
        }
        None
    }
}

/// A row of the table.
#[derive(Debug)]
struct Row<'a> {
    line_number: usize,
    name: &'a str,
    depends_on: BTreeSet<&'a str>,
    links_libtorch: bool,
}

impl<'a> Row<'a> {
    fn read(line_idx: usize, line: &'a str) -> Option<Self> {
        let [name, depends_on, libtorch] = line.trim_matches('|').split('|').collect::<Vec<_>>()[..] else {
            return None;
        };
        Some(Self {
            line_number: line_idx + 1,
            name: name.trim().trim_matches('`'),
            depends_on: depends_on.split('`').skip(1).step_by(2).collect(),
            links_libtorch: libtorch.trim() == "yes",
        })
    }
}

/// The rows of the table; empty without one.
fn rows(document: &str) -> Vec<Row<'_>> {
    let lines = document.lines().enumerate().skip_while(|(_, line)| *line != HEADER).skip(2);
    let table = lines.take_while(|(_, line)| line.starts_with('|'));
    table.filter_map(|(line_idx, line)| Row::read(line_idx, line)).collect()
}

pub(super) fn check(graph: &Graph, files: &[SourceFile]) -> Vec<Finding> {
    let document = files.iter().find(|file| file.path == DOCUMENT);
    let rows = document.map(|file| rows(&file.text)).unwrap_or_default();
    if rows.is_empty() {
        return vec![format!("{DOCUMENT}: no table of crates, which starts with `{HEADER}`")];
    }
    let mut findings = Vec::new();
    let mut above = BTreeSet::new();
    for row in &rows {
        findings.extend(check_row(graph, row, &above));
        above.insert(row.name);
    }
    let missing = graph.dependencies.keys().filter(|name| !above.contains(name.as_str()));
    findings
        .extend(missing.map(|name| format!("crate `{name}` is not in the table of crates in `{DOCUMENT}`")));
    findings
}

/// Compares a row with the crate's manifest; `above` are the crates of the rows before it.
fn check_row(graph: &Graph, row: &Row<'_>, above: &BTreeSet<&str>) -> Vec<Finding> {
    let Row { line_number, name, depends_on, links_libtorch } = row;
    let at = format!("{DOCUMENT}:{line_number}:");
    if !graph.dependencies.contains_key(*name) {
        return vec![format!("{at} there is no crate `{name}`")];
    }
    let mut findings = Vec::new();
    let edges = graph.edges(name);
    for dependency in edges.difference(depends_on) {
        findings
            .push(format!("crate `{name}` must not depend on `{dependency}` by the table in `{DOCUMENT}`"));
    }
    for dependency in depends_on.difference(&edges) {
        findings.push(format!("{at} `{name}` does not depend on `{dependency}`"));
    }
    for dependency in depends_on.difference(above) {
        findings.push(format!("{at} `{dependency}` is to stand above `{name}`, which depends on it"));
    }
    match (links_libtorch, graph.path_to_libtorch(name)) {
        (false, Some(path)) => {
            findings.push(format!("crate `{name}` must build without libtorch: {}", path.join(" -> ")));
        }
        (true, None) => findings.push(format!("{at} `{name}` builds without libtorch")),
        (false, None) | (true, Some(_)) => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
text
| crate | depends on | libtorch |
| --- | --- | --- |
| `data` | | no |
| `torch-ext` | | yes |
| `engine` | `torch-ext`, `data` | yes |

| `other` | `table` | no |
";

    fn findings(table: &str, edges: &[(&str, &[&str])]) -> Vec<Finding> {
        let dependencies = edges
            .iter()
            .map(|(name, below)| (name.to_string(), below.iter().map(ToString::to_string).collect()))
            .collect();
        let document = SourceFile { path: DOCUMENT.to_owned(), text: table.to_owned() };
        check(&Graph { dependencies }, &[document])
    }

    const EDGES: [(&str, &[&str]); 3] =
        [("data", &["serde"]), ("torch-ext", &["tch"]), ("engine", &["data", "tch", "torch-ext"])];

    #[test]
    fn manifests_that_the_table_describes_pass() {
        assert!(findings(TABLE, &EDGES).is_empty());
    }

    #[test]
    fn table_and_manifests_are_compared_both_ways() {
        let [data, torch_ext, _] = EDGES;
        assert_eq!(
            findings(TABLE, &[data, ("torch-ext", &["tch", "data"]), ("engine", &["torch-ext"])]),
            [
                "crate `torch-ext` must not depend on `data` by the table in `docs/ARCHITECTURE.md`",
                "docs/ARCHITECTURE.md:6: `engine` does not depend on `data`",
            ]
        );
        assert_eq!(
            findings(TABLE, &[data, torch_ext, ("helpers", &[])]),
            [
                "docs/ARCHITECTURE.md:6: there is no crate `engine`",
                "crate `helpers` is not in the table of crates in `docs/ARCHITECTURE.md`",
            ]
        );
        assert_eq!(
            findings("", &EDGES),
            [
                "docs/ARCHITECTURE.md: no table of crates, which starts with `| crate | depends on | libtorch |`"
            ]
        );
    }

    #[test]
    fn a_crate_stands_below_those_it_depends_on() {
        let table = format!("{HEADER}\n| --- | --- | --- |\n| `engine` | `data` | no |\n| `data` | | no |\n");
        assert_eq!(
            findings(&table, &[("data", &[]), ("engine", &["data"])]),
            ["docs/ARCHITECTURE.md:3: `data` is to stand above `engine`, which depends on it"]
        );
    }

    #[test]
    fn libtorch_is_found_through_other_crates() {
        let table = format!("{HEADER}\n| --- | --- | --- |\n| `data` | | yes |\n| `xtask` | `data` | no |\n");
        assert_eq!(
            findings(&table, &[("data", &["tch"]), ("xtask", &["data"])]),
            ["crate `xtask` must build without libtorch: xtask -> data -> tch"]
        );
        assert_eq!(
            findings(&table, &[("data", &[]), ("xtask", &["data"])]),
            ["docs/ARCHITECTURE.md:3: `data` builds without libtorch"]
        );
    }
}
