//! Where libtorch lies.

use std::path::{Path, PathBuf};

/// The folder of the libtorch that this process has loaded; `None` where the system does not say.
pub fn library_dir() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    paths.find(|path| path.ends_with("libtorch_cpu.so"))?.parent().map(Path::to_owned)
}
