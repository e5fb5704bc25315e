//! The figures of the demo's model on the CPU: decode, bulk, prefill, load.
//!
//! `aligner-gen bench --json` gives the project's own as JSON lines, `xtask/peers/cpu_peers.py` those of the peers.
//! Every program runs alone, one after another.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::table::{self, Figure};
use crate::demo;
use crate::workspace::{Workspace, run as run_command, say, shell_line};

const VENV: &str = ".bench/venv";
const SCRIPT: &str = "xtask/peers/cpu_peers.py";

const CHAT_RESULTS: &str = ".bench/chat";
/// Greedy, so that every program generates about the same texts.
const CHAT_SETTINGS: [&str; 5] = [
    "model.generation.sampling_params.use_greedy=true",
    "model.generation.num_responses_to_gen=1",
    "model.generation.length_params.max_length=128",
    "model.generation.length_params.min_length=0",
    "model.global_batch_size=64",
];

/// A program to compare with, and what pip installs for it.
struct Peer {
    name: &'static str,
    packages: &'static [&'static str],
    /// From source, for one instruction set, which takes some minutes; others choose their kernels as they run.
    is_built: bool,
}

const PEERS: [Peer; 2] = [
    Peer {
        name: "transformers",
        packages: &["torch==2.11.0", "transformers==5.24.0", "gguf==0.19.0", "accelerate"],
        is_built: false,
    },
    Peer { name: "llama.cpp", packages: &["llama-cpp-python==0.3.36", "gguf==0.19.0"], is_built: true },
];

/// An instruction set that every program can be held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Isa {
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 without bfloat16.
    Avx512,
}

impl Isa {
    fn name(self) -> &'static str {
        match self {
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// For the build of llama.cpp, which takes the building machine's instructions otherwise.
    fn cmake_args(self) -> String {
        let avx512 = match self {
            Self::Avx2 => "OFF",
            Self::Avx512 => "ON -DGGML_AVX512_VBMI=OFF -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF",
        };
        format!(
            "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
             -DGGML_AVX512={avx512}"
        )
    }

    /// What libtorch, oneDNN and MKL, which transformers computes with, are limited by.
    fn limits_of_libtorch(self) -> [(&'static str, &'static str); 3] {
        let (capability, onednn, mkl) = match self {
            Self::Avx2 => ("avx2", "AVX2", "AVX2"),
            Self::Avx512 => ("avx512", "AVX512_CORE", "AVX512"),
        };
        [
            ("ATEN_CPU_CAPABILITY", capability),
            ("ONEDNN_MAX_CPU_ISA", onednn),
            ("MKL_ENABLE_INSTRUCTIONS", mkl),
        ]
    }
}

/// Choices of the CPU benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A checkpoint to measure instead of the demo's; the peers are skipped then
    #[arg(long, value_name = "CKPT")]
    checkpoint: Option<PathBuf>,
    /// Measures the project's own program only
    #[arg(long)]
    no_peers: bool,
    /// Also answers the chat records of this file, each until the end of its turn or 128 tokens
    #[arg(long, value_name = "JSONL")]
    chat: Option<PathBuf>,
    /// Holds every program to an instruction set that is less than the machine's
    #[arg(long, value_enum, value_name = "SET")]
    isa: Option<Isa>,
    /// Of these measures only: load, decode, bulk, prefill
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    measures: Vec<String>,
    /// Prints the figures as JSON lines instead of a table
    #[arg(long)]
    json: bool,
}

/// Measures, and prints a table with ratios.
///
/// # Errors
/// When the program cannot be built or measured.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    crate::setup::report(workspace, None)?;
    let program = demo::build(workspace)?;
    let (checkpoint, gguf) = match &args.checkpoint {
        Some(checkpoint) => (checkpoint.clone(), None),
        None => {
            let model = demo::prepare_model(workspace, &program)?;
            (model.checkpoint, Some(model.gguf))
        }
    };
    let mut own = workspace.command(&program);
    own.arg("bench").arg("--checkpoint").arg(&checkpoint).arg("--json");
    if !args.measures.is_empty() {
        own.arg("--measures").arg(args.measures.join(","));
    }
    if let Some(isa) = args.isa {
        own.env("ALIGNER_GEN_ISA", isa.name());
    }
    let mut figures = measure(own, "aligner-gen")?;
    if let Some(data) = &args.chat {
        figures.push(chat(workspace, &program, &checkpoint, data, args.isa)?);
    }
    if let Some(gguf) = gguf.filter(|_| !args.no_peers) {
        for peer in &PEERS {
            match measure_peer(workspace, peer, &gguf, args) {
                Ok(found) => figures.extend(found),
                Err(error) => say(&format!("no figures of {}: {error:#}", peer.name)),
            }
        }
    }
    let text = if args.json { table::json_lines(&figures)? } else { table::render(&figures) };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
        .context("cannot write to standard output")
}

/// The whole main job on real prompts, from the start of the program to its end.
fn chat(
    workspace: &Workspace,
    program: &Path,
    checkpoint: &Path,
    data: &Path,
    isa: Option<Isa>,
) -> Result<Figure> {
    let results = workspace.path(CHAT_RESULTS);
    if results.exists() {
        std::fs::remove_dir_all(&results).with_context(|| format!("cannot remove `{CHAT_RESULTS}`"))?;
    }
    let mut command = workspace.command(program);
    command.args(["--config-path", "configs/demo", "--config-name", "smollm2"]).args(CHAT_SETTINGS);
    command.arg(format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()));
    command.arg(format!("model.data.train_ds.file_path={}", data.display()));
    command.arg(format!("exp_manager.explicit_log_dir={}", results.display()));
    if let Some(isa) = isa {
        command.env("ALIGNER_GEN_ISA", isa.name());
    }
    say(&format!("measuring {}", shell_line(&command)));
    let started = Instant::now();
    run_command(&mut command)?;
    let seconds = Some(started.elapsed().as_secs_f64());
    Ok(Figure { peer: "aligner-gen".into(), measure: "chat".into(), tokens_per_s: None, seconds })
}

fn measure_peer(workspace: &Workspace, peer: &Peer, gguf: &Path, args: &Args) -> Result<Vec<Figure>> {
    // Only what is built from source depends on the instruction set.
    let isa = args.isa.filter(|_| peer.is_built);
    let folder = isa.map_or_else(|| peer.name.to_owned(), |isa| format!("{}-{}", peer.name, isa.name()));
    let venv = workspace.path(VENV).join(&folder);
    let python = venv.join("bin/python");
    let finished = venv.join("installed.txt");
    let mut wanted = peer.packages.join("\n");
    if let Some(isa) = isa {
        wanted = format!("{wanted}\n{}", isa.cmake_args());
    }
    if std::fs::read_to_string(&finished).ok().as_deref() != Some(wanted.as_str()) {
        say(&format!("installing {} into `{VENV}/{folder}`", peer.name));
        run_command(workspace.command("python3").args(["-m", "venv"]).arg(&venv))?;
        let mut install = workspace.command(&python);
        install.args(["-m", "pip", "install", "--quiet"]).args(peer.packages);
        if let Some(isa) = isa {
            // What pip has built for another set is not to be taken for this one.
            install.arg("--no-cache-dir").env("CMAKE_ARGS", isa.cmake_args());
        }
        run_command(&mut install)?;
        std::fs::write(&finished, wanted)
            .with_context(|| format!("cannot write `{}`", finished.display()))?;
    }
    let mut command = workspace.command(&python);
    command.arg(SCRIPT).arg("--gguf").arg(gguf).args(["--work-dir", ".bench/models", "--peer", peer.name]);
    if let Some(isa) = args.isa.filter(|_| !peer.is_built) {
        command.envs(isa.limits_of_libtorch());
    }
    if args.chat.is_some() {
        command.arg("--chat").arg(workspace.path(CHAT_RESULTS).join("generations/generations.jsonl"));
    }
    if !args.measures.is_empty() {
        command.arg("--measures").arg(args.measures.join(","));
    }
    measure(command, peer.name)
}

/// Runs a program that prints figures as JSON lines.
fn measure(mut command: Command, program: &str) -> Result<Vec<Figure>> {
    let line = shell_line(&command);
    say(&format!("measuring {program}"));
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed with {}", output.status);
    }
    table::parse(&String::from_utf8_lossy(&output.stdout), program)
}
