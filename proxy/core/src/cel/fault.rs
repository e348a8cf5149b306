//! Why an expression has no value.

/// What goes wrong while one is evaluated. A condition that has no value does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A name, a field or a key that is not there.
    #[error("no such key")]
    NoSuchKey,
    /// A function that takes other kinds of values.
    #[error("no matching overload")]
    NoOverload,
    /// A number that is too large.
    #[error("overflow")]
    Overflow,
    /// A division by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// A text that is not what it should be.
    #[error("invalid argument")]
    Invalid,
}
