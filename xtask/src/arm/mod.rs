//! `cargo xtask arm-test`: the CPU kernels compiled for 64-bit Arm, and their tests run by qemu with libtorch for Arm.
//!
//! Results of NEON must be those of AVX2 to the bit, which a digest that the tests print shows on both.

mod tools;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::setup;
use crate::workspace::{Workspace, run as run_command, say, shell_line};

const CRATE: &str = "cpu-kernels";
/// How fast the arithmetic units of an emulated machine are says nothing.
const NOT_EMULATED: &str = "linear_layers_reach_a_third_of_the_peak";
/// The one that prints digests.
const DIGESTS: [&str; 2] = ["--test", "sets"];
/// The arithmetic of NEON and of AVX2.
const SHARED: &str = "fused multiply-add";

/// Whether its tools are on this machine already.
pub(crate) fn is_ready(workspace: &Workspace) -> bool {
    tools::are_there(workspace)
}

/// Compiles and runs them, or says what is missing.
///
/// # Errors
/// When they do not compile, a test fails, or the bits differ.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::report(workspace, None)?;
    let Some(tools) = tools::prepare(workspace)? else { return Ok(()) };
    let started = Instant::now();
    let test = |more: &[&str]| {
        let mut cargo = tools.cargo(workspace);
        // No documentation: its tests would need a rustdoc for Arm, too.
        cargo.args(["test", "-p", CRATE, "--lib", "--tests", "--target", tools::TARGET]).args(more);
        cargo
    };
    run_command(&mut test(&["--no-run"]))?;
    let compiled = started.elapsed();
    let there = digests(&mut test(&["--", "--skip", NOT_EMULATED]))?;
    // `--workspace` for the features that the tests' build has: it is not built twice.
    let mut here = workspace.cargo();
    here.args(["test", "--workspace"]).args(DIGESTS).args(["--", "sets_of"]);
    let num_equal = compare(&digests(&mut here)?, &there)?;
    say(&format!(
        "64-bit Arm: the tests of {CRATE} pass under qemu, {num_equal} digests of results are those of this machine; compiled in {:.0} s, {:.0} s in all",
        compiled.as_secs_f64(),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Digests by arithmetic and type of elements.
type Digests = BTreeMap<String, String>;

/// Runs tests, and reads what they print of their results.
fn digests(command: &mut Command) -> Result<Digests> {
    let line = shell_line(command);
    let output =
        command.stdout(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{line}` failed with {}:\n{stderr}", output.status);
    }
    Ok(stderr.lines().filter_map(digest).collect())
}

/// `fused multiply-add, Float: fff0a04a0801c7d6 (neon)`
fn digest(line: &str) -> Option<(String, String)> {
    let (arithmetic, rest) = line.split_once(": ")?;
    let (digest, _) = rest.split_once(" (")?;
    let is_digest = digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digest && arithmetic.contains(", ")).then(|| (arithmetic.to_owned(), digest.to_owned()))
}

/// How many are in both, and equal.
fn compare(here: &Digests, there: &Digests) -> Result<usize> {
    ensure!(there.keys().any(|key| key.starts_with(SHARED)), "the tests for Arm printed no digest of NEON");
    let mut num_equal = 0;
    for (arithmetic, digest) in there {
        match here.get(arithmetic) {
            Some(own) => {
                ensure!(own == digest, "{arithmetic}: {digest} on Arm, {own} on this machine");
                num_equal += 1;
            }
            None => say(&format!("{arithmetic}: not compared, this machine has no such instructions")),
        }
    }
    Ok(num_equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_among_other_lines() {
        let line = "fused multiply-add, Float: fff0a04a0801c7d6 (neon)";
        let expect = ("fused multiply-add, Float".to_owned(), "fff0a04a0801c7d6".to_owned());
        assert_eq!(digest(line), Some(expect));
        for line in ["     Running tests/sets.rs (target/debug/deps/sets-1)", "warning: a, b: c (d)", ""] {
            assert_eq!(digest(line), None, "{line}");
        }
    }

    #[test]
    fn bits_that_differ_are_named() {
        let all = |digests: &[(&str, &str)]| -> Digests {
            digests.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let fused = "fused multiply-add, Float";
        let there = all(&[(fused, "1"), ("portable, Float", "2")]);
        assert_eq!(compare(&all(&[(fused, "1"), ("portable, Float", "2")]), &there).unwrap(), 2);
        assert_eq!(compare(&all(&[("portable, Float", "2")]), &there).unwrap(), 1);
        let error = compare(&all(&[(fused, "3")]), &there).unwrap_err().to_string();
        assert_eq!(error, "fused multiply-add, Float: 1 on Arm, 3 on this machine");
        assert!(compare(&there, &all(&[("portable, Float", "2")])).is_err());
    }
}
