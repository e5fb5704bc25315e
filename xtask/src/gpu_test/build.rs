//! The programs that the checks run, and their build with feature `cuda`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::programs;
use crate::workspace::Workspace;

/// The program itself, and those that try the GPU's runtime, its kernels, and every family of models.
pub(super) const ALIGNER_GEN: &str = "aligner-gen";
pub(super) const CUDA_SMOKE: &str = "cuda_smoke";
pub(super) const GPU_CHECK: &str = "gpu_check";
pub(super) const FAMILY_CHECK: &str = "family_check";

/// A program, and where cargo finds it.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    /// The option of `cargo build` that names it.
    pub(super) target: &'static str,
}

pub(super) const PROGRAMS: [Program; 4] = [
    Program { name: ALIGNER_GEN, package: "aligner-gen", target: "--bin" },
    Program { name: CUDA_SMOKE, package: "cuda-kernels", target: "--example" },
    Program { name: GPU_CHECK, package: "cuda-kernels", target: "--example" },
    Program { name: FAMILY_CHECK, package: "engine", target: "--example" },
];

/// Builds the programs with feature `cuda`, and `more` without; the result has them all by name.
///
/// # Errors
/// When one of them does not build.
pub(super) fn for_gpu(workspace: &Workspace, more: &[Program]) -> Result<BTreeMap<String, PathBuf>> {
    let built = programs::build(workspace, &args(more).iter().map(String::as_str).collect::<Vec<_>>())?;
    for Program { name, .. } in PROGRAMS.iter().chain(more) {
        if !built.contains_key(*name) {
            bail!("cargo named no executable of `{name}`");
        }
    }
    Ok(built)
}

/// One build for all, so that they share what they are built from.
fn args(more: &[Program]) -> Vec<String> {
    let mut packages: Vec<&str> = PROGRAMS.iter().map(|program| program.package).collect();
    packages.dedup();
    let features: Vec<String> = packages.iter().map(|package| format!("{package}/cuda")).collect();
    let mut options = vec!["--features".to_owned(), features.join(",")];
    packages.extend(more.iter().map(|program| program.package));
    options.extend(packages.iter().flat_map(|package| ["-p".to_owned(), (*package).to_owned()]));
    let targets = PROGRAMS.iter().chain(more);
    options.extend(targets.flat_map(|program| [program.target.to_owned(), program.name.to_owned()]));
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_are_one_build() {
        let args = args(&[Program { name: "xtask", package: "xtask", target: "--bin" }]);
        insta::assert_snapshot!(args.join(" "), @"--features aligner-gen/cuda,cuda-kernels/cuda,engine/cuda -p aligner-gen -p cuda-kernels -p engine -p xtask --bin aligner-gen --example cuda_smoke --example gpu_check --example family_check --bin xtask");
    }

    #[test]
    fn every_program_is_a_target_of_its_package() {
        let workspace = Workspace::locate().unwrap();
        let mut command = cargo_metadata::MetadataCommand::new();
        let metadata = command.current_dir(workspace.root()).no_deps().exec().unwrap();
        for Program { name, package, target } in PROGRAMS {
            let package = metadata.packages.iter().find(|known| known.name == package).unwrap();
            assert!(package.features.contains_key("cuda"), "{} has no feature `cuda`", package.name);
            let kind = target.trim_start_matches("--");
            let is_it = |known: &cargo_metadata::Target| {
                known.name == name && known.kind.iter().any(|of| of.to_string() == kind)
            };
            assert!(package.targets.iter().any(is_it), "{} has no {kind} `{name}`", package.name);
        }
    }
}
