//! What Megatron-LM saves of a training: `common.pt` of a distributed checkpoint, or an entry of its data files, and
//! `model_optim_rng.pt` of every rank, a dictionary with the program's arguments and perhaps the model beside optimizers, counters and generators.
//!
//! Arguments are a `Namespace` of Python's argparse. They become plain data here: numbers, texts, lists, and the names of
//! whatever else there is.

use hydra_config::Node;
use indexmap::IndexMap;

use super::{Container, Entry, open};
use crate::FormatError;
use crate::partial_models::{is_virtual_stage, virtual_stages};
use crate::pickle::{Names, Pickle, Value, ValueId};

/// How deep dictionaries of the model and lists of the arguments may lie in each other.
const MAX_DEPTH: usize = 8;
/// Entries of the arguments and of their lists, together; real ones have some hundred.
const MAX_NODES: usize = 1 << 16;

/// What such a file holds that says something of the model.
#[derive(Debug)]
pub(crate) struct TrainingFile {
    /// The program's arguments, by their names.
    pub(crate) args: Option<Node>,
    /// `checkpoint_version`, which says how rows are ordered.
    pub(crate) checkpoint_version: Option<f64>,
    /// The tensors of the model, by the names of all dictionaries around them.
    pub(crate) entries: IndexMap<String, Entry>,
}

/// Reads the torch file `bytes`; `file` stands for it in errors.
pub(crate) fn read_training(bytes: &[u8], file: &str) -> Result<TrainingFile, FormatError> {
    let container = open(bytes, file, Names::Training)?;
    let pickle = &container.pickle;
    let not_a_dict = || FormatError::damaged(file, 0, "it does not hold a dictionary");
    // Inside a distributed checkpoint it is the only one of a list.
    let root = match pickle.items(pickle.root()) {
        Some(&[only]) => only,
        _ => pickle.root(),
    };
    let dict = pickle.dict(root).ok_or_else(not_a_dict)?;
    let stage = dict.iter().filter_map(|&(name, _)| pickle.text(name)).find(|name| is_virtual_stage(name));
    if let Some(name) = stage {
        return Err(virtual_stages(file, name));
    }
    let mut entries = IndexMap::new();
    if let Some(model) = pickle.entry(root, "model") {
        flatten(&container, model, file, "", MAX_DEPTH, &mut entries)?;
    }
    let args = pickle.entry(root, "args");
    Ok(TrainingFile {
        args: args.map(|args| namespace(pickle, args, file)).transpose()?,
        checkpoint_version: pickle.entry(root, "checkpoint_version").and_then(|id| number(pickle, id)),
        entries,
    })
}

fn number(pickle: &Pickle, id: ValueId) -> Option<f64> {
    match pickle.value(id) {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}

/// Adds all tensors below a dictionary. The oldest models have a dictionary for each of their parts.
fn flatten(
    container: &Container,
    id: ValueId,
    file: &str,
    prefix: &str,
    depth_left: usize,
    entries: &mut IndexMap<String, Entry>,
) -> Result<(), FormatError> {
    let pickle = &container.pickle;
    let Some(dict) = pickle.dict(id) else { return Ok(()) };
    if depth_left == 0 {
        return Err(FormatError::damaged(
            file,
            0,
            format!("`{prefix}` has too many dictionaries in each other"),
        ));
    }
    for &(name, value) in dict {
        let Some(name) = pickle.text(name) else { continue };
        let name = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        match container.entry(value, file, &name)? {
            Some(entry) => {
                entries.insert(name, entry);
            }
            None => flatten(container, value, file, &name, depth_left - 1, entries)?,
        }
    }
    Ok(())
}

/// The fields of the arguments.
fn namespace(pickle: &Pickle, id: ValueId, file: &str) -> Result<Node, FormatError> {
    let bad =
        || FormatError::damaged(file, 0, "its `args` are no arguments of a program (`argparse.Namespace`)");
    let (class, _, state) = pickle.object(id).ok_or_else(bad)?;
    let fields =
        state.and_then(|state| pickle.dict(state)).filter(|_| class == "Namespace").ok_or_else(bad)?;
    let mut num_left = MAX_NODES;
    let mut args = Node::empty_map();
    let Node::Map(map) = &mut args else { return Ok(args) };
    for &(name, value) in fields {
        if let Some(name) = pickle.text(name) {
            let node = node_of(pickle, value, MAX_DEPTH, &mut num_left);
            map.insert(
                name.to_owned(),
                node.ok_or_else(|| FormatError::Limit {
                    file: file.to_owned(),
                    what: "values of arguments",
                    value: MAX_NODES as u64 + 1,
                    limit: MAX_NODES as u64,
                })?,
            );
        }
    }
    Ok(args)
}

/// A value as data; an object of a class becomes a text of its name. `None` when there are too many.
fn node_of(pickle: &Pickle, id: ValueId, depth_left: usize, num_left: &mut usize) -> Option<Node> {
    *num_left = num_left.checked_sub(1)?;
    Some(match pickle.value(id) {
        Value::None => Node::Null,
        Value::Bool(flag) => Node::Bool(*flag),
        Value::Int(number) => Node::Int(*number),
        Value::Float(number) => Node::Float(*number),
        Value::Str(text) => Node::Str(text.clone()),
        Value::List(items) | Value::Tuple(items) if depth_left > 0 => {
            let items = items.iter().map(|&item| node_of(pickle, item, depth_left - 1, num_left));
            Node::List(items.collect::<Option<_>>()?)
        }
        Value::Dict(entries) if depth_left > 0 => {
            let mut map = Node::empty_map();
            if let Node::Map(inner) = &mut map {
                for &(key, value) in entries {
                    if let Some(key) = pickle.text(key) {
                        inner.insert(key.to_owned(), node_of(pickle, value, depth_left - 1, num_left)?);
                    }
                }
            }
            map
        }
        Value::Global(module, name) => Node::Str(format!("{module}.{name}")),
        Value::Object { callable, arguments, .. } => Node::Str(shown(pickle, *callable, *arguments)),
        _ => Node::Str("a value".to_owned()),
    })
}

/// An object by its class, and one of an enumeration by what it is called or stands for there.
fn shown(pickle: &Pickle, callable: ValueId, arguments: ValueId) -> String {
    let name = |id: ValueId| match pickle.value(id) {
        Value::Global(_, name) => Some(name.as_str()),
        _ => None,
    };
    match (name(callable), pickle.items(arguments)) {
        // How Python 3.11 writes what an enumeration has.
        (Some("getattr"), Some(&[class, member])) => {
            format!("{}.{}", name(class).unwrap_or_default(), pickle.text(member).unwrap_or_default())
        }
        (Some(class), Some(&[value])) if pickle.int(value).is_some() => {
            format!("{class}({})", pickle.int(value).unwrap_or_default())
        }
        (Some(class), _) => class.to_owned(),
        (None, _) => "a value".to_owned(),
    }
}
