//! The text form of protobuf (protobuf.dev/reference/protobuf/textformat-spec), as `.pb_text` files hold it.

use std::iter::Peekable;
use std::str::CharIndices;

use prost::encoding;
use sixfold_core::document::{Node, Value};
use sixfold_core::error::{ConfigContext, ConfigError, Place};

use crate::any::name_of_url;
use crate::json::encode::check_alone;
use crate::json::{scalar, unknown_type};
use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};
use crate::wire::put_delimited;

/// How deep messages may be nested, as for protobuf's own parsers.
const MAX_DEPTH: usize = 100;

type Result<T> = std::result::Result<T, ConfigError>;

/// Writes the wire form of the message `full_name` that a text describes.
///
/// # Errors
/// What is no text of that message, with the path of the field and the place.
pub fn encode_text(full_name: &str, text: &str) -> Result<Vec<u8>> {
    let schema = TypeSchema::message(full_name).ok_or_else(|| ConfigError::new(unknown_type(full_name)))?;
    let mut parser = Parser { text, chars: text.char_indices().peekable(), depth: 0 };
    let mut out = Vec::new();
    parser.fields(schema, None, &mut out)?;
    Ok(out)
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    depth: usize,
}

/// A value that is no message.
enum Scalar {
    /// A name or a number, as it is written.
    Word(String),
    /// What stands within quotes.
    Quoted(Vec<u8>),
}

impl<'a> Parser<'a> {
    /// Where the next character is, in bytes.
    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    /// The place of what begins at a byte. It is looked for from the beginning of the text: for faults alone.
    fn place_of(&self, at: usize) -> Place {
        Place::behind(self.text.get(..at).unwrap_or_default())
    }

    fn fault(&mut self, reason: impl Into<String>) -> ConfigError {
        let at = self.at();
        ConfigError::new(reason).at(self.place_of(at))
    }

    /// The next character that is neither blank nor in a comment.
    fn peek(&mut self) -> Option<char> {
        loop {
            match self.chars.peek()?.1 {
                '#' => while self.chars.next_if(|(_, c)| *c != '\n').is_some() {},
                c if c.is_whitespace() => drop(self.chars.next()),
                c => return Some(c),
            }
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.chars.next();
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<()> {
        if self.take(wanted) { Ok(()) } else { Err(self.fault(format!("\"{wanted}\" is missing"))) }
    }

    fn word(&mut self, is_part: impl Fn(char) -> bool) -> Result<&'a str> {
        self.peek();
        let begin = self.at();
        while self.chars.next_if(|(_, c)| is_part(*c)).is_some() {}
        let end = self.at();
        match self.text.get(begin..end).unwrap_or_default() {
            "" => Err(self.fault("a name or value is missing")),
            word => Ok(word),
        }
    }

    /// Fields up to `end`, or to the end of the text.
    fn fields(&mut self, schema: TypeSchema, end: Option<char>, out: &mut Vec<u8>) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fault(format!("messages are nested more than {MAX_DEPTH} deep")));
        }
        // Those of which there may be one.
        let mut written = Vec::new();
        loop {
            match (self.peek(), end) {
                (None, None) => break,
                (None, Some(end)) => return Err(self.fault(format!("\"{end}\" is missing"))),
                (Some(c), Some(end)) if c == end => {
                    self.chars.next();
                    break;
                }
                (Some('['), _) if !written.is_empty() => return Err(self.fault("an Any holds one message")),
                (Some('['), _) => {
                    self.any(schema, out)?;
                    written.extend(schema.fields().map(|field| (field, field.name)));
                }
                _ => self.field(schema, &mut written, out)?,
            }
            let _ = self.take(',') || self.take(';');
        }
        self.depth -= 1;
        Ok(())
    }

    /// `[type.googleapis.com/NAME] {...}`, the content of an `Any`.
    fn any(&mut self, schema: TypeSchema, out: &mut Vec<u8>) -> Result<()> {
        self.expect('[')?;
        let url = self.word(|c| !c.is_whitespace() && c != ']')?;
        if schema.name() != "google.protobuf.Any" {
            return Err(
                self.fault(format!("\"[{url}]\" is for a google.protobuf.Any, not for {}", schema.name()))
            );
        }
        // Without a slash it is the name of an extension.
        if !url.contains('/') {
            return Err(self.fault(format!("\"[{url}]\" must be an URL: type.googleapis.com/{url}")));
        }
        let name = name_of_url(url);
        let held = TypeSchema::message(name).ok_or_else(|| self.fault(unknown_type(name)))?;
        self.expect(']')?;
        self.take(':');
        let end = self.open()?;
        encoding::string::encode(1, &url.to_owned(), out);
        put_delimited(2, out, |out| self.fields(held, Some(end), out))
    }

    /// Opens a message; answers what closes it.
    fn open(&mut self) -> Result<char> {
        if self.take('<') {
            return Ok('>');
        }
        self.expect('{')?;
        Ok('}')
    }

    /// A field, whose name is put to those of the message that were `written` unless there may be several.
    fn field(
        &mut self,
        schema: TypeSchema,
        written: &mut Vec<(FieldSchema, &'a str)>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_')?;
        let Some(field) = schema.field(name).filter(|field| field.name == name) else {
            let known: Vec<&str> = schema.fields().map(|field| field.name).collect();
            let mut error = ConfigError::unknown_key(name, known);
            let at = self.at();
            error.place = Some(self.place_of(at));
            return Err(error.in_key(name));
        };
        self.check_first(field, name, written)?;
        let colon = self.take(':');
        if !colon && !matches!(field.kind, Kind::Message(_)) {
            return Err(self.fault("\":\" is missing")).in_key(name);
        }
        if field.cardinality == Cardinality::Single && self.peek() == Some('[') {
            return Err(self.fault("must be one value, not a list")).in_key(name);
        }
        if !self.take('[') {
            return self.value(field, out).in_key(name);
        }
        let mut index = 0;
        while !self.take(']') {
            self.value(field, out).in_index(index).in_key(name)?;
            if self.take(',') && self.peek() == Some(']') {
                return Err(self.fault("a value is missing behind the comma")).in_key(name);
            }
            index += 1;
        }
        Ok(())
    }

    /// Refuses a field that is given again though it has one value, and another member of its oneof.
    fn check_first(
        &mut self,
        field: FieldSchema,
        name: &'a str,
        written: &mut Vec<(FieldSchema, &'a str)>,
    ) -> Result<()> {
        if field.cardinality != Cardinality::Single {
            return Ok(());
        }
        if written.iter().any(|(other, _)| other.number == field.number) {
            return Err(self.fault("is given twice")).in_key(name);
        }
        check_alone(written, field, name, Place::default()).map_err(|mut error| {
            let at = self.at();
            error.place = Some(self.place_of(at));
            error
        })?;
        written.push((field, name));
        Ok(())
    }

    /// One value, with its key. An entry of a map is a message of key and value.
    fn value(&mut self, field: FieldSchema, out: &mut Vec<u8>) -> Result<()> {
        if let Kind::Message(schema) = field.kind {
            let end = self.open()?;
            return put_delimited(field.number, out, |out| self.fields(schema, Some(end), out));
        }
        self.peek();
        let at = self.at();
        let value = match self.scalar()? {
            Scalar::Quoted(bytes) if field.kind == Kind::Bytes => {
                encoding::bytes::encode(field.number, &bytes, out);
                return Ok(());
            }
            Scalar::Quoted(_) if field.kind != Kind::String => {
                return Err(ConfigError::new("must not stand within quotes").at(self.place_of(at)));
            }
            Scalar::Quoted(bytes) => {
                let text = String::from_utf8(bytes);
                Value::String(text.map_err(|_| ConfigError::new("is not UTF-8").at(self.place_of(at)))?)
            }
            Scalar::Word(_) if matches!(field.kind, Kind::String | Kind::Bytes) => {
                return Err(ConfigError::new("must stand within quotes").at(self.place_of(at)));
            }
            Scalar::Word(word) => {
                Value::String(meant(field.kind, &word).map_err(|error| error.at(self.place_of(at)))?)
            }
        };
        let node = Node { place: Place::default(), value };
        scalar::write(field.kind, field.number, &node, out).map_err(|mut error| {
            error.place = Some(self.place_of(at));
            error
        })
    }

    fn scalar(&mut self) -> Result<Scalar> {
        if !matches!(self.peek(), Some('"' | '\'')) {
            // A token of its own, with blanks and comments behind it as one has them.
            let sign = if self.take('-') { "-" } else { "" };
            let word = self.word(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.'))?;
            return Ok(Scalar::Word(format!("{sign}{word}")));
        }
        let mut bytes = Vec::new();
        // Neighbours are one.
        while let Some(quote @ ('"' | '\'')) = self.peek() {
            self.chars.next();
            self.quoted(quote, &mut bytes)?;
        }
        Ok(Scalar::Quoted(bytes))
    }

    fn quoted(&mut self, quote: char, out: &mut Vec<u8>) -> Result<()> {
        loop {
            match self.chars.next() {
                Some((_, '\\')) => self.escaped(out)?,
                Some((_, c)) if c == quote => return Ok(()),
                None | Some((_, '\n')) => return Err(self.fault(format!("{quote} is missing"))),
                Some((_, c)) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escaped(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let Some((_, c)) = self.chars.next() else { return Err(self.fault("ends within quotes")) };
        let simple = match c {
            'a' => 7,
            'b' => 8,
            't' => b'\t',
            'n' => b'\n',
            'v' => 11,
            'f' => 12,
            'r' => b'\r',
            '\\' | '\'' | '"' | '?' => c as u8,
            'x' | 'X' => return self.number(16, 2, "", out),
            'u' => return self.number(16, 4, "", out),
            'U' => return self.number(16, 8, "", out),
            '0'..='7' => return self.number(8, 2, &c.to_string(), out),
            _ => return Err(self.fault(format!("\"\\{c}\" stands for nothing"))),
        };
        out.push(simple);
        Ok(())
    }

    /// The byte of up to two or three digits, or the character of four or eight.
    fn number(&mut self, radix: u32, most: usize, begin: &str, out: &mut Vec<u8>) -> Result<()> {
        let mut digits = begin.to_owned();
        while digits.len() < most + begin.len()
            && let Some((_, digit)) = self.chars.next_if(|(_, c)| c.is_digit(radix))
        {
            digits.push(digit);
        }
        let number = u32::from_str_radix(&digits, radix).ok();
        if most > 2 {
            let number = number.filter(|_| digits.len() == most).map(|number| self.paired(number));
            let c = number.and_then(char::from_u32);
            let c = c.ok_or_else(|| self.fault("is no character"))?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(());
        }
        // Of three octal digits the byte holds what it can.
        out.push(number.ok_or_else(|| self.fault("is no byte"))? as u8);
        Ok(())
    }

    /// The character that a number stands for together with the `\u` and four digits behind it, if they are a pair of surrogates;
    /// else the number.
    fn paired(&mut self, number: u32) -> u32 {
        let at = self.at();
        let behind =
            self.text.get(at..).and_then(|text| text.strip_prefix("\\u")).and_then(|text| text.get(..4));
        let digits = behind.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let low = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match low.and_then(|low| joined(number, low)) {
            Some(character) => {
                self.chars.nth("\\ud800".len() - 1);
                character
            }
            None => number,
        }
    }
}

/// Of the first half of a pair of surrogates and its second, the character.
fn joined(high: u32, low: u32) -> Option<u32> {
    let halves = (0xd800..0xdc00).contains(&high) && (0xdc00..0xe000).contains(&low);
    halves.then(|| 0x1_0000 + ((high & 0x3ff) << 10 | low & 0x3ff))
}

/// What a word stands for, as the mapping of JSON has it within quotes. The rules of numbers are those of the text form.
fn meant(kind: Kind, word: &str) -> Result<String> {
    let (sign, digits) = word.strip_prefix('-').map_or(("", word), |digits| ("-", digits));
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit());
    let found = match kind {
        Kind::Bool => match word {
            "true" | "True" | "t" => Some("true".to_owned()),
            "false" | "False" | "f" => Some("false".to_owned()),
            _ if !sign.is_empty() => None,
            _ => integer(word).filter(|number| matches!(number, 0 | 1)).map(|number| number.to_string()),
        },
        Kind::Double | Kind::Float => match digits.to_ascii_lowercase().as_str() {
            "inf" | "infinity" => Some(format!("{sign}Infinity")),
            "nan" => Some("NaN".to_owned()),
            // There are no octal and hexadecimal ones of these.
            number if is_based(number) => None,
            // No plus before one.
            number if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') => None,
            number => Some(format!("{sign}{}", number.strip_suffix('f').unwrap_or(number))),
        },
        Kind::Enum(_) if !is_number => Some(word.to_owned()),
        // Not even a zero has a sign.
        Kind::Uint32 | Kind::Uint64 | Kind::Fixed32 | Kind::Fixed64 if !sign.is_empty() => None,
        _ => integer(word).map(|number| number.to_string()),
    };
    found.ok_or_else(|| {
        ConfigError::new(match kind {
            Kind::Bool => "must be true or false",
            Kind::Double | Kind::Float => "must be a decimal number",
            _ => "must be an integer",
        })
    })
}

/// Whether a number is octal or hexadecimal.
fn is_based(digits: &str) -> bool {
    digits.strip_prefix('0').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit() || c == 'x'))
}

/// A number: octal behind a 0, hexadecimal behind a 0x.
fn integer(word: &str) -> Option<i128> {
    let digits = word.strip_prefix('-').unwrap_or(word);
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if is_based(digits) => (8, digits),
        None => (10, digits),
    };
    // No sign of the number's own.
    let digits = digits.starts_with(|c: char| c.is_digit(radix)).then_some(digits)?;
    let number = i128::from_str_radix(digits, radix).ok()?;
    Some(if word.starts_with('-') { -number } else { number })
}

#[cfg(test)]
mod tests;
