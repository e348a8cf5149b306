//! Fields that are known but not supported.
//!
//! Every message is taken apart with an exhaustive pattern, so that the compiler counts the fields: each one is
//! either used or given to [`refuse!`]. A field that this code has never heard of does not exist.

use sixfold_core::error::ConfigError;

/// Refuses fields that are set but not supported: `refuse!(a, b)` for references named like the fields.
macro_rules! refuse {
    ($($field:ident),* $(,)?) => {
        $($crate::refuse::unset($field, stringify!($field))?;)*
    };
}
pub(crate) use refuse;

/// Complains about a value that differs from its default.
pub(crate) fn unset<T: Default + PartialEq>(value: &T, field: &str) -> Result<(), ConfigError> {
    if *value == T::default() {
        return Ok(());
    }
    Err(ConfigError::field(field.trim_start_matches("r#"), "is not supported"))
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

    #[test]
    fn set_fields_are_refused_by_name() {
        assert!(refused("", &None).is_ok());
        assert_eq!(refused("x", &None).unwrap_err().to_string(), "a: is not supported");
        assert_eq!(refused("", &Some(0)).unwrap_err().to_string(), "type: is not supported");
    }
}
