//! Expressions from their text (the grammar of cel-spec's doc/langdef.md).

use super::ast::{Ast, Constant, MAX_PARTS};
use super::lex::{Token, tokens};

/// How deep parentheses and their likes may be nested: reading one takes a call for each level of precedence.
const MAX_DEPTH: usize = 64;

/// Macros that stand for comprehensions.
const COMPREHENSIONS: [&str; 5] = ["all", "exists", "exists_one", "map", "filter"];
const NO_COMPREHENSION: &str = "comprehensions (all, exists, exists_one, map, filter) are not supported";

/// Reads an expression.
///
/// # Errors
/// What does not belong there.
pub(super) fn parse(text: &str) -> Result<Ast, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0, parts: 0 };
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
    parts: usize,
}

fn unexpected(token: &Token) -> String {
    match token {
        Token::End => "it ends too early".to_owned(),
        Token::Ident(name) => format!("'{name}' is not expected"),
        Token::Literal(constant) => format!("{constant:?} is not expected"),
        Token::Sign(sign) => format!("'{sign}' is not expected"),
    }
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

    /// A node, if there may be one more.
    fn node(&mut self, ast: Ast) -> Result<Ast, String> {
        self.parts += 1;
        if self.parts > MAX_PARTS { Err(format!("it has more than {MAX_PARTS} parts")) } else { Ok(ast) }
    }

    /// A call of a function that is written as an operator.
    fn operator(&mut self, function: &str, args: Vec<Ast>) -> Result<Ast, String> {
        self.node(Ast::Call { target: None, function: function.to_owned(), args })
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
            let otherwise = self.expression()?;
            self.operator("_?_:_", vec![condition, then, otherwise])?
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
        while let Some(sign) = self.take(&signs) {
            let function = operators.iter().find(|(of, _)| *of == sign).map_or("", |(_, function)| function);
            let right = self.binary(level + 1)?;
            left = self.operator(function, vec![left, right])?;
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
                let negated = self.node(Ast::Constant(negated))?;
                return self.members_of(negated);
            }
        }
        let mut operand = self.member()?;
        let function = if sign == "!" { "!_" } else { "-_" };
        // An even number of them changes nothing, but that there must be something to negate.
        for _ in 0..if signs % 2 == 0 { 2 } else { 1 } {
            operand = self.operator(function, vec![operand])?;
        }
        Ok(operand)
    }

    fn member(&mut self) -> Result<Ast, String> {
        let primary = self.primary()?;
        self.members_of(primary)
    }

    fn members_of(&mut self, mut operand: Ast) -> Result<Ast, String> {
        loop {
            if self.take(&["."]).is_some() {
                let Token::Ident(name) = self.next() else {
                    return Err("a name must follow '.'".to_owned());
                };
                let member = if self.take(&["("]).is_some() {
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
                operand = self.node(member)?;
            } else if self.take(&["["]).is_some() {
                let index = self.expression()?;
                self.expect("]")?;
                operand = self.operator("_[_]", vec![operand, index])?;
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
                self.node(Ast::Constant(constant))
            }
            Token::Ident(name) => {
                if self.take(&["("]).is_none() {
                    return self.node(Ast::Ident(name));
                }
                let args = self.list(")")?;
                if name == "has" && !rooted {
                    return has(args);
                }
                self.node(Ast::Call { target: None, function: name, args })
            }
            Token::Sign("(") if !rooted => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") if !rooted => {
                let values = self.list("]")?;
                self.node(Ast::List(values))
            }
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
        self.node(Ast::Map(all))
    }
}

/// The macro `has`: whether a field is there.
fn has(args: Vec<Ast>) -> Result<Ast, String> {
    match <[Ast; 1]>::try_from(args) {
        Ok([Ast::Select { operand, field, test: false }]) => Ok(Ast::Select { operand, field, test: true }),
        _ => Err("has() takes a field, as in has(request.headers.host)".to_owned()),
    }
}
