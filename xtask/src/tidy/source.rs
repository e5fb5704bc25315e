//! Rules for Rust files: module docs, sizes, forbidden constructs, where `unsafe` may stand.

use super::code::code_only;
use super::{Finding, SourceFile};

const MAX_FILE_LINES: usize = 800;
const NOTED_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 80;

/// What may not stand in code, with what to do instead.
const FORBIDDEN: [(&str, &str); 6] = [
    ("[allow(", "use `#[expect(.., reason = \"..\")]`"),
    ("[ignore", "a test that does not run protects nothing"),
    ("todo!", "finish it or return an error"),
    ("unimplemented!", "finish it or return an error"),
    ("dbg!", "remove it"),
    ("should_panic", "return an error and test that"),
];

/// The places with `unsafe` code.
const UNSAFE_PLACES: [&str; 4] = [
    "crates/torch-ext/src/",
    "crates/cpu-kernels/src/",
    "crates/cuda-runtime/src/",
    "crates/nemo-format/src/mmap.rs",
];

pub(super) fn check(file: &SourceFile) -> Vec<Finding> {
    if !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let SourceFile { path, text } = file;
    let code = code_only(text);
    let mut findings = Vec::new();
    // The unit tests of `foo.rs` in `foo/tests.rs` are described by `foo.rs`.
    if !path.ends_with("/tests.rs") && !text.trim_start().starts_with("//!") {
        findings.push(format!("{path}:1: the module has no `//!` documentation at its start"));
    }
    let lines = counted_lines(file);
    if lines > MAX_FILE_LINES {
        findings.push(format!("{path}: {lines} lines, at most {MAX_FILE_LINES} are allowed"));
    }
    let unsafe_allowed = UNSAFE_PLACES.iter().any(|place| path.starts_with(place));
    for (line_idx, line) in code.lines().enumerate() {
        let line_number = line_idx + 1;
        for (construct, instead) in FORBIDDEN {
            if line.contains(construct) {
                findings.push(format!("{path}:{line_number}: `{construct}`: {instead}"));
            }
        }
        if !unsafe_allowed && words(line).any(|word| word == "unsafe") {
            findings.push(format!("{path}:{line_number}: `unsafe` outside the crates that wrap libtorch, the GPU and vector instructions"));
        }
    }
    if !is_test_file(path) {
        let product_code = before_tests(&code);
        for function in
            functions(product_code).into_iter().filter(|function| function.lines > MAX_FUNCTION_LINES)
        {
            findings.push(format!(
                "{path}:{}: `{}` has {} lines of code, at most {MAX_FUNCTION_LINES} are allowed",
                function.line_number, function.name, function.lines
            ));
        }
    }
    findings
}

/// A remark about a file that is getting long.
pub(super) fn size_note(file: &SourceFile) -> Option<String> {
    let lines = counted_lines(file);
    let noted = file.path.ends_with(".rs") && lines > NOTED_FILE_LINES && lines <= MAX_FILE_LINES;
    noted.then(|| format!("{}: {lines} lines; look at it again past {NOTED_FILE_LINES}", file.path))
}

/// Lines of a file, tests apart.
fn counted_lines(file: &SourceFile) -> usize {
    if is_test_file(&file.path) { 0 } else { before_tests(&file.text).lines().count() }
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
}

/// The text before the test module at the end of the file.
fn before_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at_bytes| &text[..at_bytes])
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    line_number: usize,
    /// Lines from the name to the closing brace that hold code.
    lines: usize,
}

/// The functions with a body in `code`, which has neither comments nor literals.
fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut at_bytes = 0;
    while let Some(step) = code[at_bytes..].find("fn ") {
        let start = at_bytes + step;
        at_bytes = start + 3;
        let own_word = !code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let name: String =
            code[at_bytes..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !own_word || name.is_empty() {
            continue;
        }
        if let Some(end) = body_end(code, at_bytes) {
            let lines = code[start..end].lines().filter(|line| !line.trim().is_empty()).count();
            found.push(Function { name, line_number: code[..start].matches('\n').count() + 1, lines });
        }
    }
    found
}

/// Where the body that follows a function's name ends, or `None` for a declaration.
fn body_end(code: &str, from_bytes: usize) -> Option<usize> {
    let mut brackets = 0_i64;
    let mut braces = 0_i64;
    for (step, c) in code[from_bytes..].char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some(from_bytes + step + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<Finding> {
        check(&SourceFile { path: path.to_owned(), text: text.to_owned() })
    }

    #[test]
    fn a_clean_file_passes() {
        let text = "//! About.\n\n/// Says \"todo!\" and unsafe.\nfn f() -> &'static str { \"dbg!\" }\n";
        assert!(findings("crates/data/src/a.rs", text).is_empty());
    }

    #[test]
    fn a_file_without_module_docs_is_found() {
        let found = findings("crates/data/src/a.rs", "// About.\nfn f() {}\n");
        assert_eq!(found, ["crates/data/src/a.rs:1: the module has no `//!` documentation at its start"]);
        assert!(findings("crates/data/src/a/tests.rs", "use super::*;\n").is_empty());
        assert!(findings("a.py", "print(1)").is_empty());
    }

    #[test]
    fn forbidden_constructs_are_found_with_their_line() {
        let text = "//! A.\n#[allow(dead_code)]\nfn f() { todo!() }\n#[ignore]\nfn g() { dbg!(1); unimplemented!() }\n";
        let lines: Vec<String> = findings("crates/data/src/a.rs", text)
            .iter()
            .map(|finding| finding.split(':').nth(1).unwrap_or_default().to_owned())
            .collect();
        assert_eq!(lines, ["2", "3", "4", "5", "5"]);
    }

    #[test]
    fn unsafe_has_its_places() {
        let text = "//! A.\nunsafe fn f() {}\n";
        assert_eq!(findings("crates/data/src/a.rs", text).len(), 1);
        assert!(findings("crates/torch-ext/src/ffi.rs", text).is_empty());
        assert_eq!(findings("crates/cuda-kernels/src/lib.rs", text).len(), 1);
        assert!(findings("crates/nemo-format/src/mmap.rs", text).is_empty());
        assert!(findings("crates/data/src/a.rs", "//! A.\n#![deny(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn long_files_are_found_tests_apart() {
        let long = format!("//! A.\n{}", "const A: u8 = 1;\n".repeat(900));
        let found = findings("crates/data/src/a.rs", &long);
        assert_eq!(found, ["crates/data/src/a.rs: 901 lines, at most 800 are allowed"]);
        assert!(findings("crates/data/src/a/tests.rs", &long).is_empty());
        let long_tests =
            format!("//! A.\nfn f() {{}}\n\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// a\n".repeat(900));
        assert!(findings("crates/data/src/a.rs", &long_tests).is_empty());
    }

    #[test]
    fn middling_files_are_only_noted() {
        let file =
            SourceFile { path: "xtask/src/a.rs".into(), text: format!("//! A.\n{}", "\n".repeat(600)) };
        assert!(check(&file).is_empty());
        assert_eq!(size_note(&file).unwrap(), "xtask/src/a.rs: 601 lines; look at it again past 500");
    }

    #[test]
    fn long_functions_are_found_without_their_comments() {
        let body = "    let a = 1;\n    // why\n\n".repeat(79);
        let long = format!("//! A.\nfn f(x: [u8; 2]) -> [u8; 2] {{\n{body}}}\n");
        assert_eq!(
            findings("crates/data/src/a.rs", &long),
            ["crates/data/src/a.rs:2: `f` has 81 lines of code, at most 80 are allowed"]
        );
        let short = long.replacen("    let a = 1;\n", "", 1);
        assert!(findings("crates/data/src/a.rs", &short).is_empty());
    }

    #[test]
    fn declarations_and_pointers_are_no_functions() {
        let code =
            "trait T { fn a(&self) -> u8; fn b() where Self: Sized { } } type F = fn (u8) -> u8; fn c() {}";
        let names: Vec<String> = functions(code).into_iter().map(|function| function.name).collect();
        assert_eq!(names, ["b", "c"]);
    }
}
