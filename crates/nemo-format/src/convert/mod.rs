//! Conversion of any supported checkpoint to a Megatron-Core `.nemo` archive or a Hugging Face folder, a few chunks of
//! tensors in memory at a time.
//!
//! The kind of the input is detected from its content. Each kind only builds a [`TensorSource`] under canonical names,
//! a configuration and artifacts; writing is the same for all.

mod arch;
mod canonical;
mod export;
mod family;
mod fp8;
mod gguf;
mod gguf_keys;
mod huggingface;
mod leftovers;
mod nemo;
mod rope_factors;
mod rows;
mod stated_biases;
#[cfg(test)]
mod tests;
mod wrappers;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hydra_config::Node;
use model_spec::{Module, Part, TensorId};

use self::arch::ModelArch;
use self::canonical::canonical;
pub use self::fp8::Quantization;
use self::huggingface::{HfModel, understand};
use crate::adapter::{self, AdaptedSource, Precision};
use crate::gguf::MAGIC;
use crate::huggingface::{
    HfConfig, HfTokenizer, HfWeights, dequantized, open_weights, read_optional, unstacked,
};
use crate::names::{GGUF_LLAMA, NameMap};
use crate::partial_models::refuse_peft_folder;
use crate::source_note::record;
use crate::tokenizer::{self, TokenizerCheck, TokenizerPart};
use crate::writer::{
    Artifact, MAX_SHARD_BYTES, Overwrite, WriteOptions, WriteProgress, WriteReport, write_hf_folder,
    write_nemo,
};
use crate::{
    AdapterSummary, ConvertNote, DType, FormatError, GgufFile, GgufSource, SourceNote, TensorSource,
    convert_note, iterations,
};

/// Choices of [`convert_checkpoint`].
#[derive(Clone, Default)]
pub struct ConvertOptions<'a> {
    /// The floating-point type to write. By default a GGUF file becomes bf16 and anything else keeps its own.
    pub dtype: Option<DType>,
    /// What linear layers are written in, where that is not the type of all others.
    pub quantization: Option<Quantization>,
    /// A tokenizer to put into the archive instead of the input's: a folder, a `tokenizer.json` or a `.model` file.
    pub tokenizer: Option<PathBuf>,
    /// LoRA adapters to add to the weights, in this order.
    pub adapters: Vec<PathBuf>,
    /// What to do when the target exists.
    pub overwrite: Overwrite,
    /// Opens the tokenizer before anything is written; nothing here knows how to.
    pub check_tokenizer: Option<&'a TokenizerCheck<'a>>,
    /// Called after every tensor.
    pub progress: Option<&'a (dyn Fn(WriteProgress) + Sync)>,
}

/// What an input was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// A Hugging Face folder.
    HuggingFace,
    /// A GGUF file with a Llama model.
    Gguf,
    /// A Megatron-Core `.nemo` archive, the folder extracted from one, a folder of NeMo 2, one of
    /// Megatron-Bridge or one of Megatron-LM.
    Nemo,
}

impl InputKind {
    /// The kind, for display.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face folder",
            Self::Gguf => "GGUF file (llama)",
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
    /// What linear layers were written in, where that is not this type.
    pub quantization: Option<Quantization>,
    /// What was written.
    pub written: WriteReport,
    /// What the user should know of the result.
    pub notes: Vec<ConvertNote>,
}

/// Everything that is written.
struct Converted {
    input: InputKind,
    config: Node,
    artifacts: Vec<Artifact>,
    source: Box<dyn TensorSource>,
    dtype: DType,
    notes: Vec<ConvertNote>,
}

const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// What lies beside the vocabulary of a Hugging Face tokenizer.
const TOKENIZER_JSON_FILES: [&str; 3] = [TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"];
const EOS_TOKEN_ID: &str = "eos_token_id";

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
    let mut converted = load(input, options)?;
    if let Some(Quantization::Fp8) = options.quantization {
        let quantized = fp8::quantized(converted.source, converted.dtype)?;
        fp8::put_note(&mut converted.notes, &quantized);
        converted.source = Box::new(quantized);
    }
    let is_nemo = converted.input == InputKind::Nemo;
    let source_notes = converted.notes.iter().filter_map(|note| match note {
        // What a `.nemo` recorded before stands in its configuration.
        ConvertNote::Source(note) if !is_nemo || matches!(note, SourceNote::Merged(_)) => Some(note),
        _ => None,
    });
    record(&mut converted.config, source_notes);
    let mut notes = converted.notes;
    notes.extend(convert_note::of_config(&converted.config));
    let write_options = WriteOptions {
        // The others present their tensors in the types that are to be written.
        dtype: options.dtype.filter(|_| converted.input == InputKind::Nemo),
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
    let quantization = options.quantization;
    Ok(ConvertReport { input: converted.input, dtype: converted.dtype, quantization, written, notes })
}

/// Converts `input` to a Hugging Face folder at `output`: a Llama, a Mistral, a Mixtral, a Qwen2 or a Qwen3
/// with experts or without, an OLMoE, a Gemma or a Gemma 2.
///
/// # Errors
/// When the input is of no supported kind or is damaged, or its architecture is none of these; when `output` exists and
/// may not be replaced, or the disk refuses. Nothing is left under `output` then.
pub fn export_huggingface(
    input: &Path,
    output: &Path,
    options: &ConvertOptions<'_>,
) -> Result<ConvertReport, FormatError> {
    if options.overwrite == Overwrite::Refuse && output.exists() {
        return Err(FormatError::OutputExists { path: output.to_owned() });
    }
    let converted = load(input, options)?;
    let (input, mut notes) = (converted.input, converted.notes.clone());
    let export::Exported { mut files, source, dtype, notes: of_export } =
        export::export(converted, options.dtype)?;
    notes.extend(of_export);
    let source: Box<dyn TensorSource> = match options.quantization {
        Some(Quantization::Fp8) => {
            let quantized = fp8::quantized_folder(source, dtype, &mut files)?;
            fp8::put_note(&mut notes, &quantized);
            Box::new(quantized)
        }
        None => Box::new(source),
    };
    let write_options =
        WriteOptions { dtype: None, overwrite: options.overwrite, progress: options.progress };
    let written = write_hf_folder(output, &files, &source, &write_options, MAX_SHARD_BYTES)?;
    Ok(ConvertReport { input, dtype, quantization: options.quantization, written, notes })
}

fn load(input: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let mut converted = match detect(input)? {
        InputKind::HuggingFace => from_huggingface(input, options),
        InputKind::Gguf => from_gguf(input, options),
        InputKind::Nemo => nemo::rewrite(input, options),
    }?;
    // What a `.nemo` already held together is not taken apart here.
    let is_combined = converted.input != InputKind::Nemo || options.tokenizer.is_some();
    if let Some(check) = options.check_tokenizer.filter(|_| is_combined) {
        let path = options.tokenizer.as_deref().unwrap_or(input);
        tokenizer::check(&converted.config, &converted.artifacts, path, check)?;
    }
    if let Some(embedding) = converted
        .source
        .meta(&TensorId::outside(Module::WordEmbeddings, Part::Weight).name())
        .filter(|_| is_combined)
    {
        let num_rows = embedding.shape.first().copied().unwrap_or(0);
        let notes = tokenizer::check_size(&converted.config, &converted.artifacts, num_rows)?;
        converted.notes.extend(notes);
    }
    Ok(converted)
}

/// What `input` is, from its content.
fn detect(input: &Path) -> Result<InputKind, FormatError> {
    let unsupported = |what: &str| FormatError::Unsupported {
        what: format!("`{}`, {what},", input.display()),
        hint:
            "supported inputs are a Hugging Face folder with its `config.json`, a GGUF file of architecture \
               `llama`, and a `.nemo` archive or folder"
                .into(),
    };
    refuse_peft_folder(input)?;
    if iterations::find(input)?.is_some() {
        return Ok(InputKind::Nemo);
    }
    if input.is_dir() {
        let has = |name: &str| input.join(name).exists();
        // Where several formats lie in one folder NeMo's is read, and a note says so.
        return if has("model_config.yaml") || has("context/model.yaml") {
            Ok(InputKind::Nemo)
        } else if has("config.json") {
            Ok(InputKind::HuggingFace)
        } else if has("context") || has("weights") {
            // A folder of NeMo 2 that lacks a part of it.
            Ok(InputKind::Nemo)
        } else if has_nested_config(input) {
            Ok(InputKind::Nemo)
        } else {
            Err(unsupported("a folder without `config.json` or `model_config.yaml`"))
        };
    }
    let mut start = Vec::new();
    let file = File::open(input).map_err(|source| FormatError::io("open", input, source))?;
    file.take(512).read_to_end(&mut start).map_err(|source| FormatError::io("read", input, source))?;
    crate::lfs::refuse_pointer(|| input.display().to_string(), &start)?;
    let is_tar = start.get(257..262) == Some(b"ustar") || start.starts_with(&[0x1f, 0x8b]);
    if start.starts_with(&MAGIC) {
        Ok(InputKind::Gguf)
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

fn has_nested_config(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().join("model_config.yaml").is_file())
}

fn from_huggingface(folder: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let config = HfConfig::open(folder)?;
    let HfWeights { source, mut notes } = open_weights(folder, config.text(&["transformers_weights"])?)?;
    let (source, of_fp8) = dequantized(&config, folder, source)?;
    let (source, unwrapped) = wrappers::unwrap(source)?;
    let (source, unpacked) = unstacked(&config, source)?;
    let HfModel { arch, names, notes: of_model } = understand(&config, &*source)?;
    let source_dtype = source.meta(&names.embedding()).map_or(DType::F32, |meta| meta.dtype);
    notes.extend(of_fp8);
    notes.extend(unwrapped);
    notes.extend(unpacked);
    notes.extend(of_model);
    notes.extend(leftovers::of_dtypes(&config, &*source, source_dtype, options.dtype)?);
    notes.extend(leftovers::of_buffers(&*source, &[]));
    let tokenizer = match &options.tokenizer {
        Some(path) => Some(HfTokenizer::open(path)?),
        None => HfTokenizer::open_folder(folder)?,
    };
    let tokenizer = tokenizer.ok_or_else(|| FormatError::MissingMember {
        path: folder.to_path_buf(),
        member: "tokenizer.model`, `tokenizer.json`, or `vocab.json` with `merges.txt".into(),
    })?;
    let type_name = type_name(&config, options.tokenizer.as_deref().unwrap_or(folder))?;
    let tokenizer = tokenizer::from_files(&tokenizer, &type_name)?;
    let has_json_files = tokenizer.has_json_files;
    let dtype = options.dtype.unwrap_or(source_dtype);
    let files = Files { name: folder, source, names };
    let mut converted = assemble(InputKind::HuggingFace, &arch, files, tokenizer, dtype, &options.adapters)?;
    // NeMo's configuration has no place for these; the way back needs them.
    let (bytes, note) = generation_config(folder, &config)?;
    converted.notes.extend(note);
    let mut carried = vec![(GENERATION_CONFIG, bytes)];
    if options.tokenizer.is_none() {
        let names = if has_json_files { TOKENIZER_JSON_FILES.as_slice() } else { &[TOKENIZER_CONFIG] };
        for name in names {
            carried.push((name, read_optional(&folder.join(name))?));
        }
    }
    let carried =
        carried.into_iter().filter_map(|(name, bytes)| Some(Artifact { name: name.into(), bytes: bytes? }));
    converted.artifacts.extend(carried);
    notes.extend(leftovers::of_config(&config, arch.family));
    notes.extend(leftovers::of_generation_config(folder)?);
    if options.tokenizer.is_none() {
        notes.extend(leftovers::of_tokenizer_config(folder)?);
    }
    converted.notes.extend(notes.into_iter().map(ConvertNote::Source));
    Ok(converted)
}

/// The folder's own, or the token ids that `config.json` states. transformers takes ids of `config.json` only where there
/// is no other file; a file without `eos_token_id` gets that of `config.json`, so that no end token is lost.
fn generation_config(
    folder: &Path,
    config: &HfConfig,
) -> Result<(Option<Vec<u8>>, Option<ConvertNote>), FormatError> {
    let path = folder.join(GENERATION_CONFIG);
    let ids = config.values_of(&["bos_token_id", EOS_TOKEN_ID, "pad_token_id"]);
    let bad = |reason: String| FormatError::BadConfig { file: path.display().to_string(), reason };
    let Some(own) = read_optional(&path)? else {
        let made = || format!("{:#}\n", serde_json::Value::Object(ids.clone())).into_bytes();
        return Ok(((!ids.is_empty()).then(made), None));
    };
    let mut document: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&own).map_err(|error| bad(error.to_string()))?;
    let taken = document.get(EOS_TOKEN_ID).filter(|value| !value.is_null());
    end_token_ids(taken).map_err(bad)?;
    match (taken, ids.get(EOS_TOKEN_ID)) {
        (Some(taken), Some(other)) if end_token_ids(Some(taken)) != end_token_ids(Some(other)) => {
            let note = ConvertNote::EndTokensDiffer { taken: taken.to_string(), other: other.to_string() };
            Ok((Some(own), Some(note)))
        }
        (None, Some(other)) => {
            document.insert(EOS_TOKEN_ID.into(), other.clone());
            Ok((Some(format!("{:#}\n", serde_json::Value::Object(document)).into_bytes()), None))
        }
        _ => Ok((Some(own), None)),
    }
}

/// `eos_token_id`: one id, a list of ids, or nothing.
fn end_token_ids(value: Option<&serde_json::Value>) -> Result<Vec<u64>, String> {
    let ids = match value {
        None | Some(serde_json::Value::Null) => Some(Vec::new()),
        Some(serde_json::Value::Array(ids)) => ids.iter().map(serde_json::Value::as_u64).collect(),
        Some(id) => id.as_u64().map(|id| vec![id]),
    };
    ids.ok_or_else(|| {
        format!(
            "`{EOS_TOKEN_ID}` is {}, expected an id or a list of ids",
            value.unwrap_or(&serde_json::Value::Null)
        )
    })
}

fn from_gguf(path: &Path, options: &ConvertOptions<'_>) -> Result<Converted, FormatError> {
    let dtype = options.dtype.unwrap_or(DType::BF16);
    let source = GgufSource::new(GgufFile::open(path)?, dtype)?;
    let (arch, notes) = gguf::understand(&source)?;
    let tokenizer = match &options.tokenizer {
        Some(path) => tokenizer::from_files(&HfTokenizer::open(path)?, &folder_name(path))?,
        None => tokenizer::from_gguf(source.file())?,
    };
    let end_ids = match options.tokenizer {
        Some(_) => Vec::new(),
        None => tokenizer::gguf_end_ids(source.file())?,
    };
    let files = Files { name: path, source: Box::new(source), names: GGUF_LLAMA };
    let mut converted = assemble(InputKind::Gguf, &arch, files, tokenizer, dtype, &options.adapters)?;
    converted.notes.extend(notes.into_iter().map(ConvertNote::Source));
    // One is the tokenizer's own.
    if end_ids.len() > 1 {
        let bytes = format!("{:#}\n", serde_json::json!({EOS_TOKEN_ID: end_ids})).into_bytes();
        converted.artifacts.push(Artifact { name: GENERATION_CONFIG.into(), bytes });
    }
    Ok(converted)
}

/// The weights of a model under the names of its family.
struct Files<'a> {
    /// For messages.
    name: &'a Path,
    source: Box<dyn TensorSource>,
    names: NameMap,
}

fn assemble(
    input: InputKind,
    arch: &ModelArch,
    files: Files<'_>,
    tokenizer: TokenizerPart,
    dtype: DType,
    adapters: &[PathBuf],
) -> Result<Converted, FormatError> {
    let config = arch.model_config(tokenizer.section, dtype)?;
    let source = canonical(files.source, arch, files.names, dtype)?;
    let mut notes = tokenizer.notes;
    let num_values = source.num_rounded()?;
    if num_values > 0 {
        // Shifted norms are fp32 whatever the other weights are.
        notes.push(ConvertNote::RoundedNorms { num_values, dtype: DType::F32 });
    }
    if let Some(window_tokens) = arch.sliding_window().filter(|&window| window < arch.tables.positions) {
        notes.push(ConvertNote::SlidingWindow { window_tokens });
    }
    let artifacts = tokenizer.artifacts;
    if adapters.is_empty() {
        return Ok(Converted { input, config, artifacts, source: Box::new(source), dtype, notes });
    }
    let mut adapted = AdaptedSource::new(source, Precision::As(dtype));
    let merged = adapter::adapt(&mut adapted, &config, &files.name.display().to_string(), adapters)?;
    notes.extend(merged.iter().map(merged_note));
    // A sum is rounded once: not before something is added.
    let names = adapted.merged_names();
    adapted.base_mut().widen(&names);
    Ok(Converted { input, config, artifacts, source: Box::new(adapted), dtype, notes })
}

/// The note on an adapter that was added.
fn merged_note(summary: &AdapterSummary) -> ConvertNote {
    ConvertNote::Source(SourceNote::Merged(summary.recorded()))
}

/// NeMo's `type`: the hub id that the folder remembers, else the folder's own name.
fn type_name(config: &HfConfig, folder: &Path) -> Result<String, FormatError> {
    Ok(match config.text(&["_name_or_path"])? {
        Some(name) if !name.is_empty() && !name.starts_with(['/', '.']) => name.to_owned(),
        _ => folder_name(folder),
    })
}

/// The name of a folder, or of the folder that holds a file.
fn folder_name(path: &Path) -> String {
    let mut resolved = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    if resolved.is_file() {
        resolved.pop();
    }
    resolved.file_name().map_or_else(|| "tokenizer".into(), |name| name.to_string_lossy().into_owned())
}
