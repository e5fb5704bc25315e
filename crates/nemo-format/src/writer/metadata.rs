//! The `.metadata` pickle that `torch.distributed.checkpoint` reads first.

use super::plan::StackedKey;
use crate::pickle::write::Writer as Pickle;

const METADATA: &str = "torch.distributed.checkpoint.metadata";
/// The one data file.
pub(super) const DATA_FILE: &str = "__0_0.distcp";

/// The pickle for these keys, whose items have their places in the data file.
pub(super) fn pickle(keys: &[StackedKey]) -> Vec<u8> {
    let mut pickle = Pickle::new(4);
    pickle.instance(METADATA, "Metadata", |state| {
        state.dict(|state| {
            state.text("state_dict_metadata");
            state.dict(|entries| {
                for key in keys {
                    entries.text(&key.name);
                    tensor_metadata(entries, key);
                }
            });
            state.text("planner_data");
            state.dict(|entries| {
                for key in keys {
                    entries.text(&key.name);
                    entries.tuple(|path| path.text(&key.name));
                }
            });
            state.text("storage_data");
            state.dict(|entries| keys.iter().for_each(|key| storage_entries(entries, key)));
            state.text("storage_meta");
            state.none();
            state.text("version");
            state.text("1.0.0");
        });
    });
    pickle.finish()
}

fn torch_size(pickle: &mut Pickle, sizes: &[u64]) {
    pickle.call("torch", "Size", |arguments| {
        arguments.tuple(|items| sizes.iter().for_each(|&size| items.int(size)));
    });
}

fn tensor_metadata(pickle: &mut Pickle, key: &StackedKey) {
    pickle.instance(METADATA, "TensorStorageMetadata", |state| {
        state.dict(|state| {
            state.text("properties");
            state.instance(METADATA, "TensorProperties", |state| {
                state.tuple(|items| {
                    items.global("torch", key.dtype.name());
                    items.call("torch.serialization", "_get_layout", |arguments| {
                        arguments.text("torch.strided");
                    });
                    items.bool(false);
                    items.call(METADATA, "_MEM_FORMAT_ENCODING", |arguments| arguments.int(0));
                    items.bool(false);
                });
            });
            state.text("size");
            torch_size(state, &key.shape);
            state.text("chunks");
            state.list(|chunks| {
                for piece in &key.pieces {
                    chunks.instance(METADATA, "ChunkStorageMetadata", |state| {
                        state.dict(|state| {
                            state.text("offsets");
                            torch_size(state, &piece.offsets);
                            state.text("sizes");
                            torch_size(state, &piece.sizes);
                        });
                    });
                }
            });
        });
    });
}

fn storage_entries(pickle: &mut Pickle, key: &StackedKey) {
    for (index, piece) in key.pieces.iter().enumerate() {
        pickle.instance(METADATA, "MetadataIndex", |state| {
            state.dict(|state| {
                state.text("fqn");
                state.text(&key.name);
                state.text("offset");
                torch_size(state, &piece.offsets);
                state.text("index");
                state.int(index as u64);
            });
        });
        pickle.instance("torch.distributed.checkpoint.filesystem", "_StorageInfo", |state| {
            state.dict(|state| {
                state.text("relative_path");
                state.text(DATA_FILE);
                state.text("offset");
                state.int(piece.item_at);
                state.text("length");
                state.int(piece.item.len_bytes);
            });
        });
    }
}
