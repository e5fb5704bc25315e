//! Small checkpoint files made by the test: safetensors and GGUF.

use std::path::Path;

use nemo_format::{DType, SafetensorsSource, TensorSource};
use serde_json::{Map, Value, json};

/// A tensor: name, type, shape and bytes.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: Vec<u8>,
}

impl Tensor {
    pub(super) fn f32(name: &str, shape: &[u64], value: impl Fn(usize) -> f32) -> Self {
        let num_elems = shape.iter().product::<u64>() as usize;
        let bytes = (0..num_elems).flat_map(|at| value(at).to_le_bytes()).collect();
        Self { name: name.to_owned(), dtype: "F32", shape: shape.to_vec(), bytes }
    }
}

/// The tensors of a file.
pub(super) fn read_safetensors(path: &Path) -> Vec<Tensor> {
    let source = SafetensorsSource::open_file(path).unwrap();
    let names: Vec<String> = source.names().map(str::to_owned).collect();
    let tensor = |name: String| {
        let meta = source.meta(&name).unwrap().clone();
        let dtype = if meta.dtype == DType::F32 { "F32" } else { "BF16" };
        let bytes = source.read_whole(&name).unwrap();
        Tensor { name, dtype, shape: meta.shape, bytes }
    };
    names.into_iter().map(tensor).collect()
}

pub(super) fn write_safetensors(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(text.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}

/// A metadata value of GGUF.
#[derive(Clone)]
pub(super) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
}

/// A file of these keys and tensors, all of float32.
pub(super) fn write_gguf(path: &Path, keys: &[(&str, Meta)], tensors: &[Tensor]) {
    const ALIGNMENT: usize = 32;
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend_from_slice(&(text.len() as u64).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    };
    let mut file = b"GGUF".to_vec();
    file.extend_from_slice(&3_u32.to_le_bytes());
    file.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    file.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut file, key);
        let (kind, bytes) = match value {
            Meta::U32(value) => (4_u32, value.to_le_bytes().to_vec()),
            Meta::F32(value) => (6, value.to_le_bytes().to_vec()),
            Meta::Bool(value) => (7, vec![u8::from(*value)]),
            Meta::Text(value) => {
                let mut bytes = Vec::new();
                text(&mut bytes, value);
                (8, bytes)
            }
        };
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&bytes);
    }
    let mut data = Vec::new();
    for tensor in tensors {
        text(&mut file, &tensor.name);
        file.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            file.extend_from_slice(&dim.to_le_bytes());
        }
        file.extend_from_slice(&0_u32.to_le_bytes());
        file.extend_from_slice(&(data.len() as u64).to_le_bytes());
        data.extend_from_slice(&tensor.bytes);
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}
