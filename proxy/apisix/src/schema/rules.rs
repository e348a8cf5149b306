//! What a schema compiles to.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use serde_json::Value;

/// What an instance is checked against.
#[derive(Debug, Default)]
pub(super) enum Check {
    /// The schema `true`.
    #[default]
    Always,
    /// The schema `false`.
    Never,
    /// A schema that did not compile, and why.
    Broken(String),
    /// Everything else.
    Rules(Box<Rules>),
}

/// The keywords of one schema object.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) types: Option<Types>,
    pub(super) object: Option<ObjectRules>,
    pub(super) array: Option<ArrayRules>,
    pub(super) string: Option<StringRules>,
    pub(super) number: Option<NumberRules>,
    pub(super) enumeration: Option<Vec<Value>>,
    pub(super) all_of: Vec<Check>,
    pub(super) any_of: Option<Any>,
    pub(super) one_of: Option<Vec<Check>>,
    pub(super) condition: Option<Condition>,
    pub(super) not: Option<Check>,
    pub(super) format: Option<Format>,
    pub(super) constant: Option<Value>,
    pub(super) contains: Option<Check>,
}

/// `type`, one or several.
#[derive(Debug)]
pub(super) struct Types {
    pub(super) kinds: Vec<Type>,
    /// Written as an array, which the message says differently.
    pub(super) several: bool,
    pub(super) names: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Array,
    Boolean,
    Integer,
    Null,
    Number,
    Object,
    String,
}

#[derive(Debug, Default)]
pub(super) struct ObjectRules {
    pub(super) properties: Vec<Property>,
    /// Required names that are not declared.
    pub(super) required: Vec<String>,
    /// Dependencies of names that are not declared.
    pub(super) dependencies: Vec<(String, Dependency)>,
    pub(super) patterns: Vec<(Pattern, Check)>,
    pub(super) additional: Extra,
    pub(super) min_properties: Option<usize>,
    pub(super) max_properties: Option<usize>,
}

/// A declared property.
#[derive(Debug)]
pub(super) struct Property {
    pub(super) name: String,
    pub(super) check: Check,
    pub(super) required: bool,
    pub(super) default: Option<Value>,
    pub(super) dependency: Option<Dependency>,
}

#[derive(Debug)]
pub(super) enum Dependency {
    Required(Vec<String>),
    Schema(Check),
}

/// What holds for properties or items that nothing else speaks of.
#[derive(Debug, Default)]
pub(super) enum Extra {
    #[default]
    Allowed,
    Forbidden,
    Checked(Check),
}

#[derive(Debug, Default)]
pub(super) struct ArrayRules {
    pub(super) items: Items,
    pub(super) additional: Extra,
    pub(super) min_items: Option<usize>,
    pub(super) max_items: Option<usize>,
    pub(super) unique: bool,
}

#[derive(Debug, Default)]
pub(super) enum Items {
    #[default]
    Any,
    All(Check),
    Tuple(Vec<Check>),
}

#[derive(Debug, Default)]
pub(super) struct StringRules {
    pub(super) min_length: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) pattern: Option<Pattern>,
}

#[derive(Debug, Default)]
pub(super) struct NumberRules {
    pub(super) bounds: Vec<Bound>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    GreaterThan(f64),
    MultipleOf(f64),
    SmallerThan(f64),
}

#[derive(Debug)]
pub(super) struct Any {
    pub(super) checks: Vec<Check>,
    /// The `required` lists of the branches, as the message shows them.
    pub(super) required: String,
}

#[derive(Debug, Default)]
pub(super) struct Condition {
    pub(super) test: Check,
    pub(super) then: Option<Check>,
    pub(super) otherwise: Option<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Date,
    DateTime,
    Email,
    Hostname,
    Ipv4,
    Ipv6,
    Uri,
    Uuid,
}

/// A regular expression with look-around, as PCRE users write them.
pub(super) struct Pattern {
    source: String,
    regex: fancy_regex::Regex,
}

impl Type {
    pub(super) fn from_name(name: &str) -> Option<Type> {
        Some(match name {
            "array" => Type::Array,
            "boolean" => Type::Boolean,
            "integer" => Type::Integer,
            "null" => Type::Null,
            "number" => Type::Number,
            "object" => Type::Object,
            "string" => Type::String,
            _ => return None,
        })
    }
}

impl Bound {
    /// The engine's order.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Bound::AtLeast(_) => 0,
            Bound::GreaterThan(_) => 1,
            Bound::AtMost(_) => 2,
            Bound::SmallerThan(_) => 3,
            Bound::MultipleOf(_) => 4,
        }
    }
}

impl Format {
    pub(super) fn from_name(name: &str) -> Option<Format> {
        Some(match name {
            "date" => Format::Date,
            "date-time" => Format::DateTime,
            "email" => Format::Email,
            "hostname" => Format::Hostname,
            "ipv4" => Format::Ipv4,
            "ipv6" => Format::Ipv6,
            "uri" => Format::Uri,
            "uuid" => Format::Uuid,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Date => "date",
            Format::DateTime => "date-time",
            Format::Email => "email",
            Format::Hostname => "hostname",
            Format::Ipv4 => "ipv4",
            Format::Ipv6 => "ipv6",
            Format::Uri => "uri",
            Format::Uuid => "uuid",
        }
    }

    pub(super) fn accepts(self, text: &str) -> bool {
        macro_rules! pattern {
            ($source:literal) => {{
                static PATTERN: LazyLock<Option<Pattern>> = LazyLock::new(|| Pattern::new($source).ok());
                PATTERN.as_ref().is_some_and(|pattern| pattern.matches(text))
            }};
        }
        match self {
            Format::Date => pattern!(r"^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])$"),
            Format::DateTime => pattern!(
                r"(?i)^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:[.][0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"
            ),
            Format::Email => pattern!(r"^[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+[.][A-Za-z]{2,4}$"),
            Format::Hostname => pattern!(r"^[a-zA-Z0-9.-]+$"),
            Format::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Format::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Format::Uri => pattern!(r"^[a-zA-Z][a-zA-Z0-9+.-]*:\S*$"),
            Format::Uuid => pattern!(r"^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"),
        }
    }
}

impl Pattern {
    pub(super) fn new(source: &str) -> Result<Pattern, Box<fancy_regex::Error>> {
        let regex = fancy_regex::RegexBuilder::new(source).backtrack_limit(100_000).build()?;
        Ok(Pattern { source: source.to_owned(), regex })
    }

    /// The pattern as written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// A pattern that gives up (too much backtracking) has not matched.
    pub(super) fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text).unwrap_or(false)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}
