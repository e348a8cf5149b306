//! Headers that are added and removed.

use crate::import::document::{field, items_of, text_of, texts_of, truth_of};
use crate::import::report::Part;
use serde_json::{Map, Value, json};
use sixfold_core::document::Node;

/// What is done to headers of one direction.
#[derive(Debug, Default, Clone)]
pub(super) struct Changes {
    add: Vec<(String, String)>,
    set: Map<String, Value>,
    remove: Vec<String>,
}

/// Envoy's command operators that have a variable here.
const VARIABLES: &[(&str, &str)] = &[
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "remote_addr"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "realip_remote_addr"),
    ("DOWNSTREAM_LOCAL_PORT", "server_port"),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "server_addr"),
    ("PROTOCOL", "server_protocol"),
    ("REQUESTED_SERVER_NAME", "ssl_server_name"),
    ("HOSTNAME", "hostname"),
    ("RESPONSE_CODE", "status"),
    ("DOWNSTREAM_TLS_VERSION", "ssl_protocol"),
    ("DOWNSTREAM_TLS_CIPHER", "ssl_cipher"),
    ("DOWNSTREAM_PEER_SUBJECT", "ssl_client_s_dn"),
];

/// A value with its command operators as variables; `None` if one has none.
pub(super) fn value(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest.get(..at)?.replace('$', "\\$"));
        let after = rest.get(at + 1..)?;
        let end = after.find('%')?;
        let name = after.get(..end)?;
        rest = after.get(end + 1..)?;
        let header = name.strip_prefix("REQ(").and_then(|name| name.strip_suffix(')'));
        match (name, header) {
            ("", _) => out.push('%'),
            (_, Some(":AUTHORITY" | ":authority")) => out.push_str("${http_host}"),
            (_, Some(":PATH" | ":path")) => out.push_str("${request_uri}"),
            (_, Some(":METHOD" | ":method")) => out.push_str("${request_method}"),
            (_, Some(header))
                if header.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) =>
            {
                out.push_str(&format!("${{http_{}}}", header.to_ascii_lowercase().replace('-', "_")));
            }
            _ => {
                let variable = VARIABLES.iter().find(|(known, _)| *known == name)?.1;
                out.push_str(&format!("${{{variable}}}"));
            }
        }
    }
    out.push_str(&rest.replace('$', "\\$"));
    Some(out)
}

impl Changes {
    /// Takes what a level says, the narrowest first; of its own fields the part tells that they are exact.
    pub(super) fn take(&mut self, node: &Node, direction: &str, part: &mut Part, is_own: bool) {
        let (add, remove) = (format!("{direction}_headers_to_add"), format!("{direction}_headers_to_remove"));
        for one in items_of(node, &add) {
            self.option(one, &add, part);
        }
        for name in texts_of(node, &remove) {
            self.remove.push(name);
        }
        for name in [&add, &remove] {
            if is_own && field(node, name).is_some() {
                part.exact(name);
            }
        }
    }

    fn option(&mut self, one: &Node, name: &str, part: &mut Part) {
        let Some(header) = field(one, "header") else { return };
        let key = text_of(header, "key").unwrap_or_default();
        let given = text_of(header, "value").unwrap_or_default();
        let Some(given) = value(&given) else {
            return part.manual(name, one.place, format!("{key}: {given} has no variable here"));
        };
        let action = super::word_of(one, "append_action");
        let appends = truth_of(one, "append", true);
        match action.as_str() {
            "OVERWRITE_IF_EXISTS_OR_ADD" => drop(self.set.insert(key, given.into())),
            "ADD_IF_ABSENT" => {
                part.approximate(name, one.place, format!("{key} is added where it is there, too"));
                self.add.push((key, given));
            }
            "OVERWRITE_IF_EXISTS" => {
                part.approximate(name, one.place, format!("{key} is set where it is not there, too"));
                self.set.insert(key, given.into());
            }
            "" if !appends => drop(self.set.insert(key, given.into())),
            _ => self.add.push((key, given)),
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.set.is_empty() && self.remove.is_empty()
    }

    /// `headers` of the plugin proxy-rewrite.
    pub(super) fn of_request(&self) -> Value {
        let add: Map<String, Value> =
            self.add.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        self.with(Value::Object(add), self.add.is_empty())
    }

    /// `headers` of the plugin response-rewrite.
    pub(super) fn of_response(&self) -> Value {
        let add: Vec<String> = self.add.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        self.with(json!(add), add.is_empty())
    }

    fn with(&self, add: Value, adds_nothing: bool) -> Value {
        let mut made = Map::new();
        if !adds_nothing {
            made.insert("add".to_owned(), add);
        }
        if !self.set.is_empty() {
            made.insert("set".to_owned(), Value::Object(self.set.clone()));
        }
        if !self.remove.is_empty() {
            made.insert("remove".to_owned(), json!(self.remove));
        }
        Value::Object(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_operators_are_variables() {
        assert_eq!(value("a%%b").as_deref(), Some("a%b"));
        assert_eq!(value("$5 %REQ(X-User)%").as_deref(), Some("\\$5 ${http_x_user}"));
        assert_eq!(value("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%;").as_deref(), Some("${remote_addr};"));
        assert_eq!(value("%START_TIME%"), None);
        assert_eq!(value("50%"), None);
    }
}
