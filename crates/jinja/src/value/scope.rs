//! What names stand for, from the inside out.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Value;

/// The names that are set in one loop, macro or block.
pub(crate) struct Scope {
    names: RefCell<Vec<(Arc<str>, Value)>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    pub(crate) fn root(names: Vec<(Arc<str>, Value)>) -> Rc<Self> {
        Rc::new(Self { names: RefCell::new(names), outer: None })
    }

    pub(crate) fn child(self: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { names: RefCell::new(Vec::new()), outer: Some(Rc::clone(self)) })
    }

    /// The scope of the template itself.
    pub(crate) fn top(self: &Rc<Self>) -> Rc<Self> {
        let mut scope = Rc::clone(self);
        while let Some(outer) = scope.outer.clone().filter(|outer| outer.outer.is_some()) {
            scope = outer;
        }
        scope
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            let names = scope.names.borrow();
            if let Some((_, value)) = names.iter().find(|(known, _)| **known == *name) {
                return Some(value.clone());
            }
            drop(names);
            scope = scope.outer.as_deref()?;
        }
    }

    pub(crate) fn set(&self, name: &Arc<str>, value: Value) {
        let mut names = self.names.borrow_mut();
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, slot)) => *slot = value,
            None => names.push((Arc::clone(name), value)),
        }
    }

    pub(crate) fn clear(&self) {
        // Taken out first: what is dropped may hold this very scope.
        let names = self.names.take();
        drop(names);
    }
}
