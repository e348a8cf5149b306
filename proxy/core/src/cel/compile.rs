//! Expressions made ready: names are looked up, patterns compiled and constants folded once.

use super::ast::{Ast, Constant, MAX_PARTS};
use super::attributes::{self, Read};
use super::functions::{Function, call};
use super::value::{List, Map, Value};
use super::{Extras, Fault};
use crate::matcher::HeaderTarget;
use crate::regex::Regex;
use std::borrow::Cow;
use std::rc::Rc;

/// How deep an expression may be nested, chains of operators among it: evaluating goes as deep, on the stack of a worker.
const MAX_NESTED: usize = 256;

/// Whose headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Request,
    Response,
    Trailers,
}

/// An expression, ready.
#[derive(Debug)]
pub(super) enum Expr {
    Constant(Constant),
    Type(&'static str),
    /// An attribute, by what reads it.
    Attribute(Read),
    Header(Of, HeaderTarget),
    /// All attributes below a name.
    Root(&'static [attributes::Attribute]),
    /// A name that nothing has.
    Missing,
    Select(Box<Expr>, Box<str>),
    /// Whether the operand is there: that of `has`.
    Has(Box<Expr>),
    Index(Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Either(Box<Expr>, Box<Expr>, Box<Expr>),
    Call(Function, Box<[Expr]>),
    Matches(Box<Expr>, Regex),
    List(Box<[Expr]>),
    Map(Box<[(Expr, Expr)]>),
}

/// What is compiled, and how much of it is left.
struct Compiler {
    extras: Extras,
    parts: usize,
    depth: usize,
}

/// Makes an expression ready.
///
/// # Errors
/// A function that there is not, a pattern that is none, and what is not supported.
pub(super) fn compile(ast: &Ast, extras: Extras) -> Result<Expr, String> {
    Compiler { extras, parts: 0, depth: 0 }.expr(ast)
}

impl Compiler {
    fn expr(&mut self, ast: &Ast) -> Result<Expr, String> {
        self.parts += 1;
        self.depth += 1;
        if self.parts > MAX_PARTS {
            return Err(format!("it has more than {MAX_PARTS} parts"));
        }
        if self.depth > MAX_NESTED {
            return Err(format!("it is nested deeper than {MAX_NESTED}"));
        }
        let expr = self.node(ast)?;
        self.depth -= 1;
        Ok(expr)
    }

    fn node(&mut self, ast: &Ast) -> Result<Expr, String> {
        Ok(match ast {
            Ast::Constant(constant) => Expr::Constant(constant.clone()),
            Ast::Ident(name) => ident(name),
            Ast::Select { operand, field, test } => {
                let select = self.select(operand, field)?;
                if *test { Expr::Has(Box::new(select)) } else { select }
            }
            Ast::Call { target, function, args } => return self.call(target.as_deref(), function, args),
            Ast::List(values) => Expr::List(self.all(values)?.into()),
            Ast::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| Ok((self.expr(key)?, self.expr(value)?)));
                Expr::Map(entries.collect::<Result<_, String>>()?)
            }
            Ast::Refused(reason) => return Err((*reason).to_owned()),
        })
    }

    fn all(&mut self, values: &[Ast]) -> Result<Vec<Expr>, String> {
        values.iter().map(|value| self.expr(value)).collect()
    }

    /// A field: an attribute or a header where that can be told now.
    fn select(&mut self, operand: &Ast, field: &str) -> Result<Expr, String> {
        self.expr(operand).map(|operand| selected(operand, field))
    }

    fn call(&mut self, target: Option<&Ast>, function: &str, args: &[Ast]) -> Result<Expr, String> {
        if let ("_[_]", [operand, Ast::Constant(Constant::String(name))]) = (function, args) {
            return self.select(operand, name);
        }
        let mut all: Vec<Expr> = target.map(|target| self.expr(target)).transpose()?.into_iter().collect();
        all.extend(self.all(args)?);
        made(function, target.is_some(), all, self.extras)
    }
}

fn selected(operand: Expr, field: &str) -> Expr {
    match operand {
        Expr::Root(attributes) => match attributes.iter().find(|attribute| attribute.name == field) {
            Some(attribute) => Expr::Attribute(attribute.read),
            None => Expr::Missing,
        },
        operand => match headers_of(&operand) {
            Some(of) => Expr::Header(of, target(of, field)),
            None => Expr::Select(Box::new(operand), field.into()),
        },
    }
}

/// A call of what is ready. Apart from what calls itself, which has to leave room on the stack.
#[inline(never)]
fn made(function: &str, is_member: bool, all: Vec<Expr>, extras: Extras) -> Result<Expr, String> {
    let count = all.len();
    let mut all = all.into_iter();
    let mut next = || Box::new(all.next().unwrap_or(Expr::Missing));
    Ok(match (function, count) {
        ("_&&_", 2) => Expr::And(next(), next()),
        ("_||_", 2) => Expr::Or(next(), next()),
        ("_?_:_", 3) => Expr::Either(next(), next(), next()),
        ("_[_]", 2) => Expr::Index(next(), next()),
        ("dyn", 1) => *next(),
        ("matches", 2) => match (next(), *next()) {
            (text, Expr::Constant(Constant::String(pattern))) => {
                let regex = Regex::search(&pattern).map_err(|e| format!("matches(): {e}"))?;
                Expr::Matches(text, regex)
            }
            (text, pattern) => Expr::Call(Function::Matches, [*text, pattern].into()),
        },
        _ => {
            let function = Function::find(function, is_member, count, extras)?;
            folded(function, std::iter::from_fn(|| all.next()).collect())
        }
    })
}

/// What a name means.
fn ident(name: &str) -> Expr {
    if let Some(attributes) = attributes::below(name) {
        return Expr::Root(attributes);
    }
    if let Some(read) = attributes::root(name) {
        return Expr::Attribute(read);
    }
    match ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"]
        .iter()
        .find(|kind| **kind == name)
    {
        Some(kind) => Expr::Type(kind),
        None => Expr::Missing,
    }
}

/// Whose headers an expression stands for, if it does.
fn headers_of(expr: &Expr) -> Option<Of> {
    let Expr::Attribute(read) = expr else { return None };
    let is = |root: &str, name: &str| {
        let attributes = attributes::below(root).unwrap_or_default();
        attributes.iter().any(|a| a.name == name && std::ptr::fn_addr_eq(a.read, *read))
    };
    if is("request", "headers") {
        Some(Of::Request)
    } else if is("response", "headers") {
        Some(Of::Response)
    } else {
        is("response", "trailers").then_some(Of::Trailers)
    }
}

fn target(of: Of, name: &str) -> HeaderTarget {
    match of {
        Of::Request => HeaderTarget::of_request(name),
        Of::Response | Of::Trailers => HeaderTarget::of_response(name),
    }
}

/// A call, or what it gives if all its arguments are constants.
fn folded(function: Function, args: Vec<Expr>) -> Expr {
    let constants: Option<Vec<Value<'_>>> = args
        .iter()
        .map(|arg| match arg {
            Expr::Constant(constant) => Some(of_constant(constant)),
            _ => None,
        })
        .collect();
    let folded = constants.and_then(|constants| to_constant(call(function, &constants).ok()?));
    folded.map_or_else(|| Expr::Call(function, args.into()), Expr::Constant)
}

/// The value of a literal.
pub(super) fn of_constant(constant: &Constant) -> Value<'_> {
    match constant {
        Constant::Null => Value::Null,
        Constant::Bool(value) => Value::Bool(*value),
        Constant::Int(value) => Value::Int(*value),
        Constant::Uint(value) => Value::Uint(*value),
        Constant::Double(value) => Value::Double(*value),
        Constant::String(text) => Value::text(text.as_bytes()),
        Constant::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
        Constant::Duration(nanos) => Value::Duration(*nanos),
        Constant::Timestamp(nanos) => Value::Timestamp(*nanos),
    }
}

fn to_constant(value: Value<'_>) -> Option<Constant> {
    Some(match value {
        Value::Null => Constant::Null,
        Value::Bool(value) => Constant::Bool(value),
        Value::Int(value) => Constant::Int(value),
        Value::Uint(value) => Constant::Uint(value),
        Value::Double(value) => Constant::Double(value),
        Value::String(text) => Constant::String(String::from_utf8(text.into_owned()).ok()?),
        Value::Bytes(bytes) => Constant::Bytes(bytes.into_owned()),
        Value::Duration(nanos) => Constant::Duration(nanos),
        Value::Timestamp(nanos) => Constant::Timestamp(nanos),
        Value::List(_) | Value::Map(_) | Value::Type(_) => return None,
    })
}

/// A list of values that were made here.
pub(super) fn list(values: Vec<Value<'_>>) -> Value<'_> {
    Value::List(List::Values(Rc::from(values)))
}

/// A map of values that were made here.
///
/// # Errors
/// A key that is there twice.
pub(super) fn map<'a>(entries: Vec<(Value<'a>, Value<'a>)>) -> Result<Value<'a>, Fault> {
    for (at, (key, _)) in entries.iter().enumerate() {
        if entries.iter().take(at).any(|(earlier, _)| earlier.equals(key)) {
            return Err(Fault::Invalid);
        }
    }
    Ok(Value::Map(Map::Values(Rc::from(entries))))
}
