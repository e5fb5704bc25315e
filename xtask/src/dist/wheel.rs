//! The wheel: both programs, the front that starts one of them, completions and the manual page.
//!
//! Format: the binary distribution format of the Python packaging guide. Times are fixed, so that the same programs make
//! the same bytes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::program::Program;
use crate::oldest;
use crate::setup::{TORCH_VERSION, home};
use crate::workspace::{Workspace, probe};

const NAME: &str = "aligner_gen";
const FRONT: &str = "packaging/front.py";

/// Shells whose completions are packed: name, and the file below the environment's `share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/aligner-gen"),
    ("zsh", "zsh/site-functions/_aligner-gen"),
    ("fish", "fish/vendor_completions.d/aligner-gen.fish"),
];

/// Packs the programs into `folder`, and returns the wheel's path.
///
/// # Errors
/// When a file cannot be read or written, or the program cannot print its completions.
pub(super) fn write(workspace: &Workspace, programs: &[Program], folder: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let (major, minor) = oldest::GLIBC;
    let tag = format!("py3-none-manylinux_{major}_{minor}_x86_64");
    let path = folder.join(format!("{NAME}-{version}-{tag}.whl"));
    let read = |name: &str| {
        fs::read_to_string(workspace.path(name)).with_context(|| format!("cannot read `{name}`"))
    };
    let front = read(FRONT)?;
    let front = front.replace("@TORCH@", &torch_minor()).replace("@GLIBC@", &format!("{major}.{minor}"));
    let mut wheel = Wheel::create(&path)?;
    wheel.add(
        &format!("{NAME}/__init__.py"),
        0o644,
        b"\"\"\"aligner-gen: bulk text generation from NeMo checkpoints.\"\"\"\n",
    )?;
    wheel.add(&format!("{NAME}/front.py"), 0o644, front.as_bytes())?;
    for program in programs {
        let bytes =
            fs::read(&program.path).with_context(|| format!("cannot read `{}`", program.path.display()))?;
        wheel.add(&format!("{NAME}/bin/{}", program.variant.name()), 0o755, &bytes)?;
    }
    let share = format!("{NAME}-{version}.data/data/share");
    for (place, text) in pages(workspace, &programs[0])? {
        wheel.add(&format!("{share}/{place}"), 0o644, text.as_bytes())?;
    }
    let info = format!("{NAME}-{version}.dist-info");
    wheel.add(&format!("{info}/licenses/LICENSE"), 0o644, read("LICENSE")?.as_bytes())?;
    wheel.add(&format!("{info}/METADATA"), 0o644, metadata(version, &read("README.md")?).as_bytes())?;
    let entry_points = "[console_scripts]\naligner-gen = aligner_gen.front:main\n";
    wheel.add(&format!("{info}/entry_points.txt"), 0o644, entry_points.as_bytes())?;
    let about =
        format!("Wheel-Version: 1.0\nGenerator: cargo xtask dist\nRoot-Is-Purelib: false\nTag: {tag}\n");
    wheel.add(&format!("{info}/WHEEL"), 0o644, about.as_bytes())?;
    wheel.finish(&format!("{info}/RECORD"))?;
    Ok(path)
}

/// `2.11`: a program runs with every torch of its minor version.
pub(super) fn torch_minor() -> String {
    TORCH_VERSION.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
}

/// Completions and the manual page, as the program prints them, by their places below `share`.
pub(super) fn pages(workspace: &Workspace, program: &Program) -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    for (shell, place) in COMPLETIONS {
        pages.push((place.to_owned(), printed(workspace, program, &["completions", shell])?));
    }
    pages.push(("man/man1/aligner-gen.1".to_owned(), printed(workspace, program, &["man"])?));
    Ok(pages)
}

fn printed(workspace: &Workspace, program: &Program, args: &[&str]) -> Result<String> {
    let libraries = home(workspace).join("torch/lib");
    let mut command = workspace.command(&program.path);
    command.args(args).env("LD_LIBRARY_PATH", libraries);
    probe(&mut command).with_context(|| format!("the program fails with `{}`", args.join(" ")))
}

fn metadata(version: &str, readme: &str) -> String {
    format!(
        "Metadata-Version: 2.4\n\
         Name: aligner-gen\n\
         Version: {version}\n\
         Summary: Bulk text generation from GPT and Llama checkpoints in NeMo's and Megatron's formats\n\
         License-Expression: Apache-2.0\n\
         License-File: LICENSE\n\
         Requires-Python: >=3.10\n\
         Requires-Dist: torch=={}.*\n\
         Description-Content-Type: text/markdown\n\
         \n\
         {readme}",
        torch_minor()
    )
}

/// A wheel that is being written.
struct Wheel {
    zip: ZipWriter<File>,
    path: PathBuf,
    record: String,
}

impl Wheel {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self { zip: ZipWriter::new(file), path: path.to_owned(), record: String::new() })
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(content));
        self.record.push_str(&format!("{name},sha256={hash},{}\n", content.len()));
        self.put(name, mode, content)
    }

    fn put(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(mode);
        self.zip
            .start_file(name, options)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.zip.write_all(content)?))
            .with_context(|| format!("cannot write `{}`", self.path.display()))
    }

    /// Writes the list of files last, which lists itself without a hash.
    fn finish(mut self, record_name: &str) -> Result<()> {
        let record = format!("{}{record_name},,\n", self.record);
        self.put(record_name, 0o644, record.as_bytes())?;
        let path = self.path;
        self.zip.finish().map(drop).with_context(|| format!("cannot write `{}`", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_needs_the_minor_version_of_torch() {
        let text = metadata("0.1.0", "# Title");
        assert!(text.contains("\nRequires-Dist: torch==2.11.*\n"), "{text}");
        assert!(text.ends_with("\n\n# Title"));
    }

    #[test]
    fn files_are_recorded_with_their_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.whl");
        let mut wheel = Wheel::create(&path).unwrap();
        wheel.add("a/b.txt", 0o755, b"hello").unwrap();
        wheel.finish("a.dist-info/RECORD").unwrap();
        let mut zip = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(zip.by_name("a/b.txt").unwrap().unix_mode().unwrap() & 0o777, 0o755);
        let record = std::io::read_to_string(zip.by_name("a.dist-info/RECORD").unwrap()).unwrap();
        assert_eq!(
            record,
            "a/b.txt,sha256=LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ,5\na.dist-info/RECORD,,\n"
        );
    }
}
