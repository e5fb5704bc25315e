//! What a checkpoint's own files say of a tensor.

use crate::TensorMeta;

/// A tensor as the checkpoint's own files name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensorInfo {
    /// The member that holds it: a file of one rank, or the folder of a distributed checkpoint.
    pub file: String,
    /// The file's own name; stacked layers have none of their numbers in it.
    pub name: String,
    /// Type and shape in the file.
    pub meta: TensorMeta,
    /// What it is in [`crate::Checkpoint::tensors`], `*` for every layer; `None` when it is not a weight of the model.
    pub canonical: Option<String>,
}
