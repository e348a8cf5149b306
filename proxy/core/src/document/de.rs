//! serde over nodes: types read from a document complain with path and place.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::{Entry, Node, Object, Value};
use crate::error::ConfigError;

/// The key that tells the type of a protobuf `Any`; it must be known before the other keys are read.
const TYPE_KEY: &str = "@type";

impl<'de> Deserializer<'de> for &'de Node {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (None, Some(value), _) => visitor.visit_i64(value),
                (None, None, value) => visitor.visit_f64(value.unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Object(object) => visitor.visit_map(Entries::new(object)),
        }
        .map_err(|error| error.at(self.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self)
    }

    /// `name` or `{name: content}`.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let variant = match &self.value {
            Value::String(name) => Variant { name, content: None },
            Value::Object(object) => match object.entries() {
                [entry] => Variant { name: &entry.key, content: Some(entry) },
                _ => return Err(ConfigError::new("must be an object with exactly one key").at(self.place)),
            },
            _ => {
                let reason = format!("must be a name or an object with one key, not {}", self.kind());
                return Err(ConfigError::new(reason).at(self.place));
            }
        };
        visitor.visit_enum(variant).map_err(|error| error.at(self.place))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = ConfigError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ConfigError> {
        let index = self.next;
        let Some(item) = self.items.get(index) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.at(item.place).in_index(index))
    }

    fn size_hint(&self) -> Option<usize> {
        self.items.len().checked_sub(self.next)
    }
}

/// The entries of an object, `@type` first.
struct Entries<'de> {
    entries: &'de [Entry],
    /// Position of `@type` until it was given, and afterwards the one to leave out.
    type_position: Option<usize>,
    type_given: bool,
    next: usize,
    current: Option<&'de Entry>,
}

impl<'de> Entries<'de> {
    fn new(object: &'de Object) -> Self {
        let entries = object.entries();
        let type_position = entries.iter().position(|entry| entry.key == TYPE_KEY);
        Entries { entries, type_position, type_given: type_position.is_none(), next: 0, current: None }
    }

    fn advance(&mut self) -> Option<&'de Entry> {
        if !self.type_given {
            self.type_given = true;
            return self.entries.get(self.type_position?);
        }
        if Some(self.next) == self.type_position {
            self.next += 1;
        }
        let entry = self.entries.get(self.next)?;
        self.next += 1;
        Some(entry)
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        self.current = self.advance();
        let Some(entry) = self.current else { return Ok(None) };
        let key: StrDeserializer<'de, ConfigError> = StrDeserializer::new(&entry.key);
        seed.deserialize(key).map(Some).map_err(|error| error.at(entry.key_place).in_key(&entry.key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ConfigError> {
        let Some(entry) = self.current.take() else {
            return Err(ConfigError::new("a value was asked for before its key"));
        };
        seed.deserialize(&entry.value).map_err(|error| error.at(entry.value.place).in_key(&entry.key))
    }
}

struct Variant<'de> {
    name: &'de str,
    content: Option<&'de Entry>,
}

impl Variant<'_> {
    fn missing_content(&self) -> ConfigError {
        ConfigError::new(format!("\"{}\" needs content: {{{}: …}}", self.name, self.name))
    }
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = ConfigError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ConfigError> {
        let name: StrDeserializer<'de, ConfigError> = StrDeserializer::new(self.name);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = ConfigError;

    fn unit_variant(self) -> Result<(), ConfigError> {
        match self.content {
            Some(entry) if !entry.value.is_null() => {
                Err(ConfigError::new("takes no content").at(entry.value.place).in_key(self.name))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ConfigError> {
        let entry = self.content.ok_or_else(|| self.missing_content())?;
        seed.deserialize(&entry.value).map_err(|error| error.at(entry.value.place).in_key(self.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, ConfigError> {
        let entry = self.content.ok_or_else(|| self.missing_content())?;
        entry.value.deserialize_any(visitor).map_err(|error| error.in_key(self.name))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        self.tuple_variant(0, visitor)
    }
}
