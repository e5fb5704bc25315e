//! The tree that the parser makes and the renderer walks. Nothing here changes once it is made, and threads share it.

use std::sync::Arc;

/// A literal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// The arguments of a call, a filter or a test.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CallArgs {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Arc<str>, Expr)>,
    /// `*expr`.
    pub(crate) star: Option<Expr>,
    /// `**expr`.
    pub(crate) double_star: Option<Expr>,
}

/// A filter or a test and its arguments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) name: Arc<str>,
    pub(crate) args: CallArgs,
    pub(crate) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    Const(Const),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// `value.name`.
    Attribute(Box<Expr>, Arc<str>),
    /// `value[item]`, and `value.0`.
    Item(Box<Expr>, Box<Expr>),
    /// `value[start:stop:step]`.
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<CallArgs>),
    Filter(Box<Expr>, Box<Named>),
    Test(Box<Expr>, Box<Named>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    Concat(Vec<Expr>),
    /// `then if test else otherwise`.
    If {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
}

/// What can be assigned to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iterable: Expr,
    pub(crate) filter: Option<Expr>,
    pub(crate) body: Vec<Stmt>,
    pub(crate) otherwise: Vec<Stmt>,
    pub(crate) is_recursive: bool,
}

/// A macro, or the body of a call block.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MacroDef {
    /// `None` for the body of a call block.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) params: Vec<Arc<str>>,
    /// Of the last parameters.
    pub(crate) defaults: Vec<Expr>,
    pub(crate) body: Vec<Stmt>,
    pub(crate) uses: SpecialNames,
}

/// Which special names the body of a macro uses; a macro takes only what it uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecialNames {
    pub(crate) caller: bool,
    pub(crate) varargs: bool,
    pub(crate) kwargs: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stmt {
    Text(String),
    Print(Expr),
    For(Arc<For>),
    If {
        arms: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    Set(Target, Expr),
    SetBlock {
        target: Target,
        filters: Vec<Named>,
        body: Vec<Stmt>,
    },
    With {
        bindings: Vec<(Target, Expr)>,
        body: Vec<Stmt>,
    },
    Macro(Arc<MacroDef>),
    CallBlock {
        function: Expr,
        args: CallArgs,
        caller: Arc<MacroDef>,
    },
    FilterBlock {
        filters: Vec<Named>,
        body: Vec<Stmt>,
    },
    /// A block of a template that extends none is what it holds.
    Block {
        is_scoped: bool,
        body: Vec<Stmt>,
    },
    /// `{% generation %}`: marks for training, no effect on the text.
    Generation(Vec<Stmt>),
    Autoescape(Expr, Vec<Stmt>),
    /// `include`, `import` or `extends`: a chat template has nothing to load from.
    Load,
    Break,
    Continue,
}
