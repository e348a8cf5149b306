//! APISIX's expression language (`vars`, `_meta.filter`): lua-resty-expr, compiled.
//!
//! An expression is an array of conditions that must all hold, or a logical operator and its operands, any
//! depth. A condition is `[variable, operator, value]`, `[variable, "!", operator, value]` to turn it round,
//! or `[variable, value]` for equality.

mod list;
mod pattern;
#[cfg(test)]
mod tests;
mod told;

use crate::format::{Shown, Variable};
use crate::lookup::Lookup;
use crate::regex::Late;
use crate::stream::Stream;
use ipnet::IpNet;
use pattern::Pattern;
use serde_json::Value;
use std::net::IpAddr;

pub use told::Failing;

/// A compiled expression.
#[derive(Debug)]
pub struct Expr {
    root: Node,
}

/// Why an expression was refused, in lua-resty-expr's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidExpr(pub String);

/// Why an expression could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(pub String);

#[derive(Debug)]
enum Node {
    /// Operands of AND, or of OR when `any`; `negate` makes `!AND` and `!OR`.
    Logic { any: bool, negate: bool, operands: Box<[Node]> },
    /// One condition; `negate` is the `"!"` in its second place.
    Condition { variable: Variable, negate: bool, test: Test },
}

/// What a condition asks of the variable's value.
#[derive(Debug)]
enum Test {
    Equal(Literal),
    NotEqual(Literal),
    /// Both sides as numbers; the flags say which orders hold: less, equal, greater.
    Compare {
        bound: Option<f64>,
        less: bool,
        equal: bool,
        greater: bool,
    },
    Matches(Pattern),
    /// One of these; numbers and booleans of the list equal no text.
    In(Box<[Literal]>),
    /// The value is an array that has this element.
    Has(Literal),
    Address(Box<[IpNet]>),
}

/// The right side of a comparison.
#[derive(Debug)]
enum Literal {
    /// `null`: nothing there.
    Absent,
    Number(f64),
    Text(Box<str>),
    /// A boolean, which no text equals.
    Bool(bool),
    /// An object or an array, which nothing equals.
    Other,
}

impl Node {
    fn patterns(&self, take: &mut dyn FnMut(&dyn Late)) {
        match self {
            Node::Logic { operands, .. } => operands.iter().for_each(|operand| operand.patterns(take)),
            Node::Condition { test: Test::Matches(pattern), .. } => take(pattern.late()),
            Node::Condition { .. } => {}
        }
    }
}

impl Expr {
    /// Hands out every pattern that it may have to compile.
    pub(crate) fn patterns(&self, take: &mut dyn FnMut(&dyn Late)) {
        self.root.patterns(take);
    }

    /// Compiles the JSON form of an expression. The empty array always holds.
    ///
    /// # Errors
    /// [`InvalidExpr`] in lua-resty-expr's words, such as `invalid operator 'x'`; also for a regex that does
    /// not compile, which lua-resty-expr would take for one that never matches.
    pub fn new(rule: &Value) -> Result<Expr, InvalidExpr> {
        let rules = rule.as_array().ok_or_else(|| InvalidExpr("missing argument rule".to_owned()))?;
        match rules.first() {
            None => return Ok(Expr { root: Node::all(Box::default()) }),
            Some(Value::Array(_)) => {}
            // Lua's empty table.
            Some(Value::Object(none)) if none.is_empty() => {
                return Err(InvalidExpr("rule too short".to_owned()));
            }
            Some(first) if first.as_str().and_then(logic).is_some() => {}
            Some(_) => return Err(InvalidExpr("rule should be wrapped inside brackets".to_owned())),
        }
        Ok(Expr { root: Node::compile(rules)? })
    }

    /// Whether the expression holds for the request.
    ///
    /// # Errors
    /// [`EvalError`] when a part can't be evaluated; routes take that for no match, `_meta.filter` for a match.
    pub fn eval(&self, stream: &Stream) -> Result<bool, EvalError> {
        let _once = Lookup::begin();
        self.root.eval(stream)
    }
}

/// The logical operator of that name: whether any operand will do, and whether the answer is turned round.
fn logic(name: &str) -> Option<(bool, bool)> {
    Some(match name.to_ascii_uppercase().as_str() {
        "AND" => (false, false),
        "OR" => (true, false),
        "!AND" => (false, true),
        "!OR" => (true, true),
        _ => return None,
    })
}

impl Node {
    fn all(operands: Box<[Node]>) -> Node {
        Node::Logic { any: false, negate: false, operands }
    }

    fn compile(rules: &[Value]) -> Result<Node, InvalidExpr> {
        let operands = |rules: &[Value]| -> Result<Box<[Node]>, InvalidExpr> {
            rules
                .iter()
                .map(|rule| match rule {
                    Value::Array(inner) => Node::compile(inner),
                    _ => Err(InvalidExpr("rule should be wrapped inside brackets".to_owned())),
                })
                .collect()
        };
        match rules {
            [] => Err(InvalidExpr("rule too short".to_owned())),
            [Value::Array(_), ..] => Ok(Node::all(operands(rules)?)),
            [Value::String(name), rest @ ..] => match logic(name) {
                Some(_) if rest.len() < 2 => Err(InvalidExpr("rule too short".to_owned())),
                Some((any, negate)) => Ok(Node::Logic { any, negate, operands: operands(rest)? }),
                None => Node::condition(name, rest),
            },
            _ => Err(InvalidExpr("invalid expression".to_owned())),
        }
    }

    /// `[name, rest..]`
    fn condition(name: &str, rest: &[Value]) -> Result<Node, InvalidExpr> {
        let (negate, rest) = match rest {
            [Value::String(not), op, value] if not == "!" => (true, (op, Some(value))),
            [_, _, _] => return Err(InvalidExpr("bad 'not' expression".to_owned())),
            [op, value, ..] => (false, (op, Some(value))),
            [op] => (false, (op, None)),
            [] => return Err(InvalidExpr("invalid expression".to_owned())),
        };
        let op = match rest.0 {
            Value::String(op) => op.to_ascii_lowercase(),
            Value::Number(op) => op.to_string(),
            _ => return Err(InvalidExpr("invalid expression".to_owned())),
        };
        let test = match Test::new(&op, rest.1.unwrap_or(&Value::Null)) {
            // `[variable, value]`: the library has lowered the case of what it took for an operator.
            None if rest.1.is_none() => Test::Equal(Literal::Text(op.into())),
            None => return Err(InvalidExpr(format!("invalid operator '{op}'"))),
            Some(test) => test.map_err(InvalidExpr)?,
        };
        if let Some(fault) = Variable::fault(name) {
            return Err(InvalidExpr(fault));
        }
        Ok(Node::Condition { variable: Variable::parse(name), negate, test })
    }

    fn eval(&self, stream: &Stream) -> Result<bool, EvalError> {
        match self {
            Node::Logic { any, negate, operands } => {
                for operand in operands {
                    if operand.eval(stream)? == *any {
                        return Ok(*any != *negate);
                    }
                }
                Ok(*any == *negate)
            }
            Node::Condition { variable, negate, test } => {
                let holds = |shown: Shown<'_>| match shown {
                    Shown::Text(text) => test.holds(text),
                    Shown::Json(value) => test.holds_of(value),
                    Shown::List(all) => Ok(match test {
                        Test::Has(want) => all.iter().any(|item| want.is(item)),
                        // Nothing is the same as a list.
                        other => matches!(other, Test::NotEqual(_)),
                    }),
                };
                Ok(variable.look_typed(stream, holds)? != *negate)
            }
        }
    }
}

impl Test {
    /// The test of an operator in lower case; `None` when there is no such operator.
    fn new(op: &str, value: &Value) -> Option<Result<Test, String>> {
        let compare = |less, equal, greater| {
            let bound = match value {
                Value::Number(n) => n.as_f64(),
                Value::String(s) => to_number(s.as_bytes()),
                _ => None,
            };
            Ok(Test::Compare { bound, less, equal, greater })
        };
        Some(match op {
            "==" => Ok(Test::Equal(Literal::new(value))),
            "~=" => Ok(Test::NotEqual(Literal::new(value))),
            ">" => compare(false, false, true),
            ">=" => compare(false, true, true),
            "<" => compare(true, false, false),
            "<=" => compare(true, true, false),
            "~~" | "~*" => match value.as_str() {
                Some(source) => Pattern::new(source, op == "~*").map(Test::Matches),
                None => Err("invalid regex: not a string".to_owned()),
            },
            "in" => Ok(Test::In(value.as_array().into_iter().flatten().map(Literal::new).collect())),
            "has" => Ok(Test::Has(Literal::new(value))),
            "ipmatch" => addresses(value).map(Test::Address),
            _ => return None,
        })
    }

    fn holds(&self, value: Option<&[u8]>) -> Result<bool, EvalError> {
        Ok(match self {
            Test::Equal(want) => want.equals(value),
            Test::NotEqual(want) => !want.equals(value),
            Test::Compare { bound, less, equal, greater } => match value.and_then(to_number).zip(*bound) {
                Some((n, bound)) => (*less && n < bound) || (*equal && n == bound) || (*greater && n > bound),
                None => false,
            },
            Test::Matches(pattern) => match value {
                Some(text) => pattern.is_match(text)?,
                None => false,
            },
            Test::In(list) => list.iter().any(|item| match item {
                Literal::Text(text) => value == Some(text.as_bytes()),
                _ => false,
            }),
            Test::Has(want) => value.is_some_and(|v| list::any(v, |item| want.is(item))),
            Test::Address(nets) => value
                .and_then(|v| std::str::from_utf8(v).ok()?.parse::<IpAddr>().ok())
                .is_some_and(|ip| nets.iter().any(|net| net.contains(&ip))),
        })
    }
}

impl Test {
    /// [`Test::holds`] of a value that is no text: a number, a boolean, a list or an object, which equal no text.
    fn holds_of(&self, value: &Value) -> Result<bool, EvalError> {
        let number = || value.as_number().map(ToString::to_string);
        match self {
            Test::Equal(want) => Ok(want.is(value)),
            Test::NotEqual(want) => Ok(!want.is(value)),
            Test::In(list) => Ok(list.iter().any(|item| item.is(value))),
            Test::Has(want) => {
                Ok(value.as_array().is_some_and(|items| items.iter().any(|item| want.is(item))))
            }
            Test::Compare { .. } | Test::Matches(_) | Test::Address(_) => {
                self.holds(number().as_deref().map(str::as_bytes))
            }
        }
    }
}

impl Literal {
    fn new(value: &Value) -> Literal {
        match value {
            Value::Null => Literal::Absent,
            Value::Number(n) => n.as_f64().map_or(Literal::Other, Literal::Number),
            Value::String(s) => Literal::Text(s.as_str().into()),
            Value::Bool(truth) => Literal::Bool(*truth),
            _ => Literal::Other,
        }
    }

    /// Whether a value of JSON is the same, of the same type.
    fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (Literal::Text(want), Value::String(text)) => **want == **text,
            (Literal::Number(want), Value::Number(number)) => number.as_f64() == Some(*want),
            (Literal::Bool(want), Value::Bool(truth)) => want == truth,
            _ => false,
        }
    }

    fn equals(&self, value: Option<&[u8]>) -> bool {
        match self {
            Literal::Absent => value.is_none(),
            Literal::Number(n) => value.and_then(to_number) == Some(*n),
            Literal::Text(text) => value == Some(text.as_bytes()),
            Literal::Bool(_) | Literal::Other => false,
        }
    }
}

/// The networks of `ipmatch`: one, or a list.
fn addresses(value: &Value) -> Result<Box<[IpNet]>, String> {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        other => std::slice::from_ref(other),
    };
    if items.is_empty() || value.as_str() == Some("") || value.is_null() || value == &Value::Bool(false) {
        return Err("invalid ip address".to_owned());
    }
    items
        .iter()
        .map(|item| {
            let text = item.as_str().unwrap_or_default();
            let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            net.ok_or_else(|| match item {
                Value::String(s) => format!("invalid ip address: {s}"),
                other => format!("invalid ip address: {other}"),
            })
        })
        .collect()
}

/// Lua's `tonumber`: decimal or `0x` hexadecimal, surrounded by white space.
fn to_number(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok()? as f64,
        Some(_) => return None,
        // Rust would read words such as "inf" as numbers too.
        None if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => digits.parse().ok()?,
        None => return None,
    };
    Some(if negative { -number } else { number })
}
