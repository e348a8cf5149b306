//! Expressions in words, for people who ask why one does not hold.

use super::{Expr, Literal, Node, Test};
use crate::format::Shown;
use crate::stream::Stream;
use std::fmt::{self, Display, Formatter, Write as _};

/// What of an expression does not hold for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// The first condition that does not hold, or the operands of which none does.
    pub wanted: String,
    /// What the request has there; `None` if nothing.
    pub seen: Option<String>,
}

impl Expr {
    /// Why it does not hold; of one that holds, all of it.
    pub fn failing(&self, stream: &Stream) -> Failing {
        let node = self.root.failing(stream);
        Failing { wanted: node.to_string(), seen: node.seen(stream) }
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

impl Node {
    /// The innermost part that decides.
    fn failing(&self, stream: &Stream) -> &Node {
        match self {
            Node::Logic { any: false, negate: false, operands } => {
                let failing = operands.iter().find(|operand| operand.eval(stream) != Ok(true));
                failing.map_or(self, |operand| operand.failing(stream))
            }
            // Each of several could have held.
            node => node,
        }
    }

    /// The values of its variables; of several with their names.
    fn seen(&self, stream: &Stream) -> Option<String> {
        match self {
            Node::Condition { variable, .. } => variable.look_typed(stream, |shown| match shown {
                Shown::Text(text) => text.map(|text| String::from_utf8_lossy(text).into_owned()),
                Shown::Json(value) => Some(value.to_string()),
                Shown::List(all) => Some(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            }),
            Node::Logic { operands, .. } => {
                let each = operands.iter().filter_map(|operand| match operand {
                    Node::Condition { variable, .. } => {
                        let seen = operand.seen(stream);
                        Some(format!("{}: {}", variable.name(), seen.as_deref().unwrap_or("nothing")))
                    }
                    Node::Logic { .. } => operand.seen(stream),
                });
                Some(each.collect::<Vec<_>>().join(", ")).filter(|all| !all.is_empty())
            }
        }
    }
}

impl Display for Node {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Node::Condition { variable, negate, test } => {
                let not = if *negate { "not: " } else { "" };
                write!(f, "{not}{} {test}", variable.name())
            }
            Node::Logic { any, negate, operands } => {
                let (before, between) = match (any, negate) {
                    (false, false) => ("", " and "),
                    (true, false) => ("", " or "),
                    (false, true) => ("not: ", " and "),
                    (true, true) => ("not: ", " or "),
                };
                f.write_str(before)?;
                for (at, operand) in operands.iter().enumerate() {
                    f.write_str(if at > 0 { between } else { "" })?;
                    match operand {
                        Node::Logic { operands, .. } if operands.len() > 1 => write!(f, "({operand})")?,
                        operand => operand.fmt(f)?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// By the operators of `vars`.
impl Display for Test {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Test::Equal(want) => write!(f, "== {want}"),
            Test::NotEqual(want) => write!(f, "~= {want}"),
            Test::Compare { bound, less, equal, greater: _ } => {
                let operator = if *less { "<" } else { ">" };
                write!(f, "{operator}{} ", if *equal { "=" } else { "" })?;
                match bound {
                    Some(bound) => write!(f, "{bound}"),
                    None => f.write_str("what is no number"),
                }
            }
            Test::Matches(pattern) => match pattern.source().strip_prefix("(?i)") {
                Some(source) => write!(f, "~* {source:?}"),
                None => write!(f, "~~ {:?}", pattern.source()),
            },
            Test::In(list) => listed(f, "in", list),
            Test::Has(want) => write!(f, "has {want}"),
            Test::Address(networks) => listed(f, "ipmatch", networks),
        }
    }
}

fn listed(f: &mut Formatter<'_>, operator: &str, list: &[impl Display]) -> fmt::Result {
    write!(f, "{operator} [")?;
    for (at, item) in list.iter().enumerate() {
        write!(f, "{}{item}", if at > 0 { ", " } else { "" })?;
    }
    f.write_char(']')
}

impl Display for Literal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Absent => f.write_str("null"),
            Literal::Number(number) => number.fmt(f),
            Literal::Text(text) => write!(f, "{text:?}"),
            Literal::Bool(truth) => truth.fmt(f),
            Literal::Other => f.write_str("what nothing equals"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
    use super::*;
    use crate::stream::fixture::stream;
    use serde_json::json;

    /// All that was said of a route that was passed over for its `vars` was "vars hold".
    #[test]
    fn the_first_condition_that_fails_is_told_with_what_the_request_has() {
        let stream = stream("/?x=2&n=5", &[("x-y", "c")]);
        for (rule, wanted, seen) in [
            (json!([["arg_n", "==", "5"], ["arg_x", "==", "1"]]), "arg_x == \"1\"", Some("2")),
            (json!([["http_x_y", "in", ["a", "b"]]]), "http_x_y in [\"a\", \"b\"]", Some("c")),
            (json!([["arg_z", "~~", "^a"]]), "arg_z ~~ \"^a\"", None),
            (json!([["arg_n", "!", "~*", "5"]]), "not: arg_n ~* \"5\"", Some("5")),
            (json!([["arg_n", ">=", 7]]), "arg_n >= 7", Some("5")),
            (
                json!(["OR", ["arg_x", "==", "1"], ["arg_z", "==", "1"]]),
                "arg_x == \"1\" or arg_z == \"1\"",
                Some("arg_x: 2, arg_z: nothing"),
            ),
            (
                json!([["arg_n", "==", 5], ["!AND", ["arg_x", "==", "2"], ["arg_n", "==", 5]]]),
                "not: arg_x == \"2\" and arg_n == 5",
                Some("arg_x: 2, arg_n: 5"),
            ),
        ] {
            let expr = Expr::new(&rule).unwrap();
            let failing = expr.failing(&stream);
            let seen = seen.map(str::to_owned);
            assert_eq!(failing, Failing { wanted: wanted.to_owned(), seen }, "{rule}");
        }
        let all = json!([
            "AND",
            ["arg_a", "==", 1],
            ["OR", ["arg_b", "has", "x"], ["remote_addr", "ipmatch", "9.0.0.0/8"]]
        ]);
        let all = Expr::new(&all).unwrap().to_string();
        assert_eq!(all, "arg_a == 1 and (arg_b has \"x\" or remote_addr ipmatch [9.0.0.0/8])");
    }
}
