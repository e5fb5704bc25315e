use std::ops::Range;

use super::*;
use crate::pickle::write::Writer;

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const FILESYSTEM: &str = "torch.distributed.checkpoint.filesystem";
const KEY: &str = "model.output_layer.weight";

/// A piece of `KEY`: its first row, and its item.
struct Chunk {
    row: u64,
    item: Range<u64>,
}

/// What is unusual about the file.
#[derive(Default)]
struct Odd {
    dtype: Option<&'static str>,
    file: Option<&'static str>,
    has_transforms: bool,
}

fn size(pickle: &mut Writer, dims: &[u64]) {
    pickle.call("torch", "Size", |arguments| {
        arguments.tuple(|size| dims.iter().for_each(|&dim| size.int(dim)));
    });
}

/// A `.metadata` of one tensor of two rows.
fn metadata(chunks: &[Chunk], odd: &Odd) -> Vec<u8> {
    let mut pickle = Writer::new(4);
    pickle.instance(METADATA, "Metadata", |state| {
        state.dict(|state| {
            state.text("state_dict_metadata");
            state.dict(|tensors| {
                tensors.text(KEY);
                tensors.instance(METADATA, "TensorStorageMetadata", |state| {
                    state.dict(|fields| {
                        fields.text("properties");
                        fields.instance(METADATA, "TensorProperties", |state| {
                            state.tuple(|state| state.global("torch", odd.dtype.unwrap_or("float32")));
                        });
                        fields.text("size");
                        size(fields, &[2, 3]);
                        fields.text("chunks");
                        fields.list(|list| {
                            for chunk in chunks {
                                list.instance(METADATA, "ChunkStorageMetadata", |state| {
                                    state.dict(|fields| {
                                        fields.text("offsets");
                                        size(fields, &[chunk.row, 0]);
                                        fields.text("sizes");
                                        size(fields, &[1, 3]);
                                    });
                                });
                            }
                        });
                    });
                });
            });
            state.text("storage_data");
            state.dict(|places| chunks.iter().for_each(|chunk| place(places, chunk, odd)));
        });
    });
    pickle.finish()
}

fn place(places: &mut Writer, chunk: &Chunk, odd: &Odd) {
    places.instance(METADATA, "MetadataIndex", |state| {
        state.dict(|fields| {
            fields.text("fqn");
            fields.text(KEY);
            fields.text("offset");
            size(fields, &[chunk.row, 0]);
        });
    });
    places.instance(FILESYSTEM, "_StorageInfo", |state| {
        state.dict(|fields| {
            fields.text("relative_path");
            fields.text(odd.file.unwrap_or("__0_0.distcp"));
            fields.text("offset");
            fields.int(chunk.item.start);
            fields.text("length");
            fields.int(chunk.item.end - chunk.item.start);
            if odd.has_transforms {
                fields.text("transform_descriptors");
                fields.list(|list| list.text("zstd"));
            }
        });
    });
}

fn open(chunks: &[Chunk], odd: &Odd) -> Result<Vec<Array>, String> {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model_weights");
    std::fs::create_dir(&weights).unwrap();
    std::fs::write(weights.join(".metadata"), metadata(chunks, odd)).unwrap();
    std::fs::write(weights.join("__0_0.distcp"), [0; 100]).unwrap();
    let archive = Archive::open(folder.path()).unwrap();
    arrays(&archive, "model_weights")
        .map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "…"))
}

fn rows(items: [Range<u64>; 2]) -> Vec<Chunk> {
    (0..).zip(items).map(|(row, item)| Chunk { row, item }).collect()
}

#[test]
fn pieces_are_found() {
    let arrays = open(&rows([0..50, 50..100]), &Odd::default()).unwrap();
    assert_eq!(arrays[0].meta.shape, [2, 3]);
    assert_eq!(arrays[0].pieces[1].data, PieceData::TorchItem(50..100));
}

#[test]
fn what_cannot_be_right_is_refused() {
    let error = |chunks: Vec<Chunk>, odd: Odd| open(&chunks, &odd).unwrap_err();
    let good = || rows([0..50, 50..100]);
    let overlapping = rows([0..51, 50..100]);
    insta::assert_snapshot!(error(overlapping, Odd::default()), @"`…/model_weights/__0_0.distcp` is damaged at byte 50: items of `model.output_layer.weight` and `model.output_layer.weight` overlap");
    insta::assert_snapshot!(error(rows([0..50, 50..101]), Odd::default()), @"tensor `model.output_layer.weight` is inconsistent: its piece at [1, 0] ends at byte 101 of `model_weights/__0_0.distcp`, which has 100; copy the checkpoint again");
    let twice = vec![Chunk { row: 0, item: 0..50 }, Chunk { row: 0, item: 50..100 }];
    insta::assert_snapshot!(error(twice, Odd::default()), @"tensor `model.output_layer.weight` is inconsistent: two storage entries are for the same piece");
    insta::assert_snapshot!(error(good(), Odd { has_transforms: true, ..Odd::default() }), @"tensor `model.output_layer.weight`, which was written through `transform_descriptors`, cannot be read: save the checkpoint without compression or other storage extensions");
    insta::assert_snapshot!(error(good(), Odd { dtype: Some("float8_e5m2"), ..Odd::default() }), @"tensor `model.output_layer.weight` of dtype float8_e5m2 cannot be read: save the weights as float32, bfloat16 or float16");
    insta::assert_snapshot!(error(good(), Odd { file: Some("../../etc/passwd"), ..Odd::default() }), @"`…/model_weights/.metadata` is damaged at byte 0: data file `../../etc/passwd` is not a plain name");
    insta::assert_snapshot!(error(good(), Odd { file: Some("__1_0.distcp"), ..Odd::default() }), @"`…` has no member `model_weights/__1_0.distcp`");
}
