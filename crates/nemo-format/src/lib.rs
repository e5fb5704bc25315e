//! The bytes of checkpoints: `.nemo` archives, torch files, Megatron distributed checkpoints, safetensors and GGUF,
//! read by mmap and converted by streaming.
//!
//! Names, shapes and bytes only: no libtorch, no arithmetic on weights beyond what a format itself defines.

mod adapter;
mod adapter_names;
mod archive;
mod bridge;
mod checkpoint;
mod checkpoint_notes;
mod convert;
mod convert_dtype;
mod convert_note;
mod dist_ckpt;
mod dtype;
mod error;
mod fp8;
mod gguf;
mod heterogeneous;
mod huggingface;
mod iterations;
mod lfs;
mod megatron_lm;
mod mmap;
mod model_keys;
mod names;
mod naming;
mod nemo2;
mod partial_models;
mod pickle;
mod pieced;
mod ranks;
mod region;
mod safetensors;
mod source_note;
mod stored_info;
mod te_layers;
mod tensor_source;
mod tokenizer;
mod torch_file;
mod verify;
mod weight_index;
mod writer;

pub use adapter::AdapterSummary;
pub use checkpoint::Checkpoint;
pub use convert::{
    ConvertOptions, ConvertReport, InputKind, Quantization, convert_checkpoint, export_huggingface,
};
pub use convert_note::ConvertNote;
pub use dtype::DType;
pub use error::FormatError;
pub use fp8::{Fp8Rows, Fp8Weights, quantize_rows};
pub use gguf::{GgufFile, GgufSource, GgufValue};
pub use heterogeneous::parse as parse_block_configs;
pub use lfs::read as read_file;
pub use model_keys::is_known_model_key;
pub use model_spec::Region;
pub use safetensors::SafetensorsSource;
pub use source_note::SourceNote;
pub use stored_info::StoredTensorInfo;
pub use tensor_source::{TensorMeta, TensorSource};
pub use tokenizer::TokenizerCheck;
pub use verify::Verified;
pub use writer::{Artifact, Overwrite, WriteOptions, WriteProgress, WriteReport, write_nemo};
