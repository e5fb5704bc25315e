//! The arguments of a call, and how they are given to parameters.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::value::Value;

/// Arguments, worked out.
#[derive(Clone, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Value>,
    pub(crate) named: Vec<(Arc<str>, Value)>,
}

impl Args {
    pub(crate) fn of(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// Gives the arguments to the parameters `names`, of which the first `num_required` must be there.
    ///
    /// # Errors
    /// When one is missing, given twice or not known.
    pub(crate) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        num_required: usize,
    ) -> Result<[Option<Value>; N]> {
        let num_given = self.positional.len();
        if num_given > N {
            return Err(Error::type_error(format!(
                "{function}() takes at most {N} arguments ({num_given} given)"
            )));
        }
        let mut positional = self.positional.into_iter();
        let mut bound = [const { None }; N];
        for slot in &mut bound {
            *slot = positional.next();
        }
        for (name, value) in self.named {
            let Some(position) = names.iter().position(|known| **known == *name) else {
                return Err(Error::type_error(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[position].is_some() {
                return Err(Error::type_error(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
            bound[position] = Some(value);
        }
        match names.iter().zip(&bound).take(num_required).find(|(_, value)| value.is_none()) {
            Some((name, _)) => Err(Error::type_error(format!(
                "{function}() missing 1 required positional argument: '{name}'"
            ))),
            None => Ok(bound),
        }
    }

    /// The same for a function that takes no names.
    pub(crate) fn unnamed<const N: usize>(
        self,
        function: &str,
        num_required: usize,
    ) -> Result<[Option<Value>; N]> {
        if !self.named.is_empty() {
            return Err(Error::type_error(format!("{function}() takes no keyword arguments")));
        }
        let num_given = self.positional.len();
        if num_given < num_required || num_given > N {
            return Err(Error::type_error(format!("{function}() cannot take {num_given} arguments")));
        }
        let mut positional = self.positional.into_iter();
        let mut bound = [const { None }; N];
        for slot in &mut bound {
            *slot = positional.next();
        }
        Ok(bound)
    }
}

/// An integer argument.
pub(crate) fn int(value: &Value) -> Result<i128> {
    value.as_int().ok_or_else(|| {
        Error::type_error(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
    })
}

/// An integer argument that may be left out.
pub(crate) fn int_or(value: Option<&Value>, default: i128) -> Result<i128> {
    value.map_or(Ok(default), int)
}

/// A string argument.
pub(crate) fn string(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| Error::type_error(format!("must be str, not {}", value.type_name())))
}

/// A flag that may be left out: anything counts as true or false.
pub(crate) fn flag(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}
