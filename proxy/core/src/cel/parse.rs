//! Expressions from their text (the grammar of cel-spec's doc/langdef.md).

use super::ast::{Ast, Constant};
use super::lex::{Token, tokens};

/// How deep expressions may be nested. Whoever compiles and evaluates them goes as deep.
pub(super) const MAX_DEPTH: usize = 64;

/// Macros that stand for comprehensions.
const COMPREHENSIONS: [&str; 5] = ["all", "exists", "exists_one", "map", "filter"];
const NO_COMPREHENSION: &str = "comprehensions (all, exists, exists_one, map, filter) are not supported";

/// Reads an expression.
///
/// # Errors
/// What does not belong there.
pub(super) fn parse(text: &str) -> Result<Ast, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let ast = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(ast),
        token => Err(unexpected(token)),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

fn unexpected(token: &Token) -> String {
    match token {
        Token::End => "it ends too early".to_owned(),
        Token::Ident(name) => format!("'{name}' is not expected"),
        Token::Literal(constant) => format!("{constant:?} is not expected"),
        Token::Sign(sign) => format!("'{sign}' is not expected"),
    }
}

/// A call of a function that is written as an operator.
fn operator(function: &str, args: Vec<Ast>) -> Ast {
    Ast::Call { target: None, function: function.to_owned(), args }
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    /// Takes one of these signs, if it comes next.
    fn take(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        match self.peek() {
            Token::Sign(sign) if signs.contains(sign) => {
                let sign = *sign;
                self.at += 1;
                Some(sign)
            }
            _ => None,
        }
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), String> {
        match self.take(&[sign]) {
            Some(_) => Ok(()),
            None => Err(format!("{}, but '{sign}'", unexpected(self.peek()))),
        }
    }

    fn expression(&mut self) -> Result<Ast, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
        let condition = self.binary(0)?;
        let ast = if self.take(&["?"]).is_some() {
            let then = self.binary(0)?;
            self.expect(":")?;
            operator("_?_:_", vec![condition, then, self.expression()?])
        } else {
            condition
        };
        self.depth -= 1;
        Ok(ast)
    }

    /// Operators that bind at least as loosely as those of this level, from left to right.
    fn binary(&mut self, level: usize) -> Result<Ast, String> {
        const LEVELS: [&[(&str, &str)]; 5] = [
            &[("||", "_||_")],
            &[("&&", "_&&_")],
            &[
                ("<", "_<_"),
                ("<=", "_<=_"),
                (">", "_>_"),
                (">=", "_>=_"),
                ("==", "_==_"),
                ("!=", "_!=_"),
                ("in", "@in"),
            ],
            &[("+", "_+_"), ("-", "_-_")],
            &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        let signs: Vec<&'static str> = operators.iter().map(|(sign, _)| *sign).collect();
        let mut length = 0;
        while let Some(sign) = self.take(&signs) {
            let function = operators.iter().find(|(of, _)| *of == sign).map_or("", |(_, function)| function);
            let right = self.binary(level + 1)?;
            left = operator(function, vec![left, right]);
            length += 1;
            if length > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} operators stand side by side"));
            }
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Ast, String> {
        let Some(sign) = self.take(&["!", "-"]) else { return self.member() };
        let mut signs = 1;
        while self.take(&[sign]).is_some() {
            signs += 1;
        }
        if sign == "-" && signs % 2 == 1 {
            let negated = match self.peek() {
                Token::Literal(Constant::Int(int)) => Some(Constant::Int(int.wrapping_neg())),
                Token::Literal(Constant::Double(double)) => Some(Constant::Double(-double)),
                _ => None,
            };
            if let Some(negated) = negated {
                self.at += 1;
                return self.members_of(Ast::Constant(negated));
            }
        }
        let operand = self.member()?;
        let function = if sign == "!" { "!_" } else { "-_" };
        // An even number of them changes nothing, but that there must be something to negate.
        let twice = if signs % 2 == 0 { vec![function; 2] } else { vec![function] };
        Ok(twice.into_iter().fold(operand, |operand, function| operator(function, vec![operand])))
    }

    fn member(&mut self) -> Result<Ast, String> {
        let primary = self.primary()?;
        self.members_of(primary)
    }

    fn members_of(&mut self, mut operand: Ast) -> Result<Ast, String> {
        let mut length = 0;
        loop {
            length += 1;
            if length > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} fields stand behind one another"));
            }
            if self.take(&["."]).is_some() {
                let Token::Ident(name) = self.next() else {
                    return Err("a name must follow '.'".to_owned());
                };
                operand = if self.take(&["("]).is_some() {
                    let args = self.list(")")?;
                    if COMPREHENSIONS.contains(&name.as_str()) && args.len() >= 2 {
                        Ast::Refused(NO_COMPREHENSION)
                    } else {
                        Ast::Call { target: Some(Box::new(operand)), function: name, args }
                    }
                } else if *self.peek() == Token::Sign("{") {
                    return Err("messages can't be made".to_owned());
                } else {
                    Ast::Select { operand: Box::new(operand), field: name, test: false }
                };
            } else if self.take(&["["]).is_some() {
                let index = self.expression()?;
                self.expect("]")?;
                operand = operator("_[_]", vec![operand, index]);
            } else {
                return Ok(operand);
            }
        }
    }

    fn primary(&mut self) -> Result<Ast, String> {
        // A leading dot only says that a name is whole.
        let rooted = self.take(&["."]).is_some();
        match self.next() {
            Token::Literal(constant) if !rooted => {
                if constant == Constant::Int(i64::MIN) {
                    return Err("a number is too large".to_owned());
                }
                Ok(Ast::Constant(constant))
            }
            Token::Ident(name) => {
                if self.take(&["("]).is_none() {
                    return Ok(Ast::Ident(name));
                }
                let args = self.list(")")?;
                if name == "has" && !rooted {
                    return has(args);
                }
                Ok(Ast::Call { target: None, function: name, args })
            }
            Token::Sign("(") if !rooted => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") if !rooted => self.list("]").map(Ast::List),
            Token::Sign("{") if !rooted => self.entries(),
            token => Err(unexpected(&token)),
        }
    }

    /// Expressions up to a sign.
    fn list(&mut self, end: &'static str) -> Result<Vec<Ast>, String> {
        let mut all = Vec::new();
        while self.take(&[end]).is_none() {
            all.push(self.expression()?);
            if self.take(&[","]).is_none() {
                self.expect(end)?;
                break;
            }
        }
        Ok(all)
    }

    fn entries(&mut self) -> Result<Ast, String> {
        let mut all = Vec::new();
        while self.take(&["}"]).is_none() {
            let key = self.expression()?;
            self.expect(":")?;
            all.push((key, self.expression()?));
            if self.take(&[","]).is_none() {
                self.expect("}")?;
                break;
            }
        }
        Ok(Ast::Map(all))
    }
}

/// The macro `has`: whether a field is there.
fn has(args: Vec<Ast>) -> Result<Ast, String> {
    match <[Ast; 1]>::try_from(args) {
        Ok([Ast::Select { operand, field, test: false }]) => Ok(Ast::Select { operand, field, test: true }),
        _ => Err("has() takes a field, as in has(request.headers.host)".to_owned()),
    }
}
