//! Fields that are known but not supported.
//!
//! Every message is taken apart with an exhaustive pattern, so that the compiler counts the fields: each one is
//! either used or given to [`refuse!`]. A field that this code has never heard of does not exist.

use sixfold_core::error::{ConfigError, collect};

use crate::json::is_known_type;

/// Refuses fields that are set but not supported: `refuse!(a, b)` for references named like the fields, in a function
/// that returns a `Result` with a [`ConfigError`](sixfold_core::error::ConfigError).
#[macro_export]
macro_rules! refuse {
    ($($field:ident),* $(,)?) => {
        $crate::refused!($($field),*)?;
    };
}

/// As [`refuse!`], for who has more to look at: the result with every field that is set and not supported.
#[macro_export]
macro_rules! refused {
    ($($field:ident),* $(,)?) => {
        $crate::refuse::all([$($crate::refuse::unset($field, stringify!($field))),*])
    };
}

/// Takes a message apart: `destructure!(Message { used, ignored: _ } refusing { a, b } = value)` binds the fields of the
/// first group and refuses those of the second.
#[macro_export]
macro_rules! destructure {
    ($message:ident { $($used:tt)* } refusing { $($refused:ident),* $(,)? } = $value:expr) => {
        let $message { $($used)*, $($refused),* } = $value;
        $crate::refuse!($($refused),*);
    };
}

/// Complains about a value that differs from its default.
pub fn unset<T: Default + PartialEq>(value: &T, field: &str) -> Result<(), ConfigError> {
    if *value == T::default() {
        return Ok(());
    }
    Err(ConfigError::field(field.trim_start_matches("r#"), "is not supported"))
}

/// The faults of all of them.
pub fn all<const N: usize>(results: [Result<(), ConfigError>; N]) -> Result<(), ConfigError> {
    collect(results).map(drop)
}

/// The error of an extension that exists in Envoy but not here, or nowhere.
pub fn extension(kind: &str, name: &str, type_name: &str) -> ConfigError {
    let known = if is_known_type(type_name) { "is not supported" } else { "is unknown" };
    let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    ConfigError::field("typed_config", format!("{kind}{name} of type {type_name} {known}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refused(a: &str, r#type: &Option<u32>) -> Result<(), ConfigError> {
        let a = &a;
        refuse!(a, r#type);
        Ok(())
    }

    struct Message {
        used: u32,
        other: u32,
    }

    fn taken(message: &Message) -> Result<u32, ConfigError> {
        destructure!(Message { used } refusing { other } = message);
        Ok(*used)
    }

    #[test]
    fn messages_are_taken_apart() {
        assert_eq!(taken(&Message { used: 1, other: 0 }).unwrap(), 1);
        let error = taken(&Message { used: 1, other: 2 }).unwrap_err();
        assert_eq!(error.to_string(), "other: is not supported");
    }

    #[test]
    fn set_fields_are_refused_by_name() {
        // Only the first was told.
        let both = refused("x", &Some(0)).unwrap_err().into_all();
        assert_eq!(
            both.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a: is not supported", "type: is not supported"]
        );

        assert!(refused("", &None).is_ok());
        assert_eq!(refused("x", &None).unwrap_err().to_string(), "a: is not supported");
        assert_eq!(refused("", &Some(0)).unwrap_err().to_string(), "type: is not supported");
    }
}
