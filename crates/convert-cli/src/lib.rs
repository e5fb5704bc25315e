//! `convert-checkpoint`: any supported checkpoint to a Megatron-Core `.nemo` archive or a Hugging Face folder.
//!
//! The command line of the guide's converters, on top of [`nemo_format`], which does the work; `aligner-gen
//! convert-checkpoint` and `cargo xtask convert-checkpoint` are both this. Options of the original scripts that have
//! nothing to decide here are accepted, and a note says so.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nemo_format::{
    ConvertOptions, ConvertReport, DType, FormatError, Overwrite, Quantization, WriteProgress,
    convert_checkpoint, export_huggingface,
};
use thiserror::Error;

/// Why nothing was converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The input, the output or an option of the conversion is at fault.
    #[error("cannot convert `{}`", input.display())]
    Format {
        /// The checkpoint that was to be converted.
        input: PathBuf,
        /// What is wrong with it.
        source: Box<FormatError>,
    },
    /// The summary could not be printed; the checkpoint is written.
    #[error("cannot print the summary of the conversion")]
    Print(#[from] io::Error),
}

/// Converts a checkpoint. The kind of the input is detected from its content.
#[derive(Args, Clone, Debug)]
pub struct ConvertCheckpointArgs {
    /// A Hugging Face folder, a GGUF file, or a .nemo archive or folder of any kind
    #[arg(
        long,
        value_name = "PATH",
        aliases = ["in-folder", "in-file", "input_name_or_path", "input-name-or-path"]
    )]
    input: PathBuf,
    /// The .nemo archive or the Hugging Face folder to write
    #[arg(long, value_name = "PATH", aliases = ["out-file", "output_path", "output-path"])]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Target::Nemo)]
    to: Target,
    /// Type of the written weights; by default the input's own, bf16 for a GGUF file
    #[arg(long, value_enum, alias = "precision")]
    dtype: Option<FloatType>,
    /// Write the linear layers in FP8, half the size: e4m3 with a float32 scale for each output, rounded to --dtype before
    #[arg(long, value_enum, value_name = "FORMAT")]
    quantization: Option<QuantizationArg>,
    /// A tokenizer to use instead of the input's: a folder, a tokenizer.json or a SentencePiece .model file
    #[arg(long, value_name = "PATH", aliases = ["tokenizer_path", "tokenizer-path"])]
    tokenizer: Option<PathBuf>,
    /// A LoRA adapter to merge into the weights, of NeMo 1, NeMo 2, Megatron-Bridge or PEFT; several are added in their order
    #[arg(long, value_name = "PATH")]
    adapter: Vec<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    scripts: ScriptArgs,
}

/// Options of NeMo's scripts that decide nothing here.
#[derive(Args, Clone, Debug, Default)]
struct ScriptArgs {
    #[arg(long, hide = true, aliases = ["cpu_only"])]
    cpu_only: bool,
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    llama31: Option<String>,
    #[arg(long, hide = true, value_name = "PATH", alias = "hparams_file")]
    hparams_file: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "N", aliases = ["tensor_model_parallel_size", "target_tensor_model_parallel_size"])]
    tensor_model_parallel_size: Option<u32>,
    #[arg(long, hide = true, value_name = "N", aliases = ["pipeline_model_parallel_size", "target_pipeline_model_parallel_size"])]
    pipeline_model_parallel_size: Option<u32>,
    #[arg(long, hide = true, alias = "ignore_if_missing")]
    ignore_if_missing: bool,
    #[arg(long, hide = true)]
    verbose: bool,
}

impl ScriptArgs {
    /// What to say of those that were given.
    fn notes(&self) -> Vec<&'static str> {
        let parallel = self.tensor_model_parallel_size.or(self.pipeline_model_parallel_size);
        [
            (self.cpu_only, "`--cpu-only` is not needed: conversion never uses a GPU"),
            (
                self.llama31.is_some(),
                "`--llama31` is not needed: `config.json` says whether the model has its frequency rule",
            ),
            (
                self.hparams_file.is_some(),
                "`--hparams_file` is not read: the configuration follows from the input alone",
            ),
            (
                parallel.is_some_and(|size| size > 1),
                "parallel sizes do not matter: the written checkpoint is the same for every number of ranks",
            ),
            (self.ignore_if_missing, "`--ignore_if_missing` has no effect: a missing tensor is an error"),
        ]
        .into_iter()
        .filter_map(|(is_given, note)| is_given.then_some(note))
        .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A Megatron-Core .nemo archive with a torch_dist checkpoint
    Nemo,
    /// A Hugging Face folder
    Hf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FloatType {
    #[value(alias = "bf16-mixed", alias = "bfloat16")]
    Bf16,
    #[value(alias = "16", alias = "16-mixed", alias = "float16")]
    Fp16,
    #[value(alias = "32", alias = "32-true", alias = "float32")]
    Fp32,
}

impl FloatType {
    fn dtype(self) -> DType {
        match self {
            Self::Bf16 => DType::BF16,
            Self::Fp16 => DType::F16,
            Self::Fp32 => DType::F32,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QuantizationArg {
    /// e4m3 with a scale for each output
    Fp8,
}

impl QuantizationArg {
    fn format(self) -> Quantization {
        match self {
            Self::Fp8 => Quantization::Fp8,
        }
    }
}

/// Converts, shows how far it is on a terminal, and prints a summary on stderr.
///
/// # Errors
/// When the checkpoint cannot be read, expressed in the target's format, or written.
pub fn run(args: &ConvertCheckpointArgs) -> Result<(), ConvertError> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) =
        ProgressStyle::with_template("{bar:24} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta} {msg}")
    {
        bar.set_style(style);
    }
    let progress = |progress: WriteProgress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        bar.set_message(format!("{}/{} tensors", progress.num_tensors_done, progress.num_tensors));
    };
    let options = ConvertOptions {
        dtype: args.dtype.map(FloatType::dtype),
        quantization: args.quantization.map(QuantizationArg::format),
        tokenizer: args.tokenizer.clone(),
        adapters: args.adapter.clone(),
        overwrite: if args.overwrite { Overwrite::Replace } else { Overwrite::Refuse },
        check_tokenizer: Some(&check_tokenizer),
        progress: (!bar.is_hidden()).then_some(&progress as &(dyn Fn(WriteProgress) + Sync)),
    };
    let start = Instant::now();
    let convert = match args.to {
        Target::Nemo => convert_checkpoint,
        Target::Hf => export_huggingface,
    };
    let report = convert(&args.input, &args.output, &options);
    bar.finish_and_clear();
    let report = report
        .map_err(|source| ConvertError::Format { input: args.input.clone(), source: Box::new(source) })?;
    let mut stderr = io::stderr();
    writeln!(stderr, "{}", summary(&report, start.elapsed().as_secs_f64()))?;
    for note in &report.notes {
        writeln!(stderr, "note: {note}")?;
    }
    for note in args.scripts.notes() {
        writeln!(stderr, "note: {note}")?;
    }
    Ok(())
}

/// Opens the tokenizer that is to be written.
fn check_tokenizer(
    section: &serde_json::Value,
    read_file: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<(), String> {
    data::check_tokenizer(section, read_file).map_err(|error| {
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        causes.fold(error.to_string(), |chain, cause| format!("{chain}: {cause}"))
    })
}

fn summary(report: &ConvertReport, elapsed_s: f64) -> String {
    let megabytes = report.written.tensor_bytes as f64 / 1e6;
    format!(
        "{}: {} tensors, {megabytes:.1} MB of {}{}, {elapsed_s:.2} s, {:.0} MB/s",
        report.input.name(),
        report.written.num_tensors,
        match report.quantization {
            Some(Quantization::Fp8) => "FP8 and ",
            None => "",
        },
        report.dtype.name(),
        megabytes / elapsed_s.max(1e-9),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use std::path::Path;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ConvertCheckpointArgs,
    }

    #[test]
    fn the_spellings_of_the_guide() {
        for [input, output] in [
            ["--input", "--output"],
            ["--in-folder", "--out-file"],
            ["--in-file", "--out-file"],
            ["--input_name_or_path", "--output_path"],
        ] {
            let cli = Cli::try_parse_from(["convert", input, "a", output, "b", "--dtype", "bf16"]).unwrap();
            assert_eq!(cli.args.input, PathBuf::from("a"));
            assert_eq!(cli.args.output, PathBuf::from("b"));
            assert_eq!(cli.args.dtype, Some(FloatType::Bf16));
        }
    }

    #[test]
    fn the_commands_of_the_guide_convert() {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let run_line = |line: &str, input: &Path, output: &Path| {
            let words = line.split_whitespace().map(|word| match word {
                "IN" => input.to_str().unwrap(),
                "OUT" => output.to_str().unwrap(),
                word => word,
            });
            run(&Cli::try_parse_from(std::iter::once("convert").chain(words)).unwrap().args).unwrap();
        };
        let llama = folder.path().join("llama.nemo");
        run_line(
            "--input_name_or_path IN --output_path OUT --precision bf16 --llama31 False --hparams_file x.yaml",
            &fixtures.join("hf_llama"),
            &llama,
        );
        assert_eq!(precision_of(&llama), "bf16");
        // The guide extracts the archive first.
        let extracted = folder.path().join("model_checkpoint");
        std::fs::create_dir(&extracted).unwrap();
        let mut tar = std::process::Command::new("tar");
        tar.arg("-xf").arg(&llama).arg("-C").arg(&extracted);
        assert!(tar.status().unwrap().success());
        let mcore = folder.path().join("mcore_gpt.nemo");
        run_line(
            "--in-folder IN --out-file OUT --cpu-only --tensor_model_parallel_size 2",
            &extracted,
            &mcore,
        );
        assert_eq!(precision_of(&mcore), "bf16");
        let back = folder.path().join("back");
        run_line("--input IN --output OUT --to hf --dtype fp32", &mcore, &back);
        let config = std::fs::read_to_string(back.join("config.json")).unwrap();
        assert!(config.contains("\"torch_dtype\": \"float32\""), "{config}");
    }

    fn precision_of(path: &Path) -> String {
        let checkpoint = nemo_format::Checkpoint::open(path).unwrap();
        let text = checkpoint.model_config_text();
        let line = text.lines().find_map(|line| line.strip_prefix("precision: "));
        line.unwrap().to_owned()
    }

    #[test]
    fn options_of_the_scripts_are_explained() {
        let words = "convert --input a --output b --cpu-only --llama31 --hparams_file c --tensor_model_parallel_size 8";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        insta::assert_snapshot!(cli.args.scripts.notes().join("\n"), @r"
        `--cpu-only` is not needed: conversion never uses a GPU
        `--llama31` is not needed: `config.json` says whether the model has its frequency rule
        `--hparams_file` is not read: the configuration follows from the input alone
        parallel sizes do not matter: the written checkpoint is the same for every number of ranks
        ");
        let cli = Cli::try_parse_from(["convert", "--input", "a", "--output", "b"]).unwrap();
        assert!(cli.args.scripts.notes().is_empty());
    }
}
