//! Which crate may depend on which: the table of `docs/ARCHITECTURE.md`. Tests may use what they like.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata};

use super::Finding;

/// The edges that are allowed, each crate with the crates below it.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("hydra-config", &[]),
    ("model-spec", &[]),
    ("nemo-format", &["hydra-config", "model-spec"]),
    ("jinja", &[]),
    ("data", &["jinja"]),
    ("torch-ext", &[]),
    ("cpu-kernels", &["torch-ext"]),
    ("cuda-runtime", &["torch-ext"]),
    ("cuda-kernels", &["cuda-runtime", "torch-ext"]),
    ("sampling", &["cuda-kernels", "cuda-runtime", "torch-ext"]),
    (
        "model-core",
        &["cpu-kernels", "cuda-kernels", "cuda-runtime", "model-spec", "nemo-format", "torch-ext"],
    ),
    ("engine", &["cuda-runtime", "model-core", "model-spec", "sampling", "torch-ext"]),
    (
        "aligner-gen",
        &[
            "cuda-runtime",
            "data",
            "engine",
            "hydra-config",
            "model-core",
            "model-spec",
            "nemo-format",
            "sampling",
            "torch-ext",
        ],
    ),
    ("xtask", &["data", "model-spec", "nemo-format"]),
];

/// Crates that must build on a machine without libtorch, with everything below them.
const WITHOUT_LIBTORCH: [&str; 6] = ["hydra-config", "model-spec", "nemo-format", "jinja", "data", "xtask"];
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

pub(super) fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, dependencies) in &graph.dependencies {
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            findings.push(format!("crate `{name}` is not in the table of crates in `docs/ARCHITECTURE.md`"));
            continue;
        };
        for dependency in
            dependencies.iter().filter(|dependency| graph.dependencies.contains_key(*dependency))
        {
            if !allowed.contains(&dependency.as_str()) {
                findings.push(format!("crate `{name}` must not depend on `{dependency}`"));
            }
        }
        if WITHOUT_LIBTORCH.contains(&name.as_str())
            && let Some(path) = graph.path_to_libtorch(name)
        {
            findings.push(format!("crate `{name}` must build without libtorch: {}", path.join(" -> ")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(edges: &[(&str, &[&str])]) -> Vec<Finding> {
        let dependencies = edges
            .iter()
            .map(|(name, below)| (name.to_string(), below.iter().map(ToString::to_string).collect()))
            .collect();
        check(&Graph { dependencies })
    }

    #[test]
    fn the_table_itself_passes() {
        assert!(findings(&ALLOWED).is_empty());
        assert!(findings(&[("data", &["serde", "tokenizers"]), ("engine", &["tch"])]).is_empty());
    }

    #[test]
    fn an_edge_upwards_is_found() {
        let found = findings(&[("sampling", &["model-core"]), ("model-core", &[])]);
        assert_eq!(found, ["crate `sampling` must not depend on `model-core`"]);
    }

    #[test]
    fn an_unknown_crate_is_found() {
        let found = findings(&[("helpers", &[])]);
        assert_eq!(found, ["crate `helpers` is not in the table of crates in `docs/ARCHITECTURE.md`"]);
    }

    #[test]
    fn libtorch_is_found_through_other_crates() {
        let found = findings(&[("xtask", &["data"]), ("data", &["tch"])]);
        assert_eq!(
            found,
            [
                "crate `data` must build without libtorch: data -> tch",
                "crate `xtask` must build without libtorch: xtask -> data -> tch"
            ]
        );
    }
}
