//! JSON (RFC 8259) to nodes.

use serde_json::Number;

use super::{Entry, Node, Object, Options, Place, Value};
use crate::error::{ConfigContext, ConfigError};

/// Reads the one value of a text, `None` if there is only white space.
pub(super) fn parse(text: &str, options: &Options) -> Result<Option<Node>, ConfigError> {
    let mut parser = JsonParser {
        text,
        bytes: text.as_bytes(),
        position: 0,
        max_depth: options.max_depth,
        last_key_counts: options.last_key_counts,
        lenient: options.lenient,
        depth: 0,
        counted: 0,
        place: Place::new(1, 1),
    };
    parser.skip_space();
    if parser.position == text.len() {
        return Ok(None);
    }
    let node = parser.value()?;
    parser.skip_space();
    if parser.position < text.len() {
        return Err(parser.error("unexpected text after the end of the document"));
    }
    Ok(Some(node))
}

struct JsonParser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    position: usize,
    max_depth: usize,
    last_key_counts: bool,
    lenient: bool,
    depth: usize,
    /// Up to where `place` has been counted. Places are only asked for in ascending order, so that a
    /// document in one line of many megabytes is counted once.
    counted: usize,
    place: Place,
}

impl JsonParser<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.position += 1;
        }
    }

    /// The place of the current position.
    fn here(&mut self) -> Place {
        for byte in self.bytes.get(self.counted..self.position).unwrap_or_default() {
            match byte {
                b'\n' => self.place = Place::new(self.place.line.saturating_add(1), 1),
                // Continuation bytes belong to the character before.
                0x80..=0xbf => {}
                _ => self.place.column = self.place.column.saturating_add(1),
            }
        }
        self.counted = self.counted.max(self.position);
        self.place
    }

    fn error(&mut self, reason: &str) -> ConfigError {
        let place = self.here();
        ConfigError::new(format!("invalid JSON: {reason}")).at(place)
    }

    /// What is here instead of what was expected.
    fn unexpected(&mut self, expected: &str) -> ConfigError {
        let found = self.text.get(self.position..).and_then(|rest| rest.chars().next());
        match found {
            Some(found) => self.error(&format!("expected {expected}, found {found:?}")),
            None => self.error(&format!("expected {expected}, but the document ends")),
        }
    }

    fn value(&mut self) -> Result<Node, ConfigError> {
        let place = self.here();
        let value = match self.peek() {
            Some(b'{') => Value::Object(self.nested(place, Self::object)?),
            Some(b'[') => Value::Array(self.nested(place, Self::array)?),
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node { place, value })
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, ConfigError> {
        if !self.bytes.get(self.position..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            return Err(self.unexpected("a value"));
        }
        self.position += word.len();
        Ok(value)
    }

    fn nested<T>(
        &mut self,
        place: Place,
        read: fn(&mut Self, Place) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        if self.depth >= self.max_depth {
            let reason = format!("values are nested deeper than {}", self.max_depth);
            return Err(ConfigError::new(reason).at(place));
        }
        self.depth += 1;
        self.position += 1;
        let value = read(self, place);
        self.depth -= 1;
        value
    }

    fn object(&mut self, begin: Place) -> Result<Object, ConfigError> {
        let mut entries = Vec::new();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.position += 1;
            return Object::with(entries, self.last_key_counts);
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(self.unexpected(&format!("a key in quotes in the object that begins at {begin}")));
            }
            let key_place = self.here();
            let key = self.string()?;
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.unexpected("\":\" after the key").in_key(&key));
            }
            self.position += 1;
            self.skip_space();
            let value = self.value().in_key(&key)?;
            entries.push(Entry { key, key_place, value });
            if self.end_of_item(b'}', "object", begin)? {
                return Object::with(entries, self.last_key_counts);
            }
        }
    }

    fn array(&mut self, begin: Place) -> Result<Vec<Node>, ConfigError> {
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.position += 1;
            return Ok(items);
        }
        loop {
            self.skip_space();
            let item = self.value().in_index(items.len())?;
            items.push(item);
            if self.end_of_item(b']', "array", begin)? {
                return Ok(items);
            }
        }
    }

    /// Takes the comma (false) or the end of the collection (true).
    fn end_of_item(&mut self, end: u8, kind: &str, begin: Place) -> Result<bool, ConfigError> {
        self.skip_space();
        match self.peek() {
            Some(b',') => {
                self.position += 1;
                if self.lenient {
                    self.skip_space();
                    let ends = self.peek() == Some(end);
                    self.position += usize::from(ends);
                    return Ok(ends);
                }
                Ok(false)
            }
            Some(found) if found == end => {
                self.position += 1;
                Ok(true)
            }
            _ => {
                let expected = format!("\",\" or \"{}\" in the {kind} that begins at {begin}", end as char);
                Err(self.unexpected(&expected))
            }
        }
    }

    fn number(&mut self) -> Result<Number, ConfigError> {
        let begin = self.position;
        while let Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') = self.peek() {
            self.position += 1;
        }
        let text = self.text.get(begin..self.position).unwrap_or_default();
        // serde_json knows the grammar, and which integers still fit.
        serde_json::from_str(text).map_err(|_| {
            self.position = begin;
            self.error(&format!("{text:?} is not a number"))
        })
    }

    fn string(&mut self) -> Result<String, ConfigError> {
        self.position += 1;
        let mut string = String::new();
        loop {
            let rest = self.bytes.get(self.position..).unwrap_or_default();
            let plain =
                rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f)).unwrap_or(rest.len());
            string.push_str(self.text.get(self.position..self.position + plain).unwrap_or_default());
            self.position += plain;
            match self.peek() {
                Some(b'"') => {
                    self.position += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                Some(_) => return Err(self.error("a string must not hold a control character or line break")),
                None => return Err(self.error("the document ends inside a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, ConfigError> {
        let kind = self.bytes.get(self.position + 1).copied();
        let plain = match kind {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.error("unknown escape in a string")),
        };
        self.position += 2;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, ConfigError> {
        let unit = |parser: &Self, at: usize| {
            let rest = parser.text.get(at..)?.strip_prefix("\\u")?;
            let digits =
                rest.get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
            u32::from_str_radix(digits, 16).ok()
        };
        let decoded = match unit(self, self.position) {
            Some(high @ 0xd800..=0xdbff) => unit(self, self.position + 6)
                .filter(|low| (0xdc00..=0xdfff).contains(low))
                .and_then(|low| char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)))
                .map(|decoded| (decoded, 12)),
            Some(code) => char::from_u32(code).map(|decoded| (decoded, 6)),
            None => None,
        };
        match decoded {
            Some((decoded, length)) => {
                self.position += length;
                Ok(decoded)
            }
            None => Err(self.error("bad \\u escape in a string")),
        }
    }
}
