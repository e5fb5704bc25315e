//! Expressions, one method for each level of precedence.

use std::sync::Arc;

use super::Parser;
use crate::ast::{BinaryOp, CallArgs, CompareOp, Const, Expr, Named};
use crate::error::{Error, Result};
use crate::lexer::TokenKind;

/// How many operators of one level, filters or indices may follow each other: each makes the tree a level deeper.
const MAX_CHAIN: usize = 250;

/// The length of a chain so far.
#[derive(Default)]
struct Chain(usize);

impl Chain {
    fn grow(&mut self, line: usize) -> Result<()> {
        self.0 += 1;
        if self.0 <= MAX_CHAIN {
            return Ok(());
        }
        let what = format!(
            "an expression with more than {MAX_CHAIN} operators, filters or indices in a row is not supported"
        );
        Err(Error { line: Some(line), ..Error::refused(what) })
    }
}

impl Parser {
    /// An expression with conditions, `a if b else c`.
    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::conditional)
    }

    /// An expression, or several with commas between them.
    pub(super) fn tuple(&mut self, with_condition: bool) -> Result<Expr> {
        self.tuple_items(with_condition, false)
    }

    fn tuple_items(&mut self, with_condition: bool, in_brackets: bool) -> Result<Expr> {
        let (mut items, mut is_tuple) = (Vec::new(), false);
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.nested(Self::or)? });
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            None if !in_brackets => {
                self.fail(format!("Expected an expression, got '{}'", super::describe(self.kind())))
            }
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    fn conditional(&mut self) -> Result<Expr> {
        let mut expr = self.or()?;
        let mut chain = Chain::default();
        while self.skip_name("if") {
            chain.grow(self.line())?;
            let test = Box::new(self.or()?);
            let otherwise =
                if self.skip_name("else") { Some(Box::new(self.nested(Self::conditional)?)) } else { None };
            expr = Expr::If { test, then: Box::new(expr), otherwise };
        }
        Ok(expr)
    }

    fn or(&mut self) -> Result<Expr> {
        let mut left = self.and()?;
        let mut chain = Chain::default();
        while self.skip_name("or") {
            chain.grow(self.line())?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let mut left = self.not()?;
        let mut chain = Chain::default();
        while self.skip_name("and") {
            chain.grow(self.line())?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return self.nested(|parser| Ok(Expr::Not(Box::new(parser.not()?))));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.kind() {
                TokenKind::Operator("==") => CompareOp::Eq,
                TokenKind::Operator("!=") => CompareOp::Ne,
                TokenKind::Operator("<") => CompareOp::Lt,
                TokenKind::Operator("<=") => CompareOp::Le,
                TokenKind::Operator(">") => CompareOp::Gt,
                TokenKind::Operator(">=") => CompareOp::Ge,
                TokenKind::Name(name) if name == "in" => CompareOp::In,
                TokenKind::Name(name) if name == "not" => {
                    if !matches!(self.next_kind(), TokenKind::Name(name) if name == "in") {
                        break;
                    }
                    self.skip();
                    CompareOp::NotIn
                }
                _ => break,
            };
            self.skip();
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.concat()?;
        let mut chain = Chain::default();
        loop {
            let op = match self.kind() {
                TokenKind::Operator("+") => BinaryOp::Add,
                TokenKind::Operator("-") => BinaryOp::Sub,
                _ => return Ok(left),
            };
            chain.grow(self.line())?;
            self.skip();
            left = Expr::Binary(op, Box::new(left), Box::new(self.concat()?));
        }
    }

    fn concat(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_operator("~") {
            items.push(self.product()?);
        }
        Ok(Expr::Concat(items))
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.power()?;
        let mut chain = Chain::default();
        loop {
            let op = match self.kind() {
                TokenKind::Operator("*") => BinaryOp::Mul,
                TokenKind::Operator("/") => BinaryOp::Div,
                TokenKind::Operator("//") => BinaryOp::FloorDiv,
                TokenKind::Operator("%") => BinaryOp::Mod,
                _ => return Ok(left),
            };
            chain.grow(self.line())?;
            self.skip();
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?));
        }
    }

    /// From the left, as Jinja has it, though Python goes from the right.
    fn power(&mut self) -> Result<Expr> {
        let mut left = self.unary(true)?;
        let mut chain = Chain::default();
        while self.skip_operator("**") {
            chain.grow(self.line())?;
            left = Expr::Binary(BinaryOp::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let node = if self.skip_operator("-") {
            Expr::Neg(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_operator("+") {
            Expr::Pos(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let node = self.postfix(node)?;
        if with_filters { self.filters_and_tests(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Result<Expr> {
        let kind = self.kind().clone();
        let constant = match kind {
            TokenKind::Name(name) => match name.as_str() {
                "true" | "True" => Const::Bool(true),
                "false" | "False" => Const::Bool(false),
                "none" | "None" => Const::None,
                name => {
                    let name = Arc::from(name);
                    self.skip();
                    return Ok(Expr::Name(name));
                }
            },
            TokenKind::Str(mut text) => {
                self.skip();
                while let TokenKind::Str(more) = self.kind() {
                    text.push_str(more);
                    self.skip();
                }
                return Ok(Expr::Const(Const::Str(text.into())));
            }
            TokenKind::Int(value) => Const::Int(value),
            TokenKind::Float(value) => Const::Float(value),
            TokenKind::Operator("(") => {
                self.skip();
                let inner = self.nested(|parser| parser.tuple_items(true, true))?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            TokenKind::Operator("[") => return self.list(),
            TokenKind::Operator("{") => return self.dict(),
            other => return self.fail(format!("unexpected '{}'", super::describe(&other))),
        };
        self.skip();
        Ok(Expr::Const(constant))
    }

    fn list(&mut self) -> Result<Expr> {
        self.skip();
        let mut items = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator("]") {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.skip();
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Result<Expr> {
        self.skip();
        let mut items = Vec::new();
        while !self.is_operator("}") {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_operator(":")?;
            items.push((key, self.expression()?));
        }
        self.skip();
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        let mut chain = Chain::default();
        loop {
            chain.grow(self.line())?;
            node = match self.kind() {
                TokenKind::Operator(".") => self.attribute(node)?,
                TokenKind::Operator("[") => self.subscript(node)?,
                TokenKind::Operator("(") => Expr::Call(Box::new(node), Box::new(self.call_args()?)),
                _ => return Ok(node),
            };
        }
    }

    fn filters_and_tests(&mut self, mut node: Expr) -> Result<Expr> {
        let mut chain = Chain::default();
        loop {
            chain.grow(self.line())?;
            node = match self.kind() {
                TokenKind::Operator("|") => {
                    self.skip();
                    let filter = self.filter()?;
                    Expr::Filter(Box::new(node), Box::new(filter))
                }
                TokenKind::Name(name) if name == "is" => self.test(node)?,
                TokenKind::Operator("(") => Expr::Call(Box::new(node), Box::new(self.call_args()?)),
                _ => return Ok(node),
            };
        }
    }

    fn attribute(&mut self, node: Expr) -> Result<Expr> {
        self.skip();
        match self.kind().clone() {
            TokenKind::Name(name) => {
                self.skip();
                Ok(Expr::Attribute(Box::new(node), name.into()))
            }
            TokenKind::Int(index) => {
                self.skip();
                Ok(Expr::Item(Box::new(node), Box::new(Expr::Const(Const::Int(index)))))
            }
            _ => self.fail("expected name or number"),
        }
    }

    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        self.skip();
        let mut parts: [Option<Expr>; 3] = [None, None, None];
        let mut items = Vec::new();
        let mut num_colons = 0;
        while !self.is_operator("]") {
            if self.skip_operator(":") {
                num_colons += 1;
                if num_colons > 2 || !items.is_empty() {
                    return self.unexpected("]");
                }
            } else if num_colons == 0 {
                if parts[0].is_some() {
                    self.expect_operator(",")?;
                    items.extend(parts[0].take());
                }
                parts[0] = Some(self.expression()?);
            } else if parts[num_colons].is_none() {
                parts[num_colons] = Some(self.expression()?);
            } else {
                return self.unexpected("]");
            }
        }
        self.skip();
        if num_colons > 0 {
            return Ok(Expr::Slice(Box::new(node), Box::new(parts)));
        }
        let [Some(last), ..] = parts else {
            return Ok(Expr::Item(Box::new(node), Box::new(Expr::Tuple(Vec::new()))));
        };
        if items.is_empty() {
            return Ok(Expr::Item(Box::new(node), Box::new(last)));
        }
        items.push(last);
        Ok(Expr::Item(Box::new(node), Box::new(Expr::Tuple(items))))
    }

    fn call_args(&mut self) -> Result<CallArgs> {
        self.expect_operator("(")?;
        let line = self.line();
        let mut args = CallArgs::default();
        let mut is_first = true;
        while !self.is_operator(")") {
            if !is_first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            is_first = false;
            let has_dynamic = args.star.is_some() || args.double_star.is_some();
            let is_named =
                matches!(self.kind(), TokenKind::Name(_)) && *self.next_kind() == TokenKind::Operator("=");
            let in_order = if self.skip_operator("*") {
                args.star = Some(self.expression()?);
                !has_dynamic
            } else if self.skip_operator("**") {
                let is_only = args.double_star.is_none();
                args.double_star = Some(self.expression()?);
                is_only
            } else if is_named {
                let name = self.expect_name()?;
                self.skip();
                if args.named.iter().any(|(known, _)| *known == name) {
                    return Err(Error::syntax(line, format!("keyword argument repeated: {name}")));
                }
                args.named.push((name, self.expression()?));
                args.double_star.is_none()
            } else {
                args.positional.push(self.expression()?);
                !has_dynamic && args.named.is_empty()
            };
            if !in_order {
                return Err(Error::syntax(line, "invalid syntax for function call expression"));
            }
        }
        self.skip();
        Ok(args)
    }

    /// A name of a filter or a test, which may have dots.
    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name.into())
    }

    fn filter(&mut self) -> Result<Named> {
        let line = self.line();
        let name = self.dotted_name()?;
        let args = if self.is_operator("(") { self.call_args()? } else { CallArgs::default() };
        Ok(Named { name, args, line })
    }

    /// `|a|b`, which may be nothing.
    pub(super) fn filter_chain(&mut self) -> Result<Vec<Named>> {
        let mut filters = Vec::new();
        while self.skip_operator("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    /// `a|b`: the first without a bar.
    pub(super) fn inline_filters(&mut self) -> Result<Vec<Named>> {
        let mut filters = vec![self.filter()?];
        filters.extend(self.filter_chain()?);
        Ok(filters)
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        self.skip();
        let is_negated = self.skip_name("not");
        let line = self.line();
        let name = self.dotted_name()?;
        let takes_operand = match self.kind() {
            TokenKind::Name(word) => !matches!(word.as_str(), "else" | "or" | "and"),
            TokenKind::Str(_) | TokenKind::Int(_) | TokenKind::Float(_) => true,
            TokenKind::Operator(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        };
        let args = if self.is_operator("(") {
            self.call_args()?
        } else if takes_operand {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            let operand = self.nested(Self::primary)?;
            CallArgs { positional: vec![self.postfix(operand)?], ..CallArgs::default() }
        } else {
            CallArgs::default()
        };
        let test = Expr::Test(Box::new(node), Box::new(Named { name, args, line }));
        Ok(if is_negated { Expr::Not(Box::new(test)) } else { test })
    }
}
