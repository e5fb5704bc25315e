//! The command line: the main job with Hydra's flags, and the small commands beside it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use convert_cli::ConvertCheckpointArgs;
use hydra_config::{ConfigError, overrides, shell_word};
use model_spec::{BadPrecision, Numerics};

use crate::exit::Failure;

mod bench;
mod checks;

pub(crate) use bench::{BenchArgs, BenchQueueArgs};
pub(crate) use checks::CheckArgs;

/// Bulk generation from NeMo checkpoints: SFT-format JSONL in, generations.jsonl out.
#[derive(Debug, Parser)]
#[command(
    name = "aligner-gen",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Every KEY with its default: `aligner-gen --cfg job`.\n\
                  Exit codes: 0 done or time limit reached, 1 failed while running, 2 usage or config, 3 input data, \
                  4 checkpoint or tokenizer, 5 device or memory, 130/143 stopped by a signal with state saved."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// The main job.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobArgs {
    /// Overrides in Hydra's grammar: `key=value`, `+key=value`, `++key=value`, `~key`
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Folder of the config file (Hydra's `-cp`)
    #[arg(long, value_name = "DIR")]
    pub(crate) config_path: Option<PathBuf>,
    /// Config file in that folder, without `.yaml` (Hydra's `-cn`)
    #[arg(long, value_name = "NAME")]
    pub(crate) config_name: Option<String>,
    /// One more folder to look for the config file in (Hydra's `-cd`)
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// Print the configuration and stop
    #[arg(long, short = 'c', value_name = "WHAT")]
    pub(crate) cfg: Option<CfgKind>,
    /// With `--cfg`: resolve interpolations; the checkpoint's values are filled in when it is given
    #[arg(long, requires = "cfg")]
    pub(crate) resolve: bool,
    /// With `--cfg`: print only this part, `model.generation` for example
    #[arg(long, short, value_name = "KEY", requires = "cfg")]
    pub(crate) package: Option<String>,
    /// With `--cfg job`: a line for each key, with the layer that set it
    #[arg(long, requires = "cfg")]
    pub(crate) origin: bool,
    #[command(flatten)]
    pub(crate) hydra: HydraArgs,
    #[command(flatten)]
    pub(crate) checks: CheckArgs,
    /// Exit with 1 when rows have an `error` in place of responses
    #[arg(long)]
    pub(crate) strict: bool,
    /// Check everything, show the first prompt, the counts and the memory plan, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// What is shown while the program runs.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LogArgs {
    /// Log as JSON lines
    #[arg(long, global = true)]
    pub(crate) json_logs: bool,
    /// Show only warnings and errors
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
}

/// Which configuration `--cfg` prints: the job's, what of Hydra's own has a meaning here, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CfgKind {
    Job,
    Hydra,
    All,
}

/// Hydra's flags for what this program does not do.
#[derive(Clone, Debug, Args)]
pub(crate) struct HydraArgs {
    /// Hydra's default mode, and the only one here
    #[arg(long, short, hide = true)]
    run: bool,
    #[arg(long, short, hide = true)]
    multirun: bool,
    #[arg(long, short, hide = true, num_args = 0..=1, default_missing_value = "all")]
    info: Option<String>,
    #[arg(long, hide = true)]
    hydra_help: bool,
    #[arg(long, hide = true)]
    shell_completion: bool,
    #[arg(long, hide = true)]
    experimental_rerun: Option<PathBuf>,
}

impl JobArgs {
    /// Says what to do instead of what Hydra does and this program does not.
    pub(crate) fn refuse_hydra_modes(&self) -> Result<(), Failure> {
        let HydraArgs { run: _, multirun, info, hydra_help, shell_completion, experimental_rerun } =
            &self.hydra;
        let advice = [
            (*multirun, "--multirun", "one run is one configuration: start the program once for each"),
            (info.is_some(), "--info", "for what was composed from where, write `--cfg job --origin`"),
            (*hydra_help, "--hydra-help", "for the flags, write `--help`"),
            (*shell_completion, "--shell-completion", "for every key, write `--cfg job`"),
            (experimental_rerun.is_some(), "--experimental-rerun", "repeat the command line of the run"),
        ];
        match advice.into_iter().find(|(is_given, ..)| *is_given) {
            Some((_, flag, advice)) => Err(Failure::usage(format!("`{flag}` is not supported; {advice}"))),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Convert a checkpoint of any readable kind to a Megatron-Core .nemo or a Hugging Face folder
    ConvertCheckpoint(ConvertCheckpointArgs),
    /// Show what a checkpoint holds
    Inspect(InspectArgs),
    /// Run the forward pass alone and save the logits
    Logits(LogitsArgs),
    /// Lines on stdin to JSON lists of token ids on stdout, or back
    Tokenize(TokenizeArgs),
    /// Log-probabilities of given responses
    Score(ScoreArgs),
    /// Perplexity, and what another checkpoint or other number formats change of a model's predictions
    Quality(QualityArgs),
    /// Show what a folder of results holds: one HTML file, or a table
    Report(ReportArgs),
    /// Say what this machine has, what of it will be used, and what to do
    Doctor(DoctorArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    #[command(hide = true)]
    Man,
    /// Measure the engine on a checkpoint
    #[command(hide = true)]
    Bench(BenchArgs),
    /// Measure the queue of samples without a model
    #[command(hide = true)]
    BenchQueue(BenchQueueArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArgs {
    /// A .nemo file or the folder extracted from one
    pub(crate) checkpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Read every byte, compare the checksums of torch's files, and count values that are not finite
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Whose
    pub(crate) shell: Shell,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct LogitsArgs {
    /// A .nemo file or the folder extracted from one
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    /// A LoRA adapter to add to the weights; several are added in their order
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Vec<PathBuf>,
    /// int64 `[batch, seq]`
    #[arg(long, value_name = "IN.npy")]
    pub(crate) input_ids: PathBuf,
    /// float32 `[batch, seq, padded_vocab_size]`
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) numbers: NumberArgs,
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    pub(crate) device: DeviceArg,
    /// plain: libtorch operations; fused: the fast engine's kernels
    #[arg(long, value_enum, default_value_t = BackendArg::Plain)]
    pub(crate) backend: BackendArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    Plain,
    Fused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuantizationArg {
    // Help without a text of its own stays in one line: e4m3, with a scale for each output and each token.
    Fp8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCacheDtypeArg {
    // What is computed in; and e4m3 with a scale for each token and head.
    Auto,
    Fp8,
}

/// The number formats of a model.
#[derive(Clone, Debug, Args)]
pub(crate) struct NumberArgs {
    /// 32 or bf16
    #[arg(long, default_value = "bf16")]
    pub(crate) precision: String,
    /// The linear layers of attention and MLP in these numbers
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) quantization: Option<QuantizationArg>,
    /// Cached keys and values in these numbers
    #[arg(long, value_enum, default_value_t = KvCacheDtypeArg::Auto, value_name = "FORMAT")]
    pub(crate) kv_cache_dtype: KvCacheDtypeArg,
}

impl NumberArgs {
    pub(crate) fn numerics(&self) -> Result<Numerics, BadPrecision> {
        let mut numerics: Numerics = self.precision.parse()?;
        if self.quantization == Some(QuantizationArg::Fp8) {
            numerics = numerics.with_fp8_weights();
        }
        Ok(match self.kv_cache_dtype {
            KvCacheDtypeArg::Auto => numerics,
            KvCacheDtypeArg::Fp8 => numerics.with_fp8_kv(),
        })
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// A .nemo file or the folder extracted from one
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    /// JSON lists of ids on stdin to text lines on stdout
    #[arg(long)]
    pub(crate) decode: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ScoreArgs {
    /// A .nemo file or the folder extracted from one
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    /// Lines with `prompt` and `responses`, such as a generations.jsonl; with `token_ids` those are scored
    #[arg(long, value_name = "IN.jsonl")]
    pub(crate) input: PathBuf,
    /// A line for each: token ids, log-probabilities, their sums and means
    #[arg(long, value_name = "OUT.jsonl")]
    pub(crate) output: PathBuf,
    /// Prompts were rendered by a chat template: special tokens in them are found whatever the tokenizer
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) templated: Option<bool>,
    /// Put the tokenizer's BOS before the prompts [default: as the manifest beside the input says]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) add_bos: Option<bool>,
    /// The so many most likely tokens at each place, too
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(crate) top_logprobs: u32,
    #[command(flatten)]
    pub(crate) numbers: NumberArgs,
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    pub(crate) device: DeviceArg,
    /// The kernels whose bits are wanted: fused, as with `trt_llm.enable=true`, or plain
    #[arg(long, value_enum, default_value_t = BackendArg::Fused)]
    pub(crate) backend: BackendArg,
    /// Tensor-parallel ranks: processes on this machine, on a GPU of their own each as far as there are so many
    #[arg(long, default_value_t = 1, value_name = "RANKS")]
    pub(crate) tensor: u32,
    /// Pipeline stages, on the CPU
    #[arg(long, default_value_t = 1, value_name = "STAGES")]
    pub(crate) pipeline: u32,
    /// The bits of `model.generation.reduction=tree`, which several tensor-parallel ranks have anyway
    #[arg(long)]
    pub(crate) tree: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct QualityArgs {
    /// The reference: a .nemo file or the folder extracted from one
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    /// What is compared with it, where that is another checkpoint
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) candidate: Option<PathBuf>,
    /// The text whose tokens are predicted, UTF-8
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens of the text that are taken; 0 for all
    #[arg(long, default_value_t = 8192, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Tokens of a sequence; the text is cut into sequences that do not overlap [default: 512, or as many as the model
    /// takes]
    #[arg(long, value_name = "N")]
    pub(crate) window_tokens: Option<usize>,
    /// Begin each sequence with the tokenizer's BOS
    #[arg(long)]
    pub(crate) add_bos: bool,
    /// 32 or bf16, of the reference
    #[arg(long, default_value = "bf16", value_name = "PRECISION")]
    pub(crate) reference_precision: String,
    /// Of the candidate
    #[command(flatten)]
    pub(crate) numbers: NumberArgs,
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu)]
    pub(crate) device: DeviceArg,
    /// The kernels: fused, as with `trt_llm.enable=true`, or plain
    #[arg(long, value_enum, default_value_t = BackendArg::Fused)]
    pub(crate) backend: BackendArg,
    /// One JSON object in place of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ReportArgs {
    /// The log folder of a job, or the folder `generations` in it
    pub(crate) folder: PathBuf,
    /// Print the figures as a table and write nothing
    #[arg(long)]
    pub(crate) summary: bool,
    /// The page, instead of `report.html` in the log folder
    #[arg(long, value_name = "FILE.html", conflicts_with = "summary")]
    pub(crate) output: Option<PathBuf>,
    /// Most samples to browse and search on the page, evenly spaced
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub(crate) samples: usize,
}

/// What went wrong with a command line.
#[derive(Debug)]
pub(crate) enum CliError {
    /// Reported by clap, as are `--help` and `--version`.
    Clap(clap::Error),
    /// A key of the configuration typed like a flag.
    KeyAsFlag(Failure),
}

/// Reads a command line, the program's name first.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, CliError> {
    let arguments = rewrite_short_flags(arguments);
    Cli::try_parse_from(&arguments).map_err(|mut error| {
        if error.kind() == ErrorKind::UnknownArgument
            && let Some(failure) = key_as_flag(arguments.get(1..).unwrap_or_default())
        {
            return CliError::KeyAsFlag(failure);
        }
        // Its tip is to write the flag behind `--`, where it would be refused as an override.
        error.remove(ContextKind::Suggested);
        CliError::Clap(error)
    })
}

/// `--model.seed=5` and `--model.seed 5`, which mean `model.seed=5`.
fn key_as_flag(arguments: &[OsString]) -> Option<Failure> {
    let text = |at: usize| arguments.get(at).and_then(|argument| argument.to_str());
    (0..arguments.len()).find_map(|at| {
        let flag = text(at)?;
        let key = flag.strip_prefix('-')?.trim_start_matches('-');
        let change = match (key.contains('='), text(at + 1)) {
            (true, _) => key.to_owned(),
            (false, Some(value)) if !value.starts_with('-') && !value.contains('=') => {
                format!("{key}={value}")
            }
            (false, _) => format!("{key}=VALUE"),
        };
        let has_sections = key.split('=').next().is_some_and(|key| key.contains('.'));
        let typed = shell_word(&readable(change).filter(|_| has_sections)?);
        let problem = format!("unexpected argument `{flag}`: a key has no dashes");
        Some(Failure::usage(format!("{problem}; in the shell write {typed}")))
    })
}

/// The override, with quotes around its value where it cannot be read without them.
fn readable(change: String) -> Option<String> {
    let quoted = match overrides::parse(&change) {
        Ok(_) => return Some(change),
        Err(ConfigError::Override { quoted: Some(quoted), .. }) => quoted,
        Err(_) => {
            let (key, value) = change.split_once('=')?;
            format!("{key}={}", overrides::quoted(value))
        }
    };
    overrides::parse(&quoted).is_ok().then_some(quoted)
}

/// Hydra's two-letter flags, which clap would read as `-c` with a value.
fn rewrite_short_flags(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const FLAGS: [(&str, &str); 4] = [
        ("-cp", "--config-path"),
        ("-cn", "--config-name"),
        ("-cd", "--config-dir"),
        ("-sc", "--shell-completion"),
    ];
    arguments
        .map(|argument| {
            let rewritten = argument.to_str().and_then(|text| {
                FLAGS.iter().find_map(|(short, long)| match text.strip_prefix(short)? {
                    "" => Some((*long).to_owned()),
                    rest => rest.strip_prefix('=').map(|value| format!("{long}={value}")),
                })
            });
            rewritten.map_or(argument, OsString::from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn try_parse(arguments: &[&str]) -> Result<Cli, CliError> {
        super::parse(["aligner-gen"].iter().chain(arguments).map(OsString::from))
    }

    fn parse(arguments: &[&str]) -> Cli {
        try_parse(arguments).unwrap()
    }

    #[test]
    fn clap_accepts_its_own_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hydra_short_flags() {
        let cli = parse(&["-cn", "mine", "-cp=conf", "-cd", "extra", "++a.b=-1", "~c", "d=[x,y]"]);
        assert_eq!(cli.job.config_name.as_deref(), Some("mine"));
        assert_eq!(cli.job.config_path, Some(PathBuf::from("conf")));
        assert_eq!(cli.job.config_dir, Some(PathBuf::from("extra")));
        assert_eq!(cli.job.overrides, ["++a.b=-1", "~c", "d=[x,y]"]);
    }

    #[test]
    fn cfg_flags() {
        let cli = parse(&["--cfg", "job", "--resolve", "-p", "model"]);
        assert!(matches!(cli.job.cfg, Some(CfgKind::Job)) && cli.job.resolve);
        assert_eq!(cli.job.package.as_deref(), Some("model"));
        assert!(matches!(parse(&["-c", "job"]).job.cfg, Some(CfgKind::Job)));
    }

    #[test]
    fn subcommands_stand_beside_overrides() {
        assert!(matches!(parse(&["inspect", "x.nemo", "--json"]).command, Some(Command::Inspect(_))));
        assert!(parse(&["a=b"]).command.is_none());
        assert!(
            Cli::try_parse_from(["aligner-gen", "a=b", "inspect", "x.nemo"])
                .is_ok_and(|cli| cli.command.is_none())
        );
    }
    #[test]
    fn keys_typed_as_flags_are_shown_as_keys() {
        let message = |arguments: &[&str]| match try_parse(arguments) {
            Err(CliError::KeyAsFlag(failure)) => failure.sentence(),
            Err(CliError::Clap(error)) => error.to_string(),
            Ok(_) => unreachable!("{arguments:?}"),
        };
        insta::assert_snapshot!(message(&["--model.seed=5"]), @"unexpected argument `--model.seed=5`: a key has no dashes; in the shell write model.seed=5");
        insta::assert_snapshot!(message(&["--dry-run", "--model.seed", "5"]), @"unexpected argument `--model.seed`: a key has no dashes; in the shell write model.seed=5");
        insta::assert_snapshot!(message(&["--model.seed", "--dry-run"]), @"unexpected argument `--model.seed`: a key has no dashes; in the shell write model.seed=VALUE");
        insta::assert_snapshot!(message(&["-model.seed=5"]), @"unexpected argument `-model.seed=5`: a key has no dashes; in the shell write model.seed=5");
        insta::assert_snapshot!(message(&["--model.data.train_ds.file_path=/it's/a b"]), @r#"unexpected argument `--model.data.train_ds.file_path=/it's/a b`: a key has no dashes; in the shell write 'model.data.train_ds.file_path="/it'\''s/a b"'"#);
        insta::assert_snapshot!(message(&["--model.data.train_ds.file_path=/a,b"]), @r#"unexpected argument `--model.data.train_ds.file_path=/a,b`: a key has no dashes; in the shell write 'model.data.train_ds.file_path="/a,b"'"#);
        let other = message(&["--nope"]);
        assert!(other.contains("unexpected argument '--nope'") && !other.contains("tip"), "{other}");
    }
}
