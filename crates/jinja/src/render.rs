//! Walking the tree: statements, scopes and macros. Expressions are in [`expression`], loops in [`looping`].

mod expression;
mod looping;
mod macros;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::args::Args;
use crate::ast::{Named, Stmt, Target};
use crate::date::Date;
use crate::error::{Error, ErrorKind, Result};
use crate::filters;
use crate::value::{LoopState, Rendering, Scope, Value, set_attribute};

/// How deep expressions, statements and calls may lie in each other while rendering.
///
/// A template that calls itself without end is refused here, before the stack of a thread is full.
const MAX_DEPTH: usize = 300;

/// One rendering.
pub(crate) struct Renderer<'a> {
    /// The variables that the caller gives.
    root: Rc<Scope>,
    date: Option<Date>,
    depth: Cell<usize>,
    /// Scopes that macros refer back to; these reference cycles are broken at the end.
    macro_scopes: RefCell<Vec<Rc<Scope>>>,
    /// The names of the template's blocks.
    blocks: &'a [Arc<str>],
}

/// How a run of statements ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Normal,
    Break,
    Continue,
}

/// Renders `body`, which has `blocks`, with `variables`.
///
/// # Errors
/// As the template's in Python, or when it asks for what this engine does not do.
pub(crate) fn render(
    body: &[Stmt],
    blocks: &[Arc<str>],
    variables: Vec<(Arc<str>, Value)>,
    date: Option<Date>,
) -> Result<String> {
    let renderer = Renderer {
        root: Scope::root(variables),
        date,
        depth: Cell::new(0),
        macro_scopes: RefCell::new(Vec::new()),
        blocks,
    };
    let mut out = String::new();
    let top = renderer.root.child();
    let ended = renderer.run(body, &top, &mut out);
    for scope in renderer.macro_scopes.take() {
        scope.clear();
    }
    ended.map(|_| out)
}

impl Rendering for Renderer<'_> {
    fn date(&self) -> Option<Date> {
        self.date
    }

    fn has_block(&self, name: &str) -> bool {
        self.blocks.iter().any(|block| **block == *name)
    }

    fn is_wanted(&self, item: &Value, state: &LoopState) -> Result<bool> {
        let Some(filter) = &state.node.filter else { return Ok(true) };
        let scope = state.scope.child();
        self.assign(&state.node.target, item.clone(), &scope)?;
        Ok(self.eval(filter, &scope)?.is_true())
    }
}

impl Renderer<'_> {
    /// Runs `inner` one level deeper.
    fn deeper<T>(&self, inner: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.depth.get() >= MAX_DEPTH {
            return Err(Error::new(ErrorKind::Recursion, "maximum recursion depth exceeded"));
        }
        self.depth.set(self.depth.get() + 1);
        let ended = inner();
        self.depth.set(self.depth.get() - 1);
        ended
    }

    fn run(&self, body: &[Stmt], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        for statement in body {
            let flow = self.deeper(|| self.statement(statement, scope, out))?;
            if flow != Flow::Normal {
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    /// The text of a body in a scope of its own.
    fn text_of(&self, body: &[Stmt], scope: &Rc<Scope>) -> Result<String> {
        let mut text = String::new();
        self.run(body, &scope.child(), &mut text)?;
        Ok(text)
    }

    fn statement(&self, statement: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        match statement {
            Stmt::Text(text) => out.push_str(text),
            Stmt::Print(expr) => match self.eval(expr, scope)? {
                Value::Str(text) => out.push_str(&text.text),
                value => out.push_str(&value.to_text()?),
            },
            Stmt::For(node) => self.run_for(node, scope, out)?,
            Stmt::If { arms, otherwise } => {
                for (test, body) in arms {
                    if self.eval(test, scope)?.is_true() {
                        return self.run(body, scope, out);
                    }
                }
                return self.run(otherwise, scope, out);
            }
            Stmt::Set(target, expr) => {
                let value = self.eval(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::SetBlock { target, filters, body } => {
                let text = Value::from(self.text_of(body, scope)?);
                let value = self.apply_filters(filters, text, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::With { bindings, body } => {
                let inner = scope.child();
                for (target, expr) in bindings {
                    let value = self.eval(expr, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.run(body, &inner, out);
            }
            Stmt::Macro(definition) => {
                let value = self.macro_value(definition, scope);
                if let Some(name) = &definition.name {
                    scope.set(name, value);
                }
            }
            Stmt::CallBlock { function, args, caller } => {
                let function = self.eval(function, scope)?;
                let mut args = self.eval_args(args, scope)?;
                args.named.push((Arc::from("caller"), self.macro_value(caller, scope)));
                push_output(out, &self.call(&function, args)?)?;
            }
            Stmt::FilterBlock { filters, body } => {
                let text = Value::from(self.text_of(body, scope)?);
                push_output(out, &self.apply_filters(filters, text, scope)?)?;
            }
            Stmt::Block { is_scoped, body } => {
                let outer = if *is_scoped { scope.child() } else { scope.top().child() };
                return self.run(body, &outer, out).map(|_| Flow::Normal);
            }
            Stmt::Generation(body) => out.push_str(&self.text_of(body, scope)?),
            Stmt::Autoescape(expr, body) => {
                if self.eval(expr, scope)?.is_true() {
                    return Err(Error::refused("`autoescape` is not supported"));
                }
                return self.run(body, &scope.child(), out);
            }
            Stmt::Load => return Err(Error::type_error("no loader for this environment specified")),
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Normal)
    }

    fn apply_filters(&self, chain: &[Named], text: Value, scope: &Rc<Scope>) -> Result<Value> {
        let mut value = text;
        for filter in chain {
            let args = self.eval_args(&filter.args, scope)?;
            value = filters::call(&filter.name, value, args, self)?;
        }
        Ok(value)
    }

    /// Gives `value` to a name, an attribute of a namespace, or in parts to several.
    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(attributes) = self.resolve(name, scope) else {
                    let message = "cannot assign attribute on non-namespace object";
                    return Err(Error::new(ErrorKind::Runtime, message));
                };
                set_attribute(&mut attributes.borrow_mut(), attribute, value)?;
            }
            Target::Tuple(targets) => {
                if !value.is_iterable() {
                    let found = value.type_name();
                    return Err(Error::type_error(format!("cannot unpack non-iterable {found} object")));
                }
                let items = value.items(self)?;
                let (wanted, given) = (targets.len(), items.len());
                if given < wanted {
                    let message = format!("not enough values to unpack (expected {wanted}, got {given})");
                    return Err(Error::value_error(message));
                }
                if given > wanted {
                    return Err(Error::value_error(format!("too many values to unpack (expected {wanted})")));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }

    /// What a name stands for here.
    fn resolve(&self, name: &str, scope: &Scope) -> Value {
        scope
            .get(name)
            .or_else(|| crate::functions::global(name))
            .unwrap_or_else(|| Value::undefined_name(name))
    }

    /// `function(args)`.
    pub(crate) fn call(&self, function: &Value, args: Args) -> Result<Value> {
        match function {
            Value::Function(name) => crate::functions::call(name, args, self),
            Value::Method(bound) => crate::methods::call(&bound.0, bound.1, args, self),
            Value::Macro(called) => self.deeper(|| self.call_macro(called, args)).map(Value::from),
            Value::Loop(state) => self.deeper(|| self.recurse(state, args)).map(Value::from),
            Value::Joiner(joiner) => {
                let [] = args.unnamed("joiner", 0)?;
                let was_used = joiner.1.replace(true);
                Ok(if was_used { Value::Str(joiner.0.clone()) } else { Value::from("") })
            }
            Value::Undefined(undefined) => Err(undefined.error()),
            other => Err(Error::type_error(format!("'{}' object is not callable", other.type_name()))),
        }
    }
}

/// What a block is replaced by must be a string already.
fn push_output(out: &mut String, value: &Value) -> Result<()> {
    let found = value.type_name();
    let text = value
        .as_str()
        .ok_or_else(|| Error::type_error(format!("sequence item 0: expected str instance, {found} found")))?;
    out.push_str(text);
    Ok(())
}
