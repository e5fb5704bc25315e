//! The state dictionary of one or more torch files as a [`TensorSource`] that keeps the names of the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::Archive;
use crate::pieced::{Array, Piece, PieceData, PiecedSource};
use crate::torch_file::{StoredTensor, read_state_dict};
use crate::{FormatError, Region, TensorMeta, TensorSource};

/// The tensors of `pytorch_model.bin`, or of all its shards.
#[derive(Debug)]
pub(crate) struct TorchFileSource(PiecedSource);

impl TorchFileSource {
    /// Opens torch files that hold one state dictionary between them. `folder` stands for them in errors.
    ///
    /// # Errors
    /// When a file cannot be mapped, is damaged or hostile, has a tensor of a type that is not read, or names a tensor
    /// that another file has too.
    pub(crate) fn open(folder: &Path, files: &[PathBuf]) -> Result<Self, FormatError> {
        let archive = Arc::new(Archive::of_files(folder, files)?);
        let mut source = PiecedSource::new(Arc::clone(&archive));
        for member in archive.names() {
            let file = archive.describe(member);
            let member_idx = archive.index_of(member)?;
            for (name, entry) in read_state_dict(archive.at(member_idx), &file)? {
                if source.meta(&name).is_some() {
                    return Err(FormatError::bad_tensor(
                        &name,
                        format!("`{file}` and an earlier file both have it"),
                    ));
                }
                let array = whole_array(&name, entry.tensor(&file, &name)?, member_idx);
                source.add(name, array)?;
            }
        }
        Ok(Self(source))
    }
}

/// A state dictionary's tensor as an array of one piece.
pub(crate) fn whole_array(name: &str, tensor: &StoredTensor, member_idx: usize) -> Array {
    let data =
        PieceData::Strided { start_bytes: tensor.start_bytes, strides_elems: tensor.strides_elems.clone() };
    let piece = Piece { offsets: vec![0; tensor.shape.len()], sizes: tensor.shape.clone(), member_idx, data };
    let meta = TensorMeta { dtype: tensor.dtype, shape: tensor.shape.clone() };
    Array { name: name.to_owned(), meta, pieces: vec![piece] }
}

impl TensorSource for TorchFileSource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.0.names()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.0.meta(name)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        self.0.read(name, region, dst)
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.mapped_bytes(name)
    }
}
