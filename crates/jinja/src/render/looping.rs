//! `for`.

use std::rc::Rc;
use std::sync::Arc;

use super::{Flow, Renderer};
use crate::args::Args;
use crate::ast::For;
use crate::error::{Error, Result};
use crate::value::{LoopState, Scope, Value};

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
        let state = Rc::new(LoopState::new(node, scope, iterable.items(self)?, depth0));
        let loop_name = Arc::from("loop");
        while let Some(item) = state.advance(self)? {
            let inner = scope.child();
            inner.set(&loop_name, Value::Loop(Rc::clone(&state)));
            self.assign(&node.target, item, &inner)?;
            if self.run(&node.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        if !state.has_begun() {
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
