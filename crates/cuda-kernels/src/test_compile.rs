//! What tests of programs share.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use cuda_runtime::Program;
use cuda_runtime::nvrtc::{Arch, compile};

pub(crate) const ARCHS: [Arch; 2] = [Arch { major: 8, minor: 0 }, Arch { major: 9, minor: 0 }];

/// Compiles a program for every architecture, without warnings.
pub(crate) fn check(program: &Program) {
    for arch in ARCHS {
        check_for(program, arch);
    }
}

/// The same for one.
pub(crate) fn check_for(program: &Program, arch: Arch) {
    let cubin = compile(program, arch).unwrap();
    assert_eq!(cubin.warnings, "", "{} {:?} {arch}", program.name, program.defines);
    assert!(cubin.bytes.starts_with(b"\x7fELF"));
}
