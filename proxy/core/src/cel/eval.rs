//! Evaluating an expression for one request. There are no loops: the cost is that of the expression's parts.

use super::Fault;
use super::compile::{Expr, Of, list, map, of_constant};
use super::functions::call;
use super::value::{Evaluated, Map, Value, joined};
use crate::matcher::HeaderTarget;
use crate::stream::Stream;
use smallvec::SmallVec;
use std::borrow::Cow;

impl Expr {
    /// Its value for a request.
    pub(super) fn eval<'a>(&'a self, stream: &'a Stream) -> Evaluated<'a> {
        match self {
            Expr::Constant(constant) => Ok(of_constant(constant)),
            Expr::Type(name) => Ok(Value::Type(name)),
            Expr::Attribute(read) => read(stream).ok_or(Fault::NoSuchKey),
            Expr::Header(of, target) => header(*of, target, stream).ok_or(Fault::NoSuchKey),
            Expr::Root(attributes) => Ok(Value::Map(Map::Attributes(attributes, stream))),
            Expr::Missing => Err(Fault::NoSuchKey),
            Expr::Select(operand, field) => match operand.eval(stream)? {
                Value::Map(map) => map.field(field),
                _ => Err(Fault::NoOverload),
            },
            Expr::Has(operand) => match operand.eval(stream) {
                Ok(_) => Ok(Value::Bool(true)),
                Err(Fault::NoSuchKey) => Ok(Value::Bool(false)),
                Err(fault) => Err(fault),
            },
            Expr::Index(operand, index) => at(&operand.eval(stream)?, &index.eval(stream)?),
            Expr::And(one, other) => junction(one, other, false, stream),
            Expr::Or(one, other) => junction(one, other, true, stream),
            Expr::Either(condition, one, other) => match condition.eval(stream)? {
                Value::Bool(true) => one.eval(stream),
                Value::Bool(false) => other.eval(stream),
                _ => Err(Fault::NoOverload),
            },
            Expr::Call(function, args) => {
                let values: Result<SmallVec<[Value<'_>; 3]>, _> =
                    args.iter().map(|arg| arg.eval(stream)).collect();
                call(*function, &values?)
            }
            Expr::Matches(text, regex) => match text.eval(stream)? {
                Value::String(text) => Ok(Value::Bool(regex.is_match(&text))),
                _ => Err(Fault::NoOverload),
            },
            Expr::List(values) => {
                values.iter().map(|value| value.eval(stream)).collect::<Result<_, _>>().map(list)
            }
            Expr::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| Ok((key.eval(stream)?, value.eval(stream)?)));
                map(entries.collect::<Result<_, Fault>>()?)
            }
        }
    }
}

/// `&&` and `||`: what one side decides holds although the other has no value.
fn junction<'a>(one: &'a Expr, other: &'a Expr, decides: bool, stream: &'a Stream) -> Evaluated<'a> {
    let of = |expr: &'a Expr| match expr.eval(stream) {
        Ok(Value::Bool(value)) => Ok(value),
        Ok(_) => Err(Fault::NoOverload),
        Err(fault) => Err(fault),
    };
    let first = of(one);
    if first == Ok(decides) {
        return Ok(Value::Bool(decides));
    }
    match (of(other), first) {
        (Ok(second), _) if second == decides => Ok(Value::Bool(decides)),
        (_, Err(fault)) | (Err(fault), _) => Err(fault),
        (Ok(_), Ok(_)) => Ok(Value::Bool(!decides)),
    }
}

/// An element of a list or a map.
fn at<'a>(operand: &Value<'a>, index: &Value<'_>) -> Evaluated<'a> {
    match (operand, index) {
        (Value::Map(map), key) => map.get(key),
        (Value::List(values), Value::Int(at)) => {
            usize::try_from(*at).ok().and_then(|at| values.get(at)).ok_or(Fault::NoSuchKey)
        }
        (Value::List(values), Value::Uint(at)) => {
            usize::try_from(*at).ok().and_then(|at| values.get(at)).ok_or(Fault::NoSuchKey)
        }
        _ => Err(Fault::NoOverload),
    }
}

fn header<'a>(of: Of, target: &'a HeaderTarget, stream: &'a Stream) -> Option<Value<'a>> {
    match (of, target) {
        (Of::Request, target) => joined(target.values(&stream.request).map(Cow::Borrowed)),
        (Of::Response, HeaderTarget::Status) if stream.response.status > 0 => {
            Some(Value::text(stream.response.status.to_string().into_bytes()))
        }
        (Of::Response, HeaderTarget::Header(name)) => {
            joined(stream.response.headers.get_all(name).map(Cow::Borrowed))
        }
        (Of::Trailers, HeaderTarget::Header(name)) => {
            joined(stream.response_trailers.get_all(name).map(Cow::Borrowed))
        }
        _ => None,
    }
}
