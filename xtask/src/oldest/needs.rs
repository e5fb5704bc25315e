//! What a program needs of its system's libraries, and which of it is too new.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use super::symbols::{Version, readelf};
use crate::workspace::Workspace;

/// What a program needs of its system's libraries that is too new, `libc.so.6: GLIBC_2.34`.
///
/// # Errors
/// When `readelf` cannot read it, or shows no versions at all.
pub(crate) fn too_new(workspace: &Workspace, program: &Path) -> Result<Vec<String>> {
    let needed = needed(&readelf(workspace, "--version-info", program)?);
    ensure!(
        needed.iter().any(|(_, version)| version.starts_with("GLIBC_")),
        "`{}` needs no glibc, which cannot be",
        program.display()
    );
    Ok(needed
        .iter()
        .filter(|(_, version)| is_too_new(version))
        .map(|(file, version)| format!("{file}: {version}"))
        .collect())
}

fn is_too_new(version: &str) -> bool {
    Version::parse(version).is_none_or(|version| version.is_old_enough() != Some(true))
}

/// Files and versions in the output of `readelf --version-info --wide`.
///
/// ```text
///   000000: Version: 1  File: libm.so.6  Cnt: 2
///   0x0010:   Name: GLIBC_2.29  Flags: none  Version: 12
/// ```
fn needed(version_info: &str) -> BTreeSet<(String, String)> {
    let after = |line: &str, what: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != what);
        words.nth(1).map(str::to_owned)
    };
    let mut found = BTreeSet::new();
    let mut file = None;
    for line in version_info.lines() {
        if let Some(name) = after(line, "File:") {
            file = Some(name);
        } else if let (Some(file), Some(version)) = (&file, after(line, "Name:")) {
            found.insert((file.clone(), version));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_within_their_family() {
        for old in ["GLIBC_2.2.5", "GLIBC_2.9", "GLIBC_2.28", "GLIBCXX_3.4", "CXXABI_1.3.11", "GCC_3.0"] {
            assert!(!is_too_new(old), "{old}");
        }
        for new in [
            "GLIBC_2.29",
            "GLIBC_2.34",
            "GLIBC_3.0",
            "GLIBCXX_3.4.25",
            "CXXABI_1.3.12",
            "GCC_12.0.0",
            "GLIBC_PRIVATE",
            "OTHER_1.0",
        ] {
            assert!(is_too_new(new), "{new}");
        }
    }

    #[test]
    fn needed_versions_are_read_with_their_files() {
        let text = "Version needs section '.gnu.version_r' contains 2 entries:
 Addr: 0x0000000000000e90  Offset: 0x000e90  Link: 7 (.dynstr)
  000000: Version: 1  File: libm.so.6  Cnt: 1
  0x0010:   Name: GLIBC_2.29  Flags: none  Version: 12
  0x0020: Version: 1  File: libc.so.6  Cnt: 2
  0x0030:   Name: GLIBC_2.2.5  Flags: none  Version: 3
  0x0040:   Name: GLIBC_2.34  Flags: none  Version: 4
";
        let found: Vec<String> =
            needed(text).iter().map(|(file, version)| format!("{file} {version}")).collect();
        assert_eq!(found, ["libc.so.6 GLIBC_2.2.5", "libc.so.6 GLIBC_2.34", "libm.so.6 GLIBC_2.29"]);
    }
}
