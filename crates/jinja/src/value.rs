//! What a template works with: Python's values.
//!
//! Nothing but namespaces and iterators ever changes, since the sandbox forbids every method that would.

mod dict;
mod looping;
mod macros;
mod scope;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

pub(crate) use self::dict::{Dict, Key};
pub(crate) use self::looping::LoopState;
pub(crate) use self::macros::MacroValue;
pub(crate) use self::scope::Scope;
use crate::date::Date;
use crate::error::{Error, ErrorKind, Result};

/// A value of the template language. Clones share their content.
#[derive(Clone)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i128),
    /// The digits of an integer of the data that is too large to calculate with.
    Huge(Rc<str>),
    Float(f64),
    Str(Str),
    List(Rc<Vec<Value>>),
    Tuple(Rc<Vec<Value>>),
    /// What `groupby` gives: a tuple with the attributes `grouper` and `list`.
    Group(Rc<Vec<Value>>),
    Dict(Rc<Dict>),
    Range(Range),
    View(ViewKind, Rc<Dict>),
    /// A generator or another iterator: it can be iterated once.
    Iter(Rc<Iter>),
    Undefined(Rc<Undefined>),
    /// A function of the environment, by its name.
    Function(&'static str),
    /// A method and the value that it belongs to.
    Method(Rc<(Value, &'static str)>),
    Macro(Rc<MacroValue>),
    Namespace(Rc<RefCell<Names>>),
    Loop(Rc<LoopState>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<(Str, RefCell<bool>)>),
}

/// Names and their values, in the order of setting.
pub(crate) type Names = Vec<(Arc<str>, Value)>;

/// Sets an attribute of a namespace, which may not start with an underscore.
pub(crate) fn set_attribute(attributes: &mut Names, name: &Arc<str>, value: Value) -> Result<()> {
    if name.starts_with('_') {
        let shown = crate::text::repr(name);
        return Err(Error::new(
            ErrorKind::Security,
            format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got {shown}. Please rename \
                 the attribute."
            ),
        ));
    }
    match attributes.iter_mut().find(|(known, _)| known == name) {
        Some((_, slot)) => *slot = value,
        None => attributes.push((Arc::clone(name), value)),
    }
    Ok(())
}

/// A string; `is_markup` is `markupsafe.Markup`, which escapes what is joined to it.
#[derive(Clone, Debug)]
pub(crate) struct Str {
    pub(crate) text: Arc<str>,
    pub(crate) is_markup: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ViewKind {
    Keys,
    Values,
    Items,
}

/// `range(start, stop, step)`.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) start: i128,
    pub(crate) stop: i128,
    pub(crate) step: i128,
}

impl Range {
    pub(crate) fn len(self) -> usize {
        let (distance, step) = if self.step > 0 {
            (self.stop - self.start, self.step)
        } else {
            (self.start - self.stop, -self.step)
        };
        if distance <= 0 { 0 } else { usize::try_from((distance + step - 1) / step).unwrap_or(usize::MAX) }
    }

    pub(crate) fn at(self, index: usize) -> i128 {
        self.start + self.step * index as i128
    }
}

pub(crate) struct Cycler {
    pub(crate) items: Vec<Value>,
    pub(crate) position: RefCell<usize>,
}

/// Something that is not there, and how to say so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Undefined {
    pub(crate) hint: Option<String>,
    /// The kind of what it was looked for in.
    pub(crate) owner: Option<String>,
    /// Its name as it is shown, and whether it is a string.
    pub(crate) name: (String, bool),
    pub(crate) is_security: bool,
}

impl Undefined {
    pub(crate) fn error(&self) -> Error {
        let kind = if self.is_security { ErrorKind::Security } else { ErrorKind::Undefined };
        let (name, is_string) = &self.name;
        let message = match (&self.hint, &self.owner) {
            (Some(hint), _) => hint.clone(),
            (None, None) => format!("{name} is undefined"),
            (None, Some(owner)) if !is_string => format!("{owner} has no element {name}"),
            (None, Some(owner)) => format!("'{owner}' has no attribute {name}"),
        };
        Error::new(kind, message)
    }
}

/// What values ask of the rendering that they are part of.
pub(crate) trait Rendering {
    /// The date that the caller gives.
    fn date(&self) -> Option<Date>;

    /// Whether the template has a block of this name.
    fn has_block(&self, name: &str) -> bool;

    /// Whether the `if` of a loop lets an item in.
    fn is_wanted(&self, item: &Value, state: &LoopState) -> Result<bool>;
}

/// Makes the items of an iterator when they are first asked for, as a generator does.
pub(crate) type Producer = Box<dyn FnOnce(&dyn Rendering) -> Result<Vec<Value>>>;

/// An iterator. `kind` is the name of its type.
pub(crate) struct Iter {
    pub(crate) kind: &'static str,
    state: RefCell<IterState>,
}

enum IterState {
    Waiting(Producer),
    Items(VecDeque<Value>),
}

impl Iter {
    pub(crate) fn lazy(kind: &'static str, producer: Producer) -> Value {
        Value::Iter(Rc::new(Self { kind, state: RefCell::new(IterState::Waiting(producer)) }))
    }

    pub(crate) fn of(kind: &'static str, items: Vec<Value>) -> Value {
        Value::Iter(Rc::new(Self { kind, state: RefCell::new(IterState::Items(items.into())) }))
    }

    fn fill(&self, renderer: &dyn Rendering) -> Result<()> {
        // Taken out before it runs: a generator that asks for its own items finds none.
        let state = self.state.replace(IterState::Items(VecDeque::new()));
        let items = match state {
            IterState::Waiting(producer) => producer(renderer)?.into(),
            IterState::Items(items) => items,
        };
        self.state.replace(IterState::Items(items));
        Ok(())
    }

    /// Every item that is left.
    pub(crate) fn drain(&self, renderer: &dyn Rendering) -> Result<Vec<Value>> {
        self.fill(renderer)?;
        match self.state.replace(IterState::Items(VecDeque::new())) {
            IterState::Items(items) => Ok(items.into()),
            IterState::Waiting(_) => Ok(Vec::new()),
        }
    }

    pub(crate) fn next(&self, renderer: &dyn Rendering) -> Result<Option<Value>> {
        self.fill(renderer)?;
        match &mut *self.state.borrow_mut() {
            IterState::Items(items) => Ok(items.pop_front()),
            IterState::Waiting(_) => Ok(None),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(Str { text: text.into(), is_markup: false })
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(Str { text: text.into(), is_markup: false })
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Int(count as i128)
    }
}

impl Value {
    pub(crate) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }

    pub(crate) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Rc::new(items))
    }

    pub(crate) fn dict(dict: Dict) -> Self {
        Self::Dict(Rc::new(dict))
    }

    pub(crate) fn markup(text: impl Into<Arc<str>>) -> Self {
        Self::Str(Str { text: text.into(), is_markup: true })
    }

    /// An undefined value that says `hint` when it is used.
    pub(crate) fn undefined(hint: impl Into<String>) -> Self {
        Self::Undefined(Rc::new(Undefined { hint: Some(hint.into()), ..Undefined::default() }))
    }

    /// What a name that nothing defines is.
    pub(crate) fn undefined_name(name: &str) -> Self {
        let name = (crate::text::repr(name), true);
        Self::Undefined(Rc::new(Undefined { name, ..Undefined::default() }))
    }

    /// The name of the type, as Python has it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Huge(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) if text.is_markup => "Markup",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Group(_) => "_GroupTuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(ViewKind::Keys, _) => "dict_keys",
            Self::View(ViewKind::Values, _) => "dict_values",
            Self::View(ViewKind::Items, _) => "dict_items",
            Self::Iter(iter) => iter.kind,
            Self::Undefined(_) => "Undefined",
            Self::Function("dict") => "TemplateDict",
            Self::Function("namespace" | "cycler" | "joiner") => "type",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
            Self::Macro(_) => "Macro",
            Self::Namespace(_) => "TemplateNamespace",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    /// What `object_type_repr` says of it.
    pub(crate) fn type_repr(&self) -> String {
        match self {
            Self::None => "None".to_owned(),
            Self::Str(text) if text.is_markup => "markupsafe.Markup object".to_owned(),
            Self::Loop(_) => "jinja2.runtime.LoopContext object".to_owned(),
            Self::Macro(_) => "jinja2.runtime.Macro object".to_owned(),
            Self::Cycler(_) => "jinja2.utils.Cycler object".to_owned(),
            Self::Joiner(_) => "jinja2.utils.Joiner object".to_owned(),
            Self::Group(_) => "jinja2.filters._GroupTuple object".to_owned(),
            other => format!("{} object", other.type_name()),
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::None | Self::Undefined(_) => false,
            Self::Bool(flag) => *flag,
            Self::Int(int) => *int != 0,
            Self::Float(float) => *float != 0.0,
            Self::Str(text) => !text.text.is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => !items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => dict.len() > 0,
            Self::Range(range) => range.len() > 0,
            // A generator is true even when it has nothing to give.
            _ => true,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(&text.text),
            _ => None,
        }
    }

    /// An integer where Python takes one: `True` is 1.
    pub(crate) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Bool(flag) => Some(i128::from(*flag)),
            _ => None,
        }
    }

    pub(crate) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            other => other.as_int().map(|int| int as f64),
        }
    }

    /// Number of items, `len()` of Python's.
    pub(crate) fn len(&self) -> Result<usize> {
        Ok(match self {
            Self::Str(text) => text.text.chars().count(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.len(),
            Self::Range(range) => range.len(),
            Self::Undefined(_) => 0,
            Self::Loop(_) => return Err(Error::refused("the length of `loop` is `loop.length`")),
            other => {
                return Err(Error::type_error(format!(
                    "object of type '{}' has no len()",
                    other.type_name()
                )));
            }
        })
    }

    /// The items that going through it gives.
    ///
    /// # Errors
    /// When it cannot be iterated, or a generator fails.
    pub(crate) fn items(&self, renderer: &dyn Rendering) -> Result<Vec<Self>> {
        Ok(match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.to_vec(),
            Self::Str(text) => text.text.chars().map(|c| Self::from(c.to_string())).collect(),
            Self::Dict(dict) | Self::View(ViewKind::Keys, dict) => {
                dict.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::View(ViewKind::Values, dict) => dict.iter().map(|(_, value)| value.clone()).collect(),
            Self::View(ViewKind::Items, dict) => {
                dict.iter().map(|(key, value)| Self::tuple(vec![key.clone(), value.clone()])).collect()
            }
            Self::Range(range) => (0..range.len()).map(|index| Self::Int(range.at(index))).collect(),
            Self::Iter(iter) => iter.drain(renderer)?,
            Self::Undefined(_) => Vec::new(),
            other => {
                return Err(Error::type_error(format!("'{}' object is not iterable", other.type_name())));
            }
        })
    }

    /// Whether it has a length and items by their places or keys. An undefined value has both, and none.
    pub(crate) fn is_sequence(&self) -> bool {
        matches!(
            self,
            Self::Str(_)
                | Self::List(_)
                | Self::Tuple(_)
                | Self::Group(_)
                | Self::Dict(_)
                | Self::Range(_)
                | Self::Undefined(_)
        )
    }

    pub(crate) fn is_iterable(&self) -> bool {
        self.is_sequence() || matches!(self, Self::View(..) | Self::Iter(_))
    }

    pub(crate) fn is_callable(&self) -> bool {
        matches!(
            self,
            Self::Function(_)
                | Self::Method(_)
                | Self::Macro(_)
                | Self::Loop(_)
                | Self::Joiner(_)
                | Self::Undefined(_)
        )
    }
}

impl Str {
    /// A string of the same kind.
    pub(crate) fn with(&self, text: impl Into<Arc<str>>) -> Value {
        Value::Str(Self { text: text.into(), is_markup: self.is_markup })
    }
}
