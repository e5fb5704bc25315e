//! No circles between the modules of a crate: what lies directly below the root, a file or a folder, may be built and
//! read in some order, each after those it uses.
//!
//! What the root re-exports counts as its module's. What the root itself defines counts as the root's, which uses what it
//! imports or names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::code::code_only;
use super::{Finding, SourceFile};

mod paths;

/// The crate's root among its modules.
const ROOT: &str = "crate";

/// What each module uses, with the first place where it does.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// A file of a crate: where it is among the crate's modules, and what it names.
struct Module<'a> {
    path: &'a str,
    /// From the root; that of the root is empty.
    place: Vec<&'a str>,
    paths: paths::FilePaths,
}

/// Finds a shortest circle among each set of modules that reach each other.
pub(super) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let mut crates: BTreeMap<&str, Vec<Module<'_>>> = BTreeMap::new();
    for file in files {
        let Some((folder, place)) = place(&file.path) else { continue };
        let paths = paths::read(&code_only(&file.text), place.len());
        crates.entry(folder).or_default().push(Module { path: &file.path, place, paths });
    }
    crates.into_iter().flat_map(|(folder, modules)| circles(folder, &graph(&modules))).collect()
}

/// The folder of a crate's sources, and a file's place among the modules.
fn place(path: &str) -> Option<(&str, Vec<&str>)> {
    let (folder, below) = path.split_once("/src/").filter(|(folder, _)| !folder.starts_with("fuzz"))?;
    let mut place: Vec<&str> = below.strip_suffix(".rs")?.split('/').collect();
    if let ["lib" | "main"] = place[..] {
        place.clear();
    }
    if place.last() == Some(&"mod") {
        place.pop();
    }
    let is_program = place.first() == Some(&"bin");
    let is_test = place.last().is_some_and(|name| *name == "tests" || name.ends_with("_tests"));
    (!is_program && !is_test).then_some((folder, place))
}

fn graph(modules: &[Module<'_>]) -> Graph {
    let names: BTreeSet<&str> = modules.iter().filter_map(|module| module.place.first().copied()).collect();
    let roots = || modules.iter().filter(|module| module.place.is_empty());
    let is_for_tests = |module: &Module<'_>| {
        modules.iter().any(|parent| {
            let below = module.place.strip_prefix(parent.place.as_slice());
            let child = below.and_then(|below| below.first());
            child.is_some_and(|child| parent.paths.test_modules.iter().any(|name| name == child))
        })
    };
    // Where a name at the root comes from; `None` for another crate's.
    let source = |name: &str| {
        if names.contains(name) {
            return Some(name.to_owned());
        }
        let mut imports = roots().flat_map(|root| &root.paths.imports);
        match imports.find(|import| import.name == name) {
            Some(import) => names.contains(import.first.as_str()).then(|| import.first.clone()),
            None => Some(ROOT.to_owned()),
        }
    };
    let mut graph = Graph::new();
    for module in modules.iter().filter(|module| !is_for_tests(module)) {
        let from = module.place.first().copied().unwrap_or(ROOT);
        let used = module.paths.used.iter().filter_map(|used| Some((source(&used.name)?, used)));
        for (to, used) in used.filter(|(to, _)| to != from) {
            let site = format!("{}:{}", module.path, used.line_number);
            graph.entry(from.to_owned()).or_default().entry(to).or_insert(site);
        }
    }
    graph
}

/// One finding for each set of modules that reach each other.
fn circles(folder: &str, graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut reported = BTreeSet::new();
    for start in graph.keys() {
        let Some(circle) = shortest_circle(graph, start) else { continue };
        // A longer circle through a module that has been named says nothing new.
        if circle.iter().any(|name| reported.contains(name)) {
            continue;
        }
        let uses = circle
            .iter()
            .zip(circle.iter().cycle().skip(1))
            .map(|(from, to)| format!("`{from}` uses `{to}` ({})", graph[*from][*to]));
        findings.push(format!("{folder}: modules in a circle: {}", uses.collect::<Vec<_>>().join(", ")));
        reported.extend(circle.iter().copied());
    }
    findings
}

/// The modules of a shortest way from `start` back to it.
fn shortest_circle<'g>(graph: &'g Graph, start: &'g str) -> Option<Vec<&'g str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(name) = queue.pop_front() {
        for to in graph.get(name).into_iter().flat_map(BTreeMap::keys) {
            if to == start {
                let mut circle = vec![name];
                while let Some(before) =
                    circle.last().filter(|last| **last != start).and_then(|last| came_from.get(last))
                {
                    circle.push(before);
                }
                circle.reverse();
                return Some(circle);
            }
            if !came_from.contains_key(to.as_str()) {
                came_from.insert(to, name);
                queue.push_back(to);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
        let file = |&(path, text): &(&str, &str)| SourceFile { path: path.to_owned(), text: text.to_owned() };
        check(&files.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn modules_in_layers_pass() {
        let files = [
            ("crates/a/src/lib.rs", "mod x; mod y; pub use x::X; pub use y::Y; fn f() { y::g() }"),
            ("crates/a/src/x.rs", "use std::io; pub struct X;"),
            ("crates/a/src/y.rs", "use crate::X; use super::x::f; mod z;"),
            ("crates/a/src/y/z.rs", "use super::w; use super::super::x; use crate::y::w;"),
            // The same names in another crate, the other way round.
            ("crates/b/src/x.rs", "use crate::y;"),
        ];
        assert!(findings(&files).is_empty());
    }

    #[test]
    fn a_circle_is_told_with_its_places() {
        let files = [
            ("crates/a/src/main.rs", "mod x; mod y; mod z;"),
            ("crates/a/src/x/mod.rs", "mod deep;"),
            ("crates/a/src/x/deep.rs", "\nuse crate::y::Y;"),
            ("crates/a/src/y.rs", "use super::z;"),
            ("crates/a/src/z.rs", "fn f() {\n    crate::x::f()\n}"),
        ];
        assert_eq!(
            findings(&files),
            ["crates/a: modules in a circle: `x` uses `y` (crates/a/src/x/deep.rs:2), \
              `y` uses `z` (crates/a/src/y.rs:1), `z` uses `x` (crates/a/src/z.rs:2)"]
        );
    }

    #[test]
    fn re_exports_lead_to_their_module() {
        let files = [
            ("crates/a/src/lib.rs", "pub use x::{X, inner::Y as Z}; pub use other::W;"),
            ("crates/a/src/x.rs", "use crate::y;"),
            ("crates/a/src/y.rs", "use crate::Z; use crate::W;"),
        ];
        let found = findings(&files);
        assert_eq!(
            found,
            ["crates/a: modules in a circle: `x` uses `y` (crates/a/src/x.rs:1), \
                            `y` uses `x` (crates/a/src/y.rs:1)"]
        );
        let without = [files[0], files[1], ("crates/a/src/y.rs", "use crate::W;")];
        assert!(findings(&without).is_empty());
    }

    #[test]
    fn the_root_is_a_module_where_it_defines_something() {
        let files = |root| [("crates/a/src/lib.rs", root), ("crates/a/src/x.rs", "use crate::Root;")];
        for root in ["mod x; use x::X; pub struct Root;", "mod x; struct Root; fn f() { x::g() }"] {
            let found = findings(&files(root));
            assert_eq!(
                found,
                ["crates/a: modules in a circle: `crate` uses `x` (crates/a/src/lib.rs:1), \
                                `x` uses `crate` (crates/a/src/x.rs:1)"]
            );
        }
        assert!(findings(&files("mod x; pub use x::X; pub(crate) use x::Y; struct Root;")).is_empty());
    }

    #[test]
    fn tests_may_reach_further() {
        let files = [
            ("crates/a/src/lib.rs", "mod x; mod y; #[cfg(test)] mod kit;"),
            ("crates/a/src/x.rs", "use crate::y; #[cfg(test)] mod faults;"),
            ("crates/a/src/x/faults.rs", "use crate::z;"),
            ("crates/a/src/y.rs", "#[cfg(test)]\nmod tests { use crate::x; }"),
            ("crates/a/src/y/tests.rs", "use crate::x;"),
            ("crates/a/src/kit.rs", "use crate::x;"),
        ];
        assert!(findings(&files).is_empty());
    }
}
