//! Files of `torch.save`: a zip (torch >= 1.6) or a row of pickles (before), with tensors in a state dictionary.
//!
//! Nothing in them is executed. Values other than tensors are parsed and dropped. Format: `torch/serialization.py`.

mod non_zip;
mod tensor;
mod training;
mod zip;

use std::collections::HashMap;
use std::ops::Range;

use indexmap::IndexMap;

use self::tensor::Parsed;
pub(crate) use self::tensor::StoredTensor;
pub(crate) use self::training::{TrainingFile, read_training};
use crate::FormatError;
use crate::partial_models::{is_virtual_stage, virtual_stages};
use crate::pickle::{Names, Pickle, Value, ValueId};

/// A file's object and where its storages lie.
struct Container {
    pickle: Pickle,
    storages: HashMap<String, Range<u64>>,
}

/// What a state dictionary has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Tensor(StoredTensor),
    /// A tensor of a type that no weight of a language model has here: its name in torch.
    OtherDtype(String),
}

impl Entry {
    /// The tensor, or the error that its type is not read.
    pub(crate) fn tensor(&self, file: &str, name: &str) -> Result<&StoredTensor, FormatError> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::OtherDtype(dtype) => Err(FormatError::Unsupported {
                what: format!("tensor `{name}` of dtype {dtype} in `{file}`"),
                hint: "save the weights as float32, bfloat16 or float16".to_owned(),
            }),
        }
    }
}

/// The tensors of the state dictionary in the torch file `bytes`, by name; `file` stands for it in errors.
pub(crate) fn read_state_dict(bytes: &[u8], file: &str) -> Result<IndexMap<String, Entry>, FormatError> {
    let container = open(bytes, file, Names::Weights)?;
    let pickle = &container.pickle;
    let not_a_dict = || FormatError::damaged(file, 0, "it does not hold a dictionary of tensors");
    let dict = pickle.dict(state_dict(pickle)).ok_or_else(not_a_dict)?;
    let mut entries = IndexMap::new();
    for &(name, value) in dict {
        let Some(name) = pickle.text(name) else { continue };
        if is_virtual_stage(name) {
            return Err(virtual_stages(file, name));
        }
        if let Some(entry) = container.entry(value, file, name)? {
            entries.insert(name.to_owned(), entry);
        }
    }
    Ok(entries)
}

/// The dictionary of weights: Lightning keeps it under `state_dict`, beside optimizers and counters.
fn state_dict(pickle: &Pickle) -> ValueId {
    let inner = pickle.entry(pickle.root(), "state_dict").filter(|&id| pickle.dict(id).is_some());
    inner.unwrap_or(pickle.root())
}

/// The single tensor of the torch file `bytes`.
pub(crate) fn read_tensor(bytes: &[u8], file: &str) -> Result<StoredTensor, FormatError> {
    let container = open(bytes, file, Names::Weights)?;
    match container.tensor(container.pickle.root(), file, "the tensor")? {
        Parsed::Tensor(tensor) => Ok(tensor),
        Parsed::OtherDtype(dtype) => Err(FormatError::Unsupported {
            what: format!("`{file}`, a tensor of dtype {dtype},"),
            hint: "save the weights as float32, bfloat16 or float16".to_owned(),
        }),
        Parsed::NotATensor => Err(FormatError::damaged(file, 0, "its pickle is not one tensor")),
    }
}

fn open(bytes: &[u8], file: &str, names: Names) -> Result<Container, FormatError> {
    if bytes.starts_with(b"PK\x03\x04") {
        zip::open(bytes, file, names)
    } else if non_zip::is_magic(bytes) {
        non_zip::open(bytes, file, names)
    } else if bytes.get(257..262) == Some(b"ustar") {
        Err(FormatError::Unsupported {
            what: format!("`{file}`, a torch file from before torch 0.1.10,"),
            hint: "load it with a torch of that time and save it again with a newer one".to_owned(),
        })
    } else {
        Err(FormatError::damaged(file, 0, "it is not a torch file: neither a zip nor torch's magic number"))
    }
}

impl Container {
    /// Whether a value is a tensor, and which. `name` is for errors.
    fn tensor(&self, id: ValueId, file: &str, name: &str) -> Result<Parsed, FormatError> {
        tensor::parse(self, id, file, name)
    }

    /// What a state dictionary has in this value, where it is a tensor. `name` is for errors.
    fn entry(&self, id: ValueId, file: &str, name: &str) -> Result<Option<Entry>, FormatError> {
        Ok(match self.tensor(id, file, name)? {
            Parsed::Tensor(tensor) => Some(Entry::Tensor(tensor)),
            Parsed::OtherDtype(dtype) => Some(Entry::OtherDtype(dtype)),
            Parsed::NotATensor => None,
        })
    }

    /// The storages that the pickle mentions: key, class and number of elements.
    fn storage_id(&self, id: ValueId) -> Option<StorageId<'_>> {
        StorageId::read(&self.pickle, id)
    }
}

/// A persistent id of torch: `("storage", class, key, location, numel[, view])`. The location is ignored; key and
/// number of elements are those of the whole storage, even for a view.
struct StorageId<'a> {
    class: &'a str,
    key: &'a str,
    num_elems: u64,
    /// First element and number of elements of a view into the storage; torch before 0.4 wrote such.
    view: Option<(u64, u64)>,
}

impl<'a> StorageId<'a> {
    fn read(pickle: &'a Pickle, id: ValueId) -> Option<Self> {
        let Value::Persistent(id) = pickle.value(id) else { return None };
        let [kind, class, key, _, num_elems, rest @ ..] = pickle.items(*id)? else { return None };
        let Value::Global(_, class) = pickle.value(*class) else { return None };
        if pickle.text(*kind) != Some("storage") {
            return None;
        }
        let key = pickle.text(*key)?;
        let number = |id| u64::try_from(pickle.int(id)?).ok();
        let mut found = Self { class, key, num_elems: number(*num_elems)?, view: None };
        if let Some([_, first, len]) = rest.first().and_then(|&view| pickle.items(view)) {
            found.view = Some((number(*first)?, number(*len)?));
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests;
