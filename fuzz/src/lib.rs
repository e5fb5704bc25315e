//! What the fuzz targets share: damaged bytes in a file of an otherwise good checkpoint, opened and read to the end.
//!
//! An error is a good outcome; a panic, an overflow or a runaway allocation is not.

use std::fs;
use std::path::{Path, PathBuf};

use nemo_format::{Checkpoint, TensorSource};
use tempfile::TempDir;

/// The smallest configuration that names both kinds of models.
const MODEL_CONFIG: &str = "mcore_gpt: true\nnum_layers: 2\nhidden_size: 64\nnum_attention_heads: 4\n\
                            ffn_hidden_size: 96\nencoder_seq_length: 64\nactivation: fast-swiglu\n";
/// Larger tensors are not read: a shape alone can ask for terabytes.
const MAX_TENSOR_BYTES: u64 = 1 << 20;

/// A folder that the target fills anew for each input.
pub struct Sandbox(TempDir);

impl Default for Sandbox {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }
}

impl Sandbox {
    /// Writes one file below the folder.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A checkpoint folder whose configuration is good.
    pub fn checkpoint(&self) -> &Path {
        self.write("model_config.yaml", MODEL_CONFIG.as_bytes());
        self.folder()
    }
}

/// Opens a checkpoint and reads what can be read of it.
pub fn open(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(path) {
        let _ = checkpoint.format();
        let _ = checkpoint.fingerprint();
        checkpoint.artifact_names().into_iter().for_each(|name| drop(checkpoint.artifact(name)));
        read_all(checkpoint.tensors());
    }
}

/// Reads every tensor of moderate size.
pub fn read_all(source: &dyn TensorSource) {
    for name in source.names() {
        let size_bytes = source.meta(name).and_then(|meta| meta.size_bytes());
        if size_bytes.is_some_and(|size| size <= MAX_TENSOR_BYTES) {
            let _ = source.read_whole(name);
        }
    }
}
