//! Changes of messages that a service asks for, and the rules that say which ones it may ask for
//! (config/common/mutation_rules/v3).

#[cfg(test)]
mod tests;

use sixfold_core::error::ConfigContext;
use sixfold_core::header_ops::AppendAction;
use sixfold_core::headers::{HeaderName, Headers, Known, is_clean, is_token};
use sixfold_core::message::{Method, RequestHead, Scheme};
use sixfold_core::regex::Regex;
use sixfold_xds_api::header_ops;
use sixfold_xds_api::pb::envoy::config::common::mutation_rules::v3::HeaderMutationRules;
use sixfold_xds_api::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use sixfold_xds_api::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use sixfold_xds_api::values::{Result, bool_or, full_regex};

/// One header that a service wants changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// In lower case; names that begin with a colon, and `host`, stand for parts of the request's line.
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
    pub(crate) action: AppendAction,
    /// What is added goes behind the value that is there, with a comma; without one nothing is.
    pub(crate) joins: bool,
}

impl Change {
    /// One that puts a value in the place of others.
    pub(crate) fn set(name: &str, value: &[u8]) -> Change {
        let action = AppendAction::OverwriteIfExistsOrAdd;
        Change { name: name.to_ascii_lowercase(), value: value.to_vec(), action, joins: false }
    }

    /// One that adds a line.
    pub(crate) fn add(name: &str, value: &[u8]) -> Change {
        Change { action: AppendAction::AppendIfExistsOrAdd, ..Change::set(name, value) }
    }

    /// What a service's message says. An action that does not exist is `None`.
    // Services still say the older field.
    #[allow(deprecated)]
    pub(crate) fn of(option: HeaderValueOption) -> Option<Change> {
        let HeaderValueOption {
            header,
            append,
            append_action,
            // An empty value is as good as any other here, as in Envoy.
            keep_empty_value: _,
        } = option;
        let HeaderValue { key, value, raw_value } = header.unwrap_or_default();
        let action = HeaderAppendAction::try_from(append_action).ok()?;
        let action = header_ops::action(append.map(|append| append.value), action);
        let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
        Some(Change { name: key.to_ascii_lowercase(), value, action, joins: false })
    }

    /// Whether a message can have such a field: what can't is never written.
    pub(crate) fn is_valid(&self) -> bool {
        let name = self.name.strip_prefix(':').unwrap_or(&self.name);
        is_token(name.as_bytes()) && is_clean(&self.value)
    }

    /// Whether it makes a request a CONNECT that is none: what is then its target, and its body, the request does not say.
    pub(crate) fn makes_tunnel(&self, head: &RequestHead) -> bool {
        self.name == ":method" && *self.value == *b"CONNECT" && head.method != Method::CONNECT
    }

    /// Whether the request can have it: a path must be one, and a method.
    pub(crate) fn fits(&self, head: &RequestHead) -> bool {
        self.is_valid()
            && match self.name.as_str() {
                ":path" => is_target(&self.value),
                ":method" => Method::from_bytes(&self.value).is_ok() && !self.makes_tunnel(head),
                _ => true,
            }
    }

    /// Changes the request; what no request can have changes nothing.
    pub(crate) fn apply_to_request(&self, head: &mut RequestHead) {
        if !self.fits(head) {
            return;
        }
        match self.name.as_str() {
            _ if self.action == AppendAction::AddIfAbsent && is_of_line(&self.name) => {}
            ":path" => head.target.set(&self.value),
            ":method" => {
                if let Ok(method) = Method::from_bytes(&self.value) {
                    head.method = method;
                }
            }
            ":authority" | "host" => head.authority = self.value.clone(),
            ":scheme" => head.scheme = Scheme::parse(&self.value).unwrap_or(head.scheme),
            name if name.starts_with(':') => {}
            _ => self.apply(&mut head.headers),
        }
    }

    /// Changes a response, but not how it is framed: what a service says of that is none of its business.
    pub(crate) fn apply_to_response(&self, headers: &mut Headers) {
        if !self.frames() {
            self.apply(headers);
        }
    }

    /// Whether it is of a field that frames a response ([`Known::frames`]).
    pub(crate) fn frames(&self) -> bool {
        HeaderName::new(&self.name).is_ok_and(|name| name.known().is_some_and(Known::frames))
    }

    /// Changes headers; what begins with a colon changes nothing.
    pub(crate) fn apply(&self, headers: &mut Headers) {
        let Ok(name) = HeaderName::new(&self.name) else { return };
        if !self.is_valid() {
            return;
        }
        let there = headers.contains(&name);
        match self.action {
            AppendAction::AppendIfExistsOrAdd if self.joins && !there => {}
            // What Envoy keeps in a place of its own has one line (`O(1)` headers).
            AppendAction::AppendIfExistsOrAdd if self.joins || name.known().is_some_and(Known::is_inline) => {
                headers.join(&name, b",", &self.value);
            }
            AppendAction::AppendIfExistsOrAdd => headers.append(&name, &self.value),
            AppendAction::AddIfAbsent if there => {}
            AppendAction::OverwriteIfExists if !there => {}
            AppendAction::AddIfAbsent
            | AppendAction::OverwriteIfExists
            | AppendAction::OverwriteIfExistsOrAdd => headers.set(&name, &self.value),
        }
    }
}

/// Whether it stands in the request's line, and so is there once and always.
fn is_of_line(name: &str) -> bool {
    matches!(name, ":path" | ":method" | ":authority" | "host" | ":scheme")
}

/// Whether a request can ask for it.
fn is_target(value: &[u8]) -> bool {
    value.first() == Some(&b'/') && value.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')
}

/// Removes a header, unless it is one that makes the request one (`HeaderUtility::isRemovableHeader`).
pub(crate) fn remove(headers: &mut Headers, name: &str) {
    let name = name.to_ascii_lowercase();
    if is_removable(&name)
        && let Ok(name) = HeaderName::new(&name)
    {
        headers.remove(&name);
    }
}

fn is_removable(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(':') && name != Known::HOST.as_str()
}

/// Which headers a service may change.
pub(crate) struct Rules {
    all_routing: bool,
    envoy: bool,
    no_system: bool,
    nothing: bool,
    allowed: Option<Regex>,
    disallowed: Option<Regex>,
    is_error: bool,
}

/// What the rules say of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// It is left out.
    Ignored,
    /// The whole answer counts for nothing.
    Refused,
}

impl Rules {
    pub(crate) fn new(value: &HeaderMutationRules) -> Result<Rules> {
        let HeaderMutationRules {
            allow_all_routing,
            allow_envoy,
            disallow_system,
            disallow_all,
            allow_expression,
            disallow_expression,
            disallow_is_error,
        } = value;
        Ok(Rules {
            all_routing: bool_or(allow_all_routing, false),
            envoy: bool_or(allow_envoy, false),
            no_system: bool_or(disallow_system, false),
            nothing: bool_or(disallow_all, false),
            allowed: allow_expression.as_ref().map(full_regex).transpose().in_key("allow_expression")?,
            disallowed: disallow_expression
                .as_ref()
                .map(full_regex)
                .transpose()
                .in_key("disallow_expression")?,
            is_error: bool_or(disallow_is_error, false),
        })
    }

    /// Whether a header of this name, in lower case, may be changed
    /// (source/extensions/filters/common/mutation_rules/mutation_rules.cc).
    pub(crate) fn judge(&self, name: &str) -> Verdict {
        match (self.allows(name), self.is_error) {
            (true, _) => Verdict::Allowed,
            (false, true) => Verdict::Refused,
            (false, false) => Verdict::Ignored,
        }
    }

    fn allows(&self, name: &str) -> bool {
        let is = |regex: &Option<Regex>| regex.as_ref().is_some_and(|regex| regex.is_match(name.as_bytes()));
        if is(&self.disallowed) {
            return false;
        }
        if is(&self.allowed) {
            return true;
        }
        if self.nothing
            || (!self.envoy && name.starts_with("x-envoy"))
            || (self.no_system && name.starts_with(':'))
        {
            return false;
        }
        self.all_routing || !matches!(name, "host" | ":authority" | ":scheme" | ":method")
    }
}
