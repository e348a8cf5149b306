//! Expressions as they are written, in text or in Envoy's messages.

/// Nodes that an expression may have, so that whoever goes through one, or drops it, needs a bounded stack.
pub(super) const MAX_PARTS: usize = 1024;

/// A literal.
#[derive(Debug, Clone, PartialEq)]
pub enum Constant {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// `1`, `-0x1f`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `1.5`, `2e3`
    Double(f64),
    /// `"a"`
    String(String),
    /// `b"a"`
    Bytes(Vec<u8>),
    /// Nanoseconds, of messages alone.
    Duration(i128),
    /// Nanoseconds since 1970, of messages alone.
    Timestamp(i128),
}

/// A node of an expression (cel/expr/syntax.proto Expr). Operators are calls of functions such as `_&&_`.
#[derive(Debug, Clone, PartialEq)]
pub enum Ast {
    /// A literal.
    Constant(Constant),
    /// A name.
    Ident(String),
    /// A field of a value, or whether there is one (`has`).
    Select {
        /// Whose.
        operand: Box<Ast>,
        /// Its name.
        field: String,
        /// Only whether it is there.
        test: bool,
    },
    /// A function.
    Call {
        /// What it is called on, if it is.
        target: Option<Box<Ast>>,
        /// Its name.
        function: String,
        /// Arguments.
        args: Vec<Ast>,
    },
    /// `[a, b]`
    List(Vec<Ast>),
    /// `{a: b}`
    Map(Vec<(Ast, Ast)>),
    /// What Envoy refuses to evaluate: a comprehension, which macros such as `all` stand for, or a message that is made.
    Refused(&'static str),
}
