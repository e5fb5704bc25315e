//! The tar archive: the program for the CPU with the parts of libtorch that it needs, to be unpacked anywhere.
//!
//! ```text
//! aligner-gen-0.1.0-linux-x86_64/
//!     bin/aligner-gen                        a link to the program
//!     aligner_gen/bin/aligner-gen-cpu        which looks for libtorch in ../../torch/lib
//!     torch/lib, nvidia/cu13/lib             as in Python's packages, where libtorch looks for its own
//!     share                                  completions and the manual page
//! ```

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::program::Program;
use super::wheel::pages;
use crate::setup::home;
use crate::workspace::Workspace;

/// What the program loads, below `.libtorch/`, with the licence of it.
const LIBTORCH: [&str; 6] = [
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libgomp.so.1",
    "torch/version.py",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

/// Packs it into `folder`, and returns the archive's path.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn write(workspace: &Workspace, program: &Program, folder: &Path) -> Result<PathBuf> {
    let top = format!("aligner-gen-{}-linux-x86_64", env!("CARGO_PKG_VERSION"));
    let path = folder.join(format!("{top}.tar.gz"));
    let home = home(workspace);
    let pages = pages(workspace, program)?;
    let pack = || -> std::io::Result<()> {
        let file = BufWriter::new(File::create(&path)?);
        let mut tar = Builder::new(GzEncoder::new(file, Compression::fast()));
        tar.follow_symlinks(true);
        let inner = format!("aligner_gen/bin/{}", program.variant.name());
        tar.append_path_with_name(&program.path, format!("{top}/{inner}"))?;
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        link.set_mode(0o777);
        tar.append_link(&mut link, format!("{top}/bin/aligner-gen"), format!("../{inner}"))?;
        for name in LIBTORCH {
            tar.append_path_with_name(home.join(name), format!("{top}/{name}"))?;
        }
        tar.append_path_with_name(workspace.path("LICENSE"), format!("{top}/LICENSE"))?;
        for (place, text) in &pages {
            let mut header = Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{top}/share/{place}"), text.as_bytes())?;
        }
        std::io::Write::flush(&mut tar.into_inner()?.finish()?)
    };
    pack().with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}
