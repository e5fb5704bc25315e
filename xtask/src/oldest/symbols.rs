//! The symbols of a library with their versions, which of them are old enough, and a library that has these alone.
//!
//! `readelf` shows them, which comes with every C++ compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, probe};

/// The newest version of each family of symbols: what `manylinux_2_28` promises, which is what `auditwheel` checks by.
const NEWEST: [(&str, &[u32]); 4] =
    [("GLIBC", &[2, 28]), ("GLIBCXX", &[3, 4, 24]), ("CXXABI", &[1, 3, 11]), ("GCC", &[7, 0, 0])];

/// A version of a symbol, `GLIBC_2.2.5`: the family, then its numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    family: String,
    numbers: Vec<u32>,
}

impl Version {
    /// `None` where it is not numbers, as for what a library keeps to itself (`GLIBC_PRIVATE`).
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (family, numbers) = text.split_once('_')?;
        let numbers = numbers.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { family: family.to_owned(), numbers })
    }

    /// `None` for a family that no limit is known of.
    pub(super) fn is_old_enough(&self) -> Option<bool> {
        let (_, newest) = NEWEST.iter().find(|(family, _)| *family == self.family)?;
        Some(self.numbers.as_slice() <= *newest)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.numbers.iter().map(u32::to_string).collect();
        write!(formatter, "{}_{}", self.family, numbers.join("."))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Function,
    Object,
    ThreadLocal,
}

/// A symbol that a library has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    name: String,
    version: Version,
    kind: Kind,
    /// Section and address: symbols with the same ones are names of one thing.
    place: (u32, u64),
    size_bytes: u64,
}

/// The symbols of a library that are old enough.
///
/// # Errors
/// When `readelf` is missing or shows none.
pub(super) fn read(workspace: &Workspace, library: &Path) -> Result<Vec<Symbol>> {
    let table = readelf(workspace, "--dyn-syms", library)?;
    let symbols: Vec<Symbol> = table.lines().filter_map(symbol).collect();
    ensure!(!symbols.is_empty(), "`{}` has no symbols with versions that are known", library.display());
    Ok(symbols)
}

pub(super) fn readelf(workspace: &Workspace, what: &str, file: &Path) -> Result<String> {
    let mut command = workspace.command("readelf");
    probe(command.args([what, "--wide"]).arg(file).env("LC_ALL", "C")).with_context(|| {
        format!(
            "`readelf {what}` cannot read `{}`; it comes with the C++ compiler's binutils",
            file.display()
        )
    })
}

/// A line of `readelf --dyn-syms --wide`, if it is a symbol that the library has and that is old enough.
///
/// ```text
///    Num:    Value          Size Type    Bind   Vis      Ndx Name
///    121: 00000000000e3a40   123 FUNC    WEAK   DEFAULT   15 stat@@GLIBC_2.33
/// ```
fn symbol(line: &str) -> Option<Symbol> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, value, size, kind, _, _, section, name, ..] = words[..] else { return None };
    let kind = match kind {
        "FUNC" | "IFUNC" => Kind::Function,
        "OBJECT" => Kind::Object,
        "TLS" => Kind::ThreadLocal,
        _ => return None,
    };
    // Not `UND`, which is another library's, and not `ABS`, which is the name of a version.
    let section = section.parse().ok()?;
    let size_bytes = match size.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => size.parse().ok()?,
    };
    let (name, version) = name.split_once('@')?;
    let version = Version::parse(version.trim_start_matches('@'))?;
    version.is_old_enough()?.then_some(())?;
    let place = (section, u64::from_str_radix(value, 16).ok()?);
    Some(Symbol { name: name.to_owned(), version, kind, place, size_bytes })
}

/// A library in the assembler's language.
pub(super) struct Assembly {
    pub(super) source: String,
    /// The version script of the linker.
    pub(super) versions: String,
}

/// A library with these symbols. Of several versions of one the newest is what a program is linked to.
///
/// # Errors
/// Never; writing into a text cannot fail.
pub(super) fn assembly(symbols: &[Symbol], soname: &str) -> Result<Assembly> {
    let mut newest: BTreeMap<&str, &Version> = BTreeMap::new();
    let mut versions = BTreeSet::new();
    let mut places: BTreeMap<(Kind, (u32, u64)), Vec<&Symbol>> = BTreeMap::new();
    for symbol in symbols {
        let version = newest.entry(&symbol.name).or_insert(&symbol.version);
        *version = (*version).max(&symbol.version);
        versions.insert(&symbol.version);
        places.entry((symbol.kind, symbol.place)).or_default().push(symbol);
    }
    let mut source = format!("# What {soname} had.\n");
    let mut num = 0;
    for ((kind, _), symbols) in &places {
        let (section, kind) = match kind {
            Kind::Function => (".text", "function"),
            Kind::Object => (".data", "object"),
            Kind::ThreadLocal => (".section .tdata,\"awT\"", "tls_object"),
        };
        writeln!(source, "{section}\n.balign 32")?;
        for symbol in symbols {
            let Symbol { name, version, size_bytes, .. } = symbol;
            let at = if newest.get(name.as_str()) == Some(&version) { "@@" } else { "@" };
            writeln!(source, ".globl _old_{num}\n.type _old_{num}, @{kind}\n.size _old_{num}, {size_bytes}")?;
            writeln!(source, "_old_{num}:\n.symver _old_{num}, {name}{at}{version}")?;
            num += 1;
        }
        // A program that uses an object takes a copy of it, so it needs its size; a function needs no more than a place.
        let size_bytes = symbols.iter().map(|symbol| symbol.size_bytes).max().unwrap_or(0).max(1);
        writeln!(source, ".skip {}", if kind == "function" { 1 } else { size_bytes })?;
    }
    source.push_str(".section .note.GNU-stack,\"\",@progbits\n");
    let mut script = String::new();
    for (index, version) in versions.iter().enumerate() {
        writeln!(script, "{version} {{ {} }};", if index == 0 { "local: _old_*;" } else { "" })?;
    }
    Ok(Assembly { source, versions: script })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
Symbol table '.dynsym' contains 5 entries:
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND __tls_get_addr@GLIBC_2.3 (29)
     2: 0000000000001000    10 FUNC    GLOBAL DEFAULT   15 exp@@GLIBC_2.29
     3: 0000000000001040    20 IFUNC   GLOBAL DEFAULT   15 exp@GLIBC_2.2.5
     4: 0000000000002000     8 OBJECT  WEAK   DEFAULT   30 environ@@GLIBC_2.2.5
     5: 0000000000002000     8 OBJECT  GLOBAL DEFAULT   30 __environ@@GLIBC_2.2.5
     6: 0000000000000000     0 OBJECT  GLOBAL DEFAULT  ABS GLIBC_2.2.5
     7: 0000000000000010     4 TLS     GLOBAL DEFAULT   20 errno@@GLIBC_PRIVATE
     8: 0000000000003000   0x10 FUNC    GLOBAL DEFAULT   15 wait@GLIBC_2.2.5
     9: 0000000000003040    10 FUNC    GLOBAL DEFAULT   15 wait@@GLIBC_2.3.2
";

    #[test]
    fn what_is_newer_or_not_the_librarys_is_left_out() {
        let names: Vec<String> = TABLE
            .lines()
            .filter_map(symbol)
            .map(|symbol| format!("{}@{} {}", symbol.name, symbol.version, symbol.size_bytes))
            .collect();
        assert_eq!(
            names,
            [
                "exp@GLIBC_2.2.5 20",
                "environ@GLIBC_2.2.5 8",
                "__environ@GLIBC_2.2.5 8",
                "wait@GLIBC_2.2.5 16",
                "wait@GLIBC_2.3.2 10"
            ]
        );
    }

    #[test]
    fn the_newest_old_version_is_linked_and_two_names_stay_one_thing() {
        let symbols: Vec<Symbol> = TABLE.lines().filter_map(symbol).collect();
        let made = assembly(&symbols, "libc.so.6").unwrap();
        for line in ["exp@@GLIBC_2.2.5\n", "wait@GLIBC_2.2.5\n", "wait@@GLIBC_2.3.2\n"] {
            assert!(made.source.contains(&format!(", {line}")), "{}", made.source);
        }
        let data = made.source.split(".data\n").nth(1).unwrap();
        assert_eq!(data.matches(".skip").count(), 1, "{data}");
        assert!(data.contains("__environ@@") && data.contains(", environ@@"), "{data}");
        assert_eq!(made.versions, "GLIBC_2.2.5 { local: _old_*; };\nGLIBC_2.3.2 {  };\n");
    }
}
