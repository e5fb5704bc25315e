//! `cargo xtask convert-checkpoint`: any supported checkpoint to a Megatron-Core `.nemo` archive.
//!
//! The command line of the guide's three converters, on top of `nemo_format::convert_checkpoint`, which does the work.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nemo_format::{ConvertOptions, ConvertReport, DType, Overwrite, WriteProgress, convert_checkpoint};

/// Converts a checkpoint. The kind of the input is detected from its content.
#[derive(Args, Debug)]
pub(crate) struct ConvertCheckpointArgs {
    /// A Hugging Face folder, a GGUF file, or a .nemo archive or folder
    #[arg(
        long,
        value_name = "PATH",
        aliases = ["in-folder", "in-file", "input_name_or_path", "input-name-or-path"]
    )]
    input: PathBuf,
    /// The .nemo archive to write
    #[arg(long, value_name = "PATH", aliases = ["out-file", "output_path", "output-path"])]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Target::Nemo)]
    to: Target,
    /// Type of the written weights; by default the input's own, bf16 for a GGUF file
    #[arg(long, value_enum, alias = "precision")]
    dtype: Option<FloatType>,
    /// A tokenizer to use instead of the input's: a folder, a tokenizer.json or a SentencePiece .model file
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
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
    Bf16,
    #[value(alias = "16")]
    Fp16,
    #[value(alias = "32")]
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

/// Runs the conversion and prints a summary on stderr.
pub(crate) fn run(args: &ConvertCheckpointArgs) -> anyhow::Result<()> {
    if args.to == Target::Hf {
        bail!("`--to hf` is not available yet: only `--to nemo` is");
    }
    let progress = |progress: WriteProgress| {
        // A progress line that cannot be printed is no reason to stop a conversion.
        drop(write!(io::stderr(), "{}/{} tensors\r", progress.num_tensors_done, progress.num_tensors));
    };
    let options = ConvertOptions {
        dtype: args.dtype.map(FloatType::dtype),
        tokenizer: args.tokenizer.clone(),
        overwrite: if args.overwrite { Overwrite::Replace } else { Overwrite::Refuse },
        progress: io::stderr().is_terminal().then_some(&progress as &(dyn Fn(WriteProgress) + Sync)),
    };
    let start = Instant::now();
    let report = convert_checkpoint(&args.input, &args.output, &options)
        .with_context(|| format!("cannot convert `{}`", args.input.display()))?;
    let mut stderr = io::stderr();
    writeln!(stderr, "{}", summary(&report, start.elapsed().as_secs_f64()))?;
    if report.scales_positions_twice {
        writeln!(
            stderr,
            "warning: `seq_len_interpolation_factor` and `scale_positional_embedding` are both set: positions are \
             divided on top of the frequency rule, as NeMo computes it; NeMo 2.0 and 2.1 wrote this by mistake"
        )?;
    }
    Ok(())
}

fn summary(report: &ConvertReport, elapsed_s: f64) -> String {
    let megabytes = report.tensor_bytes as f64 / 1e6;
    format!(
        "{}: {} tensors, {megabytes:.1} MB of {}, {elapsed_s:.2} s, {:.0} MB/s",
        report.input.name(),
        report.written.num_tensors,
        report.dtype.name(),
        megabytes / elapsed_s.max(1e-9),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

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
    fn the_other_direction_is_refused() {
        let cli = Cli::try_parse_from(["convert", "--input", "a", "--output", "b", "--to", "hf"]).unwrap();
        let error = run(&cli.args).unwrap_err().to_string();
        insta::assert_snapshot!(error, @"`--to hf` is not available yet: only `--to nemo` is");
    }
}
