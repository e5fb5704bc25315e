//! The zarr backend: zarr v2 arrays, a folder each, their chunks raw files in C order.
//!
//! Only what `megatron.core.dist_checkpointing` writes: no compressor, no filters. bfloat16 is not a type of zarr; it
//! appears as `bfloat16` or as two opaque bytes, `<V2`. Specification: zarr-specs `docs/v2/v2.0.rst`.

use serde::Deserialize;
use serde_json::Value;

use super::member_of;
use crate::archive::Archive;
use crate::naming::is_weight;
use crate::pieced::{Array, Piece, PieceData};
use crate::region::row_major_strides_elems;
use crate::{DType, FormatError, TensorMeta};

/// Chunks of one array; more than any real one has.
const MAX_CHUNKS: u64 = 1 << 15;

/// The file `.zarray`.
#[derive(Debug, Deserialize)]
struct Zarray {
    zarr_format: u64,
    shape: Vec<u64>,
    chunks: Vec<u64>,
    dtype: Value,
    compressor: Option<Value>,
    filters: Option<Value>,
    order: String,
    #[serde(default)]
    dimension_separator: Option<String>,
}

/// All arrays that are weights.
pub(super) fn arrays(archive: &Archive, folder: &str) -> Result<Vec<Array>, FormatError> {
    let key_of = |name: &str| {
        let rest = name.strip_prefix(folder)?;
        let key = if folder.is_empty() { rest } else { rest.strip_prefix('/')? }.strip_suffix("/.zarray")?;
        is_weight(key).then(|| key.to_owned())
    };
    let keys: Vec<String> = archive.names().filter_map(key_of).collect();
    if keys.is_empty() {
        let member = member_of(folder, "<tensor>/.zarray");
        return Err(FormatError::MissingMember { path: archive.path().to_owned(), member });
    }
    keys.into_iter().map(|key| array(archive, folder, key)).collect()
}

fn array(archive: &Archive, folder: &str, key: String) -> Result<Array, FormatError> {
    let member = member_of(folder, &format!("{key}/.zarray"));
    let file = archive.describe(&member);
    let header: Zarray = serde_json::from_slice(archive.member(&member)?)
        .map_err(|error| FormatError::damaged(&file, error.column(), error.to_string()))?;
    let dtype = check(&header, &key)?;
    let num_axes = header.shape.len();
    if header.chunks.len() != num_axes || header.chunks.contains(&0) {
        let reason = format!("its chunks {:?} do not fit its shape {:?}", header.chunks, header.shape);
        return Err(FormatError::bad_tensor(&key, reason));
    }
    let meta = TensorMeta { dtype, shape: header.shape };
    let chunk_meta = TensorMeta { dtype, shape: header.chunks };
    let grid: Vec<u64> =
        meta.shape.iter().zip(&chunk_meta.shape).map(|(dim, chunk)| dim.div_ceil(*chunk)).collect();
    let num_chunks = grid.iter().try_fold(1_u64, |product, &count| product.checked_mul(count));
    let num_chunks = num_chunks.filter(|&count| count <= MAX_CHUNKS);
    let Some(num_chunks) = num_chunks else {
        let value = grid.iter().fold(1_u64, |product, &count| product.saturating_mul(count));
        return Err(FormatError::Limit { file, what: "chunks", value, limit: MAX_CHUNKS });
    };
    let separator = header.dimension_separator.unwrap_or_else(|| ".".to_owned());
    let strides_elems = row_major_strides_elems(&chunk_meta.shape);
    let mut pieces = Vec::new();
    for chunk_idx in 0..num_chunks {
        let mut index = vec![0; num_axes];
        let mut rest = chunk_idx;
        for axis in (0..num_axes).rev() {
            index[axis] = rest % grid[axis];
            rest /= grid[axis];
        }
        // A chunk at the edge is stored whole, padded beyond the array.
        let offsets: Vec<u64> = index.iter().zip(&chunk_meta.shape).map(|(at, chunk)| at * chunk).collect();
        let sizes = offsets
            .iter()
            .zip(&chunk_meta.shape)
            .zip(&meta.shape)
            .map(|((&offset, &chunk), &dim)| chunk.min(dim - offset))
            .collect();
        let names: Vec<String> = index.iter().map(u64::to_string).collect();
        let name = if names.is_empty() { "0".to_owned() } else { names.join(&separator) };
        let member_idx = chunk(archive, &member_of(folder, &format!("{key}/{name}")), &key, &chunk_meta)?;
        let data = PieceData::Strided { start_bytes: 0, strides_elems: strides_elems.clone() };
        pieces.push(Piece { offsets, sizes, member_idx, data });
    }
    Ok(Array { name: key, meta, pieces })
}

/// The file of a chunk, which must have just the chunk's size.
fn chunk(archive: &Archive, member: &str, key: &str, meta: &TensorMeta) -> Result<usize, FormatError> {
    // The fill value is null: what no file holds has no value.
    let member_idx = archive.index_of(member)?;
    let actual_bytes = archive.at(member_idx).len() as u64;
    if meta.size_bytes() != Some(actual_bytes) {
        let reason = format!(
            "its chunk file `{member}` has {actual_bytes} bytes, a chunk of {:?} {} needs {}; copy the checkpoint again",
            meta.shape,
            meta.dtype.name(),
            meta.size_bytes().map_or("too many".to_owned(), |size| size.to_string())
        );
        return Err(FormatError::bad_tensor(key, reason));
    }
    Ok(member_idx)
}

/// The dtype of an array that is stored the way Megatron stores it.
fn check(header: &Zarray, key: &str) -> Result<DType, FormatError> {
    let refused = |what: String| {
        Err(FormatError::Unsupported {
            what: format!("the zarr array `{key}` with {what}"),
            hint:
                "write it again as Megatron does: zarr v2, no compressor, no filters, order C, little endian"
                    .to_owned(),
        })
    };
    if header.zarr_format != 2 {
        return refused(format!("`zarr_format` {}", header.zarr_format));
    }
    if let Some(compressor) = &header.compressor {
        let id = compressor.get("id").and_then(Value::as_str).unwrap_or("unknown");
        return refused(format!("the compressor `{id}`"));
    }
    if header.filters.as_ref().is_some_and(|filters| filters.as_array().is_none_or(|list| !list.is_empty())) {
        return refused("filters".to_owned());
    }
    if header.order != "C" {
        return refused(format!("order `{}`", header.order));
    }
    if let Some(separator) = header.dimension_separator.as_deref().filter(|text| !matches!(*text, "." | "/"))
    {
        return refused(format!("the separator `{separator}`"));
    }
    match header.dtype.as_str().unwrap_or_default() {
        "<f8" => Ok(DType::F64),
        "<f4" => Ok(DType::F32),
        "<f2" => Ok(DType::F16),
        "bfloat16" | "<V2" | "|V2" => Ok(DType::BF16),
        "<i8" => Ok(DType::I64),
        "<i4" => Ok(DType::I32),
        "<i2" => Ok(DType::I16),
        "|i1" => Ok(DType::I8),
        "|u1" => Ok(DType::U8),
        "|b1" => Ok(DType::Bool),
        _ => refused(format!("dtype `{}`", header.dtype)),
    }
}
