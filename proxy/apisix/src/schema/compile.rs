//! From a schema as data to the tree of checks that the validator runs.

use serde_json::{Map, Value};

use super::SchemaError;
use super::rules::{
    Any, ArrayRules, Bound, Check, Condition, Dependency, Extra, Format, Items, NumberRules, ObjectRules,
    Pattern, Property, Rules, StringRules, Type, Types,
};

/// Keywords that say nothing about validity.
const ANNOTATIONS: &[&str] =
    &["$comment", "$id", "$schema", "default", "description", "encrypt_fields", "examples", "title"];

/// Compiles a whole schema.
pub(super) fn compile(schema: &Value) -> Result<Check, SchemaError> {
    Compiler { at: Vec::new() }.check(schema)
}

/// Compiles and remembers where, for errors.
struct Compiler {
    at: Vec<String>,
}

impl Compiler {
    fn error<T>(&self, reason: impl Into<String>) -> Result<T, SchemaError> {
        let at = self.at.iter().map(|step| format!("/{step}")).collect();
        Err(SchemaError { at, reason: reason.into() })
    }

    fn below<T>(
        &mut self,
        step: &str,
        f: impl FnOnce(&mut Self) -> Result<T, SchemaError>,
    ) -> Result<T, SchemaError> {
        self.at.push(step.to_owned());
        let result = f(self);
        self.at.pop();
        result
    }

    fn check(&mut self, schema: &Value) -> Result<Check, SchemaError> {
        match schema {
            Value::Bool(true) => Ok(Check::Always),
            Value::Bool(false) => Ok(Check::Never),
            Value::Object(map) => Ok(Check::Rules(Box::new(self.rules(map)?))),
            _ => self.error("expected an object or a boolean"),
        }
    }

    fn rules(&mut self, map: &Map<String, Value>) -> Result<Rules, SchemaError> {
        let mut rules = Rules::default();
        let (mut object, mut array) = (ObjectRules::default(), ArrayRules::default());
        let (mut string, mut number) = (StringRules::default(), NumberRules::default());
        let (mut is_object, mut is_array, mut is_string, mut is_number) = (false, false, false, false);
        for (key, value) in map {
            self.at.push(key.clone());
            match key.as_str() {
                "type" => rules.types = Some(self.types(value)?),
                "properties"
                | "patternProperties"
                | "additionalProperties"
                | "minProperties"
                | "maxProperties"
                | "required"
                | "dependencies" => {
                    is_object = true;
                    self.object_keyword(key, value, &mut object)?;
                }
                "items" | "additionalItems" | "minItems" | "maxItems" | "uniqueItems" => {
                    is_array = true;
                    self.array_keyword(key, value, &mut array)?;
                }
                "minLength" => (is_string, string.min_length) = (true, Some(self.size(value)?)),
                "maxLength" => (is_string, string.max_length) = (true, Some(self.size(value)?)),
                "pattern" => (is_string, string.pattern) = (true, Some(self.pattern(value)?)),
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                    is_number = true;
                    let bound = self.bound(key, value)?;
                    number.bounds.push(bound);
                }
                "enum" => rules.enumeration = Some(self.list(value)?.clone()),
                "const" => rules.constant = Some(value.clone()),
                "allOf" => rules.all_of = self.checks(value)?,
                "anyOf" => rules.any_of = Some(self.any(value)?),
                "oneOf" => rules.one_of = Some(self.checks(value)?),
                "not" => rules.not = Some(self.check(value)?),
                "if" => rules.condition.get_or_insert_default().test = self.check(value)?,
                "then" => rules.condition.get_or_insert_default().then = Some(self.check(value)?),
                "else" => rules.condition.get_or_insert_default().otherwise = Some(self.check(value)?),
                "contains" => rules.contains = Some(self.check(value)?),
                "format" => rules.format = self.format(value)?,
                other if ANNOTATIONS.contains(&other) => {}
                other => return self.error(format!("unknown keyword '{other}'")),
            }
            self.at.pop();
        }
        if !map.contains_key("if") {
            // Draft-07: `then` and `else` mean nothing without `if`.
            rules.condition = None::<Condition>;
        }
        // The engine reports a lower bound before an upper one, whatever their order in the schema.
        number.bounds.sort_by_key(Bound::rank);
        Self::order_dependencies(&mut object);
        rules.object = is_object.then_some(object);
        rules.array = is_array.then_some(array);
        rules.string = is_string.then_some(string);
        rules.number = is_number.then_some(number);
        Ok(rules)
    }

    /// A required property that is declared is checked with its declaration, and so are its dependencies.
    fn order_dependencies(object: &mut ObjectRules) {
        let ObjectRules { properties, required, dependencies, .. } = object;
        required.retain(|name| match properties.iter_mut().find(|p| p.name == *name) {
            Some(property) => {
                property.required = true;
                false
            }
            None => true,
        });
        for (name, dependency) in std::mem::take(dependencies) {
            match properties.iter_mut().find(|p| p.name == name) {
                Some(property) => property.dependency = Some(dependency),
                None => dependencies.push((name, dependency)),
            }
        }
    }

    fn object_keyword(
        &mut self,
        key: &str,
        value: &Value,
        rules: &mut ObjectRules,
    ) -> Result<(), SchemaError> {
        match key {
            "properties" => {
                for (name, schema) in self.map(value)? {
                    let check = self.below(name, |c| c.check(schema))?;
                    let default = schema.get("default").filter(|d| !d.is_null()).cloned();
                    let property =
                        Property { name: name.clone(), check, required: false, default, dependency: None };
                    rules.properties.push(property);
                }
            }
            "patternProperties" => {
                for (name, schema) in self.map(value)? {
                    let pattern = self.regex(name)?;
                    let check = self.below(name, |c| c.check(schema))?;
                    rules.patterns.push((pattern, check));
                }
            }
            "additionalProperties" => {
                rules.additional = match value {
                    Value::Bool(true) => Extra::Allowed,
                    Value::Bool(false) => Extra::Forbidden,
                    schema => Extra::Checked(self.check(schema)?),
                }
            }
            "minProperties" => rules.min_properties = Some(self.size(value)?),
            "maxProperties" => rules.max_properties = Some(self.size(value)?),
            "required" => rules.required = self.strings(value)?,
            _ => {
                for (name, dependency) in self.map(value)? {
                    let dependency = self.below(name, |c| c.dependency(dependency))?;
                    rules.dependencies.push((name.clone(), dependency));
                }
            }
        }
        Ok(())
    }

    fn dependency(&mut self, value: &Value) -> Result<Dependency, SchemaError> {
        Ok(match value {
            Value::Array(_) => Dependency::Required(self.strings(value)?),
            schema => Dependency::Schema(self.check(schema)?),
        })
    }

    fn array_keyword(&mut self, key: &str, value: &Value, rules: &mut ArrayRules) -> Result<(), SchemaError> {
        match key {
            "items" => {
                rules.items = match value {
                    Value::Array(_) => Items::Tuple(self.checks(value)?),
                    schema => Items::All(self.check(schema)?),
                }
            }
            "additionalItems" => {
                rules.additional = match value {
                    Value::Bool(true) => Extra::Allowed,
                    Value::Bool(false) => Extra::Forbidden,
                    schema => Extra::Checked(self.check(schema)?),
                }
            }
            "minItems" => rules.min_items = Some(self.size(value)?),
            "maxItems" => rules.max_items = Some(self.size(value)?),
            _ => rules.unique = value.as_bool().map_or_else(|| self.error("expected a boolean"), Ok)?,
        }
        Ok(())
    }

    fn types(&self, value: &Value) -> Result<Types, SchemaError> {
        let names = match value {
            Value::String(name) => vec![name.clone()],
            list => self.strings(list)?,
        };
        let kinds = names.iter().map(|name| Type::from_name(name)).collect::<Option<Vec<_>>>();
        match kinds {
            Some(kinds) => Ok(Types { several: value.is_array(), kinds, names: names.join(", ") }),
            None => self.error("unknown type"),
        }
    }

    fn any(&mut self, value: &Value) -> Result<Any, SchemaError> {
        let required: Vec<String> = self
            .list(value)?
            .iter()
            .filter_map(|schema| schema.get("required"))
            .map(ToString::to_string)
            .collect();
        Ok(Any { checks: self.checks(value)?, required: required.join(" or ") })
    }

    fn checks(&mut self, value: &Value) -> Result<Vec<Check>, SchemaError> {
        let list = self.list(value)?.clone();
        list.iter().enumerate().map(|(i, schema)| self.below(&i.to_string(), |c| c.check(schema))).collect()
    }

    fn bound(&self, keyword: &str, value: &Value) -> Result<Bound, SchemaError> {
        let Value::Number(number) = value else {
            return self.error("expected a number");
        };
        let limit = number.as_f64().unwrap_or_default();
        Ok(match keyword {
            "minimum" => Bound::AtLeast(limit),
            "exclusiveMinimum" => Bound::GreaterThan(limit),
            "maximum" => Bound::AtMost(limit),
            "exclusiveMaximum" => Bound::SmallerThan(limit),
            _ => Bound::MultipleOf(limit),
        })
    }

    fn pattern(&self, value: &Value) -> Result<Pattern, SchemaError> {
        value.as_str().map_or_else(|| self.error("expected a string"), |text| self.regex(text))
    }

    fn regex(&self, text: &str) -> Result<Pattern, SchemaError> {
        Pattern::new(text).map_or_else(|e| self.error(format!("invalid regular expression: {e}")), Ok)
    }

    fn format(&self, value: &Value) -> Result<Option<Format>, SchemaError> {
        // Formats that the engine does not know are annotations, as draft-07 has it.
        value.as_str().map_or_else(|| self.error("expected a string"), |name| Ok(Format::from_name(name)))
    }

    fn size(&self, value: &Value) -> Result<usize, SchemaError> {
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map_or_else(|| self.error("expected a number that is not negative"), Ok)
    }

    fn strings(&self, value: &Value) -> Result<Vec<String>, SchemaError> {
        let list =
            self.list(value)?.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        list.map_or_else(|| self.error("expected strings"), Ok)
    }

    fn list<'a>(&self, value: &'a Value) -> Result<&'a Vec<Value>, SchemaError> {
        value.as_array().map_or_else(|| self.error("expected an array"), Ok)
    }

    fn map<'a>(&self, value: &'a Value) -> Result<&'a Map<String, Value>, SchemaError> {
        value.as_object().map_or_else(|| self.error("expected an object"), Ok)
    }
}
