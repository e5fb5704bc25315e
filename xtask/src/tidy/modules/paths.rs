//! What one file of a crate names at the crate's root: the paths that start with `crate::`, or with as many `super::` as
//! lead there. Code for tests is left out, as tests may reach further.

/// What a file says about the modules of its crate.
#[derive(Debug, Default)]
pub(super) struct FilePaths {
    /// Names at the crate's root that the file uses.
    pub(super) used: Vec<RootName>,
    /// Modules that exist for tests only.
    pub(super) test_modules: Vec<String>,
    /// What `use` brings into the root; none elsewhere.
    pub(super) imports: Vec<Import>,
}

/// A name at the crate's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RootName {
    pub(super) name: String,
    pub(super) line_number: usize,
}

/// `use first::..::name` or `use first::..::other as name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) first: String,
    pub(super) name: String,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    text: &'a str,
    line_number: usize,
}

/// Reads `code`, which has neither comments nor literals, of the module that lies `depth` modules below the root.
pub(super) fn read(code: &str, depth: usize) -> FilePaths {
    let tokens = tokens(code);
    let mut paths = FilePaths::default();
    // Whether each open brace is that of an inline module.
    let mut braces = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let rest = &tokens[at..];
        if is(rest, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            let skipped = &rest[..item_tokens(&rest[7..]) + 7];
            paths.test_modules.extend(declared_module(skipped));
            at += skipped.len();
            continue;
        }
        match token.text {
            "{" => braces.push(at >= 2 && tokens[at - 2].text == "mod"),
            "}" => drop(braces.pop()),
            // At the root paths need no `crate`, and what it re-exports is not its own use.
            "use" if depth + inline_modules(&braces) == 0 => {
                let first_import = paths.imports.len();
                let left = imports(&rest[1..], None, &mut paths.imports).len();
                if !matches!(tokens[..at], [.., Token { text: "pub" | ")", .. }]) {
                    let own = paths.imports[first_import..].iter().map(|import| import.first.clone());
                    paths.used.extend(own.map(|name| RootName { name, line_number: token.line_number }));
                }
                at = tokens.len() - left;
                continue;
            }
            "crate" | "super" if !follows_path(&tokens[..at]) => {
                let (supers, after) = leading_supers(rest);
                if token.text == "crate" || supers == depth + inline_modules(&braces) {
                    root_names(&rest[after..], &mut paths.used);
                }
                at += after;
                continue;
            }
            name if depth + inline_modules(&braces) == 0
                && is(&rest[1..], &["::"])
                && !follows_path(&tokens[..at]) =>
            {
                paths.used.push(RootName { name: name.to_owned(), line_number: token.line_number });
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

/// How many of the open braces are those of inline modules.
fn inline_modules(braces: &[bool]) -> usize {
    braces.iter().filter(|is_module| **is_module).count()
}

/// Words, `::`, and every other character by itself.
fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    for (line_idx, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let bytes = if is_word(first) {
                rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            found.push(Token { text: &rest[..bytes], line_number: line_idx + 1 });
            rest = rest[bytes..].trim_start();
        }
    }
    found
}

fn is(tokens: &[Token<'_>], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.text == *text)
}

/// Whether what comes next belongs to a path that has begun, or is the place of a `pub(in ..)`.
fn follows_path(before: &[Token<'_>]) -> bool {
    matches!(before, [.., Token { text: "::", .. }])
        || matches!(before, [.., Token { text: "(", .. }, Token { text: "in", .. }])
}

/// Tokens of the item that `tokens` starts with, which ends at a `;` or at the end of its braces.
fn item_tokens(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (idx, token) in tokens.iter().enumerate() {
        match token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token.text == "}" {
                    return idx + 1;
                }
            }
            ";" if depth == 0 => return idx + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// The module of `mod name;`.
fn declared_module(item: &[Token<'_>]) -> Option<String> {
    match item {
        [.., Token { text: "mod", .. }, name, Token { text: ";", .. }] => Some(name.text.to_owned()),
        _ => None,
    }
}

/// How many `super` a path starts with, and where what follows the first `crate` or all `super` begins.
fn leading_supers(tokens: &[Token<'_>]) -> (usize, usize) {
    if is(tokens, &["crate"]) {
        return (0, 1);
    }
    let mut supers = 1;
    while is(&tokens[2 * supers - 1..], &["::", "super"]) {
        supers += 1;
    }
    (supers, 2 * supers - 1)
}

/// The names behind `crate`: that of `::name`, or all of `::{a::b, c}`.
fn root_names(after: &[Token<'_>], used: &mut Vec<RootName>) {
    let mut push = |token: &Token<'_>| {
        if token.text.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '*') {
            used.push(RootName { name: token.text.to_owned(), line_number: token.line_number });
        }
    };
    match after {
        [Token { text: "::", .. }, Token { text: "{", .. }, group @ ..] => {
            let mut depth = 1_usize;
            let mut starts = true;
            for token in group {
                match token.text {
                    "{" => depth += 1,
                    "}" if depth == 1 => break,
                    "}" => depth -= 1,
                    _ if depth == 1 && starts => push(token),
                    _ => {}
                }
                starts = depth == 1 && token.text == ",";
            }
        }
        [Token { text: "::", .. }, name, ..] => push(name),
        _ => {}
    }
}

/// Reads one tree of a `use` below `prefix`, the first and the last name so far, and returns what follows the tree.
fn imports<'t, 'a>(
    mut tree: &'t [Token<'a>],
    prefix: Option<(&'a str, &'a str)>,
    found: &mut Vec<Import>,
) -> &'t [Token<'a>] {
    let mut names = prefix;
    while let [token, rest @ ..] = tree {
        match token.text {
            "{" => {
                tree = rest;
                loop {
                    tree = imports(tree, names, found);
                    match tree {
                        [Token { text: ",", .. }, rest @ ..] => tree = rest,
                        [Token { text: "}", .. }, rest @ ..] => return rest,
                        _ => return tree,
                    }
                }
            }
            "," | "}" | ";" => break,
            // At the start these lead to the root, where the first name is looked for; in a group `self` is its prefix.
            "::" | "as" | "crate" | "self" => {}
            word => names = Some((names.map_or(word, |(first, _)| first), word)),
        }
        tree = rest;
    }
    if let Some((first, name)) = names {
        found.push(Import { first: first.to_owned(), name: name.to_owned() });
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(code: &str, depth: usize) -> Vec<(String, usize)> {
        read(code, depth).used.into_iter().map(|root| (root.name, root.line_number)).collect()
    }

    fn check(code: &str, depth: usize, expect: &[(&str, usize)]) {
        let expect: Vec<_> = expect.iter().map(|&(name, line)| (name.to_owned(), line)).collect();
        assert_eq!(used(code, depth), expect, "{code}");
    }

    #[test]
    fn paths_from_the_root_are_found() {
        check("use crate::a::b;\nfn f() -> crate::C { crate::d::g() }", 1, &[("a", 1), ("C", 2), ("d", 2)]);
        check("use crate::{\n    a::{b, c},\n    d,\n    E,\n};", 2, &[("a", 2), ("d", 3), ("E", 4)]);
        check("pub(crate) use crate::a; pub(in crate::b) fn f() {} pub(crate) mod c;", 1, &[("a", 1)]);
        check("use crate::*; x.crate_; a::crate_::b", 1, &[("*", 1)]);
    }

    #[test]
    fn supers_are_counted() {
        check("use super::a; use super::super::b;", 1, &[("a", 1)]);
        check("use super::a; use super::super::b; fn f() { super::super::super::c() }", 2, &[("b", 1)]);
        check(
            "use super::{a, b::c}; pub(super) fn f() {} pub(in super::super) fn g() {}",
            1,
            &[("a", 1), ("b", 1)],
        );
        check("mod inline { use super::a; use super::super::b; } use super::c;", 1, &[("b", 1), ("c", 1)]);
    }

    #[test]
    fn code_for_tests_is_left_out() {
        let code = "#[cfg(test)]\nuse crate::a;\n#[cfg(test)] mod faults;\n#[cfg(test)] #[derive(A)] struct T { a: crate::b }\n\
                    use crate::c;\n#[cfg(test)]\nmod tests { use crate::d; fn f() { if x {} crate::e() } }\ncrate::g";
        check(code, 1, &[("c", 5), ("g", 8)]);
        assert_eq!(read(code, 1).test_modules, ["faults"]);
    }

    #[test]
    fn imports_have_their_first_name() {
        let code = "use std::io::{self, Read}; pub use self::a::{B, c::D as E}; use crate::f; pub use g::*;";
        let found: Vec<_> =
            read(code, 0).imports.into_iter().map(|import| (import.first, import.name)).collect();
        let expect = [("std", "io"), ("std", "Read"), ("a", "B"), ("a", "E"), ("f", "f"), ("g", "*")];
        assert_eq!(found, expect.map(|(first, name)| (first.to_owned(), name.to_owned())));
    }

    #[test]
    fn unfinished_code_ends() {
        for code in ["use crate::{a", "use a::{b, {", "#[cfg(test)] mod", "super::", "crate", "use"] {
            read(code, 1);
        }
    }
}
