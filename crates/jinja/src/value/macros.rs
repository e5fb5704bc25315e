//! A macro, and the body of a call block, as a value.

use std::rc::Rc;
use std::sync::Arc;

use super::{Scope, Value};
use crate::ast::MacroDef;

/// A macro and where it was defined.
pub(crate) struct MacroValue {
    pub(crate) definition: Arc<MacroDef>,
    pub(crate) scope: Rc<Scope>,
}

impl MacroValue {
    /// A property of Jinja's `Macro`.
    pub(crate) fn attribute(&self, name: &str) -> Option<Value> {
        let definition = &self.definition;
        Some(match name {
            "name" => definition.name.as_deref().map_or(Value::None, Value::from),
            "arguments" => {
                Value::tuple(definition.params.iter().map(|param| Value::from(&**param)).collect())
            }
            "catch_kwargs" => Value::Bool(definition.uses.kwargs),
            "catch_varargs" => Value::Bool(definition.uses.varargs),
            "caller" => Value::Bool(definition.uses.caller),
            "explicit_caller" => Value::Bool(definition.params.iter().any(|param| **param == *"caller")),
            _ => return None,
        })
    }
}
