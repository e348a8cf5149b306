//! `graphql_operation`, `graphql_name`, `graphql_root_fields`: as much of GraphQL as they need.

use super::body::{self, BodyLimits};
use crate::matcher::{decode, parameter};
use crate::stream::Stream;
use std::borrow::Cow;

/// What of a query is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `query`, `mutation` or `subscription`.
    Operation,
    /// Name of the operation; empty when it has none.
    Name,
    /// Fields of the outermost selection.
    RootFields,
}

impl Part {
    /// From what follows `graphql_` in the variable's name.
    pub(super) fn parse(name: &str) -> Option<Part> {
        Some(match name {
            "operation" => Part::Operation,
            "name" => Part::Name,
            "root_fields" => Part::RootFields,
            _ => return None,
        })
    }
}

/// The part of a query.
pub(super) fn part(query: &str, part: Part) -> Option<Vec<u8>> {
    let operation = Operation::parse(query)?;
    Some(match part {
        Part::Operation => operation.kind.into(),
        Part::Name => operation.name.into(),
        // An array, for the operator `has`.
        Part::RootFields => serde_json::to_vec(&operation.fields).ok()?,
    })
}

/// The query of a GET, in the argument of that name.
pub(super) fn of_argument(stream: &Stream) -> Option<String> {
    let argument = parameter(stream.request.target.query()?, b"query")?;
    let text = String::from_utf8(decode(argument).into_owned()).ok()?;
    Some(text).filter(|text| text.len() <= BodyLimits::current().graphql)
}

/// The query of a POST, by the type of its body.
pub(super) fn of_body<'a>(content_type: &str, body: &'a [u8]) -> Option<Cow<'a, str>> {
    match content_type {
        "application/json" => body::text_of_key(body, "query").map(Cow::Owned),
        _ => std::str::from_utf8(body).ok().map(Cow::Borrowed),
    }
}

/// The first operation of a document.
struct Operation<'a> {
    kind: &'a str,
    name: &'a str,
    fields: Vec<&'a str>,
}

impl<'a> Operation<'a> {
    fn parse(text: &'a str) -> Option<Operation<'a>> {
        let mut tokens = Tokens { rest: text }.peekable();
        loop {
            match tokens.next()? {
                "{" => return Some(Operation { kind: "query", name: "", fields: root_fields(&mut tokens)? }),
                kind @ ("query" | "mutation" | "subscription") => {
                    let name = tokens.next_if(|t| is_name(t)).unwrap_or_default();
                    skip_until_selection(&mut tokens)?;
                    return Some(Operation { kind, name, fields: root_fields(&mut tokens)? });
                }
                "fragment" => {
                    skip_until_selection(&mut tokens)?;
                    skip_braces(&mut tokens, "{", "}")?;
                }
                _ => return None,
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Goes past variables and directives to the `{` of the selection.
fn skip_until_selection<'a>(tokens: &mut impl Iterator<Item = &'a str>) -> Option<()> {
    loop {
        match tokens.next()? {
            "{" => return Some(()),
            "(" => skip_braces(tokens, "(", ")")?,
            _ => {}
        }
    }
}

/// Goes past the end of a group whose opening was read.
fn skip_braces<'a>(tokens: &mut impl Iterator<Item = &'a str>, open: &str, close: &str) -> Option<()> {
    let mut depth = 1;
    while depth > 0 {
        match tokens.next()? {
            t if t == open => depth += 1,
            t if t == close => depth -= 1,
            _ => {}
        }
    }
    Some(())
}

/// Names of the fields up to the end of the outermost selection; aliases are left out.
fn root_fields<'a>(tokens: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Option<Vec<&'a str>> {
    let mut fields = Vec::new();
    loop {
        match tokens.next()? {
            "}" => return Some(fields),
            "{" => skip_braces(tokens, "{", "}")?,
            "(" => skip_braces(tokens, "(", ")")?,
            // A directive or a fragment spread: its name is no field.
            "@" | "..." => {
                tokens.next_if(|t| is_name(t));
            }
            name if is_name(name) && tokens.peek() != Some(&":") => fields.push(name),
            _ => {}
        }
    }
}

/// Names, punctuation and literals of a document; white space, commas and comments are left out.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.rest = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest),
                None => break,
            }
        }
        let first = self.rest.chars().next()?;
        let len = if let Some(block) = self.rest.strip_prefix("\"\"\"") {
            block.find("\"\"\"")? + 6
        } else if first == '"' {
            string_len(self.rest)?
        } else if self.rest.starts_with("...") {
            3
        } else if first.is_ascii_alphanumeric() || first == '_' {
            let end = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            self.rest.find(end).unwrap_or(self.rest.len())
        } else {
            first.len_utf8()
        };
        let (token, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(token)
    }
}

/// Bytes of the string literal that `text` begins with.
fn string_len(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}
