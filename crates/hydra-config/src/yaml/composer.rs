//! Tokens to a graph of nodes by PyYAML's grammar: collections, anchors and tags, nothing of what they mean.

use std::collections::HashMap;
use std::rc::Rc;

use super::MAX_DEPTH;
use super::properties::Directive;
use super::reader::{Mark, Problem};
use super::scanner::{Scanner, Token, TokenKind};

/// A node, which aliases may share.
#[derive(Debug)]
pub(super) struct Composed {
    pub(super) mark: Mark,
    /// The full tag; `!` and none are both `None`, but for a quoted scalar.
    pub(super) tag: Option<String>,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// A plain scalar means what its text says; others are strings.
    Scalar {
        text: String,
        is_plain: bool,
    },
    Sequence(Vec<Rc<Composed>>),
    Mapping(Vec<(Rc<Composed>, Rc<Composed>)>),
}

type Parsed<T> = Result<T, Problem>;

/// Composes the one document; `None` when there is none.
pub(super) fn compose(scanner: Scanner) -> Parsed<Option<Rc<Composed>>> {
    let mut composer = Composer { scanner, handles: HashMap::new(), anchors: HashMap::new(), depth: 0 };
    composer.document()
}

#[derive(Clone, Copy, PartialEq)]
enum NodeContext {
    Block,
    /// The value of a key in a block, where a list may stand at the key's own column.
    BlockValue,
    Flow,
}

struct Composer {
    scanner: Scanner,
    handles: HashMap<String, String>,
    anchors: HashMap<String, Rc<Composed>>,
    depth: usize,
}

impl Composer {
    fn peek(&mut self) -> Parsed<&TokenKind> {
        Ok(&self.scanner.peek()?.kind)
    }

    fn mark(&mut self) -> Parsed<Mark> {
        Ok(self.scanner.peek()?.mark)
    }

    fn next(&mut self) -> Parsed<Token> {
        self.scanner.next()
    }

    fn is(&mut self, kinds: &[TokenKind]) -> Parsed<bool> {
        let next = self.peek()?;
        Ok(kinds.contains(next))
    }

    fn eat(&mut self, kind: &TokenKind) -> Parsed<bool> {
        let is_next = self.peek()? == kind;
        if is_next {
            self.next()?;
        }
        Ok(is_next)
    }

    fn unexpected(&mut self, wanted: &str) -> Problem {
        match self.scanner.peek() {
            Ok(token) => Problem::new(token.mark, format!("expected {wanted}, found {}", name(&token.kind))),
            Err(problem) => problem,
        }
    }

    fn document(&mut self) -> Parsed<Option<Rc<Composed>>> {
        let is_bare = !matches!(
            self.peek()?,
            TokenKind::Directive(_) | TokenKind::DocumentStart | TokenKind::StreamEnd
        );
        let root = if is_bare {
            self.set_default_handles();
            self.node(NodeContext::Block)?
        } else {
            // A file of nothing but end markers is empty, too.
            while self.eat(&TokenKind::DocumentEnd)? {}
            if self.is(&[TokenKind::StreamEnd])? {
                return Ok(None);
            }
            self.directives()?;
            if !self.eat(&TokenKind::DocumentStart)? {
                return Err(self.unexpected("`---`"));
            }
            match self.peek()? {
                TokenKind::Directive(_)
                | TokenKind::DocumentStart
                | TokenKind::DocumentEnd
                | TokenKind::StreamEnd => self.empty()?,
                _ => self.node(NodeContext::Block)?,
            }
        };
        while self.eat(&TokenKind::DocumentEnd)? {}
        match self.peek()? {
            TokenKind::StreamEnd => Ok(Some(root)),
            TokenKind::DocumentStart | TokenKind::Directive(_) => {
                let mark = self.mark()?;
                Err(Problem::new(mark, "there is more than one document"))
            }
            _ => Err(self.unexpected("the end of the document")),
        }
    }

    fn set_default_handles(&mut self) {
        for (handle, prefix) in [("!", "!"), ("!!", "tag:yaml.org,2002:")] {
            self.handles.entry(handle.to_owned()).or_insert_with(|| prefix.to_owned());
        }
    }

    fn directives(&mut self) -> Parsed<()> {
        let mut has_version = false;
        while let TokenKind::Directive(directive) = self.peek()?.clone() {
            let mark = self.next()?.mark;
            match directive {
                Directive::Yaml { .. } if has_version => {
                    return Err(Problem::new(mark, "the version appears twice"));
                }
                Directive::Yaml { major: 1 } => has_version = true,
                Directive::Yaml { major } => {
                    return Err(Problem::new(mark, format!("version {major} of YAML is not known")));
                }
                Directive::Tag { handle, prefix } => {
                    if self.handles.insert(handle.clone(), prefix).is_some() {
                        return Err(Problem::new(mark, format!("handle `{handle}` appears twice")));
                    }
                }
                Directive::Other => {}
            }
        }
        self.set_default_handles();
        Ok(())
    }

    fn empty(&mut self) -> Parsed<Rc<Composed>> {
        let mark = self.mark()?;
        Ok(self.empty_at(mark))
    }

    fn empty_at(&self, mark: Mark) -> Rc<Composed> {
        let content = Content::Scalar { text: String::new(), is_plain: true };
        Rc::new(Composed { mark, tag: None, content })
    }

    fn node(&mut self, context: NodeContext) -> Parsed<Rc<Composed>> {
        if let TokenKind::Alias(name) = self.peek()?.clone() {
            let mark = self.next()?.mark;
            let node = self.anchors.get(&name).cloned();
            return node.ok_or_else(|| Problem::new(mark, format!("there is no anchor `&{name}` above")));
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem::new(self.mark()?, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let mark = self.mark()?;
        let (anchor, tag) = self.properties()?;
        let is_specific = tag.as_deref().is_some_and(|tag| tag != "!");
        let content = match self.peek()?.clone() {
            TokenKind::BlockEntry if context == NodeContext::BlockValue => self.indentless_sequence()?,
            TokenKind::Scalar { text, is_plain } => {
                self.next()?;
                let is_plain = (is_plain && tag.is_none()) || tag.as_deref() == Some("!");
                Content::Scalar { text, is_plain }
            }
            TokenKind::FlowSequenceStart => self.flow_sequence()?,
            TokenKind::FlowMappingStart => self.flow_mapping()?,
            TokenKind::BlockSequenceStart if context != NodeContext::Flow => self.block_sequence()?,
            TokenKind::BlockMappingStart if context != NodeContext::Flow => self.block_mapping()?,
            _ if anchor.is_some() || tag.is_some() => {
                Content::Scalar { text: String::new(), is_plain: !is_specific }
            }
            _ => return Err(self.unexpected("a value")),
        };
        self.depth -= 1;
        let node = Rc::new(Composed { mark, tag: tag.filter(|_| is_specific), content });
        if let Some(anchor) = anchor {
            if self.anchors.contains_key(&anchor) {
                return Err(Problem::new(mark, format!("anchor `&{anchor}` appears twice")));
            }
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    /// An anchor and a tag, in either order, each at most once.
    fn properties(&mut self) -> Parsed<(Option<String>, Option<String>)> {
        let (mut anchor, mut tag) = (None, None);
        loop {
            match self.peek()?.clone() {
                TokenKind::Anchor(name) if anchor.is_none() => {
                    self.next()?;
                    anchor = Some(name);
                }
                TokenKind::Tag { handle, suffix } if tag.is_none() => {
                    let mark = self.next()?.mark;
                    let prefix = match &handle {
                        None => "",
                        Some(handle) => self.handles.get(handle).ok_or_else(|| {
                            Problem::new(mark, format!("handle `{handle}` of a tag is not known"))
                        })?,
                    };
                    tag = Some(format!("{prefix}{suffix}"));
                }
                _ => return Ok((anchor, tag)),
            }
        }
    }

    fn block_sequence(&mut self) -> Parsed<Content> {
        self.next()?;
        let mut items = Vec::new();
        while self.is(&[TokenKind::BlockEntry])? {
            let mark = self.next()?.mark;
            let is_empty = self.is(&[TokenKind::BlockEntry, TokenKind::BlockEnd])?;
            items.push(if is_empty { self.empty_at(mark) } else { self.node(NodeContext::Block)? });
        }
        self.block_end("another `- ` of the list")?;
        Ok(Content::Sequence(items))
    }

    fn block_end(&mut self, wanted: &str) -> Parsed<()> {
        if self.eat(&TokenKind::BlockEnd)? {
            return Ok(());
        }
        Err(self.unexpected(&format!("{wanted} or less indentation")))
    }

    fn indentless_sequence(&mut self) -> Parsed<Content> {
        let mut items = Vec::new();
        while self.is(&[TokenKind::BlockEntry])? {
            let mark = self.next()?.mark;
            let ends = [TokenKind::BlockEntry, TokenKind::Key, TokenKind::Value, TokenKind::BlockEnd];
            items.push(if self.is(&ends)? { self.empty_at(mark) } else { self.node(NodeContext::Block)? });
        }
        Ok(Content::Sequence(items))
    }

    fn block_mapping(&mut self) -> Parsed<Content> {
        self.next()?;
        let mut pairs = Vec::new();
        let ends = [TokenKind::Key, TokenKind::Value, TokenKind::BlockEnd];
        while self.is(&[TokenKind::Key])? {
            let mark = self.next()?.mark;
            let key = if self.is(&ends)? { self.empty_at(mark) } else { self.node(NodeContext::BlockValue)? };
            let value = if self.is(&[TokenKind::Value])? {
                let mark = self.next()?.mark;
                if self.is(&ends)? { self.empty_at(mark) } else { self.node(NodeContext::BlockValue)? }
            } else {
                self.empty()?
            };
            pairs.push((key, value));
        }
        self.block_end("another key of the map")?;
        Ok(Content::Mapping(pairs))
    }

    fn flow_sequence(&mut self) -> Parsed<Content> {
        self.next()?;
        let mut items = Vec::new();
        let mut is_first = true;
        while !self.is(&[TokenKind::FlowSequenceEnd])? {
            if !is_first && !self.eat(&TokenKind::FlowEntry)? {
                return Err(self.unexpected("`,` or `]`"));
            }
            is_first = false;
            if self.is(&[TokenKind::Key])? {
                let mark = self.mark()?;
                let pair = self.flow_pair(&TokenKind::FlowSequenceEnd)?;
                let content = Content::Mapping(vec![pair]);
                items.push(Rc::new(Composed { mark, tag: None, content }));
            } else if !self.is(&[TokenKind::FlowSequenceEnd])? {
                items.push(self.node(NodeContext::Flow)?);
            }
        }
        self.next()?;
        Ok(Content::Sequence(items))
    }

    /// `key: value` from the mark of a key on; both may be left out.
    fn flow_pair(&mut self, end: &TokenKind) -> Parsed<(Rc<Composed>, Rc<Composed>)> {
        let mark = self.next()?.mark;
        let has_key = !self.is(&[TokenKind::Value, TokenKind::FlowEntry, end.clone()])?;
        let key = if has_key { self.node(NodeContext::Flow)? } else { self.empty_at(mark) };
        let mut value = self.empty()?;
        if self.eat(&TokenKind::Value)? && !self.is(&[TokenKind::FlowEntry, end.clone()])? {
            value = self.node(NodeContext::Flow)?;
        }
        Ok((key, value))
    }

    fn flow_mapping(&mut self) -> Parsed<Content> {
        self.next()?;
        let mut pairs = Vec::new();
        let mut is_first = true;
        while !self.is(&[TokenKind::FlowMappingEnd])? {
            if !is_first && !self.eat(&TokenKind::FlowEntry)? {
                return Err(self.unexpected("`,` or `}`"));
            }
            is_first = false;
            if self.is(&[TokenKind::Key])? {
                pairs.push(self.flow_pair(&TokenKind::FlowMappingEnd)?);
            } else if !self.is(&[TokenKind::FlowMappingEnd])? {
                let key = self.node(NodeContext::Flow)?;
                pairs.push((key, self.empty()?));
            }
        }
        self.next()?;
        Ok(Content::Mapping(pairs))
    }
}

/// What a token is called in messages.
fn name(kind: &TokenKind) -> String {
    match kind {
        TokenKind::StreamEnd => "the end of the document".to_owned(),
        TokenKind::Directive(_) => "`%`".to_owned(),
        TokenKind::DocumentStart => "`---`".to_owned(),
        TokenKind::DocumentEnd => "`...`".to_owned(),
        TokenKind::BlockSequenceStart | TokenKind::BlockEntry => "`- `".to_owned(),
        TokenKind::BlockMappingStart | TokenKind::Key => "a key".to_owned(),
        TokenKind::BlockEnd => "less indentation".to_owned(),
        TokenKind::FlowSequenceStart => "`[`".to_owned(),
        TokenKind::FlowSequenceEnd => "`]`".to_owned(),
        TokenKind::FlowMappingStart => "`{`".to_owned(),
        TokenKind::FlowMappingEnd => "`}`".to_owned(),
        TokenKind::FlowEntry => "`,`".to_owned(),
        TokenKind::Value => "`:`".to_owned(),
        TokenKind::Alias(name) => format!("`*{name}`"),
        TokenKind::Anchor(name) => format!("`&{name}`"),
        TokenKind::Tag { suffix, .. } => format!("tag `{suffix}`"),
        TokenKind::Scalar { text, .. } => {
            let start: String = text.chars().take(20).collect();
            format!("`{start}`")
        }
    }
}
