//! safetensors files, single or sharded, as a [`TensorSource`] that keeps the names of the file.
//!
//! The header is parsed and validated by the `safetensors` crate; bytes stay in the mapping until asked for.
//! Layout: <https://github.com/huggingface/safetensors#format>. It does not rename or convert tensors.

use std::path::Path;

use indexmap::IndexMap;
use safetensors::{Dtype, SafeTensors};

use crate::mmap::Mapped;
use crate::region::copy_region;
use crate::weight_index::WeightIndex;
use crate::{DType, FormatError, Region, TensorMeta, TensorSource};

/// The index of a sharded checkpoint.
pub(crate) const INDEX_NAME: &str = "model.safetensors.index.json";
/// The file of an unsharded checkpoint.
pub(crate) const SINGLE_NAME: &str = "model.safetensors";

/// The tensors of one or more safetensors files.
#[derive(Debug)]
pub struct SafetensorsSource {
    files: Vec<Mapped>,
    tensors: IndexMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file_idx: usize,
    offset_bytes: usize,
    size_bytes: usize,
    meta: TensorMeta,
}

impl SafetensorsSource {
    /// Opens one `.safetensors` file.
    ///
    /// # Errors
    /// When the file cannot be mapped, its header is damaged, or it has a dtype that torch models do not use.
    pub fn open_file(path: &Path) -> Result<Self, FormatError> {
        let mut source = Self { files: Vec::new(), tensors: IndexMap::new() };
        source.add_file(path)?;
        Ok(source)
    }

    /// Opens the weights of a Hugging Face folder: `model.safetensors`, or `model.safetensors.index.json` with its
    /// shards, in the order of transformers.
    ///
    /// # Errors
    /// As [`Self::open_file`]; also when the index names a file outside the folder or a tensor that no shard has.
    pub fn open_folder(folder: &Path) -> Result<Self, FormatError> {
        let [single, index] = [SINGLE_NAME, INDEX_NAME].map(|name| folder.join(name));
        if single.is_file() {
            return Self::open_file(&single);
        }
        if !index.is_file() {
            return Err(FormatError::MissingMember {
                path: folder.to_path_buf(),
                member: format!("{SINGLE_NAME}` or `{INDEX_NAME}"),
            });
        }
        let index = WeightIndex::read(&index)?;
        index.check_shards(folder)?;
        let source = Self::open_files(folder, index.shards())?;
        index.check(&source)?;
        Ok(source)
    }

    /// Opens files that hold one model between them. All that they hold counts, as in transformers.
    pub(crate) fn open_files<'a>(
        folder: &Path,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, FormatError> {
        let mut source = Self { files: Vec::new(), tensors: IndexMap::new() };
        for name in names {
            source.add_file(&folder.join(name))?;
        }
        Ok(source)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), FormatError> {
        let mapped = Mapped::open(path)?;
        for (name, entry) in parse_header(&path.display().to_string(), mapped.bytes(), self.files.len())? {
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(FormatError::bad_tensor(&name, "it is stored in more than one shard"));
            }
        }
        self.files.push(mapped);
        Ok(())
    }

    /// The base name of the file that has a tensor.
    pub(crate) fn file_of(&self, name: &str) -> Option<String> {
        let file = self.files.get(self.tensors.get(name)?.file_idx)?;
        Some(file.path().file_name()?.to_string_lossy().into_owned())
    }

    fn bytes_of(&self, entry: &Entry) -> Option<&[u8]> {
        self.files.get(entry.file_idx)?.bytes().get(entry.offset_bytes..)?.get(..entry.size_bytes)
    }
}

impl TensorSource for SafetensorsSource {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors.get(name).map(|entry| &entry.meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let missing = || FormatError::MissingTensor { name: name.to_owned() };
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.bytes_of(entry).ok_or_else(missing)?;
        copy_region(name, &entry.meta, bytes, region, dst)
    }

    fn mapped_bytes(&self, name: &str) -> Option<&[u8]> {
        self.bytes_of(self.tensors.get(name)?)
    }
}

fn parse_header(file: &str, bytes: &[u8], file_idx: usize) -> Result<Vec<(String, Entry)>, FormatError> {
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|source| FormatError::damaged(file, 0, source.to_string()))?;
    let data_start = header_bytes + size_of::<u64>();
    let mut names = metadata.offset_keys();
    names.sort_by_key(|name| metadata.info(name).map(|info| info.data_offsets.0));
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let Some(info) = metadata.info(&name) else { continue };
        let dtype = dtype_of(info.dtype).ok_or_else(|| FormatError::Unsupported {
            what: format!("tensor `{name}` of dtype {:?} in `{file}`", info.dtype),
            hint: "save it as a floating-point type".into(),
        })?;
        let meta = TensorMeta { dtype, shape: info.shape.iter().map(|&dim| dim as u64).collect() };
        let (start, end) = info.data_offsets;
        entries.push((
            name,
            Entry { file_idx, offset_bytes: data_start + start, size_bytes: end - start, meta },
        ));
    }
    Ok(entries)
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

/// The format's name of a type.
pub(crate) const fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::I8 => "I8",
        DType::U8 => "U8",
        DType::F8E4M3 => "F8_E4M3",
        DType::Bool => "BOOL",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    use super::*;

    fn sample(names: &[&str]) -> Vec<u8> {
        let data: Vec<u8> = (0..24).collect();
        let views: HashMap<String, TensorView<'_>> = names
            .iter()
            .map(|name| ((*name).to_owned(), TensorView::new(Dtype::F32, vec![2, 3], &data).unwrap()))
            .collect();
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn shards_and_regions() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.safetensors"), sample(&["x"])).unwrap();
        std::fs::write(folder.path().join("b.safetensors"), sample(&["y"])).unwrap();
        let index =
            r#"{"metadata":{"total_size":48},"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#;
        std::fs::write(folder.path().join(INDEX_NAME), index).unwrap();
        let source = SafetensorsSource::open_folder(folder.path()).unwrap();
        assert_eq!(source.names().collect::<Vec<_>>(), ["x", "y"]);
        let mut dst = vec![0; 16];
        source.read("y", &Region { ranges: vec![0..2, 1..3] }, &mut dst).unwrap();
        assert_eq!(dst, [4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]);
        assert_eq!(source.mapped_bytes("x").unwrap().len(), 24);
    }

    #[test]
    fn an_index_must_not_leave_the_folder_or_lie() {
        let check = |index: &str| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a.safetensors"), sample(&["x"])).unwrap();
            std::fs::write(folder.path().join(INDEX_NAME), index).unwrap();
            let error = SafetensorsSource::open_folder(folder.path()).unwrap_err().to_string();
            error.replace(&folder.path().display().to_string(), "FOLDER")
        };
        insta::assert_snapshot!(check(r#"{"weight_map":{"x":"../a.safetensors"}}"#), @"`FOLDER/model.safetensors.index.json` is damaged at byte 0: the shard `../a.safetensors` is not a plain file name");
        insta::assert_snapshot!(check(r#"{"weight_map":{"z":"a.safetensors"}}"#), @"tensor `z` is inconsistent: the index says it is in `a.safetensors`, and no shard has it");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn mutated_bytes_never_panic(at in 0_usize..200, value in any::<u8>(), cut in 0_usize..250) {
            let mut bytes = sample(&["x", "y"]);
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len().saturating_sub(cut % 40));
            if let Ok(entries) = parse_header("f", &bytes, 0) {
                for (name, entry) in entries {
                    prop_assert!(entry.offset_bytes + entry.size_bytes <= bytes.len(), "{name}");
                }
            }
        }
    }
}
