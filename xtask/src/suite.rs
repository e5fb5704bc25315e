//! `cargo xtask test`: set-up, every check, every test, and one line at the end that says how many passed.
//!
//! A check (tidy, rustfmt, clippy, rustdoc) counts as one test in that line, so that it agrees with the exit code.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::counts::Counts;
use crate::workspace::{Workspace, probe, say, shell_line};
use crate::{arithmetic, arm, browser, docs, oldest, programs, setup, templates, tidy};

/// Runs everything that must hold before a change lands.
///
/// # Errors
/// When set-up, a check or a test fails.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::report(workspace, None)?;
    // Packages are tried with the program of the tests, so all that builds it must link it in the same way.
    let workspace = &workspace.with_old_libraries(oldest::prepare(workspace)?);
    let has_cuda = setup::for_cuda(workspace)?;
    let mut counts = Counts::default();
    let mut failures = Vec::new();
    let mut skipped = Vec::new();
    let mut record = |name: &str, outcome: Result<Counts>| match outcome {
        Ok(found) => {
            counts.add(found);
            if found.failed > 0 {
                failures.push(format!("{name}: {} failed", found.failed));
            }
        }
        Err(error) => {
            counts.failed += 1;
            failures.push(format!("{name}: {error:#}"));
        }
    };

    record("tidy", checked(tidy::run(workspace)));
    for check in CHECKS {
        match (check.when, has_cuda) {
            (When::NoCuda, true) | (When::BesideCuda, false) => continue,
            (When::Cuda, false) => {
                skipped.push(format!("{} (your own libtorch has no CUDA headers beside it)", check.name));
                continue;
            }
            _ => {}
        }
        if let Some(component) = check.component
            && probe(workspace.cargo().args([check.args[0], "--version"])).is_none()
        {
            skipped.push(format!("{} (`rustup component add {component}`)", check.name));
            continue;
        }
        say(&format!("== {}", check.name));
        let mut command = workspace.cargo();
        command.args(check.args).env(docs::API_FLAGS.0, docs::API_FLAGS.1);
        record(check.name, checked(crate::workspace::run(&mut command)));
    }
    for (name, command, runner) in test_commands(workspace, has_cuda)? {
        say(&format!("== {name}"));
        record(&name, run_tests(command, runner));
    }

    say("== packages");
    record("packages", checked(try_packages(workspace, has_cuda)));

    say("== arithmetic");
    record("arithmetic", checked(arithmetic::run_small(workspace, None)));

    say("== chat templates");
    record("chat templates", templates::check(workspace));

    if arm::is_ready(workspace) {
        say("== 64-bit Arm");
        record("64-bit Arm", checked(arm::run(workspace)));
    } else {
        skipped.push("64-bit Arm (`cargo xtask arm-test` brings its tools, and runs it)".to_owned());
    }

    match browser::installed(workspace) {
        Some(_) => {
            say("== report in a browser");
            record("report in a browser", checked(browser::run(workspace)));
        }
        None => skipped.push("the report in a browser (`apt-get install chromium`)".to_owned()),
    }

    for check in &skipped {
        say(&format!("skipped, not installed: {check}"));
    }
    for failure in &failures {
        say(&format!("failed: {failure}"));
    }
    writeln!(std::io::stdout(), "{counts}")?;
    if !failures.is_empty() {
        bail!("not everything passed");
    }
    Ok(())
}

/// `cargo xtask dist --check` with the programs of the tests.
fn try_packages(workspace: &Workspace, has_cuda: bool) -> Result<()> {
    let mut built = programs::build_with(workspace, "dev", &["--workspace", "--bin", "xtask"])?;
    let xtask = built.remove("xtask").context("cargo named no executable of `xtask`")?;
    let mut dist = workspace.command(xtask);
    dist.args(["dist", "--profile", "dev", "--check", "--no-tarball"]);
    if !has_cuda {
        dist.arg("--no-cuda");
    }
    crate::workspace::run(&mut dist)
}

fn checked(outcome: Result<()>) -> Result<Counts> {
    outcome.map(|()| Counts { passed: 1, failed: 0 })
}

struct Check {
    name: &'static str,
    /// What rustup calls the tool, unless it is a part of cargo.
    component: Option<&'static str>,
    args: &'static [&'static str],
    when: When,
}

/// On which machines a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Where feature `cuda` can be compiled.
    Cuda,
    /// The same, for what is otherwise in another check.
    BesideCuda,
    /// Where it cannot.
    NoCuda,
}

const CHECKS: [Check; 6] = [
    Check { name: "fmt", component: Some("rustfmt"), args: &["fmt", "--all", "--check"], when: When::Always },
    Check {
        name: "clippy",
        component: Some("clippy"),
        args: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        when: When::NoCuda,
    },
    Check {
        name: "clippy with feature `cuda`",
        component: Some("clippy"),
        args: &["clippy", "--workspace", "--all-targets", "--features", "cuda", "--", "-D", "warnings"],
        when: When::Cuda,
    },
    // Not the tests again: none of them is for builds without the feature alone.
    Check {
        name: "clippy without feature `cuda`",
        component: Some("clippy"),
        args: &["clippy", "--workspace", "--", "-D", "warnings"],
        when: When::BesideCuda,
    },
    Check { name: "documentation of the crates", component: None, args: &docs::API_ARGS, when: When::Always },
    // What only the linker sees: the shim against libtorch's CUDA half. Nothing of it can run without a GPU.
    Check {
        name: "linking with feature `cuda`",
        component: None,
        args: &[
            "build",
            "--workspace",
            "--features",
            "cuda",
            "--bin",
            "aligner-gen",
            "--example",
            "cuda_smoke",
            "--example",
            "gpu_check",
        ],
        when: When::Cuda,
    },
];

/// Which program's report has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Nextest,
    Libtest,
}

fn test_commands(workspace: &Workspace, has_cuda: bool) -> Result<Vec<(String, Command, Runner)>> {
    let mut commands = Vec::new();
    // With them the tests compile every CUDA kernel, which needs no GPU.
    // Not as `cuda-runtime/nvrtc`: crates that need this one for feature `cuda` alone would depend on it, too, and the
    // program of the tests would be another one than that of the packages.
    let features: &[&str] = if has_cuda { &["--features", "nvrtc"] } else { &[] };
    if probe(workspace.cargo().args(["nextest", "--version"])).is_some() {
        let mut tests = workspace.cargo();
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass"]).args(features);
        commands.push(("tests".to_owned(), tests, Runner::Nextest));
        let documented = crates_with_examples(workspace)?;
        if !documented.is_empty() {
            let mut doc_tests = workspace.cargo();
            doc_tests.args(["test", "--doc", "--no-fail-fast"]);
            doc_tests.args(documented.iter().flat_map(|name| ["-p", name.as_str()]));
            commands.push(("doc tests".to_owned(), doc_tests, Runner::Libtest));
        }
    } else {
        let mut tests = workspace.cargo();
        tests.args(["test", "--workspace", "--no-fail-fast"]).args(features);
        commands.push(("tests".to_owned(), tests, Runner::Libtest));
    }
    Ok(commands)
}

/// The libraries whose documentation has code in it. The others have no doc tests, and rustdoc takes half a minute to
/// find that out.
fn crates_with_examples(workspace: &Workspace) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(workspace.path("crates")).context("cannot list `crates`")? {
        let folder = entry.context("cannot list `crates`")?.path();
        let is_library = folder.join("src/lib.rs").is_file();
        if is_library && has_example(&folder.join("src"))? {
            found.extend(folder.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    found.sort();
    Ok(found)
}

fn has_example(folder: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list `{}`", folder.display()))?.path();
        let found = if path.is_dir() {
            has_example(&path)?
        } else {
            let text = std::fs::read_to_string(&path);
            shows_code(&text.with_context(|| format!("cannot read `{}`", path.display()))?)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file's documentation has a block of code, by a fence or by indentation.
fn shows_code(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let is_code = |doc: &str| {
            let body = doc.trim_start();
            body.starts_with("```") || body.starts_with("~~~") || doc.starts_with("     ")
        };
        doc.is_some_and(is_code) || line.contains("doc = include_str!")
    })
}

/// How libtorch's threads wait for each other: asleep. By default they spin, and tests that run side by side take the
/// cores from each other: one of the engine's took 7 s of 2 cores instead of 52 s with this beside other work.
const OMP_WAIT_POLICY: (&str, &str) = ("OMP_WAIT_POLICY", "PASSIVE");

/// Runs a test runner, forwards its output and counts.
fn run_tests(mut command: Command, runner: Runner) -> Result<Counts> {
    let line = shell_line(&command);
    command.env(OMP_WAIT_POLICY.0, OMP_WAIT_POLICY.1);
    match runner {
        Runner::Nextest => command.stderr(Stdio::piped()),
        Runner::Libtest => command.stdout(Stdio::piped()),
    };
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let mut counts = Counts::default();
    if let Some(stderr) = child.stderr.take() {
        hand_on(stderr, std::io::stderr(), runner, &mut counts)?;
    }
    if let Some(stdout) = child.stdout.take() {
        hand_on(stdout, std::io::stdout(), runner, &mut counts)?;
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{line}`"))?;
    judge(status.success(), counts).with_context(|| format!("`{line}` ended with {status}"))
}

/// A runner that fails without naming a failed test did not reach its tests.
fn judge(success: bool, counts: Counts) -> Result<Counts> {
    if !success && counts.failed == 0 {
        bail!("no test failed, so the build or the runner did");
    }
    Ok(counts)
}

fn hand_on(from: impl std::io::Read, mut to: impl Write, runner: Runner, counts: &mut Counts) -> Result<()> {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("cannot read the runner's output")? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        if let Some(found) = summary_counts(&String::from_utf8_lossy(&line), runner) {
            counts.add(found);
        }
        line.clear();
    }
    Ok(())
}

/// The counts in a runner's summary line, or `None` for any other line.
fn summary_counts(line: &str, runner: Runner) -> Option<Counts> {
    let line = line.trim();
    let report = match runner {
        // Summary [   1.204s] 7 tests run: 5 passed (1 slow), 1 failed, 1 timed out, 0 skipped
        Runner::Nextest => line.strip_prefix("Summary [")?.split_once(" run: ")?.1,
        // test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
        Runner::Libtest => line.strip_prefix("test result: ")?.split_once(". ")?.1,
    };
    let mut counts = Counts::default();
    for part in report.split([',', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match what {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, runner: Runner, expect: Option<(u64, u64)>) {
        let expect = expect.map(|(passed, failed)| Counts { passed, failed });
        assert_eq!(summary_counts(line, runner), expect, "{line}");
    }

    #[test]
    fn reads_the_summary_of_nextest() {
        check("     Summary [   0.015s] 3 tests run: 3 passed, 0 skipped", Runner::Nextest, Some((3, 0)));
        check(
            "     Summary [  61.204s] 7 tests run: 4 passed (1 slow), 2 failed, 1 timed out, 0 skipped",
            Runner::Nextest,
            Some((4, 3)),
        );
        check("        PASS [   0.004s] xtask suite::tests::a", Runner::Nextest, None);
    }

    #[test]
    fn reads_the_summary_of_libtest() {
        let ok =
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        check(ok, Runner::Libtest, Some((5, 0)));
        check(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured",
            Runner::Libtest,
            Some((1, 2)),
        );
        check("test result_is_right ... ok", Runner::Libtest, None);
    }

    #[test]
    fn documentation_with_code_is_found() {
        for text in [
            "/// ```\n/// f();\n/// ```",
            "    //! ~~~",
            "///\n///     f();",
            "#![doc = include_str!(\"x.md\")]",
        ] {
            assert!(shows_code(text), "{text}");
        }
        for text in ["/// `f`", "// ```", "let text = \"```\";", "/// * a list\n///   of two lines"] {
            assert!(!shows_code(text), "{text}");
        }
    }

    #[test]
    fn counts_what_passes_through_and_keeps_the_bytes() {
        let text = "a\ntest result: ok. 2 passed; 0 failed;\nb \u{e9}\ntest result: FAILED. 1 passed; 1 failed;\nend";
        let mut copy = Vec::new();
        let mut counts = Counts::default();
        hand_on(text.as_bytes(), &mut copy, Runner::Libtest, &mut counts).unwrap();
        assert_eq!(copy, text.as_bytes());
        assert_eq!(counts, Counts { passed: 3, failed: 1 });
    }

    #[test]
    fn a_runner_that_dies_without_a_report_is_a_failure() {
        assert!(judge(false, Counts { passed: 3, failed: 0 }).is_err());
        assert_eq!(judge(false, Counts { passed: 0, failed: 2 }).unwrap(), Counts { passed: 0, failed: 2 });
        assert_eq!(judge(true, Counts { passed: 3, failed: 0 }).unwrap(), Counts { passed: 3, failed: 0 });
    }
}
