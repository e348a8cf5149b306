//! APISIX's expression language (`vars`, `_meta.filter`): lua-resty-expr, compiled.

use crate::stream::Stream;

/// A compiled expression.
#[derive(Debug)]
pub struct Expr {
    _private: (),
}

/// Why an expression could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(pub String);

impl Expr {
    /// Whether the expression holds for the request.
    ///
    /// # Errors
    /// [`EvalError`] when a part can't be evaluated; routes take that for no match, `_meta.filter` for a match.
    pub fn eval(&self, _stream: &Stream) -> Result<bool, EvalError> {
        Ok(true)
    }
}
