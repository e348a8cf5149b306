//! Header changes of one level of a route table.

use crate::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect};
use sixfold_core::header_ops::{AppendAction, HeaderAddition, HeaderOps};
use sixfold_core::headers::HeaderName;

use crate::format;
use crate::values::{Result, enum_value, header_name, required};

/// Additions and removals; `field` is `request_headers` or `response_headers`, before `_to_add` and `_to_remove`.
pub fn ops(add: &[HeaderValueOption], remove: &[String], field: &str) -> Result<HeaderOps> {
    let remove = remove.iter().enumerate().map(|(index, name)| removal(name).in_index(index));
    let mut faults = Faults::default();
    let remove = faults.take(collect(remove).in_key(&format!("{field}_to_remove")));
    let add = faults.take(additions(add, &format!("{field}_to_add")));
    faults.end(HeaderOps { remove: remove.into(), add })
}

/// The changes of requests and of responses, of a message that has both.
///
/// # Errors
/// Those of [`ops`].
pub fn both(
    (request_add, request_remove): (&[HeaderValueOption], &[String]),
    (response_add, response_remove): (&[HeaderValueOption], &[String]),
) -> Result<(HeaderOps, HeaderOps)> {
    let mut faults = Faults::default();
    let request = faults.take(ops(request_add, request_remove, "request_headers"));
    let response = faults.take(ops(response_add, response_remove, "response_headers"));
    faults.end((request, response))
}

/// One addition alone.
///
/// # Errors
/// A name that may not be changed, a value that is no format, actions that exclude each other.
pub fn one(add: &HeaderValueOption) -> Result<HeaderOps> {
    Ok(HeaderOps { add: Box::new([addition(add)?]), ..HeaderOps::default() })
}

/// The removal of one header alone; `field` holds its name.
///
/// # Errors
/// A name that may not be changed.
pub fn without(name: &str, field: &str) -> Result<HeaderOps> {
    Ok(HeaderOps { remove: Box::new([changeable(name, field)?]), ..HeaderOps::default() })
}

/// The additions of a field.
pub fn additions(add: &[HeaderValueOption], field: &str) -> Result<Box<[HeaderAddition]>> {
    let add = add.iter().enumerate().map(|(index, value)| addition(value).in_index(index));
    collect(add).in_key(field).map(Vec::into_boxed_slice)
}

fn addition(value: &HeaderValueOption) -> Result<HeaderAddition> {
    let HeaderValueOption { header, append, append_action, keep_empty_value } = value;
    let HeaderValue { key, value, raw_value } = required(header, "header")?;
    let given = enum_value(*append_action, "append_action")?;
    if append.is_some() && given != HeaderAppendAction::AppendIfExistsOrAdd {
        return Err(ConfigError::field("append", "must not be given together with append_action"));
    }
    let text = match (value.is_empty(), raw_value.is_empty()) {
        (_, true) => value.as_str(),
        (true, false) => std::str::from_utf8(raw_value)
            .map_err(|_| ConfigError::field("header.raw_value", "must be UTF-8 to hold a format"))?,
        (false, false) => {
            return Err(ConfigError::field("header.raw_value", "must not be given together with value"));
        }
    };
    Ok(HeaderAddition {
        name: changeable(key, "header.key")?,
        value: format::text(text).in_key("header.value")?,
        action: action(append.as_ref().map(|append| append.value), given),
        keep_empty: *keep_empty_value,
    })
}

/// What is done where the header is there already: what `append` says, the older field, where it is given.
pub fn action(append: Option<bool>, action: HeaderAppendAction) -> AppendAction {
    match (append, action) {
        (Some(true), _) | (None, HeaderAppendAction::AppendIfExistsOrAdd) => {
            AppendAction::AppendIfExistsOrAdd
        }
        (Some(false), _) | (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => {
            AppendAction::OverwriteIfExistsOrAdd
        }
        (None, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (None, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    }
}

fn removal(name: &str) -> Result<HeaderName> {
    changeable(name, "").map_err(|error| ConfigError::new(error.reason))
}

/// The name of a header that may be changed: neither a pseudo header nor Host.
fn changeable(name: &str, field: &str) -> Result<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(ConfigError::field(
            field,
            format!("\"{name}\": pseudo headers and host may not be changed here"),
        ));
    }
    header_name(name, field)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pb::envoy::config::route::v3::Route;
    use crate::testing::read;

    fn compile(yaml: &str) -> Result<HeaderOps> {
        let route: Route = read(yaml);
        ops(&route.request_headers_to_add, &route.request_headers_to_remove, "request_headers")
    }

    #[test]
    fn actions_and_order_are_kept() {
        let ops = compile(
            "request_headers_to_add: [{header: {key: X-A, value: a}}, {header: {key: b, value: b}, append: false}, {header: {key: c}, append_action: ADD_IF_ABSENT, keep_empty_value: true}]\nrequest_headers_to_remove: [D]",
        )
        .unwrap();
        let actions: Vec<_> =
            ops.add.iter().map(|add| (add.name.as_str(), add.action, add.keep_empty)).collect();
        assert_eq!(
            actions,
            [
                ("x-a", AppendAction::AppendIfExistsOrAdd, false),
                ("b", AppendAction::OverwriteIfExistsOrAdd, false),
                ("c", AppendAction::AddIfAbsent, true)
            ]
        );
        assert_eq!(ops.remove[0].as_str(), "d");
    }

    #[test]
    fn host_and_pseudo_headers_are_refused() {
        for (yaml, message) in [
            (
                "request_headers_to_add: [{header: {key: Host, value: a}}]",
                "request_headers_to_add[0].header.key: \"Host\": pseudo headers and host may not be changed here",
            ),
            (
                "request_headers_to_remove: [a, ':path']",
                "request_headers_to_remove[1]: \":path\": pseudo headers and host may not be changed here",
            ),
            (
                "request_headers_to_add: [{header: {key: a}, append: true, append_action: ADD_IF_ABSENT}]",
                "request_headers_to_add[0].append: must not be given together with append_action",
            ),
            ("request_headers_to_add: [{}]", "request_headers_to_add[0].header: is missing"),
        ] {
            assert_eq!(compile(yaml).unwrap_err().to_string(), message);
        }
    }
}
