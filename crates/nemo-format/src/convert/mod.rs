//! Conversion of any supported checkpoint to a Megatron-Core `.nemo` archive, one tensor in memory at a time.
//!
//! The kind of the input is detected from its content. Each kind only builds a [`TensorSource`] under canonical names,
//! a configuration and artifacts; writing is the same for all.

mod arch;
mod gguf;
mod huggingface;
mod llama;
mod nemo;
mod rows;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hydra_config::Node;

use self::arch::LlamaArch;
use self::llama::{LlamaNames, canonical};
use self::tokenizer::TokenizerPart;
use crate::gguf::MAGIC;
use crate::huggingface::{HfConfig, HfTokenizer};
use crate::writer::{Artifact, Overwrite, WriteOptions, WriteProgress, WriteReport, write_nemo};
use crate::{DType, FormatError, GgufFile, GgufSource, SafetensorsSource, TensorSource};

/// Choices of [`convert_checkpoint`].
#[derive(Clone, Default)]
pub struct ConvertOptions<'a> {
    /// The floating-point type to write. By default a GGUF file becomes bf16 and anything else keeps its own.
    pub dtype: Option<DType>,
    /// A tokenizer to put into the archive instead of the input's: a folder, a `tokenizer.json` or a `.model` file.
    pub tokenizer: Option<PathBuf>,
    /// What to do when the target exists.
    pub overwrite: Overwrite,
    /// Called after every tensor.
    pub progress: Option<&'a (dyn Fn(WriteProgress) + Sync)>,
}

/// What an input was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// A Hugging Face folder with a Llama model.
    HuggingFaceLlama,
    /// A GGUF file with a Llama model.
    GgufLlama,
    /// A Megatron-Core `.nemo` archive or the folder extracted from one.
    Nemo,
}

impl InputKind {
    /// The kind, for display.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HuggingFaceLlama => "Hugging Face Llama folder",
            Self::GgufLlama => "GGUF file (llama)",
            Self::Nemo => "Megatron-Core .nemo",
        }
    }
}

/// What was converted.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvertReport {
    /// What the input was.
    pub input: InputKind,
    /// The type of the written weights.
    pub dtype: DType,
    /// What was written.
    pub written: WriteReport,
    /// Bytes of tensor data written.
    pub tensor_bytes: u64,
    /// Whether the model divides positions by a factor and applies Llama 3.1's frequency rule as well, as files
    /// converted by NeMo 2.0 and 2.1 do by mistake.
    pub scales_positions_twice: bool,
}

/// Everything that is written.
struct Converted {
    input: InputKind,
    config: Node,
    artifacts: Vec<Artifact>,
    source: Box<dyn TensorSource>,
    dtype: DType,
}

/// Converts `input` to a Megatron-Core `.nemo` archive at `output`.
///
/// # Errors
/// When the input is of no supported kind, is damaged, has no tokenizer and none is given, or cannot be expressed in
/// NeMo's configuration; and as [`write_nemo`].
pub fn convert_checkpoint(
    input: &Path,
    output: &Path,
    options: &ConvertOptions<'_>,
) -> Result<ConvertReport, FormatError> {
    if options.overwrite == Overwrite::Refuse && output.exists() {
        return Err(FormatError::OutputExists { path: output.to_owned() });
    }
    let converted = match detect(input)? {
        InputKind::HuggingFaceLlama => from_huggingface(input, options)?,
        InputKind::GgufLlama => from_gguf(input, options)?,
        InputKind::Nemo => nemo::rewrite(input, options)?,
    };
    let is_set = |key: &str| {
        converted.config.get(key).is_some_and(|value| !matches!(value, Node::Null | Node::Bool(false)))
    };
    let scales_positions_twice =
        is_set("seq_len_interpolation_factor") && is_set("scale_positional_embedding");
    let write_options = WriteOptions {
        dtype: Some(converted.dtype),
        overwrite: options.overwrite,
        progress: options.progress,
    };
    let written = write_nemo(
        output,
        &converted.config.to_yaml(),
        &converted.artifacts,
        &*converted.source,
        &write_options,
    )?;
    Ok(ConvertReport {
        input: converted.input,
        dtype: converted.dtype,
        tensor_bytes: written.num_parameters * converted.dtype.size_bytes() as u64,
        written,
        scales_positions_twice,
    })
}

/// What `input` is, from its content.
fn detect(input: &Path) -> Result<InputKind, FormatError> {
    let unsupported = |what: &str| FormatError::Unsupported {
        what: format!("`{}`, {what},", input.display()),
        hint:
            "supported inputs are a Hugging Face Llama folder with safetensors, a GGUF file of architecture \
               `llama`, and a Megatron-Core `.nemo` archive or folder"
                .into(),
    };
    if input.is_dir() {
        return if input.join("model_config.yaml").is_file() {
            Ok(InputKind::Nemo)
        } else if input.join("config.json").is_file() {
            Ok(InputKind::HuggingFaceLlama)
        } else {
            Err(unsupported("a folder without `config.json` or `model_config.yaml`"))
        };
    }
    let mut start = Vec::new();
    let file = File::open(input).map_err(|source| FormatError::io("open", input, source))?;
    file.take(512).read_to_end(&mut start).map_err(|source| FormatError::io("read", input, source))?;
    let is_tar = start.get(257..262) == Some(b"ustar") || start.starts_with(&[0x1f, 0x8b]);
    if start.starts_with(&MAGIC) {
        Ok(InputKind::GgufLlama)
    } else if is_tar {
        Ok(InputKind::Nemo)
    } else if start.get(8) == Some(&b'{') {
        Err(unsupported("one safetensors file; give the folder with its `config.json`"))
    } else if start.starts_with(b"PK\x03\x04") {
        Err(unsupported("a single torch or zip file"))
    } else if start.is_empty() {
        Err(unsupported("an empty file"))
    } else {
        Err(unsupported("a file of unknown kind"))
    }
}

fn from_huggingface(folder: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let config = HfConfig::open(folder)?;
    let source = SafetensorsSource::open_folder(folder)?;
    let arch = huggingface::arch(folder, &config, &source)?;
    let names = LlamaNames::HuggingFace;
    let source_dtype = source.meta(names.embedding()).map_or(DType::F32, |meta| meta.dtype);
    let tokenizer = match &options.tokenizer {
        Some(path) => Some(HfTokenizer::open(path)?),
        None => HfTokenizer::open_folder(folder)?,
    };
    let tokenizer = tokenizer.ok_or_else(|| FormatError::MissingMember {
        path: folder.to_path_buf(),
        member: "tokenizer.model` or `tokenizer.json".into(),
    })?;
    let type_name = type_name(&config, options.tokenizer.as_deref().unwrap_or(folder));
    let tokenizer = tokenizer::from_files(tokenizer, &type_name);
    assemble(
        InputKind::HuggingFaceLlama,
        (&arch, names),
        source,
        tokenizer,
        options.dtype.unwrap_or(source_dtype),
    )
}

fn from_gguf(path: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let dtype = options.dtype.unwrap_or(DType::BF16);
    let source = GgufSource::new(GgufFile::open(path)?, dtype)?;
    let arch = gguf::arch(&source)?;
    let tokenizer = match &options.tokenizer {
        Some(path) => tokenizer::from_files(HfTokenizer::open(path)?, &folder_name(path)),
        None => tokenizer::from_gguf(source.file())?,
    };
    assemble(InputKind::GgufLlama, (&arch, LlamaNames::Gguf), source, tokenizer, dtype)
}

fn assemble<S: TensorSource + 'static>(
    input: InputKind,
    (arch, names): (&LlamaArch, LlamaNames),
    source: S,
    tokenizer: TokenizerPart,
    dtype: DType,
) -> Result<Converted, FormatError> {
    let config = arch.model_config(tokenizer.section, dtype)?;
    let source = Box::new(canonical(source, arch, names)?);
    Ok(Converted { input, config, artifacts: vec![tokenizer.artifact], source, dtype })
}

/// NeMo's `type`: the hub id that the folder remembers, else the folder's own name.
fn type_name(config: &HfConfig, folder: &Path) -> String {
    match config.name_or_path.as_deref() {
        Some(name) if !name.is_empty() && !name.starts_with(['/', '.']) => name.to_owned(),
        _ => folder_name(folder),
    }
}

/// The name of a folder, or of the folder that holds a file.
fn folder_name(path: &Path) -> String {
    let mut resolved = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if resolved.is_file() {
        resolved.pop();
    }
    resolved.file_name().map_or_else(|| "tokenizer".into(), |name| name.to_string_lossy().into_owned())
}
