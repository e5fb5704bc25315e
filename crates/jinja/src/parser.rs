//! Tokens to a tree, by the grammar of `jinja2/parser.py` (3.1.6).
//!
//! Statements are here, expressions in [`expression`]. `include`, `import` and `extends` are parsed only to say that a
//! chat template has nothing to load from.

mod expression;
mod names;

use std::sync::Arc;

use crate::ast::{CallArgs, Expr, For, MacroDef, Stmt, Target};
use crate::error::{Error, Result};
use crate::lexer::{Token, TokenKind, tokenize};

/// How deep tags and brackets may lie in each other; Python's own limit is of this size.
const MAX_NESTING: usize = 100;

/// Parses a whole template: its body and the names of its blocks.
///
/// # Errors
/// When the source is not valid, or names a filter or test that does not exist.
pub(crate) fn parse(source: &str) -> Result<(Vec<Stmt>, Vec<Arc<str>>)> {
    let mut parser = Parser {
        tokens: tokenize(source)?,
        at: 0,
        nesting: 0,
        end_tags: Vec::new(),
        open_tags: Vec::new(),
        blocks: Vec::new(),
    };
    let body = parser.body(&[])?;
    names::check(&body)?;
    Ok((body, parser.blocks))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
    /// The tags that may end each of the bodies that are open.
    end_tags: Vec<Vec<&'static str>>,
    /// The names of the open tags.
    open_tags: Vec<String>,
    blocks: Vec<Arc<str>>,
}

impl Parser {
    fn kind(&self) -> &TokenKind {
        &self.tokens[self.at].kind
    }

    fn line(&self) -> usize {
        self.tokens[self.at].line
    }

    /// The token after the current one.
    fn next_kind(&self) -> &TokenKind {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].kind
    }

    fn skip(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.kind(), TokenKind::Operator(found) if *found == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.kind(), TokenKind::Name(found) if found == name)
    }

    fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.skip();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.skip();
        }
        found
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::syntax(self.line(), message))
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        if *self.kind() == TokenKind::End {
            return self.fail(format!("unexpected end of template, expected '{wanted}'."));
        }
        self.fail(format!("expected token '{wanted}', got '{}'", describe(self.kind())))
    }

    fn expect_operator(&mut self, operator: &str) -> Result<()> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(operator) }
    }

    fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.skip_name(word) { Ok(()) } else { self.unexpected(word) }
    }

    fn expect_name(&mut self) -> Result<Arc<str>> {
        let TokenKind::Name(name) = self.kind() else { return self.unexpected("name") };
        let name = Arc::from(name.as_str());
        self.skip();
        Ok(name)
    }

    fn expect_block_end(&mut self) -> Result<()> {
        if *self.kind() != TokenKind::BlockEnd {
            return self.unexpected("end of statement block");
        }
        self.skip();
        Ok(())
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            let mut error =
                Error::refused(format!("tags and brackets lie more than {MAX_NESTING} deep in each other"));
            error.line = Some(self.line());
            return Err(error);
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// Statements up to a tag of `ends`, whose name is the current token then; to the end if there are none.
    fn body(&mut self, ends: &[&'static str]) -> Result<Vec<Stmt>> {
        self.end_tags.push(ends.to_vec());
        let mut body = Vec::new();
        loop {
            match self.kind().clone() {
                TokenKind::Data(text) => {
                    self.skip();
                    body.push(Stmt::Text(text));
                }
                TokenKind::VariableBegin => {
                    self.skip();
                    body.push(Stmt::Print(self.tuple(true)?));
                    if *self.kind() != TokenKind::VariableEnd {
                        return self.unexpected("end of print statement");
                    }
                    self.skip();
                }
                TokenKind::BlockBegin => {
                    self.skip();
                    if matches!(self.kind(), TokenKind::Name(name) if ends.contains(&name.as_str())) {
                        break;
                    }
                    self.nested(|parser| parser.statement(&mut body))?;
                    self.expect_block_end()?;
                }
                TokenKind::End if ends.is_empty() => break,
                TokenKind::End => return self.fail(self.unknown_tag(None)),
                _ => return self.fail("a tag that cannot stand here"),
            }
        }
        self.end_tags.pop();
        Ok(body)
    }

    /// The body of a tag whose opening is at its end, and its closing tag's name.
    fn tag_body(&mut self, ends: &[&'static str]) -> Result<Vec<Stmt>> {
        self.skip_operator(":");
        self.expect_block_end()?;
        self.body(ends)
    }

    /// The same where only one tag ends the body.
    fn whole_body(&mut self, end: &'static str) -> Result<Vec<Stmt>> {
        let body = self.tag_body(&[end])?;
        self.skip();
        Ok(body)
    }

    fn unknown_tag(&self, name: Option<&str>) -> String {
        let mut message = match name {
            None => "Unexpected end of template.".to_owned(),
            Some(name) => format!("Encountered unknown tag '{name}'."),
        };
        let wanted = self.end_tags.last().filter(|ends| !ends.is_empty());
        if let Some(wanted) = wanted {
            let quoted: Vec<String> = wanted.iter().map(|end| format!("'{end}'")).collect();
            let quoted = quoted.join(" or ");
            let is_misplaced =
                name.is_some_and(|name| self.end_tags.iter().flatten().any(|end| *end == name));
            message.push_str(&if is_misplaced {
                format!(
                    " You probably made a nesting mistake. Jinja is expecting this tag, but currently looking for {quoted}."
                )
            } else {
                format!(" Jinja was looking for the following tags: {quoted}.")
            });
        }
        if let Some(open) = self.open_tags.last() {
            message.push_str(&format!(" The innermost block that needs to be closed is '{open}'."));
        }
        message
    }

    fn statement(&mut self, body: &mut Vec<Stmt>) -> Result<()> {
        let TokenKind::Name(tag) = self.kind().clone() else { return self.fail("tag name expected") };
        self.open_tags.push(tag.clone());
        let line = self.line();
        let statement = match tag.as_str() {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => self.macro_definition()?,
            "call" => self.call_block()?,
            "filter" => {
                self.skip();
                let filters = self.inline_filters()?;
                Stmt::FilterBlock { filters, body: self.whole_body("endfilter")? }
            }
            "print" => {
                self.skip();
                let printed = self.printed()?;
                body.extend(printed.into_iter().map(Stmt::Print));
                self.open_tags.pop();
                return Ok(());
            }
            "block" => self.block()?,
            "generation" => {
                self.skip();
                Stmt::Generation(self.whole_body("endgeneration")?)
            }
            "autoescape" => {
                self.skip();
                Stmt::Autoescape(self.expression()?, self.whole_body("endautoescape")?)
            }
            "break" | "continue" => {
                self.skip();
                if tag == "break" { Stmt::Break } else { Stmt::Continue }
            }
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.kind(), TokenKind::BlockEnd | TokenKind::End) {
                    self.skip();
                }
                Stmt::Load
            }
            _ => {
                self.open_tags.pop();
                return Err(Error::syntax(line, self.unknown_tag(Some(&tag))));
            }
        };
        self.open_tags.pop();
        body.push(statement);
        Ok(())
    }

    fn printed(&mut self) -> Result<Vec<Expr>> {
        let mut items = Vec::new();
        while *self.kind() != TokenKind::BlockEnd {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            items.push(self.expression()?);
        }
        Ok(items)
    }

    fn for_loop(&mut self) -> Result<Stmt> {
        self.skip();
        let target = self.target_list()?;
        self.expect_word("in")?;
        let iterable = self.tuple(false)?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.skip_name("recursive");
        let body = self.tag_body(&["endfor", "else"])?;
        let otherwise = if self.is_name("else") {
            self.skip();
            self.whole_body("endfor")?
        } else {
            self.skip();
            Vec::new()
        };
        Ok(Stmt::For(Arc::new(For { target, iterable, filter, body, otherwise, is_recursive })))
    }

    fn condition(&mut self) -> Result<Stmt> {
        let mut arms = Vec::new();
        loop {
            self.skip();
            let test = self.tuple(false)?;
            arms.push((test, self.tag_body(&["elif", "else", "endif"])?));
            if self.is_name("elif") {
                continue;
            }
            let has_else = self.is_name("else");
            self.skip();
            let otherwise = if has_else { self.whole_body("endif")? } else { Vec::new() };
            return Ok(Stmt::If { arms, otherwise });
        }
    }

    fn set(&mut self) -> Result<Stmt> {
        self.skip();
        let target = self.target_list()?;
        if self.skip_operator("=") {
            return Ok(Stmt::Set(target, self.tuple(true)?));
        }
        let filters = self.filter_chain()?;
        Ok(Stmt::SetBlock { target, filters, body: self.whole_body("endset")? })
    }

    fn with(&mut self) -> Result<Stmt> {
        self.skip();
        let mut bindings = Vec::new();
        while *self.kind() != TokenKind::BlockEnd {
            if !bindings.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target_list()?;
            self.expect_operator("=")?;
            bindings.push((target, self.expression()?));
        }
        Ok(Stmt::With { bindings, body: self.whole_body("endwith")? })
    }

    fn block(&mut self) -> Result<Stmt> {
        self.skip();
        let name = self.expect_name()?;
        if self.blocks.contains(&name) {
            return self.fail(format!("block '{name}' defined twice"));
        }
        self.blocks.push(Arc::clone(&name));
        let is_scoped = self.skip_name("scoped");
        if self.skip_name("required") {
            return self.fail("Required block can only be used in a template that is extended");
        }
        let body = self.whole_body("endblock")?;
        self.skip_name(&name);
        Ok(Stmt::Block { is_scoped, body })
    }

    fn macro_definition(&mut self) -> Result<Stmt> {
        self.skip();
        let name = self.assignable_name()?;
        let (params, defaults) = self.signature()?;
        let body = self.whole_body("endmacro")?;
        let uses = names::special_names(&body, &params);
        Ok(Stmt::Macro(Arc::new(MacroDef { name: Some(name), params, defaults, body, uses })))
    }

    fn call_block(&mut self) -> Result<Stmt> {
        self.skip();
        let (params, defaults) =
            if self.is_operator("(") { self.signature()? } else { (Vec::new(), Vec::new()) };
        let line = self.line();
        let Expr::Call(function, args) = self.expression()? else {
            return Err(Error::syntax(line, "expected call"));
        };
        let body = self.whole_body("endcall")?;
        let uses = names::special_names(&body, &params);
        let caller = Arc::new(MacroDef { name: None, params, defaults, body, uses });
        let args: CallArgs = *args;
        Ok(Stmt::CallBlock { function: *function, args, caller })
    }

    fn signature(&mut self) -> Result<(Vec<Arc<str>>, Vec<Expr>)> {
        self.expect_operator("(")?;
        let (mut params, mut defaults) = (Vec::new(), Vec::new());
        while !self.is_operator(")") {
            if !params.is_empty() {
                self.expect_operator(",")?;
            }
            let param = self.assignable_name()?;
            if params.contains(&param) {
                return self.fail(format!("duplicate argument '{param}' in function definition"));
            }
            params.push(param);
            if self.skip_operator("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
        }
        let num_required = params.len() - defaults.len();
        if params[..num_required].iter().any(|param| **param == *"caller") {
            return self.fail(
                "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.",
            );
        }
        self.skip();
        Ok((params, defaults))
    }

    fn assignable_name(&mut self) -> Result<Arc<str>> {
        let name = self.expect_name()?;
        if is_constant(&name) {
            return self.fail("can't assign to 'const'");
        }
        Ok(name)
    }

    /// Whether a list with commas may end here.
    fn is_tuple_end(&self) -> bool {
        matches!(self.kind(), TokenKind::VariableEnd | TokenKind::BlockEnd) || self.is_operator(")")
    }

    /// What a `for`, `set` or `with` assigns to.
    fn target_list(&mut self) -> Result<Target> {
        let first = self.target()?;
        if !self.is_operator(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_operator(",") {
            if self.is_tuple_end() {
                break;
            }
            items.push(self.target()?);
        }
        Ok(Target::Tuple(items))
    }

    fn target(&mut self) -> Result<Target> {
        if self.skip_operator("(") {
            let inner = self.nested(|parser| parser.target_list())?;
            self.expect_operator(")")?;
            return Ok(inner);
        }
        let line = self.line();
        let name = self.assignable_name()?;
        if self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        if self.is_operator("[") {
            return Err(Error::syntax(line, "can't assign to 'getitem'"));
        }
        Ok(Target::Name(name))
    }
}

/// Whether a name is a literal.
fn is_constant(name: &str) -> bool {
    matches!(name, "true" | "false" | "none" | "True" | "False" | "None")
}

/// A token for a message, as `describe_token` writes it.
fn describe(kind: &TokenKind) -> String {
    match kind {
        TokenKind::Data(_) => "template data / text".to_owned(),
        TokenKind::VariableBegin => "begin of print statement".to_owned(),
        TokenKind::VariableEnd => "end of print statement".to_owned(),
        TokenKind::BlockBegin => "begin of statement block".to_owned(),
        TokenKind::BlockEnd => "end of statement block".to_owned(),
        TokenKind::Name(name) => name.clone(),
        TokenKind::Str(_) => "string".to_owned(),
        TokenKind::Int(_) => "integer".to_owned(),
        TokenKind::Float(_) => "float".to_owned(),
        TokenKind::Operator(operator) => (*operator).to_owned(),
        TokenKind::End => "end of template".to_owned(),
    }
}
