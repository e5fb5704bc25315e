//! What a program for packages is linked against: the libraries of glibc 2.28 and GCC 8, the oldest that torch's own wheels
//! run with (`manylinux_2_28`), whatever this machine has.
//!
//! A library of glibc keeps every version of every symbol that it ever had, and says which release each is from. So this
//! machine's own libraries tell what those of 2.28 had: for each of them a library is made that has the symbols, their old
//! versions and nothing behind them. The linker then takes the old version of a symbol, and refuses what is newer by its name.
//! What the program needs of the newer ones is `packaging/old_glibc`'s, which is linked into it.
//!
//! `crates/torch-ext/run_path/build.rs` gives the folder to the linker.

#[cfg(feature = "all-tasks")]
mod needs;
mod symbols;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

#[cfg(feature = "all-tasks")]
pub(crate) use needs::too_new;

use crate::workspace::{Workspace, probe, run};

/// The oldest glibc that the program runs with.
#[cfg(feature = "all-tasks")]
pub(crate) const GLIBC: (u32, u32) = (2, 28);

const FOLDER: &str = "target/old-libraries";
const SOURCES: &str = "packaging/old_glibc";
/// What the folder was made from; written last.
const STAMP: &str = "made-from.txt";

/// A library by the name that a program carries, and by the one that `-l` looks for.
struct Library {
    soname: &'static str,
    link_name: &'static str,
}

const LIBRARIES: [Library; 8] = [
    Library { soname: "libc.so.6", link_name: "" },
    Library { soname: "ld-linux-x86-64.so.2", link_name: "" },
    Library { soname: "libm.so.6", link_name: "libm.so" },
    Library { soname: "libpthread.so.0", link_name: "libpthread.so" },
    Library { soname: "libdl.so.2", link_name: "libdl.so" },
    Library { soname: "librt.so.1", link_name: "librt.so" },
    Library { soname: "libgcc_s.so.1", link_name: "libgcc_s.so" },
    Library { soname: "libstdc++.so.6", link_name: "libstdc++.so" },
];

/// Makes the folder, where it is not there from the same libraries and sources, and returns its path.
///
/// # Errors
/// When a library, a compiler or `readelf` is missing, or one of them does not do what it must.
pub(crate) fn prepare(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.path(FOLDER);
    prepare_in(workspace, &folder)?;
    Ok(folder)
}

fn prepare_in(workspace: &Workspace, folder: &Path) -> Result<()> {
    let mut made_from = String::new();
    let mut assemblies = Vec::new();
    for library in &LIBRARIES {
        let path = found(workspace, "CC", "cc", library.soname)?;
        let table = symbols::read(workspace, &path)?;
        let assembly = symbols::assembly(&table, library.soname)?;
        write!(made_from, "{}\n{}{}", library.soname, assembly.source, assembly.versions)?;
        assemblies.push(assembly);
    }
    let sources = ["glibc.c", "libstdcxx.cpp"].map(|name| workspace.path(SOURCES).join(name));
    for source in &sources {
        let text =
            fs::read_to_string(source).with_context(|| format!("cannot read `{}`", source.display()))?;
        made_from.push_str(&text);
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let lock = fs::File::create(folder.join("lock")).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.with_context(|| format!("cannot lock `{}`", folder.display()))?;
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|text| text == made_from) {
        return Ok(());
    }
    for (library, assembly) in LIBRARIES.iter().zip(&assemblies) {
        make(workspace, folder, library, assembly)?;
    }
    group_libc(workspace, folder)?;
    let flags = ["-c", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"];
    let [glibc, libstdcxx] = &sources;
    run(compiler(workspace, "CC", "cc").args(flags).arg(glibc).arg("-o").arg(folder.join("glibc.o")))?;
    let mut cxx = compiler(workspace, "CXX", "c++");
    run(cxx.args(flags).arg("-std=c++20").arg(libstdcxx).arg("-o").arg(folder.join("libstdcxx.o")))?;
    write_file(&stamp, &made_from)
}

/// A compiler, by the variable that chooses it or by its usual name; either may have arguments.
fn compiler(workspace: &Workspace, variable: &str, usual: &str) -> Command {
    let chosen = std::env::var(variable).ok().filter(|name| !name.trim().is_empty());
    let chosen = chosen.unwrap_or_else(|| usual.to_owned());
    let mut words = chosen.split_whitespace();
    let mut command = workspace.command(words.next().unwrap_or(usual));
    command.args(words);
    command
}

/// Where the compiler finds a file of the system.
fn found(workspace: &Workspace, variable: &str, usual: &str, name: &str) -> Result<PathBuf> {
    let mut command = compiler(workspace, variable, usual);
    let printed = probe(command.arg(format!("-print-file-name={name}")));
    let path = PathBuf::from(printed.with_context(|| format!("`{usual}` does not say where `{name}` is"))?);
    // The bare name comes back where there is none.
    ensure!(path.is_absolute(), "this system has no `{name}`, so packages cannot be linked on it");
    Ok(path)
}

fn make(workspace: &Workspace, folder: &Path, library: &Library, assembly: &symbols::Assembly) -> Result<()> {
    let Library { soname, link_name } = library;
    let (source, versions) = (folder.join(format!("{soname}.s")), folder.join(format!("{soname}.map")));
    write_file(&source, &assembly.source)?;
    write_file(&versions, &assembly.versions)?;
    let mut link = compiler(workspace, "CC", "cc");
    link.args(["-shared", "-nostdlib", "-nostartfiles"]);
    link.arg(format!("-Wl,-soname,{soname}"));
    link.arg(format!("-Wl,--version-script,{}", versions.display()));
    run(link.arg(&source).arg("-o").arg(folder.join(soname)))?;
    fs::remove_file(&source).context("cannot remove an assembly that was used")?;
    if link_name.is_empty() {
        return Ok(());
    }
    // A copy and not a link: a linker that resolves links would look for the name of the target.
    fs::copy(folder.join(soname), folder.join(link_name))
        .map(drop)
        .with_context(|| format!("cannot write `{link_name}`"))
}

/// `libc.so`, which is three files: the library, what glibc always links into a program, and the loader.
fn group_libc(workspace: &Workspace, folder: &Path) -> Result<()> {
    let linked_in = found(workspace, "CC", "cc", "libc_nonshared.a")?;
    for path in [folder, &linked_in] {
        // The linker's scripts have no way to quote all characters.
        let text = path.display().to_string();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
        if !text.chars().all(is_plain) {
            bail!("packages cannot be linked in `{text}`: a linker script cannot name it");
        }
    }
    let text = format!(
        "GROUP ( {0}/libc.so.6 {1} AS_NEEDED ( {0}/ld-linux-x86-64.so.2 ) )\n",
        folder.display(),
        linked_in.display()
    );
    write_file(&folder.join("libc.so"), &text)
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
