//! JSON from clients, with every member that it has.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// How deep a value may be by serde_json, which reads it.
const DEEPEST: usize = 128;

/// A value. Members stand in the order of the text, and a name may stand twice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a text in which at most so many arrays and objects are in each other.
    pub(crate) fn read(text: &[u8], deepest: usize) -> Result<Json, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let json = Reader { left: deepest }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(json)
    }

    /// The text of a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value in which, at any depth, no name stands twice.
    fn unique(self) -> Option<Value> {
        Some(match self {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => Value::Number(number),
            Json::String(text) => Value::String(text),
            Json::Array(items) => Value::Array(items.into_iter().map(Json::unique).collect::<Option<_>>()?),
            Json::Object(entries) => {
                let mut members = Map::new();
                for (name, value) in entries {
                    if members.insert(name, value.unique()?).is_some() {
                        return None;
                    }
                }
                Value::Object(members)
            }
        })
    }
}

/// As JSON, without spaces.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comma = |at: usize| if at == 0 { "" } else { "," };
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => value.fmt(f),
            Json::Number(number) => number.fmt(f),
            Json::String(text) => Value::from(text.as_str()).fmt(f),
            Json::Array(items) => {
                f.write_str("[")?;
                items.iter().enumerate().try_for_each(|(at, item)| write!(f, "{}{item}", comma(at)))?;
                f.write_str("]")
            }
            Json::Object(members) => {
                f.write_str("{")?;
                members.iter().enumerate().try_for_each(|(at, (name, value))| {
                    write!(f, "{}{}:{value}", comma(at), Value::from(name.as_str()))
                })?;
                f.write_str("}")
            }
        }
    }
}

/// The members of an object in which, at any depth, no name stands twice: of two values readers take different
/// ones.
pub(crate) fn object(text: &[u8]) -> Option<Map<String, Value>> {
    match Json::read(text, DEEPEST).ok()?.unique() {
        Some(Value::Object(members)) => Some(members),
        _ => None,
    }
}

/// Reads one value.
#[derive(Clone, Copy)]
struct Reader {
    /// Arrays and objects that may be in each other.
    left: usize,
}

impl Reader {
    /// Reads what is in an array or object.
    fn below<E: Error>(self) -> Result<Reader, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("it is nested too deep"))?;
        Ok(Reader { left })
    }
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("no finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let (mut array, below) = (Vec::new(), self.below()?);
        while let Some(item) = items.next_element_seed(below)? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let (mut members, below) = (Vec::new(), self.below()?);
        while let Some(name) = entries.next_key::<String>()? {
            members.push((name, entries.next_value_seed(below)?));
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_two_readings_is_refused() {
        let whole = br#"{"a": [1, -2, 1.5, "x", true, null, {"b": {}}], "c": 18446744073709551615}"#;
        let expected = json!({"a": [1, -2, 1.5, "x", true, null, {"b": {}}], "c": u64::MAX});
        assert_eq!(object(whole).map(Value::Object), Some(expected));
        let deep = format!("{}{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        for bad in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": {"b": 1, "\u0062": 2}}"#,
            r#"{"a": [{"b": 1, "b": 2}]}"#,
            "[]",
            "1",
            "",
            "{} {}",
            "{\"a\": \"\n\"}",
            r#"{"a": 1e999}"#,
            &deep,
        ] {
            assert_eq!(object(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(object(b"{\"a\": \"\xff\"}"), None);
    }

    #[test]
    fn every_member_is_read_and_shown() {
        let text = r#"{"a":[1,-2.5,"x\n"],"a":{"b":null,"b":true},"":{}}"#;
        assert_eq!(Json::read(text.as_bytes(), 3).unwrap().to_string(), text);
    }

    #[test]
    fn depth_is_bounded() {
        for text in [r#"{"a":[1,{"b":[]}]}"#, r#"{"a":[[[]]]}"#] {
            assert!(Json::read(text.as_bytes(), 4).is_ok());
            let error = Json::read(text.as_bytes(), 3).unwrap_err().to_string();
            assert!(error.starts_with("it is nested too deep at"), "{error}");
        }
    }
}
