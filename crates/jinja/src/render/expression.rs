//! Expressions.

use std::rc::Rc;
use std::sync::Arc;

use super::Renderer;
use crate::args::Args;
use crate::ast::{CallArgs, CompareOp, Const, Expr};
use crate::error::{Error, Result};
use crate::value::{Dict, Scope, Value};
use crate::{attributes, filters, ops, predicates};

impl Renderer<'_> {
    pub(super) fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.deeper(|| self.eval_here(expr, scope))
    }

    fn eval_here(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        Ok(match expr {
            Expr::Const(constant) => of_const(constant),
            Expr::Name(name) => self.resolve(name, scope),
            Expr::List(items) => Value::list(self.eval_all(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.eval_all(items, scope)?),
            Expr::Dict(items) => {
                let mut dict = Dict::default();
                for (key, value) in items {
                    let key = self.eval(key, scope)?;
                    dict.insert(key, self.eval(value, scope)?)?;
                }
                Value::dict(dict)
            }
            Expr::Attribute(value, name) => attributes::attribute(&self.eval(value, scope)?, name, self)?,
            Expr::Item(value, item) => {
                let value = self.eval(value, scope)?;
                attributes::item(&value, &self.eval(item, scope)?, self)?
            }
            Expr::Slice(value, bounds) => self.slice(value, bounds, scope)?,
            Expr::Call(function, args) => {
                let function = self.eval(function, scope)?;
                self.call(&function, self.eval_args(args, scope)?)?
            }
            Expr::Filter(value, filter) => {
                let value = self.eval(value, scope)?;
                filters::call(&filter.name, value, self.eval_args(&filter.args, scope)?, self)?
            }
            Expr::Test(value, test) => {
                let value = self.eval(value, scope)?;
                Value::Bool(predicates::call(&test.name, &value, self.eval_args(&test.args, scope)?, self)?)
            }
            Expr::Not(value) => Value::Bool(!self.eval(value, scope)?.is_true()),
            Expr::Neg(value) => ops::signed(&self.eval(value, scope)?, true)?,
            Expr::Pos(value) => ops::signed(&self.eval(value, scope)?, false)?,
            Expr::And(left, right) => {
                let left = self.eval(left, scope)?;
                if left.is_true() { self.eval(right, scope)? } else { left }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left, scope)?;
                if left.is_true() { left } else { self.eval(right, scope)? }
            }
            Expr::Binary(op, left, right) => {
                let left = self.eval(left, scope)?;
                ops::binary(*op, &left, &self.eval(right, scope)?)?
            }
            Expr::Compare(first, rest) => Value::Bool(self.compare(first, rest, scope)?),
            Expr::Concat(items) => {
                let mut text = String::new();
                for item in items {
                    text.push_str(&self.eval(item, scope)?.to_text()?);
                }
                Value::from(text)
            }
            Expr::If { test, then, otherwise } => {
                if self.eval(test, scope)?.is_true() {
                    self.eval(then, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.eval(otherwise, scope)?
                } else {
                    Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined.",
                    )
                }
            }
        })
    }

    /// `first < second < third`: each operand is worked out once, and none after a comparison that fails.
    fn compare(&self, first: &Expr, rest: &[(CompareOp, Expr)], scope: &Rc<Scope>) -> Result<bool> {
        let mut left = self.eval(first, scope)?;
        for (op, right) in rest {
            let right = self.eval(right, scope)?;
            if !ops::compare(*op, &left, &right, self)? {
                return Ok(false);
            }
            left = right;
        }
        Ok(true)
    }

    fn slice(&self, value: &Expr, bounds: &[Option<Expr>; 3], scope: &Rc<Scope>) -> Result<Value> {
        let value = self.eval(value, scope)?;
        let mut found = [Value::None, Value::None, Value::None];
        for (slot, bound) in found.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                *slot = self.eval(bound, scope)?;
            }
        }
        let [start, stop, step] = &found;
        ops::slice(&value, ops::Slice { start, stop, step })
    }

    fn eval_all(&self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    pub(super) fn eval_args(&self, args: &CallArgs, scope: &Rc<Scope>) -> Result<Args> {
        let mut found = Args::of(self.eval_all(&args.positional, scope)?);
        if let Some(star) = &args.star {
            let items = self.eval(star, scope)?;
            if !items.is_iterable() {
                let kind = items.type_name();
                return Err(Error::type_error(format!("argument after * must be an iterable, not {kind}")));
            }
            found.positional.extend(items.items(self)?);
        }
        for (name, value) in &args.named {
            found.named.push((Arc::clone(name), self.eval(value, scope)?));
        }
        if let Some(double_star) = &args.double_star {
            let value = self.eval(double_star, scope)?;
            let Value::Dict(dict) = &value else {
                let kind = value.type_name();
                return Err(Error::type_error(format!("argument after ** must be a mapping, not {kind}")));
            };
            for (key, value) in dict.iter() {
                let name = key.as_str().ok_or_else(|| Error::type_error("keywords must be strings"))?;
                if found.named.iter().any(|(known, _)| **known == *name) {
                    let message = format!("got multiple values for keyword argument '{name}'");
                    return Err(Error::type_error(message));
                }
                found.named.push((Arc::from(name), value.clone()));
            }
        }
        Ok(found)
    }
}

fn of_const(constant: &Const) -> Value {
    match constant {
        Const::None => Value::None,
        Const::Bool(flag) => Value::Bool(*flag),
        Const::Int(int) => Value::Int(*int),
        Const::Float(float) => Value::Float(*float),
        Const::Str(text) => Value::Str(crate::value::Str { text: Arc::clone(text), is_markup: false }),
    }
}
