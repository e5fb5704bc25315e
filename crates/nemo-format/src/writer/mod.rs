//! Writing a Megatron-Core `.nemo`: a plain tar with the configuration, the artifacts and a torch_dist folder.
//!
//! Sizes are planned before the first byte, so tensors stream through; nothing is ever kept whole.

use std::path::Path;

use crate::{DType, FormatError, TensorSource};

/// A file that travels inside the checkpoint: a tokenizer model, a vocabulary, a chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Base name; the member becomes `<md5 of the bytes>_<name>`.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

impl Artifact {
    /// The member's name in the archive: what the configuration refers to as `nemo:<member>`.
    pub fn member_name(&self) -> String {
        String::new()
    }
}

/// What to do when the target exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Stop with [`FormatError::OutputExists`].
    #[default]
    Refuse,
    /// Replace it once the new file is complete.
    Replace,
}

/// How far a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteProgress {
    /// Tensors written.
    pub num_tensors_done: usize,
    /// Tensors in all.
    pub num_tensors: usize,
    /// Bytes of tensor data written.
    pub done_bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
}

/// Choices of [`write_nemo`].
#[derive(Clone, Copy, Default)]
pub struct WriteOptions<'a> {
    /// Converts floating-point tensors to this dtype (f32, bf16 or f16), rounding to nearest even.
    pub dtype: Option<DType>,
    /// What to do when the target exists.
    pub overwrite: Overwrite,
    /// Called after every tensor.
    pub progress: Option<&'a (dyn Fn(WriteProgress) + Sync)>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteReport {
    /// Tensors under their canonical names.
    pub num_tensors: usize,
    /// Elements of all tensors.
    pub num_parameters: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// Members that hold the artifacts, in the order given.
    pub artifact_members: Vec<String>,
}

/// Writes `output` as a Megatron-Core `.nemo` archive with a torch_dist checkpoint inside.
///
/// The tensors of `source` carry canonical names; those of homogeneous decoder layers are stacked under their key
/// without a layer number, as Megatron-Core stores them.
///
/// # Errors
/// When the target exists and may not be replaced, a tensor cannot be read or converted, or the disk refuses.
/// Nothing is left under `output` then.
pub fn write_nemo(
    _output: &Path,
    _config_yaml: &str,
    _artifacts: &[Artifact],
    _source: &dyn TensorSource,
    _options: &WriteOptions<'_>,
) -> Result<WriteReport, FormatError> {
    Err(FormatError::Unsupported { what: "writing".into(), hint: "this build has no writer".into() })
}
