//! The Common Expression Language over Envoy's attributes (cel-spec; Envoy's source/extensions/filters/common/expr).
//!
//! An expression is read and made ready when configuration arrives: attributes are functions that read a request, names
//! of headers are looked up, patterns compiled, constants folded. Evaluating it borrows what a request has. As in Envoy
//! there are no comprehensions, so that its cost is bounded by its size, and making texts of values has to be asked for.

mod ast;
mod attributes;
mod compile;
mod eval;
mod fault;
mod functions;
pub mod fuzz;
mod lex;
mod parse;
#[cfg(test)]
mod tests;
mod text;
mod time;
mod value;

pub use ast::{Ast, Constant};
pub use fault::Fault;

use crate::stream::Stream;
use compile::Expr;
use value::Value;

/// Functions that have to be asked for, since what they make is as long as what a client sends
/// (config/core/v3/cel.proto CelExpressionConfig).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extras {
    /// `string()`
    pub string_conversion: bool,
    /// `+` of texts and bytes.
    pub string_concat: bool,
    /// `replace`, `split`, `lowerAscii`, `upperAscii`.
    pub string_functions: bool,
}

/// An expression that is ready to be evaluated.
#[derive(Debug)]
pub struct Program(Expr);

impl Program {
    /// An expression from its text.
    ///
    /// # Errors
    /// What is wrong with it: its grammar, a function that there is not, a pattern that is none.
    pub fn parse(text: &str, extras: Extras) -> Result<Program, String> {
        Program::new(&parse::parse(text)?, extras)
    }

    /// An expression that has been read already.
    ///
    /// # Errors
    /// As of [`Program::parse`].
    pub fn new(ast: &Ast, extras: Extras) -> Result<Program, String> {
        compile::compile(ast, extras).map(Program)
    }

    /// Whether it is true of a request. One that has no value, or one that is no truth, is not.
    pub fn holds(&self, stream: &Stream) -> bool {
        matches!(self.0.eval(stream), Ok(Value::Bool(true)))
    }

    /// Appends its value as Envoy prints it; tells whether it has one. With `json` texts are quoted, and so is what
    /// JSON has no other form for.
    pub fn write(&self, stream: &Stream, json: bool, out: &mut Vec<u8>) -> bool {
        match self.0.eval(stream) {
            Ok(value) => {
                text::write(&value, json, out);
                true
            }
            Err(_) => false,
        }
    }
}
