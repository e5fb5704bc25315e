//! Reads a checkpoint and writes its weights again: `rewrite_nemo INPUT OUTPUT [f32|bf16|f16]`.
//!
//! Its output is what `tests/fixtures/scripts/load_with_megatron.py` loads to show that Megatron-Core reads our files.

use std::path::Path;

use nemo_format::{Checkpoint, DType, FormatError, Overwrite, WriteOptions, write_nemo};

fn main() -> Result<(), FormatError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, rest @ ..] = arguments.as_slice() else {
        return Err(FormatError::Unsupported {
            what: "the command line".to_owned(),
            hint: "give INPUT OUTPUT [f32|bf16|f16]".to_owned(),
        });
    };
    let dtype = match rest.first().map(String::as_str) {
        Some("f32") => Some(DType::F32),
        Some("bf16") => Some(DType::BF16),
        Some("f16") => Some(DType::F16),
        _ => None,
    };
    let checkpoint = Checkpoint::open(Path::new(input))?;
    let options = WriteOptions { dtype, overwrite: Overwrite::Replace, progress: None };
    write_nemo(Path::new(output), checkpoint.model_config_text(), &[], checkpoint.tensors(), &options)?;
    Ok(())
}
