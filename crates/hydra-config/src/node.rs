//! The order-preserving tree that every configuration document becomes.

use indexmap::IndexMap;

/// One value of a configuration tree. Keys keep the order in which they were written.
///
/// A mandatory value (`???`) and a value with an interpolation (`${a.b}`) are [`Node::Str`] until resolved,
/// as in OmegaConf.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A string, an unresolved interpolation or `???`.
    Str(String),
    /// A list.
    List(Vec<Node>),
    /// A map.
    Map(IndexMap<String, Node>),
}
