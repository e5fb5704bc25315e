//! What compiles for 64-bit Arm on x86-64, and runs it: a C++ compiler and qemu from Debian, Rust, and libtorch for Arm.
//!
//! rustup's Rust is taken where it has the standard library for Arm (`rustup target add aarch64-unknown-linux-gnu`). Elsewhere
//! it is the one of Debian's testing, which is newer than the project's own: compiler and libraries are unpacked, and run
//! with their own loader.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::{self, Packages};
use crate::wheels::{self, Machine};
use crate::workspace::{Workspace, probe, say};

pub(super) const TARGET: &str = "aarch64-unknown-linux-gnu";
const FOLDER: &str = ".tools/arm";
/// Written last.
const STAMP: &str = "complete";
const INSTALLED: [(&str, &str); 2] =
    [("qemu-user", "qemu-aarch64"), ("g++-aarch64-linux-gnu", "aarch64-linux-gnu-g++")];
const COMPILER: Packages =
    Packages { suite: "testing", architecture: "amd64", names: &["rustc"], with_dependencies: true };
const LIBRARY: Packages = Packages {
    suite: "testing",
    architecture: "arm64",
    names: &["libstd-rust-dev"],
    with_dependencies: false,
};
const LIBTORCH: &str = "tools/libtorch-arm.txt";

/// Settings of cargo, and of the crate cc, that name the tools.
const VARIABLES: [(&str, &str); 6] = [
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc"),
    ("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc"),
    ("CXX_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-g++"),
    ("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar"),
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64 -L /usr/aarch64-linux-gnu"),
    // Emulated threads that wait for each other take the cores from those that compute.
    ("OMP_NUM_THREADS", "1"),
];

/// Whether all of it is there already.
pub(super) fn are_there(workspace: &Workspace) -> bool {
    let runs = |(_, program): (&str, &str)| probe(Command::new(program).arg("--version")).is_some();
    workspace.path(FOLDER).join(STAMP).is_file() && INSTALLED.into_iter().all(runs)
}

/// Brings what is missing, or says what cannot be had and returns `None`.
///
/// # Errors
/// When a file cannot be written, or libtorch cannot be fetched.
pub(super) fn prepare(workspace: &Workspace) -> Result<Option<Tools>> {
    if !debian::install(workspace, &INSTALLED) {
        let packages = INSTALLED.map(|(package, _)| package).join(" ");
        say(&format!("skipped: tests for Arm need Debian's packages (`apt-get install {packages}`)"));
        return Ok(None);
    }
    let folder = workspace.path(FOLDER);
    let rustc = if rustup_has_it(workspace) {
        None
    } else {
        let place = folder.join("rust");
        let script = place.join("rustc.sh");
        if !script.is_file()
            && let Err(error) = unpack_rust(workspace, &folder, &script)
        {
            say(&format!("skipped, not to be had: Rust for Arm: {error:#}"));
            return Ok(None);
        }
        Some(script)
    };
    let libtorch = folder.join("libtorch");
    let news = "fetching libtorch for Arm into `.tools/arm/` (1.5 GB unpacked)";
    wheels::keep(workspace, LIBTORCH, &libtorch, Machine::Arm, news)?;
    fs::write(folder.join(STAMP), "").with_context(|| format!("cannot write `{FOLDER}/{STAMP}`"))?;
    Ok(Some(Tools { rustc, libtorch: libtorch.join("torch") }))
}

/// The tools, ready.
pub(super) struct Tools {
    /// Where it is not rustup's.
    rustc: Option<PathBuf>,
    libtorch: PathBuf,
}

impl Tools {
    /// A cargo that compiles for Arm when it is told the target, into a folder of its own.
    pub(super) fn cargo(&self, workspace: &Workspace) -> Command {
        let mut cargo = workspace.cargo();
        cargo.envs(VARIABLES).env("LIBTORCH", &self.libtorch);
        cargo.env("CARGO_TARGET_DIR", workspace.path("target/arm"));
        if let Some(rustc) = &self.rustc {
            cargo.env("RUSTC", rustc);
        }
        cargo
    }
}

fn rustup_has_it(workspace: &Workspace) -> bool {
    let mut rustc = workspace.command("rustc");
    let library = probe(rustc.args(["--print", "target-libdir", "--target", TARGET]));
    library.is_some_and(|folder| Path::new(&folder).is_dir())
}

/// The compiler, with the standard library for Arm beside its own, and a script that starts it.
fn unpack_rust(workspace: &Workspace, folder: &Path, script: &Path) -> Result<()> {
    say("fetching Rust for Arm from Debian's testing into `.tools/arm/` (1 GB unpacked)");
    let (rust, library) = (folder.join("rust"), folder.join("library"));
    COMPILER.unpack(workspace, &rust)?;
    LIBRARY.unpack(workspace, &library)?;
    let place = Path::new("usr/lib/rustlib").join(TARGET);
    fs::rename(library.join(&place), rust.join(&place))
        .context("Debian's packages hold no library for Arm")?;
    fs::remove_dir_all(&library).context("cannot remove the rest of a package")?;
    let root = rust.display();
    let text = format!(
        "#!/bin/sh\nexec '{root}/usr/lib64/ld-linux-x86-64.so.2' --library-path '{root}/usr/lib/x86_64-linux-gnu' \
         '{root}/usr/bin/rustc' --sysroot '{root}/usr' \"$@\"\n"
    );
    let write =
        || fs::write(script, text).and_then(|()| fs::set_permissions(script, Permissions::from_mode(0o755)));
    write().with_context(|| format!("cannot write `{}`", script.display()))
}
