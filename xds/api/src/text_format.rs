//! The text form of protobuf (protobuf.dev/reference/protobuf/textformat-spec), as `.pb_text` files hold it.

use std::iter::Peekable;
use std::str::CharIndices;

use prost::encoding;
use sixfold_core::document::{Node, Value};
use sixfold_core::error::{ConfigContext, ConfigError, Place};

use crate::any::name_of_url;
use crate::json::encode::{check_alone, delimited};
use crate::json::{scalar, unknown_type};
use crate::schema::{Cardinality, FieldSchema, Kind, TypeSchema};

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
        let name = name_of_url(url);
        let held = TypeSchema::message(name).ok_or_else(|| self.fault(unknown_type(name)))?;
        self.expect(']')?;
        self.take(':');
        let end = self.open()?;
        encoding::string::encode(1, &url.to_owned(), out);
        delimited(2, out, |out| self.fields(held, Some(end), out))
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
            self.take(',');
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
            return delimited(field.number, out, |out| self.fields(schema, Some(end), out));
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
            let word = self.word(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '.'))?;
            return Ok(Scalar::Word(word.to_owned()));
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
            let c = number.filter(|_| digits.len() == most).and_then(char::from_u32);
            let c = c.ok_or_else(|| self.fault("is no character"))?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(());
        }
        out.push(
            number.and_then(|number| u8::try_from(number).ok()).ok_or_else(|| self.fault("is no byte"))?,
        );
        Ok(())
    }
}

/// What a word stands for, as the mapping of JSON has it within quotes. The rules of numbers are those of the text form.
fn meant(kind: Kind, word: &str) -> Result<String> {
    let (sign, digits) = word.strip_prefix('-').map_or(("", word), |digits| ("-", digits));
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit());
    let found = match kind {
        Kind::Bool => match word {
            "true" | "True" | "t" => Some("true".to_owned()),
            "false" | "False" | "f" => Some("false".to_owned()),
            _ => integer(word).filter(|number| matches!(number, 0 | 1)).map(|number| number.to_string()),
        },
        Kind::Double | Kind::Float => match digits.to_ascii_lowercase().as_str() {
            "inf" | "infinity" => Some(format!("{sign}Infinity")),
            "nan" => Some("NaN".to_owned()),
            // There are no octal and hexadecimal ones of these.
            number if is_based(number) => None,
            number => Some(format!("{sign}{}", number.strip_suffix('f').unwrap_or(number))),
        },
        Kind::Enum(_) if !is_number => Some(word.to_owned()),
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::json::message_from_node;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
    use prost::Message;
    use sixfold_core::document::Options;

    fn node(yaml: &str) -> Node {
        Node::parse(yaml, &Options::default()).unwrap()
    }

    const TEXT: &str = r#"
# A comment.
version_info: "a\t" 'b' ; nonce: "\303\251\x41\u00e9"
resources {
  [type.googleapis.com/envoy.config.cluster.v3.Cluster]: <
    name: "c", connect_timeout { seconds: 5 nanos: 500000000 }
    lb_policy: RING_HASH
    type: STATIC
    ring_hash_lb_config: { minimum_ring_size { value: 0x10 } }
    circuit_breakers { thresholds: [{ max_connections { value: 7 } }, { priority: HIGH }] }
    upstream_connection_options { set_local_interface_name_on_upstream_connections: true }
    metadata { filter_metadata { key: "k" value { fields { key: "n" value { number_value: -1.5f } } } } }
  >
}
"#;

    #[test]
    fn text_says_what_yaml_says() {
        let yaml = "
version_info: \"a\\tb\"
nonce: \"éAé\"
resources:
- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: c
  connect_timeout: 5.5s
  lb_policy: RING_HASH
  type: STATIC
  ring_hash_lb_config: {minimum_ring_size: 16}
  circuit_breakers: {thresholds: [{max_connections: 7}, {priority: HIGH}]}
  upstream_connection_options: {set_local_interface_name_on_upstream_connections: true}
  metadata: {filter_metadata: {k: {n: -1.5}}}
";
        let of = |bytes: &[u8]| {
            let response = DiscoveryResponse::decode(bytes).unwrap();
            let cluster = Cluster::decode(response.resources[0].value.as_slice()).unwrap();
            (DiscoveryResponse { resources: Vec::new(), ..response }, cluster)
        };
        let text = encode_text("envoy.service.discovery.v3.DiscoveryResponse", TEXT).unwrap();
        let yaml: DiscoveryResponse = message_from_node(&node(yaml)).unwrap();
        assert_eq!(of(&text), of(&yaml.encode_to_vec()));
    }

    #[test]
    fn numbers_are_those_of_the_text_form() {
        let cases = [
            (Kind::Int32, "010", "8"),
            (Kind::Int32, "-010", "-8"),
            (Kind::Uint32, "0X1f", "31"),
            (Kind::Uint32, "0", "0"),
            (Kind::Double, "-inf", "-Infinity"),
            (Kind::Double, "1.5F", "1.5"),
            (Kind::Float, "1e3f", "1e3"),
            (Kind::Float, "0.5", "0.5"),
            (Kind::Bool, "1", "1"),
            (Kind::Bool, "t", "true"),
        ];
        for (kind, word, expected) in cases {
            assert_eq!(meant(kind, word).unwrap(), expected, "{word}");
        }
    }

    /// The place of each value was counted from the beginning of the text: 800 KB took a quarter of a minute.
    #[test]
    fn a_long_text_is_read_in_one_pass() {
        let text = "resource_names: \"n\"\n".repeat(200_000);
        let encoded = encode_text("envoy.service.discovery.v3.DiscoveryRequest", &text).unwrap();
        assert_eq!(encoded.len(), 200_000 * 3);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let cases = [
            ("name: c", "1:7: name: must stand within quotes"),
            ("name: \"c\"\nnam: \"d\"", "2:4: nam: unknown field"),
            ("lb_policy: NONE", "lb_policy: unknown value"),
            ("connect_timeout { seconds: x }", "1:28: connect_timeout.seconds: must be an integer"),
            ("connect_timeout { seconds: 1.0 }", "connect_timeout.seconds: must be an integer"),
            ("connect_timeout { seconds: 09 }", "connect_timeout.seconds: must be an integer"),
            ("connect_timeout { seconds: +1 }", "connect_timeout.seconds: must be an integer"),
            (
                "connect_timeout { seconds: \"1\" }",
                "1:28: connect_timeout.seconds: must not stand within quotes",
            ),
            ("lb_policy: \"RING_HASH\"", "1:12: lb_policy: must not stand within quotes"),
            ("track_timeout_budgets: yes", "track_timeout_budgets: must be true or false"),
            ("name: \"a\"\nname: \"b\"", "2:5: name: is given twice"),
            ("metadata {} metadata {}", "metadata: is given twice"),
            ("typed_extension_protocol_options { key: \"a\" key: \"b\" }", "key: is given twice"),
            ("name: [\"a\", \"b\"]", "1:7: name: must be one value, not a list"),
            ("metadata [{}]", "metadata: must be one value, not a list"),
            ("type: EDS cluster_type {}", "cluster_type: \"type\" is given too, and only one of them may be"),
            (
                "common_lb_config { healthy_panic_threshold { value: 010 } }",
                "value: must be a decimal number",
            ),
            (
                "typed_extension_protocol_options { value { type_url: \"a\" [type.googleapis.com/google.protobuf.Duration] {} } }",
                "an Any holds one message",
            ),
            ("connect_timeout { seconds: 1", "\"}\" is missing"),
            ("name: \"c", "\" is missing"),
            ("[type.googleapis.com/envoy.config.route.v3.Route] {}", "is for a google.protobuf.Any"),
            (
                "metadata {} typed_extension_protocol_options { key: \"a\" value { [type.googleapis.com/google.protobuf.Duration] {} \
                 [type.googleapis.com/google.protobuf.Duration] {} } }",
                "an Any holds one message",
            ),
            ("lb_policy RING_HASH", "lb_policy: \":\" is missing"),
            ("name: \"\\q\"", "\"\\q\" stands for nothing"),
        ];
        for (text, reason) in cases {
            let error = encode_text("envoy.config.cluster.v3.Cluster", text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let deep = "metadata { filter_metadata { key: \"x\" value { fields { key: \"y\" value { ".to_owned()
            + &"struct_value { fields { key: \"z\" value { ".repeat(60);
        let error = encode_text("envoy.config.cluster.v3.Cluster", &deep).unwrap_err().to_string();
        assert!(error.contains("nested more than 100 deep"), "{error}");
    }
}
