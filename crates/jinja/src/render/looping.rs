//! `for`, and the `loop` that its body sees.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::scope::Scope;
use super::{Flow, Renderer};
use crate::args::Args;
use crate::ast::For;
use crate::error::{Error, Result};
use crate::ops;
use crate::value::Value;

/// Jinja's `LoopContext`.
///
/// Items are tested by the loop's own `if` when they are fetched, not before: the test may look at a namespace that the
/// body changes.
pub(crate) struct LoopState {
    node: Arc<For>,
    scope: Rc<Scope>,
    depth0: usize,
    untested: RefCell<VecDeque<Value>>,
    fetched: RefCell<VecDeque<Value>>,
    /// How many items the body has been run for, the current one included.
    num_begun: Cell<usize>,
    current: RefCell<Option<Value>>,
    previous: RefCell<Option<Value>>,
    last_changed: RefCell<Option<Vec<Value>>>,
}

impl LoopState {
    fn index0(&self) -> usize {
        self.num_begun.get().saturating_sub(1)
    }

    /// Fetches one more item, if there is one.
    fn fetch(&self, renderer: &Renderer<'_>) -> Result<bool> {
        loop {
            let Some(item) = self.untested.borrow_mut().pop_front() else { return Ok(false) };
            if let Some(filter) = &self.node.filter {
                let scope = self.scope.child();
                renderer.assign(&self.node.target, item.clone(), &scope)?;
                if !renderer.eval(filter, &scope)?.is_true() {
                    continue;
                }
            }
            self.fetched.borrow_mut().push_back(item);
            return Ok(true);
        }
    }

    fn peek(&self, renderer: &Renderer<'_>) -> Result<Option<Value>> {
        if self.fetched.borrow().is_empty() {
            self.fetch(renderer)?;
        }
        Ok(self.fetched.borrow().front().cloned())
    }

    fn length(&self, renderer: &Renderer<'_>) -> Result<usize> {
        while self.fetch(renderer)? {}
        Ok(self.num_begun.get() + self.fetched.borrow().len())
    }

    /// `loop.name`; `value` is the loop itself.
    pub(crate) fn attribute(
        &self,
        value: &Value,
        name: &str,
        renderer: &Renderer<'_>,
    ) -> Result<Option<Value>> {
        let index0 = self.index0();
        Ok(Some(match name {
            "index" => Value::from(index0 + 1),
            "index0" => Value::from(index0),
            "revindex" => Value::from(self.length(renderer)? - index0),
            "revindex0" => Value::from(self.length(renderer)? - index0 - 1),
            "length" => Value::from(self.length(renderer)?),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(renderer)?.is_none()),
            "depth" => Value::from(self.depth0 + 1),
            "depth0" => Value::from(self.depth0),
            "previtem" => self
                .previous
                .borrow()
                .clone()
                .unwrap_or_else(|| Value::undefined("there is no previous item")),
            "nextitem" => self.peek(renderer)?.unwrap_or_else(|| Value::undefined("there is no next item")),
            "cycle" => Value::Method(Rc::new((value.clone(), "cycle"))),
            "changed" => Value::Method(Rc::new((value.clone(), "changed"))),
            _ => return Ok(None),
        }))
    }

    pub(crate) fn call_method(&self, name: &str, args: Args) -> Result<Value> {
        let items = args.positional;
        if name == "cycle" {
            let count = items.len();
            let position = self.index0().checked_rem(count);
            let position = position.ok_or_else(|| Error::type_error("no items for cycling given"))?;
            return Ok(items[position].clone());
        }
        let mut last = self.last_changed.borrow_mut();
        let is_same = match &*last {
            Some(last) if last.len() == items.len() => {
                let pairs = last.iter().zip(&items);
                pairs
                    .map(|(left, right)| ops::equal(left, right))
                    .collect::<Result<Vec<_>>>()?
                    .iter()
                    .all(|same| *same)
            }
            _ => false,
        };
        if !is_same {
            *last = Some(items);
        }
        Ok(Value::Bool(!is_same))
    }
}

impl Renderer<'_> {
    pub(super) fn run_for(&self, node: &Arc<For>, scope: &Rc<Scope>, out: &mut String) -> Result<()> {
        let iterable = self.eval(&node.iterable, scope)?;
        self.run_loop(node, &iterable, scope, 0, out)
    }

    fn run_loop(
        &self,
        node: &Arc<For>,
        iterable: &Value,
        scope: &Rc<Scope>,
        depth0: usize,
        out: &mut String,
    ) -> Result<()> {
        let state = Rc::new(LoopState {
            node: Arc::clone(node),
            scope: Rc::clone(scope),
            depth0,
            untested: RefCell::new(iterable.items(self)?.into()),
            fetched: RefCell::default(),
            num_begun: Cell::new(0),
            current: RefCell::default(),
            previous: RefCell::default(),
            last_changed: RefCell::default(),
        });
        let loop_name = Arc::from("loop");
        while let Some(item) = state.peek(self)? {
            state.fetched.borrow_mut().pop_front();
            state.num_begun.set(state.num_begun.get() + 1);
            let before = state.current.replace(Some(item.clone()));
            state.previous.replace(before);
            let inner = scope.child();
            inner.set(&loop_name, Value::Loop(Rc::clone(&state)));
            self.assign(&node.target, item, &inner)?;
            if self.run(&node.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        if state.num_begun.get() == 0 {
            self.run(&node.otherwise, &scope.child(), out)?;
        }
        Ok(())
    }

    /// `loop(items)`: the loop again, one level deeper.
    pub(super) fn recurse(&self, state: &Rc<LoopState>, args: Args) -> Result<String> {
        if !state.node.is_recursive {
            let message = "The loop must have the 'recursive' marker to be called recursively.";
            return Err(Error::type_error(message));
        }
        let [items] = args.bind("loop", ["iterable"], 1)?;
        let mut text = String::new();
        let items = items.unwrap_or(Value::None);
        self.run_loop(&state.node, &items, &state.scope, state.depth0 + 1, &mut text)?;
        Ok(text)
    }
}
