//! JSON of clients, read as Envoy's transcoder reads it (protobuf's `JsonStreamParser`): what is wrong is told in its words, and
//! what it lets pass beside JSON (RFC 8259) is taken, which clients may rely on. That is a comma before the end of an array or
//! object, names without quotes, single quotes, controls in strings, and a backslash before any character.
//!
//! Its words come with what stands around the fault. Where a text might go on it waits for that, and the rest alone is what
//! it shows once there is no more: so a fault there shows nothing of what is before.

use crate::shared::json::Json;
use serde_json::Number;

/// Bytes that are shown before and behind a fault.
const SHOWN: usize = 20;
/// Bytes of the longest literal: what is shorter could become one.
const LONGEST_LITERAL: usize = "false".len();

/// Reads a text in which at most so many arrays and objects are in each other.
///
/// # Errors
/// What is wrong, and where.
pub(super) fn read(text: &[u8], deepest: usize) -> Result<Json, String> {
    let Ok(text) = std::str::from_utf8(text) else {
        return Err("Encountered non UTF-8 code points.".to_owned());
    };
    let mut parser = Parser { text: text.as_bytes(), at: 0, from: 0, ended: false };
    let json = parser.value(deepest, "", "Expected a value.")?;
    match parser.next() {
        None => Ok(json),
        Some(_) => Err(parser.fault("Parsing terminated before end of input.")),
    }
}

struct Parser<'t> {
    text: &'t [u8],
    at: usize,
    /// Where what is shown of the text begins.
    from: usize,
    /// What is left is known to be all.
    ended: bool,
}

impl Parser<'_> {
    /// Goes to the next byte that is no space.
    fn next(&mut self) -> Option<u8> {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')) {
            self.at += 1;
        }
        self.peek()
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Learns that nothing more comes, before what could go on.
    fn wait(&mut self) {
        if !self.ended {
            (self.ended, self.from) = (true, self.at);
        }
    }

    fn fault(&self, reason: &str) -> String {
        let from = self.at.saturating_sub(SHOWN).max(self.from);
        let until = (self.at + SHOWN).min(self.text.len());
        let shown = String::from_utf8_lossy(self.text.get(from..until).unwrap_or_default());
        format!("{reason}\n{shown}\n{:width$}^", "", width = self.at - from)
    }

    /// The fault of what is none of the tokens there are.
    fn unknown(&mut self, expected: &str) -> String {
        self.wait();
        match self.peek() {
            None => self.fault(&format!("Unexpected end of string. {expected}")),
            Some(_) => self.fault(expected),
        }
    }

    /// The fault of what is another token than is expected, or none.
    fn expected(&mut self, expected: &str) -> String {
        match self.next() {
            Some(byte) if is_token(byte) => self.fault(expected),
            _ => self.unknown(expected),
        }
    }

    fn value(&mut self, left: usize, key: &str, expected: &str) -> Result<Json, String> {
        match self.next() {
            Some(b'{') => self.object(deeper(left, key)?),
            Some(b'[') => self.array(deeper(left, key)?),
            Some(b'"' | b'\'') => Ok(Json::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(byte) if is_token(byte) => self.literal(),
            _ => Err(self.unknown(expected)),
        }
    }

    fn literal(&mut self) -> Result<Json, String> {
        let literals = [("true", Json::Bool(true)), ("false", Json::Bool(false)), ("null", Json::Null)];
        for (name, json) in literals {
            if self.rest().starts_with(name.as_bytes()) {
                self.at += name.len();
                return Ok(json);
            }
        }
        if self.rest().len() < LONGEST_LITERAL {
            self.wait();
        }
        Err(self.fault("Unexpected token."))
    }

    fn object(&mut self, left: usize) -> Result<Json, String> {
        self.at += 1;
        let mut members = Vec::new();
        loop {
            let name = match self.next() {
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Json::Object(members));
                }
                Some(b'"' | b'\'') => self.string()?,
                Some(byte) if begins_name(byte) => self.name(),
                _ => return Err(self.expected("Expected an object key or }.")),
            };
            if self.next() != Some(b':') {
                return Err(self.expected("Expected : between key:value pair."));
            }
            self.at += 1;
            let value = self.value(left, &name, "Expected a value.")?;
            members.push((name, value));
            match self.next() {
                Some(b'}') => {}
                Some(b',') => self.at += 1,
                _ => return Err(self.expected("Expected , or } after key:value pair.")),
            }
        }
    }

    fn array(&mut self, left: usize) -> Result<Json, String> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            if self.next() == Some(b']') {
                self.at += 1;
                return Ok(Json::Array(items));
            }
            items.push(self.value(left, "", "Expected a value or ] within an array.")?);
            match self.next() {
                Some(b']') => {}
                Some(b',') => self.at += 1,
                _ => return Err(self.expected("Expected , or ] after array value.")),
            }
        }
    }

    /// A name without quotes.
    fn name(&mut self) -> String {
        let rest = self.rest();
        let end = rest.iter().position(|byte| !begins_name(*byte) && !byte.is_ascii_digit());
        let name = String::from_utf8_lossy(end.and_then(|end| rest.get(..end)).unwrap_or(rest)).into_owned();
        if end.is_none() {
            self.wait();
        }
        self.at += name.len();
        name
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.peek();
        self.at += 1;
        let mut text = Vec::new();
        loop {
            match self.peek() {
                quoted if quoted == quote => break,
                None => return Err(self.open()),
                Some(b'\\') => self.escape(&mut text)?,
                Some(byte) => {
                    text.push(byte);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        String::from_utf8(text).map_err(|_| self.fault("Invalid escape sequence."))
    }

    fn open(&mut self) -> String {
        self.wait();
        self.fault("Closing quote expected in string.")
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), String> {
        let escaped = match self.text.get(self.at + 1) {
            None => return Err(self.open()),
            Some(b'u') => return self.code(text),
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 0x0b,
            Some(other) => *other,
        };
        text.push(escaped);
        self.at += 2;
        Ok(())
    }

    /// `\uXXXX`, or two of them that are one character.
    fn code(&mut self, text: &mut Vec<u8>) -> Result<(), String> {
        const LENGTH: usize = 6;
        if self.rest().len() < LENGTH {
            self.wait();
            return Err(self.fault("Illegal hex string."));
        }
        let mut code = self.hex(self.at)?;
        let mut length = LENGTH;
        if (0xd800..0xdc00).contains(&code) {
            if self.rest().len() < 2 * LENGTH {
                self.wait();
                return Err(self.fault("Missing low surrogate."));
            }
            if !self.rest().get(LENGTH..).is_some_and(|rest| rest.starts_with(b"\\u")) {
                return Err(self.fault("Invalid low surrogate."));
            }
            let low = self.hex(self.at + LENGTH)?;
            if !(0xdc00..0xe000).contains(&low) {
                return Err(self.fault("Invalid low surrogate."));
            }
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            length = 2 * LENGTH;
        }
        let character = char::from_u32(code).ok_or_else(|| self.fault("Invalid low surrogate."))?;
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        self.at += length;
        Ok(())
    }

    /// The digits of the escape that begins at `at`.
    fn hex(&self, at: usize) -> Result<u32, String> {
        let digits = self.text.get(at + 2..at + 6).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        code.ok_or_else(|| self.fault("Invalid escape sequence."))
    }

    fn number(&mut self) -> Result<Json, String> {
        let rest = self.rest();
        let of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-' | b'x');
        let end = rest.iter().position(|byte| !of_number(byte));
        let number = end.and_then(|end| rest.get(..end)).unwrap_or(rest);
        let number = String::from_utf8_lossy(number).into_owned();
        if end.is_none() {
            self.wait();
        }
        let digits = number.strip_prefix('-').unwrap_or(&number);
        let is_floating = number.contains(['.', 'e', 'E']);
        if !is_floating && digits.len() > 1 && digits.starts_with('0') {
            return Err(self.fault("Octal/hex numbers are not valid JSON values."));
        }
        let whole =
            || number.parse::<u64>().map(Number::from).or_else(|_| number.parse::<i64>().map(Number::from));
        let made = match whole() {
            Ok(whole) if !is_floating => Some(whole),
            _ => {
                let value: f64 = number.parse().map_err(|_| self.fault("Unable to parse number."))?;
                Number::from_f64(value)
            }
        };
        let made = made.ok_or_else(|| self.fault("Number exceeds the range of double."))?;
        self.at += number.len();
        Ok(Json::Number(made))
    }
}

/// What is in an array or object that is the value of a member.
fn deeper(left: usize, key: &str) -> Result<usize, String> {
    let reached = || format!("Message too deep. Max recursion depth reached for key '{key}'");
    left.checked_sub(1).ok_or_else(reached)
}

/// Whether a token may begin so.
fn is_token(byte: u8) -> bool {
    begins_name(byte) || byte.is_ascii_digit() || b"\"'-{}[]:,".contains(&byte)
}

fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte == b'$'
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_passes_beside_json_is_taken() {
        for (text, expected) in [
            (
                r#" {"a": [1, -2, 1.5e1, "x\n", true, false, null]} "#,
                r#"{"a":[1,-2,15.0,"x\n",true,false,null]}"#,
            ),
            (r#"{"a":1,"a":{},}"#, r#"{"a":1,"a":{}}"#),
            ("[1,]", "[1]"),
            ("{'a':'\"', $b_1:'\\''}", r#"{"a":"\"","$b_1":"'"}"#),
            ("{true:1,nullable:2}", r#"{"true":1,"nullable":2}"#),
            ("\"a\nb\\x\\/\\u00e9\\ud83d\\ude00\"", "\"a\\nbx/é😀\""),
            (
                "[1.,18446744073709551615,18446744073709551616]",
                "[1.0,18446744073709551615,1.8446744073709552e+19]",
            ),
        ] {
            assert_eq!(
                read(text.as_bytes(), 9).map(|json| json.to_string()).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
    }

    /// As recorded of Envoy.
    #[test]
    fn what_is_wrong_is_told_with_what_is_around_it() {
        for (text, fault) in [
            ("{", "Unexpected end of string. Expected an object key or }.\n\n^"),
            ("{]", "Expected an object key or }.\n{]\n ^"),
            ("{}x", "Parsing terminated before end of input.\n{}x\n  ^"),
            (" ", "Unexpected end of string. Expected a value.\n\n^"),
            ("{\"a\"}", "Expected : between key:value pair.\n{\"a\"}\n    ^"),
            ("{\"a\":}", "Unexpected token.\n}\n^"),
            ("{\"a\":nulx}", "Unexpected token.\n{\"a\":nulx}\n     ^"),
            ("{\"a\":tru}", "Unexpected token.\ntru}\n^"),
            ("{\"a\":+1}", "Expected a value.\n+1}\n^"),
            ("{\"a\":1 x}", "Expected , or } after key:value pair.\n{\"a\":1 x}\n       ^"),
            ("{\"a\":1;}", "Expected , or } after key:value pair.\n;}\n^"),
            ("{\"a\":1", "Unexpected end of string. Expected , or } after key:value pair.\n1\n ^"),
            ("{\"a\":-", "Unable to parse number.\n-\n^"),
            ("{\"a\":-}", "Unable to parse number.\n{\"a\":-}\n     ^"),
            ("{\"a\":01}", "Octal/hex numbers are not valid JSON values.\n{\"a\":01}\n     ^"),
            ("{\"a\":1e999}", "Number exceeds the range of double.\n{\"a\":1e999}\n     ^"),
            ("[1 2]", "Expected , or ] after array value.\n[1 2]\n   ^"),
            ("[", "Unexpected end of string. Expected a value or ] within an array.\n\n^"),
            ("{\"a", "Closing quote expected in string.\n\n^"),
            ("{\"a\":\"\\", "Closing quote expected in string.\n\\\n^"),
            ("{\"a\":\"\\u", "Illegal hex string.\n\\u\n^"),
            ("{\"a\":\"\\u12xy\"}", "Invalid escape sequence.\n{\"a\":\"\\u12xy\"}\n      ^"),
            ("{\"a\":\"\\ud800\"}", "Missing low surrogate.\n\\ud800\"}\n^"),
            ("{\"a\":\"\\ud800\\u0041\"}", "Invalid low surrogate.\n{\"a\":\"\\ud800\\u0041\"}\n      ^"),
            (
                "{\"name\":\"0123456789012345678901234567890123456789\" \"b\":\"0123456789012345678901234567890\"}",
                "Expected , or } after key:value pair.\n234567890123456789\" \"b\":\"012345678901234\n                    ^",
            ),
            ("{\"a\":{\"b\":[]}}", "Message too deep. Max recursion depth reached for key 'b'"),
        ] {
            assert_eq!(read(text.as_bytes(), 2).unwrap_err(), fault, "{text}");
        }
        assert!(read(b"\"\xff\"", 2).is_err());
    }
}
