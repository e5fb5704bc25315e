//! The `loop` that the body of `for` sees.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::{Rendering, Scope, Value};
use crate::ast::For;
use crate::error::Result;

/// Jinja's `LoopContext`.
///
/// Items are tested by the loop's own `if` when they are fetched, not before: the test may look at a namespace that the
/// body changes.
pub(crate) struct LoopState {
    pub(crate) node: Arc<For>,
    pub(crate) scope: Rc<Scope>,
    pub(crate) depth0: usize,
    untested: RefCell<VecDeque<Value>>,
    fetched: RefCell<VecDeque<Value>>,
    /// How many items the body has been run for, the current one included.
    num_begun: Cell<usize>,
    current: RefCell<Option<Value>>,
    previous: RefCell<Option<Value>>,
    pub(crate) last_changed: RefCell<Option<Vec<Value>>>,
}

impl LoopState {
    /// The loop of `node` over `items`, `depth0` loops deep.
    pub(crate) fn new(node: &Arc<For>, scope: &Rc<Scope>, items: Vec<Value>, depth0: usize) -> Self {
        Self {
            node: Arc::clone(node),
            scope: Rc::clone(scope),
            depth0,
            untested: RefCell::new(items.into()),
            fetched: RefCell::default(),
            num_begun: Cell::new(0),
            current: RefCell::default(),
            previous: RefCell::default(),
            last_changed: RefCell::default(),
        }
    }

    /// The item that the body is run for next.
    pub(crate) fn advance(&self, renderer: &dyn Rendering) -> Result<Option<Value>> {
        let Some(item) = self.peek(renderer)? else { return Ok(None) };
        self.fetched.borrow_mut().pop_front();
        self.num_begun.set(self.num_begun.get() + 1);
        let before = self.current.replace(Some(item.clone()));
        self.previous.replace(before);
        Ok(Some(item))
    }

    /// Whether the body has been run.
    pub(crate) fn has_begun(&self) -> bool {
        self.num_begun.get() > 0
    }

    pub(crate) fn index0(&self) -> usize {
        self.num_begun.get().saturating_sub(1)
    }

    /// Fetches one more item, if there is one.
    fn fetch(&self, renderer: &dyn Rendering) -> Result<bool> {
        loop {
            let Some(item) = self.untested.borrow_mut().pop_front() else { return Ok(false) };
            if !renderer.is_wanted(&item, self)? {
                continue;
            }
            self.fetched.borrow_mut().push_back(item);
            return Ok(true);
        }
    }

    fn peek(&self, renderer: &dyn Rendering) -> Result<Option<Value>> {
        if self.fetched.borrow().is_empty() {
            self.fetch(renderer)?;
        }
        Ok(self.fetched.borrow().front().cloned())
    }

    fn length(&self, renderer: &dyn Rendering) -> Result<usize> {
        while self.fetch(renderer)? {}
        Ok(self.num_begun.get() + self.fetched.borrow().len())
    }

    /// `loop.name`; `value` is the loop itself.
    pub(crate) fn attribute(
        &self,
        value: &Value,
        name: &str,
        renderer: &dyn Rendering,
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
}
