//! Whether the wheel keeps what its name promises, in the judgement of `auditwheel`, the Python packaging authority's own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::wheels::{self, Machine};
use crate::workspace::{Workspace, probe};

const PINS: &str = "tools/auditwheel.txt";
const FOLDER: &str = ".tools/auditwheel";
/// What torch's wheel brings; everything else must be any system's.
const OF_TORCH: [&str; 4] = ["libtorch_cpu.so", "libc10.so", "libtorch_cuda.so", "libc10_cuda.so"];

/// What `auditwheel show --json` prints, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Report {
    /// The oldest platform that has the versions of all symbols.
    sym_tag: String,
    /// Libraries that are no system's, and where they were found.
    external_libs: BTreeMap<String, Option<String>>,
    unsupported_isa: bool,
}

/// Asks auditwheel, which `python` runs.
///
/// # Errors
/// When it cannot be fetched or run, or finds that the wheel needs more than its name says.
pub(super) fn check(workspace: &Workspace, python: &str, wheel: &Path) -> Result<()> {
    let folder = workspace.path(FOLDER);
    let news = "fetching auditwheel into `.tools/`";
    wheels::keep(workspace, PINS, &folder, Machine::X86, news)?;
    let mut show = workspace.command(python);
    show.args(["-m", "auditwheel", "show", "--json"]).arg(wheel).env("PYTHONPATH", &folder);
    let printed = probe(&mut show).context("auditwheel cannot judge the wheel")?;
    let report =
        serde_json::from_str(&printed).context("auditwheel prints something else than its report")?;
    let name = wheel.file_stem().unwrap_or_default().to_string_lossy();
    judge(&report, name.rsplit('-').next().unwrap_or_default())
}

fn judge(report: &Report, promised: &str) -> Result<()> {
    ensure!(
        report.sym_tag == promised,
        "the wheel's name promises {promised}, auditwheel finds symbols of {}",
        report.sym_tag
    );
    let strange: Vec<&str> = report
        .external_libs
        .keys()
        .map(String::as_str)
        .filter(|library| !OF_TORCH.contains(library))
        .collect();
    ensure!(strange.is_empty(), "the wheel needs libraries that are no system's: {}", strange.join(", "));
    ensure!(!report.unsupported_isa, "auditwheel finds instructions that not every processor has");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: &str) {
        let report = serde_json::from_str(json).unwrap();
        let found = judge(&report, "manylinux_2_28_x86_64")
            .map_or_else(|error| error.to_string(), |()| String::new());
        assert_eq!(found, expect, "{json}");
    }

    #[test]
    fn newer_symbols_and_other_libraries_are_refused() {
        let json = |tag, libraries, isa| {
            format!(
                r#"{{"sym_tag":"{tag}","external_libs":{{{libraries}}},"unsupported_isa":{isa},"version":1}}"#
            )
        };
        let torch = r#""libc10.so":null,"libtorch_cpu.so":"/lib""#;
        check(&json("manylinux_2_28_x86_64", torch, false), "");
        check(
            &json("manylinux_2_34_x86_64", torch, false),
            "the wheel's name promises manylinux_2_28_x86_64, auditwheel finds symbols of manylinux_2_34_x86_64",
        );
        check(
            &json("manylinux_2_28_x86_64", r#""libssl.so.3":null"#, false),
            "the wheel needs libraries that are no system's: libssl.so.3",
        );
        check(
            &json("manylinux_2_28_x86_64", torch, true),
            "auditwheel finds instructions that not every processor has",
        );
    }
}
