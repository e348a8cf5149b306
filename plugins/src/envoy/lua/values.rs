//! JSON as Lua has it, and back.

use mlua::{Error, Lua, Table, Value};
use serde_json::{Map, Number, Value as Json};

/// Tables within tables that are read; what is deeper may be a circle.
const DEEPEST: usize = 64;

/// A value as Lua has it; `null` is nil.
pub(super) fn to_lua(lua: &Lua, value: &Json) -> mlua::Result<Value> {
    Ok(match value {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Boolean(*value),
        Json::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => Value::String(lua.create_string(text)?),
        Json::Array(items) => {
            let list = lua.create_table()?;
            for item in items {
                list.push(to_lua(lua, item)?)?;
            }
            Value::Table(list)
        }
        Json::Object(fields) => {
            let table = lua.create_table()?;
            for (name, value) in fields {
                table.set(name.as_str(), to_lua(lua, value)?)?;
            }
            Value::Table(table)
        }
    })
}

/// An object, or an empty table for what is none.
pub(super) fn table(lua: &Lua, value: Option<&Json>) -> mlua::Result<Value> {
    match value {
        Some(value @ Json::Object(_)) => to_lua(lua, value),
        _ => lua.create_table().map(Value::Table),
    }
}

/// Why a script ends that keeps more beside its message than it may.
pub(super) const TOO_MUCH: &str = "too much dynamic metadata and filter state";

/// Takes bytes of what a script may still keep beside its message.
pub(super) fn keep(left: &mut usize, bytes: usize) -> mlua::Result<()> {
    let too_much = || Error::runtime(TOO_MUCH);
    *left = left.checked_sub(bytes).ok_or_else(too_much)?;
    Ok(())
}

/// A value of a script, which takes its bytes of those that are left. A table with a first element is a list.
pub(super) fn of_lua(value: &Value, left: &mut usize) -> mlua::Result<Json> {
    within(value, 0, left)
}

fn within(value: &Value, depth: usize, left: &mut usize) -> mlua::Result<Json> {
    if depth > DEEPEST {
        return Err(Error::runtime("the value is nested too deeply"));
    }
    keep(left, size_of::<Json>())?;
    Ok(match value {
        Value::Nil => Json::Null,
        Value::Boolean(value) => Json::Bool(*value),
        Value::Integer(number) => Json::Number((*number).into()),
        Value::Number(number) => number_of(*number),
        Value::String(text) => {
            keep(left, text.as_bytes().len())?;
            Json::String(text.to_string_lossy())
        }
        Value::Table(table) if table.raw_len() > 0 => list(table, depth, left)?,
        Value::Table(table) => object(table, depth, left)?,
        _ => {
            return Err(Error::runtime(format!(
                "unexpected type '{}' in dynamicMetadata",
                value.type_name()
            )));
        }
    })
}

/// Whole numbers stay whole.
fn number_of(number: f64) -> Json {
    if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        return Json::Number((number as i64).into());
    }
    Number::from_f64(number).map_or(Json::Null, Json::Number)
}

fn list(table: &Table, depth: usize, left: &mut usize) -> mlua::Result<Json> {
    table.sequence_values::<Value>().map(|item| within(&item?, depth + 1, left)).collect()
}

fn object(table: &Table, depth: usize, left: &mut usize) -> mlua::Result<Json> {
    let mut fields = Map::new();
    for pair in table.pairs::<String, Value>() {
        let (name, value) = pair?;
        keep(left, name.len())?;
        fields.insert(name, within(&value, depth + 1, left)?);
    }
    Ok(Json::Object(fields))
}
