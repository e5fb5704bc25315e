//! What the original finds out about names when it compiles: filters and tests that do not exist, and which special names
//! a macro uses.

use std::sync::Arc;

use crate::ast::{CallArgs, Expr, Named, SpecialNames, Stmt, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::{filter_names, predicates};

/// Whether something may never be reached. There, an unknown filter is an error only when it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Sure,
    Conditional,
}

/// Checks that the filters and tests exist which are reached in any case, and that loops are used as loops.
pub(super) fn check(body: &[Stmt]) -> Result<()> {
    check_body(body, Reach::Sure)?;
    check_loops(body, Around::Nothing, false)
}

/// What a `break` would end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    Nothing,
    Loop,
}

/// `break` and `continue` need a loop in the same macro or block, and no name in a loop may be `loop`.
fn check_loops(body: &[Stmt], around: Around, in_any_loop: bool) -> Result<()> {
    for statement in body {
        let (inner, in_any_loop) = match statement {
            Stmt::Break | Stmt::Continue if around == Around::Nothing => {
                let word = if *statement == Stmt::Break { "break" } else { "continue" };
                return Err(Error::new(ErrorKind::Syntax, format!("'{word}' outside loop")));
            }
            Stmt::For(node) => {
                check_target(&node.target)?;
                check_loops(&node.body, Around::Loop, true)?;
                check_loops(&node.otherwise, around, true)?;
                continue;
            }
            Stmt::Set(target, _) | Stmt::SetBlock { target, .. } => {
                if in_any_loop {
                    check_target(target)?;
                }
                (around, in_any_loop)
            }
            Stmt::Macro(_) | Stmt::CallBlock { .. } | Stmt::Block { .. } | Stmt::Generation(_) => {
                (Around::Nothing, in_any_loop)
            }
            _ => (around, in_any_loop),
        };
        for body in bodies(statement) {
            check_loops(body, inner, in_any_loop)?;
        }
    }
    Ok(())
}

fn check_target(target: &Target) -> Result<()> {
    match target {
        Target::Name(name) if **name == *"loop" => {
            Err(Error::new(ErrorKind::Assertion, "Can't assign to special loop variable in for-loop target"))
        }
        Target::Name(_) | Target::Attribute(..) => Ok(()),
        Target::Tuple(items) => items.iter().try_for_each(check_target),
    }
}

fn check_body(body: &[Stmt], reach: Reach) -> Result<()> {
    for statement in body {
        for expr in expressions(statement) {
            let reach = if matches!(statement, Stmt::If { .. }) { Reach::Conditional } else { reach };
            check_expr(expr, reach)?;
        }
        if let Stmt::FilterBlock { filters, .. } | Stmt::SetBlock { filters, .. } = statement {
            for filter in filters {
                check_named(filter, "filter", reach)?;
            }
        }
        let inner = match statement {
            Stmt::If { .. } => Reach::Conditional,
            Stmt::Generation(_) | Stmt::Text(_) => reach,
            _ => Reach::Sure,
        };
        for body in bodies(statement) {
            check_body(body, inner)?;
        }
    }
    Ok(())
}

fn check_named(named: &Named, what: &str, reach: Reach) -> Result<()> {
    let exists =
        if what == "filter" { filter_names::exists(&named.name) } else { predicates::exists(&named.name) };
    if exists || reach == Reach::Conditional {
        return Ok(());
    }
    let mut error = Error::new(ErrorKind::Assertion, format!("No {what} named '{}'.", named.name));
    error.line = Some(named.line);
    Err(error)
}

fn check_expr(expr: &Expr, reach: Reach) -> Result<()> {
    match expr {
        Expr::Filter(_, named) => check_named(named, "filter", reach)?,
        Expr::Test(_, named) => check_named(named, "test", reach)?,
        _ => {}
    }
    let reach = if matches!(expr, Expr::If { .. }) { Reach::Conditional } else { reach };
    parts(expr).into_iter().try_for_each(|part| check_expr(part, reach))
}

/// Which special names a macro's body uses and does not set itself.
pub(super) fn special_names(body: &[Stmt], params: &[Arc<str>]) -> SpecialNames {
    let mut set = Vec::new();
    let mut used = SpecialNames::default();
    collect(body, &mut |name, is_set| {
        if is_set {
            set.push(name.to_owned());
        } else if !set.iter().any(|known| known == name) {
            match name {
                "caller" => used.caller = true,
                "varargs" => used.varargs = true,
                "kwargs" => used.kwargs = true,
                _ => {}
            }
        }
    });
    // A parameter of the name is an ordinary one.
    let is_param = |name: &str| params.iter().any(|param| **param == *name);
    SpecialNames {
        caller: used.caller && !is_param("caller"),
        varargs: used.varargs && !is_param("varargs"),
        kwargs: used.kwargs && !is_param("kwargs"),
    }
}

/// Calls `found` with every name that is used (false) or set (true), in order.
fn collect(body: &[Stmt], found: &mut dyn FnMut(&str, bool)) {
    for statement in body {
        for expr in expressions(statement) {
            names_in(expr, found);
        }
        match statement {
            Stmt::Set(target, _) | Stmt::SetBlock { target, .. } => names_set(target, found),
            Stmt::FilterBlock { .. } | Stmt::Macro(_) | Stmt::CallBlock { .. } => {}
            _ => {}
        }
        for body in bodies(statement) {
            collect(body, found);
        }
    }
}

fn names_in(expr: &Expr, found: &mut dyn FnMut(&str, bool)) {
    if let Expr::Name(name) = expr {
        found(name, false);
    }
    for part in parts(expr) {
        names_in(part, found);
    }
}

fn names_set(target: &Target, found: &mut dyn FnMut(&str, bool)) {
    match target {
        Target::Name(name) => found(name, true),
        Target::Attribute(namespace, _) => found(namespace, false),
        Target::Tuple(items) => items.iter().for_each(|item| names_set(item, found)),
    }
}

/// The expressions that stand directly in a statement.
fn expressions(statement: &Stmt) -> Vec<&Expr> {
    match statement {
        Stmt::Text(_)
        | Stmt::Block { .. }
        | Stmt::Generation(_)
        | Stmt::Load
        | Stmt::Break
        | Stmt::Continue => Vec::new(),
        Stmt::Print(expr) | Stmt::Set(_, expr) | Stmt::Autoescape(expr, _) => vec![expr],
        Stmt::For(node) => std::iter::once(&node.iterable).chain(&node.filter).collect(),
        Stmt::If { arms, .. } => arms.iter().map(|(test, _)| test).collect(),
        Stmt::SetBlock { filters, .. } | Stmt::FilterBlock { filters, .. } => {
            filters.iter().flat_map(|filter| arguments(&filter.args)).collect()
        }
        Stmt::With { bindings, .. } => bindings.iter().map(|(_, value)| value).collect(),
        Stmt::Macro(node) => node.defaults.iter().collect(),
        Stmt::CallBlock { function, args, caller } => {
            std::iter::once(function).chain(arguments(args)).chain(&caller.defaults).collect()
        }
    }
}

/// The bodies of a statement.
fn bodies(statement: &Stmt) -> Vec<&[Stmt]> {
    match statement {
        Stmt::For(node) => vec![&node.body, &node.otherwise],
        Stmt::If { arms, otherwise } => {
            arms.iter().map(|(_, body)| body.as_slice()).chain([otherwise.as_slice()]).collect()
        }
        Stmt::SetBlock { body, .. }
        | Stmt::With { body, .. }
        | Stmt::FilterBlock { body, .. }
        | Stmt::Block { body, .. }
        | Stmt::Generation(body)
        | Stmt::Autoescape(_, body) => vec![body],
        Stmt::Macro(node) | Stmt::CallBlock { caller: node, .. } => vec![&node.body],
        _ => Vec::new(),
    }
}

fn arguments(args: &CallArgs) -> Vec<&Expr> {
    let named = args.named.iter().map(|(_, value)| value);
    args.positional.iter().chain(named).chain(&args.star).chain(&args.double_star).collect()
}

/// The expressions that an expression is made of.
fn parts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Const(_) | Expr::Name(_) => Vec::new(),
        Expr::List(items) | Expr::Tuple(items) | Expr::Concat(items) => items.iter().collect(),
        Expr::Dict(items) => items.iter().flat_map(|(key, value)| [key, value]).collect(),
        Expr::Attribute(value, _) | Expr::Not(value) | Expr::Neg(value) | Expr::Pos(value) => vec![value],
        Expr::Item(left, right)
        | Expr::And(left, right)
        | Expr::Or(left, right)
        | Expr::Binary(_, left, right) => vec![left, right],
        Expr::Slice(value, bounds) => std::iter::once(&**value).chain(bounds.iter().flatten()).collect(),
        Expr::Call(function, args) => std::iter::once(&**function).chain(arguments(args)).collect(),
        Expr::Filter(value, named) | Expr::Test(value, named) => {
            std::iter::once(&**value).chain(arguments(&named.args)).collect()
        }
        Expr::Compare(first, rest) => {
            std::iter::once(&**first).chain(rest.iter().map(|(_, operand)| operand)).collect()
        }
        Expr::If { test, then, otherwise } => {
            [&**test, &**then].into_iter().chain(otherwise.as_deref()).collect()
        }
    }
}
