//! Macros and the bodies of call blocks.

use std::rc::Rc;
use std::sync::Arc;

use super::Renderer;
use crate::args::Args;
use crate::ast::MacroDef;
use crate::error::{Error, Result};
use crate::text;
use crate::value::{Dict, MacroValue, Scope, Value};

impl Renderer<'_> {
    pub(super) fn macro_value(&self, definition: &Arc<MacroDef>, scope: &Rc<Scope>) -> Value {
        self.macro_scopes.borrow_mut().push(Rc::clone(scope));
        Value::Macro(Rc::new(MacroValue { definition: Arc::clone(definition), scope: Rc::clone(scope) }))
    }

    /// The text of a macro called with `args`, given to its parameters as `Macro.__call__` does.
    pub(super) fn call_macro(&self, called: &MacroValue, args: Args) -> Result<String> {
        let definition = &called.definition;
        let shown_name = definition.name.as_deref().map_or_else(|| "None".to_owned(), text::repr);
        let scope = called.scope.child();
        let (num_params, num_given) = (definition.params.len(), args.positional.len());
        let mut named = args.named;
        let mut take = |name: &str| {
            let at = named.iter().position(|(known, _)| **known == *name)?;
            Some(named.remove(at).1)
        };
        let mut positional = args.positional.into_iter();
        let mut given: Vec<Option<Value>> = positional.by_ref().take(num_params).map(Some).collect();
        for param in &definition.params[given.len()..] {
            given.push(take(param));
        }
        if definition.uses.caller {
            let caller = take("caller").unwrap_or_else(|| Value::undefined("No caller defined"));
            scope.set(&Arc::from("caller"), caller);
        }
        if definition.uses.kwargs {
            let mut dict = Dict::default();
            named.drain(..).for_each(|(name, value)| dict.insert_str(&name, value));
            scope.set(&Arc::from("kwargs"), Value::dict(dict));
        } else if let Some((name, _)) = named.first() {
            return Err(Error::type_error(if &**name == "caller" {
                format!(
                    "macro {shown_name} was invoked with two values for the special caller argument. This is most likely \
                     a bug."
                )
            } else {
                format!("macro {shown_name} takes no keyword argument {}", text::repr(name))
            }));
        }
        if definition.uses.varargs {
            scope.set(&Arc::from("varargs"), Value::tuple(positional.collect()));
        } else if num_given > num_params {
            let message = format!("macro {shown_name} takes not more than {num_params} argument(s)");
            return Err(Error::type_error(message));
        }
        let num_required = num_params - definition.defaults.len();
        for (position, (param, value)) in definition.params.iter().zip(given).enumerate() {
            let value = match (value, position.checked_sub(num_required)) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(&definition.defaults[default], &scope)?,
                (None, None) => Value::undefined(format!("parameter {} was not provided", text::repr(param))),
            };
            scope.set(param, value);
        }
        let mut text = String::new();
        self.run(&definition.body, &scope, &mut text)?;
        Ok(text)
    }
}
